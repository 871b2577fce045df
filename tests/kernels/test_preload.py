"""The modules that the first kernel needs are imported once the server listens."""

import os
import re
import subprocess
import sys

import pytest

from tests.support.server import PEER, Server
from tests.support.waiting import TIMEOUT, eventually

SCRIPT = """
import asyncio, sys
from kbridge.kernels.preload import preload
def loaded(): return [name in sys.modules for name in ("psutil", "sqlalchemy", "kernelspec")]
assert loaded() == [False, False, False]
sys.modules["ipykernel"] = sys.modules["IPython"] = None  # not installed
asyncio.run(preload(registry=False))
assert loaded() == [True, False, False]
asyncio.run(preload(registry=True))
assert loaded() == [True, True, False]
"""

# Modules of the same names, which fail with other errors than ImportError.
BROKEN = """
import asyncio, sys
from kbridge.kernels.preload import preload
asyncio.run(preload(registry=True))
assert "sqlalchemy" in sys.modules
"""


def test_modules_that_are_missing_or_not_needed_are_left_out() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=TIMEOUT
    )
    assert not done.returncode, done.stderr


def test_modules_that_fail_while_they_are_imported_end_nothing(tmp_path) -> None:
    (tmp_path / "IPython.py").write_text("raise AttributeError('of another version')")
    (tmp_path / "ipykernel.py").write_text("this is not Python")
    (tmp_path / "psutil.py").write_text("raise NotImplementedError('this platform')")
    done = subprocess.run(
        [sys.executable, "-c", BROKEN],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert not done.returncode, done.stderr


@pytest.mark.skipif(PEER, reason="kbridge only")
def test_a_server_that_listens_loads_what_its_first_kernel_needs(tmp_path) -> None:
    server = Server(tmp_path, env={"PYTHONPROFILEIMPORTTIME": "1"}).start()
    try:
        for name in (
            "ipykernel.connect",
            "psutil._common",
            "IPython.core",
            "sqlalchemy.dialects.sqlite.base",
        ):
            loaded = re.compile(rf"\| +{re.escape(name)}$", re.MULTILINE)
            eventually(
                lambda loaded=loaded: loaded.search(server.log.read_text()), f"{name} is loaded"
            )
    finally:
        server.stop()
