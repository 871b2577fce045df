"""Memory files with room for many kernels."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path

import pytest

from kbridge.link.holder.buffer import SharedMemory, memory_size
from kbridge.link.holder.client import Holder, is_supported
from kbridge.link.holder.header import CHUNK, FIRST, RECEIVED
from kbridge.link.holder.keeper import KeptKernel
from kbridge.link.holder.memory import MemoryFile, MemoryPool
from kbridge.link.holder.notes import NOTES_MEMORY

pytestmark = pytest.mark.skipif(not is_supported(), reason="needs Linux")

SIZES = [CHUNK, 2 * CHUNK]
PARTS = 32


def descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def make(pool: MemoryPool) -> SharedMemory:
    return SharedMemory(SIZES, pool.take())


def blocks(memory: SharedMemory) -> int:
    """Return how much memory the file of a part has."""
    return os.fstat(memory.fd).st_blocks


def test_many_kernels_share_one_file_and_its_two_descriptors() -> None:
    gc.collect()
    pool = MemoryPool(memory_size(SIZES))
    before = descriptors()
    made = [make(pool) for _ in range(PARTS)]
    assert descriptors() - before == 2
    assert len({memory.name for memory in made}) == 1
    starts = sorted(start for memory in made for start in memory.offsets)
    behind = [0, NOTES_MEMORY] * PARTS  # the notes are behind the last buffer of a kernel
    ends = [
        start + 4096 + size + more
        for start, size, more in zip(starts, SIZES * PARTS, behind, strict=True)
    ]
    assert starts == [0, *ends[:-1]], "they lie side by side"
    assert os.fstat(made[0].fd).st_size == ends[-1]
    assert make(pool).name != made[0].name
    assert descriptors() - before == 4


def test_a_buffer_does_not_reach_into_the_next_part() -> None:
    pool = MemoryPool(memory_size(SIZES))
    parts = [make(pool) for _ in range(3)]
    for memory in parts:
        for index in range(len(SIZES)):
            memory.buffer(index, announce=False)
    middle = parts[1]
    for index in range(len(SIZES)):
        middle.view(index)[:] = b"x" * len(middle.view(index))
    for other in (parts[0], parts[2]):
        for index, size in enumerate(SIZES):
            view = other.view(index)
            assert view[:8].cast("Q")[0] == size
            assert not any(view[4096:])
    middle.discard(0, 0, SIZES[0])
    assert not any(middle.view(0)[4096:])
    assert middle.view(0)[:4096] == b"x" * 4096
    assert middle.view(1)[:] == b"x" * (4096 + SIZES[1])


def test_a_part_is_empty_and_free_again_when_nothing_refers_to_it() -> None:
    pool = MemoryPool(memory_size(SIZES))
    rest = [make(pool) for _ in range(PARTS - 1)]
    memory = make(pool)
    name, offsets, empty = memory.name, memory.offsets, blocks(memory)
    buffer = memory.buffer(1, 7, announce=False)
    memory.view(1)[4096:] = b"x" * SIZES[1]
    del memory
    gc.collect()
    assert make(pool).name != name, "a buffer still refers to the part"
    del buffer
    gc.collect()
    others = [make(pool) for _ in range(PARTS)]  # in the second file
    again = make(pool)
    assert name not in {other.name for other in others}
    assert again.name == name
    assert again.offsets == offsets
    assert blocks(rest[0]) == empty
    assert not any(again.view(1))
    words = again.view(1)[: 8 * 16].cast("Q")
    again.buffer(1, 9, announce=False)
    assert (words[FIRST], words[RECEIVED]) == (9, 9)


def test_a_file_that_is_not_used_is_closed() -> None:
    before = descriptors()
    file = MemoryFile(4096)
    file.close()
    file.close()
    assert file.fd == -1
    assert descriptors() - before == 1
    file.map[:4] = b"here"
    gone = weakref.ref(file)
    del file
    gc.collect()
    assert gone() is None
    assert descriptors() == before


def test_a_kernel_returns_its_memory_when_it_is_closed(tmp_path: Path) -> None:
    pool = MemoryPool(memory_size([1 << 20] * 22))
    holder = Holder(tmp_path / "holder", tmp_path, 1, 0.0)
    holder.start()
    names, places = set(), []
    for number in range(3):
        kept = KeptKernel(str(number), holder, {}, pool=pool)
        names.add(kept.memory.name)
        places.append(kept.memory.offsets[0])
        kept.close()
        del kept
        gc.collect()
    assert len(names) == 1
    rest = [pool.take() for _ in range(PARTS)]
    assert {part.file.name for part in rest} == names
    assert places == sorted(set(places)), "the part that was free for longest is used next"
    holder.close()
