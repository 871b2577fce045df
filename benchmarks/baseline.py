"""The commit with which the code is compared, and its package beside the current one.

`BASELINE` is an ancestor of main, so that every complete clone has it. Its package `kbridge` is
extracted into a cache once. It runs with the interpreter and the packages of the current code, so
that a ratio compares nothing but the code of kbridge.
"""

from __future__ import annotations

import compileall
import importlib.util
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.measure import BenchmarkError

__all__ = ["BASELINE", "checkout"]

BASELINE: Final = "f8846b67194f7c149b7bb8f0302dd37e8f37ec95"
ROOT: Final = Path(__file__).resolve().parent.parent
CACHE: Final = ROOT / ".cache" / "baselines"


def checkout(commit: str = BASELINE, repository: Path = ROOT, cache: Path = CACHE) -> Path:
    """Return a directory that has the package `kbridge` of a commit.

    Parameters
    ----------
    commit : str
        A hash, or another name that Git knows.
    repository, cache : Path
        The clone, and the directory in which a directory for each commit is made.

    Raises
    ------
    BenchmarkError
        If the commit or Git is missing.
    """
    found = _git(repository, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
    if found is None:
        raise BenchmarkError(_explain(commit, repository))
    tree = cache / found.decode().strip()
    if not tree.is_dir():
        _extract(repository, tree)
    compile_package(tree)
    return tree


def compile_package(tree: Path | None = None) -> None:
    """Write the bytecode of kbridge in a tree, by default of the package that is installed.

    Otherwise the first start would be slower than the later ones, or, where the environment has
    PYTHONDONTWRITEBYTECODE, each start.
    """
    if tree is None:
        spec = importlib.util.find_spec("kbridge")
        assert spec is not None, "the benchmarks run with kbridge"
        tree = Path(*spec.submodule_search_locations or ())
    compileall.compile_dir(tree, quiet=2)


def _extract(repository: Path, tree: Path) -> None:
    """Extract the package of a commit, whose hash is the name of `tree`."""
    packed = _git(repository, "archive", "--format=tar", tree.name, "--", "kbridge")
    if packed is None:
        raise BenchmarkError(f"commit {tree.name} does not have the package kbridge")
    tree.parent.mkdir(parents=True, exist_ok=True)
    # It appears under its name only when it is complete.
    with tempfile.TemporaryDirectory(dir=tree.parent, prefix="new-") as place:
        archive, folder = Path(place) / "kbridge.tar", Path(place) / "tree"
        archive.write_bytes(packed)
        shutil.unpack_archive(archive, folder, filter="data")
        folder.replace(tree)


def _git(repository: Path, *words: str) -> bytes | None:
    """Return the output of a Git command; None if it failed or Git is missing."""
    try:
        done = subprocess.run(["git", "-C", repository, *words], capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def _explain(commit: str, repository: Path) -> str:
    """Explain why a commit is missing, and what helps."""
    shallow = _git(repository, "rev-parse", "--is-shallow-repository")
    if shallow is None:
        return f"{repository} is not a clone (or Git is missing), so commit {commit} is not there"
    if shallow.strip() == b"true":
        return f"this shallow clone does not have commit {commit}; run: git fetch --unshallow"
    return f"this clone does not have commit {commit}"
