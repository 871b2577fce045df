"""Frameworks for agents, in the versions that docs/agents.md names, run code on kernels."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import ServerFactory
from tests.support.environment import environment
from tests.support.server import TOKEN, Server, free_port
from tests.support.waiting import TIMEOUT
from tests.test_docs import ROOT, code_blocks

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(900)]

PAGE = ROOT / "docs" / "agents.md"
PROGRAMS = Path(__file__).parent / "frameworks"
CACHE = ROOT / ".cache" / "frameworks"


def version(name: str) -> str:
    """Return the requirement for the version of a package that the page names."""
    [found] = re.findall(rf"^\| {re.escape(name)} ([\d.]+) ", PAGE.read_text(), re.MULTILINE)
    return f"{name}=={found}"


def run(command: list[str], home: Path, stdin: str = "", **more: str) -> str:
    """Run a program; return what it prints."""
    env: Mapping[str, str] = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "KBRIDGE_", "KG_"))},
        "JUPYTER_PLATFORM_DIRS": "1",
        **{f"JUPYTER_{kind}_DIR": str(home / kind) for kind in ("RUNTIME", "CONFIG", "DATA")},
        **more,
    }
    done = subprocess.run(
        command,
        cwd=home,
        env=env,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_autogen(server: Server, tmp_path: Path) -> None:
    """The program of the page, with another port."""
    extra = version("autogen-ext").replace("==", "[docker-jupyter-executor]==")
    python = environment(CACHE, (extra,))
    [program] = [c for c in code_blocks(PAGE, "python") if "autogen" in c]
    assert "port=8888" in program
    program = program.replace("port=8888", f"port={server.port}")
    printed = run([str(python), "-c", program], tmp_path, KBRIDGE_TOKEN=TOKEN)
    assert printed.startswith("0 42\n")
    assert "\n1 \nERROR: ERROR: ZeroDivisionError: division by zero\n" in printed


def test_smolagents(tmp_path: Path) -> None:
    python = environment(CACHE, (version("smolagents").replace("==", "[docker]=="),))
    [program] = [c for c in code_blocks(PAGE, "python") if "smolagents" in c]
    [dockerfile] = re.findall(r'"""\\\n(.*?)"""', program, re.DOTALL)
    command = [str(python), str(PROGRAMS / "smolagents_docker.py"), str(free_port())]
    found = json.loads(run(command, tmp_path, dockerfile, KBRIDGE_PYTHON=sys.executable))
    assert (found["logs"], found["output"]) == ("hello\n", "42")
    assert "ZeroDivisionError" in found["failure"]
    assert found["final"] == [7, True]


def test_openhands(new_server: ServerFactory, tmp_path: Path) -> None:
    """The command of the page, and OpenHands' own client."""
    python = environment(
        CACHE,
        ("tornado", "tenacity"),
        ("--no-deps", "--ignore-requires-python", version("openhands-ai")),
    )
    [command] = re.findall(r"^kbridge (kernelgateway .*)$", PAGE.read_text(), re.MULTILINE)
    program, *options = [arg for arg in command.split() if not arg.endswith("port=8888")]
    server = new_server(*options, command=[sys.executable, "-m", "kbridge", program])
    client = [str(python), str(PROGRAMS / "openhands_client.py"), f"127.0.0.1:{server.port}"]
    nothing, printed, shown, failed, late = json.loads(run(client, tmp_path))
    assert nothing["text"] == "[Code executed successfully with no output]"
    assert printed["text"] == "42\n"
    assert "ZeroDivisionError" in failed["text"]
    assert shown["images"] == ["data:image/png;base64,AAAA"]
    assert "timed out" in late["text"]
