"""Websockets that follow some requests (`?parents=`): each message once, wherever it is."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from kbridge.hub.broadcast.cursor import Cursor
from kbridge.storage.store import JournalStore
from kbridge.wire.dialects import LEGACY, V1
from kbridge.wire.message import Channel, Message
from tests.hub.broadcast.test_loading import KIB, SETTINGS, caught_up, open_store, until
from tests.hub.rig import Peer, Rig, frames_of, received, texts
from tests.hub.test_recorder import Bridges

REQUESTS = ("a", "b", "c")


class Notebook:
    """A session that runs cells, and what the kernel says about them."""

    def __init__(self, rig: Rig, session: str = "page") -> None:
        self.rig = rig
        self.client, self.cursor = rig.attach(session)
        self.said: list[Message] = []
        self.requests: dict[str, Message] = {}

    def run(self, *names: str) -> None:
        """Send requests."""
        for name in names:
            msg = self.rig.message(Channel.SHELL, "execute_request", {"code": name}, msg_id=name)
            self.requests[name] = msg
            self.rig.hub.submit(self.cursor, msg)

    def say(
        self, msg_type: str, parent: str | None, channel: str = "iopub", **content: Any
    ) -> None:
        """Let the kernel send a message."""
        header = b"{}" if parent is None else self.requests[parent].header
        msg = self.rig.message(Channel(channel), msg_type, content, header)
        self.said.append(msg)
        self.rig.say(msg)

    def status(self, parent: str | None, state: str) -> None:
        self.say("status", parent, execution_state=state)

    def begin(self, parent: str) -> None:
        self.status(parent, "busy")
        self.say("execute_input", parent, code=parent, execution_count=1)

    def print(self, parent: str, text: str) -> None:
        self.say("stream", parent, name="stdout", text=text)

    def end(self, parent: str) -> None:
        self.say("execute_reply", parent, "shell", status="ok")
        self.status(parent, "idle")

    def wanted(self, *parents: str) -> list[str]:
        """Return the ids of the messages that a client receives that follows some requests."""
        return [m.msg_id for m in self.said if is_wanted(m, parents)]

    def output(self, parent: str) -> str:
        """Return the text that a request printed."""
        return "".join(
            json.loads(m.content)["text"]
            for m in self.said
            if m.msg_type == "stream" and m.parent_id == parent
        )


def is_wanted(msg: Message, parents: tuple[str, ...]) -> bool:
    if msg.msg_type == "update_display_data" or (msg.msg_type == "status" and not msg.parent_id):
        return True
    if msg.channel is Channel.IOPUB or msg.msg_type == "execute_reply":
        return msg.parent_id in parents
    return False


def ids(client: Peer) -> list[str]:
    return [m.msg_id for m in received(client)]


def kinds(client: Peer) -> list[str]:
    return [m.msg_type for m in received(client)]


def follow(rig: Rig, *parents: str, session: str = "reader", **more: Any) -> tuple[Peer, Cursor]:
    return rig.attach(session, parents=parents, **more)


def play(book: Notebook, steps: int, seed: int = 1, size: int = 10) -> None:
    """Run three cells whose messages are mixed, and end them."""
    choose = random.Random(seed)
    book.run(*REQUESTS)
    for name in REQUESTS:
        book.begin(name)
    for step in range(steps):
        name = choose.choice(REQUESTS)
        kind = choose.choice(["print"] * 6 + ["update", "error", "status"])
        if kind == "print":
            book.print(name, f"{name}{step};".ljust(size, "."))
        elif kind == "update":
            transient = {"display_id": f"{step}"}
            book.say("update_display_data", name, data={}, metadata={}, transient=transient)
        elif kind == "error":
            book.say("error", name, ename="E", evalue="v", traceback=[])
        else:
            book.status(None, "starting")
    for name in REQUESTS:
        book.end(name)


# -- what is received -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("parents", [("a",), ("c", "a"), REQUESTS], ids="".join)
async def test_live_and_from_the_journal_the_same_is_received(rig, seed, parents) -> None:
    book = Notebook(rig)
    live, _ = follow(rig, *parents)
    play(book, 60, seed)
    assert ids(live) == book.wanted(*parents)
    late, _ = follow(rig, *parents, session="late", verbatim=True)
    assert ids(late) == book.wanted(*parents)
    late, _ = follow(rig, *parents, session="later", since="start", verbatim=True)
    assert ids(late) == book.wanted(*parents)


async def test_it_begins_with_busy_and_execute_input_and_goes_on_live(rig) -> None:
    book = Notebook(rig)
    book.run("a", "b")
    book.begin("a")
    book.print("a", "one")
    client, _ = follow(rig, "a")
    assert kinds(client) == ["status", "execute_input", "stream"]
    book.print("a", "two")
    book.end("a")
    book.begin("b")
    assert kinds(client)[3:] == ["stream", "execute_reply", "status"]
    assert texts(client) == ["one", "two"]


async def test_what_is_missing_from_before_a_known_request_is_not_marked(make_rig) -> None:
    rig = make_rig(history_limit=10_000)
    rig.prove()
    book = Notebook(rig)
    book.run("a", "b")
    for number in range(100):
        book.print("b", f"{number}".ljust(500, "."))
    book.begin("a")
    rig.kernel.drain()
    assert rig.hub.journal.first_seq > 50
    client, _ = follow(rig, "a")
    assert kinds(client) == ["status", "execute_input"]
    client, _ = follow(rig, "a", "no such request")
    assert texts(client)[0].startswith("[kbridge: "), "it may have been there"


async def test_a_request_that_waits_is_followed_before_its_first_message(rig) -> None:
    book = Notebook(rig)
    book.run("a", "b")
    book.begin("a")
    client, _ = follow(rig, "b")
    assert received(client) == []
    book.end("a")
    book.begin("b")
    book.end("b")
    assert kinds(client) == ["status", "execute_input", "execute_reply", "status"]


async def test_in_the_legacy_dialect_the_same_is_received(rig) -> None:
    book = Notebook(rig)
    play(book, 30)
    client, _ = follow(rig, "a", dialect=LEGACY, verbatim=True)
    found = [json.loads(data)["header"]["msg_id"] for _, data in frames_of(client.written)]
    assert found == book.wanted("a")


async def test_others_receive_everything_as_before(rig) -> None:
    book = Notebook(rig)
    plain, _ = rig.attach("plain")
    follow(rig, "a")
    play(book, 30)
    assert ids(book.client) == [m.msg_id for m in book.said]
    assert ids(plain) == [m.msg_id for m in book.said if m.channel is Channel.IOPUB]


async def test_a_request_of_such_a_websocket_is_answered_to_it(rig) -> None:
    book = Notebook(rig)
    client, cursor = follow(rig, "a")
    request = rig.request("complete_request")
    rig.hub.submit(cursor, request)
    rig.say(rig.message(Channel.SHELL, "complete_reply", {}, request.header))
    assert kinds(client) == ["complete_reply"]
    assert "complete_reply" not in kinds(book.client)


async def test_it_may_follow_a_request_of_its_own(rig) -> None:
    client, cursor = follow(rig, "a")
    book = Notebook(rig)
    book.cursor = cursor
    book.run("a")
    book.begin("a")
    book.end("a")
    assert kinds(client) == ["status", "execute_input", "execute_reply", "status"]


async def test_a_restart_is_received_by_all(rig) -> None:
    book = Notebook(rig)
    book.run("a")
    book.begin("a")
    client, _ = follow(rig, "a")
    await rig.hub.restarting()
    assert kinds(client) == ["status", "execute_input", "status"]
    assert json.loads(received(client)[-1].content)["execution_state"] == "restarting"


async def test_a_limit_of_the_rate_holds_for_a_page(make_rig) -> None:
    rig = make_rig(limit_rate=True, iopub_data_rate_limit=1000.0, rate_limit_window=1.0)
    rig.prove()
    book = Notebook(rig)
    book.run("a")
    book.begin("a")
    page, _ = follow(rig, "a")
    program, _ = follow(rig, "a", session="program", paced=False)
    for number in range(20):
        book.print("a", f"{number}".ljust(400, "."))
    late, _ = follow(rig, "a", session="late")
    assert "".join(texts(program)) == book.output("a")
    for client in (page, late):
        assert 0 < len("".join(texts(client))) < 2000
    for _ in range(20):
        rig.clock.now += 1.0
        rig.fire_pace_timer()
    for client in (page, late):
        assert "".join(texts(client)) == book.output("a")


# -- lagging, and coming back ---------------------------------------------------------------------


async def test_a_client_that_lags_gets_it_joined(rig) -> None:
    book = Notebook(rig)
    client, _ = follow(rig, "a")
    client.stalled = True
    play(book, 200)
    client.resume()
    found = [m for m in received(client) if m.msg_type == "stream"]
    assert "".join(texts(client)) == book.output("a")
    printed = [m for m in book.said if m.msg_type == "stream" and m.parent_id == "a"]
    assert len(found) < 0.75 * len(printed)
    assert ids(client)[-1] == book.wanted("a")[-1]


async def test_a_client_comes_back_behind_any_message_and_receives_the_rest_once(rig) -> None:
    book = Notebook(rig)
    play(book, 40)
    wanted = book.wanted("a", "b")
    for index, last in enumerate(wanted):
        client, _ = follow(rig, "a", "b", session=f"s{index}", since=last, verbatim=True)
        assert ids(client) == wanted[index + 1 :]


async def test_a_client_that_lags_and_is_cut_off_comes_back_behind_what_it_received(rig) -> None:
    book = Notebook(rig)
    client, cursor = follow(rig, "a")
    client.stalled = True
    play(book, 100)
    client.resume()
    got = received(client)
    for count in range(1, len(got)):
        again, cursor = follow(rig, "a", since=got[count - 1].msg_id)
        rig.hub.detach(cursor)
        both = got[:count] + received(again)
        printed = "".join(json.loads(m.content)["text"] for m in both if m.msg_type == "stream")
        assert printed == book.output("a")


async def test_it_comes_back_with_the_number_of_a_ping(rig) -> None:
    book = Notebook(rig)
    client, cursor = follow(rig, "a", silent=True)
    book.run("a", "b")
    book.begin("a")
    book.print("b", "skipped")
    rig.hub.detach(cursor)
    book.print("a", "next")
    again, _ = follow(rig, "a", since=client.pings[-1].decode())
    assert texts(again) == ["next"]


async def test_the_place_of_the_page_is_its_own(rig) -> None:
    """A page gives all its websockets one `session_id`."""
    page, cursor = rig.attach("page", silent=True)
    book = Notebook(rig, "other")
    reader, _ = follow(rig, "a", session="page")
    play(book, 20)
    assert ids(reader) == book.wanted("a"), "and has acknowledged it"
    rig.hub.detach(cursor)
    again, _ = rig.attach("page", verbatim=True)
    assert ids(again) == ids(page), "nothing was acknowledged there"


async def test_two_of_one_session_that_follow_others_do_not_skip_for_each_other(rig) -> None:
    book = Notebook(rig)
    play(book, 40)
    one, first = follow(rig, "a", verbatim=True)
    rig.hub.detach(first)
    two, _ = follow(rig, "b", verbatim=True)
    assert (ids(one), ids(two)) == (book.wanted("a"), book.wanted("b"))
    again, _ = follow(rig, "a", verbatim=True)
    assert ids(again) == book.wanted("a"), "without `since` it is a new page"


async def test_an_unknown_since_is_a_marker_and_then_everything(rig) -> None:
    book = Notebook(rig)
    play(book, 20)
    client, _ = follow(rig, "a", since="no-such-id", verbatim=True)
    marker, *rest = received(client)
    assert "may be missing here" in json.loads(marker.content)["text"]
    assert marker.parent_id == "a"
    assert [m.msg_id for m in rest] == book.wanted("a")
    again, _ = follow(rig, "a", since="no-such-id", verbatim=True)
    assert ids(again)[1:] == book.wanted("a"), "a known session, too"
    again, _ = follow(rig, "a", since=marker.msg_id, verbatim=True)
    assert ids(again) == book.wanted("a"), "behind the marker"


# -- output that is on disk only ------------------------------------------------------------------


@pytest.fixture
async def store(tmp_path) -> AsyncIterator[JournalStore]:
    made = await open_store(tmp_path / "journal")
    yield made
    await made.aclose(keep=False)


@pytest.fixture
async def on_disk(store) -> AsyncIterator[Rig]:
    """A hub whose memory holds 64 KiB."""
    rig = Rig(SETTINGS, store=store)
    rig.prove()
    yield rig
    await rig.hub.aclose()


async def test_across_disk_and_memory_each_is_received_once(on_disk, store) -> None:
    rig = on_disk
    book = Notebook(rig)
    play(book, 300, size=2000)
    await store.history("a-kernel").flush()
    rig.kernel.drain()
    assert rig.hub.journal.first_seq > 100
    client, cursor = follow(rig, "a", "b", verbatim=True)
    book.print("a", "while it reads")
    await caught_up(rig, cursor)
    book.print("a", "and live")
    wanted = book.wanted("a", "b")
    assert ids(client) == wanted
    joined, cursor = follow(rig, "a", session="joined")
    await caught_up(rig, cursor)
    assert "".join(texts(joined)) == book.output("a")
    for index in range(0, len(wanted) - 1, 9):
        rest = wanted[index + 1 :]
        again = follow(rig, "a", "b", session=f"s{index}", since=wanted[index], verbatim=True)
        assert await received_after(rig, *again, len(rest)) == rest


async def received_after(rig: Rig, client: Peer, cursor: Cursor, count: int) -> list[str]:
    """Return the ids of what a client received whose last message may be looked for on disk."""
    await until(lambda: len(received(client)) >= count)
    await caught_up(rig, cursor)
    rig.hub.detach(cursor)
    return ids(client)


async def test_frames_that_were_loaded_are_not_kept(on_disk, store) -> None:
    book = Notebook(on_disk)
    play(book, 300, size=2000)
    await store.history("a-kernel").flush()
    on_disk.kernel.drain()
    _, cursor = follow(on_disk, "a")
    await caught_up(on_disk, cursor)
    assert on_disk.renderer.caches, "so they are dropped a moment later"
    on_disk.renderer.forget_all()
    assert not on_disk.renderer.caches


async def test_after_a_crash_of_the_server_it_goes_on_behind_the_last_message(
    tmp_path,
) -> None:
    bridges = Bridges(tmp_path)
    rig = await bridges.next()
    book = Notebook(rig)
    client, _ = follow(rig, "a", verbatim=True)
    book.run("a", "b")
    book.begin("a")
    book.begin("b")
    for number in range(20):
        book.print("ab"[number % 2], f"{number};")
    before = received(client)
    rig = await bridges.crash()
    after = Notebook(rig, "page")
    after.requests = book.requests
    after.print("a", "later")
    after.end("a")
    fresh, cursor = follow(rig, "a", session="y", verbatim=True)
    await caught_up(rig, cursor)
    notice, *more = [m for m in received(fresh) if b"[kbridge" in m.content]
    assert (notice.parent_id, more) == ("a", [])
    wanted = [*book.wanted("a"), notice.msg_id, *after.wanted("a")]
    assert ids(fresh) == wanted
    for count, last in enumerate(before[:-1], 1):
        again = follow(rig, "a", session="x", since=last.msg_id, verbatim=True)
        assert await received_after(rig, *again, len(wanted) - count) == wanted[count:]
    await bridges.aclose()


# -- gaps -----------------------------------------------------------------------------------------


async def tight(make_rig: Callable[..., Rig], limit: int = 20_000) -> Notebook:
    rig = make_rig(journal_limit=limit, history_limit=0, burst_limit=0)
    rig.prove()
    book = Notebook(rig)
    book.client.stalled = True  # so the journal keeps what it can
    book.run("a", "b")
    book.begin("a")
    return book


async def test_missing_output_of_a_request_is_marked_in_it(make_rig) -> None:
    book = await tight(make_rig)
    for number in range(200):
        book.print("a", f"{number:04}".ljust(400, "."))
    client, _ = follow(book.rig, "a", verbatim=True)
    assert kinds(client)[:2] == ["status", "execute_input"], "state is retained"
    marker, *rest = texts(client)
    assert "were dropped" in marker
    assert received(client)[2].parent_id == "a"
    assert "".join(rest) == book.output("a")[-len("".join(rest)) :]


async def test_a_request_of_which_everything_is_missing_is_marked_at_once(make_rig) -> None:
    rig = make_rig(history_limit=0)
    rig.prove()
    book = Notebook(rig)
    book.run("a")
    book.begin("a")
    book.end("a")
    rig.fire_ping_timer()
    assert rig.hub.journal.nbytes == 0
    client, cursor = follow(rig, "a")
    (marker,) = received(client)
    assert (marker.parent_id, cursor.place.seq) == ("a", rig.hub.journal.next_seq)
    assert "4 messages" in texts(client)[0]


async def test_missing_output_of_another_request_is_not_marked_after_the_end(make_rig) -> None:
    book = await tight(make_rig)
    book.print("a", "all of it")
    book.end("a")
    client, _ = follow(book.rig, "a", verbatim=True)
    client.stalled = True
    book.begin("b")
    for number in range(200):
        book.print("b", f"{number:04}".ljust(400, "."))
    client.resume()
    assert ids(client) == book.wanted("a")


async def test_missing_output_of_another_request_is_marked_while_a_request_runs(make_rig) -> None:
    """Some of it may be the request's: a client must not take its output for complete."""
    book = await tight(make_rig)
    client, _ = follow(book.rig, "a", verbatim=True)
    client.stalled = True
    book.print("a", "lost")
    book.begin("b")
    for number in range(200):
        book.print("b", f"{number:04}".ljust(400, "."))
    client.resume()
    book.print("a", "after")
    found = [m for m in received(client) if m.msg_type == "stream" and m.parent_id == "a"]
    assert any("were dropped" in json.loads(m.content)["text"] for m in found)


# -- turns ----------------------------------------------------------------------------------------


async def test_much_output_of_others_is_read_in_turns_and_nobody_waits_for_it(make_rig) -> None:
    rig = make_rig(journal_limit=64 << 20, history_limit=64 << 20)
    rig.prove()
    book = Notebook(rig)
    book.run("a", "b")
    book.begin("a")
    for number in range(2000):
        book.print("b", f"{number:05}".ljust(8 * KIB, "."))
    book.print("a", "the one line")
    start = rig.hub.journal.next_seq
    client, cursor = follow(rig, "a")
    assert cursor.place.seq < start / 10, "one turn"
    while cursor.place.seq < rig.hub.journal.next_seq:
        book.print("b", "!")
        assert texts(book.client)[-1] == "!", "others are served at once"
        await asyncio.sleep(0)
    assert texts(client) == ["the one line"]


@pytest.mark.parametrize("dialect", [V1, LEGACY])
async def test_a_large_frame_of_another_request_is_not_copied(make_rig, dialect) -> None:
    rig = make_rig(history_limit=64 << 20)
    rig.prove()
    book = Notebook(rig)
    book.run("a", "b")
    book.begin("a")
    book.print("b", "x" * (20 << 20))
    client, cursor = follow(rig, "a", dialect=dialect)
    await caught_up(rig, cursor)
    assert len(client.written) < 10_000


async def test_acknowledgements_let_the_journal_go(make_rig) -> None:
    rig = make_rig(history_limit=0)
    rig.prove()
    client, cursor = follow(rig, "a")
    book = Notebook(rig)
    book.client.silent = False
    play(book, 50)
    rig.fire_ping_timer()
    assert rig.hub.journal.nbytes == 0
    assert cursor.delivered == cursor.place
    assert ids(client) == book.wanted("a")
