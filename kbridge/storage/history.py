"""The journal of one kernel on disk, as the event loop uses it.

The event loop owns all state and decides. The writing thread gets a `Work` with all it needs, and
the loop takes the results; a reading thread gets a path and a position.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from kbridge.flow.batch import Checkpoints, FrameSource
from kbridge.flow.places import Gap, Place, Stretch
from kbridge.storage.chunks import Chunk
from kbridge.storage.context import StoreContext, segment_size
from kbridge.storage.disk import Disk
from kbridge.storage.files import KernelFiles
from kbridge.storage.flush import FLUSH_DELAY, LATE_DELAY, Client, Task
from kbridge.storage.index import Segment
from kbridge.storage.reading import FrameReader, full_stretch, gap_before, sparse_stretch
from kbridge.storage.recovery import Recovered, RecoveredFiles
from kbridge.storage.segments import Segments
from kbridge.storage.state_log import StateLog, Value, line_of
from kbridge.storage.work import Close, Work

__all__ = ["History", "Recovered"]

_WRITE_SIZE: Final = 4 * 1024 * 1024  # of one batch
_HURRY_SIZE: Final = 256 * 1024
_LINES: Final = 25
"""Lines of the state log that are made at once. Each takes about 10 us."""


class _Write(Task):
    """A `Work` for the files of a history."""

    __slots__ = ("_history", "_work")

    def __init__(self, history: History, work: Work) -> None:
        self._history = history
        self._work = work

    @property
    def nbytes(self) -> int:
        return self._work.nbytes

    def run(self, disk: Disk) -> None:
        self._work.run(disk)

    def done(self, error: BaseException | None) -> None:
        self._history.written(self._work, error)


class History(Client):
    """The journal of one kernel on disk.

    All methods are called on the event loop, none waits for the disk, and none raises an `OSError`.

    Parameters
    ----------
    kernel_id : str
    files : KernelFiles
    context : StoreContext
    found : RecoveredFiles or None
        The files that an earlier process left.

    Attributes
    ----------
    recovered : Recovered or None
        The state that an earlier process left; None for a new kernel, and after
        `forget_recovered`.
    """

    def __init__(
        self,
        kernel_id: str,
        files: KernelFiles,
        context: StoreContext,
        found: RecoveredFiles | None = None,
    ) -> None:
        self._kernel_id = kernel_id
        self._files = files
        self._context = context
        self._segments = Segments(
            *(files.directory, context.limit),
            *((found.segments, found.next_number) if found else ([], 0)),
        )
        self._reader = FrameReader(self._segments.index, files.directory, context)
        self._states = StateLog(found.records if found else None)
        self._batch_size = min(_WRITE_SIZE, segment_size(context.limit))
        self._source: FrameSource | None = None
        self._settle: Callable[[], None] | None = None
        self._checkpoints: Checkpoints | None = None
        self._noted: int | None = None  # the end of the journal at the last note
        self._counted = 0
        self._queued = self._writing = self._idle = False
        self._soon = False  # True if something must be written within `FLUSH_DELAY`
        self._failed = self._retrying = self._stopped = False
        self._closed = False
        self._ended: asyncio.Future[None] | None = None
        self.recovered: Recovered | None = None
        self.renew()
        self._count(self.nbytes)

    # -- state ------------------------------------------------------------------------------

    @property
    def end(self) -> int:
        """The sequence number after the last frame that was written."""
        return self._segments.end

    @property
    def offset(self) -> int:
        """The bytes of the journal before `end`."""
        return self._segments.offset

    @property
    def active(self) -> bool:
        """False while the disk fails or has no space: the memory must keep what readers need."""
        return not (self._failed or self._stopped or self._closed)

    @property
    def closed(self) -> bool:
        """True if nothing will be written any longer."""
        return self._closed

    @property
    def oldest(self) -> Place | None:
        """The place of a reader that wants all frames on disk; None if there are none."""
        first = self._segments.index.oldest
        return None if first is None else Place(first, 0, 0)

    @property
    def nbytes(self) -> int:
        """The bytes on disk."""
        return self._segments.index.nbytes

    @property
    def surplus(self) -> int:
        """The bytes on disk without the segment that is being written."""
        return self.nbytes - self._segments.open_bytes

    @property
    def gives_up(self) -> bool:
        """True while a segment is given up and its file is not removed yet."""
        return self.active and (self._segments.gives_up or self._writing)

    def renew(self) -> None:
        """Set `recovered` to the present state, for a journal that goes on from here."""
        records = self._states.records
        if self.end or records:
            self.recovered = Recovered(self.end, self.offset, records)

    def forget_recovered(self) -> None:
        """Hold no memory for `recovered`: the journal goes on."""
        self.recovered = None

    @property
    def answered(self) -> int:
        """The number of answers from the disk to all readers of all journals."""
        return self._context.readers.answered

    def holds(self, seq: int) -> bool:
        """Return True if a frame is on disk; only frames with state may be asked for."""
        return self._segments.index.holds(seq)

    def next_full(self, seq: int) -> int | None:
        """Return the first number from `seq` on that is in a run without holes on disk, or None."""
        return self._segments.index.next_full(seq)

    # -- writing ----------------------------------------------------------------------------

    def attach(self, source: FrameSource, settle: Callable[[], None] | None = None) -> None:
        """Write the frames of `source` from now on.

        Parameters
        ----------
        source : FrameSource
        settle : callable, optional
            Called before frames are taken: it records what they say, so that the log is not behind
            the frames on disk.
        """
        self._source = source
        self._settle = settle
        source.on_durable(self.active)
        self._ask()

    def follow(self, checkpoints: Checkpoints) -> None:
        """Report from now on which input of the source is on disk."""
        self._checkpoints = checkpoints

    def recall(self, values: Mapping[str, object]) -> Recovered:
        """Add values that an earlier process had not written to `recovered`, and write them."""
        assert self.recovered is not None
        for key, value in values.items():
            self.record(key, value)
        records = {**self.recovered.records, **values}
        self.recovered = self.recovered._replace(records=records)
        return self.recovered

    def changed(self) -> None:
        """Note that the source has new frames; called after they were sent to clients.

        They are written within `FLUSH_DELAY`, or within `LATE_DELAY` if they come again.
        """
        if self._states.finished and not self._idles:
            try:
                self._states.encode_finished(_LINES)
            except Exception as error:  # noqa: BLE001 - the caller has other work to do
                self.failed(error)
        if self._queued:
            if self._unwritten >= _HURRY_SIZE:
                self._context.queue.hurry()
        else:
            self._ask()

    def remember(self, key: str, value: Value) -> bool:
        """Keep a value until `record` has written it, also if this process is killed.

        Returns
        -------
        bool
            False if there is no memory that outlives the process.
        """
        kept = self._checkpoints
        return kept is not None and kept.stays and kept.remember(line_of(key, value))

    def record(self, key: str, value: Value | None, *, late: bool = False) -> None:
        """Set what `Recovered.records` has for a key after a crash; None removes the key.

        The key is removed when all frames that the source has now are on disk.

        Parameters
        ----------
        key : str
        value : object, callable or None
            Anything that JSON can express, or a function that returns JSON when it is written.
        late : bool
            True if it may be written as late as frames: the next process finds it out.
        """
        end = 0
        if value is None and self._source is not None:
            end = self._source.next_seq
        self._states.set(key, value, end)
        if late:
            if not self._queued:
                self._ask()
        elif not self._soon:
            self._soon = True
            self._ask_soon()

    def finish(self, key: str) -> None:
        """Let the next `changed` make the line of a value: no other value is expected soon."""
        if not self._idles:
            self._states.finished.append(key)

    def give_up(self) -> None:
        """Give up the oldest segment, because the disk has no space for all kernels."""
        self._segments.give_up()
        self._ask()

    def stop(self, stopped: bool) -> None:
        """Stop writing while the disk has no space or does not answer; or go on."""
        self._update(failed=self._failed, stopped=stopped)
        self._ask()

    def retry(self) -> None:
        """Try to write again after a failure."""
        if self._failed and not self._closed:
            self._retrying = True
            self._context.queue.add(self)

    def prepare(self) -> bool:
        """Make some of the lines of the state log; return True if none is left."""
        return self._idles or self._states.encode(_LINES)

    def next_task(self) -> Task | None:
        """Return the work to do now."""
        self._queued = self._soon = False
        self._idle = True
        if self._idles:
            return None
        if self._settle is not None:
            self._settle()
        segments = self._segments
        batch = self._source.unwritten(self._batch_size) if self._source is not None else None
        compaction = segments.shrink()
        if not (batch or compaction or self._retrying or self._has_states):
            return None
        append = segments.append(batch) if batch else None
        if self._checkpoints is not None:
            self._checkpoints.begin_write()
            if self._noted is None and self._source is not None:
                self._checkpoints.note()
                self._noted = self._source.next_seq
        self._idle = False
        self._writing = True
        work = Work(
            self._files,
            self._context.opened,
            remove=segments.take_superfluous(),
            seal=segments.take_complete(),
            compaction=compaction,
            states=self._states.take(batch.end_seq if batch else None),
            frames=append,
        )
        return _Write(self, work)

    def failed(self, error: Exception) -> None:
        """Continue in memory after a mistake of this class or of the source."""
        self._retrying = self._writing = False
        self._context.failures.failed(self._kernel_id, error)
        self._update(failed=True, stopped=self._stopped)

    def written(self, work: Work, error: BaseException | None) -> None:
        """Take the results of work that was done, or failed."""
        self._writing = self._retrying = False
        if work.set_aside is not None:
            self._context.failures.set_aside(self._kernel_id, work.set_aside)
        if self._closed:
            return
        segments, usage, failures = self._segments, self._context.usage, self._context.failures
        added = 0
        compaction = work.compaction
        if compaction is not None:
            segments.compacted(compaction)
            if compaction.damaged:
                failures.damaged(self._kernel_id, compaction.path, compaction.error)
        if work.frames is not None and work.frames.blocks:
            before = self.nbytes
            usage.written += sum(block.size for block in work.frames.blocks)
            if not segments.appended(work.frames):
                self._states.failed(work.states)  # keys were removed too early
            elif self._source is not None:
                self._source.on_written(self.end)
            added = self.nbytes - before
        if error is None:
            usage.written += work.states.nbytes
            if self._failed or failures.waits:
                failures.works(self._kernel_id)
        else:
            self._states.failed(work.states)
            segments.superfluous += work.remove
            segments.roll()
            failures.failed(self._kernel_id, error)
        self._reach(error)
        self._count(added)
        self._update(failed=error is not None, stopped=self._stopped)
        if self._has_work:
            self._ask()
            if self.active and (segments.too_large or self._unwritten >= _HURRY_SIZE):
                self._context.queue.hurry()

    async def flush(self) -> None:
        """Write all that the source has, and wait until that is done or fails."""
        self._idle = False
        while self.active and (self._writing or (self._has_work and not self._idle)):
            self._ask()
            self._context.queue.hurry()
            await self._context.queue.job_done()

    def close(self, *, keep: bool) -> asyncio.Future[None]:
        """Write nothing from now on; the result is set when the files are removed or released."""
        if self._ended is not None:
            return self._ended
        self._ended = future = asyncio.get_running_loop().create_future()
        was_active = self.active
        self._closed = True
        indexes = self._segments.dump() if keep else None
        if not keep:
            self._segments.clear()
            self._count()
        if was_active and self._source is not None:
            self._source.on_durable(False)
        self._context.failures.forget(self._kernel_id)
        self._context.queue.put(Close(self._context.opened, self._files, indexes, future))
        return future

    # -- reading ----------------------------------------------------------------------------

    async def read(self, place: Place, max_bytes: int, horizon: int) -> Stretch | None:
        """Return the next frames from `place` on, like `Journal.read`.

        Returns
        -------
        Stretch or None
            None if the next frame is not on disk, or not before `horizon`. A stretch without frames
            has a gap: frames before `end` are missing, and no frame on disk follows.
        """
        index = self._segments.index
        seq = place.seq
        while seq < min(horizon, self.end):
            segment = index.at(seq)
            if segment is None:
                if self.end > horizon:
                    return None
                end = Place(self.end, self.end, self.offset)
                return Stretch([], {}, 0, end, self._gap(place, self.end, self.offset))
            first = max(seq, segment.first_seq)
            if first >= horizon:
                return None
            stop = min(horizon, segment.end_seq)
            chunk, error = await self._reader.load(segment, first, stop, max_bytes)
            if chunk is None:
                if isinstance(error, FileNotFoundError):
                    self._damaged(segment, None, error)
                elif error is not None:
                    path = self._segments.path(segment)
                    self._context.failures.unreadable(self._kernel_id, path, error)
                    seq = segment.end_seq  # this reader skips it
                continue
            if chunk.damaged is not None:
                self._damaged(segment, chunk, None)
            if chunk.frames:
                if segment.sparse:
                    return sparse_stretch(place, chunk)
                return full_stretch(chunk, self._gap(place, first, chunk.first_offset))
            if chunk.damaged is None:
                return None  # the next frame with state is not before the horizon
        return None

    async def frames(self, seq: int) -> list[bytes] | None:
        """Return all frames from a number on that are on disk; None if one of them is missing."""
        found: list[bytes] = []
        place = Place(seq, seq, -1)
        while place.seq < self.end:
            stretch = await self.read(place, _WRITE_SIZE, self.end)
            if stretch is None or stretch.gap is not None or stretch.seqs is not None:
                return None
            found += stretch.frames
            place = stretch.end
        return found

    async def find(self, key: int, matches: Callable[[bytes], bool]) -> Place | None:
        """Return the place after the newest frame with that key that `matches`, or None."""
        found = await self._reader.find(key, matches) if key else None
        return found and Place(found.seq + 1, found.seq + 1, found.end_offset)

    # -- helpers ----------------------------------------------------------------------------

    @property
    def _idles(self) -> bool:
        """True if nothing is written now."""
        return self._closed or self._stopped or (self._failed and not self._retrying)

    @property
    def _has_states(self) -> bool:
        return self._states.pending or bool(self._segments.superfluous)

    @property
    def _has_work(self) -> bool:
        return self._has_states or self._segments.too_large or self._unwritten > 0

    @property
    def _unwritten(self) -> int:
        return self._source.unwritten_bytes if self._source is not None else 0

    def _ask(self) -> None:
        """Take part in the next job."""
        if not self._queued and not self._writing and self.active:
            self._queued = True
            late = not self._soon and self._checkpoints is not None and self._checkpoints.stays
            self._context.queue.add(self, LATE_DELAY if late else FLUSH_DELAY)

    def _ask_soon(self) -> None:
        """Take part in a job within `FLUSH_DELAY`, although others have more time."""
        if self._queued:
            self._context.queue.add(self, FLUSH_DELAY)
        else:
            self._ask()

    def _update(self, *, failed: bool, stopped: bool) -> None:
        before = self.active
        self._failed = failed
        self._stopped = stopped
        if self.active == before:
            return
        if not self.active:
            self._segments.keep()
        if self._source is not None:
            self._source.on_durable(self.active)

    def _reach(self, error: BaseException | None) -> None:
        if error is None and self._checkpoints is not None:
            self._checkpoints.forget_written()
        if self._noted is not None and self._noted <= self.end:
            assert self._checkpoints is not None
            noted, self._noted = self._noted, None
            self._checkpoints.reached(noted)

    def _count(self, added: int = 0) -> None:
        nbytes = self.nbytes
        self._context.usage.change(added, self._counted + added - nbytes)
        self._counted = nbytes

    def _damaged(self, segment: Segment, chunk: Chunk | None, error: OSError | None) -> None:
        """Give up the unreadable part of a segment, and log that once."""
        if self._segments.damaged(segment, chunk):
            path = self._segments.path(segment)
            self._context.failures.damaged(self._kernel_id, path, error)
        self._count()
        self._ask()

    def _gap(self, place: Place, seq: int, offset: int) -> Gap | None:
        end, lost = self._segments.lost
        return gap_before(place, seq, offset, lost if end == seq else b"")
