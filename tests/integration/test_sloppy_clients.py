"""Incomplete and invalid messages: kbridge accepts those that Jupyter's own servers accept."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.client import KernelClient, attach
from tests.support.jupyter_server import jupyter_server
from tests.support.require import require
from tests.support.server import TOKEN, Server
from tests.support.sloppy import CASES, Case
from tests.support.waiting import TIMEOUT

pytestmark = pytest.mark.kernel


class Gateway(Server):
    """A Jupyter Kernel Gateway, which writes no runtime file."""

    def _listening(self) -> int:
        assert self.process.poll() is None, f"the server went away:\n{self.tail()}"
        args = self.process.args
        assert isinstance(args, list)
        (port,) = [int(a.partition("=")[2]) for a in args if a.startswith("--port=")]
        with socket.socket() as probe:
            return port if probe.connect_ex(("127.0.0.1", port)) == 0 else 0


def kbridge(home: Path) -> Server:
    return Server(home, command=[sys.executable, "-m", "kbridge", "--ip=127.0.0.1"])


def plain_jupyter_server(home: Path) -> Server:
    require("jupyter_server")
    return jupyter_server(home, "--KbridgeExtension.enabled=False")


def extension(home: Path) -> Server:
    require("jupyter_server")
    return jupyter_server(home)


def kernel_gateway(home: Path) -> Server:
    require("kernel_gateway")
    options = ("--KernelGatewayApp.ip=127.0.0.1", f"--KernelGatewayApp.auth_token={TOKEN}")
    return Gateway(home, *options, command=[sys.executable, "-m", "kernel_gateway"])


Make = Callable[[Path], Server]


@pytest.fixture
def running(tmp_path: Path, make: Make) -> Iterator[Server]:
    require("ipykernel")
    server = make(tmp_path)
    try:
        yield server.start()
    finally:
        server.kill()


async def outcome(server: Server, kernel_id: str, case: Case) -> str:
    """Send the case, then a valid request on the same channel; return the reactions to both."""
    async with attach(server, kernel_id, case.dialect) as ws:
        try:
            await ws.ws.send(case.frame)
            good = await ws.send("comm_info_request", {})
            async with asyncio.timeout(TIMEOUT):
                answered = await answers(ws, good)
        except ConnectionClosed as end:
            return f"closed {end.rcvd.code if end.rcvd else ''}".strip()
    return "answered" if answered else "ignored"


async def answers(ws: KernelClient, good: str) -> bool:
    """Read until the reply to the valid request; return True if a reply to the case came before."""
    answered = False
    while True:
        frame = await ws.ws.recv()
        try:
            msg = ws.codec.decode(frame)
        except UnicodeDecodeError:  # a server forwarded text that is not UTF-8
            answered = True
            continue
        msg_type, parent = msg["header"]["msg_type"], msg["parent_header"].get("msg_id")
        answered = answered or msg_type == "kernel_info_reply"
        if msg_type == "comm_info_reply" and parent == good:
            return answered


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("make", [kbridge, extension])
async def test_kbridge_treats_invalid_requests_as_documented(running: Server) -> None:
    kernel_id = await asyncio.to_thread(running.start_kernel)
    wrong = []
    for case in CASES:
        found = await outcome(running, kernel_id, case)
        if found != case.outcome:
            wrong.append(f"{case.dialect}: {case.name}: {found}, not {case.outcome}")
    assert not wrong, "\n".join(wrong)
    log = running.log.read_text()
    assert "Traceback" not in log
    said = re.findall(r"Ignored (\d+) message\(s\) of clients", log)
    assert 1 <= len(said) <= 15, "one line a minute"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("make", [plain_jupyter_server, kernel_gateway])
async def test_kbridge_accepts_the_requests_that_peers_accept(running: Server) -> None:
    """The servers that clients were written for are the oracles of the table."""
    kernel_id = await asyncio.to_thread(running.start_kernel)
    wrong = []
    for case in CASES:
        if case.hangs:
            continue
        theirs = await outcome(running, kernel_id, case)
        taken = {
            "answered": case.outcome == "answered",
            "ignored": case.outcome in {"answered", "ignored"},
        }.get(theirs, True)
        if taken is bool(case.stricter):
            kept = "stricter for a reason" if case.stricter else "as lenient"
            wrong.append(f"{case.dialect}: {case.name}: {theirs} there; we are not {kept}")
    assert not wrong, "\n".join(wrong)


# -- programs that send such messages -------------------------------------------------------

CODE = "print('ran')"


def autogen(msg_type: str, content: dict[str, Any]) -> dict[str, Any]:
    """A message as AutoGen's JupyterKernelClient writes it."""
    return {
        "header": {
            "username": "autogen",
            "version": "5.0",
            "session": uuid.uuid4().hex,
            "msg_id": uuid.uuid4().hex,
            "msg_type": msg_type,
            "date": "2026-01-01T12:00:00.000000",  # naive
        },
        "parent_header": {},
        "channel": "shell",
        "content": content,
        "metadata": {},
        "buffers": {},
    }


def without_session(msg_id: str, **content: Any) -> dict[str, Any]:
    """An execute_request as OpenHands and the Kernel Gateway's own tests write it."""
    return {
        "header": {
            "username": "",
            "version": "5.0",
            "session": "",
            "msg_id": msg_id,
            "msg_type": "execute_request",
        },
        "parent_header": {},
        "channel": "shell",
        "content": {
            "code": CODE,
            "silent": False,
            "store_history": False,
            "user_expressions": {},
            **content,
        },
        "metadata": {},
        "buffers": {},
    }


PROGRAMS: dict[str, list[dict[str, Any]]] = {
    "AutoGen": [
        autogen("kernel_info_request", {}),
        autogen(
            "execute_request",
            {
                "code": CODE,
                "silent": False,
                "store_history": True,
                "user_expressions": {},
                "allow_stdin": False,
                "stop_on_error": True,
            },
        ),
    ],
    "OpenHands": [without_session(uuid.uuid4().hex, allow_stdin=False)],
    "the Kernel Gateway's tests": [without_session("fake-msg-id")],
}


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_careless_client_program_runs_its_cell(
    server: Server, kernel: str, program: str
) -> None:
    """Their frames, with `buffers` an object, a naive date or none, and no session in the URL."""
    async with attach(server, kernel, "legacy", session=None) as ws:
        for msg in PROGRAMS[program]:
            await ws.ws.send(json.dumps(msg))
            done = await ws.finish(msg["header"]["msg_id"])
            assert done.reply["status"] == "ok"
        assert done.text() == "ran\n"


async def test_replies_to_numeric_ids_go_to_their_clients(server: Server, kernel: str) -> None:
    """Two clients with message counters as ids receive the answers to their own requests."""
    async with (
        attach(server, kernel, "legacy") as one,
        attach(server, kernel, "v1") as other,
    ):
        for ws, msg_id in ((one, 1), (other, 2)):
            await ws.send(
                "execute_request",
                {"code": str(msg_id), "silent": False},
                header={"msg_id": msg_id},
            )
        for ws, msg_id in ((one, 1), (other, 2)):
            came = await ws.until(lambda m: m["header"]["msg_type"] == "execute_reply")
            assert came[-1]["parent_header"]["msg_id"] == msg_id
            assert [m for m in came if m["channel"] == "shell"] == came[-1:]
