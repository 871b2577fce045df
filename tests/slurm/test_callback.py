"""The calls of jobs over real sockets, and those of attackers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kbridge.errors import Conflict, ListenError
from kbridge.slurm.callback import Callbacks, Endpoint, JobKeys
from kbridge.slurm.job import PORTS, Caller
from kbridge.slurm.kernel_job import KernelJob
from kbridge.slurm.script import address_text
from tests.support.certificate import self_signed
from tests.support.waiting import until

PORT_NUMBERS = {name: 5000 + number for number, name in enumerate(PORTS)}
SECRET = "the-key-of-the-kernel"
JOB = 42


class Desk:
    """A server with one kernel, whose job is 42."""

    def __init__(self, callbacks: Callbacks, certificate: str | None = None) -> None:
        self.callbacks = callbacks
        self.keys = JobKeys.new()
        launch = {"connection": {"key": SECRET}, "argv": []}
        self.job = KernelJob(JOB, self.keys, launch, callbacks.ip, callbacks.port)
        self.certificate = certificate
        callbacks.expect("one", self.keys, self.answer)

    async def answer(self, message: dict[str, Any], peer: str) -> dict[str, Any]:
        if message["job"] != self.job.job_id:
            raise Conflict("another job")
        if message["kind"] == "ended":
            return self.job.ended(message, by_itself=True, stay=60.0, now=time.monotonic())
        return getattr(self.job, message["kind"])(message, peer)  # type: ignore[no-any-return]

    def parameters(self, **changes: Any) -> dict[str, Any]:
        return {
            "kernel": "one",
            "addresses": [address_text(self.callbacks.ip, self.callbacks.port)],
            "certificate": self.certificate,
            "token": self.keys.token.hex(),
            "bridge": self.keys.public.hex(),
            **changes,
        }

    def caller(self, job: int = JOB, **changes: Any) -> Caller:
        return Caller(self.parameters(**changes), job)


async def call(caller: Caller, kind: str, **content: Any) -> dict[str, Any]:
    return await asyncio.to_thread(caller.call, kind, **content)


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    callbacks = await Callbacks.shared(Endpoint("127.0.0.1"), logging.getLogger("desk"))
    yield Desk(callbacks)
    callbacks.forget("one")


async def raw(desk: Desk, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(desk.callbacks.ip, desk.callbacks.port)
    writer.write(data)
    writer.write_eof()
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


# -- the job ------------------------------------------------------------------------------------


async def test_a_job_gets_its_launch_and_tells_its_ports(desk: Desk) -> None:
    caller = desk.caller()
    answer = await call(caller, "hello", generation=1)
    assert answer["launch"] == desk.job.launch
    assert answer["ip"] == "127.0.0.1"
    await call(caller, "ready", generation=1, ip="127.0.0.1", ports=PORT_NUMBERS)
    assert desk.job.connection == {"key": SECRET.encode(), "ip": "127.0.0.1", **PORT_NUMBERS}
    await call(caller, "ready", generation=1, ip="127.0.0.1", ports=PORT_NUMBERS)  # it repeats this
    assert await call(caller, "ended", generation=1, code=3, tail="x" * 9000) == {
        "stay": 60.0,
        "count": 4,
    }
    assert (desk.job.code, desk.job.tail) == (3, "x" * 8192)


async def test_the_next_kernel_runs_in_the_same_job(desk: Desk) -> None:
    caller = desk.caller()
    await call(caller, "hello", generation=1)
    await call(caller, "ready", generation=1, ip="127.0.0.1", ports=PORT_NUMBERS)
    await call(caller, "ended", generation=1, code=0, tail="")
    assert "launch" not in await call(caller, "hello", generation=2)
    desk.job.launch_next({"connection": {"key": SECRET}, "argv": ["next"]})
    assert (await call(caller, "hello", generation=2))["launch"]["argv"] == ["next"]
    assert desk.job.code is None
    await call(caller, "ended", generation=1, code=9, tail="")  # late
    assert desk.job.code is None
    desk.job.final = True
    assert (await call(caller, "ended", generation=2, code=0, tail=""))["stay"] == 0
    assert await call(caller, "hello", generation=3) == {"end": True, "count": 8}


async def test_another_process_goes_on_with_the_same_job(desk: Desk) -> None:
    caller = desk.caller()
    await call(caller, "hello", generation=1)
    info = json.loads(json.dumps(desk.job.info()))
    desk.job = KernelJob.load(info)
    desk.keys = desk.job.keys
    desk.callbacks.expect("one", desk.keys, desk.answer)
    await call(caller, "ready", generation=1, ip="127.0.0.1", ports=PORT_NUMBERS)
    assert desk.job.ports == PORT_NUMBERS


async def test_a_job_tries_all_addresses_of_the_replicas(desk: Desk) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        unused = f"127.0.0.1:{closed.getsockname()[1]}"
    caller = desk.caller(addresses=[unused, *desk.parameters()["addresses"]])
    assert "launch" in await call(caller, "hello", generation=1)


async def test_calls_over_tls(tmp_path: Path) -> None:
    made = self_signed(tmp_path)
    endpoint = Endpoint("127.0.0.1", 0, str(made.cert), str(made.key))
    callbacks = await Callbacks.shared(endpoint, logging.getLogger("desk"))
    desk = Desk(callbacks, made.cert.read_text())
    try:
        assert "launch" in await call(desk.caller(), "hello", generation=1)
        other = tmp_path / "other"
        other.mkdir()
        stranger = desk.caller(certificate=self_signed(other).cert.read_text())
        with pytest.raises(ConnectionError, match=r"(?i)certificate"):
            await call(stranger, "hello", generation=1)
        with pytest.raises(ConnectionError, match="ended"):  # without TLS
            await call(desk.caller(certificate=None), "hello", generation=1)
    finally:
        callbacks.forget("one")


# -- attackers ----------------------------------------------------------------------------------


async def test_nothing_secret_crosses_the_network(desk: Desk) -> None:
    """A listener between the job and the bridge reads neither keys nor ports."""
    seen = bytearray()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        answer = await raw(desk, line)
        seen.extend(line + answer)
        writer.write(answer)
        writer.close()

    middle = await asyncio.start_server(relay, "127.0.0.1", 0)
    port = middle.sockets[0].getsockname()[1]
    caller = desk.caller(addresses=[f"127.0.0.1:{port}"])
    assert (await call(caller, "hello", generation=1))["launch"]["connection"]["key"] == SECRET
    await call(caller, "ready", generation=1, ip="127.0.0.1", ports=PORT_NUMBERS)
    middle.close()
    assert len(seen) > 500
    for secret in (SECRET.encode(), desk.keys.token.hex().encode(), b"hello", b"shell_port"):
        assert secret not in bytes(seen)


async def test_without_the_token_nothing_is_answered(desk: Desk) -> None:
    for changes in ({"token": os.urandom(32).hex()}, {"bridge": os.urandom(32).hex()}):
        with pytest.raises(ConnectionError, match=r"token|signature"):
            await call(desk.caller(**changes), "hello", generation=1)
    with pytest.raises(ConnectionError, match="does not wait for that kernel"):
        await call(desk.caller(kernel="two"), "hello", generation=1)
    assert not desk.job.asked


async def test_the_token_works_for_one_sender(desk: Desk) -> None:
    await call(desk.caller(), "hello", generation=1)
    with pytest.raises(ConnectionError, match="used before by another sender"):
        await call(desk.caller(), "hello", generation=1)


async def test_another_job_is_refused(desk: Desk) -> None:
    with pytest.raises(ConnectionError, match="another job"):
        await call(desk.caller(job=43), "hello", generation=1)
    assert not desk.job.asked


async def test_a_message_that_is_sent_again_is_refused(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[bytes] = []
    sendall = socket.socket.sendall

    def note(self: socket.socket, data: bytes) -> None:
        lines.append(bytes(data))
        sendall(self, data)

    caller = desk.caller()
    monkeypatch.setattr(socket.socket, "sendall", note)
    await call(caller, "hello", generation=1)
    await call(caller, "ready", generation=1, ip="127.0.0.1", ports=PORT_NUMBERS)
    monkeypatch.undo()
    for line in lines:
        assert b"received before" in await raw(desk, line)
    changed = json.loads(lines[0])
    changed["sealed"] = changed["sealed"][:-8] + "AAAAAAA="
    assert b"signature" in await raw(desk, json.dumps(changed).encode() + b"\n")


@pytest.mark.parametrize(
    "ports",
    [
        None,
        [],
        {},
        {**PORT_NUMBERS, "shell_port": 0},
        {**PORT_NUMBERS, "shell_port": 65536},
        {**PORT_NUMBERS, "shell_port": "22"},
        {**PORT_NUMBERS, "shell_port": True},
        {**PORT_NUMBERS, "shell_port": PORT_NUMBERS["hb_port"]},
        {**PORT_NUMBERS, "ip": "10.0.0.1"},
    ],
)
async def test_ports_that_are_none(desk: Desk, ports: Any) -> None:
    caller = desk.caller()
    await call(caller, "hello", generation=1)
    with pytest.raises(ConnectionError, match="not the ports"):
        await call(caller, "ready", generation=1, ip="127.0.0.1", ports=ports)
    assert desk.job.ports == {}


async def test_a_job_cannot_name_another_address(desk: Desk) -> None:
    caller = desk.caller()
    await call(caller, "hello", generation=1)
    await call(
        caller, "ready", generation=1, ip="127.0.0.1", ports=PORT_NUMBERS, node_ip="10.0.0.1"
    )
    assert desk.job.connection["ip"] == "127.0.0.1"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"[" * 100_000 + b"\n",
        b"{}\n",
        b'{"kernel": ["one"], "public": "", "proof": "", "sealed": ""}\n',
        b'{"kernel": "one", "public": 5, "proof": 5, "sealed": 5}\n',
        b'{"kernel": "one", "public": "00", "proof": "x", "sealed": "x"}\n',
        json.dumps(
            {"kernel": "one", "public": "00" * 32, "proof": "\ud800", "sealed": "x"}
        ).encode()
        + b"\n",
        b"\xff\xfe\n",
        b"x" * 300_000 + b"\n",
    ],
)
async def test_other_bytes_do_no_harm(desk: Desk, line: bytes) -> None:
    reply = await raw(desk, line)
    assert reply == b"" or b"error" in reply
    assert "launch" in await call(desk.caller(), "hello", generation=1)


async def test_connections_that_say_nothing_do_not_use_the_server_up(desk: Desk) -> None:
    where = (desk.callbacks.ip, desk.callbacks.port)
    silent = [await asyncio.open_connection(*where) for _ in range(300)]
    # Beyond the limit they are closed at once.
    closed = [reader for reader, _ in silent if reader.at_eof() or reader.exception()]
    await until(
        lambda: (
            sum(reader.at_eof() or reader.exception() is not None for reader, _ in silent) >= 40
        ),
        "the server closes connections",
    )
    assert len(closed) < 300
    for _, writer in silent:
        writer.close()
    caller = desk.caller()

    async def answered() -> bool:
        try:
            await call(caller, "hello", generation=1)
        except ConnectionError:
            return False
        return True

    while not await answered():
        pass


async def test_the_socket_is_closed_with_the_last_kernel(desk: Desk) -> None:
    port = desk.callbacks.port
    desk.callbacks.expect("two", JobKeys.new(), desk.answer)
    desk.callbacks.forget("one")
    assert await raw(desk, b"\n")
    desk.callbacks.forget("two")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_an_address_that_cannot_be_used_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        endpoint = Endpoint("127.0.0.1", other.getsockname()[1])
        with pytest.raises(ListenError, match=r"callback_ip"):
            await Callbacks.shared(endpoint, logging.getLogger("desk"))
    with pytest.raises(ListenError, match="callback_certfile"):
        await Callbacks.shared(Endpoint("127.0.0.1", 0, "/no/such/file"), logging.getLogger("desk"))


async def test_keys_are_not_shown(desk: Desk) -> None:
    text = repr(desk.job)
    for secret in (SECRET, desk.keys.token.hex(), repr(desk.keys.token)):
        assert secret not in text
