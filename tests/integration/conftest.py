"""Servers that tests may kill, and JupyterLab in a browser."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.gates import Gates
from tests.support.lab import Lab, Place, with_extension
from tests.support.require import require
from tests.support.restartable_server import RestartableServer

NODE = Path(__file__).parent / "node"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to the report of a failure what JupyterLab has done before."""
    report = yield
    if report.failed:
        used = getattr(item, "funcargs", {}).values()
        labs = [each.lab if isinstance(each, Place) else each for each in used]
        for lab in {each for each in labs if isinstance(each, Lab)}:
            report.sections.append(("JupyterLab", lab.history()))
    return report


@pytest.fixture
def own_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RestartableServer]:
    """A server for one test, which may kill it; afterwards it and its kernels are ended.

    It has the options that the module names in `SERVER_OPTIONS`.
    """
    require("ipykernel")
    made = RestartableServer(tmp_path, *getattr(request.module, "SERVER_OPTIONS", []))
    try:
        yield made
    finally:
        made.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Lab]:
    """JupyterLab for the tests of one module, with the options that it names in `LAB_OPTIONS`."""
    options = getattr(request.module, "LAB_OPTIONS", [])
    async with with_extension(tmp_path_factory.mktemp("lab"), *options) as place:
        yield place.lab


@pytest_asyncio.fixture(loop_scope="module")
async def lab(module_lab: Lab) -> AsyncIterator[Lab]:
    """JupyterLab without notebooks."""
    yield module_lab
    await module_lab.close_all()


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    """Gates in an empty directory."""
    (tmp_path / "gates").mkdir()
    return Gates(tmp_path / "gates")


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """Run `npm ci` once per lock file; the name of the directory depends on its content."""
    _, npm = require("node"), require("npm")
    files = [NODE / "package.json", NODE / "package-lock.json"]
    content = b"".join(f.read_bytes() for f in files)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kbridge-tests"
    home = cache / f"node-{hashlib.sha256(content).hexdigest()[:16]}"
    if not home.exists():
        cache.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=cache))
        for file in files:
            shutil.copy(file, fresh)
        command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(command, cwd=fresh, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        try:
            fresh.rename(home)
        except OSError:  # another worker was faster
            shutil.rmtree(fresh)
    return home / "node_modules"
