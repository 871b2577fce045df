"""Reading the blocks of a segment whose frames with state are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kbridge.storage.blocks import HEADER_SIZE, Block
from kbridge.storage.chunks import read_state_blocks
from kbridge.storage.disk import Disk
from kbridge.storage.segment import append
from tests.storage.harness import FOREVER, Source

SMALL = 64 * 1024
LARGE = 1 << 20


class CountingDisk(Disk):
    """A disk that counts the bytes that were read."""

    def __init__(self) -> None:
        self.nbytes = 0

    def read(self, descriptor: int, size: int, position: int) -> bytes:
        data = super().read(descriptor, size, position)
        self.nbytes += len(data)
        return data


def write(path: Path, *frames: str) -> list[int]:
    """Write a block for each frame, of the given kind; return the positions and the end."""
    disk, source, size = Disk(), Source(), 0
    positions = [0]
    descriptor = disk.create(path)
    for kind in frames:
        frame = b"x" * (LARGE if kind == "large" else 100)
        if kind == "mixed":  # one block with a text and a state
            source.append(frame)
        source.append(frame, state=kind in ("state", "mixed"))
        batch = source.unwritten(FOREVER)
        assert batch is not None
        for place in append(disk, descriptor, size, batch):
            size = place.position + place.size
            positions.append(size)
        source.on_written(source.next_seq)
    disk.close(descriptor)
    return positions


def read(path: Path, *, stop: int = FOREVER, disk: Disk | None = None) -> tuple[list[Block], bool]:
    """Return the blocks, and whether there is damage."""
    disk = disk or Disk()
    with disk.reading(path) as descriptor:
        blocks: list[Block] = []
        reading = read_state_blocks(disk, descriptor, disk.size(descriptor), stop, SMALL)
        while True:
            try:
                blocks.append(next(reading))
            except StopIteration as ended:
                return blocks, ended.value


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("", []),
        ("state", [0]),
        ("text", [0]),
        ("large", []),
        ("text state large text state", [1, 4, 3]),
        ("text state", [1, 0]),
        ("text large text mixed state", [3, 5]),
        ("text mixed large", [1]),
        ("state text text large", [0, 2]),
        ("text large", [0]),
    ],
)
def test_blocks_with_state_are_read_and_the_last_one_with_a_small_frame(
    tmp_path: Path, kinds: str, expected: list[int]
) -> None:
    path = tmp_path / "00000000.full"
    write(path, *kinds.split())
    blocks, damaged = read(path)
    assert [block.header.first_seq for block in blocks] == expected
    assert not damaged


def test_output_is_not_read(tmp_path: Path) -> None:
    path, disk = tmp_path / "00000000.full", CountingDisk()
    positions = write(path, *["large"] * 8, "state", *["large"] * 8)
    blocks, damaged = read(path, disk=disk)
    assert [block.header.first_seq for block in blocks] == [8]
    assert not damaged
    assert disk.nbytes < positions[-1] / 4


def test_frames_from_a_number_on_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "00000000.full"
    write(path, "state", "text", "state", "text")
    blocks, damaged = read(path, stop=2)
    assert [block.header.first_seq for block in blocks] == [0, 1]
    assert not damaged


@pytest.mark.parametrize("kind", ["state", "large"])
@pytest.mark.parametrize("where", ["magic", "number", "end"])
def test_nothing_after_a_damaged_header_is_read(tmp_path: Path, kind: str, where: str) -> None:
    path = tmp_path / "00000000.full"
    positions = write(path, "state", kind, "state")
    if where == "end":
        os.truncate(path, positions[2] - 1)
    else:
        with path.open("r+b") as file:
            # The second byte of the magic, or of the number of the first frame.
            file.seek(positions[1] + (1 if where == "magic" else 21))
            file.write(b"\xff")
    blocks, damaged = read(path)
    assert [block.header.first_seq for block in blocks] == [0]
    assert damaged


def test_damage_of_a_block_with_state_is_found(tmp_path: Path) -> None:
    path = tmp_path / "00000000.full"
    positions = write(path, "state", "state", "state")
    with path.open("r+b") as file:
        file.seek(positions[1] + HEADER_SIZE + 20)
        file.write(b"\xff")
    blocks, damaged = read(path)
    assert [block.header.first_seq for block in blocks] == [0]
    assert damaged
