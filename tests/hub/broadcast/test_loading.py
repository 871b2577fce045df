"""Readers whose frames are only on disk: a ring of 64 KiB, and megabytes in files."""

import asyncio
import errno
import json
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kbridge.hub.broadcast import loading as module
from kbridge.hub.broadcast.cursor import Cursor
from kbridge.hub.settings import HubSettings
from kbridge.link.memory import MemoryClient
from kbridge.storage.history import History
from kbridge.storage.store import JournalStore, StoreSettings
from kbridge.wire.dialects import LEGACY, V1
from kbridge.wire.message import Channel
from tests.hub.rig import Rig, frames_of, received, texts
from tests.storage.harness import FailingDisk, SlowDisk
from tests.support.waiting import TIMEOUT

KIB = 1 << 10
MIB = 1 << 20
SETTINGS = HubSettings(
    limit_rate=False,
    journal_limit=64 * KIB,
    history_limit=0,
    burst_limit=0,
    acknowledge=False,
)
ID = "a-kernel"
LOG = logging.getLogger("kbridge.hub")


async def open_store(
    directory: Path, limit: int = 1 << 30, disk: Any = None, keep: Collection[str] = ()
) -> JournalStore:
    chosen = StoreSettings(directory, limit, 1 << 33, 0.0)
    return await JournalStore.open(chosen, owner="a test", keep=keep, log=LOG, disk=disk)


@pytest.fixture
async def store(tmp_path) -> AsyncIterator[JournalStore]:
    made = await open_store(tmp_path / "journal")
    yield made
    await made.aclose(keep=False)


@pytest.fixture
async def make_rig(store) -> AsyncIterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(chosen: HubSettings = SETTINGS) -> Rig:
        rigs.append(Rig(chosen, store=store))
        rigs[-1].prove()
        return rigs[-1]

    yield make
    for rig in rigs:
        await rig.hub.aclose()


@pytest.fixture
async def rig(make_rig) -> Rig:
    return make_rig()


@pytest.fixture
def history(store, rig) -> History:
    return store.history(ID)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not true():  # noqa: ASYNC110  # no event tells of all of these
            await asyncio.sleep(0)


async def fill(rig: Rig, store: JournalStore, *numbers: int, size: int = 5000) -> list[str]:
    """Print numbered texts, and let them be written; return them."""
    said = [f"{n:06}".ljust(size, ".") for n in numbers]
    for text in said:
        rig.say(rig.stream(text))
    await store.history(ID).flush()
    rig.kernel.drain()  # trims the memory
    assert rig.hub.journal.nbytes <= 2 * 64 * KIB
    return said


async def caught_up(rig: Rig, *cursors: Cursor) -> None:
    await until(lambda: all(c.place.seq == rig.hub.journal.next_seq for c in cursors))


def printed(client: MemoryClient, dialect: Any = V1) -> str:
    """Return the text that a client received, joined or not."""
    if dialect is V1:
        return "".join(texts(client))
    loaded = [json.loads(p)["content"] for _, p in frames_of(client.written)]
    return "".join(content["text"] for content in loaded if "text" in content)


@pytest.mark.parametrize("paced", [True, False])
@pytest.mark.parametrize("verbatim", [True, False])
@pytest.mark.parametrize("dialect", [V1, LEGACY])
async def test_from_the_start_everything_is_read(rig, store, dialect, paced, verbatim) -> None:
    said = await fill(rig, store, *range(1000))
    client, cursor = rig.attach(dialect=dialect, since="start", paced=paced, verbatim=verbatim)
    await caught_up(rig, cursor)
    assert printed(client, dialect) == "".join(said)
    rig.say(rig.stream("and now"))
    assert printed(client, dialect).endswith("and now"), "from memory again"


async def test_a_limit_of_the_rate_holds_on_disk_too(make_rig, store) -> None:
    rig = make_rig(
        HubSettings(
            journal_limit=64 * KIB,
            history_limit=0,
            burst_limit=0,
            acknowledge=False,
            iopub_data_rate_limit=100_000.0,
            rate_limit_window=1.0,
        )
    )
    said = "".join(await fill(rig, store, *range(400)))
    paced, _ = rig.attach(since="start")
    free, cursor = rig.attach(since="start", paced=False)
    await caught_up(rig, cursor)
    assert printed(free) == said
    for second in range(30):
        assert len(printed(paced)) <= 100_000 * (second + 1) + 20_000
        rig.clock.now += 1.0
        rig.fire_pace_timer()
        await asyncio.sleep(0)
    await until(lambda: printed(paced) == said)


async def test_behind_a_message_that_only_the_disk_has(rig, store) -> None:
    first = rig.stream("the one")
    rig.say(rig.stream("before"))
    rig.say(first)
    said = await fill(rig, store, *range(1000))
    assert rig.hub.journal.first_seq > 10
    client, cursor = rig.attach(since=first.msg_id)
    assert not client.written, "it is looked for"
    await until(lambda: bool(client.written))
    await caught_up(rig, cursor)
    assert printed(client) == "".join(said)


async def test_behind_a_message_that_nobody_knows_is_a_marker_and_everything(rig, store) -> None:
    said = await fill(rig, store, *range(100))
    client, cursor = rig.attach(since="no-such-id")
    await until(lambda: bool(client.written))
    await caught_up(rig, cursor)
    marker, *rest = texts(client)
    assert "output may be missing here" in marker
    assert "".join(rest) == "".join(said)


async def test_a_client_that_leaves_while_its_message_is_looked_for(rig, store) -> None:
    await fill(rig, store, *range(100))
    client, cursor = rig.attach(since="no-such-id")
    rig.hub.detach(cursor)
    _, second = rig.attach(since="start")
    await caught_up(rig, second)
    assert not client.written


async def test_a_session_comes_back_to_its_place_on_disk(rig, store) -> None:
    client, cursor = rig.attach("a-session")
    early = await fill(rig, store, *range(10))
    assert printed(client) == "".join(early)
    rig.hub.detach(cursor)
    said = await fill(rig, store, *range(10, 1000))
    back, again = rig.attach("a-session")
    await caught_up(rig, again)
    assert printed(back) == "".join(said)


async def test_private_frames_stay_private_on_disk(rig, store) -> None:
    one, first = rig.attach("one")
    two, second = rig.attach("two")
    one.stalled = two.stalled = True
    await fill(rig, store, 0)
    for cursor, code in ((first, "one"), (second, "two")):
        request = rig.request(code=code)
        rig.hub.submit(cursor, request)
        reply = rig.message(Channel.SHELL, "execute_reply", {"of": code}, request.header)
        rig.say(reply)
    await fill(rig, store, *range(1, 200))
    assert rig.hub.journal.first_seq > 10
    one.resume()
    two.resume()
    await caught_up(rig, first, second)
    for client, code in ((one, "one"), (two, "two")):
        replies = [m for m in received(client) if m.msg_type == "execute_reply"]
        assert [json.loads(m.content)["of"] for m in replies] == [code]


async def test_readers_at_one_place_share_a_load(rig, store, history, monkeypatch) -> None:
    said = await fill(rig, store, *range(1000))
    loads: list[int] = []
    read = history.read

    async def counted(place: Any, *more: Any) -> Any:
        loads.append(place.seq)
        return await read(place, *more)

    monkeypatch.setattr(history, "read", counted)
    readers = [rig.attach(since="start") for _ in range(5)]
    await caught_up(rig, *(cursor for _, cursor in readers))
    assert len(loads) <= 5000 * 1000 // (512 * KIB) + 3
    assert all(printed(client) == "".join(said) for client, _ in readers)


async def test_a_marker_is_only_for_the_reader_whose_place_is_unknown(rig, store) -> None:
    said = await fill(rig, store, *range(100))
    unknown, first = rig.attach(since="no-such-id")
    await until(lambda: bool(unknown.written))
    # Another reader, which has missed nothing, at the place that the marker is for; not paced, so
    # that it shares the loaded frames and not their rendering.
    client, second = rig.attach(since="start", paced=False)
    assert client.written, "the load is shared"
    await caught_up(rig, first, second)
    assert "output may be missing here" in printed(unknown)
    assert printed(client) == "".join(said)


async def test_a_marker_with_a_count_is_only_for_the_reader_that_missed_output(tmp_path) -> None:
    store = await open_store(tmp_path / "journal", limit=2 * MIB)
    rig = Rig(SETTINGS, store=store)
    rig.prove()
    said = await fill(rig, store, *range(1000))
    first = store.history(ID).next_full(0)
    assert first is not None
    assert first > 100
    late, one = rig.attach(since="start")
    await until(lambda: bool(late.written))
    client, two = rig.attach(since=str(rig.ack_origin + first - 1), paced=False)
    assert client.written, "the load is shared"
    await caught_up(rig, one, two)
    assert f"{first:,} messages" in printed(late)
    assert printed(client) == "".join(said)[-len(printed(client)) :]
    await rig.hub.aclose()
    await store.aclose(keep=False)


class Gate:
    """A disk that answers no read until it is opened, and then with `found` if that is given."""

    def __init__(self, history: History, monkeypatch: pytest.MonkeyPatch, found: Any = ...) -> None:
        self.opened = asyncio.Event()
        self.asked = 0
        self._found = found
        self._read = history.read
        monkeypatch.setattr(history, "read", self._wait)

    async def _wait(self, *args: Any) -> Any:
        self.asked += 1
        await self.opened.wait()
        return await self._read(*args) if self._found is ... else self._found


async def test_a_slow_disk_delays_only_those_that_read_from_it(
    rig, store, history, monkeypatch
) -> None:
    honest, _ = rig.attach()
    said = await fill(rig, store, *range(100))
    gate = Gate(history, monkeypatch)
    late, cursor = rig.attach(since="start")
    await until(lambda: gate.asked == 1)
    rig.say(rig.stream("now"))
    assert printed(honest) == "".join(said) + "now"
    assert not late.written
    gate.opened.set()
    await caught_up(rig, cursor)
    assert printed(late) == "".join(said) + "now"


async def test_a_reader_may_leave_while_it_waits(rig, store, history, monkeypatch) -> None:
    said = await fill(rig, store, *range(100))
    gate = Gate(history, monkeypatch)
    gone, cursor = rig.attach(since="start")
    stays, other = rig.attach(since="start")
    await until(lambda: gate.asked == 1)
    rig.hub.detach(cursor)
    gate.opened.set()
    await caught_up(rig, other)
    assert not gone.written
    assert printed(stays) == "".join(said)


async def test_the_kernel_may_end_while_a_reader_waits(rig, store, history, monkeypatch) -> None:
    await fill(rig, store, *range(100))
    gate = Gate(history, monkeypatch)
    client, _ = rig.attach(since="start")
    await until(lambda: gate.asked == 1)
    await rig.hub.aclose()
    gate.opened.set()
    await asyncio.sleep(0)
    assert client.closed
    assert not client.written


@pytest.mark.parametrize("answers", [True, False])
async def test_a_disk_that_cannot_be_read_is_a_gap(
    rig, store, history, monkeypatch, answers
) -> None:
    """A reader goes on in memory when the disk has nothing, or does not answer."""
    stalled, _ = rig.attach(verbatim=True)
    stalled.stalled = True  # memory keeps for it what it can
    said = await fill(rig, store, *range(100))
    gate = Gate(history, monkeypatch, found=None)
    if answers:
        gate.opened.set()
    else:
        monkeypatch.setattr(module, "PATIENCE", 0.0)
    client, cursor = rig.attach(since="start", verbatim=True)
    await caught_up(rig, cursor)
    marker, *rest = texts(client)
    assert f"{100 - len(rest)} messages" in marker
    assert rest == said[-len(rest) :]
    assert gate.asked == 1


class Time:
    """The time of the event loop, which a test can set forward as if the loop had not run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead = 0.0
        loop = asyncio.get_running_loop()
        real = loop.time
        monkeypatch.setattr(loop, "time", lambda: real() + self._ahead)

    async def passes(self, seconds: float) -> None:
        """Set the time forward, and let all timers fire that are due."""
        self._ahead += seconds
        for _ in range(5):
            await asyncio.sleep(0)


async def test_a_pause_of_the_process_loses_nothing(rig, store, history, monkeypatch) -> None:
    stalled, _ = rig.attach(verbatim=True)
    stalled.stalled = True  # memory keeps for it what it can
    time = Time(monkeypatch)
    said = await fill(rig, store, *range(100))
    gate = Gate(history, monkeypatch)
    client, cursor = rig.attach(since="start", verbatim=True)
    await until(lambda: gate.asked == 1)
    await time.passes(100 * module.PATIENCE)
    gate.opened.set()
    await caught_up(rig, cursor)
    assert texts(client) == said


async def test_a_reader_waits_for_a_silent_disk_while_memory_has_nothing_for_it(
    rig, store, history, monkeypatch
) -> None:
    time = Time(monkeypatch)
    said = await fill(rig, store, *range(100))
    journal = rig.hub.journal
    assert journal.first_seq == journal.next_seq
    gate = Gate(history, monkeypatch)
    client, cursor = rig.attach(since="start", verbatim=True)
    await until(lambda: gate.asked == 1)
    for _ in range(20):
        await time.passes(module.PATIENCE)
    assert texts(client) == []
    gate.opened.set()
    await caught_up(rig, cursor)
    assert texts(client) == said


async def test_a_reader_that_waits_for_a_silent_disk_goes_on_with_the_next_output(
    rig, store, history, monkeypatch
) -> None:
    time = Time(monkeypatch)
    await fill(rig, store, *range(100))
    gate = Gate(history, monkeypatch)
    client, cursor = rig.attach(since="start", verbatim=True)
    await until(lambda: gate.asked == 1)
    for _ in range(20):
        await time.passes(module.PATIENCE)
    rig.say(rig.stream("now"))
    for _ in range(20):
        await time.passes(module.PATIENCE)
    marker, text = texts(client)
    assert "100 messages" in marker
    assert text == "now"
    gate.opened.set()
    rig.say(rig.stream("and on"))
    await caught_up(rig, cursor)
    assert texts(client)[2:] == ["and on"]


async def test_who_waits_behind_other_readers_of_a_slow_disk_loses_nothing(
    rig, store, history, monkeypatch
) -> None:
    stalled, _ = rig.attach(verbatim=True)
    stalled.stalled = True  # memory keeps for it what it can
    time = Time(monkeypatch)
    said = await fill(rig, store, *range(60))
    disk = asyncio.Semaphore(0)
    read = history.read

    async def slow(*args: Any) -> Any:
        await disk.acquire()
        return await read(*args)

    monkeypatch.setattr(history, "read", slow)
    origin, first = rig.ack_origin, rig.hub.journal.next_seq - 60
    readers = [rig.attach(since=str(origin + first + n), verbatim=True) for n in range(8)]
    for _ in range(8):
        for _ in range(6):  # two loads at a time, so each takes longer than that
            await time.passes(module.PATIENCE / 10)
        answered = history.answered
        disk.release()
        await until(lambda answered=answered: history.answered > answered)
    await caught_up(rig, *(cursor for _, cursor in readers))
    for n, (client, _) in enumerate(readers):
        assert texts(client) == said[n + 1 :]


async def test_no_reader_waits_for_ever_when_all_loads_hang(
    rig, store, history, monkeypatch
) -> None:
    stalled, _ = rig.attach(verbatim=True)
    stalled.stalled = True  # memory keeps for it what it can
    time = Time(monkeypatch)
    said = await fill(rig, store, *range(60))
    gate = Gate(history, monkeypatch)
    origin, first = rig.ack_origin, rig.hub.journal.next_seq - 60
    readers = [rig.attach(since=str(origin + first + n), verbatim=True) for n in range(8)]
    await until(lambda: gate.asked == 2)
    for _ in range(12):
        await time.passes(module.PATIENCE / 10)
    await caught_up(rig, *(cursor for _, cursor in readers))
    for client, _ in readers:
        marker, *rest = texts(client)
        assert "messages" in marker
        assert rest == said[-len(rest) :]


async def test_a_message_is_looked_for_as_long_as_the_disk_answers(
    rig, store, history, monkeypatch
) -> None:
    time = Time(monkeypatch)
    first = rig.stream("first")
    rig.say(first)
    said = await fill(rig, store, *range(100))
    find = history.find
    gate = asyncio.Event()

    async def slow(*args: Any) -> Any:
        await gate.wait()
        return await find(*args)

    monkeypatch.setattr(history, "find", slow)
    client, cursor = rig.attach(since=first.msg_id, verbatim=True)
    for _ in range(3):
        for _ in range(6):
            await time.passes(module.PATIENCE / 10)
        await history.read(rig.hub.journal.oldest(), 1, 2)  # another reader
    gate.set()
    await until(lambda: bool(client.written))
    await caught_up(rig, cursor)
    assert texts(client) == said


async def test_a_message_is_not_looked_for_on_a_silent_disk(
    rig, store, history, monkeypatch
) -> None:
    time = Time(monkeypatch)
    first = rig.stream("first")
    rig.say(first)
    said = await fill(rig, store, *range(100))
    never = asyncio.Event()

    async def silent(*_args: Any) -> Any:
        await never.wait()

    monkeypatch.setattr(history, "find", silent)
    client, cursor = rig.attach(since=first.msg_id, verbatim=True)
    for _ in range(12):
        await time.passes(module.PATIENCE / 10)
    await caught_up(rig, cursor)
    marker, *rest = texts(client)
    assert "output may be missing here" in marker
    assert rest == ["first", *said]


async def test_who_stalls_gets_everything_and_delays_nobody(rig, store) -> None:
    stalled, slow = rig.attach(verbatim=True)
    honest, _ = rig.attach()
    stalled.stalled = True
    said = await fill(rig, store, *range(1000))
    assert printed(honest) == "".join(said)
    assert rig.hub.journal.nbytes <= 64 * KIB
    stalled.resume()
    await caught_up(rig, slow)
    assert texts(stalled) == said


async def test_one_large_frame_after_the_other_is_read(rig, store) -> None:
    said = await fill(rig, store, *range(4), size=MIB)
    client, cursor = rig.attach(since="start", verbatim=True)
    await caught_up(rig, cursor)
    assert texts(client) == said


async def test_a_turn_of_the_loop_writes_a_bounded_part(rig, store) -> None:
    said = await fill(rig, store, *range(1000))
    client, cursor = rig.attach(since="start")
    largest = 0
    while cursor.place.seq < rig.hub.journal.next_seq:
        before = len(client.written)
        await asyncio.sleep(0)
        largest = max(largest, len(client.written) - before)
    assert printed(client) == "".join(said)
    assert largest <= MIB


async def test_the_disk_is_told_once_of_all_messages_of_a_wake_up(
    rig, history, monkeypatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(history, "changed", lambda: told.append(rig.hub.journal.next_seq))
    rig.say(*(rig.stream(str(n)) for n in range(50)))
    assert told == [rig.hub.journal.next_seq]
    rig.kernel.drain()
    assert len(told) == 1, "nothing was said"


async def test_many_readers_at_many_places_all_get_on(rig, store) -> None:
    """More than loads are kept: one reader at least uses each of them."""
    messages = [rig.stream(f"{i:04}".ljust(5000, ".")) for i in range(600)]
    for msg in messages:
        rig.say(msg)
    await store.history(ID).flush()
    rig.kernel.drain()
    readers = [rig.attach(since=msg.msg_id, verbatim=True) for msg in messages[:400:10]]
    await until(lambda: all(client.written for client, _ in readers))
    await caught_up(rig, *(cursor for _, cursor in readers))
    for (client, _), first in zip(readers, range(1, 401, 10), strict=True):
        assert [text[:4] for text in texts(client)] == [f"{i:04}" for i in range(first, 600)]


async def test_an_input_request_goes_to_its_new_client_from_disk(rig, store) -> None:
    _, first = rig.attach("asking")
    request = rig.request()
    rig.hub.submit(first, request)
    question = rig.message(Channel.STDIN, "input_request", {"prompt": "?"}, request.header)
    taking, second = rig.attach("taking")
    taking.stalled = True
    rig.say(rig.stream("blocks"))
    rig.say(question)
    rig.hub.detach(first)
    rig.hub.detach(second)
    back, cursor = rig.attach("taking", since="start")
    back.stalled = True
    await fill(rig, store, *range(200))
    back.resume()
    await caught_up(rig, cursor)
    assert [m.msg_type for m in received(back)].count("input_request") == 1


# -- disks that fail or are small -----------------------------------------------------------------


def account(client: MemoryClient) -> tuple[list[int], int]:
    """Return the numbers of the texts that a client received, and how many are missing."""
    numbers, missing = [], 0
    for text in texts(client):
        if text.startswith("[kbridge: "):
            missing += int(text.removeprefix("[kbridge: ").split()[0].replace(",", ""))
        else:
            numbers.append(int(text[:6]))
    assert numbers == sorted(set(numbers)), "twice, or out of order"
    return numbers, missing


async def test_a_disk_that_fails_for_a_while_is_one_gap(tmp_path) -> None:
    disk = FailingDisk()
    store = await open_store(tmp_path / "journal", disk=disk)
    rig = Rig(SETTINGS, store=store)
    rig.prove()
    honest, _ = rig.attach(verbatim=True)
    client, cursor = rig.attach(verbatim=True)
    client.stalled = True
    for n in range(100):
        await fill(rig, store, n)
    disk.fail(errno.ENOSPC, "write")
    for n in range(100, 200):
        await fill(rig, store, n)
    assert not store.history(ID).active
    assert rig.hub.journal.nbytes <= 64 * KIB
    disk.heal()
    store.retry()
    await until(lambda: store.history(ID).active)
    for n in range(200, 300):
        await fill(rig, store, n)
    assert account(honest) == (list(range(300)), 0)
    client.resume()
    await caught_up(rig, cursor)
    numbers, missing = account(client)
    assert len(numbers) + missing == 300
    assert numbers[:100] == list(range(100))
    assert numbers[-100:] == list(range(200, 300))
    assert len([text for text in texts(client) if "journal_disk_limit" in text]) == 1
    await rig.hub.aclose()
    await store.aclose(keep=False)


async def test_a_disk_that_is_slow_to_write_delays_nobody(tmp_path) -> None:
    disk = SlowDisk()
    store = await open_store(tmp_path / "journal", disk=disk)
    rig = Rig(SETTINGS, store=store)
    rig.prove()
    client, _ = rig.attach(verbatim=True)
    disk.go.clear()
    for n in range(1000):
        rig.say(rig.stream(f"{n:06}".ljust(5000, ".")))
    assert account(client) == (list(range(1000)), 0)
    assert rig.hub.journal.nbytes > 4 * MIB, "not written yet"
    disk.go.set()
    await store.history(ID).flush()
    rig.kernel.drain()
    assert rig.hub.journal.nbytes <= 64 * KIB
    late, cursor = rig.attach(since="start", verbatim=True)
    await caught_up(rig, cursor)
    assert account(late) == (list(range(1000)), 0)
    await rig.hub.aclose()
    await store.aclose(keep=False)


async def test_a_directory_that_is_removed_is_a_gap(tmp_path) -> None:
    store = await open_store(tmp_path / "journal")
    rig = Rig(SETTINGS, store=store)
    rig.prove()
    client, cursor = rig.attach(verbatim=True)
    client.stalled = True
    for n in range(100):
        await fill(rig, store, n)
    shutil.rmtree(tmp_path / "journal")
    await fill(rig, store, 100)
    assert not store.history(ID).active
    store.retry()
    await until(lambda: store.history(ID).active)
    for n in range(101, 200):
        await fill(rig, store, n)
    client.resume()
    await caught_up(rig, cursor)
    numbers, missing = account(client)
    assert len(numbers) + missing == 200
    assert numbers[-99:] == list(range(101, 200))
    await rig.hub.aclose()
    await store.aclose(keep=False)


async def test_the_next_bridge_goes_on_with_the_same_journal(tmp_path) -> None:
    store = await open_store(tmp_path / "journal")
    rig = Rig(SETTINGS, store=store)
    rig.prove()
    said = await fill(rig, store, *range(200))
    end = rig.hub.journal.end()
    await rig.hub.aclose()
    await store.aclose(keep=True)
    store = await open_store(tmp_path / "journal", keep=[ID])
    rig = Rig(SETTINGS, adopted=True, store=store)
    assert rig.hub.journal.end().seq >= end.seq
    rig.prove()
    said += await fill(rig, store, *range(200, 400))
    client, cursor = rig.attach(since="start", verbatim=True)
    await caught_up(rig, cursor)
    assert [text for text in texts(client) if not text.startswith("[kbridge")] == said
    await rig.hub.aclose()
    await store.aclose(keep=False)


async def test_beyond_the_limit_of_the_disk_output_goes_first_and_state_stays(tmp_path) -> None:
    store = await open_store(tmp_path / "journal", limit=2 * MIB)
    rig = Rig(SETTINGS, store=store)
    rig.prove()
    for n in range(10):
        rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": "busy"}))
        await fill(rig, store, *range(100 * n, 100 * n + 100))
    client, cursor = rig.attach(since="start", verbatim=True)
    await caught_up(rig, cursor)
    numbers, missing = account(client)
    assert numbers == list(range(1000 - len(numbers), 1000))
    assert 200 < len(numbers) < 500
    assert missing == 1000 - len(numbers)
    assert sum(m.msg_type == "status" for m in received(client)) >= 10
    await rig.hub.aclose()
    await store.aclose(keep=False)


FAULT = st.one_of(
    st.tuples(st.just("say"), st.integers(1, 40)),
    st.tuples(st.just("flush"), st.just(0)),
    st.tuples(st.just("turn"), st.integers(1, 9)),
    st.tuples(st.just("stall"), st.just(0)),
    st.tuples(st.just("resume"), st.just(0)),
    st.tuples(st.just("fail"), st.just(0)),
    st.tuples(st.just("heal"), st.just(0)),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(FAULT, max_size=40), limit=st.integers(40_000, 1_000_000))
async def test_whatever_the_disk_does_all_is_received_or_counted(
    tmp_path_factory, steps, limit
) -> None:
    disk = FailingDisk()
    store = await open_store(tmp_path_factory.mktemp("journal"), limit, disk)
    rig = Rig(SETTINGS, store=store)
    rig.prove()
    client, cursor = rig.attach(verbatim=True)
    honest, _ = rig.attach(verbatim=True)
    said = 0
    for what, count in [*steps, ("heal", 0), ("say", 1)]:
        if what == "say":
            for n in range(said + 1, said + count + 1):
                rig.say(rig.stream(f"{n:06}".ljust(3000, ".")))
            said += count
        elif what == "flush":
            await store.history(ID).flush()
        elif what == "turn":
            for _ in range(count):
                await asyncio.sleep(0)
        elif what == "stall":
            client.stalled = True
        elif what == "resume":
            client.resume() if cursor.blocked else setattr(client, "stalled", False)
        elif what == "fail":
            disk.fail(errno.ENOSPC, "write")
        else:
            disk.heal()
            store.retry()
    client.resume() if cursor.blocked else setattr(client, "stalled", False)
    rig.kernel.drain()
    await caught_up(rig, cursor)
    assert account(honest) == (list(range(1, said + 1)), 0)
    numbers, missing = account(client)
    assert len(numbers) + missing == said
    await rig.hub.aclose()
    await store.aclose(keep=False)


# -- a model --------------------------------------------------------------------------------------

STEP = st.one_of(
    st.tuples(st.just("say"), st.integers(0, 2), st.integers(1, 30_000)),
    st.tuples(st.just("stall"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("resume"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("come back"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("flush"), st.just(0), st.just(0)),
    st.tuples(st.just("turn"), st.just(0), st.integers(1, 5)),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=60))
async def test_whoever_stalls_or_leaves_each_gets_all_in_order(tmp_path_factory, steps) -> None:
    store = await open_store(tmp_path_factory.mktemp("journal"))
    rig = Rig(SETTINGS, store=store)
    rig.prove()
    dialects = (V1, LEGACY, V1)
    readers = [rig.attach(str(i), dialects[i], verbatim=i != 2) for i in range(3)]
    owed = ["", "", ""]
    got = ["", "", ""]
    for i, (what, who, size) in enumerate(steps):
        client, cursor = readers[who]
        if what == "stall":
            client.stalled = True
        elif what == "resume":
            client.resume() if cursor.blocked else setattr(client, "stalled", False)
        elif what == "come back":
            if cursor.blocked:
                client.resume()
            rig.hub.detach(cursor)
            got[who] += printed(client, dialects[who])
            readers[who] = rig.attach(str(who), dialects[who], verbatim=who != 2)
        elif what == "flush":
            await store.history(ID).flush()
        elif what == "turn":
            for _ in range(size):
                await asyncio.sleep(0)
        else:
            text = f"{i}:".ljust(size, ".")
            rig.say(rig.stream(text))
            owed = [each + text for each in owed]
    for client, cursor in readers:
        client.resume() if cursor.blocked else setattr(client, "stalled", False)
    rig.kernel.drain()
    await caught_up(rig, *(cursor for _, cursor in readers))
    for i, (client, _) in enumerate(readers):
        assert got[i] + printed(client, dialects[i]) == owed[i]
    await rig.hub.aclose()
    await store.aclose(keep=False)
