"""The writer with a registry that fails on request."""

import asyncio
import os
import threading

import pytest

from kbridge.errors import RegistryError
from kbridge.kernels.lifecycle.processes import ProcessState, start_id
from kbridge.kernels.registry.models import Claim, KernelRow, Owner, SessionRow
from kbridge.kernels.registry.writer import RegistryWriter

LOUD = 20
ME = Owner("127.0.0.1:8888/", "here", 1, "b")


class FakeRegistry:
    """Holds rows in memory; notes each transaction."""

    name = "the registry"

    def __init__(self):
        self.rows = {}
        self.writes = []
        self.fault = ""
        self.closed = 0
        self.claimed = Claim()
        self.may = threading.Event()
        self.may.set()

    def prepare(self):
        if self.fault:
            raise RegistryError(self.fault)

    def claim(self, owner, state_of):
        assert state_of(os.getpid(), start_id(os.getpid())) is ProcessState.RUNNING
        return self.claimed

    def write(self, owner, rows):
        assert self.may.wait(LOUD)
        self.writes.append(dict(rows))
        if self.fault:
            raise RegistryError(self.fault)
        self.rows |= rows
        self.rows = {key: row for key, row in self.rows.items() if row is not None}

    def close(self):
        self.closed += 1


def kernel(name="k", pid=7):
    return KernelRow(name, "python3", "used", pid, "b", "/log", "{}")


def session(name="s"):
    return SessionRow(name, "k", "a.ipynb", None, "notebook")


@pytest.fixture
def registry():
    return FakeRegistry()


@pytest.fixture
async def writer(registry):
    made = RegistryWriter(registry, ME, retry=0.01)
    yield made
    await made.aclose()


async def until(condition):
    async with asyncio.timeout(LOUD):
        while not condition():  # noqa: ASYNC110 - rows are written by a thread
            await asyncio.sleep(0.005)


async def test_rows_are_written(writer, registry):
    writer.put_kernel(kernel())
    writer.put_session(session())
    assert await writer.settled()
    assert registry.rows == {("kernel", "k"): kernel(), ("session", "s"): session()}
    assert len(registry.writes) == 1, "in one transaction"


async def test_what_is_as_it_was_is_not_written(writer, registry):
    for _ in range(3):
        writer.put_kernel(kernel())
        await writer.settled()
    writer.drop_kernel("never was")
    writer.drop_session("k")
    await writer.settled()
    assert len(registry.writes) == 1


async def test_rows_are_taken_out(writer, registry):
    writer.put_kernel(kernel())
    writer.put_session(session())
    await writer.settled()
    writer.drop_kernel("k")
    writer.drop_session("s")
    await writer.settled()
    assert registry.rows == {}


async def test_only_the_newest_is_written_of_what_changed_meanwhile(writer, registry):
    registry.may.clear()
    for pid in range(100):
        writer.put_kernel(kernel(pid=pid))
        await asyncio.sleep(0)
    registry.may.set()
    assert await writer.settled()
    assert registry.rows["kernel", "k"].pid == 99
    assert len(registry.writes) <= 2


async def test_a_fault_is_told_once_and_mended(writer, registry, caplog):
    writer.put_kernel(kernel("before"))
    await writer.settled()
    registry.fault = "the disk is full"
    writer.put_kernel(kernel("during"))
    writer.drop_session("s")
    assert not await writer.settled(), "no task waits for the registry"
    await until(lambda: len(registry.writes) > 5)
    assert caplog.text.count("the disk is full") == 1
    assert writer.failing
    registry.fault, registry.rows = "", {}
    await until(lambda: len(registry.rows) == 2)
    assert "can be written again" in caplog.text
    assert await writer.settled()
    assert (writer.unwritten, writer.failing) == (0, False)
    assert len(registry.rows) == 2


async def test_rows_and_ends_that_were_lost_are_written_again(writer, registry):
    for name in ("k", "ended"):
        writer.put_kernel(kernel(name))
    await writer.settled()
    writer.drop_kernel("ended")
    await writer.settled()
    registry.rows = {("kernel", "ended"): kernel("ended")}
    writer.rewrite()
    assert await writer.settled()
    assert registry.rows == {("kernel", "k"): kernel("k")}


async def test_each_spell_is_told(writer, registry, caplog):
    for number in range(2):
        registry.fault = "locked"
        writer.put_kernel(kernel(pid=number))
        await writer.settled()
        registry.fault = ""
        await until(lambda: not writer.unwritten)
    assert caplog.text.count("locked") == 2


async def test_nobody_waits_for_one_that_never_answers(registry, caplog):
    writer = RegistryWriter(registry, ME, timeout=0.01)
    registry.may.clear()
    writer.put_kernel(kernel())
    async with asyncio.timeout(LOUD):
        assert not await writer.settled()
        assert not await writer.settled()
        assert caplog.text.count("has not answered for 0.01 s") == 1, "told once"
        await writer.aclose()
    assert "1 change(s) could not be written" in caplog.text
    registry.may.set()
    await until(lambda: registry.rows)


async def test_what_was_taken_out_during_a_fault_is_gone_after_it(writer, registry):
    writer.put_kernel(kernel())
    await writer.settled()
    registry.fault = "locked"
    writer.drop_kernel("k")
    await writer.settled()
    registry.fault = ""
    await until(lambda: not registry.rows)


async def test_the_row_of_a_kernel_that_another_server_owns_is_not_deleted(writer, registry):
    registry.fault = "full"
    registry.may.clear()
    writer.put_kernel(kernel())
    writer.put_session(session())
    await until(lambda: writer.unwritten == 2)
    await asyncio.sleep(0)  # the write begins
    writer.forget_kernel("k")
    registry.may.set()
    await until(lambda: registry.writes)
    registry.fault = ""
    await until(lambda: registry.rows)
    assert await writer.settled()
    assert all(row is not None for write in registry.writes for row in write.values())
    assert list(registry.rows) == [("session", "s")]


async def test_the_end_writes_what_is_left(registry):
    writer = RegistryWriter(registry, ME, retry=3600)
    registry.fault = "locked"
    writer.put_kernel(kernel())
    await writer.settled()
    registry.fault = ""
    await writer.aclose()
    assert registry.rows == {("kernel", "k"): kernel()}
    await writer.aclose()
    assert registry.closed


async def test_the_end_says_what_could_not_be_written(registry, caplog):
    writer = RegistryWriter(registry, ME, retry=3600)
    registry.fault = "locked"
    writer.put_kernel(kernel())
    await writer.settled()
    await writer.aclose()
    assert "1 change(s) could not be written" in caplog.text


async def test_what_is_claimed_is_known(writer, registry, caplog):
    caplog.set_level("INFO")
    registry.claimed = Claim([kernel()], [session()], {"127.0.0.1:9999/": 3})
    claim = await writer.open()
    assert (claim.kernels, claim.sessions) == ([kernel()], [session()])
    assert "3 kernel(s)" in caplog.text
    assert "127.0.0.1:9999/" in caplog.text
    writer.put_kernel(kernel())
    await writer.settled()
    assert registry.writes == []
    writer.drop_kernel("k")
    await writer.settled()
    assert registry.writes == [{("kernel", "k"): None}]


async def test_a_registry_that_cannot_be_used_is_an_error_at_the_start(writer, registry):
    registry.fault = "not a database"
    with pytest.raises(RegistryError, match="not a database"):
        await writer.open()


async def test_without_a_registry_nothing_happens():
    writer = RegistryWriter()
    assert not writer.enabled
    assert (await writer.open()).kernels == []
    writer.put_kernel(kernel())
    writer.put_session(session())
    writer.drop_kernel("k")
    assert await writer.settled()
    assert not writer.has_kernel("k")
    await writer.aclose()
