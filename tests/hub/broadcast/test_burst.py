"""A burst that is larger than the journal: a client that keeps reading loses no output."""

import asyncio
import itertools
import logging

import pytest

from kbridge.flow.journal import Journal
from kbridge.flow.pace import Pace
from kbridge.hub.broadcast import burst as module
from kbridge.hub.broadcast.burst import PATIENCE, Allowance, Burst
from kbridge.hub.broadcast.client_sessions import ClientSessions
from kbridge.hub.settings import HubSettings
from kbridge.link.memory import MemoryClient
from kbridge.storage.store import JournalStore, StoreSettings
from kbridge.wire.dialects import V1
from kbridge.wire.message import Channel
from tests.hub.rig import Rig, StoppedClock, received, texts
from tests.support.waiting import TIMEOUT

MIB = 1 << 20
LIMIT = 8 * MIB
BURST = 64 * MIB
SETTINGS = HubSettings(
    limit_rate=False, journal_limit=LIMIT, history_limit=0, burst_limit=BURST, acknowledge=False
)


@pytest.fixture
async def rig():
    made = Rig(SETTINGS)
    made.prove()
    yield made
    await made.hub.aclose()


def show(rig: Rig, *numbers: int, size: int = MIB // 2) -> None:
    """Send numbered images from the kernel."""
    for n in numbers:
        data = {"image/png": "A" * size, "text/plain": f"{n}"}
        rig.say(rig.message(Channel.IOPUB, "display_data", {"data": data}))


def shown(client) -> list[int]:
    """Return the numbers of the images that a client received."""
    found = [m for m in received(client) if m.msg_type == "display_data"]
    return [int(m.content.rpartition(b'"text/plain":')[2].strip(b' "}')) for m in found]


class Slow(MemoryClient):
    """A client that accepts one write at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.stalled = True

    def read(self) -> None:
        """Take the last write."""
        self.written += self._pending
        self._pending = b""
        self.on_writable()


def stalled(rig: Rig, session: str = ""):
    client = Slow()
    return client, rig.hub.attach(client, V1, session)


def read(rig: Rig, client) -> None:
    """Let a reader accept one write."""
    client.read()
    rig.kernel.drain()


def wait(rig: Rig, seconds: float) -> None:
    """Let time pass, and check the readers every second."""
    for step in [1.0] * int(seconds) + [seconds % 1]:
        rig.clock.now += step
        rig.kernel.drain()


async def read_all(rig: Rig, client) -> None:
    """Read until everything has arrived."""
    client.resume()
    attachment = next(a for a in rig.hub.cursors if a.link is client)
    async with asyncio.timeout(TIMEOUT):
        while attachment.place.seq < rig.hub.journal.next_seq:  # noqa: ASYNC110  # its turns
            await asyncio.sleep(0)


async def test_a_slow_reader_alone_loses_nothing(rig) -> None:
    client, _ = stalled(rig)
    for n in range(60):
        show(rig, 2 * n, 2 * n + 1)
        read(rig, client)
    assert rig.hub.journal.nbytes > 2 * LIMIT
    await read_all(rig, client)
    assert shown(client) == list(range(120))
    assert texts(client) == []
    rig.kernel.drain()
    assert rig.hub.journal.nbytes <= LIMIT
    assert rig.hub.journal.spare == 0


@pytest.mark.parametrize("slow", [False, True])
async def test_a_frame_above_the_limit_may_be_followed_by_others_at_once(rig, slow) -> None:
    """A printed text of 100 MB may arrive together with the end of its cell."""
    client, _ = stalled(rig) if slow else rig.attach()
    data = {"image/png": "A" * 2 * LIMIT, "text/plain": "1"}
    image = rig.message(Channel.IOPUB, "display_data", {"data": data})
    idle = rig.message(Channel.IOPUB, "status", {"execution_state": "idle"})
    rig.say(rig.stream("begin"), image, idle)
    if slow:
        await read_all(rig, client)
    assert shown(client) == [1]
    assert texts(client) == ["begin"]


async def test_beyond_the_burst_limit_the_oldest_is_dropped_and_a_marker_says_so(rig) -> None:
    client, _ = stalled(rig)
    show(rig, *range(200))  # 100 MiB
    assert LIMIT + BURST // 2 < rig.hub.journal.nbytes <= LIMIT + BURST
    await read_all(rig, client)
    assert shown(client)[-1] == 199
    assert len(texts(client)) == 1


async def test_a_stalled_viewer_costs_nothing(rig) -> None:
    stalled(rig)
    fast, _ = rig.attach()
    show(rig, *range(100))
    assert rig.hub.journal.nbytes <= LIMIT
    assert shown(fast) == list(range(100))


async def test_a_reader_that_has_stopped_counts_for_a_while_only(rig) -> None:
    stalled(rig)
    show(rig, *range(60))
    assert rig.hub.journal.nbytes > 2 * LIMIT
    wait(rig, PATIENCE)
    assert rig.hub.journal.nbytes > 2 * LIMIT
    wait(rig, 1)
    assert rig.hub.journal.nbytes <= LIMIT
    show(rig, *range(60))
    assert rig.hub.journal.nbytes <= LIMIT


async def test_the_journal_shrinks_without_anything_that_happens(rig, monkeypatch) -> None:
    monkeypatch.setattr(module, "_LOOK", 0.0)
    stalled(rig)
    show(rig, *range(60))
    async with asyncio.timeout(TIMEOUT):
        while rig.hub.journal.nbytes > LIMIT:
            rig.clock.now += 1  # a timer has no effect
            await asyncio.sleep(0)


async def test_many_small_messages_are_forgotten_a_part_at_a_time(rig, monkeypatch) -> None:
    """A gigabyte takes seconds, and other hubs have their turn in the meantime."""
    monkeypatch.setattr(module, "_AT_ONCE", 500)
    _, attachment = stalled(rig, "a-session")
    for _ in range(40):
        rig.say(*(rig.stream("x" * 5000) for _ in range(100)))
    rig.hub.detach(attachment)
    journal, held = rig.hub.journal, []
    assert journal.nbytes > 2 * LIMIT
    wait(rig, PATIENCE)
    rig.clock.now += 1
    held.append(len(journal._ring))
    rig.kernel.drain()
    async with asyncio.timeout(TIMEOUT):
        while journal.nbytes > LIMIT:
            held.append(len(journal._ring))
            await asyncio.sleep(0)
    held.append(len(journal._ring))
    assert len(held) > 3
    assert all(before - after <= 510 for before, after in itertools.pairwise(held))
    assert journal.spare == 0


async def test_a_closed_hub_forgets_all_of_a_burst_and_gives_it_back(rig) -> None:
    stalled(rig)
    show(rig, *range(60))
    await rig.hub.aclose()
    assert (rig.hub.journal.nbytes, rig.hub.journal.spare) == (0, 0)
    assert rig.hub._broadcaster._burst._timer is None


async def test_a_reader_that_moves_however_slowly_counts(rig) -> None:
    client, _ = stalled(rig)
    show(rig, *range(60))
    for _ in range(5):
        wait(rig, PATIENCE - 1)
        read(rig, client)
        assert rig.hub.journal.nbytes > 2 * LIMIT


async def test_a_large_frame_may_take_its_time(rig) -> None:
    client, _ = stalled(rig)
    show(rig, *range(3), size=20 * MIB)
    wait(rig, 2 * PATIENCE)
    await read_all(rig, client)
    assert shown(client) == list(range(3))
    assert texts(client) == []


async def test_a_large_frame_that_nobody_reads_does_not_keep_the_rest_for_ever(rig) -> None:
    stalled(rig)
    show(rig, *range(3), size=20 * MIB)
    wait(rig, 2 * PATIENCE + 2)
    assert rig.hub.journal.spare == 0


async def test_time_in_which_the_bridge_itself_does_nothing_does_not_count(rig) -> None:
    client, _ = stalled(rig)
    show(rig, *range(60))
    rig.clock.now += 10 * PATIENCE
    rig.kernel.drain()
    await read_all(rig, client)
    assert shown(client) == list(range(60))
    assert texts(client) == []


async def test_a_viewer_that_joins_does_not_take_it_from_who_reads(rig) -> None:
    client, _ = stalled(rig)
    show(rig, *range(60))
    rig.attach()
    rig.kernel.drain()
    await read_all(rig, client)
    assert shown(client) == list(range(60))
    rig.kernel.drain()
    assert rig.hub.journal.spare == 0


async def test_a_reader_of_other_requests_does_not_take_it_from_a_page(rig) -> None:
    """It skips the output of the request that is not its own, so it is always at the end."""
    client, _ = stalled(rig)
    rig.attach("reader", parents=["queued"])
    for n in range(60):
        show(rig, 2 * n, 2 * n + 1)
        read(rig, client)
    await read_all(rig, client)
    assert shown(client) == list(range(120))
    assert texts(client) == []


async def test_of_readers_of_requests_those_that_lag_count(rig) -> None:
    parent = b'{"msg_id": "runs", "msg_type": "execute_request"}'
    client = Slow()
    rig.hub.attach(client, V1, parents=["runs"])
    rig.attach("reader", parents=["queued"])
    lines = [f"{n};".ljust(MIB // 2, ".") for n in range(60)]
    for line in lines:
        rig.say(rig.stream(line, parent))
    await read_all(rig, client)
    assert "".join(texts(client)) == "".join(lines)


async def test_a_client_that_comes_back_in_time_loses_nothing(rig) -> None:
    _, attachment = stalled(rig, "a-session")
    show(rig, *range(40))
    rig.hub.detach(attachment)
    show(rig, *range(40, 60))
    wait(rig, PATIENCE)
    client, _ = rig.attach("a-session")
    await read_all(rig, client)
    assert {0, *shown(client)} == set(range(60)), "the first image was written earlier"
    assert texts(client) == []


async def test_nobody_is_waited_for_longer(rig) -> None:
    _, attachment = stalled(rig, "a-session")
    show(rig, *range(60))
    rig.hub.detach(attachment)
    wait(rig, PATIENCE + 1)
    assert rig.hub.journal.nbytes <= LIMIT


async def test_without_readers_the_journal_keeps_to_its_limit(rig) -> None:
    show(rig, *range(60))
    assert rig.hub.journal.nbytes <= LIMIT


async def test_messages_larger_than_the_journal(rig) -> None:
    client, _ = stalled(rig)
    show(rig, *range(5), size=LIMIT + MIB)
    await read_all(rig, client)
    assert shown(client) == list(range(5))


async def test_what_a_limit_holds_back_is_no_backlog() -> None:
    rig = Rig(HubSettings(journal_limit=LIMIT, burst_limit=BURST, iopub_data_rate_limit=1000.0))
    rig.prove()
    rig.attach()
    for _ in range(200):
        rig.say(rig.stream("x" * 100_000))
    assert rig.hub.journal.nbytes <= LIMIT
    await rig.hub.aclose()


async def test_kernels_share_what_there_is() -> None:
    allowance = Allowance(BURST)
    rigs = [Rig(SETTINGS), Rig(SETTINGS)]
    for rig in rigs:
        await rig.hub.aclose()
        rig.hub = rig.open(SETTINGS, allowance=allowance)
        rig.prove()
        stalled(rig)
        show(rig, *range(200))
    held = [rig.hub.journal.nbytes for rig in rigs]
    assert sum(held) <= BURST + 2 * LIMIT
    assert held[1] <= LIMIT
    await rigs[0].hub.aclose()
    show(rigs[1], *range(60))
    assert rigs[1].hub.journal.nbytes > 2 * LIMIT
    await rigs[1].hub.aclose()


def test_an_allowance_is_given_back() -> None:
    allowance = Allowance(100)
    assert allowance.ask(1, 60) == 60
    assert allowance.ask(2, 60) == 40
    assert allowance.ask(1, 10) == 10
    assert allowance.ask(2, 200) == 90
    assert allowance.ask(2, 0) == 0
    assert allowance.ask(1, 200) == 100
    assert Allowance(-5).ask(1, 10) == 0


async def test_who_is_not_paced_may_lag_beside_a_page_that_is() -> None:
    rig = Rig(
        HubSettings(
            journal_limit=LIMIT, history_limit=0, burst_limit=BURST, iopub_data_rate_limit=1000.0
        )
    )
    rig.prove()
    rig.attach()
    client = Slow()
    rig.hub.attach(client, V1, paced=False)
    for _ in range(200):
        rig.say(rig.stream("x" * 100_000))
    assert rig.hub.journal.nbytes > 2 * LIMIT
    await read_all(rig, client)
    assert sum(map(len, texts(client))) == 200 * 100_000
    rig.kernel.drain()
    assert rig.hub.journal.nbytes <= LIMIT
    await rig.hub.aclose()


# -- with a disk ----------------------------------------------------------------------------------


def on_disk() -> tuple[Journal, Burst]:
    """Return a journal whose frames are on disk only when a test says so."""
    journal = Journal(LIMIT, 0)
    journal.on_durable(True)
    sessions, pace = ClientSessions(0.0), Pace(limit_rate=False)
    return journal, Burst(journal, sessions, pace, StoppedClock(), Allowance(BURST))


def print_mebibytes(journal: Journal, burst: Burst, count: int) -> None:
    for _ in range(count):
        journal.append(b"x" * MIB)
        journal.trim(journal.next_seq)  # every reader has it
        burst.look()


async def test_frames_that_wait_for_a_slow_disk_may_use_extra_memory() -> None:
    journal, burst = on_disk()
    print_mebibytes(journal, burst, 40)
    assert (journal.nbytes, journal.forgotten) == (40 * MIB, 0)
    journal.on_written(journal.next_seq)
    burst.look()
    assert (journal.nbytes, journal.spare) == (0, 0)


async def test_the_extra_memory_is_not_for_frames_that_are_on_disk() -> None:
    journal, burst = on_disk()
    high = 0
    for _ in range(100):
        journal.append(b"x" * MIB)
        journal.on_written(journal.next_seq - LIMIT // MIB)  # the disk is a little behind
        burst.look()
        high = max(high, journal.nbytes)
    assert journal.forgotten == 0
    assert high <= 2 * LIMIT
    burst.close()


async def test_frames_that_wait_for_the_disk_are_dropped_beyond_the_burst_limit() -> None:
    journal, burst = on_disk()
    print_mebibytes(journal, burst, 100)
    assert LIMIT + BURST // 2 < journal.nbytes <= LIMIT + BURST
    assert journal.forgotten == 100 - journal.nbytes // MIB
    burst.close()


async def test_readers_that_find_their_frames_on_disk_need_no_extra_memory() -> None:
    journal, burst = on_disk()
    for _ in range(40):
        journal.append(b"x" * MIB)
        journal.on_written(journal.next_seq)
        burst.look()
        assert journal.spare == 0
    assert journal.nbytes <= LIMIT


async def test_a_disk_that_fails_leaves_extra_memory_to_live_readers_only() -> None:
    journal, burst = on_disk()
    print_mebibytes(journal, burst, 40)
    journal.on_durable(False)
    burst.look()
    assert journal.nbytes <= LIMIT
    burst.close()


async def test_a_live_reader_gets_a_burst_from_memory(tmp_path, monkeypatch) -> None:
    """A stalled one beside it does not keep the memory."""
    settings = StoreSettings(tmp_path / "journal", 1 << 30, 1 << 33, 0.0)
    log = logging.getLogger("kbridge.hub")
    store = await JournalStore.open(settings, owner="a test", keep=(), log=log)
    rig = Rig(SETTINGS, store=store)
    rig.prove()
    history = store.history("a-kernel")
    loads: list[int] = []
    load = history.read

    async def counted(place, *more):
        loads.append(place.seq)
        return await load(place, *more)

    monkeypatch.setattr(history, "read", counted)
    client, _ = stalled(rig)
    for n in range(40):
        show(rig, 2 * n, 2 * n + 1)
        await history.flush()
        read(rig, client)
    assert rig.hub.journal.nbytes > 2 * LIMIT
    await read_all(rig, client)
    assert shown(client) == list(range(80))
    assert not loads
    rig.kernel.drain()
    assert rig.hub.journal.nbytes <= LIMIT
    await rig.hub.aclose()
    await store.aclose(keep=False)
