"""Directories of `kbridge mcp` that are in use stay; those of killed processes are removed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kbridge.mcp.folder import PREFIX, private_folder, remove_unused
from tests.support.waiting import TIMEOUT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs locks of POSIX")

# Enters a directory, starts a child with its lock, prints the path, and waits for a kill.
PROGRAM = """
import subprocess, sys
from kbridge.mcp.folder import private_folder
with private_folder() as (folder, inherited):
    (folder / "token").write_text("secret")
    child = "print('runs', flush=True); input()"
    subprocess.Popen([sys.executable, "-c", child], pass_fds=inherited)
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_it_is_private_and_removed_at_the_end(temporary: Path) -> None:
    with private_folder() as (folder, inherited):
        assert folder.parent == temporary
        assert folder.stat().st_mode & 0o077 == 0
        assert len(inherited) == 1
        assert not os.get_inheritable(*inherited), "by kernels"
    assert not folder.exists()


def test_one_that_is_in_use_stays() -> None:
    with private_folder() as (first, _):
        with private_folder() as (second, _):
            assert first.exists()
            assert first != second
        assert first.exists()


def test_that_of_a_killed_process_stays_until_its_child_has_ended(temporary: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines = {process.stdout.readline().strip(), process.stdout.readline().strip()}
        [left] = temporary.glob(f"{PREFIX}*")
        assert lines == {b"runs", str(left).encode()}
        process.kill()
        process.wait(TIMEOUT)
        remove_unused(temporary)
        assert (left / "token").exists(), "the child uses it"
        process.stdin.close()  # ends the child
        process.stdout.read()  # until the child has ended
        remove_unused(temporary)
        assert not left.exists()


def test_nothing_else_is_removed(temporary: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "lock").touch()
    (temporary / f"{PREFIX}link").symlink_to(elsewhere)
    (temporary / f"{PREFIX}file").touch()
    (temporary / f"{PREFIX}new").mkdir()  # another process is about to lock it
    (temporary / "another").mkdir()
    (temporary / "another" / "lock").touch()
    linked = temporary / f"{PREFIX}linked-lock"
    linked.mkdir()
    (linked / "lock").symlink_to(elsewhere / "lock")
    before = sorted(temporary.iterdir())
    remove_unused(temporary)
    assert sorted(temporary.iterdir()) == before
    assert (elsewhere / "lock").exists()
