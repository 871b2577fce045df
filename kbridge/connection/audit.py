"""The audit log: one line of JSON for each request of a client to execute code.

The event loop only puts a request into a queue. A thread hashes the code and appends the lines to
the file. The queue is bounded in bytes: while the file cannot be written, requests are executed
all the same, and the number of lines that are missing is written afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kbridge.errors import KbridgeError, SetupError
from kbridge.hub.clock import Clock, timestamp
from kbridge.hub.context import Log
from kbridge.wire.message import Message

if TYPE_CHECKING:
    from kbridge.hub.broadcast.cursor import Cursor
    from kbridge.hub.hub import Hub

__all__ = ["AUDIT", "AuditCode", "AuditLog", "AuditedHub", "Caller", "caller_of"]

AUDIT: Final = "kbridge_audit"
"""The key in Tornado's settings under which an application keeps its `AuditLog`."""

_LIMIT: Final = 32 << 20  # bytes of requests that wait for the thread
_PARSED: Final = 1 << 20
"""Bytes; longer contents are not parsed: while `json` works, the event loop cannot run."""
_END_TIMEOUT: Final = 5.0  # seconds; a disk that hangs does not hold up the end of the server


class AuditCode(StrEnum):
    """The form in which the log has the code."""

    HASH = "hash"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Caller:
    """The client of a websocket.

    Attributes
    ----------
    kernel_id : str
        The kernel of the websocket.
    session : str
        The session id in the URL; empty if there is none.
    user : str or None
        The name of the user, if the server knows users.
    auth : str or None
        The place of the token in the request, if the server has only a token.
    client : str or None
        The address of the client.
    """

    kernel_id: str
    session: str = ""
    user: str | None = None
    auth: str | None = None
    client: str | None = None


def caller_of(handler: Any, kernel_id: str, session: str) -> Caller:
    """Return the client of a websocket handler: of this server, or of Jupyter Server."""
    user = handler.current_user
    name = user if isinstance(user, str) else getattr(user, "username", None)
    method = getattr(handler, "auth_method", None)
    return Caller(
        kernel_id,
        session,
        user=name,
        auth=None if method is None else str(method.name).lower(),
        client=getattr(handler.request, "remote_ip", None),
    )


@dataclass(frozen=True, slots=True)
class _Entry:
    time: float
    caller: Caller
    msg: Message
    refusal: str


class AuditLog:
    """Appends lines to a file, in a thread.

    The file is opened for appending, with mode 0600 if it is new. If it was renamed or removed, as
    programs that rotate logs do, a new file is created for the next lines.

    Parameters
    ----------
    path : str or Path
        The file.
    code : AuditCode
        The form in which the lines have the code.
    log : logging.Logger or adapter
        Receives one warning when the file cannot be written.
    clock : Clock, optional
        The source of the time.

    Raises
    ------
    SetupError
        If the file cannot be opened.
    """

    def __init__(
        self,
        path: str | Path,
        code: AuditCode,
        log: Log,
        clock: Clock | None = None,
    ) -> None:
        self.path = Path(path).expanduser().absolute()
        self._code = code
        self._log = log
        self._clock = clock or Clock()
        # Bytes put into the queue, by the event loop, and taken from it, by the thread.
        self._put = self._taken = 0
        self._lost = 0  # by the event loop, because the queue was full
        self._closed = False
        self._file = _AppendedFile(self.path)
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="kbridge-audit", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Bytes of requests that wait for the thread."""
        return self._put - self._taken

    def record(self, caller: Caller, msg: Message, refusal: str = "") -> None:
        """Note a request; `refusal` says why it was not forwarded, and is empty if it was."""
        if self._closed:
            return
        if self.waiting > _LIMIT:
            self._lost += 1
            return
        self._put += msg.nbytes
        self._queue.put(_Entry(self._clock.wall(), caller, msg, refusal))

    def close(self) -> None:
        """Write the lines that wait, for at most 5 s, and end the thread; may be called twice."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._thread.join(_END_TIMEOUT)

    # -- in the thread ----------------------------------------------------------------------

    def _write_all(self) -> None:
        failed = 0  # lines that could not be written
        broken = False  # the last write failed
        told = 0  # of `_lost`
        ended = False
        while not ended:
            entries = [self._queue.get()]
            while not self._queue.empty():
                entries.append(self._queue.get())
            ended = entries[-1] is None
            found = [entry for entry in entries if entry is not None]
            lines = [self._line(entry) for entry in found]
            missing = failed + self._lost - told
            if missing:
                note = {"time": timestamp(self._clock.wall()), "missing_lines": missing}
                lines.insert(0, json.dumps(note))
            written, error = self._file.append(lines)
            if error and not broken:
                self._log.warning(
                    "The audit log %s cannot be written: %s. Code is executed all the same,"
                    " and its lines are missing there.",
                    self.path,
                    error.strerror or error,
                )
            elif broken and not error:
                self._log.info("The audit log %s is written again", self.path)
            broken = error is not None
            if missing and written:  # the note is in the file
                told += missing - failed
                failed = 0
                written -= 1
            failed += len(found) - written
            self._taken += sum(entry.msg.nbytes for entry in found)
        self._file.close()

    def _line(self, entry: _Entry) -> str:
        caller, msg = entry.caller, entry.msg
        line: dict[str, Any] = {
            "time": timestamp(entry.time),
            "kernel_id": caller.kernel_id,
            "session": caller.session or _member(msg.header, "session"),
            "msg_id": msg.msg_id,
            "user": caller.user,
            "auth": caller.auth,
            "client": caller.client,
            "outcome": "refused" if entry.refusal else "forwarded",
        }
        if entry.refusal:
            line["reason"] = entry.refusal
        line["sha256"] = None
        try:
            line.update(self._code_in(msg.content))
        except (ValueError, AttributeError, RecursionError):
            # Too large, or not a JSON object for this parser.
            line["content_bytes"] = len(msg.content)
            line["content_sha256"] = hashlib.sha256(msg.content).hexdigest()
        return json.dumps(line)

    def _code_in(self, content: bytes | memoryview) -> dict[str, Any]:
        """Return the members of the line for the code and the expressions of a request."""
        if len(content) > _PARSED:
            raise ValueError("too large")
        members = json.loads(bytes(content))
        code, expressions = members.get("code"), members.get("user_expressions")
        found: dict[str, Any] = {}
        if isinstance(code, str):
            raw = code.encode("utf-8", "surrogatepass")
            found["code_bytes"] = len(raw)
            found["sha256"] = hashlib.sha256(raw).hexdigest()
            if self._code is AuditCode.TEXT:
                found["code"] = code
        if expressions:
            text = json.dumps(expressions, sort_keys=True, separators=(",", ":"))
            found["user_expressions_sha256"] = hashlib.sha256(text.encode()).hexdigest()
            if self._code is AuditCode.TEXT:
                found["user_expressions"] = text
        return found


class AuditedHub:
    """Sends the messages of one websocket to its hub, and notes requests to execute code.

    Parameters
    ----------
    hub : Hub
        The hub of the kernel.
    audit : AuditLog
        The log.
    caller : Caller
        The client.
    """

    __slots__ = ("_audit", "_caller", "_hub", "_refusal")

    def __init__(self, hub: Hub, audit: AuditLog, caller: Caller) -> None:
        self._hub = hub
        self._audit = audit
        self._caller = caller
        allowed = hub.settings.allowed_message_types
        # The hub drops such messages without an error.
        dropped = allowed and "execute_request" not in allowed
        self._refusal = "not in allowed_message_types" if dropped else ""

    def submit(self, cursor: Cursor, msg: Message) -> Awaitable[None] | None:
        """Send a message; returns and raises as `Hub.submit` does."""
        if msg.msg_type != "execute_request":
            return self._hub.submit(cursor, msg)
        try:
            room = self._hub.submit(cursor, msg)
        except KbridgeError as error:
            self._audit.record(self._caller, msg, error.reason)
            raise
        self._audit.record(self._caller, msg, self._refusal)
        return room


class _AppendedFile:
    """A file that lines are appended to, also after it was renamed or removed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._torn = False  # the last write was incomplete, in the middle of a line
        try:
            self._fd = self._open()
        except OSError as error:
            raise SetupError(
                f"the audit log {path} cannot be opened: {error.strerror or error}"
            ) from None

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        # With O_NONBLOCK, opening a FIFO without a reader fails instead of waiting for a reader.
        nonblocking = getattr(os, "O_NONBLOCK", 0)
        fd = os.open(self._path, flags | nonblocking, 0o600)
        if nonblocking:
            os.set_blocking(fd, True)
        return fd

    def append(self, lines: Sequence[str]) -> tuple[int, OSError | None]:
        """Append lines; return the number of lines that were written, and the error if any."""
        failure = None
        written = prefix = 0
        data = b""
        try:
            self._follow()
            prefix = int(self._torn)
            data = b"\n" * prefix + "".join(line + "\n" for line in lines).encode()
            while written < len(data):
                written += os.write(self._fd, memoryview(data)[written:])
                self._torn = written < len(data)
        except OSError as error:
            failure = error
        # A line that lacks only its end is counted: the next write begins with that end.
        return max(0, data[: written + 1].count(b"\n") - prefix), failure

    def _follow(self) -> None:
        """Open the path again if it is another file than the open one, or none."""
        try:
            there = self._path.stat()
        except FileNotFoundError:
            there = None
        if there is None or not os.path.samestat(there, os.fstat(self._fd)):
            newer = self._open()
            os.close(self._fd)
            self._fd = newer
            self._torn = False

    def close(self) -> None:
        os.close(self._fd)


def _member(raw: bytes | memoryview, name: str) -> str | None:
    """Return a text in a JSON object; None if there is none."""
    try:
        found = json.loads(bytes(raw)).get(name)
    except (ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, str) else None
