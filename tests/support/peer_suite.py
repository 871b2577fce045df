"""The tests of the installed version of jupyter_server, run with another connection class.

The repository does not contain that suite: pip downloads its source distribution once per version,
and only its tests are unpacked, so that the installed code is tested. The suite runs in a separate
process with its own configuration.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.sdist import environment

__all__ = [
    "EXCEPTED",
    "NOT_HERE",
    "OURS",
    "SELECTED",
    "THEIRS",
    "WAITING",
    "Outcome",
    "page",
    "run",
]

SELECTED = {
    "tests/services/kernels": "the REST interface of kernels, their websockets, culling, restarts",
    "tests/services/sessions": "sessions, and the websockets of their kernels",
    "tests/base/test_websocket.py": "Jupyter Server's websocket handler",
    "tests/test_serialize.py": "legacy binary frames, written and read by kbridge's functions",
}
"""The parts of the suite that are run, with a description."""

EXCEPTED: dict[str, str] = {
    "tests/services/kernels/test_connection.py"
    "::test_no_fd_leak_on_buffer_restore_with_port_change": (
        "The test passes the ZeroMQ streams of Jupyter Server's class to the kernel manager, which"
        " buffers from them while no client is connected, and uses `on_recv` and `socket` of each."
        " A websocket of kbridge has no streams: the kernel's journal is the buffer, and the hub"
        " has the only sockets."
    ),
}
"""Tests of private parts of the other class, by exact id, with the reason why they do not apply."""

NOT_HERE: dict[str, str] = {}
"""Tests that fail with jupyter_server's own class too, by exact id, with the reason."""

WAITING: dict[str, str] = {
    "tests/services/kernels/test_cull.py::test_cull_connected": (
        "After the websocket has opened, the test gives the kernel about two seconds to become"
        " ready. Jupyter Server's class opens a websocket when the kernel has answered; kbridge's"
        " class opens it at once, and on a loaded machine a kernel needs longer."
    ),
}
"""Tests in which opening a websocket waits for the kernel, with the reason."""

OURS = ("kbridge.jupyter:ZMQChannelsWebsocketConnection", "kbridge.connection.messages")
THEIRS = (
    "jupyter_server.services.kernels.connection.channels:ZMQChannelsWebsocketConnection",
    "jupyter_server.services.kernels.connection.base",
)
"""A connection class, and the module of its functions."""

_PLUGIN = Path(__file__).with_name("peer_plugin.py")


@dataclass(frozen=True)
class Outcome:
    """The result of the suite.

    Attributes
    ----------
    collected : set of str
        The ids of all tests in the selected parts, including those that are left out.
    outcomes : dict
        For each test that ran: "passed", "failed in ..." or "skipped: ...".
    made : dict
        The number of connections of the class for each test.
    returncode : int
        The exit code of pytest.
    output : str
        The output of pytest.
    """

    collected: set[str]
    outcomes: dict[str, str]
    made: dict[str, int]
    returncode: int
    output: str

    @property
    def failed(self) -> dict[str, str]:
        """The tests that failed, with their outcome."""
        return {test: how for test, how in self.outcomes.items() if how.startswith("failed")}


def run(
    suite: Path,
    implementation: tuple[str, str] = OURS,
    *selected: str,
    leave_out: dict[str, str] | None = None,
    timeout: float = 1200,
) -> Outcome:
    """Run parts of the suite in three processes with a connection class and its functions.

    Parameters
    ----------
    suite : Path
        The directory of the unpacked suite.
    implementation : tuple of str
        `OURS` or `THEIRS`.
    *selected : str
        Paths or ids; all of `SELECTED` if none is given.
    leave_out : dict, optional
        The ids of tests that are collected, but not run.
    timeout : float
        Seconds after which the run is ended and subprocess.TimeoutExpired is raised.
    """
    plugins = suite.with_name("plugins")
    plugins.mkdir(exist_ok=True)
    shutil.copy(_PLUGIN, plugins)
    report = suite.with_name("report.json")
    report.unlink(missing_ok=True)
    connection, functions = implementation
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "--color=no", "--tb=short"),
            *("-c", "pyproject.toml", "--rootdir=.", "-o", "addopts=", "-p", "no:cacheprovider"),
            *("-p", "xdist", "-p", "pytest_timeout", "-n", "3", "--dist=worksteal"),
            *("-p", _PLUGIN.stem, f"--connection-class={connection}"),
            *(f"--functions-from={functions}", f"--report-to={report}"),
            *(f"--leave-out={test}" for test in leave_out or {}),
            *(f"--wait-for-kernel={test}" for test in WAITING),
            *(f"--basetemp={suite.with_name('tests')}", *(selected or SELECTED)),
        ],
        cwd=suite,
        env=environment(plugins),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert report.exists(), done.stdout
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return Outcome(
        collected=set(found["collected"]),
        outcomes=found["outcomes"],
        made=found["made"],
        returncode=done.returncode,
        output=done.stdout,
    )


def page() -> str:
    """Return the part of docs/peer-suite.md that shows the lists of this module."""
    return "\n".join(
        [
            "## Tests that run",
            "",
            *_table("part", "about", SELECTED),
            "",
            "## Tests that are left out",
            "",
            *_table("test", "why", EXCEPTED),
            "",
            "## Tests that fail with Jupyter Server's own class too",
            "",
            *_table("test", "why", NOT_HERE),
            "",
            "## Tests in which a websocket opens when the kernel has answered",
            "",
            *_table("test", "why", WAITING),
            "",
        ]
    )


def _table(first: str, second: str, rows: dict[str, str]) -> list[str]:
    if not rows:
        return ["None."]
    return [
        f"| {first} | {second} |",
        "|---|---|",
        *(f"| `{name}` | {text} |" for name, text in rows.items()),
    ]
