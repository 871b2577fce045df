"""One session on one kernel, without I/O: messages in, events and messages to send out.

Properties of this module:

- no I/O, no clock: the caller passes dates, and does what `Closed` and `reconcile` return;
- every request is confirmed by the first message that names it as its parent. Until then, its
  message is kept, because it may have been lost with a connection;
- a request to execute code is sent again only if the server says that it does not know it, so that
  code never runs twice. Other requests may be sent again, because their answers have no effects;
- an execution is complete when its reply and its idle status have arrived, in either order. An
  aborted one has only a reply;
- the place to resume at (`since`) is the last message on iopub that `receive` was given: all
  replicas of a cluster know it, but only one knows a reply. A message that arrives twice, as the
  replies after that place do, is ignored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from kbridge.client.outputs import Gap, Output, Result, content_of, parse_output, parse_result
from kbridge.errors import (
    BridgeError,
    Busy,
    ClientError,
    Conflict,
    Forbidden,
    FrameTooBig,
    InvalidRequest,
    KbridgeError,
    KernelDied,
    KernelNotFound,
    NotSupported,
    Unauthorized,
)
from kbridge.wire.build import build
from kbridge.wire.closing import TOO_BIG, ends_kernel
from kbridge.wire.message import Buffer, Channel, Message

__all__ = [
    "CommEvent",
    "Event",
    "Failed",
    "Finished",
    "InputRequested",
    "KernelSession",
    "Produced",
    "ReasonChanged",
    "Replaced",
    "Replied",
    "ReplyOnly",
    "closed",
    "error_of_status",
    "reason_of",
]

_RECENT: Final = 1000  # ids of messages, for servers that repeat some of them
_REPLACED: Final = frozenset({"starting", "restarting", "dead"})
_CLIENT_FAULTS: Final = frozenset({1002, 1003, 1007, 1008})


@dataclass(frozen=True, slots=True)
class Replied:
    """A request other than an execution has its reply."""

    msg_id: str
    content: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Produced:
    """An execution has an output, in a message of `nbytes` bytes."""

    msg_id: str
    output: Output
    nbytes: int


@dataclass(frozen=True, slots=True)
class InputRequested:
    """An execution asks for a line of input."""

    msg_id: str
    prompt: str
    password: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """An execution is complete."""

    msg_id: str
    result: Result


@dataclass(frozen=True, slots=True)
class ReplyOnly:
    """An execution has its reply; its last outputs and its idle status may follow."""

    msg_id: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A request or an execution will not be answered."""

    msg_id: str
    error: KbridgeError


@dataclass(frozen=True, slots=True)
class ReasonChanged:
    """The server says why the kernel waits or has ended; empty when it runs again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Replaced:
    """The kernel's process has gone; `reconcile` says what became of the executions."""


@dataclass(frozen=True, slots=True)
class CommEvent:
    """A comm message of the kernel; `msg_type` is comm_open, comm_msg or comm_close."""

    msg_type: str
    comm_id: str
    target_name: str
    data: dict[str, Any]
    metadata: dict[str, Any]
    buffers: tuple[Buffer, ...]
    nbytes: int


Event: TypeAlias = (
    Replied
    | Produced
    | InputRequested
    | Finished
    | ReplyOnly
    | Failed
    | Replaced
    | ReasonChanged
    | CommEvent
)


@dataclass(slots=True)
class _Request:
    """A request that has no reply yet."""

    message: Message
    sent: bool = False


@dataclass(slots=True)
class _Execution:
    """An execution that is not complete."""

    message: Message | None  # until it is confirmed; None if another client sent it
    sent: bool = False
    begun: bool = False
    idle: bool = False
    result: Result | None = None
    question: bytes = b""  # the header of the last input request
    answer: Message | None = None  # until the execution goes on


@dataclass(slots=True)
class KernelSession:
    """The requests, executions and place of one session on one kernel.

    Parameters
    ----------
    session_id : str
        A new random id.
    follows : str
        The id of a request of any client; then only its messages are received.

    Attributes
    ----------
    last : str
        The id of the last message on iopub.
    reason : str
        Why the kernel waits in a queue, or has ended, as the server says; else empty.
    """

    session_id: str
    follows: str = ""
    last: str = ""
    reason: str = field(default="", init=False)
    _requests: dict[str, _Request] = field(default_factory=dict)
    _executions: dict[str, _Execution] = field(default_factory=dict)
    _probes: dict[str, str] = field(default_factory=dict)  # to the execution that each proves
    _recent: deque[str] = field(default_factory=lambda: deque(maxlen=_RECENT))
    _known: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.follows:
            self._executions[self.follows] = _Execution(None)

    def query(self) -> dict[str, str]:
        """Return the parameters of the websocket's URL."""
        said = {"session_id": self.session_id, "parents": self.follows, "since": self.last}
        return {name: value for name, value in said.items() if value}

    # Sending.

    def request(
        self,
        msg_type: str,
        content: Mapping[str, Any],
        date: str,
        *,
        channel: Channel = Channel.SHELL,
        metadata: Mapping[str, Any] | None = None,
    ) -> Message:
        """Return a new request; its reply will be an event.

        Parameters
        ----------
        msg_type : str
            Such as `kernel_info_request`. An `execute_request` starts an execution.
        content, metadata : mapping
            Parts of the message.
        date : str
            The current time in ISO 8601.
        channel : Channel
            `shell` or `control`.
        """
        message = self._build(channel, msg_type, content, date, metadata=metadata)
        if msg_type == "execute_request":
            self._executions[message.msg_id] = _Execution(message)
        else:
            self._requests[message.msg_id] = _Request(message)
        return message

    def comm(
        self,
        msg_type: str,
        content: Mapping[str, Any],
        date: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        buffers: Sequence[Buffer] = (),
    ) -> Message:
        """Return a comm message, which has no reply."""
        return self._build(
            Channel.SHELL, msg_type, content, date, metadata=metadata, buffers=buffers
        )

    def answer(self, msg_id: str, value: str, date: str) -> Message | None:
        """Return the answer to the question of an execution; None if it no longer asks."""
        execution = self._executions.get(msg_id)
        if execution is None or not execution.question:
            return None
        content = {"value": value, "status": "ok"}
        execution.answer = self._build(
            Channel.STDIN, "input_reply", content, date, parent_header=execution.question
        )
        execution.question = b""
        return execution.answer

    def sending(self, msg_id: str) -> None:
        """Note that a message is about to be written to a connection."""
        if (waiting := self._executions.get(msg_id) or self._requests.get(msg_id)) is not None:
            waiting.sent = True

    def probe(self, msg_id: str, date: str) -> Message | None:
        """Return a request whose idle status proves that the output of an execution has ended.

        Kernels send iopub messages in order. Returns None if the execution is complete.
        """
        if msg_id not in self._executions:
            return None
        request = self.request("kernel_info_request", {}, date)
        self._probes[request.msg_id] = msg_id
        return request

    def forget(self, msg_id: str) -> bool:
        """Ignore the reply to a request whose caller no longer waits.

        Returns False for an execution that was sent: it cannot be taken back, and goes on.
        """
        execution = self._executions.get(msg_id)
        if execution is not None and execution.sent:
            return False
        self._executions.pop(msg_id, None)
        self._requests.pop(msg_id, None)
        return True

    def _build(
        self,
        channel: Channel,
        msg_type: str,
        content: Mapping[str, Any],
        date: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        buffers: Sequence[Buffer] = (),
        parent_header: bytes = b"{}",
    ) -> Message:
        return build(
            channel,
            msg_type,
            content,
            session=self.session_id,
            date=date,
            username="kbridge-client",
            metadata=metadata,
            buffers=buffers,
            parent_header=parent_header,
        )

    # Receiving.

    def receive(self, msg: Message) -> list[Event]:
        """Take the next message of the server; return what it means."""
        msg_id = msg.msg_id
        if msg_id:
            if msg_id in self._known:
                return []
            self._note(msg_id)
            if msg.channel is Channel.IOPUB:
                self.last = msg_id
        kind, parent = msg.msg_type, msg.parent_id
        if msg.channel is Channel.IOPUB:
            if kind.startswith("comm_"):
                return _comm(kind, msg)
            if kind == "status" and not parent:
                content = _content(msg)
                state, reason = content.get("execution_state"), content.get("reason", "")
                return self._kernel_status(str(state), str(reason))
            if kind == "status" and parent in self._probes:
                return self._proved(parent, str(_content(msg).get("execution_state")))
        if (execution := self._executions.get(parent)) is not None:
            return self._of_execution(parent, execution, kind, msg)
        if parent in self._requests and kind.endswith("_reply"):
            del self._requests[parent]
            return [*self._explain(""), Replied(parent, _content(msg))]
        return []

    def _note(self, msg_id: str) -> None:
        if len(self._recent) == _RECENT:
            self._known.discard(self._recent[0])
        self._recent.append(msg_id)
        self._known.add(msg_id)

    def _of_execution(
        self, msg_id: str, execution: _Execution, kind: str, msg: Message
    ) -> list[Event]:
        execution.message = execution.answer = None
        execution.begun = True
        if msg.channel is Channel.IOPUB:
            if kind == "status":
                execution.idle |= _content(msg).get("execution_state") == "idle"
                return self._complete(msg_id, execution)
            output = parse_output(msg)
            return [] if output is None else [Produced(msg_id, output, msg.nbytes)]
        if kind == "input_request":
            content = _content(msg)
            execution.question = msg.header
            prompt, password = str(content.get("prompt", "")), bool(content.get("password"))
            return [InputRequested(msg_id, prompt, password)]
        if kind == "execute_reply":
            execution.result = parse_result(content_of(msg.content))
            ended = self._complete(msg_id, execution) or [ReplyOnly(msg_id)]
            return ended if execution.result.status == "aborted" else [*self._explain(""), *ended]
        return []

    def _proved(self, probe: str, state: str) -> list[Event]:
        """Complete an execution whose idle status should have come before that of a probe."""
        if state != "idle":
            return []
        msg_id = self._probes.pop(probe)
        execution = self._executions.get(msg_id)
        if execution is None:
            return []
        execution.idle = True
        gap = Gap(0, 0, "the kernel dropped the end of the output")
        return [Produced(msg_id, gap, 0), *self._complete(msg_id, execution)]

    def _complete(self, msg_id: str, execution: _Execution) -> list[Event]:
        result = execution.result
        if result is None or not (execution.idle or result.status == "aborted"):
            return []
        del self._executions[msg_id]
        return [Finished(msg_id, result)]

    def _kernel_status(self, state: str, why: str) -> list[Event]:
        """Take a status that the server or the kernel announces without a request."""
        if state not in _REPLACED:
            return []
        events = self._explain(why)
        if why and state == "starting":
            return events  # it waits for a process, and had none before
        dead = state == "dead"
        reason = "the kernel died" if dead else "the kernel was restarted"
        reason += f": {why}" * bool(why)
        ended = [i for i, each in self._executions.items() if each.begun or dead]
        events += [Failed(msg_id, KernelDied(reason)) for msg_id in ended]
        for msg_id in ended:
            del self._executions[msg_id]
        if dead:
            events += [Failed(msg_id, KernelDied(reason)) for msg_id in self._requests]
            self._requests.clear()
        return [*events, Replaced()] if self._executions or self._requests else events

    def _explain(self, why: str) -> list[Event]:
        known, self.reason = self.reason, why
        return [] if why == known else [ReasonChanged(why)]

    # Connections.

    def unconfirmed(self) -> bool:
        """Return True if some execution may have been lost with a connection."""
        return any(each.sent and not each.begun for each in self._executions.values())

    def reconcile(
        self, states: Mapping[str, str] | None, *, reconnected: bool
    ) -> tuple[list[Event], list[Message]]:
        """Compare the executions with those that the server knows.

        Parameters
        ----------
        states : mapping or None
            The `state` of each execution of this session, by id; None if this server does not list
            executions.
        reconnected : bool
            True after a new connection, with which executions and answers may have been lost.

        Returns
        -------
        events : list of Event
            For executions that ended with the process of the kernel.
        messages : list of Message
            Messages that have been sent, and may have been lost with the connection or the process.
        """
        events: list[Event] = []
        lost: list[Message] = []
        for msg_id, execution in list(self._executions.items()):
            if reconnected:
                known = states is None or not execution.sent or msg_id in states
                again = (None if known else execution.message, execution.answer)
                lost += [message for message in again if message is not None]
            elif not execution.begun and states is not None and states.get(msg_id) == "aborted":
                del self._executions[msg_id]
                events.append(Failed(msg_id, KernelDied("the kernel ended before it began this")))
        lost += [request.message for request in self._requests.values() if request.sent]
        return events, lost

    def end(self, error: KbridgeError) -> list[Event]:
        """Give up: nothing more will be received."""
        waiting = [*self._executions, *self._requests]
        self._executions.clear()
        self._requests.clear()
        return [Failed(msg_id, error) for msg_id in waiting]


def _content(msg: Message) -> dict[str, Any]:
    return content_of(msg.content) or {}


def _comm(kind: str, msg: Message) -> list[Event]:
    content = _content(msg)
    data = content.get("data")
    return [
        CommEvent(
            kind,
            str(content.get("comm_id", "")),
            str(content.get("target_name", "")),
            data if isinstance(data, dict) else {},
            content_of(msg.metadata) or {},
            msg.buffers,
            msg.nbytes,
        )
    ]


def closed(code: int | None, reason: str) -> KbridgeError | None:
    """Return what the end of a websocket means.

    Parameters
    ----------
    code : int or None
        The close code that the server sent; None if the connection broke.
    reason : str
        The reason that the server sent.

    Returns
    -------
    KbridgeError or None
        None to connect again; otherwise the error with which everything ends.
    """
    if ends_kernel(code, reason):
        return KernelDied(reason)
    if code == TOO_BIG:
        return FrameTooBig(reason or "a message is larger than the server allows")
    if code in _CLIENT_FAULTS:
        return ClientError(reason or f"the server closed the websocket with code {code}")
    return None


_STATUS: Final[Mapping[int, type[KbridgeError]]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Forbidden,
    404: KernelNotFound,
    409: Conflict,
    501: NotSupported,
    503: Busy,
}


def reason_of(body: bytes, otherwise: str) -> str:
    """Return the message in the body of a refusal, or another text if it has none."""
    content = content_of(body)
    message = content.get("message") if content is not None else None
    return message if isinstance(message, str) and message else otherwise


def error_of_status(status: int, reason: str) -> KbridgeError:
    """Return the error that a reply with this HTTP status stands for."""
    kind = _STATUS.get(status)
    if kind is None:
        kind = ClientError if 400 <= status < 500 else BridgeError
    return kind(reason)
