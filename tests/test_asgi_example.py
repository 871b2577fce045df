"""examples/asgi.py in uvicorn, in front of a real server and a real kernel."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from kbridge.unix_sockets import has_listener
from tests.support.client import KernelClient, dial
from tests.support.require import require
from tests.support.server import TOKEN, Reply, Server, free_port
from tests.support.waiting import TIMEOUT, eventually

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

EXAMPLES = Path(__file__).parents[1] / "examples"
MB = 1 << 20


class Application:
    """The application, on a port."""

    def __init__(self, port: int) -> None:
        self.port = port

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        try:
            connection.request(method, f"/kernels{path}", body, headers)
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def answers(self) -> bool:
        try:
            return self.request("GET", "/healthz").status == 200
        except OSError:
            return False

    def start_kernel(self) -> str:
        reply = self.request("POST", "/api/kernels", b"{}", Authorization=f"token {TOKEN}")
        assert reply.status == 201, reply
        return str(reply.json()["id"])

    def attach(
        self, kernel: str, *, token: str = TOKEN, **options: Any
    ) -> AbstractAsyncContextManager[KernelClient]:
        url = f"ws://127.0.0.1:{self.port}/kernels/api/kernels/{kernel}/channels?token={token}"
        return dial(url, **{"origin": f"http://127.0.0.1:{self.port}", **options})


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    require("ipykernel", "starlette", "uvicorn", "httpx")
    home = tmp_path_factory.mktemp("asgi")
    environment = Server(home).environment
    running: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="kb-", dir="/tmp") as short:
        sock, port = Path(short) / "sock", free_port()
        programs = (
            ["kbridge", f"--sock={sock}", "--base-url=/kernels/"],
            ["uvicorn", "asgi:app", f"--app-dir={EXAMPLES}", f"--port={port}"],
        )
        try:
            with (home / "log").open("wb") as log:
                for name, *options in programs:
                    more = ["--ws=websockets-sansio"] if name == "uvicorn" else []
                    running.append(
                        subprocess.Popen(
                            [sys.executable, "-m", name, *options, *more],
                            cwd=home,
                            env=environment | {"KBRIDGE_SOCK": str(sock)},
                            stdout=log,
                            stderr=log,
                        )
                    )
            eventually(lambda: sock.exists() and has_listener(sock), f"it listens: {home}/log")
            found = Application(port)
            eventually(found.answers, f"the application answers, see {home}/log")
            yield found
        finally:
            for process in reversed(running):
                process.terminate()
            for process in reversed(running):
                process.wait(TIMEOUT)


async def test_a_kernel_runs_code(application: Application) -> None:
    kernel = await asyncio.to_thread(application.start_kernel)
    async with (
        application.attach(kernel) as one,
        application.attach(kernel, dialect="legacy") as two,
    ):
        assert (await one.execute(f"# {'x' * MB}\nprint('y' * {MB})")).text() == "y" * MB + "\n"
        assert (await two.execute("print('again')")).text() == "again\n"


async def test_close_codes_pass(application: Application) -> None:
    kernel = await asyncio.to_thread(application.start_kernel)
    async with application.attach(kernel) as client:
        await client.execute("pass")
        reply = await asyncio.to_thread(
            application.request,
            "DELETE",
            f"/api/kernels/{kernel}",
            Authorization=f"token {TOKEN}",
        )
        assert reply.status == 204
        assert (await client.closed())[0] == 1012


async def test_the_server_refuses_through_the_application(application: Application) -> None:
    """Wrong tokens, pages of other origins, and requests that are not JSON."""
    kernel = await asyncio.to_thread(application.start_kernel)
    for refused in ({"token": "wrong"}, {"origin": "http://elsewhere.example.org"}):
        with pytest.raises(InvalidStatus, match="403"):
            async with application.attach(kernel, **refused):
                pass
    for body in (b"x" * MB, json.dumps({"name": "of-nobody"}).encode()):
        reply = await asyncio.to_thread(
            application.request, "POST", "/api/kernels", body, Authorization=f"token {TOKEN}"
        )
        assert reply.status in {400, 404}
        assert reply.json()["message"]
    page = await asyncio.to_thread(application.request, "GET", "/", Accept="text/html")
    assert page.status == 302
    location = {name.lower(): value for name, value in page.headers.items()}["location"]
    assert location.startswith("/kernels/login")
