"""Writes the state of a kernel's clients and requests to its state log.

`kbridge.hub.recovered` describes the entries. Writing costs no I/O here: the log is written in
another thread, with the frames.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

from kbridge.flow.input_requests import InputRequest
from kbridge.flow.open_requests import OpenRequest
from kbridge.hub.broadcast.cursor import ClientSession
from kbridge.hub.recovered import LIVES, Lives, input_entry
from kbridge.storage.history import History
from kbridge.wire.message import Message

__all__ = ["PLACES_EVERY", "RECORDED", "Recorder"]

RECORDED: Final = frozenset({"status", "execute_input", "execute_result", "error"})
"""The message types on iopub of which a lost reply is built: pass these messages to `said`."""

PLACES_EVERY: Final = 0.05
"""Seconds between two writes of acknowledged places."""

_REQUESTS: Final = 1000  # open requests that are recorded; kernels may never end some
_HEADER_BYTES: Final = 4096  # longer headers are not recorded
_INPUT_BYTES: Final = 16384  # larger input requests are not recorded


class Recorder:
    """Writes the state log of one kernel.

    Parameters
    ----------
    history : History
        The files of the kernel.
    lives : Lives
        The bridges that have served the kernel; this one is written to the log.
    requests : iterable of OpenRequest
        The requests in the log that have not ended yet.
    """

    def __init__(self, history: History, lives: Lives, requests: Iterable[OpenRequest]) -> None:
        self._history = history
        self._requests = {request.msg_id: request for request in requests}
        self._inputs: dict[str, tuple[int, int]] = {}  # client and number, as recorded
        # As recorded, by number of the session; -1 if that is not known.
        self._places: dict[int, int | None] = {}
        self._moved: dict[ClientSession, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        history.record(f"life/{lives.index}", list(lives.present))
        if lives.index >= LIVES:
            history.record(f"life/{lives.index - LIVES}", None)
        # The log may name replies that were not written. Frames of this bridge get their numbers.
        for request in list(self._requests.values()):
            self._changed(request)

    def kernel(self, mark: str) -> None:
        """Write the `kernel_mark` of the kernel."""
        self._history.record("kernel", mark)

    # -- sessions ---------------------------------------------------------------------------

    def attached(self, session: ClientSession, *, known: bool) -> None:
        """Note a websocket of a session; write the number of a session that was not known."""
        if not session.session_id:
            return
        if not known:
            self._history.record(f"session/{session.session_id}", session.number)
        self._places.setdefault(session.number, -1)
        self._place(session)

    def detached(self, session: ClientSession, forgotten: Iterable[ClientSession]) -> None:
        """Note that a websocket of a session has gone, and remove forgotten sessions."""
        self._place(session)
        for each in forgotten:
            self._moved.pop(each, None)
            self._places.pop(each.number, None)
            self._history.record(f"session/{each.session_id}", None)
            self._history.record(f"place/{each.number}", None)

    def _place(self, session: ClientSession) -> None:
        seq = None if session.place is None else session.place.seq
        number = session.number
        if self._places.get(number, seq) != seq:  # a forgotten session has no entry
            self._places[number] = seq
            self._history.record(f"place/{number}", seq)

    def moved(self, session: ClientSession) -> None:
        """Write the place of a session soon, because it may have changed."""
        self._moved[session] = None
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(PLACES_EVERY, self.write_places)

    def write_places(self) -> None:
        """Write the places that have changed, at once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        moved, self._moved = self._moved, {}
        for session in moved:
            self._place(session)

    def close(self) -> None:
        """Write the places that have changed, and hold no memory; may be called twice."""
        self.write_places()
        self._requests.clear()
        self._places.clear()

    # -- requests ---------------------------------------------------------------------------

    def request(self, msg: Message, client: int) -> None:
        """Write a request to execute code that was submitted by the session with that number."""
        msg_id, header = msg.msg_id, bytes(msg.header)
        if msg_id and len(header) <= _HEADER_BYTES:
            self._write(OpenRequest(msg_id, client, header))
            if len(self._requests) > _REQUESTS:
                self._remove(next(iter(self._requests)))

    def said(self, msg: Message, msg_type: str, end: int) -> None:
        """Take a message on iopub, of one of the types in `RECORDED`.

        Parameters
        ----------
        msg, msg_type
            The message, as clients receive it, and its type.
        end : int
            The sequence number after it.
        """
        request = self._requests.get(msg.parent_id)
        if request is not None and request.observe(msg, msg_type, end):
            self._changed(request)

    def replied(self, msg: Message, end: int) -> None:
        """Take the reply to a request to execute code; `end` is the sequence number after it."""
        request = self._requests.get(msg.parent_id)
        if request is not None:
            request.replied = end
            self._changed(request)

    def inputs(self, waiting: Mapping[str, InputRequest]) -> None:
        """Take the input requests without an answer, by id, after each change."""
        for msg_id in self._inputs.keys() - waiting.keys():
            del self._inputs[msg_id]
            self._history.record(f"input/{msg_id}", None)
        for msg_id, question in waiting.items():
            place = question.client, question.seq
            if self._inputs.get(msg_id) != place and question.msg.nbytes <= _INPUT_BYTES:
                self._inputs[msg_id] = place
                self._history.record(f"input/{msg_id}", input_entry(question))

    def forget_requests(self) -> None:
        """Remove all requests, because the process of the kernel was replaced."""
        for msg_id in list(self._requests):
            self._remove(msg_id)

    def _changed(self, request: OpenRequest) -> None:
        self._write(request)
        if request.over:
            self._remove(request.msg_id)  # as soon as its frames are on disk

    def _write(self, request: OpenRequest) -> None:
        self._requests[request.msg_id] = request
        self._history.record(f"request/{request.msg_id}", request.entry())

    def _remove(self, msg_id: str) -> None:
        del self._requests[msg_id]
        self._history.record(f"request/{msg_id}", None)
