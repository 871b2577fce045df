"""The address of one port of a kernel, as the operating system takes it.

ZeroMQ's spelling is understood: `ip-port` for the path of a unix socket, a leading `@` for a name
in the abstract namespace, and brackets around an IPv6 address.
"""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from kbridge.errors import KernelError

__all__ = ["Address", "SocketAddress", "is_local", "usable"]

SocketAddress: TypeAlias = tuple[int, Any]
"""Address family, and what `socket.connect` takes."""

# Windows has neither `sendmsg` nor the private mappings that `receive` uses.
_POSIX: Final = sys.platform != "win32"
_PATH_LIMIT: Final = 107  # bytes, without the final NUL: unix(7)


def usable(transport: str) -> bool:
    """Return True if plain sockets can use a transport of ZeroMQ."""
    return transport in ("tcp", "ipc") and _POSIX


def is_local(family: int, address: Any) -> bool:
    """Return True if a peer with this address is on this machine."""
    if family not in (socket.AF_INET, socket.AF_INET6):
        return True
    host = str(address[0])
    return host.startswith(("127.", "::ffff:127.")) or host == "::1"


@dataclass(frozen=True, slots=True)
class Address:
    """One port of a kernel.

    Parameters
    ----------
    transport : str
        ``tcp`` or ``ipc``.
    host : str
        IPv4 or IPv6 address, or host name; for ipc, the prefix of the path.
    port : int or str
        TCP port; for ipc, the suffix of the path.

    Raises
    ------
    KernelError
        If the operating system cannot connect to such an address.
    """

    transport: str
    host: str
    port: int | str

    def __post_init__(self) -> None:
        if not usable(self.transport):
            raise KernelError(f"cannot connect to the kernel's sockets over {self.transport}")
        if self.transport == "ipc":
            if len(os.fsencode(self._path)) > _PATH_LIMIT or "\0" in self._path:
                raise KernelError("cannot connect to the kernel's sockets: invalid path")
        elif not self.host or not (self.host[0].isalnum() or self.host[0] in "[:"):
            raise KernelError(f"cannot connect to the kernel's sockets on {self.host!r}")

    def numeric(self) -> list[SocketAddress] | None:
        """Return the address of the socket, or None if it has a name that must be resolved."""
        if self.transport == "ipc":
            path = self._path
            return [(socket.AF_UNIX, "\0" + path[1:] if path.startswith("@") else path)]
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        try:
            return self._look_up(flags)
        except (OSError, UnicodeError):
            return None

    def resolve(self) -> list[SocketAddress]:
        """Return the addresses of a host name, IPv4 first; blocks, so call it in a thread.

        IPv4 comes first because libzmq uses nothing else for a name, so that kernels often listen
        on IPv4 only.

        Raises
        ------
        OSError
            If the name cannot be resolved.
        """
        try:
            found = self._look_up(socket.AI_NUMERICSERV)
        except UnicodeError as error:
            raise OSError(f"{self.host!r} is not a host name") from error
        return sorted(found, key=lambda each: each[0] != socket.AF_INET)

    @property
    def _path(self) -> str:
        return f"{self.host}-{self.port}"

    def _look_up(self, flags: int) -> list[SocketAddress]:
        host = self.host.removeprefix("[").removesuffix("]")
        found = socket.getaddrinfo(host, self.port, type=socket.SOCK_STREAM, flags=flags)
        return [(family, address) for family, _, _, _, address in found]
