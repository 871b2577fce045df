"""Counts the output of executions.

Nearly all messages have the same parent as the message before, so the messages of a run with one
parent are counted together: a message of the hot path costs a comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kbridge.flow.execute_contents import has_display_id, lines_in
from kbridge.flow.execution import Execution
from kbridge.flow.executions import Executions
from kbridge.wire.message import Message

__all__ = ["OutputCounter"]


class OutputCounter:
    """Counts the messages in the journal, their lines and bytes, for the execution of each.

    For each message that is appended to the journal, the caller calls `turn` if the parent header
    differs from `parent`, then `add_text` or `add`. It calls `count` before it reads the figures.

    Parameters
    ----------
    executions : Executions
        The executions.

    Attributes
    ----------
    parent : bytes
        The parent header of the last message.
    add_text, add_texts : callable
        Adds the content of a stream message, or those of several in a row. They are the methods of
        a list, to save a call.
    """

    __slots__ = (
        "_counted",
        "_displays",
        "_execution",
        "_executions",
        "_nbytes",
        "_texts",
        "add_text",
        "add_texts",
        "parent",
    )

    def __init__(self, executions: Executions) -> None:
        self._executions = executions
        self._execution: Execution | None = None
        self._counted = 0  # the messages before this number are counted
        self._nbytes = 0
        self._displays = False  # a display with an id was added
        self._texts: list[bytes] = []
        self.add_text: Callable[[bytes], None] = self._texts.append
        self.add_texts: Callable[[Iterable[bytes]], None] = self._texts.extend
        self.parent = b""

    def turn(self, msg: Message, seq: int) -> None:
        """Note that message `seq` has another parent than the one before."""
        self.count(seq)
        self.parent = msg.parent_header
        self._execution = execution = self._executions.get(msg.parent_id)
        if execution is not None and execution.first is None:
            execution.first = seq

    def look_again(self) -> None:
        """Note that the executions may have changed."""
        self.parent = b""

    def add(self, content: bytes, msg_type: str) -> None:
        """Add the content of a message that is not a stream message."""
        self._nbytes += len(content)
        if msg_type == "display_data" and has_display_id(content):
            self._displays = True

    def count(self, end: int) -> None:
        """Count the messages before number `end`."""
        texts, execution = self._texts, self._execution
        messages = end - self._counted
        if execution is not None and messages:
            lines, nbytes = 0, self._nbytes
            if texts:
                lines, nbytes = lines_in(texts), nbytes + sum(map(len, texts))
            execution.count_output(end, messages, lines, nbytes)
            execution.displays = execution.displays or self._displays
        self._counted, self._nbytes, self._displays = end, 0, False
        texts.clear()
