"""`kbridge.client` over https, and with Jupyter Server and the extension."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kbridge.client import Stream, connect, sync
from kbridge.errors import NetworkError
from tests.support.certificate import Certificate, self_signed
from tests.support.jupyter_server import jupyter_server
from tests.support.server import TOKEN, Server
from tests.support.waiting import TIMEOUT

pytestmark = pytest.mark.kernel


@dataclass(frozen=True, slots=True)
class Target:
    """A running server, as a client names it."""

    url: str
    tls: ssl.SSLContext | None = None


def start(server: Server, certificate: Certificate | None) -> Target:
    server.start()
    if certificate is None:
        return Target(server.url)
    tls = ssl.create_default_context(cafile=str(certificate.cert))
    return Target(f"https://127.0.0.1:{server.port}", tls)


@pytest.fixture(params=["kbridge https", "jupyter", "jupyter https"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Target]:
    certificate = self_signed(tmp_path) if "https" in request.param else None
    options = []
    if certificate is not None:
        options = [f"--certfile={certificate.cert}", f"--keyfile={certificate.key}"]
    home = tmp_path / "home"
    home.mkdir()
    make = jupyter_server if request.param.startswith("jupyter") else Server
    server = make(home, *options)
    try:
        yield start(server, certificate)
    finally:
        server.kill()


ECHO = """
def opened(comm, message):
    @comm.on_msg
    def echo(message):
        comm.send({"size": len(message["buffers"][0])}, buffers=message["buffers"])

get_ipython().kernel.comm_manager.register_target("echo", opened)
"""


async def test_a_session(target: Target) -> None:
    async with (
        asyncio.timeout(TIMEOUT),
        connect(target.url, TOKEN, tls=target.tls) as client,
        await client.start_kernel() as kernel,
    ):
        execution = await kernel.execute("print(input('name? '))", input=lambda *_: "Ada")
        assert await execution.collect() == [Stream("stdout", "Ada\n")]
        await (await kernel.execute(ECHO)).collect()
        comm = await kernel.open_comm("echo")
        await comm.send(buffers=[b"\x00" * 70_000])
        assert (await anext(comm)).data == {"size": 70_000}
        assert (await kernel.comm_info("echo"))["comms"] == {comm.comm_id: {"target_name": "echo"}}
        assert (await kernel.comm_info("another"))["comms"] == {}
        [first, _] = await kernel.executions()
        assert first.id == execution.msg_id
        again = await kernel.follow(first.id)
        assert await again.collect() == [Stream("stdout", "Ada\n")]
        running = await kernel.execute("while True: print('a', flush=True)")
        await anext(running)
        await kernel.interrupt()
        assert (await running).status == "error"
        await kernel.restart()
        [output] = await (await kernel.execute("print('comm' in dir())")).collect()
        assert output == Stream("stdout", "False\n")
        await kernel.shutdown()


def test_without_asyncio(target: Target) -> None:
    with sync.connect(target.url, TOKEN, tls=target.tls) as client, client.start_kernel() as kernel:
        assert kernel.execute("print(6 * 7)").collect() == [Stream("stdout", "42\n")]
        assert kernel.comm_info()["comms"] == {}
        kernel.shutdown()


async def test_an_unknown_certificate_is_refused(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    server = Server(tmp_path, f"--certfile={certificate.cert}", f"--keyfile={certificate.key}")
    try:
        target = start(server, certificate)
        with pytest.raises(NetworkError, match="CERTIFICATE_VERIFY_FAILED"):
            async with asyncio.timeout(TIMEOUT), connect(target.url, TOKEN):
                pass
    finally:
        server.kill()
