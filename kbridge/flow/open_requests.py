"""Requests to execute code that have not ended, in a form that survives the bridge.

A reply may be lost with the bridge that waited for it. `kbridge.flow.lost_replies` then builds the
reply from these fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kbridge.flow.activity import state_of
from kbridge.wire.message import Message

__all__ = ["OpenRequest", "fields_of"]

_ERROR_BYTES: Final = 64 << 10  # a longer traceback is left out


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
    replied, ended : bool
        True if its reply was delivered; if its idle status was.
    """

    msg_id: str
    client: int
    header: bytes
    begun: bool = False
    count: int | None = None
    error: dict[str, Any] | None = None
    replied: bool = False
    ended: bool = False

    def observe(self, msg: Message, msg_type: str) -> bool:
        """Note a message on iopub whose parent the request is; return True if it says something."""
        if msg_type == "status":
            state = state_of(msg.content)
            self.begun = self.begun or state == "busy"
            self.ended = self.ended or state == "idle"
            return state in ("busy", "idle")
        self.begun = True
        if msg_type == "error":
            if len(msg.content) <= _ERROR_BYTES:
                self.error = fields_of(msg.content, "ename", "evalue", "traceback")
            else:
                self.error = {**fields_of(msg.content, "ename", "evalue"), "traceback": []}
            return True
        count = fields_of(msg.content, "execution_count").get("execution_count")
        if not isinstance(count, int) or count == self.count:
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
    def from_entry(cls, msg_id: str, entry: Mapping[str, Any]) -> OpenRequest:
        """Return the request with that id whose value is `entry`.

        Raises
        ------
        KeyError, TypeError, ValueError
            If no bridge wrote that value.
        """
        count, error = entry["count"], entry["error"]
        return cls(
            msg_id,
            int(entry["client"]),
            entry["header"].encode("utf-8", "surrogateescape"),
            bool(entry["begun"]),
            None if count is None else int(count),
            None if error is None else dict(error),
            bool(entry["replied"]),
            bool(entry["ended"]),
        )


def fields_of(content: bytes, *names: str) -> dict[str, Any]:
    """Return the named members of the JSON object `content`; none if it is not an object."""
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return {name: whole[name] for name in names if name in whole} if isinstance(whole, dict) else {}
