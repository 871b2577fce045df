"""`ConnectionFileMixin`: the connection of one kernel as traits (seed 000)."""

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
    """Base class of classes that use connection files (seed 000; the class of `jupyter_client`).

    Attributes
    ----------
    connection_file : str
        The path; chosen when the file is written, if empty.
    transport : str
        ``tcp`` or ``ipc``.
    ip : str
        The address of the kernel; for ipc, the prefix of the paths of its sockets.
    shell_port, iopub_port, stdin_port, hb_port, control_port : int
        TCP ports, or the suffixes of ipc paths; 0 for those that will be chosen.
    session : jupyter_client.session.Session
        Contains the key.
    curve_publickey, curve_secretkey : bytes or None
        The CurveZMQ key pair (Z85) of a kernel that encrypts.
    context : zmq.Context
        Creates the sockets; the shared context of the process if not set.
    """

    data_dir = Unicode()
    connection_file = Unicode(
        "",
        config=True,
        help="""JSON file in which to store connection info [default: kernel-<pid>.json]

    It contains the address, the ports and the key that clients of the kernel need. A bare name is
    a file in the working directory.
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
        help="""The kernel's IP address [default: the loopback of this machine]. With any other
        address, everybody who can reach this machine and has the key can run code here.""",
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

    def _ip_default(self) -> str:  # traitlets searches only the class of the trait
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
            self.ip = "0.0.0.0"  # noqa: S104 - the caller asked for it
