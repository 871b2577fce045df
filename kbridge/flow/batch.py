"""The interface between a journal in memory and its files: batches of frames to write.

Arrays are copies that nobody changes afterwards, because a thread reads them.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple, Protocol

__all__ = ["Batch", "Checkpoints", "FrameSource"]


class Batch(NamedTuple):
    """Frames of a journal that go to disk together.

    Attributes
    ----------
    frames : list of bytes
        At least one frame.
    first_seq : int
        The sequence number of the first frame.
    seqs : array of int or None
        The sequence number of each frame (type code `Q`), if numbers are missing between them; None
        if the numbers are consecutive.
    offsets : array of int
        The bytes of the journal before each frame (type code `Q`).
    keys : array of int
        The key of each frame (type code `q`).
    private : dict of int to int
        Index into `frames` -> the only client of the frame.
    state : list of int
        Indices into `frames` of the frames with state, in rising order.
    """

    frames: list[bytes]
    first_seq: int
    seqs: array[int] | None
    offsets: array[int]
    keys: array[int]
    private: dict[int, int]
    state: list[int]

    @property
    def end_seq(self) -> int:
        """The sequence number after the last frame."""
        return self.first_seq + len(self.frames) if self.seqs is None else self.seqs[-1] + 1

    @property
    def end_offset(self) -> int:
        """The bytes of the journal before the end of the last frame."""
        return self.offsets[-1] + len(self.frames[-1])


class FrameSource(Protocol):
    """The memory of a journal, as the store on disk sees it; all calls are on the event loop."""

    @property
    def next_seq(self) -> int:
        """The sequence number of the next frame."""
        ...

    @property
    def unwritten_bytes(self) -> int:
        """The size of the frames that are not on disk yet."""
        ...

    def unwritten(self, max_bytes: int) -> Batch | None:
        """Return the oldest frames that are not on disk yet; None if there are none.

        The batch ends with the frame that reaches `max_bytes`. The frames of a batch are either
        consecutive or retained frames, whose numbers are in `Batch.seqs`. The next call returns the
        same frames, unless `on_written` was called.
        """
        ...

    def on_written(self, end: int) -> None:
        """Note that the frames before the sequence number `end` are on disk."""
        ...

    def on_durable(self, durable: bool) -> None:
        """Note that frames will be written to disk from now on, or that the disk fails.

        While the disk fails, the memory must keep what readers need, as if there was no disk.
        """
        ...


class Checkpoints(Protocol):
    """The input of a source of frames, and notes, for the next process if this one is killed.

    Positions in the input are noted when the frames of the source are written.
    """

    @property
    def stays(self) -> bool:
        """True if all input behind the last position comes again in the next process."""
        ...

    def note(self) -> None:
        """Note the present position: the source has the frames of all input before it."""

    def reached(self, end: int) -> None:
        """Note that all frames up to the last note are on disk; they are those before `end`."""

    def remember(self, line: bytes) -> bool:
        """Keep a line for the next process, and return True if there is room for it."""
        ...

    def begin_write(self) -> None:
        """Note that all lines so far are being written to disk."""

    def forget_written(self) -> None:
        """Forget these lines, because they are on disk."""
