"""Notes that the next process reads."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from kbridge.link.holder.buffer import SharedMemory
from kbridge.link.holder.client import is_supported
from kbridge.link.holder.header import CHUNK
from kbridge.link.holder.notes import NOTES_MEMORY, Notes, read_notes

pytestmark = pytest.mark.skipif(not is_supported(), reason="needs Linux")

HALF = NOTES_MEMORY // 2


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    made = SharedMemory([CHUNK, 2 * CHUNK])
    yield made
    made.close_descriptor()


@pytest.fixture
def notes(memory: SharedMemory) -> Notes:
    return memory.notes(1)


def left(memory: SharedMemory) -> list[bytes]:
    """Return the lines that the next process finds."""
    return read_notes(memory.fd, memory.offsets[1]).splitlines()


def test_notes_are_there_until_they_are_written(memory: SharedMemory, notes: Notes) -> None:
    assert notes.add(b"one\n")
    assert notes.add(b"two\n")
    notes.begin_write()
    assert notes.add(b"three\n")
    assert left(memory) == [b"one", b"two", b"three"]
    notes.forget_written()
    assert left(memory) == [b"three"]
    notes.begin_write()
    notes.forget_written()
    assert left(memory) == []


def test_notes_stay_after_a_write_that_failed(memory: SharedMemory, notes: Notes) -> None:
    notes.add(b"one\n")
    notes.begin_write()
    notes.add(b"two\n")
    notes.begin_write()  # the first one has failed
    notes.add(b"three\n")
    notes.forget_written()
    assert left(memory) == [b"two", b"three"]
    notes.begin_write()
    notes.add(b"four\n")
    notes.forget_written()
    assert left(memory) == [b"four"]


def test_a_note_for_which_there_is_no_room_is_refused(memory: SharedMemory, notes: Notes) -> None:
    assert notes.add(b"x" * (HALF - 4) + b"\n")
    assert not notes.add(b"four\n")
    assert notes.add(b"ab\n")
    notes.begin_write()
    assert notes.add(b"four\n")
    assert left(memory)[1:] == [b"ab", b"four"]


def test_notes_do_not_reach_into_the_buffers(memory: SharedMemory, notes: Notes) -> None:
    buffers = [memory.buffer(index, announce=False) for index in (0, 1)]
    before = [bytes(memory.view(index)[4096:]) for index in (0, 1)]
    notes.add(b"x" * HALF)
    notes.begin_write()
    notes.add(b"y" * HALF)
    assert [bytes(memory.view(index)[4096:]) for index in (0, 1)] == before
    assert read_notes(memory.fd, memory.offsets[1]) == b"x" * HALF + b"y" * HALF
    assert os.fstat(memory.fd).st_size == memory.offsets[1] + 4096 + 2 * CHUNK + NOTES_MEMORY
    assert all(buffer.position == 0 for buffer in buffers)


def test_a_process_without_notes_leaves_none(memory: SharedMemory) -> None:
    memory.buffer(1, announce=False)  # as an older version does
    assert left(memory) == []
