"""The choice between the two links to kernels: ZMTP on plain sockets, and libzmq.

Each link is imported when it is first used.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from kbridge.errors import KernelError
from kbridge.link.endpoints import Endpoints
from kbridge.link.holder.keeper import KeptKernel
from kbridge.link.interfaces import KernelEvents, KernelSockets, LinkFactory
from kbridge.link.zmtp.address import usable

__all__ = ["DEFAULT", "ENDS_WITH_PYZMQ", "LinkKind", "keeping", "make_link"]


class LinkKind(StrEnum):
    """The values of the setting `link`."""

    AUTO = "auto"
    """ZMTP on plain sockets if they can reach the kernel, and libzmq otherwise."""
    ZMTP = "zmtp"
    """ZMTP on plain sockets."""
    PYZMQ = "pyzmq"
    """libzmq, through pyzmq."""


DEFAULT: Final = LinkKind.AUTO
"""The default of the setting `link`."""

ENDS_WITH_PYZMQ: Final = "link is pyzmq (auto keeps connections)"
"""The reason for which connections over libzmq end with the server."""


def make_link(kind: LinkKind) -> LinkFactory:
    """Return the factory of the links of one kind."""
    return _FACTORIES[kind]


def keeping(kind: LinkKind, kept: KeptKernel) -> LinkFactory:
    """Return the factory of the links of one kind whose connections are kept, where possible."""

    def make(endpoints: Endpoints, events: KernelEvents, identity: bytes) -> KernelSockets:
        from kbridge.link.zmtp.link import ZmtpLink

        because = ""
        if kind is LinkKind.PYZMQ:
            because = ENDS_WITH_PYZMQ
        elif endpoints.curve is not None:
            because = "the connection to the kernel is encrypted (CURVE)"
        elif not usable(endpoints.transport):
            because = f"the kernel uses the transport {endpoints.transport}"
        if because:
            kept.give_up(because)
            return make_link(kind)(endpoints, events, identity)
        return ZmtpLink(endpoints, events, identity, kept)

    return make


def _auto(endpoints: Endpoints, events: KernelEvents, identity: bytes) -> KernelSockets:
    # Plain sockets speak neither CurveZMQ nor the rare transports of libzmq.
    plain = endpoints.curve is None and usable(endpoints.transport)
    return (_zmtp if plain else _pyzmq)(endpoints, events, identity)


def _zmtp(endpoints: Endpoints, events: KernelEvents, identity: bytes) -> KernelSockets:
    from kbridge.link.zmtp.link import ZmtpLink

    if endpoints.curve is not None:
        raise KernelError("plain sockets cannot encrypt, as this kernel does; set link to auto")
    if not usable(endpoints.transport):
        raise KernelError(
            "cannot connect to the kernel: plain sockets cannot use"
            f" {endpoints.transport} on this system; set link to auto"
        )
    return ZmtpLink(endpoints, events, identity)


def _pyzmq(endpoints: Endpoints, events: KernelEvents, identity: bytes) -> KernelSockets:
    from kbridge.link.pyzmq.link import PyzmqLink

    return PyzmqLink(endpoints, events, identity)


_FACTORIES: Final = {LinkKind.AUTO: _auto, LinkKind.ZMTP: _zmtp, LinkKind.PYZMQ: _pyzmq}
