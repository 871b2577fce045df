"""Select the frames of a journal that belong to some requests, for one reader.

Invariants:

- a selected frame is the same object, and the order is kept;
- the selection does not depend on how the journal is cut into stretches. Only the input requests of
  other clients depend on the time: they are selected while their client is away;
- the time is linear in the number of frames, whatever their size. The only contents that are
  parsed are those of statuses; only the end of a display is searched.

A reader receives

1. iopub messages whose parent is one of the requests;
2. `update_display_data`, and `display_data` with a display id, of any parent or none, because they
   may change a display of one of the requests;
3. statuses without a parent: the kernel starts, restarts or is dead;
4. the `execute_reply` to each of the requests, whichever client sent it;
5. an `input_request` of one of the requests that has no answer, if its client is away;
6. its own replies and input requests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from kbridge.errors import InvalidRequest
from kbridge.flow.activity import state_of
from kbridge.flow.execute_contents import has_display_id
from kbridge.flow.input_requests import InputRequest
from kbridge.flow.journal import EVERYONE, Stretch
from kbridge.wire import v1
from kbridge.wire.frames import payload
from kbridge.wire.message import Channel, scan

__all__ = ["MAX_BYTES", "MAX_PARENTS", "Selection", "parse_parents"]

MAX_PARENTS: Final = 100
"""Requests that one reader may name."""

MAX_BYTES: Final = 16 << 10
"""Bytes of the ids of these requests, with the commas between them."""

_IOPUB, _SHELL, _STDIN = (c.encode() for c in (Channel.IOPUB, Channel.SHELL, Channel.STDIN))
_STATUS: Final = "status"
_DISPLAY: Final = "display_data"
_UPDATE: Final = "update_display_data"


def parse_parents(values: Sequence[str]) -> tuple[str, ...]:
    """Return the ids of requests in the values of a query argument, each once.

    Parameters
    ----------
    values : sequence of str
        Each is a list of ids, separated by commas.

    Raises
    ------
    InvalidRequest
        If there are too many ids, or none although the argument is there.
    """
    if sum(len(value.encode("utf-8", "surrogatepass")) + 1 for value in values) > MAX_BYTES + 1:
        raise InvalidRequest(f"parents has more than {MAX_BYTES:,} bytes")
    found = dict.fromkeys(each for value in values for each in value.split(",") if each)
    if len(found) > MAX_PARENTS:
        raise InvalidRequest(f"parents names more than {MAX_PARENTS} requests")
    if values and not found:
        raise InvalidRequest("parents names no request")
    return tuple(found)


class Selection:
    """The requests that one reader follows, and what it still has to learn about them.

    Parameters
    ----------
    parents : iterable of str
        The `msg_id` of each of the requests.
    inputs : mapping
        The input requests of the kernel that have no answer, by `msg_id`.

    Attributes
    ----------
    parents : tuple of str
        As above, each once.
    digest : str
        A digest of them: readers with the same one receive the same messages.
    """

    __slots__ = ("_ended", "_inputs", "_late", "_named", "_open", "_shown", "digest", "parents")

    def __init__(self, parents: Iterable[str], inputs: Mapping[str, InputRequest]) -> None:
        self.parents = tuple(dict.fromkeys(parents))
        names = ",".join(sorted(self.parents)).encode("utf-8", "surrogatepass")
        self.digest = hashlib.sha256(names).hexdigest()[:16]
        self._named = frozenset(self.parents)
        self._inputs = inputs
        # Input requests of other clients that the reader has received, and those that it has to
        # receive although it has read beyond them.
        self._shown: set[str] = set()
        self._late: list[bytes] = []
        # The requests whose end the reader has not received: their parent headers, the request with
        # the latest message at the end. A gap may have output of these.
        self._open = {each: _parent_header(each) for each in reversed(self.parents)}
        # Requests that have ended before the next gap, which comes after the frames of a sparse
        # run.
        self._ended: set[str] = set()

    def names(self, request: str) -> bool:
        """Return True if the reader follows a request."""
        return request in self._named

    # -- frames -----------------------------------------------------------------------------

    def select(self, stretch: Stretch, client: int) -> list[bytes]:
        """Return the frames of a stretch that the reader receives; `client` is its number."""
        private = stretch.private
        chosen: list[bytes] = []
        last: bytes | None = None
        parent_id = ""
        named = False
        for index, frame in enumerate(stretch.frames):
            channel, header, parent = v1.envelope(frame)
            if parent != last:  # most messages have the parent of the one before
                last = parent
                parent_id = scan(parent, "msg_id")
                named = parent_id in self._named
                if named and self._open.pop(parent_id, None) is not None:
                    self._open[parent_id] = parent
            if channel == _IOPUB:
                if named:
                    chosen.append(frame)
                    if b'"status"' in header:
                        self._note_end(frame, header, parent_id, sparse=stretch.seqs is not None)
                elif _is_for_all(frame, header, parent_id) and (
                    private.get(index, EVERYONE) in (EVERYONE, client)
                ):
                    chosen.append(frame)
                continue
            audience = private.get(index, EVERYONE)
            if audience == client or (named and _is_reply(channel, header)):
                chosen.append(frame)
            elif named and channel == _STDIN:
                question = self._inputs.get(scan(header, "msg_id"))
                if question is not None and self._show(question, client, question.seq + 1):
                    chosen.append(frame)
        return chosen

    def _note_end(self, frame: bytes, header: bytes, request: str, *, sparse: bool) -> None:
        if scan(header, "msg_type") != _STATUS or request not in self._open:
            return
        if state_of(v1.split(payload(frame)).content) == "idle":
            if sparse:
                self._ended.add(request)
            else:
                del self._open[request]

    # -- gaps -------------------------------------------------------------------------------

    def parent_of_gap(self, parent: bytes) -> bytes | None:
        """Return the parent header of the marker of a gap before the next stretch.

        Call it before `select`. The result is None if no output of the requests can be missing.

        Parameters
        ----------
        parent : bytes
            The parent header of the last message that is missing, or of the next one.
        """
        found: bytes | None = parent
        if scan(parent, "msg_id") not in self._named:
            found = next(reversed(self._open.values()), None)
        for request in self._ended:
            self._open.pop(request, None)
        self._ended.clear()
        return found

    # -- input requests of other clients ----------------------------------------------------

    def ask(self, question: InputRequest, client: int, seq: int) -> bool:
        """Let the reader receive an input request that it has read beyond; it is at frame `seq`.

        Returns
        -------
        bool
            False if it does not receive the request, or has received it.
        """
        if not self.names(question.msg.parent_id) or not self._show(question, client, seq):
            return False
        self._late.append(v1.encode_frame(question.msg))
        return True

    def skip(self, question: InputRequest) -> None:
        """Note that the reader has received an input request."""
        self._shown.add(question.msg.msg_id)

    def take_late(self) -> list[bytes]:
        """Return the frames of these input requests, once."""
        late, self._late = self._late, []
        return late

    def _show(self, question: InputRequest, client: int, seq: int) -> bool:
        msg_id = question.msg.msg_id
        if not question.away or msg_id in self._shown:
            return False
        self._shown.intersection_update(self._inputs)  # so it is bounded
        self._shown.add(msg_id)
        question.shown[client] = seq
        return True


def _is_for_all(frame: bytes, header: bytes, parent_id: str) -> bool:
    """Return True if readers receive an iopub message that belongs to none of their requests."""
    if parent_id and b"display_data" not in header:
        return False
    msg_type = scan(header, "msg_type")
    if msg_type == _DISPLAY:
        return has_display_id(frame)
    return msg_type == _UPDATE or (msg_type == _STATUS and not parent_id)


def _is_reply(channel: bytes, header: bytes) -> bool:
    return channel == _SHELL and scan(header, "msg_type") == "execute_reply"


def _parent_header(request: str) -> bytes:
    return json.dumps({"msg_id": request}).encode()
