"""Policies that drop message types and hide tracebacks.

Both work on the raw parts before a message is encoded, so they apply to all dialects.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

from kbridge.errors import InvalidMessage
from kbridge.flow.policy import DROP, PASS, Verdict
from kbridge.wire.message import Message, json_object

__all__ = ["AllowedTypes", "HideTracebacks"]


class AllowedTypes:
    """Let only some message types pass (a `Policy` for messages from clients).

    Parameters
    ----------
    allowed : collection of str
        The allowed message types. Empty: all, as with `allowed_message_types` of Jupyter Server.
    """

    __slots__ = ("_allowed",)

    def __init__(self, allowed: Collection[str] = ()) -> None:
        self._allowed = frozenset(allowed)

    def __call__(self, msg: Message, msg_type: str, now: float) -> Verdict:  # noqa: ARG002
        """Drop the message unless its type is allowed."""
        return PASS if not self._allowed or msg_type in self._allowed else DROP


# The iopub messages with a traceback; `pyerr` is the name in protocol 4.
_ERRORS = frozenset({"error", "pyerr"})
# A reply without any of these bytes cannot contain an error, however its JSON is written.
_SUSPECT = (b"error", b"traceback", b"\\u")


class HideTracebacks:
    """Replace the text of exceptions by a fixed text (a `Policy`).

    Applies to `error` on iopub, replies with status `error`, and failed `user_expressions` inside
    successful replies. `ename` and `evalue` are replaced too, because the message of an exception
    reveals as much as its traceback; other fields stay. Content that cannot be parsed is replaced
    completely.

    Parameters
    ----------
    replacement : str
        The only line of the traceback that clients receive.
    """

    __slots__ = ("_hidden",)

    def __init__(self, replacement: str) -> None:
        self._hidden = {
            "ename": "ExecutionError",
            "evalue": "Execution error",
            "traceback": [replacement],
        }

    def __call__(self, msg: Message, msg_type: str, now: float) -> Verdict:  # noqa: ARG002
        """Replace the message if it reports an exception."""
        if msg_type == "stream":
            return PASS  # the most frequent type, so it is checked first
        if msg_type in _ERRORS:
            return (self._cleaned(msg, self._clean_error),)
        if msg_type.endswith("_reply"):
            content = msg.content
            if any(word in content for word in _SUSPECT):
                return (self._cleaned(msg, self._clean_reply),)
        return PASS

    def _cleaned(self, msg: Message, clean: Callable[[dict[str, Any]], bool]) -> Message:
        try:
            content = json_object(msg.content, "content")
        except InvalidMessage:
            content = {"status": "error", **self._hidden}
        else:
            if not clean(content):
                return msg
        return msg._replace(content=json.dumps(content).encode())

    def _clean_error(self, content: dict[str, Any]) -> bool:
        content.update(self._hidden)
        return True

    def _clean_reply(self, content: dict[str, Any]) -> bool:
        changed = False
        expressions = content.get("user_expressions")
        for part in (content, *(expressions.values() if isinstance(expressions, dict) else ())):
            if isinstance(part, dict) and (part.get("status") == "error" or "traceback" in part):
                part.update(self._hidden)
                changed = True
        return changed
