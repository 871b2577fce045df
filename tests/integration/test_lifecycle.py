"""Kernels that start, restart, die, never answer and end, seen from a websocket."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import uuid
from collections.abc import Callable

import psutil
import pytest

from tests.support.client import KernelClient, attach
from tests.support.server import _COMMAND, Server, gone
from tests.support.waiting import eventually

pytestmark = pytest.mark.kernel


async def pid_of(ws: KernelClient) -> int:
    return int((await ws.execute("import os; print(os.getpid())")).text())


def is_status(state: str, msg: dict[str, object]) -> bool:
    content = msg["content"]
    return isinstance(content, dict) and content.get("execution_state") == state


@pytest.mark.slow
async def test_an_execute_right_after_a_restart_loses_no_output(
    server: Server, own_kernel: str
) -> None:
    async with (
        attach(server, own_kernel, "v1") as ws,
        attach(server, own_kernel, "legacy") as viewer,
    ):
        pid = await pid_of(ws)
        for i in range(10):
            reply = await server.call("POST", f"/api/kernels/{own_kernel}/restart")
            assert reply.status == 200, reply
            assert reply.json()["id"] == own_kernel
            done = await ws.execute(f"print({i})\nimport os; os.getpid()")
            assert done.types == [
                *("busy", "execute_input", "stream", "execute_result", "idle"),
            ], (i, ws.story())
            assert done.text() == f"{i}\n"
            now = int(done.of("execute_result")[0]["content"]["data"]["text/plain"])
            assert now != pid, "the old kernel answered"
            pid = now
            assert (await viewer.finish(done.msg_id, reply=False)).types == done.types
        states = [m["content"].get("execution_state") for m in ws.seen]
        # `restarting` means a crash: JupyterLab would say that the kernel appears to have died.
        assert "restarting" not in states


async def test_a_restart_is_announced_to_clients(
    server: Server, own_kernel: str, dialect: str
) -> None:
    async with attach(server, own_kernel, dialect) as ws:
        await ws.execute("kept = 1")
        assert (await server.call("POST", f"/api/kernels/{own_kernel}/restart")).status == 200
        *_, told = await ws.until(lambda m: is_status("starting", m))
        assert told["channel"] == "iopub"
        done = await ws.execute("kept")
        assert done.reply["ename"] == "NameError"


async def test_a_kernel_that_dies_is_restarted(
    server: Server, own_kernel: str, dialect: str
) -> None:
    async with attach(server, own_kernel, dialect) as ws:
        pid = await pid_of(ws)
        await ws.start("import os; os._exit(1)")
        *_, told = await ws.until(lambda m: is_status("restarting", m))
        assert told["channel"] == "iopub"
        assert await pid_of(ws) != pid

        def is_idle() -> bool:
            model = server.request("GET", f"/api/kernels/{own_kernel}").json()
            return bool(model["execution_state"] == "idle")

        await asyncio.to_thread(eventually, is_idle, "the kernel is idle")


async def test_a_shutdown_closes_the_websockets(
    server: Server, own_kernel: str, dialect: str
) -> None:
    async with attach(server, own_kernel, dialect) as ws:
        pid = await pid_of(ws)
        reply = await server.call("DELETE", f"/api/kernels/{own_kernel}")
        assert (reply.status, reply.body) == (204, b"")
        await ws.closed()
    assert (await server.call("GET", f"/api/kernels/{own_kernel}")).status == 404
    assert (await server.call("DELETE", f"/api/kernels/{own_kernel}")).status == 404
    eventually(lambda: gone(pid), "the kernel's process is gone")


async def test_a_websocket_opens_at_once_on_a_kernel_that_never_answers(
    server: Server, dialect: str
) -> None:
    kernel_id = (await server.call("POST", "/api/kernels", {"name": "mute"})).json()["id"]
    try:
        # The server would wait 60 s for the kernel; the handshake must not wait.
        async with attach(server, kernel_id, dialect, open_timeout=30) as ws:
            await ws.send("kernel_info_request", {})
            alive = await ws.ws.ping()
            await alive
    finally:
        await server.call("DELETE", f"/api/kernels/{kernel_id}")


async def test_a_kernel_that_cannot_start_is_a_500(server: Server) -> None:
    before = len((await server.call("GET", "/api/kernels")).json())
    reply = await server.call("POST", "/api/kernels", {"name": "broken"})
    assert reply.status == 500
    answer = reply.json()
    assert "this kernel has no engine" in answer["message"]
    assert answer["reason"]
    assert len((await server.call("GET", "/api/kernels")).json()) == before


async def test_an_unknown_kernel_is_a_404(server: Server) -> None:
    reply = await server.call("GET", f"/api/kernels/{uuid.uuid4()}/channels")
    assert reply.status == 404
    assert set(reply.json()) >= {"reason", "message"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no shell that ignores signals")
async def test_kernels_of_a_server_in_the_background_can_be_interrupted(
    new_server: Callable[..., Server],
) -> None:
    """A shell without job control starts commands that end in `&` with SIGINT ignored."""
    ignoring = ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    server = new_server(command=[*ignoring, *_COMMAND])
    told = (
        "import signal; print(signal.getsignal(signal.SIGINT), flush=True);"
        " open('told', 'w').close()"
    )
    spec = server.home / "data" / "kernels" / "teller" / "kernel.json"
    spec.parent.mkdir()
    argv = [sys.executable, "-c", f"{told}; signal.pause()", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "teller", "language": "python"}))
    kernel_id = server.start_kernel("teller")
    process = psutil.Process(
        next(p.pid for p, path in server.started() if kernel_id in path and p.is_running())
    )
    eventually((server.home / "told").exists, "the kernel has told its handler")
    log = server.home / "runtime" / f"kernel-{kernel_id}.log"
    assert "default_int_handler" in eventually(log.read_text, "the kernel's log is written")
    server.process.send_signal(signal.SIGINT)
    assert server.request("POST", f"/api/kernels/{kernel_id}/interrupt").status == 204
    eventually(
        lambda: "KeyboardInterrupt" in log.read_text() or not process.is_running(), "it ends"
    )
    assert server.request("GET", "/api").status == 200, "the server itself ignores the signal"
    assert server.stop() == 0
