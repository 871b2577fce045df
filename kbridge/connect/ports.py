"""TCP ports that are free now, and the memory of those that were given away.

A free port is found by binding it, and has to be let go before a kernel can bind it: in between
anybody may take it. `LocalPortCache` keeps this process from giving it to two kernels; against
others only trying again helps.
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

# Ports that may be found free, and yet not wanted, before the search is given up.
_TRIES = 256


def is_ipv6(ip: str) -> bool:
    """Whether an address is written as IPv6 (a name never is)."""
    return ":" in ip


def family_of(ip: str) -> socket.AddressFamily:
    """The address family to listen with on `ip`: of names that have both, IPv4, as ZeroMQ does.

    Raises
    ------
    OSError
        If it is a name that nobody knows.
    """
    if is_ipv6(ip):
        return socket.AF_INET6
    if ip in {"", "*"} or ip.replace(".", "").isdigit():
        return socket.AF_INET
    found = {entry[0] for entry in socket.getaddrinfo(ip, None, type=socket.SOCK_STREAM)}
    return socket.AF_INET6 if found == {socket.AF_INET6} else socket.AF_INET


def pick_ports(ip: str, count: int, avoid: Collection[int] = ()) -> list[int]:
    """Find free ports, all different.

    Parameters
    ----------
    ip : str
        Where they are to be free: an IPv4 or IPv6 address, a name of this machine, or one of
        ``""``, ``"*"``, ``0.0.0.0`` and ``::`` for everywhere.
    count : int
        How many.
    avoid : collection of int
        Ports that were promised to somebody.

    Raises
    ------
    OSError
        If `ip` is not of this machine, or nothing is free.
    """
    if not count:
        return []
    host = "" if ip == "*" else ip.removeprefix("[").removesuffix("]")
    ports: list[int] = []
    try:
        family = family_of(host)
        with ExitStack() as held:  # all are held until all are found: none is found twice
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

    `LocalPortCache.instance()` is the one that everybody shares. It may be used from any thread.

    Attributes
    ----------
    currently_used_ports : set of int
        Given away and not returned. Others of this machine do not know of it.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.currently_used_ports: set[int] = set()
        self._lock = threading.Lock()

    def find_available_port(self, ip: str) -> int:
        """Give away a port that is free on `ip`, IPv4 or IPv6, until it is returned.

        Raises
        ------
        OSError
            If `ip` is not of this machine, or nothing is free.
        """
        with self._lock:
            (port,) = pick_ports(ip, 1, self.currently_used_ports)
            self.currently_used_ports.add(port)
        return port

    def return_port(self, port: int) -> None:
        """Take a port back; one that was not given away is not an error."""
        with self._lock:
            self.currently_used_ports.discard(port)

    def promised(self) -> frozenset[int]:
        """A copy of what is given away now."""
        with self._lock:
            return frozenset(self.currently_used_ports)
