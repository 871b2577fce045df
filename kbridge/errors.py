"""Everything that kbridge raises on purpose, by whose fault it is.

::

    KbridgeError                     http  close
    +-- ClientError                   400   1008   the client's fault
    |   +-- FrameError                400   1007   a websocket frame that is no message
    |   |   +-- WrongFrameType        400   1003   text for binary, or the other way round
    |   |   +-- MalformedFrame        400   1007   offsets, UTF-8 or JSON that do not hold
    |   |   +-- InvalidMessage        400   1008   well-formed, but no kernel could take it
    |   |   +-- IgnoredMessage        400          well-formed, but for no kernel: it is dropped
    |   |   +-- FrameTooBig           413   1009   more bytes than the settings allow
    |   |   +-- ProtocolViolation     400   1002   not RFC 6455
    |   +-- InvalidRequest            400   1008   a REST body or parameter that does not hold
    |   +-- Unauthorized              401   1008   a login with a wrong token
    |   +-- Forbidden                 403   1008   no token, a foreign Origin, a foreign Host
    |   +-- KernelLimitReached        403   1008   `max_kernels` run already
    |   +-- NotFound                  404   1008
    |       +-- KernelNotFound
    |       +-- KernelspecNotFound
    |       +-- SessionNotFound
    +-- KernelError                   500   1011   the kernel's fault
    |   +-- KernelStartError          500          it did not start; holds the last lines of its log
    |   +-- InvalidConnectionInfo     500          a connection file or dict that cannot be used
    |   +-- NotSupported              501          this kernel has no such thing
    |   +-- KernelMessageError        502          what it sent is no message
    |       +-- InvalidSignature      502          ... or is not signed with its key
    +-- BridgeError                   500   1011   ours
        +-- RegistryError             500          where kernels are written down cannot be used
        +-- SetupError                500          the program that embeds kbridge lacks a part
        +-- TunnelError               502          no way through ssh; also a ConnectionError
        +-- HubClosed                 503   1012   the hub went away while it was in use
        +-- Busy                      503          it cannot be done now; try again later

Foreign exceptions (zmq, tornado, OSError) are translated into these in `kbridge.link` and
`kbridge.kernels` only. No error's text ever holds a token, a key or a signature.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BridgeError",
    "Busy",
    "ClientError",
    "Forbidden",
    "FrameError",
    "FrameTooBig",
    "HubClosed",
    "IgnoredMessage",
    "InvalidConnectionInfo",
    "InvalidMessage",
    "InvalidRequest",
    "InvalidSignature",
    "KbridgeError",
    "KernelError",
    "KernelLimitReached",
    "KernelMessageError",
    "KernelNotFound",
    "KernelStartError",
    "KernelspecNotFound",
    "MalformedFrame",
    "NotFound",
    "NotSupported",
    "ProtocolViolation",
    "RegistryError",
    "SessionNotFound",
    "SetupError",
    "TunnelError",
    "Unauthorized",
    "WrongFrameType",
]


class KbridgeError(Exception):
    """The root.

    Attributes
    ----------
    http_status : int
        What a REST request that meets this error is answered with.
    close_code : int
        What a websocket that meets this error is closed with (RFC 6455, section 7.4.1).
    reason : str
        One sentence for whoever reads the reply or the close frame.
    """

    http_status: ClassVar[int] = 500
    close_code: ClassVar[int] = 1011

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ClientError(KbridgeError):
    """The client's fault."""

    http_status = 400
    close_code = 1008


class FrameError(ClientError):
    """A websocket frame that does not hold a message."""

    close_code = 1007


class WrongFrameType(FrameError):
    """A text frame where the dialect speaks binary, or the other way round."""

    close_code = 1003


class MalformedFrame(FrameError):
    """Offsets, UTF-8 or JSON that do not hold."""


class InvalidMessage(FrameError):
    """A well-formed frame whose message no kernel could take."""

    close_code = 1008


class IgnoredMessage(FrameError):
    """A message that Jupyter Server, or the kernel behind it, would ignore.

    It is dropped, counted, and logged once a minute; the websocket stays open.
    """

    close_code = 1008


class FrameTooBig(FrameError):
    """More bytes than the settings allow."""

    http_status = 413
    close_code = 1009


class ProtocolViolation(FrameError):
    """What came is not RFC 6455."""

    close_code = 1002


class InvalidRequest(ClientError):
    """A REST body or parameter that does not hold."""


class Unauthorized(ClientError):
    """A login with a wrong token."""

    http_status = 401


class Forbidden(ClientError):
    """No token, or a foreign Origin or Host."""

    http_status = 403


class KernelLimitReached(ClientError):
    """As many kernels run as the settings allow."""

    http_status = 403


class NotFound(ClientError):
    """What was asked for is not here."""

    http_status = 404


class KernelNotFound(NotFound):
    """No kernel has that id."""


class KernelspecNotFound(NotFound):
    """No kernelspec has that name."""


class SessionNotFound(NotFound):
    """No session has that id."""


class KernelError(KbridgeError):
    """The kernel's fault."""


class KernelStartError(KernelError):
    """The kernel did not start.

    Attributes
    ----------
    log_tail : str
        The last lines that the kernel wrote before it went, perhaps empty.
    """

    def __init__(self, reason: str, log_tail: str = "") -> None:
        super().__init__(f"{reason}\n{log_tail}" if log_tail else reason)
        self.log_tail = log_tail


class InvalidConnectionInfo(KernelError, ValueError):
    """A connection file, or the dict that a kernel manager gives, cannot be used.

    The message names the member, and contains no key.
    """


class NotSupported(KernelError):
    """What was asked for cannot be done to this kernel."""

    http_status = 501


class KernelMessageError(KernelError):
    """What the kernel sent is not a message of the Jupyter protocol."""

    http_status = 502


class InvalidSignature(KernelMessageError):
    """A message that was not signed with the kernel's key."""


class BridgeError(KbridgeError):
    """Our own fault, or our own limit."""


class RegistryError(BridgeError):
    """The registry of kernels cannot be opened, read or written; says which one, and why.

    No request is answered with it: at the start it ends the server, later it is logged.
    """


class SetupError(BridgeError):
    """The program that embeds kbridge is not set up correctly; the reason says what is missing."""


class TunnelError(BridgeError, ConnectionError):
    """There is no way through ssh; holds ssh's own words."""

    http_status = 502


class HubClosed(BridgeError):
    """The hub went away while it was in use."""

    http_status = 503
    close_code = 1012


class Busy(BridgeError):
    """The same call may go through later."""

    http_status = 503
