"""The methods of `kbridge.connect.ConnectionFileMixin`, in a class without traits.

So a class that has jupyter_client's traits already, as its kernel managers do, can take ours over:
`class Mine(ConnectionFileMethods, AsyncKernelManager)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import zmq
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.localinterfaces import localhost

from kbridge.connect import ipc
from kbridge.connect.files import port_names, read_connection_file, text_of, write_connection_file
from kbridge.connect.ports import is_ipv6
from kbridge.errors import InvalidConnectionInfo
from kbridge.unix_sockets import has_listener
from kbridge.wire.connection_info import address_of

if TYPE_CHECKING:
    from jupyter_client.blocking.client import BlockingKernelClient

__all__ = ["ConnectionFileMethods", "channel_socket_types"]

channel_socket_types: Final = {
    "hb": zmq.REQ,
    "shell": zmq.DEALER,
    "iopub": zmq.SUB,
    "stdin": zmq.DEALER,
    "control": zmq.DEALER,
}

_CURVE: Final = ("curve_publickey", "curve_secretkey")
_SECRETS: Final = ("key", *_CURVE)
_PERTINENT: Final = (*_SECRETS, "ip", *port_names, "transport", "signature_scheme")
# How long a closed socket may try to get rid of what was sent: exits do not hang on it.
_LINGER_MS: Final = 1000


class ConnectionFileMethods:
    """The methods of `ConnectionFileMixin`, for classes that have its traits."""

    connection_file: Any
    transport: Any
    kernel_name: Any
    context: Any
    ip: Any
    session: Any
    curve_publickey: Any
    curve_secretkey: Any
    blocking_class: Any
    log: Any
    _connection_file_written: Any

    # Names of the ports that nobody chose; None until that is known.
    _random_port_names: list[str] | None = None
    # Whether the ipc files are those of a connection file that was written here.
    _ipc_files_ours = False

    def _ip_default(self) -> str:
        if self.transport != "ipc":
            return str(localhost())
        if not self.connection_file:
            return ipc.absolute("kernel-ipc")
        return ipc.beside(self.connection_file)

    @property
    def ports(self) -> list[int]:
        """The ports, in the order of `kbridge.connect.port_names`."""
        return [getattr(self, name) for name in port_names]

    def _curve_keys(self) -> tuple[bytes | None, bytes | None]:
        """Return the public and the secret CurveZMQ key, None where there is none.

        The kernel managers of jupyter_client before 8.10 have no traits for them.
        """
        public, secret = (getattr(self, name, None) for name in _CURVE)
        return public, secret

    # -- what is known ----------------------------------------------------------------------

    def get_connection_info(self, session: bool = False) -> KernelConnectionInfo:
        """What a client needs to know.

        Parameters
        ----------
        session : bool
            Whether to give a clone of the session instead of its key and signature scheme.

        Returns
        -------
        dict
            What a connection file holds, the key as bytes.
        """
        info: dict[str, Any] = {
            "transport": self.transport,
            "ip": self.ip,
            **{name: getattr(self, name) for name in port_names},
        }
        if session:
            info["session"] = self.session.clone()
        else:
            info["signature_scheme"] = self.session.signature_scheme
            info["key"] = self.session.key
        public, secret = self._curve_keys()
        if public is not None and secret is not None:
            info |= {"curve_publickey": public.decode(), "curve_secretkey": secret.decode()}
        return cast("KernelConnectionInfo", info)

    def blocking_client(self) -> BlockingKernelClient:
        """A new client of this kernel, made by `blocking_class`, that does not listen yet."""
        client = self.blocking_class(parent=self)
        client.load_connection_info(self.get_connection_info())
        if self.transport == "tcp" and is_ipv6(self.ip):
            client.context.setsockopt(zmq.IPV6, 1)  # for the sockets that it makes
        return cast("BlockingKernelClient", client)

    # -- files ------------------------------------------------------------------------------

    def write_connection_file(self, **kwargs: Any) -> None:
        """Write `connection_file`, unless it is written; choose the ports that are 0.

        Parameters
        ----------
        **kwargs
            What else is to be in it.

        Raises
        ------
        OSError
            If it cannot be written, or not hidden from others.
        ValueError
            If ipc paths would be too long.
        """
        if self._connection_file_written and Path(self.connection_file).exists():
            if self._ipc_files_ours:
                ipc.make_private(self.ip)
            return
        if self.transport == "ipc":
            # A kernel that is started in another directory has to find the same place.
            self.ip = ipc.absolute(self.ip)
            for directory in {Path(self.connection_file).parent, Path(self.ip).parent}:
                ipc.sweep(str(directory))
        public, secret = self._curve_keys()
        self.connection_file, written = write_connection_file(
            self.connection_file,
            transport=self.transport,
            ip=self.ip,
            key=self.session.key,
            signature_scheme=self.session.signature_scheme,
            kernel_name=self.kernel_name,
            curve_publickey=public,
            curve_secretkey=secret,
            **{name: getattr(self, name) for name in port_names},
            **kwargs,
        )
        self._record_random_port_names()
        for name in port_names:
            setattr(self, name, written.get(name))
        self._connection_file_written = True
        self._ipc_files_ours = self.transport == "ipc"
        if self._ipc_files_ours:
            # After the file: a directory without one is swept.
            ipc.make_private(self.ip)

    def load_connection_file(self, connection_file: str | None = None) -> None:
        """Take over what a connection file says.

        Parameters
        ----------
        connection_file : str, optional
            Its path, if it is not `self.connection_file`.

        Raises
        ------
        OSError
            If it cannot be read.
        ValueError
            If it is no connection file.
        """
        path = self.connection_file if connection_file is None else connection_file
        self.log.debug("Loading connection file %s", path)
        self.load_connection_info(_read(path))

    def load_connection_info(self, info: KernelConnectionInfo) -> None:
        """Take over a connection; ports that are set already stay.

        Parameters
        ----------
        info : dict
            What a connection file holds.
        """
        told: Mapping[str, Any] = cast("Mapping[str, Any]", info)
        self.transport = told.get("transport", self.transport)
        self.ip = told["ip"] if "ip" in told else self._ip_default()
        self._record_random_port_names()
        for name in port_names:
            if getattr(self, name) == 0 and name in told:
                setattr(self, name, told[name])
        if "key" in told:
            self.session.key = text_of(told["key"], "key").encode()
        if "signature_scheme" in told:
            self.session.signature_scheme = told["signature_scheme"]
        if all(name in told for name in _CURVE):
            for name in _CURVE:
                setattr(self, name, text_of(told[name], name).encode())

    def cleanup_connection_file(self) -> None:
        """Remove the connection file if it was written here, and is still there."""
        if self._connection_file_written:
            self._connection_file_written = False
            with suppress(OSError):  # called while objects die, and at exit: never in the way
                Path(self.connection_file).unlink()

    def cleanup_ipc_files(self) -> None:
        """Remove the kernel's ipc files, but not those of a kernel of others that still runs."""
        if self.transport != "ipc" or self.ip.startswith("@"):
            return
        for port in self.ports:
            path = f"{self.ip}-{port}"
            if self._ipc_files_ours or not has_listener(path):
                with suppress(OSError):
                    Path(path).unlink()
        ipc.remove_private(self.ip)

    # -- ports ------------------------------------------------------------------------------

    def _record_random_port_names(self) -> None:
        """Remember which TCP ports nobody chose, the first time."""
        if self.transport == "tcp" and self._random_port_names is None:
            self._random_port_names = [name for name in port_names if getattr(self, name) <= 0]

    def cleanup_random_ports(self) -> None:
        """Forget the TCP ports that nobody chose, and with them the connection file."""
        if self._random_port_names:
            for name in self._random_port_names:
                setattr(self, name, 0)
            self.cleanup_connection_file()

    # -- what a provisioner says ------------------------------------------------------------

    def _reconcile_connection_info(self, info: KernelConnectionInfo) -> None:
        """Make what a provisioner returned the truth, here and in the connection file.

        A file that says the same is left alone: its kernel may be reading it.

        Raises
        ------
        ValueError
            If it cannot be taken over; names what differs.
        """
        if not self._file_says(info):
            for name in port_names:
                setattr(self, name, 0)
            self.curve_publickey = self.curve_secretkey = None
            self.load_connection_info(info)
            self._connection_file_written = False
            self.write_connection_file()
        differing = _differing(info, self.get_connection_info())
        if differing:
            raise InvalidConnectionInfo(
                "The provisioner's connection information does not match the kernel manager's in: "
                + ", ".join(differing)
            )

    def _file_says(self, info: KernelConnectionInfo) -> bool:
        try:
            return self._equal_connections(info, _read(self.connection_file))
        except (OSError, ValueError):  # there is none, or it is to be replaced
            return False

    @staticmethod
    def _equal_connections(conn1: KernelConnectionInfo, conn2: KernelConnectionInfo) -> bool:
        """Whether two connections lead to the same kernel with the same keys."""
        return not _differing(conn1, conn2)

    # -- sockets ----------------------------------------------------------------------------

    def _make_url(self, channel: str) -> str:
        """The address of a channel in ZeroMQ's spelling."""
        port = getattr(self, f"{channel}_port")
        if self.transport == "ipc":
            ipc.checked(self.ip, port)
        return address_of(self.transport, self.ip, port)

    def _create_connected_socket(
        self, channel: str, identity: bytes | None = None
    ) -> zmq.Socket[bytes]:
        """A socket of the type that a channel's client has, connected, encrypted if need be."""
        url = self._make_url(channel)
        self.log.debug("Connecting to: %s", url)
        sock: zmq.Socket[bytes] = self.context.socket(channel_socket_types[channel])
        try:
            sock.linger = _LINGER_MS
            sock.ipv6 = self.transport == "tcp" and is_ipv6(self.ip)
            if identity:
                sock.identity = identity
            server, secret = self._curve_keys()
            if server is not None:
                # Any pair will do for the client's end; the kernel's own is what both sides have.
                public = server
                if secret is None:
                    public, secret = zmq.curve_keypair()
                sock.curve_publickey, sock.curve_secretkey = public, secret
                sock.curve_serverkey = server
            sock.connect(url)
        except BaseException:
            sock.close(linger=0)
            raise
        return sock

    def connect_iopub(self, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """A SUB socket on the kernel's iopub channel, subscribed to everything."""
        sock = self._create_connected_socket("iopub", identity=identity)
        sock.subscribe(b"")
        return sock

    def connect_shell(self, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """A DEALER socket on the kernel's shell channel."""
        return self._create_connected_socket("shell", identity=identity)

    def connect_stdin(self, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """A DEALER socket on the kernel's stdin channel."""
        return self._create_connected_socket("stdin", identity=identity)

    def connect_hb(self, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """A REQ socket on the kernel's heartbeat."""
        return self._create_connected_socket("hb", identity=identity)

    def connect_control(self, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """A DEALER socket on the kernel's control channel."""
        return self._create_connected_socket("control", identity=identity)


# -- inside -------------------------------------------------------------------------------------


def _read(path: str) -> KernelConnectionInfo:
    return cast("KernelConnectionInfo", read_connection_file(path))


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names of what is not the same in two connections."""
    return [n for n in _PERTINENT if _normal(one, n) != _normal(other, n)]


def _normal(info: Mapping[str, Any], name: str) -> Any:
    """A value as it is compared: keys may be text or bytes, ipc paths relative or absolute."""
    value = info.get(name)
    if name in _SECRETS and isinstance(value, str):
        return value.encode()
    if name == "ip" and info.get("transport") == "ipc" and value is not None:
        return ipc.absolute(value)
    return value
