"""jupyter_client's and ipykernel's own tests of connections, run with `kbridge.connect` in place.

As for jupyter_server's suite (`peer_suite`) the repository does not contain them: the source
distribution of the installed version is downloaded, and only its tests are unpacked.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.support.sdist import environment

__all__ = ["EXCEPTED", "IN_PLACE", "SELECTED", "Outcome", "page", "run"]

SELECTED = {
    "jupyter_client": {
        "tests/test_connect.py": "connection files, and the mixin under its clients and managers",
        "tests/test_consoleapp.py": "consoles that find a kernel's file, locally and through ssh",
        "tests/test_provisioning.py": "provisioners that choose ports and return connections",
        "tests/test_public_api.py": "the public names",
        "tests/test_transport_security.py": "CurveZMQ over TCP and ipc; clients without keys",
    },
    "ipykernel": {
        "tests/test_connect.py": "functions with which code in a kernel reads its own connection",
        "tests/test_curve.py": "kernels that encrypt, and the files that they write",
    },
}
"""The parts of each suite that are run, with a description."""

EXCEPTED: dict[str, dict[str, str]] = {"jupyter_client": {}, "ipykernel": {}}
"""Tests that are left out, by exact id, with the reason."""

IN_PLACE = {
    "kernel manager": "kbridge.connect.methods",
    "client": "kbridge.connect.methods",
    "kernel": "kbridge.connect.methods",
    "ports": "kbridge.connect.ports",
    "writing": "kbridge.connect.files",
    "finding": "kbridge.connect.find",
    "inside": "kbridge.connect.in_kernel",
}
"""The modules that the functions must come from during the tests."""

# ipykernel's tests end the ZeroMQ context of a kernel immediately, sometimes before its heartbeat
# thread has bound its socket; the suite turns warnings into errors.
_TOLERATED = "ignore:Exception in thread Heartbeat:pytest.PytestUnhandledThreadExceptionWarning"

_PLUGIN = Path(__file__).with_name("peer_connect_plugin.py")


@dataclass(frozen=True)
class Outcome:
    """The result of a suite: tests, outcomes, and the origin of the functions in use."""

    collected: set[str]
    outcomes: dict[str, str]
    in_place: dict[str, str]
    output: str


def run(peer: str, suite: Path, timeout: float = 150) -> Outcome:
    """Run the selected parts of a peer's suite in a separate process.

    Raises
    ------
    subprocess.TimeoutExpired
        If the run takes longer than `timeout`, in seconds.
    """
    plugins = suite.with_name("plugins")
    plugins.mkdir(exist_ok=True)
    shutil.copy(_PLUGIN, plugins)
    report = suite.with_name(f"{peer}.json")
    # Some tests create unix sockets in it, whose paths must be short.
    with tempfile.TemporaryDirectory(prefix="kb-", dir="/tmp") as home:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "--color=no", "--tb=short"),
                *("-c", "pyproject.toml", "--rootdir=.", "-o", "addopts="),
                *("-o", "asyncio_default_fixture_loop_scope=function"),
                *("-p", "no:cacheprovider", "-p", "pytest_asyncio.plugin", "-p", "pytest_timeout"),
                *(
                    "-W",
                    _TOLERATED,
                    "-p",
                    _PLUGIN.stem,
                    f"--report-to={report}",
                    f"--basetemp={home}/t",
                ),
                *(f"--leave-out={test}" for test in EXCEPTED[peer]),
                *SELECTED[peer],
            ],
            cwd=suite,
            env=environment(plugins),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
    assert report.exists(), done.stdout
    found = json.loads(report.read_text(encoding="utf-8"))
    return Outcome(
        collected=set(found["collected"]),
        outcomes=found["outcomes"],
        in_place=found["in_place"],
        output=done.stdout,
    )


def page() -> str:
    """Return the part of docs/peer-suite-connect.md that shows the lists of this module."""
    lines = []
    for peer, parts in SELECTED.items():
        left_out = [f"- `{test}` is left out: {why}" for test, why in EXCEPTED[peer].items()]
        lines += [f"## {peer}", "", "| part | about |", "|---|---|"]
        lines += [f"| `{part}` | {about} |" for part, about in parts.items()]
        lines += ["", *(left_out or ["Nothing is left out."]), ""]
    return "\n".join(lines)
