"""Input requests of sessions that are away, for websockets that follow the request."""

from typing import Any

import pytest

from kbridge.hub.broadcast.cursor import Cursor
from kbridge.wire.dialects import LEGACY
from kbridge.wire.message import Channel, Message
from tests.hub.broadcast.test_loading import SETTINGS, caught_up, open_store, until
from tests.hub.rig import Peer, Rig, frames_of, received, texts
from tests.hub.test_recorder import Bridges


class Asker:
    """A page whose cell asks for input."""

    def __init__(self, rig: Rig, session: str = "page", msg_id: str = "a") -> None:
        self.rig = rig
        self.session = session
        self.client, self.cursor = rig.attach(session)
        content = {"code": "input()"}
        self.request = rig.message(Channel.SHELL, "execute_request", content, msg_id=msg_id)
        rig.hub.submit(self.cursor, self.request)
        self.status("busy")

    def status(self, state: str) -> None:
        content = {"execution_state": state}
        self.rig.say(self.rig.message(Channel.IOPUB, "status", content, self.request.header))

    def ask(self) -> Message:
        content = {"prompt": "?", "password": False}
        asked = self.rig.message(Channel.STDIN, "input_request", content, self.request.header)
        self.rig.say(asked)
        return asked

    def print(self, text: str) -> None:
        self.rig.say(self.rig.stream(text, self.request.header))

    def leave(self) -> None:
        self.rig.hub.detach(self.cursor)

    def come_back(self, **more: Any) -> Peer:
        self.client, self.cursor = self.rig.attach(self.session, **more)
        return self.client


def follow(rig: Rig, session: str = "reader", **more: Any) -> tuple[Peer, Cursor]:
    return rig.attach(session, parents=more.pop("parents", ["a"]), **more)


def questions(client: Peer) -> list[Message]:
    return [m for m in received(client) if m.msg_type == "input_request"]


def answer(rig: Rig, cursor: Cursor, asked: Message, value: str = "42") -> None:
    msg = rig.message(Channel.STDIN, "input_reply", {"value": value}, asked.header)
    rig.hub.submit(cursor, msg)


def answers(rig: Rig) -> list[bytes]:
    return [m.content for m in rig.sent(Channel.STDIN)]


async def test_one_of_a_page_that_is_here_is_not_received(rig) -> None:
    page = Asker(rig)
    live, _ = follow(rig)
    page.ask()
    late, _ = follow(rig, "late")
    assert questions(live) == questions(late) == []


async def test_one_of_a_page_that_has_gone_is_received_and_can_be_answered(rig) -> None:
    page = Asker(rig)
    page.leave()
    live, _ = follow(rig)
    asked = page.ask()
    late, cursor = follow(rig, "late")
    assert questions(live) == questions(late) == [asked]
    assert [m.msg_type for m in received(late)] == ["status", "input_request"], "in order"
    answer(rig, cursor, questions(late)[0])
    assert len(answers(rig)) == 1


async def test_in_the_legacy_dialect_too(rig) -> None:
    page = Asker(rig)
    live, _ = follow(rig, dialect=LEGACY)
    page.ask()
    page.leave()
    assert any(b"input_request" in data for _, data in frames_of(live.written))


async def test_when_the_page_goes_later_it_is_received_then(rig) -> None:
    page = Asker(rig)
    live, _ = follow(rig)
    other, _ = follow(rig, "other", parents=["b"])
    asked = page.ask()
    page.print("from a thread")
    page.leave()
    assert [m.msg_type for m in received(live)] == ["status", "stream", "input_request"]
    assert questions(live) == [asked]
    assert questions(other) == []


async def test_it_is_received_when_the_last_websocket_of_the_page_goes(rig) -> None:
    page = Asker(rig)
    _, second = rig.attach("page")
    live, _ = follow(rig)
    page.ask()
    page.leave()
    assert questions(live) == []
    rig.hub.detach(second)
    assert len(questions(live)) == 1


async def test_a_websocket_that_does_not_read_receives_it_when_it_reads_on(rig) -> None:
    page = Asker(rig)
    live, _ = follow(rig)
    asked = page.ask()
    live.stalled = True
    page.print("before")
    page.print("more")
    page.leave()
    live.resume()
    assert questions(live) == [asked]


async def test_a_websocket_that_has_yet_to_read_it_receives_it_in_order(rig) -> None:
    page = Asker(rig)
    live, _ = follow(rig)
    live.stalled = True
    page.print("before")
    page.status("busy")
    asked = page.ask()
    page.leave()
    page.print("after")
    live.resume()
    kinds = [m.msg_type for m in received(live)]
    assert kinds == ["status", "stream", "status", "input_request", "stream"]
    assert questions(live) == [asked]


async def test_a_page_that_comes_back_is_asked_again_and_the_reader_is_not(rig) -> None:
    page = Asker(rig)
    live, cursor = follow(rig)
    asked = page.ask()
    page.leave()
    assert questions(page.come_back()) == [asked]
    page.leave()
    assert questions(page.come_back()) == [asked]
    assert questions(live) == [asked], "once"
    new, _ = follow(rig, "new")
    assert questions(new) == [], "the page is here"
    answer(rig, page.cursor, asked, "first")
    answer(rig, cursor, asked, "second")
    assert len(answers(rig)) == 1
    assert b"first" in answers(rig)[0]


async def test_the_first_answer_counts_whoever_gives_it(rig) -> None:
    page = Asker(rig)
    _, cursor = follow(rig)
    asked = page.ask()
    page.leave()
    answer(rig, cursor, asked, "reader")
    assert questions(page.come_back()) == []
    answer(rig, page.cursor, asked, "page")
    assert len(answers(rig)) == 1
    assert b"reader" in answers(rig)[0]


@pytest.mark.parametrize("end", ["answer", "idle", "restart"])
async def test_one_that_was_closed_is_not_received(rig, end) -> None:
    page = Asker(rig)
    live, cursor = follow(rig)
    asked = page.ask()
    if end == "answer":
        answer(rig, page.cursor, asked)
    elif end == "idle":
        page.status("idle")
    else:
        await rig.hub.restarting()
    page.leave()
    late, _ = follow(rig, "late")
    assert questions(live) == questions(late) == []
    del cursor


async def test_each_of_several_is_received_once(rig) -> None:
    first, second = Asker(rig, "one", "a"), Asker(rig, "two", "b")
    live, _ = follow(rig, parents=["a", "b"])
    asked = [first.ask(), second.ask()]
    second.leave()
    first.leave()
    assert questions(live) == asked[::-1]


async def test_a_page_with_since_takes_it_over_and_the_reader_is_not_asked_twice(rig) -> None:
    page = Asker(rig)
    live, _ = follow(rig)
    asked = page.ask()
    page.leave()
    reloaded, cursor = rig.attach("reloaded", since="start")
    assert questions(reloaded) == [asked]
    other, _ = follow(rig, "other")
    assert questions(other) == [], "that one is here"
    rig.hub.detach(cursor)
    assert questions(live) == [asked]
    new, _ = follow(rig, "new")
    assert questions(new) == [asked], "that one has gone, too"


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("count", range(1, 6))
async def test_a_reader_comes_back_behind_any_message_and_is_asked_once(
    rig, count, answered
) -> None:
    """The request comes out of order, between messages of the journal."""
    page = Asker(rig)
    live, cursor = follow(rig, verbatim=True)
    page.print("1")
    asked = page.ask()
    page.print("2")
    page.leave()
    page.print("3")
    got = received(live)
    assert [m.msg_type for m in got] == ["status", "stream", "stream", "input_request", "stream"]
    rig.hub.detach(cursor)
    if answered:
        _, other = rig.attach("answers")
        answer(rig, other, asked)
    again, _ = follow(rig, since=got[count - 1].msg_id, verbatim=True)
    rest = [m.msg_id for m in received(again)]
    assert sorted(rest) == sorted(m.msg_id for m in got[count:] if not answered or m != asked)


async def test_a_reader_that_came_back_is_not_asked_again_when_the_page_goes_again(rig) -> None:
    page = Asker(rig)
    live, cursor = follow(rig)
    asked = page.ask()
    page.leave()
    assert questions(live) == [asked]
    rig.hub.detach(cursor)
    again, _ = follow(rig, since=asked.msg_id)
    page.come_back()
    page.leave()
    assert received(again) == []


async def test_the_end_of_the_kernel_asks_nobody(rig) -> None:
    page = Asker(rig)
    live, _ = follow(rig)
    page.ask()
    await rig.hub.aclose()
    assert questions(live) == []


async def test_a_reader_that_comes_back_when_the_page_has_gone_is_asked(rig) -> None:
    page = Asker(rig)
    _, cursor = follow(rig)
    asked = page.ask()
    page.print("last")
    (last,) = [m for m in received(page.client) if m.msg_type == "stream"]
    rig.hub.detach(cursor)
    page.leave()
    again, _ = follow(rig, since=last.msg_id)
    assert received(again) == [asked]


async def test_after_a_crash_a_reader_is_asked_and_its_answer_arrives(tmp_path) -> None:
    bridges = Bridges(tmp_path)
    rig = await bridges.next()
    page = Asker(rig)
    asked = page.ask()
    page.print("last")
    rig = await bridges.crash()
    client, cursor = follow(rig)
    await until(lambda: questions(client))
    assert questions(client) == [asked]
    answer(rig, cursor, asked)
    assert len(answers(rig)) == 1
    done, cursor = follow(rig, "done", since="start")
    await until(lambda: cursor.place.seq == rig.hub.journal.next_seq)
    assert questions(done) == []
    await bridges.aclose()


async def test_a_reader_whose_place_is_looked_for_on_disk_is_asked_in_order(tmp_path) -> None:
    store = await open_store(tmp_path / "journal")
    rig = Rig(SETTINGS, store=store)
    rig.prove()
    page = Asker(rig)
    printed = [rig.stream(f"{n};".ljust(5000, "."), page.request.header) for n in range(100)]
    for msg in printed:
        rig.say(msg)
    asked = page.ask()
    page.print("after")
    await store.history("a-kernel").flush()
    rig.kernel.drain()
    reader, cursor = follow(rig, since=printed[10].msg_id)
    assert received(reader) == [], "only the disk knows that message"
    page.leave()
    await until(lambda: bool(received(reader)))
    await caught_up(rig, cursor)
    assert [m.msg_type for m in received(reader)][-2:] == ["input_request", "stream"]
    assert questions(reader) == [asked]
    assert "".join(texts(reader)).startswith("11;")
    rig.hub.detach(cursor)
    again, cursor = follow(rig, since=asked.msg_id)
    await until(lambda: bool(received(again)))
    await caught_up(rig, cursor)
    assert texts(again) == ["after"]
    await rig.hub.aclose()
    await store.aclose(keep=False)


async def test_after_a_crash_a_late_question_is_no_reason_to_repeat_output(tmp_path) -> None:
    bridges = Bridges(tmp_path)
    rig = await bridges.next()
    page = Asker(rig)
    reader, _ = follow(rig)
    asked = page.ask()
    page.print("from a thread")
    page.leave()
    assert received(reader)[-1].msg_id == asked.msg_id, "behind the output"
    page.print("later")
    rig = await bridges.crash()
    reader, _ = follow(rig, since=asked.msg_id)
    await until(lambda: bool(received(reader)))
    assert texts(reader) == ["later"]
    assert questions(reader) == []
    stranger, _ = follow(rig, "stranger", since=asked.msg_id)
    await until(lambda: bool(received(stranger)))
    assert texts(stranger) == ["from a threadlater"]
    await bridges.aclose()


async def test_one_of_a_client_that_is_not_known_is_received(rig) -> None:
    page = Asker(rig)
    page.request = rig.message(Channel.SHELL, "execute_request", {}, msg_id="unknown")
    live, _ = follow(rig, parents=["unknown"])
    stranger, _ = follow(rig, "stranger")
    asked = page.ask()
    late, _ = follow(rig, "late", parents=["unknown"])
    assert questions(live) == questions(late) == [asked]
    assert questions(stranger) == []
