"""Requests to execute code that have not ended, in a form that survives the bridge.

A reply may be lost with the bridge that waited for it. `kbridge.flow.lost_replies` then builds the
reply from these fields.

The reply and the idle status of a request are noted with the end of the journal after them: after a
crash, they count as delivered only if their frames were written to disk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kbridge.flow.activity import state_of
from kbridge.wire.message import Message

__all__ = ["OpenRequest", "count_of", "error_of"]

_PARSED: Final = 64 << 10  # bytes; longer contents are not parsed, because that blocks the bridge
_TEXT: Final = 4 << 10  # bytes; a longer string of an error that is not parsed is left out


@dataclass(slots=True)
class OpenRequest:
    """An execute request that has not ended, and what the kernel has said about it.

    Attributes
    ----------
    msg_id : str
        Its id.
    client : int
        The number of the session that sent it.
    header : bytes
        Its header, which replies name as parent.
    begun : bool
        True if the kernel has begun to run it.
    count : int or None
        Its execution count.
    error : dict or None
        `ename`, `evalue` and `traceback` of the error that it ended with.
    replied, ended : int or None
        The sequence number after its reply, and after its idle status; None if there is none yet.
    """

    msg_id: str
    client: int
    header: bytes
    begun: bool = False
    count: int | None = None
    error: dict[str, Any] | None = None
    replied: int | None = None
    ended: int | None = None

    @property
    def over(self) -> bool:
        """True if it has its reply and its idle status."""
        return self.replied is not None and self.ended is not None

    def observe(self, msg: Message, msg_type: str, end: int) -> bool:
        """Note a message on iopub whose parent the request is.

        Parameters
        ----------
        msg, msg_type
            The message and its type.
        end : int
            The sequence number after the message.

        Returns
        -------
        bool
            True if the message says something new about the request.
        """
        if msg_type == "status":
            state = state_of(msg.content)
            self.begun = self.begun or state == "busy"
            if state == "idle":
                self.ended = end
            return state in ("busy", "idle")
        self.begun = True
        if msg_type == "error":
            self.error = error_of(msg.content)
            return True
        count = count_of(msg.content, msg_type)
        if count is None or count == self.count:
            return False
        self.count = count
        return True

    def entry(self) -> dict[str, Any]:
        """Return the value for the log."""
        return {
            "client": self.client,
            "header": self.header.decode("utf-8", "surrogateescape"),
            "begun": self.begun,
            "count": self.count,
            "error": self.error,
            "replied": self.replied,
            "ended": self.ended,
        }

    @classmethod
    def from_entry(cls, msg_id: str, entry: Mapping[str, Any], end: int) -> OpenRequest:
        """Return the request with that id whose value is `entry`.

        Parameters
        ----------
        msg_id, entry
            The id and the value.
        end : int
            The sequence number after the last frame on disk; a reply or status behind it is lost.

        Raises
        ------
        KeyError, TypeError, ValueError, AttributeError
            If no bridge wrote that value.
        """
        count, error = entry["count"], entry["error"]
        replied, ended = (
            None if after is None or int(after) > end else int(after)
            for after in (entry["replied"], entry["ended"])
        )
        return cls(
            msg_id,
            int(entry["client"]),
            entry["header"].encode("utf-8", "surrogateescape"),
            bool(entry["begun"]),
            None if count is None else int(count),
            None if error is None else dict(error),
            replied,
            ended,
        )


def count_of(content: bytes, msg_type: str) -> int | None:
    """Return the execution count in the content of an `execute_input` or `execute_result`.

    None if there is none, or for a large result: the `execute_input` before it has the same count.
    """
    count: object = None
    if len(content) <= _PARSED:
        count = _members(content).get("execution_count")
    elif msg_type == "execute_input":
        # All else is the code, a string: quotes have backslashes there.
        digits = content.partition(b'"execution_count":')[2][:20].strip().partition(b"}")[0]
        digits = digits.partition(b",")[0].strip()
        count = int(digits) if digits.isdigit() else None
    return count if isinstance(count, int) else None


def error_of(content: bytes) -> dict[str, Any]:
    """Return `ename`, `evalue` and `traceback` in the content of an `error`, as far as they exist.

    The traceback of a large error is left out, and other strings of more than 4 KiB.
    """
    names = ("ename", "evalue", "traceback")
    if len(content) <= _PARSED:
        whole = _members(content)
        return {name: whole[name] for name in names if name in whole}
    return {
        "ename": _string(content, b'"ename":'),
        "evalue": _string(content, b'"evalue":'),
        "traceback": [],
    }


def _string(content: bytes, key: bytes) -> str:
    """Return the string behind a key of a large object; empty if it is long or missing.

    Inside of strings, the quotes of the key would have backslashes.
    """
    at = content.find(key)
    if at < 0:
        return ""
    at += len(key)
    text = content[at : at + _TEXT].decode("utf-8", "ignore").lstrip()
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return ""
    return value if isinstance(value, str) else ""


def _members(content: bytes) -> dict[str, Any]:
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return whole if isinstance(whole, dict) else {}
