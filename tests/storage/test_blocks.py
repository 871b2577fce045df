"""Blocks: encoded and decoded for all sizes, and never accepted when a byte is wrong."""

from __future__ import annotations

from array import array
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.flow.batch import Batch
from kbridge.storage.blocks import BLOCK_SIZE, HEADER_SIZE, Block, Header, encode, split


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    frames = draw(st.lists(st.binary(max_size=300), min_size=1, max_size=20))
    count = len(frames)
    first = draw(st.integers(0, 2**60))
    seqs = offsets = None
    if draw(st.booleans()):
        steps = draw(st.lists(st.integers(1, 9), min_size=count - 1, max_size=count - 1))
        seqs = array("Q", accumulate(steps, initial=first))
        holes = draw(st.lists(st.integers(0, 99), min_size=count, max_size=count))
    else:
        holes = [0] * count
    offsets = array("Q")
    end = draw(st.integers(0, 2**60))
    for frame, hole in zip(frames, holes, strict=True):
        offsets.append(end + hole)
        end += hole + len(frame)
    indices = st.integers(0, count - 1)
    return Batch(
        frames,
        first,
        seqs,
        offsets,
        array(
            "q", draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=count, max_size=count))
        ),
        draw(st.dictionaries(indices, st.integers(1, 2**63))),
        sorted(draw(st.sets(indices))),
    )


def decoded(data: bytes) -> list[Block]:
    blocks = []
    at = 0
    while at < len(data):
        block = Block.read(data, at)
        assert block is not None
        blocks.append(block)
        at += block.header.size
    return blocks


@given(batches(), st.binary(max_size=50))
def test_a_block_has_what_its_batch_had(batch: Batch, before: bytes) -> None:
    block = Block.read(before + b"".join(encode(batch)) + b"KBJ1", len(before))
    assert block is not None
    count = len(batch.frames)
    assert block.frames(0, count) == batch.frames
    assert block.frames(1, count) == batch.frames[1:]
    assert [block.size(i) for i in range(count)] == [len(frame) for frame in batch.frames]
    assert block.offsets == batch.offsets
    assert block.keys == batch.keys
    assert block.private == batch.private
    assert list(block.state) == batch.state
    assert block.header.sparse == (batch.seqs is not None)
    assert block.end_seq == batch.end_seq
    if batch.seqs is None:
        assert block.seqs == range(batch.first_seq, batch.end_seq)
    else:
        assert block.seqs == batch.seqs


@given(batches(), st.data())
def test_a_block_with_a_wrong_byte_is_not_read(batch: Batch, data: st.DataObject) -> None:
    good = b"".join(encode(batch))
    at = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[at] ^= data.draw(st.integers(1, 255))
    assert Block.read(bytes(bad), 0) is None


@given(batches(), st.data())
def test_a_part_of_a_block_is_not_read(batch: Batch, data: st.DataObject) -> None:
    good = b"".join(encode(batch))
    assert Block.read(good[: data.draw(st.integers(0, len(good) - 1))], 0) is None


def test_a_header_without_frames_or_with_tables_beyond_its_block_is_refused() -> None:
    batch = Batch([b""], 0, None, array("Q", [0]), array("q", [0]), {}, [])
    good = b"".join(encode(batch))
    assert Header.parse(good, 0) is not None
    assert Header.parse(good[: HEADER_SIZE - 1], 0) is None
    for frames in (0, 2):  # there is room in the block for the tables of one
        assert Header.parse(good[:8] + bytes([frames]) + good[9:], 0) is None


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    ("sizes", "blocks"),
    [
        ([1], [1]),
        ([BLOCK_SIZE], [1]),
        ([BLOCK_SIZE, 1], [1, 1]),
        ([1, BLOCK_SIZE], [1, 1]),
        ([1, BLOCK_SIZE - 1, 1], [2, 1]),
        ([1, 5 * BLOCK_SIZE, 1, 1], [1, 1, 2]),
        ([BLOCK_SIZE // 4] * 10, [4, 4, 2]),
        ([0, 0, BLOCK_SIZE, 0, 1], [4, 1]),
    ],
)
def test_blocks_are_bounded(sizes: list[int], blocks: list[int], sparse: bool) -> None:
    frames = [bytes([i]) * size for i, size in enumerate(sizes)]
    step = 2 if sparse else 1
    seqs = range(10, 10 + step * len(sizes), step)
    hole = BLOCK_SIZE if sparse else 0
    offsets = [*accumulate((size + hole for size in sizes), initial=5)][:-1]
    last = len(sizes) - 1
    batch = Batch(
        frames,
        10,
        array("Q", seqs) if sparse else None,
        array("Q", offsets),
        array("q", range(len(sizes))),
        {0: 1, last: 2},
        [*range(len(sizes))],
    )
    parts = decoded(b"".join(buffer for part in split(batch) for buffer in encode(part)))
    assert [len(part.seqs) for part in parts] == blocks
    assert [seq for part in parts for seq in part.seqs] == [*seqs]
    assert [f for part in parts for f in part.frames(0, len(part.seqs))] == frames
    assert [o for part in parts for o in part.offsets] == offsets
    assert [k for part in parts for k in part.keys] == [*range(len(sizes))]
    assert [part.seqs[i] for part in parts for i in part.state] == [*seqs]
    clients = {part.seqs[i]: client for part in parts for i, client in part.private.items()}
    assert clients == {seqs[0]: 1} | {seqs[last]: 2}


def test_a_block_says_how_many_frames_reach_a_size() -> None:
    batch = Batch(
        [b"aa", b"bbb", b"c"], 0, None, array("Q", [0, 2, 5]), array("q", [0, 0, 0]), {}, []
    )
    block = Block.read(b"".join(encode(batch)), 0)
    assert block is not None
    assert [block.reach(0, n) for n in (1, 2, 3, 5, 6, 99)] == [1, 1, 2, 2, 3, 3]
    assert [block.reach(1, n) for n in (1, 3, 4, 99)] == [2, 2, 3, 3]
