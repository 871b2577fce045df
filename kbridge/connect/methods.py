"""The methods of `kbridge.connect.ConnectionFileMixin`, in a class without traits.

A class that already has the traits of jupyter_client, such as a kernel manager, can use them:
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
# A closed socket may try to send its messages for this time, which delays the exit of a program.
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

    # Names of the ports that were not configured; None until that is known.
    _random_port_names: list[str] | None = None
    # True if the connection file of the ipc sockets was written by this object.
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

        The kernel managers of jupyter_client before 8.10 do not have these traits.
        """
        public, secret = (getattr(self, name, None) for name in _CURVE)
        return public, secret

    # -- connection information -------------------------------------------------------------

    def get_connection_info(self, session: bool = False) -> KernelConnectionInfo:
        """Return the connection information that a client needs.

        Parameters
        ----------
        session : bool
            True returns a clone of the session instead of its key and signature scheme.

        Returns
        -------
        dict
            The content of a connection file, with the key as bytes.
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
        """Return a new client of this kernel, of the class `blocking_class`; it is not started."""
        client = self.blocking_class(parent=self)
        client.load_connection_info(self.get_connection_info())
        if self.transport == "tcp" and is_ipv6(self.ip):
            client.context.setsockopt(zmq.IPV6, 1)  # for the sockets of the client
        return cast("BlockingKernelClient", client)

    # -- files ------------------------------------------------------------------------------

    def write_connection_file(self, **kwargs: Any) -> None:
        """Write `connection_file` unless it was written before; choose the ports that are 0.

        Parameters
        ----------
        **kwargs
            More members of the file.

        Raises
        ------
        OSError
            If the file cannot be written; `NotPrivate` if other users could read it.
        SocketPathTooLong
            If the ipc paths would be too long.
        """
        if self._connection_file_written and Path(self.connection_file).exists():
            if self._ipc_files_ours:
                ipc.make_private(self.ip)
            return
        if self.transport == "ipc":
            # The kernel may be started in another directory, and must find the same path.
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
            # After the file, because `ipc.sweep` removes directories without one.
            ipc.make_private(self.ip)

    def load_connection_file(self, connection_file: str | None = None) -> None:
        """Load the connection information from a file.

        Parameters
        ----------
        connection_file : str, optional
            The path; `self.connection_file` if not given.

        Raises
        ------
        OSError
            If it cannot be read.
        InvalidConnectionInfo
            If it is not a connection file.
        """
        path = self.connection_file if connection_file is None else connection_file
        self.log.debug("Loading connection file %s", path)
        self.load_connection_info(_read(path))

    def load_connection_info(self, info: KernelConnectionInfo) -> None:
        """Load connection information; ports that are already set do not change.

        Parameters
        ----------
        info : dict
            The content of a connection file; members may be missing.
        """
        members: Mapping[str, Any] = cast("Mapping[str, Any]", info)
        self.transport = members.get("transport", self.transport)
        self.ip = members["ip"] if "ip" in members else self._ip_default()
        self._record_random_port_names()
        for name in port_names:
            if getattr(self, name) == 0 and name in members:
                setattr(self, name, members[name])
        if "key" in members:
            self.session.key = text_of(members["key"], "key").encode()
        if "signature_scheme" in members:
            self.session.signature_scheme = members["signature_scheme"]
        if all(name in members for name in _CURVE):
            for name in _CURVE:
                setattr(self, name, text_of(members[name], name).encode())

    def cleanup_connection_file(self) -> None:
        """Remove the connection file if this object has written it."""
        if self._connection_file_written:
            self._connection_file_written = False
            with suppress(OSError):  # called by __del__ and at exit, where errors would be noise
                Path(self.connection_file).unlink()

    def cleanup_ipc_files(self) -> None:
        """Remove the ipc sockets, unless another program's kernel still listens on them."""
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
        """Remember which TCP ports are not configured, at the first call."""
        if self.transport == "tcp" and self._random_port_names is None:
            self._random_port_names = [name for name in port_names if getattr(self, name) <= 0]

    def cleanup_random_ports(self) -> None:
        """Reset the TCP ports that were not configured, and remove the connection file."""
        if self._random_port_names:
            for name in self._random_port_names:
                setattr(self, name, 0)
            self.cleanup_connection_file()

    # -- provisioners -----------------------------------------------------------------------

    def _reconcile_connection_info(self, info: KernelConnectionInfo) -> None:
        """Load what a provisioner returned, and write it to the connection file.

        A file with the same content is not written again, because its kernel may be reading it.

        Raises
        ------
        InvalidConnectionInfo
            If it cannot be loaded; names the members that differ.
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
        except (OSError, ValueError):  # it does not exist, or must be replaced
            return False

    @staticmethod
    def _equal_connections(conn1: KernelConnectionInfo, conn2: KernelConnectionInfo) -> bool:
        """Return True if two connections have the same addresses and keys."""
        return not _differing(conn1, conn2)

    # -- sockets ----------------------------------------------------------------------------

    def _make_url(self, channel: str) -> str:
        """Return the address of a channel as ZeroMQ spells it."""
        port = getattr(self, f"{channel}_port")
        if self.transport == "ipc":
            ipc.checked(self.ip, port)
        return address_of(self.transport, self.ip, port)

    def _create_connected_socket(
        self, channel: str, identity: bytes | None = None
    ) -> zmq.Socket[bytes]:
        """Return a connected client socket for a channel, encrypted if the kernel encrypts."""
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
                # The client may use any key pair; by convention it uses that of the kernel.
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
        """Return a SUB socket for the iopub channel, subscribed to everything."""
        sock = self._create_connected_socket("iopub", identity=identity)
        sock.subscribe(b"")
        return sock

    def connect_shell(self, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """Return a DEALER socket for the shell channel."""
        return self._create_connected_socket("shell", identity=identity)

    def connect_stdin(self, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """Return a DEALER socket for the stdin channel."""
        return self._create_connected_socket("stdin", identity=identity)

    def connect_hb(self, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """Return a REQ socket for the heartbeat channel."""
        return self._create_connected_socket("hb", identity=identity)

    def connect_control(self, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """Return a DEALER socket for the control channel."""
        return self._create_connected_socket("control", identity=identity)


def _read(path: str) -> KernelConnectionInfo:
    return cast("KernelConnectionInfo", read_connection_file(path))


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the names of the members that differ between two connections."""
    return [n for n in _PERTINENT if _normal(one, n) != _normal(other, n)]


def _normal(info: Mapping[str, Any], name: str) -> Any:
    """Return a member for comparison: keys as bytes, ipc paths absolute."""
    value = info.get(name)
    if name in _SECRETS and isinstance(value, str):
        return value.encode()
    if name == "ip" and info.get("transport") == "ipc" and value is not None:
        return ipc.absolute(value)
    return value
