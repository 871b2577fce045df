"""The scripts in tools/."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.require import require

ROOT = Path(__file__).parents[1]
OPERATIONS = {"message", "request", "reconnect", "start", "restart"}


@pytest.mark.kernel
@pytest.mark.slow
def test_count_calls_counts_every_operation() -> None:
    require("zmq")
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "count_calls.py", "--rounds=1", "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["operations"].keys() == OPERATIONS
    for name, counts in found["operations"].items():
        assert 5 < counts["modules"] < found["modules"], name
        assert counts["modules"] < counts["crossings"] < counts["calls"], name
        assert all(first < second for first, second in counts["both_ways"]), name


@pytest.mark.kernel
@pytest.mark.browser
@pytest.mark.slow
def test_the_recording_of_a_reload_can_be_made_again(tmp_path: Path) -> None:
    require("chromium", "playwright", "jupyterlab", "ipykernel", "labextension", "PIL")
    from PIL import Image

    path = tmp_path / "reload.gif"
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "record_reload.py", f"--output={path}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "12 of 12 with kbridge, 0 without" in done.stdout
    with Image.open(path) as picture:
        assert picture.format == "GIF"
        durations = []  # a slow machine takes few screenshots of the same seconds
        for number in range(picture.n_frames):
            picture.seek(number)
            durations.append(picture.info["duration"])
        assert len(durations) > 4
        assert sum(durations) > 1000 * (12 * 1.2 + 4)  # the cell, and the last frame
    assert path.stat().st_size < 1 << 20
