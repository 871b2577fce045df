"""Typed outputs of an execution, and its result. Pure; no I/O."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from kbridge.wire.message import Buffer, Message

__all__ = [
    "ClearOutput",
    "DisplayData",
    "Error",
    "ExecuteResult",
    "Gap",
    "Output",
    "Result",
    "Stream",
    "UpdateDisplayData",
    "content_of",
    "parse_output",
    "parse_result",
]

_NOTICE = "[kbridge: "
_SENDER = "kbridge"  # the user name in the headers of messages that the bridge itself sends


@dataclass(frozen=True, slots=True)
class Stream:
    """Text that the code wrote to `name`, which is stdout or stderr."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class DisplayData:
    """Something to show.

    Attributes
    ----------
    data : dict
        One representation for each MIME type.
    metadata : dict
        More about the representations, by MIME type.
    transient : dict
        `display_id`, if later messages may update this display.
    buffers : tuple of bytes or memoryview
        Binary data.
    """

    data: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    transient: dict[str, Any] = field(default_factory=dict)
    buffers: tuple[Buffer, ...] = ()


@dataclass(frozen=True, slots=True)
class UpdateDisplayData:
    """New content for all displays with the `display_id` in `transient`; see `DisplayData`."""

    data: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    transient: dict[str, Any] = field(default_factory=dict)
    buffers: tuple[Buffer, ...] = ()


@dataclass(frozen=True, slots=True)
class ExecuteResult:
    """The value of the last expression of the code; see `DisplayData`."""

    execution_count: int | None
    data: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    transient: dict[str, Any] = field(default_factory=dict)
    buffers: tuple[Buffer, ...] = ()


@dataclass(frozen=True, slots=True)
class Error:
    """An exception that the code did not catch; `traceback` has lines with ANSI colours."""

    ename: str
    evalue: str
    traceback: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClearOutput:
    """Earlier output must be removed; with `wait`, only when new output arrives."""

    wait: bool


@dataclass(frozen=True, slots=True)
class Gap:
    """The server says that output is missing here.

    Attributes
    ----------
    messages, bytes : int
        The size of the gap; 0 if the server does not know it.
    text : str
        The explanation of the server.
    """

    messages: int
    bytes: int
    text: str


Output: TypeAlias = (
    Stream | DisplayData | UpdateDisplayData | ExecuteResult | Error | ClearOutput | Gap
)


@dataclass(frozen=True, slots=True)
class Result:
    """The end of an execution.

    Attributes
    ----------
    status : str
        `ok`, `error`, or `aborted` if the kernel skipped the code after an earlier error.
    execution_count : int or None
        The number of the prompt.
    user_expressions : dict
        The values of the `user_expressions` of the request.
    payload : tuple of dict
        Requests of the kernel to its frontend, such as to open a page.
    error : Error or None
        The exception, if the status is `error`.
    """

    status: str
    execution_count: int | None = None
    user_expressions: dict[str, Any] = field(default_factory=dict)
    payload: tuple[dict[str, Any], ...] = ()
    error: Error | None = None

    @property
    def ok(self) -> bool:
        """True if the code ran to its end."""
        return self.status == "ok"


def parse_output(msg: Message) -> Output | None:
    """Return the output in an iopub message; None if it has another type.

    A message that cannot be parsed is a `Gap`.
    """
    build = _OUTPUTS.get(msg.msg_type)
    if build is None:
        return None
    content = content_of(msg.content)
    if content is None:
        return Gap(1, msg.nbytes, f"a message of the type {msg.msg_type} is not valid JSON")
    return build(content, msg)


def content_of(part: Buffer) -> dict[str, Any] | None:
    """Return a part of a message that is a JSON object; None if it is not.

    Bytes that are not UTF-8 are replaced by U+FFFD, as frontends do it. Kernels send some, such as
    names of files that are not UTF-8.
    """
    try:
        value = json.loads(str(part, "utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def parse_result(content: Mapping[str, Any] | None) -> Result:
    """Return the result in the content of an `execute_reply`; None if that is not valid."""
    if content is None:
        return Result("error", error=Error("InvalidMessage", "the reply is not valid JSON", ()))
    status = str(content.get("status", "error"))
    count = content.get("execution_count")
    return Result(
        "aborted" if status == "abort" else status,  # the spelling of old kernels
        count if isinstance(count, int) else None,
        _mapping(content.get("user_expressions")),
        tuple(p for p in _list(content.get("payload")) if isinstance(p, dict)),
        _error(content) if status == "error" else None,
    )


def _stream(content: Mapping[str, Any], msg: Message) -> Output:
    name, text = str(content.get("name", "stdout")), str(content.get("text", ""))
    if name == "stderr" and text.startswith(_NOTICE) and (gap := _gap(text, msg)) is not None:
        return gap
    return Stream(name, text)


def _gap(text: str, msg: Message) -> Gap | None:
    """Return the gap that a notice of the bridge reports; None if a kernel wrote the text."""
    sender = (content_of(msg.header) or {}).get("username")
    line = text.removesuffix("\n")
    if sender != _SENDER or not line.endswith("]") or "\n" in line:
        return None
    explanation = line[len(_NOTICE) : -1]
    words = explanation.split()
    # It may begin with two numbers, such as: 1,234 messages (5,678 bytes) of output were dropped
    messages = _number(words[0]) if words[1:2] in (["message"], ["messages"]) else 0
    nbytes = _number(words[2].removeprefix("(")) if messages and words[3:4] == ["bytes)"] else 0
    return Gap(messages, nbytes, explanation)


def _number(word: str) -> int:
    digits = word.replace(",", "")
    return int(digits) if digits.isdecimal() else 0


def _display(content: Mapping[str, Any], msg: Message) -> Output:
    return DisplayData(*_bundle(content), msg.buffers)


def _update(content: Mapping[str, Any], msg: Message) -> Output:
    return UpdateDisplayData(*_bundle(content), msg.buffers)


def _execute_result(content: Mapping[str, Any], msg: Message) -> Output:
    count = content.get("execution_count")
    return ExecuteResult(count if isinstance(count, int) else None, *_bundle(content), msg.buffers)


def _bundle(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    return (
        _mapping(content.get("data")),
        _mapping(content.get("metadata")),
        _mapping(content.get("transient")),
    )


def _error(content: Mapping[str, Any], _msg: Message | None = None) -> Error:
    lines = tuple(str(line) for line in _list(content.get("traceback")))
    return Error(str(content.get("ename", "")), str(content.get("evalue", "")), lines)


def _clear(content: Mapping[str, Any], _msg: Message) -> Output:
    return ClearOutput(bool(content.get("wait", False)))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


_OUTPUTS: dict[str, Callable[[Mapping[str, Any], Message], Output]] = {
    "stream": _stream,
    "display_data": _display,
    "update_display_data": _update,
    "execute_result": _execute_result,
    "error": _error,
    "clear_output": _clear,
}
