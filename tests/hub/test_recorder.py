"""Sessions, numbers and requests survive a crash: a hub goes on with a copy of another's files."""

import asyncio
import json
import logging
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kbridge.flow import executions
from kbridge.flow.activity import state_of
from kbridge.flow.execution import Execution
from kbridge.flow.lost_replies import SILENCE
from kbridge.hub import recorder
from kbridge.hub.broadcast import client_sessions
from kbridge.hub.settings import HubSettings
from kbridge.storage import flush
from kbridge.storage.disk import Disk
from kbridge.storage.history import History
from kbridge.storage.state_log import parse
from kbridge.storage.store import JournalStore, StoreSettings
from kbridge.wire.message import Channel, Message
from tests.hub.rig import Rig, received, texts
from tests.storage.harness import KeptMemory
from tests.support.waiting import until

ID = "a-kernel"
LIMITS: dict[str, Any] = {"limit": 1 << 30, "total_limit": 1 << 30, "reserve": 0.0}


class Bridges:
    """Bridges that serve one kernel, one after the other; each but the last was killed."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._stores: list[JournalStore] = []
        self._rigs: list[Rig] = []

    async def next(
        self, *, found: Path | None = None, disk: Disk | None = None, **settings: Any
    ) -> Rig:
        """Start a bridge on what is on disk now, or on another directory."""
        number = len(self._stores)
        here, before = self._home / str(number), self._home / str(number - 1)
        if number:
            shutil.copytree(found or before, here)
        store = await JournalStore.open(
            StoreSettings(here, **LIMITS),
            owner="me",
            keep=[ID],
            log=logging.getLogger("test"),
            disk=disk,
        )
        self._stores.append(store)
        made = Rig(HubSettings(**{"limit_rate": False, **settings}), store=store)
        self._rigs.append(made)
        made.clock.now += number  # a crash takes time
        made.prove()
        return made

    def memory(self) -> KeptMemory:
        """Give the kernel memory that outlives the present bridge."""
        made = KeptMemory()
        self.history().follow(made)
        return made

    def history(self) -> History:
        """Return the journal of the kernel on disk; this makes all lines of its state log."""
        return self._stores[-1].history(ID)

    def files(self) -> Path:
        """Return the directory with the present files of the kernel."""
        return self._home / str(len(self._stores) - 1) / ID

    async def flush(self) -> None:
        """Write the journal, and the places that have been acknowledged, to disk."""
        await asyncio.sleep(0)  # the timer for the places
        await asyncio.sleep(0)
        await self.history().flush()

    async def crash(self, **settings: Any) -> Rig:
        """Write to disk what there is, and start another bridge as if this one had been killed."""
        await self.flush()
        return await self.next(**settings)

    async def aclose(self) -> None:
        for rig in self._rigs:
            await rig.hub.aclose()
        for store in self._stores:
            await store.aclose(keep=False)


class Camera(Disk):
    """A disk that copies all files before each write, as a crash would find them."""

    def __init__(self, photos: Path) -> None:
        self._photos = photos
        self._taken = 0
        self.directory: Path | None = None

    def write(self, descriptor: int, buffers: Sequence[bytes]) -> int:
        if self.directory is not None:
            shutil.copytree(self.directory, self._photos / str(self._taken))
            self._taken += 1
        return super().write(descriptor, buffers)

    def photos_with(self, entry: bytes) -> list[Path]:
        """Return the copies whose state log has an entry; there are some."""
        every = [self._photos / str(number) for number in range(self._taken)]
        logs = [photo / ID / "state.log" for photo in every]
        found = [log.parent.parent for log in logs if log.exists() and entry in log.read_bytes()]
        assert found
        return found


@pytest.fixture
async def bridges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bridges]:
    monkeypatch.setattr(recorder, "PLACES_EVERY", 0.0)
    made = Bridges(tmp_path)
    yield made
    await made.aclose()


def execute(rig: Rig, attachment: Any, msg_id: str = "ask") -> Message:
    """Submit a request with a header as JupyterLab makes it; return it."""
    msg = rig.message(Channel.SHELL, "execute_request", {"code": "1"}, msg_id=msg_id)
    msg = msg._replace(header=json.dumps({**json.loads(msg.header), "subshell_id": None}).encode())
    rig.hub.submit(attachment, msg)
    return msg


def say(rig: Rig, request: Message, *kinds: str) -> None:
    """Let the kernel say something about a request."""
    contents: dict[str, tuple[Channel, str, dict[str, Any]]] = {
        "busy": (Channel.IOPUB, "status", {"execution_state": "busy"}),
        "idle": (Channel.IOPUB, "status", {"execution_state": "idle"}),
        "input": (Channel.IOPUB, "execute_input", {"code": "1", "execution_count": 7}),
        "error": (Channel.IOPUB, "error", {"ename": "E", "evalue": "v", "traceback": ["t"]}),
        "ask": (Channel.STDIN, "input_request", {"prompt": "name?", "password": False}),
        "reply": (Channel.SHELL, "execute_reply", {"status": "ok", "execution_count": 7}),
    }
    for kind in kinds:
        channel, msg_type, content = contents[kind]
        rig.say(rig.message(channel, msg_type, content, request.header))


def calm(rig: Rig) -> None:
    """Let the kernel answer two probes on shell; fire the timer after each."""
    for _ in range(2):
        probe = next(p for p in reversed(rig.probes()) if p.channel is Channel.SHELL)
        info = {"protocol_version": "5.3", "status": "ok"}
        rig.say(rig.message(Channel.SHELL, "kernel_info_reply", info, probe.header))
    rig.clock.now += 10.0
    rig.fire_recovery_timer()


def replies(client: Any) -> list[dict[str, Any]]:
    return [json.loads(m.content) for m in received(client) if m.msg_type == "execute_reply"]


async def gets(client: Any, *wanted: str) -> None:
    """Wait until a client was sent these texts, which may have to be read from disk."""
    await until(lambda: len(texts(client)) >= len(wanted), f"{wanted} arrive")
    assert texts(client) == list(wanted)


async def has_read(rig: Rig, cursor: Any) -> None:
    """Wait until a client was sent everything, which may have to be read from disk."""
    await until(lambda: cursor.place.seq == rig.hub.journal.next_seq, "all is read")


def kinds(client: Any) -> list[str]:
    return [m.msg_type for m in received(client)]


# -- sessions and numbers -------------------------------------------------------------------------


async def test_a_session_resumes_after_the_last_frame_that_it_acknowledged(bridges) -> None:
    rig = await bridges.next()
    client, _ = rig.attach("s")
    rig.say(rig.stream("one"))
    client.silent = True
    rig.say(rig.stream("two"))
    rig = await bridges.crash()
    client, _ = rig.attach("s")
    rig.say(rig.stream("three"))
    await gets(client, "two", "three")


async def test_a_session_that_was_away_gets_all_since(bridges) -> None:
    rig = await bridges.next()
    client, attachment = rig.attach("s")
    rig.say(rig.stream("one"))
    rig.hub.detach(attachment)
    rig.say(rig.stream("two"))
    rig = await bridges.crash()
    rig = await bridges.crash()
    client, _ = rig.attach("s")
    await gets(client, "two")
    other, _ = rig.attach("another")
    assert texts(other) == []


async def test_frames_that_were_sent_but_not_written_are_not_confused_with_later_ones(
    bridges,
) -> None:
    rig = await bridges.next()
    client, attachment = rig.attach("s")
    rig.say(rig.stream("one"))
    await bridges.flush()
    origin = rig.ack_origin
    rig.say(rig.stream("unwritten"), rig.stream("unwritten"))
    number = origin + attachment.place.seq - 1
    rig = await bridges.next()
    rig.say(rig.stream("two"))
    for how in ({"session_id": "s"}, {"since": str(number)}):
        client, _ = rig.attach(**how)
        await gets(client, "two")


async def test_numbers_and_ids_of_earlier_bridges_name_their_messages(bridges) -> None:
    rig = await bridges.next()
    client, attachment = rig.attach("s")
    first = rig.stream("one")
    rig.say(first)
    number = rig.ack_origin + attachment.place.seq - 1
    rig.say(rig.stream("two"))
    await bridges.crash()
    rig = await bridges.crash()
    assert rig.ack_origin > number
    for since in (first.msg_id, str(number)):
        client, _ = rig.attach(since=since)
        await gets(client, "two")
    client, _ = rig.attach(since="start", verbatim=True)
    await gets(client, "one", "two")


async def test_private_frames_are_for_their_session_also_after_a_crash(bridges) -> None:
    rig = await bridges.next()
    _, attachment = rig.attach("mine")
    rig.hub.detach(attachment)
    request = execute(rig, attachment)
    say(rig, request, "busy", "reply", "idle")
    rig = await bridges.crash()
    new, _ = rig.attach("new", since="start")
    other, _ = rig.attach(since="start")
    mine, _ = rig.attach("mine")
    await until(lambda: replies(mine), "the reply arrives")
    assert replies(new) == replies(other) == []
    assert len(replies(mine)) == 1
    request = execute(rig, rig.hub.cursors[0], "later")
    say(rig, request, "busy", "reply", "idle")
    await until(lambda: replies(new), "the websocket has read the disk and then its reply")
    assert [len(replies(each)) for each in (new, other, mine)] == [1, 0, 1]


async def test_a_session_that_is_not_remembered_any_longer_is_not_restored(
    bridges, monkeypatch
) -> None:
    monkeypatch.setattr(client_sessions, "_REMEMBERED", 1)
    rig = await bridges.next()
    for name in ("old", "new"):
        rig.hub.detach(rig.attach(name)[1])
    rig.say(rig.stream("one"))
    rig = await bridges.crash()
    old, new = rig.attach("old")[0], rig.attach("new")[0]
    await gets(new, "one")
    assert texts(old) == []


async def test_without_acknowledgements_what_was_written_counts_as_received(bridges) -> None:
    rig = await bridges.next(acknowledge=False)
    client, _ = rig.attach("s")
    rig.say(rig.stream("one"))
    await bridges.flush()
    rig.say(rig.stream("two"))
    rig = await bridges.crash(acknowledge=False)
    client, _ = rig.attach("s")
    assert texts(client) == []


async def test_with_a_resume_timeout_of_zero_a_session_starts_at_the_present(bridges) -> None:
    rig = await bridges.next(resume_timeout=0.0)
    rig.hub.detach(rig.attach("s")[1])
    rig.say(rig.stream("one"))
    rig = await bridges.crash(resume_timeout=0.0)
    client, _ = rig.attach("s")
    assert texts(client) == []


async def test_private_frames_stay_private_when_the_state_log_is_lost(bridges) -> None:
    rig = await bridges.next()
    _, attachment = rig.attach("mine")
    say(rig, execute(rig, attachment), "busy", "reply", "idle")
    await bridges.flush()
    (bridges.files() / "state.log").write_bytes(b"")
    rig = await bridges.next()
    new, cursor = rig.attach("somebody else", since="start")
    await has_read(rig, cursor)
    assert "status" in kinds(new)
    assert replies(new) == []


async def test_a_place_behind_what_was_written_is_not_believed_by_a_later_bridge(
    bridges, tmp_path
) -> None:
    disk = Camera(tmp_path / "photos")
    rig = await bridges.next(disk=disk)
    disk.directory = bridges.files().parent
    rig.attach("s")
    await bridges.flush()
    rig.say(*(rig.stream(f"old {i}") for i in range(3)))
    await bridges.flush()
    for photo in disk.photos_with(b"session/s"):
        rig = await bridges.next(found=photo)
        rig.say(*(rig.stream(f"new {i}") for i in range(3)))
        rig = await bridges.crash()
        client, cursor = rig.attach("s", verbatim=True)
        await has_read(rig, cursor)
        assert texts(client)[-3:] == ["new 0", "new 1", "new 2"]


# -- requests -------------------------------------------------------------------------------------


async def test_a_request_is_remembered_until_it_is_written(bridges) -> None:
    rig = await bridges.next()
    _, attachment = rig.attach("s")
    await bridges.flush()
    memory = bridges.memory()
    ask = execute(rig, attachment)
    assert list(memory.left) == ["execution/ask"]
    say(rig, ask, "busy")
    assert len(memory.lines) == 1, "its messages say the rest"
    say(rig, ask, "reply", "idle")
    execute(rig, attachment, "second")
    assert list(memory.left) == ["execution/ask", "execution/second"]
    await bridges.flush()
    assert memory.left == {}
    known = parse((bridges.files() / "state.log").read_bytes())
    assert known["execution/ask"]["state"] == "done"
    assert known["execution/second"]["client"] == attachment.session.number


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the executions whose text for the log was made, in order."""
    found: list[str] = []
    to_json = Execution.to_json

    def note(execution: Execution) -> str:
        found.append(execution.msg_id)
        return to_json(execution)

    monkeypatch.setattr(Execution, "to_json", note)
    return found


async def test_the_lines_of_requests_that_ended_are_ready_when_they_are_written(
    bridges, encoded
) -> None:
    rig = await bridges.next()
    _, attachment = rig.attach("mine")
    await bridges.flush()
    bridges.memory()
    history = bridges.history()
    for number in range(3):
        say(rig, execute(rig, attachment, f"ended {number}"), "busy", "input", "reply", "idle")
    running = execute(rig, attachment, "runs")
    say(rig, running, "busy", "input")
    ended = [f"ended {number}" for number in range(3) for _ in ("remembered", "ended")]
    assert encoded == [*ended, "runs"]
    encoded.clear()
    await history.flush()
    assert encoded == ["runs"], "the others were encoded after clients had their output"
    say(rig, running, "reply", "idle")
    assert encoded == ["runs"] * 2
    known = parse((bridges.files() / "state.log").read_bytes())
    output = [known[f"execution/ended {number}"] for number in range(3)]
    assert [each["messages"] for each in output] == [4, 4, 4]
    assert [each["ended_seq"] - each["first"] for each in output] == [4, 4, 4]


async def test_the_log_is_not_behind_the_frames_after_an_error(bridges, monkeypatch) -> None:
    """The next bridge would build a reply that is on disk."""
    rig = await bridges.next()
    client, attachment = rig.attach("mine")
    asked = execute(rig, attachment)
    say(rig, asked, "busy", "input", "idle")
    await bridges.flush()

    def fail(data: bytes) -> bool:
        raise RuntimeError(len(data))

    with monkeypatch.context() as broken:
        broken.setattr(client, "write", fail)
        with pytest.raises(RuntimeError):
            say(rig, asked, "reply")
    rig = await bridges.crash()
    again, _ = rig.attach("mine")
    calm(rig)
    await until(lambda: replies(again), "the reply comes from disk")
    assert len(replies(again)) == 1


async def test_an_execution_that_cannot_be_encoded_stops_the_log_only(bridges, monkeypatch) -> None:
    rig = await bridges.next()
    client, attachment = rig.attach("mine")
    asked = execute(rig, attachment)
    await bridges.flush()
    history = bridges.history()

    def fail(execution: Execution) -> str:
        raise RuntimeError(execution.msg_id)

    with monkeypatch.context() as broken:
        broken.setattr(Execution, "to_json", fail)
        say(rig, asked, "busy", "input", "reply", "idle")
        assert not history.active
        rig.say(rig.stream("on"))
    assert texts(client) == ["on"]
    history.retry()
    await until(lambda: history.active, "it is written again")
    await bridges.flush()
    known = parse((bridges.files() / "state.log").read_bytes())
    assert known["execution/ask"]["state"] == "done"


async def test_many_requests_that_change_at_once_are_encoded_in_parts(
    bridges, encoded, monkeypatch
) -> None:
    monkeypatch.setattr(flush, "TURN", 0.0)
    rig = await bridges.next()
    _, attachment = rig.attach("mine")
    await bridges.flush()
    history = bridges.history()
    ids = [f"ask {number}" for number in range(200)]
    for msg_id in ids:
        execute(rig, attachment, msg_id)
    encoded.clear()
    most = 0
    flushed = asyncio.ensure_future(history.flush())
    while not flushed.done():
        before = len(encoded)
        await asyncio.sleep(0)
        most = max(most, len(encoded) - before)
    assert encoded == ids
    assert 0 < most <= 25
    await rig.hub.restarting(asked=True)  # aborts all of them
    rig = await bridges.crash()
    assert {each.state for each in rig.hub.executions.find()} == {"aborted"}


async def test_the_reply_of_a_request_that_ended_meanwhile_is_built(bridges) -> None:
    rig = await bridges.next()
    _, attachment = rig.attach("mine")
    request = execute(rig, attachment)
    say(rig, request, "busy", "input")
    rig = await bridges.crash()
    mine, _ = rig.attach("mine")
    other, _ = rig.attach("other")
    calm(rig)
    [reply] = replies(mine)
    assert (reply["status"], reply["execution_count"]) == ("ok", 7)
    assert replies(other) == []
    assert kinds(mine)[-3:] == ["stream", "execute_reply", "status"]
    [notice] = texts(mine)
    assert "the server was restarted" in notice
    rig = await bridges.crash()
    calm(rig)
    again, _ = rig.attach("mine", since="start")
    await until(lambda: replies(again), "the built reply is read from disk")
    assert len(replies(again)) == 1, "it is not built again"


async def test_the_built_reply_has_the_error_that_an_earlier_bridge_heard(bridges) -> None:
    rig = await bridges.next()
    _, attachment = rig.attach("mine")
    say(rig, execute(rig, attachment), "busy", "input", "error")
    rig = await bridges.crash()
    mine, _ = rig.attach("mine")
    calm(rig)
    [reply] = replies(mine)
    assert (reply["status"], reply["ename"], reply["traceback"]) == ("error", "E", ["t"])


async def test_a_request_that_still_runs_gets_its_real_reply(bridges) -> None:
    rig = await bridges.next()
    _, attachment = rig.attach("mine")
    request = execute(rig, attachment)
    say(rig, request, "busy", "input")
    rig = await bridges.crash()
    mine, _ = rig.attach("mine")
    rig.say(rig.stream("on", request.header))
    say(rig, request, "reply", "idle")
    calm(rig)
    assert len(replies(mine)) == 1
    notice, text = texts(mine)
    assert "the server was restarted" in notice
    assert text == "on"


async def test_requests_that_ended_or_were_restarted_are_forgotten(bridges) -> None:
    rig = await bridges.next()
    mine, attachment = rig.attach("mine")
    say(rig, execute(rig, attachment, "ended"), "busy", "input", "reply", "idle")
    execute(rig, attachment, "lost with the process")
    await rig.hub.restarting(asked=True)
    rig = await bridges.crash()
    mine, _ = rig.attach("mine", since="start")
    await until(lambda: replies(mine), "the reply arrives")
    calm(rig)
    assert [reply["execution_count"] for reply in replies(mine)] == [7]


async def test_a_reply_that_is_known_is_not_built_but_its_idle_is(bridges) -> None:
    rig = await bridges.next()
    _, attachment = rig.attach("mine")
    say(rig, execute(rig, attachment), "busy", "input", "reply")
    rig = await bridges.crash()
    mine, _ = rig.attach("mine", since="start")
    await until(lambda: replies(mine), "the reply arrives")
    calm(rig)
    assert len(replies(mine)) == 1
    assert kinds(mine)[-1] == "status"
    assert texts(mine) == []


@pytest.mark.parametrize("drips", [False, True])
async def test_a_crash_between_any_two_writes_loses_no_reply_and_repeats_none(
    bridges, tmp_path, drips
) -> None:
    disk = Camera(tmp_path / "photos")
    rig = await bridges.next(disk=disk)
    disk.directory = bridges.files().parent
    _, attachment = rig.attach("mine")
    request = execute(rig, attachment)
    for step in ("busy", "input", "output", "reply", "more output", "idle"):
        if step in ("output", "more output"):  # more than one batch
            rig.say(*(rig.stream("x" * 1_000_000, request.header) for _ in range(5)))
        else:
            say(rig, request, step)
        if drips:
            await bridges.flush()
    await bridges.flush()
    photos = disk.photos_with(b"execution/ask")
    assert len(photos) >= 3
    for photo in photos:
        rig = await bridges.next(found=photo)
        mine, cursor = rig.attach("mine", since="start", verbatim=True)
        calm(rig)
        calm(rig)
        await has_read(rig, cursor)
        assert len(replies(mine)) == 1
        own = [m for m in received(mine) if m.parent_id == "ask" and m.msg_type == "status"]
        assert [state_of(m.content) for m in own][-1:] == ["idle"]
        assert [state_of(m.content) for m in own].count("idle") == 1
        [execution] = rig.hub.executions.find()
        assert execution.state == "done"


async def test_executions_are_listed_after_a_crash(bridges) -> None:
    rig = await bridges.next()
    _, attachment = rig.attach("mine")
    for name in ("done", "failed", "running", "waiting"):
        execute(rig, attachment, name)
    done, failed, running = (m for m in rig.sent() if m.msg_id in ("done", "failed", "running"))
    say(rig, done, "busy", "input")
    rig.say(rig.stream("a\nb\n", done.header))
    say(rig, done, "reply", "idle")
    say(rig, failed, "busy", "input", "error", "reply", "idle")
    say(rig, running, "busy", "input")
    rig.say(rig.stream("c\n", running.header))
    before = [rig.hub.describe(each) for each in rig.hub.executions.find()]
    rig = await bridges.crash()
    rig = await bridges.crash()
    after = [rig.hub.describe(each) for each in rig.hub.executions.find()]
    assert [each["state"] for each in after] == ["done", "error", "running", "waiting"]
    for old, new in zip(before[:2], after[:2], strict=True):
        moved = new["first_seq"] - old["first_seq"]
        assert moved == new["last_seq"] - old["last_seq"] > 0, "each bridge has other numbers"
        same = {"first_seq": new["first_seq"], "last_seq": new["last_seq"], "connected": False}
        assert {**old, **same} == new
    client, cursor = rig.attach("mine", verbatim=True, since=str(after[2]["first_seq"] - 1))
    await has_read(rig, cursor)
    assert {m.parent_id for m in received(client)} == {"running"}
    assert [rig.hub.describe(each)["connected"] for each in rig.hub.executions.find()] == [True] * 4


async def test_a_bridge_holds_no_copy_of_the_state_that_it_found(tmp_path: Path) -> None:
    for _ in range(2):
        store = await JournalStore.open(
            StoreSettings(tmp_path / "journal", **LIMITS),
            owner="me",
            keep=[ID],
            log=logging.getLogger("test"),
        )
        history = store.history(ID)
        found = history.recovered
        rig = Rig(HubSettings(limit_rate=False), store=store)
        assert history.recovered is None
        assert len(rig.hub.executions) == (found is not None)
        _, attachment = rig.attach("mine")
        execute(rig, attachment)
        await rig.hub.aclose()
        await store.aclose(keep=True)
    assert found is not None
    assert "execution/ask" in found.records


async def test_forgotten_executions_do_not_come_back_after_a_crash(bridges, monkeypatch) -> None:
    monkeypatch.setattr(executions, "LIMIT", 3)
    rig = await bridges.next()
    _, attachment = rig.attach("mine")
    for name in ("one", "two", "three", "four"):
        say(rig, execute(rig, attachment, name), "busy", "reply", "idle")
        await bridges.flush()
    rig.hub.forget_execution("three")
    rig = await bridges.crash()
    rig = await bridges.crash()
    assert [each.msg_id for each in rig.hub.executions.find()] == ["two", "four"]


async def test_the_log_keeps_no_headers_and_errors_of_executions_whose_end_is_on_disk(
    bridges,
) -> None:
    rig = await bridges.next()
    _, attachment = rig.attach("mine")
    for name in ("old", "new"):
        say(rig, execute(rig, attachment, name), "busy", "input", "error", "reply", "idle")
        await bridges.flush()
    execute(rig, attachment, "later")
    rig = await bridges.crash()
    await bridges.flush()
    log = (bridges.files() / "state.log").read_bytes()  # was rewritten by the new bridge
    entries = parse(log)
    for name in ("old", "new"):
        assert not {"header", "error"} & entries[f"execution/{name}"].keys()
    assert "header" in entries["execution/later"]


async def test_executions_whose_end_was_on_disk_stay_finished_when_its_frames_are_lost(
    bridges,
) -> None:
    rig = await bridges.next()
    _, attachment = rig.attach("mine")
    for name in ("one", "two", "three", "last"):
        say(rig, execute(rig, attachment, name), "busy", "input", "reply", "idle")
        await bridges.flush()
    for path in bridges.files().iterdir():
        if path.suffix in (".full", ".sparse"):
            path.unlink()
    for _ in range(2):  # the numbers of the lost frames are given again
        rig = await bridges.next()
        executions = list(rig.hub.executions.find())
        assert [each.msg_id for each in executions] == ["one", "two", "three", "last"]
        assert [each.msg_id for each in executions if each.owed] == ["last"]
        await bridges.flush()


async def test_an_execution_between_two_writes_adds_one_line_to_the_log(bridges) -> None:
    rig = await bridges.next()
    _, attachment = rig.attach("mine")
    for number in range(3):
        name = f"number {number}"
        say(rig, execute(rig, attachment, name), "busy", "input", "reply", "idle")
        await bridges.flush()
    lines = (bridges.files() / "state.log").read_bytes().splitlines()
    assert sum(b"execution/number" in line for line in lines) == 3


async def test_a_kernel_that_omits_the_idle_after_an_error_leaves_no_headers_and_errors(
    bridges,
) -> None:
    rig = await bridges.next()
    _, attachment = rig.attach("mine")
    for number in range(20):
        failed = execute(rig, attachment, f"failed{number}")
        say(rig, failed, "busy", "input", "error", "reply")
    await bridges.flush()
    last = execute(rig, attachment, "last")
    say(rig, last, "busy", "input", "reply", "idle")
    seqs = [rig.hub.describe(each)["last_seq"] for each in rig.hub.executions.find()]
    held = [each.msg_id for each in rig.hub.executions.find() if each.header]
    assert held == ["failed19", "last"], "their ends are not on disk yet"
    origin = rig.ack_origin
    rig = await bridges.crash()
    moved = rig.ack_origin - origin
    again = [rig.hub.describe(each)["last_seq"] - moved for each in rig.hub.executions.find()]
    assert again == seqs
    assert not any(each.owed for each in rig.hub.executions.find())
    mine, _ = rig.attach("other")
    calm(rig)
    assert kinds(mine) == []


async def test_an_id_that_is_used_again_is_another_execution_also_after_a_crash(bridges) -> None:
    rig = await bridges.next()
    _, attachment = rig.attach("mine")
    say(rig, execute(rig, attachment, "same"), "busy", "input", "reply", "idle")
    execute(rig, attachment, "other")
    execute(rig, attachment, "same")
    await bridges.flush()
    execute(rig, attachment, "later")
    rig = await bridges.crash()
    states = {each.msg_id: each.state for each in rig.hub.executions.find()}
    assert states == {"other": "waiting", "same": "waiting", "later": "waiting"}
    assert list(states) == ["other", "same", "later"]
    assert all(each.owed for each in rig.hub.executions.find())


async def test_hidden_tracebacks_are_not_in_any_file(bridges) -> None:
    rig = await bridges.next(allow_tracebacks=False)
    _, attachment = rig.attach("mine")
    request = execute(rig, attachment)
    secret = {"ename": "Secret name", "evalue": "Secret value", "traceback": ["Secret line"]}
    say(rig, request, "busy", "input")
    rig.say(rig.message(Channel.IOPUB, "error", secret, request.header))
    await bridges.flush()
    content = {path.name: path.read_bytes() for path in bridges.files().iterdir()}
    assert b"execution/ask" in content["state.log"]
    assert not [name for name, data in content.items() if b"Secret" in data]
    rig = await bridges.crash(allow_tracebacks=False)
    mine, _ = rig.attach("mine")
    calm(rig)
    assert [reply["status"] for reply in replies(mine)] == ["error"]


async def test_a_long_error_makes_the_state_log_grow_little(bridges) -> None:
    rig = await bridges.next()
    _, attachment = rig.attach("mine")
    request = execute(rig, attachment)
    long = {"ename": "E", "evalue": "v" * 1_000_000, "traceback": ["t" * 1_000_000]}
    rig.say(rig.message(Channel.IOPUB, "error", long, request.header))
    await bridges.flush()
    assert (bridges.files() / "state.log").stat().st_size < 10_000
    rig = await bridges.crash()
    mine, _ = rig.attach("mine")
    calm(rig)
    [reply] = replies(mine)
    assert (reply["status"], reply["ename"], reply["evalue"]) == ("error", "E", "")


async def test_a_request_to_a_subshell_that_is_silent_after_a_crash_ends(bridges) -> None:
    rig = await bridges.next()
    _, attachment = rig.attach("mine")
    header = {"msg_id": "ask", "msg_type": "execute_request", "subshell_id": "gone"}
    request = execute(rig, attachment, "main")._replace(header=json.dumps(header).encode())
    rig.hub.submit(attachment, request)
    say(rig, request, "busy", "input")
    rig = await bridges.crash()
    mine, _ = rig.attach("mine")
    calm(rig)
    assert len(replies(mine)) == 1, "only the one to the main shell"
    rig.clock.now += SILENCE
    rig.fire_recovery_timer()
    assert len(replies(mine)) == 2


# -- input requests -------------------------------------------------------------------------------


def answer(rig: Rig, attachment: Any, question: Message) -> int:
    """Answer an input request; return the number of answers that the kernel was sent."""
    reply = rig.message(Channel.STDIN, "input_reply", {"value": "x"}, question.header)
    rig.hub.submit(attachment, reply)
    return len([m for m in rig.sent() if m.msg_type == "input_reply"])


def questions(client: Any) -> list[Message]:
    return [m for m in received(client) if m.msg_type == "input_request"]


@pytest.mark.parametrize("session", ["mine", "after a reload of the page"])
async def test_an_input_request_is_asked_again_after_a_crash(bridges, session) -> None:
    rig = await bridges.next()
    _, attachment = rig.attach("mine")
    say(rig, execute(rig, attachment), "busy", "input", "ask")
    rig = await bridges.crash()
    rig = await bridges.crash()
    bystander, _ = rig.attach("somebody else")
    since = str(rig.ack_origin + rig.hub.journal.next_seq - 1)
    client, attachment = rig.attach(session, since=since if session != "mine" else "")
    await until(lambda: questions(client), "it is asked again")
    [question] = questions(client)
    assert json.loads(question.content) == {"prompt": "name?", "password": False}
    assert questions(bystander) == []
    assert answer(rig, attachment, question) == 1
    assert answer(rig, attachment, question) == 1, "it was answered before"
    rig = await bridges.crash()
    client, cursor = rig.attach(session)
    await has_read(rig, cursor)
    assert questions(client) == []


@pytest.mark.parametrize("end", ["idle", "restart"])
async def test_an_input_request_of_a_request_that_has_ended_is_not_asked_again(
    bridges, end
) -> None:
    rig = await bridges.next()
    _, attachment = rig.attach("mine")
    request = execute(rig, attachment)
    say(rig, request, "busy", "input", "ask")
    if end == "idle":
        say(rig, request, "reply", "idle")
    else:
        await rig.hub.restarting(asked=True)
    rig = await bridges.crash()
    client, cursor = rig.attach("mine")
    await has_read(rig, cursor)
    assert questions(client) == []


async def test_an_input_request_is_asked_once_after_a_crash_between_any_two_writes(
    bridges, tmp_path
) -> None:
    disk = Camera(tmp_path / "photos")
    rig = await bridges.next(disk=disk)
    disk.directory = bridges.files().parent
    _, attachment = rig.attach("mine")
    say(rig, execute(rig, attachment), "busy", "input", "ask")
    await bridges.flush()
    rig.say(rig.stream("later"))
    await bridges.flush()
    for photo in disk.photos_with(b"input/"):
        rig = await bridges.next(found=photo)
        client, cursor = rig.attach("mine", since="start", verbatim=True)
        rig.say(rig.stream("other output"))
        await has_read(rig, cursor)
        assert len(questions(client)) == 1
