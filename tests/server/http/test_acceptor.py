"""Accept connections, with and without free descriptors."""

import asyncio
import errno
import logging
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from kbridge.server.http.acceptor import Acceptor, acceptor_rate, raise_descriptor_limit
from kbridge.server.http.listen import bind_all
from tests.support.waiting import TIMEOUT

LOG = logging.getLogger("kbridge.test.accept")


class Full:
    """A socket that listens, in a process that has no descriptor left."""

    def __init__(self, sock: socket.socket, code: int = errno.EMFILE) -> None:
        self.sock = sock
        self.code = code
        self.asked = 0
        self.free = False

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()

    def accept(self) -> tuple[socket.socket, Any]:
        if self.free:
            return self.sock.accept()
        self.asked += 1
        raise OSError(self.code, "Too many open files")


class Harness:
    def __init__(self, sock: Any) -> None:
        self.came: asyncio.Queue[socket.socket] = asyncio.Queue()
        self.shed: list[int] = []
        self.sheds = 0
        self.waiting = False
        self.looked = asyncio.Event()
        self.asked = asyncio.Event()
        self.rate = acceptor_rate()
        self.acceptor = Acceptor([sock], self, self.rate, LOG)

    def admit(self, connection: socket.socket, _address: Any) -> None:
        self.came.put_nowait(connection)

    @property
    def busy(self) -> bool:
        self.looked.set()
        return self.waiting

    def close_oldest(self, count: int) -> int:
        self.shed.append(count)
        self.asked.set()
        return self.sheds


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    (sock,) = bind_all("127.0.0.1", 0)
    yield sock
    sock.close()


async def dial(sock: socket.socket) -> asyncio.StreamWriter:
    return (await asyncio.open_connection(*sock.getsockname()))[1]


async def test_all_waiting_connections_are_accepted(listening) -> None:
    harness = Harness(listening)
    dialled = [await dial(listening) for _ in range(20)]
    async with asyncio.timeout(TIMEOUT):
        taken = [await harness.came.get() for _ in dialled]
    assert len(taken) == 20
    harness.acceptor.stop()
    harness.acceptor.stop()
    with pytest.raises(ConnectionError):
        await asyncio.open_connection(*dialled[0].get_extra_info("peername"))
    for one in (*taken, *dialled):
        one.close()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS])
async def test_without_descriptors_accepting_pauses_and_logs_once(
    listening, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    full = Full(listening, code)
    harness = Harness(full)
    writer = await dial(listening)
    async with asyncio.timeout(TIMEOUT):
        await harness.asked.wait()
        before = full.asked
        for _ in range(100):  # turns of the loop
            await asyncio.sleep(0)
        assert full.asked <= before + 1, "the acceptor checks in every turn"
        for _ in range(2):
            harness.asked.clear()
            await harness.asked.wait()
    assert len(harness.shed) == full.asked
    full.free = True
    async with asyncio.timeout(TIMEOUT):
        (await harness.came.get()).close()
    writer.close()
    harness.acceptor.stop()
    said = [r.getMessage() for r in caplog.records if r.name == LOG.name]
    assert len(said) == 1
    assert "min_open_files_limit" in said[0]


async def test_without_descriptors_the_oldest_connections_are_closed(listening) -> None:
    full = Full(listening)
    harness = Harness(full)
    harness.sheds = 1
    writer = await dial(listening)
    async with asyncio.timeout(TIMEOUT):
        await harness.asked.wait()
        full.free = True
        (await harness.came.get()).close()
    writer.close()
    harness.acceptor.stop()


async def test_no_connection_is_accepted_while_requests_wait(listening) -> None:
    harness = Harness(listening)
    harness.waiting = True
    writer = await dial(listening)
    async with asyncio.timeout(TIMEOUT):
        for _ in range(3):
            harness.looked.clear()
            await harness.looked.wait()
            assert harness.came.empty()
        harness.waiting = False
        (await harness.came.get()).close()
    writer.close()
    harness.acceptor.stop()


async def test_the_acceptor_can_be_stopped_during_a_pause(listening) -> None:
    full = Full(listening)
    harness = Harness(full)
    writer = await dial(listening)
    async with asyncio.timeout(TIMEOUT):
        await harness.asked.wait()
    harness.acceptor.stop()
    assert listening.fileno() == -1
    writer.close()


def test_the_descriptor_limit_is_raised_up_to_the_hard_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resource = pytest.importorskip("resource")
    limits = [256, 4096]
    monkeypatch.setattr(resource, "getrlimit", lambda _what: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _what, new: limits.__setitem__(0, new[0]))
    assert raise_descriptor_limit(0) == 256
    assert raise_descriptor_limit(1024) == limits[0] == 1024
    assert raise_descriptor_limit(512) == limits[0] == 1024
    assert raise_descriptor_limit(65536) == limits[0] == 4096
    limits[:] = [256, resource.RLIM_INFINITY]
    assert raise_descriptor_limit(65536) == limits[0] == 65536
    limits[:] = [resource.RLIM_INFINITY] * 2
    assert raise_descriptor_limit(65536) == sys.maxsize


def test_a_system_that_refuses_keeps_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")

    def refuse(*_: Any) -> None:
        raise ValueError("no")

    monkeypatch.setattr(resource, "getrlimit", lambda _what: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_descriptor_limit(1024) == 256


def test_a_system_without_such_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert raise_descriptor_limit(1024) == sys.maxsize
