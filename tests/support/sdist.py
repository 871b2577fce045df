"""Download the source distributions of peers, which contain their tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.require import lack, require

__all__ = ["environment", "suite_of"]


class NoSuite(Exception):
    """The source distribution could not be fetched."""


def fetch(peer: str, cache: Path) -> Path:
    """Return the source distribution of the installed peer; download it if it is new.

    Raises
    ------
    NoSuite
        If pip cannot download it.
    """
    wanted = f"{peer}-{version(peer)}.tar.gz"
    if (cache / wanted).exists():
        return cache / wanted
    fresh = cache / f"{wanted}.{os.getpid()}"
    try:
        got = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-input"),
                *("--disable-pip-version-check", "--retries=2", "--no-deps", f"--dest={fresh}"),
                *(f"--no-binary={peer}", f"{peer}=={version(peer)}"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        if got.returncode:
            raise NoSuite(got.stdout.strip().rpartition("\n")[2])
        (fresh / wanted).replace(cache / wanted)
    except subprocess.TimeoutExpired as error:
        raise NoSuite(f"pip did not end in {error.timeout:g} s") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return cache / wanted


def unpack(archive: Path, home: Path) -> Path:
    """Unpack the tests and their configuration, without the package that they test."""
    root = archive.name.removesuffix(".tar.gz")
    with tarfile.open(archive) as tar:
        wanted = [
            member
            for member in tar.getmembers()
            if member.name.startswith(f"{root}/tests/") or member.name == f"{root}/pyproject.toml"
        ]
        tar.extractall(home, wanted, filter="data")
    return home / root


def suite_of(peer: str, since: tuple[int, ...], request: pytest.FixtureRequest, home: Path) -> Path:
    """Unpack the tests of the installed peer; skip or fail the test if that is impossible.

    Parameters
    ----------
    peer : str
        The name of the distribution.
    since : tuple of int
        The oldest supported version.
    request, home
        The cache of pytest, and the directory to unpack to.
    """
    require("pip", "ipykernel", "pytest_jupyter")
    if tuple(map(int, version(peer).split(".")[:2])) < since:
        lack(f"the lists are of {peer} {'.'.join(map(str, since))} or newer")
    cache = getattr(request.config, "cache", None)  # none with -p no:cacheprovider
    try:
        archive = fetch(peer, cache.mkdir("peer-suite") if cache else home)
    except NoSuite as error:
        lack(f"{peer}'s source distribution is missing: {error}")
    return unpack(archive, home)


def environment(plugins: Path) -> dict[str, str]:
    """Return the environment without variables of this pytest run and of the user's Jupyter."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_", "JUPYTER_", "KBRIDGE_"))
    }
    return {**ours, "PYTHONPATH": str(plugins), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
