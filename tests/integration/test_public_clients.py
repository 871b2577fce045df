"""Clients that others wrote for Jupyter Server, unmodified."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.require import require
from tests.support.server import TOKEN, Server
from tests.support.waiting import TIMEOUT

pytestmark = pytest.mark.kernel

NODE = Path(__file__).parent / "node"


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_jupyterlab_services_work_under_node(server: Server, node_modules: Path) -> None:
    done = subprocess.run(
        [require("node"), str(NODE / "client.cjs")],
        env={
            "PATH": os.environ["PATH"],
            "NODE_PATH": str(node_modules),
            "KBRIDGE_URL": server.url,
            "KBRIDGE_TOKEN": TOKEN,
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stdout + done.stderr + server.tail()
    met = json.loads(done.stdout.splitlines()[-1])
    assert met["subprotocol"] == "v1.kernel.websocket.jupyter.org"
    assert "python3" in met["specs"]
    assert met["info"] == "python"
    assert met["output"] == {
        "status": "ok",
        "text": "to JupyterLab\n",
        "types": ["status", "execute_input", "stream", "execute_result", "status"],
    }
    assert (met["error"]["status"], "error" in met["error"]["types"]) == ("error", True)
    assert met["stdin"]["text"] == "typed\n"
    assert met["buffers"] == [[250, 2, 1]]
    assert met["restarted"]["text"] == "again\n"
    assert "autorestarting" not in met["statuses"], "a user would be told that the kernel died"
    assert met["id"] not in met["left"]


@pytest.mark.slow
def test_jupyter_kernel_client_works(server: Server) -> None:
    """In its default dialect, the legacy one.

    Its v1 fails with any server, Jupyter Server included: version 1.0.2 raises KeyError on each
    message that it receives. It runs in a separate process, because its threads leave resources
    behind.
    """
    require("jupyter_kernel_client")
    script = str(Path(__file__).with_name("pypi_client.py"))
    command = [sys.executable, script, server.url, TOKEN]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr + server.tail()
    met = json.loads(done.stdout.splitlines()[-1])
    *_, result = met["result"]["outputs"]
    assert streamed(met["result"]) == "to PyPI\n"
    assert result["data"] == {"text/plain": "42"}
    assert met["error"]["status"] == "error"
    assert streamed(met["stdin"]).endswith("typed\n")
    assert streamed(met["there"]) == ""
    assert met["there"]["outputs"][0]["data"]["text/plain"] == "{'a': 1}"
    assert streamed(met["restarted"]) == "again\n"
    assert server.request("GET", f"/api/kernels/{met['id']}").status == 404


def streamed(result: dict[str, Any]) -> str:
    """Return the text of all streams of a request; ipykernel may split a line."""
    return "".join(o["text"] for o in result["outputs"] if o["output_type"] == "stream")
