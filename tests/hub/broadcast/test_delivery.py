"""One journal, many cursors: shared chunks, slow readers, gaps and private frames."""

import asyncio
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.flow.journal import EVERYONE, Journal
from kbridge.flow.pace import Pace
from kbridge.hub.broadcast import delivery as delivery_module
from kbridge.hub.broadcast import rendering as module
from kbridge.hub.broadcast.client_sessions import ClientSessions
from kbridge.hub.broadcast.cursor import CursorOptions
from kbridge.hub.broadcast.delivery import Delivery
from kbridge.hub.broadcast.rendering import Renderer
from kbridge.hub.clock import Clock
from kbridge.hub.notices import Notices
from kbridge.hub.rejected import REJECTED, DroppedMessages
from kbridge.link.memory import MemoryClient
from kbridge.wire.build import build
from kbridge.wire.dialects import LEGACY, V1
from kbridge.wire.message import Channel, Message
from kbridge.wire.v1 import encode_frame
from tests.hub.rig import frames_of, received, texts


class Watched(MemoryClient):
    """Stores the objects that are written."""

    def __init__(self) -> None:
        super().__init__()
        self.objects: list[bytes] = []

    def write(self, data: bytes) -> bool:
        self.objects.append(data)
        return super().write(data)


class Desk:
    """A journal and its readers, created in a running loop."""

    def __init__(
        self, limit: int = 1 << 20, history: int = 1 << 20, *, joins: bool = False
    ) -> None:
        clock = Clock()
        self.journal = Journal(limit, history)
        self.clients = ClientSessions(0.0)
        self.rejected = DroppedMessages(
            REJECTED, "a-kernel", clock, logging.getLogger("kbridge.hub")
        )
        pace = Pace(limit_rate=False)
        self.renderer = Renderer(self.journal, pace, Notices(clock), self.rejected, joins=joins)
        self.delivery = Delivery(self.journal, pace, self.clients, self.renderer, clock, 0)

    def attach(self, session="", dialect=V1):
        client = Watched()
        cursor = self.clients.attach(client, dialect, session, self.journal.end(), CursorOptions())
        client.on_writable = lambda: self.delivery.on_writable(cursor)
        return client, cursor

    def say(self, *messages: Message, audience: int = EVERYONE, state: bool = False) -> None:
        for msg in messages:
            self.journal.append(encode_frame(msg), audience, state=state)

    def deliver(self) -> None:
        self.delivery.flush()


@pytest.fixture(autouse=True)
def one_turn(monkeypatch) -> None:
    """Write everything in one turn of the loop."""
    monkeypatch.setattr(delivery_module, "_TURN", 1 << 40)
    monkeypatch.setattr(delivery_module, "_AT_ONCE", 1 << 40)


def stream(text: str, **more) -> Message:
    return build(
        Channel.IOPUB,
        "stream",
        {"name": "stdout", "text": text},
        session="s",
        date="2030-01-01T00:00:00Z",
        **more,
    )


@pytest.fixture
async def desk() -> Desk:
    return Desk()


@pytest.mark.parametrize("count", [2, 16])
async def test_readers_at_one_place_share_one_bytes_object(desk, count) -> None:
    readers = [desk.attach()[0] for _ in range(count)]
    desk.say(*(stream(str(i)) for i in range(20)))
    desk.deliver()
    assert len({id(r.objects[0]) for r in readers}) == 1
    assert all(texts(r) == [str(i) for i in range(20)] for r in readers)
    assert all(r.writes == 1 for r in readers)


async def test_those_beyond_the_bytes_that_are_written_at_once_wait_for_a_turn(
    desk, monkeypatch
) -> None:
    """The reader that uses the last of these bytes leaves none for the next one."""
    frame = encode_frame(stream("a"))
    monkeypatch.setattr(delivery_module, "_COST", 0)
    monkeypatch.setattr(delivery_module, "_AT_ONCE", len(frame))
    readers = [desk.attach()[0] for _ in range(2)]
    desk.journal.append(frame)
    desk.deliver()
    assert [reader.writes for reader in readers] == [1, 0]
    await asyncio.sleep(0)  # one turn of the event loop
    assert [texts(reader) for reader in readers] == [["a"], ["a"]]


async def test_a_single_frame_is_not_even_copied_out_of_the_journal(desk) -> None:
    reader, _ = desk.attach()
    frame = encode_frame(stream("alone"))
    desk.journal.append(frame)
    desk.deliver()
    assert reader.objects == [frame]
    assert reader.objects[0] is frame


async def test_dialects_mix_and_each_is_rendered_once(desk) -> None:
    pairs = [desk.attach(dialect=d) for d in (V1, LEGACY, V1, LEGACY)]
    readers = [client for client, _ in pairs]
    said = [stream("ü"), stream("b", buffers=[b"\x00\xff"])]
    desk.say(*said)
    desk.deliver()
    assert readers[0].objects[0] is readers[2].objects[0]
    assert readers[1].objects[0] is readers[3].objects[0]
    assert received(readers[0]) == said
    (op1, one), (op2, two) = frames_of(readers[1].written)
    assert (op1, op2) == (1, 2)
    assert json.loads(one)["content"]["text"] == "ü"
    assert two.endswith(b"\x00\xff")


async def test_private_frames_reach_their_client_and_nobody_shares_them(desk) -> None:
    one, first = desk.attach("one")
    other, _ = desk.attach("other")
    old, _ = desk.attach("one", LEGACY)
    desk.say(stream("all"))
    desk.say(stream("yours"), audience=first.session.number)
    desk.say(stream("all again"))
    desk.deliver()
    assert texts(one) == ["all", "yours", "all again"]
    assert texts(other) == ["all", "all again"]
    assert [json.loads(p)["content"]["text"] for _, p in frames_of(old.written)] == [
        "all",
        "yours",
        "all again",
    ]


async def test_who_is_owed_nothing_of_a_stretch_moves_on_without_a_write(desk) -> None:
    reader, attachment = desk.attach()
    desk.say(stream("not yours"), audience=99)
    desk.deliver()
    assert reader.writes == 0
    assert attachment.place == attachment.delivered == desk.journal.end()


async def test_a_long_stretch_goes_in_chunks_that_are_shared_too(desk, monkeypatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 3500)
    readers = [desk.attach()[0] for _ in range(3)]
    desk.say(*(stream(f"{i:0100}") for i in range(50)))
    desk.deliver()
    assert 3 < readers[0].writes <= module._KEPT
    assert all(len(data) < 4000 for data in readers[0].objects)
    shared = zip(*(r.objects for r in readers), strict=True)
    assert all(len({id(data) for data in same}) == 1 for same in shared)
    assert all(texts(r) == [f"{i:0100}" for i in range(50)] for r in readers)


async def test_what_is_kept_for_the_next_reader_is_bounded(desk, monkeypatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 500)
    readers = [desk.attach() for _ in range(2)]
    desk.say(*(stream(f"{i:0100}") for i in range(50)))
    reader = readers[0][1]
    while (portion := desk.renderer.next(reader)) is not None:
        reader.write(b"", portion.end)
        assert len(desk.renderer._chunks) <= module._KEPT
    reader.write(b"", readers[1][1].place)
    desk.deliver()
    assert not desk.renderer._chunks
    assert all(texts(r) == [f"{i:0100}" for i in range(50)] for r, _ in readers)


async def test_a_blocked_reader_holds_one_chunk_and_goes_on_by_itself(desk, monkeypatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 1000)
    slow, attachment = desk.attach()
    honest, _ = desk.attach()
    slow.stalled = True
    start = attachment.place
    desk.say(*(stream(f"{i:0100}") for i in range(50)))
    desk.deliver()
    assert attachment.blocked
    assert attachment.delivered == start, "the write is still on its way"
    assert len(slow.objects) == 1
    assert len(texts(honest)) == 50
    slow.resume()
    assert texts(slow) == [f"{i:0100}" for i in range(50)]
    assert attachment.delivered == attachment.place == desk.journal.end()
    assert not attachment.blocked


async def test_what_is_said_after_a_reader_has_caught_up_reaches_it_at_once(desk) -> None:
    """A chunk cached while it caught up must not hide later frames."""
    slow, _ = desk.attach()
    slow.stalled = True
    desk.say(stream("one"))
    desk.deliver()
    slow.resume()
    desk.say(stream("two"))
    desk.deliver()
    assert texts(slow) == ["one", "two"]


async def test_a_closed_reader_is_left_alone_and_its_place_kept(desk) -> None:
    gone, attachment = desk.attach()
    gone.close(1000, "")
    desk.say(stream("late"))
    desk.deliver()
    assert gone.objects == []
    assert attachment.place != desk.journal.end()


async def test_a_gap_is_told_once_in_the_cell_that_lost_output() -> None:
    desk = Desk(limit=5000, history=0)
    parent = stream("request", msg_id="the-cell").header
    slow, _ = desk.attach()
    old, _ = desk.attach(dialect=LEGACY)
    slow.stalled = old.stalled = True
    desk.say(stream("first"))
    desk.deliver()
    desk.say(*(stream(f"{i:0100}", parent_header=parent) for i in range(100)))
    slow.resume()
    old.resume()
    got = texts(slow)
    assert got[0] == "first"
    missed = 100 - (len(got) - 2)
    assert f"{missed:,} messages" in got[1]
    assert [m.parent_id for m in received(slow)][1] == "the-cell"
    assert got[2:] == [f"{i:0100}" for i in range(missed, 100)]
    # Each marker is a new message with its own id; the text is the same.
    assert [json.loads(p)["content"]["text"] for _, p in frames_of(old.written)] == got


async def test_a_kernel_that_signs_what_is_hardly_a_message_stops_nobody(desk) -> None:
    """Headers are not validated; a websocket passes on the messages that it can express."""
    strict, _ = desk.attach()
    old, _ = desk.attach(dialect=LEGACY)
    odd = Message(Channel.IOPUB, b"{}", b"[]", b"null", b'{"a":NaN}')
    desk.say(odd, stream("after"))
    desk.deliver()
    assert texts_of_legacy(old)[-1] == "after"
    assert len(frames_of(old.written)) == 2
    assert len(frames_of(strict.written)) == 2
    assert desk.rejected.total == 0


async def test_what_has_no_form_in_a_dialect_is_refused_there_alone(desk) -> None:
    strict, _ = desk.attach()
    old, attachment = desk.attach(dialect=LEGACY)
    bad = stream("x")._replace(content=b'{"name":"stdout","text":"\xff"}')
    desk.say(stream("before"), bad, stream("after"))
    desk.deliver()
    assert texts_of_legacy(old) == ["before", "after"]
    assert len(frames_of(strict.written)) == 3, "the v1 dialect passes any bytes on"
    assert desk.rejected.total == 1
    assert attachment.place == desk.journal.end()


async def test_a_stretch_of_nothing_but_the_refused_is_no_write(desk) -> None:
    old, attachment = desk.attach(dialect=LEGACY)
    desk.say(stream("x")._replace(content=b'"\xff"'))
    desk.deliver()
    assert old.writes == 0
    assert attachment.delivered == desk.journal.end()


async def test_a_gap_whose_last_frame_is_odd_is_told_without_a_cell() -> None:
    desk = Desk(limit=300, history=0)
    slow, _ = desk.attach()
    slow.stalled = True
    desk.say(stream("first"))
    desk.deliver()
    desk.say(Message(Channel.IOPUB, b"{}", b"", b"", b"x" * 200))
    desk.say(stream("last"))
    slow.resume()
    assert texts(slow)[0] == "first"
    assert "1 message (" in texts(slow)[1]


def texts_of_legacy(client: MemoryClient) -> list[str]:
    loaded = [json.loads(p)["content"] for _, p in frames_of(client.written)]
    return [content["text"] for content in loaded if "text" in content]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 200_000])
async def test_every_length_of_a_frame_is_read_back_for_the_legacy_dialect(desk, size) -> None:
    old, _ = desk.attach(dialect=LEGACY)
    desk.say(stream("x" * size))
    desk.deliver()
    assert texts_of_legacy(old) == ["x" * size]


STEP = st.one_of(
    st.tuples(st.just("say"), st.integers(0, 2), st.integers(1, 60)),
    st.tuples(st.just("stall"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("resume"), st.integers(0, 2), st.just(0)),
)


@given(st.lists(STEP, max_size=60), st.integers(200, 4000))
async def test_whoever_stalls_and_when_each_gets_all_in_order(steps, chunk) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        desk = Desk()
        readers = [desk.attach(str(i), (V1, LEGACY, V1)[i]) for i in range(3)]
        owed: list[list[str]] = [[], [], []]
        for i, (what, who, size) in enumerate(steps):
            client, attachment = readers[who]
            if what == "stall":
                client.stalled = True
            elif what == "resume":
                client.resume() if attachment.blocked else setattr(client, "stalled", False)
            else:
                text = f"{i}:" + "x" * size
                audience = EVERYONE if who == 0 else readers[who][1].session.number
                desk.say(stream(text), audience=audience)
                for j in range(3):
                    if who in (0, j):
                        owed[j].append(text)
            desk.deliver()
        for (client, attachment), expected in zip(readers, owed, strict=True):
            if attachment.blocked:
                client.resume()
            read = texts_of_legacy if attachment.dialect is LEGACY else texts
            assert read(client) == expected
