"""`ConnectionFileMixin`: an object that knows where one kernel listens (seed 000)."""

from __future__ import annotations

from typing import Any

import zmq
from jupyter_client.session import Session
from jupyter_core.paths import jupyter_data_dir
from traitlets import Bool, Bytes, CaselessStrEnum, Instance, Integer, Type, Unicode, observe
from traitlets.config import LoggingConfigurable

from kbridge.connect.methods import ConnectionFileMethods

__all__ = ["ConnectionFileMixin"]


class ConnectionFileMixin(ConnectionFileMethods, LoggingConfigurable):
    """Base of classes that work with connection files (seed 000; `jupyter_client`'s class).

    Attributes
    ----------
    connection_file : str
        Its path; when it is written without one, it gets one.
    transport : str
        ``tcp`` or ``ipc``.
    ip : str
        The kernel's address; for ipc, what the paths of its sockets begin with.
    shell_port, iopub_port, stdin_port, hb_port, control_port : int
        TCP ports, or the numbers at the end of ipc paths; 0 if they are to be chosen.
    session : jupyter_client.session.Session
        Has the key.
    curve_publickey, curve_secretkey : bytes or None
        The CurveZMQ key pair (Z85) of a kernel that encrypts.
    context : zmq.Context
        What sockets are made from; the process's own unless one is set.
    """

    data_dir = Unicode()
    connection_file = Unicode(
        "",
        config=True,
        help="""JSON file in which to store connection info [default: kernel-<pid>.json]

    It holds the address, the ports and the key that clients of the kernel need. A bare name is
    one in the working directory.
    """,
    )
    _connection_file_written = Bool(False)
    transport = CaselessStrEnum(
        ["tcp", "ipc"], default_value="tcp", config=True, help="TCP ports, or unix sockets (ipc)."
    )
    kernel_name = Unicode()
    context = Instance(zmq.Context)
    ip = Unicode(
        config=True,
        help="""The kernel's IP address [default: this machine's loopback]. With any other, whoever
        reaches this machine and has the key can run code here.""",
    )
    hb_port = Integer(0, config=True, help="set the heartbeat port [default: random]")
    shell_port = Integer(0, config=True, help="set the shell (ROUTER) port [default: random]")
    iopub_port = Integer(0, config=True, help="set the iopub (PUB) port [default: random]")
    stdin_port = Integer(0, config=True, help="set the stdin (ROUTER) port [default: random]")
    control_port = Integer(0, config=True, help="set the control (ROUTER) port [default: random]")
    curve_publickey = Bytes(allow_none=True, default_value=None)
    curve_secretkey = Bytes(allow_none=True, default_value=None)
    session = Instance("jupyter_client.session.Session")
    blocking_class = Type(klass=object, default_value="jupyter_client.BlockingKernelClient")

    def _ip_default(self) -> str:  # traitlets looks for it no further than where the trait is
        return super()._ip_default()

    def _data_dir_default(self) -> str:
        return str(jupyter_data_dir())

    def _session_default(self) -> Session:
        return Session(parent=self)

    def _context_default(self) -> zmq.Context[zmq.Socket[bytes]]:
        return zmq.Context.instance()

    @observe("ip")
    def _ip_changed(self, change: Any) -> None:
        if change["new"] == "*":
            self.ip = "0.0.0.0"  # noqa: S104 - somebody asked for it
