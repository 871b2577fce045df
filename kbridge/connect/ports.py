"""Find free TCP ports, and remember which ones were given to kernels.

A port is free if it can be bound. It must be released again before a kernel can bind it, and any
program can take it in between. `LocalPortCache` prevents that this process gives a port to two
kernels; if another program takes the port, the start has to be tried again.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

from traitlets.config import SingletonConfigurable

from kbridge.errors import NoFreePort

__all__ = ["LocalPortCache", "family_of", "is_ipv6", "pick_ports"]

# Free ports that may be skipped, because they are promised, before the search ends.
_TRIES = 256


def is_ipv6(ip: str) -> bool:
    """Return True if a text is an IPv6 address; a host name never is."""
    return ":" in ip


def family_of(ip: str) -> socket.AddressFamily:
    """Return the address family of `ip`; IPv4 if a name has both, as in ZeroMQ.

    Raises
    ------
    OSError
        If the name cannot be resolved.
    """
    if is_ipv6(ip):
        return socket.AF_INET6
    if ip in {"", "*"} or ip.replace(".", "").isdigit():
        return socket.AF_INET
    found = {entry[0] for entry in socket.getaddrinfo(ip, None, type=socket.SOCK_STREAM)}
    return socket.AF_INET6 if found == {socket.AF_INET6} else socket.AF_INET


def pick_ports(ip: str, count: int, avoid: Collection[int] = ()) -> list[int]:
    """Return different free ports.

    Parameters
    ----------
    ip : str
        The address that the ports are for: an IPv4 or IPv6 address, a name of this machine, or one
        of ``""``, ``"*"``, ``0.0.0.0`` and ``::`` for all addresses.
    count : int
        The number of ports.
    avoid : collection of int
        Ports that must not be returned.

    Raises
    ------
    NoFreePort
        If `ip` does not belong to this machine, or no port is free; an OSError.
    """
    if not count:
        return []
    host = "" if ip == "*" else ip.removeprefix("[").removesuffix("]")
    ports: list[int] = []
    try:
        family = family_of(host)
        with ExitStack() as held:  # kept bound until all are found, so that none is found twice
            for _ in range(count + _TRIES):
                if len(ports) == count:
                    return ports
                probe = held.enter_context(socket.socket(family))
                probe.bind((host, 0))
                port = probe.getsockname()[1]
                if port not in avoid:
                    ports.append(port)
    except OSError as error:
        reason = f"No free port on {ip!r}: {error.strerror}"
        raise NoFreePort(reason, error.errno or errno.EADDRNOTAVAIL) from error
    raise NoFreePort(f"No free port on {ip!r} that is not promised to a kernel")


class LocalPortCache(SingletonConfigurable):
    """The ports that this process has given to kernels (seed 000; `jupyter_client`'s class).

    `LocalPortCache.instance()` is the shared one. It may be used from any thread.

    Attributes
    ----------
    currently_used_ports : set of int
        The ports that were given to kernels and not returned.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.currently_used_ports: set[int] = set()
        self._lock = threading.Lock()

    def find_available_port(self, ip: str) -> int:
        """Reserve a port that is free on `ip`, IPv4 or IPv6, until it is returned.

        Raises
        ------
        NoFreePort
            If `ip` does not belong to this machine, or no port is free; an OSError.
        """
        with self._lock:
            (port,) = pick_ports(ip, 1, self.currently_used_ports)
            self.currently_used_ports.add(port)
        return port

    def return_port(self, port: int) -> None:
        """Release a port; releasing one that is not reserved has no effect."""
        with self._lock:
            self.currently_used_ports.discard(port)

    def promised(self) -> frozenset[int]:
        """Return the ports that are reserved now."""
        with self._lock:
            return frozenset(self.currently_used_ports)
