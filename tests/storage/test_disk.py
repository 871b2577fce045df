"""The calls that write files."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.storage.harness import FailingDisk


@pytest.mark.parametrize("partial", [False, True])
def test_a_file_that_cannot_be_replaced_leaves_the_old_one(tmp_path: Path, partial: bool) -> None:
    disk = FailingDisk()
    path = tmp_path / "file"
    disk.write_file(path, [b"old"])
    disk.fail(errno.ENOSPC, "write", partial=partial)
    with pytest.raises(OSError, match="injected"):
        disk.write_file(path, [b"new content"])
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_bytes() == b"old"
    disk.heal()
    disk.write_file(path, [b"new ", b"content"])
    assert path.read_bytes() == b"new content"
    assert [*tmp_path.iterdir()] == [path]
