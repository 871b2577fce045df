"""The audit log of a server as users start it, and of Jupyter Server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import attach
from tests.support.jupyter_server import jupyter_server
from tests.support.server import Server

pytestmark = pytest.mark.kernel

CODE = "print('noted')"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def run_code(server: Server, **options: Any) -> tuple[str, str]:
    """Run code on a new kernel; return the ids of the kernel and of the request."""
    kernel_id = (await server.call("POST", "/api/kernels", {"name": "python3"})).json()["id"]
    async with attach(server, kernel_id, session="a-session", **options) as client:
        execution = await client.execute(CODE)
    return kernel_id, execution.msg_id


async def test_code_is_noted_with_the_client(new_server: Any, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    server = new_server(f"--audit-log={path}", "--audit-code=text")
    kernel_id, msg_id = await run_code(server)
    assert server.stop() == 0  # writes the lines that wait
    [line] = lines(path)
    assert line.pop("time")
    assert line == {
        "kernel_id": kernel_id,
        "session": "a-session",
        "msg_id": msg_id,
        "user": None,
        "auth": line["auth"],
        "client": "127.0.0.1",
        "outcome": "forwarded",
        "code_bytes": len(CODE),
        "sha256": hashlib.sha256(CODE.encode()).hexdigest(),
        "code": CODE,
    }
    assert line["auth"] in {"header", "query"}
    assert path.stat().st_mode & 0o777 == 0o600


async def test_in_jupyter_server(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    server = jupyter_server(tmp_path, f"--KbridgeExtension.audit_log={path}")
    try:
        server.start()
        kernel_id, msg_id = await run_code(server)
        server.end()
    finally:
        server.kill()
    [line] = lines(path)
    assert (line["kernel_id"], line["msg_id"]) == (kernel_id, msg_id)
    assert line["user"]  # Jupyter Server gives each anonymous user a name
    assert line["client"] == "127.0.0.1"
    assert "code" not in line


@pytest.mark.parametrize(
    ("start", "option"),
    [(Server, "--audit-log"), (jupyter_server, "--KbridgeExtension.audit_log")],
    ids=["kbridge", "jupyter_server"],
)
async def test_a_server_without_its_audit_log_does_not_start(
    tmp_path: Path, start: Callable[..., Server], option: str
) -> None:
    server = start(tmp_path, f"{option}={tmp_path / 'missing' / 'audit.log'}")
    try:
        with pytest.raises(AssertionError, match=r"audit\.log cannot be opened"):
            server.start()
    finally:
        server.kill()
