"""The entries of a kernel's state log: the state that the next bridge needs besides the frames.

The log holds one value per key. `Recorder` writes the values; `read_entries` reads them after a
crash. Nothing here does I/O.

==================  =============================================================================
key                 value
==================  =============================================================================
`kernel`            `kernel_mark` of the kernel, because a connection file may be used again
`life/INDEX`        a `Life`: one for each bridge that has served the kernel
`session/ID`        the number of a session, which is the audience of its private frames
`place/NUMBER`      the sequence number that the session with that number reads next
`execution/MSG_ID`  an `Execution`: a request to execute code, without the code
`cut`               why the connections to the kernel end with the bridge; none if they stay
`settled`           the sequence number up to which the ends of executions were on disk
`input/MSG_ID`      an `InputRequest`: an `input_request` that has no answer
==================  =============================================================================

An entry that cannot be read is ignored: it costs that session or request only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from kbridge.flow.execution import Execution
from kbridge.flow.input_requests import InputRequest
from kbridge.wire.message import Channel, Message

__all__ = [
    "LIVES",
    "Life",
    "Lives",
    "SavedSession",
    "SavedState",
    "input_entry",
    "is_of_another_kernel",
    "kernel_mark",
    "read_entries",
    "shown_late",
    "unwritten_requests",
]

_APART: Final = 1 << 32
"""More messages than one bridge sends: the numbers in the pings of two bridges never overlap."""

_ADDRESS: Final = ("transport", "ip", "shell_port", "iopub_port")

_PARTS: Final = 4  # of an input request in the log: header, parent, metadata, content
_LONGEST_CUT: Final = 200  # characters
_SHOWN: Final = 100  # clients that are written with an input request

LIVES: Final = 1000
"""Earlier bridges whose numbers are understood."""


class Life(NamedTuple):
    """One bridge that has served a kernel.

    Attributes
    ----------
    origin : int
        Added to the sequence numbers of the journal in the pings of the bridge.
    first : int
        The sequence number of its first frame.
    markers : str
        The beginning of the ids of its markers; the rest is a sequence number.
    """

    origin: int
    first: int
    markers: str


class Lives:
    """The bridges that have served a kernel, and what the numbers of each mean.

    The bridge that ended may have sent frames that were not written to disk yet. The next bridge
    gives their sequence numbers to other frames, so each bridge has another origin, and a number of
    an earlier bridge never names a later frame.

    Parameters
    ----------
    past : sequence of Life
        The earlier bridges, oldest first.
    present : Life
        This bridge.
    index : int
        The number of bridges before this one.

    Attributes
    ----------
    past, present, index
        As above.
    """

    __slots__ = ("_all", "index", "past", "present")

    def __init__(self, past: Sequence[Life], present: Life, index: int) -> None:
        self.past = list(past[-LIVES:])
        self.present = present
        self.index = index
        self._all = [*self.past, present]

    @classmethod
    def begin(cls, saved: SavedState, end: int, *, now: float, markers: str) -> Lives:
        """Begin the life of another bridge.

        Parameters
        ----------
        saved : SavedState
            The state that the earlier bridges left.
        end : int
            The sequence number of the first frame of this bridge.
        now : float
            Unix seconds.
        markers : str
            The beginning of the ids of this bridge's markers.
        """
        # Microseconds since 1970: a bridge sends fewer messages than that, and JavaScript's numbers
        # hold them exactly.
        origin = int(now * 1e6)
        if saved.lives:
            origin = max(origin, saved.lives[-1].origin + end + _APART)
        return cls(saved.lives, Life(origin, end, markers), saved.next_index)

    @property
    def origin(self) -> int:
        """The number that this bridge adds to sequence numbers."""
        return self.present.origin

    @property
    def first_client(self) -> int:
        """The number below all numbers that this bridge gives to clients.

        It is random like the ids of the markers: the log may have lost earlier bridges, whose
        numbers are the audiences of private frames on disk.
        """
        return int(hashlib.sha256(self.present.markers.encode()).hexdigest()[:15], 16)

    def seq_of(self, number: int) -> int | None:
        """Return the sequence number of the frame that a ping with that number asked about.

        A frame that an earlier bridge sent and could not write to disk counts as its last one. The
        result is None for a number that is lower than those of all bridges.
        """
        end: int | None = None
        for life in reversed(self._all):
            if number >= life.origin:
                return _before(number - life.origin, end)
            end = life.first
        return None

    def marker_seq(self, msg_id: str) -> int | None:
        """Return the number of the frame before the marker with that id; None for another id."""
        end: int | None = None
        for life in reversed(self._all):
            seq = msg_id.removeprefix(life.markers)
            if seq != msg_id and seq.removeprefix("-").isdecimal() and seq.isascii():
                return _before(int(seq), end)
            end = life.first
        return None


def _before(seq: int, end: int | None) -> int:
    return seq if end is None or seq < end else end - 1


class SavedSession(NamedTuple):
    """A session of a client that an earlier bridge knew.

    Attributes
    ----------
    session_id : str
        Its id.
    number : int
        The audience of its private frames.
    seq : int or None
        The sequence number that it reads next; None if no frames are kept for it.
    """

    session_id: str
    number: int
    seq: int | None


def kernel_mark(connection_info: Mapping[str, Any]) -> str:
    """Return a digest of the key of a kernel, or of its addresses if it has none."""
    key = connection_info.get("key") or [connection_info.get(name) for name in _ADDRESS]
    text = key if isinstance(key, bytes) else str(key).encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()[:32]


def is_of_another_kernel(entries: Mapping[str, object], connection_info: Mapping[str, Any]) -> bool:
    """Return True unless the entries are those of the kernel with that connection info."""
    return entries.get("kernel") != kernel_mark(connection_info)


@dataclass(slots=True)
class SavedState:
    """The content of a state log.

    Attributes
    ----------
    lives : list of Life
        The earlier bridges, oldest first.
    next_index : int
        The index of the next one.
    sessions : list of SavedSession
        The sessions, in the order in which they came.
    executions : list of Execution
        The requests to execute code, in the order in which they were sent.
    inputs : list of InputRequest
        The input requests without an answer, oldest first. Those from the end of the disk on are
        not in the journal.
    cut : str
        Why the connections to the kernel have ended with the last bridge, as a clause; empty if
        they should have stayed, or if that is not known.
    """

    lives: list[Life] = field(default_factory=list)
    next_index: int = 0
    sessions: list[SavedSession] = field(default_factory=list)
    executions: list[Execution] = field(default_factory=list)
    inputs: list[InputRequest] = field(default_factory=list)
    cut: str = ""


def unwritten_requests(
    notes: Mapping[str, object], entries: Mapping[str, object]
) -> dict[str, object]:
    """Return the executions in the notes of an earlier bridge that its log does not have.

    Those of a session that the log does not have, either, are left out: no client would come back
    with the number of that session, to which the reply would go.

    Parameters
    ----------
    notes, entries : mapping
        The values by key; those of the log are later ones.
    """
    numbers = [value for key, value in entries.items() if key.startswith("session/")]
    return {
        key: value
        for key, value in notes.items()
        if key.startswith("execution/")
        and key not in entries
        and isinstance(value, dict)
        and value.get("client") in numbers
    }


def read_entries(entries: Mapping[str, object], end: int) -> SavedState:
    """Return the state that the entries of a log describe.

    Parameters
    ----------
    entries : mapping
        The values by key, in the order in which the keys were first written.
    end : int
        The sequence number after the last frame on disk. Sessions may have read further; they go on
        there.
    """
    state = SavedState()
    settled = entries.get("settled")
    settled = settled if isinstance(settled, int) else 0
    cut = entries.get("cut")
    state.cut = cut[:_LONGEST_CUT] if isinstance(cut, str) else ""
    for key, value in entries.items():
        kind, _, name = key.partition("/")
        try:
            if kind == "life":
                _read_life(state, int(name), value)
            elif kind == "session":
                seq = entries.get(f"place/{_number(value)}")
                place = None if seq is None else max(0, min(_number(seq), end))
                state.sessions.append(SavedSession(name, _number(value), place))
            elif kind == "execution" and isinstance(value, dict):
                state.executions.append(Execution.from_entry(name, value, end, settled))
            elif kind == "input":
                state.inputs.append(_read_input(value, end))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            continue
    return state


def _read_life(state: SavedState, index: int, value: Any) -> None:
    origin, first, markers = value
    life = Life(_number(origin), _number(first), str(markers))
    if not state.lives or life.origin > state.lives[-1].origin:
        state.lives.append(life)
        state.next_index = max(state.next_index, index + 1)


def input_entry(question: InputRequest) -> list[object]:
    """Return the value for the log of an input request."""
    parts = [bytes(part).decode("utf-8", "surrogateescape") for part in question.msg[1:5]]
    return [question.client, question.seq, *parts, shown_late(question)]


def shown_late(question: InputRequest) -> list[tuple[int, int]]:
    """Return the clients that received an input request later than its place in the journal.

    Each comes with the number of the first frame after it; at most the latest 100.
    """
    return [each for each in question.shown.items() if each[1] > question.seq + 1][-_SHOWN:]


def _read_input(value: Any, end: int) -> InputRequest:
    client, seq, *texts = value
    shown = texts.pop() if len(texts) > _PARTS else []  # the version before had none
    header, parent, metadata, content = (each.encode("utf-8", "surrogateescape") for each in texts)
    msg = Message(Channel.STDIN, header, parent, metadata, content, ())
    found = InputRequest(msg, _number(client), _number(seq))
    if found.seq < end:  # otherwise its frame was lost, and gets another place
        found.shown.update({_number(who): min(_number(after), end) for who, after in shown})
    return found


def _number(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError("not a number")
    return value
