"""All errors that kbridge raises for its callers to catch, grouped by their cause.

::

    KbridgeError                     http  close
    +-- ClientError                   400   1008   caused by the client
    |   +-- FrameError                400   1007   a websocket frame that is not a message
    |   |   +-- WrongFrameType        400   1003   text instead of binary, or the reverse
    |   |   +-- MalformedFrame        400   1007   wrong offsets, UTF-8 or JSON
    |   |   +-- InvalidMessage        400   1008   well-formed, but no kernel could accept it
    |   |   +-- IgnoredMessage        400   1008   well-formed, but dropped without closing
    |   |   +-- FrameTooBig           413   1009   more bytes than the settings allow
    |   |   +-- ProtocolViolation     400   1002   not RFC 6455
    |   +-- InvalidRequest            400   1008   invalid REST body or parameter
    |   |   +-- InvalidSshServer      400   1008   not a server that ssh can connect to (ValueError)
    |   +-- Unauthorized              401   1008   a login with a wrong token
    |   +-- Forbidden                 403   1008   no token, or a foreign Origin or Host
    |   +-- KernelLimitReached        403   1008   as many kernels run as are allowed
    |   +-- Conflict                  409   1008   the object's state does not permit it
    |   +-- Misdirected               421   1008   another replica of the cluster serves the kernel
    |   +-- NotFound                  404   1008   the object does not exist
    |       +-- KernelNotFound        404   1008
    |       +-- KernelspecNotFound    404   1008
    |       +-- SessionNotFound       404   1008
    |       +-- ConnectionFileNotFound  404   1008  (FileNotFoundError)
    +-- KernelError                   500   1011   caused by the kernel
    |   +-- KernelStartError          500   1011   it did not start; has the end of its log
    |   +-- KernelDied                500   1011   it ended while it ran a request
    |   +-- InvalidConnectionInfo     500   1011   unusable connection information (ValueError)
    |   +-- NotSupported              501   1011   this kernel cannot do it
    |   +-- KernelMessageError        502   1011   it sent something that is not a message
    |   |   +-- InvalidSignature      502   1011   it sent a message that its key did not sign
    |   +-- ZmtpError                 502   1011   its port does not follow ZMTP, or refuses
    |       +-- OldZmtp               502   1011   its port speaks ZMTP 1.0 or 2.0 only
    |       +-- NotZmtp               502   1011   its port does not speak ZeroMQ at all
    |       +-- MessageTooBig         502   1011   more bytes than `kernel_message_limit` allows
    +-- NetworkError                  502   1011   between client and server (ConnectionError)
    |   +-- NoServer                  502   1011   no server was named, and none was found
    +-- BridgeError                   500   1011   caused by kbridge, or by its machine
        +-- RegistryError             500   1011   the registry of kernels cannot be used
        |   +-- UnknownSchema         500   1011   its tables are of another version
        +-- SetupError                500   1011   the settings, or an embedding program, are wrong
        +-- ListenError               500   1011   the server cannot listen on an address
        +-- NotPrivate                500   1011   not private (PermissionError, RuntimeError)
        +-- NoFreePort                500   1011   no free TCP port for a kernel (OSError)
        +-- SocketPathTooLong         500   1011   the path of a unix socket (ValueError)
        +-- NotInKernel               500   1011   this code does not run in a kernel (RuntimeError)
        +-- TunnelError               502   1011   ssh does not get through (ConnectionError)
        +-- HubClosed                 503   1012   the hub was closed while it was in use
        +-- Busy                      503   1011   temporarily impossible; try again later
        +-- ReplicaUnreachable        503   1011   the replica that serves the kernel is not there
        +-- UsersUnavailable          503   1011   the program that knows the users does not answer

An error that a caller is meant to catch is defined here, and nowhere else. Where callers of
jupyter_client or ipykernel expect a builtin exception, the class has that as a base, too. The
drawing names it in parentheses.

Builtin exceptions are raised for three purposes only: programming errors (a wrong argument, a call
in the wrong state: ValueError, TypeError, RuntimeError); conditions with a standard meaning
(TimeoutError, ProcessLookupError, ImportError); and inside a module that catches them itself.
Settings of the wrong type are a `traitlets.TraitError`, because that is what traitlets'
applications report.

Exceptions of zmq, tornado and the operating system are translated in `kbridge.link` and
`kbridge.kernels`. No message contains a token, a key or a signature.
"""

from __future__ import annotations

import errno
from typing import ClassVar

__all__ = [
    "BridgeError",
    "Busy",
    "ClientError",
    "Conflict",
    "ConnectionFileNotFound",
    "Forbidden",
    "FrameError",
    "FrameTooBig",
    "HubClosed",
    "IgnoredMessage",
    "InvalidConnectionInfo",
    "InvalidMessage",
    "InvalidRequest",
    "InvalidSignature",
    "InvalidSshServer",
    "KbridgeError",
    "KernelDied",
    "KernelError",
    "KernelLimitReached",
    "KernelMessageError",
    "KernelNotFound",
    "KernelStartError",
    "KernelspecNotFound",
    "ListenError",
    "MalformedFrame",
    "MessageTooBig",
    "Misdirected",
    "NetworkError",
    "NoFreePort",
    "NoServer",
    "NotFound",
    "NotInKernel",
    "NotPrivate",
    "NotSupported",
    "NotZmtp",
    "OldZmtp",
    "ProtocolViolation",
    "RegistryError",
    "ReplicaUnreachable",
    "SessionNotFound",
    "SetupError",
    "SocketPathTooLong",
    "TunnelError",
    "Unauthorized",
    "UnknownSchema",
    "UsersUnavailable",
    "WrongFrameType",
    "ZmtpError",
]


class KbridgeError(Exception):
    """Base class of all errors of kbridge.

    Attributes
    ----------
    http_status : int
        The status of the reply to a REST request that causes this error.
    close_code : int
        The code with which a websocket that causes this error is closed (RFC 6455, section 7.4.1).
    reason : str
        One sentence for the reader of the reply or of the close frame.
    """

    http_status: ClassVar[int] = 500
    close_code: ClassVar[int] = 1011

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ClientError(KbridgeError):
    """Caused by the client."""

    http_status = 400
    close_code = 1008


class FrameError(ClientError):
    """A websocket frame is not a message."""

    close_code = 1007


class WrongFrameType(FrameError):
    """A text frame was received where the dialect uses binary frames, or the reverse."""

    close_code = 1003


class MalformedFrame(FrameError):
    """A frame has wrong offsets, or is not valid UTF-8 or JSON."""


class InvalidMessage(FrameError):
    """A well-formed frame contains a message that no kernel could accept."""

    close_code = 1008


class IgnoredMessage(FrameError):
    """Jupyter Server, or the kernel behind it, would ignore the message.

    It is dropped, counted, and logged once per minute; the websocket stays open.
    """

    close_code = 1008


class FrameTooBig(FrameError):
    """A frame has more bytes than the settings allow."""

    http_status = 413
    close_code = 1009


class ProtocolViolation(FrameError):
    """The client does not follow RFC 6455."""

    close_code = 1002


class InvalidRequest(ClientError):
    """A REST body or a parameter is invalid."""


class InvalidSshServer(InvalidRequest, ValueError):
    """A text does not name a server that ssh could connect to."""


class Unauthorized(ClientError):
    """A login had a wrong token."""

    http_status = 401


class Forbidden(ClientError):
    """A request had no token, or a foreign Origin or Host."""

    http_status = 403


class KernelLimitReached(ClientError):
    """As many kernels are running as the settings allow."""

    http_status = 403


class Conflict(ClientError):
    """The state of the object does not permit the request; it may later."""

    http_status = 409


class Misdirected(ClientError):
    """A replica of a cluster has passed on a request to one that does not serve the kernel.

    The kernel was given to another replica in the meantime. Only replicas get this error.
    """

    http_status = 421


class NotFound(ClientError):
    """The object does not exist."""

    http_status = 404


class KernelNotFound(NotFound):
    """No kernel has that id."""


class KernelspecNotFound(NotFound):
    """No kernelspec has that name."""


class SessionNotFound(NotFound):
    """No session has that id."""


class ConnectionFileNotFound(NotFound, FileNotFoundError):
    """No connection file has that name, or the file was removed."""


class KernelError(KbridgeError):
    """Caused by the kernel."""


class KernelStartError(KernelError):
    """The kernel did not start.

    Attributes
    ----------
    log_tail : str
        The last lines that the kernel wrote before it ended, perhaps empty.
    """

    def __init__(self, reason: str, log_tail: str = "") -> None:
        super().__init__(f"{reason}\n{log_tail}" if log_tail else reason)
        self.log_tail = log_tail


class KernelDied(KernelError):
    """The kernel's process ended, or was replaced, while it ran a request."""


class InvalidConnectionInfo(KernelError, ValueError):
    """A connection file, or the dict that a kernel manager gives, cannot be used.

    The message names the member, and contains no key.
    """


class NotSupported(KernelError):
    """The kernel cannot do this operation."""

    http_status = 501


class KernelMessageError(KernelError):
    """The kernel sent something that is not a message of the Jupyter protocol."""

    http_status = 502


class InvalidSignature(KernelMessageError):
    """A message was not signed with the kernel's key."""


class ZmtpError(KernelError):
    """The peer at a kernel's port does not follow ZMTP, or refuses the connection."""

    http_status = 502


class OldZmtp(ZmtpError):
    """The peer at a kernel's port speaks ZMTP 1.0 or 2.0 only."""


class NotZmtp(ZmtpError):
    """The program that answers at a kernel's port does not speak ZeroMQ."""


class MessageTooBig(ZmtpError):
    """A kernel sent a message that is larger than the settings allow.

    Attributes
    ----------
    limit : int
        The number of bytes that a part of a message, or all its parts, may have.
    """

    def __init__(self, reason: str, limit: int) -> None:
        super().__init__(reason)
        self.limit = limit


class NetworkError(KbridgeError, ConnectionError):
    """A client cannot reach a server, or what answers there is not a server for Jupyter kernels."""

    http_status = 502


class NoServer(NetworkError):
    """A client was not told which server to use, and no server of this user runs."""


class BridgeError(KbridgeError):
    """Caused by kbridge itself, by one of its limits, or by the machine that it runs on."""


class RegistryError(BridgeError):
    """The registry of kernels cannot be opened, read or written.

    The message says which registry, and why. No request is answered with it. At the start of the
    server it ends the server; later it is logged.
    """


class UnknownSchema(RegistryError):
    """The tables of the registry are of another version than this program's."""


class SetupError(BridgeError):
    """The settings, or the program that embeds kbridge, are not correct; the reason says why."""


class ListenError(BridgeError):
    """The server cannot listen on an address, or cannot use the files for TLS."""


class NotPrivate(BridgeError, PermissionError, RuntimeError):
    """Other users could read a file or enter a directory.

    jupyter_core raises a RuntimeError for that.
    """

    def __init__(self, reason: str, path: str) -> None:
        PermissionError.__init__(self, errno.EPERM, reason, path)
        self.reason = reason


class NoFreePort(BridgeError, OSError):
    """No TCP port is free, or the address does not belong to this machine."""

    def __init__(self, reason: str, error_number: int = errno.EADDRINUSE) -> None:
        OSError.__init__(self, error_number, reason)
        self.reason = reason


class SocketPathTooLong(BridgeError, ValueError):
    """The path of a unix socket has more bytes than the platform allows."""


class NotInKernel(BridgeError, RuntimeError):
    """A function that asks about its own kernel was called outside a kernel."""


class TunnelError(BridgeError, ConnectionError):
    """An ssh tunnel cannot be opened; the message contains the output of ssh."""

    http_status = 502


class HubClosed(BridgeError):
    """The hub was closed while it was in use."""

    http_status = 503
    close_code = 1012


class Busy(BridgeError):
    """The call is impossible now; the same call may succeed later."""

    http_status = 503


class ReplicaUnreachable(BridgeError):
    """The replica that serves the kernel cannot be reached, or refuses requests of this one.

    The same request may succeed later: when that replica is back, or another one serves the kernel.
    """

    http_status = 503


class UsersUnavailable(BridgeError):
    """The program that knows the users, such as JupyterHub, cannot be asked for the one of a token.

    The same request may succeed later. Users who were known before go on for some time.
    """

    http_status = 503
