"""Overrides of hooks in subclasses are called, as with Jupyter Server's own class.

Almost all tests run with three classes in both dialects: kbridge's class for the standalone server,
kbridge's class for Jupyter Server, and Jupyter Server's own class, which is the reference.
"""

import asyncio
import functools
import json
import sys
from datetime import datetime
from typing import Any

import pytest
from jupyter_server.services.kernels.connection.base import (
    deserialize_binary_message,
    deserialize_msg_from_ws_v1,
    serialize_msg_to_ws_v1,
)

from kbridge.wire.message import Channel
from kbridge.wire.zmq import parse
from tests.support.client import attach
from tests.support.waiting import TIMEOUT

OURS = pytest.mark.parametrize("impl", ["standalone", "jupyter"])
V1 = pytest.mark.parametrize("dialect", ["v1"])
LEGACY = pytest.mark.parametrize("dialect", ["legacy"])
CONTENT = 3  # index of the content among the parts


def calls(base: Any, *names: str) -> tuple[Any, list[tuple[Any, ...]]]:
    """Return a subclass that records the calls of some methods and passes them on, and the list."""
    heard: list[tuple[Any, ...]] = []

    def noting(name: str) -> Any:
        @functools.wraps(getattr(base, name))
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            heard.append((name, *args, *kwargs.values()))
            return getattr(super(cls, self), name)(*args, **kwargs)

        return method

    cls: Any = type("Noting", (base,), {name: noting(name) for name in names})
    return cls, heard


def named(heard: list[tuple[Any, ...]]) -> list[str]:
    return [call[0] for call in heard]


def shout(content: bytes) -> bytes:
    read = json.loads(content)
    return json.dumps({**read, "text": read["text"].upper()}).encode()


# -- messages from the kernel ---------------------------------------------------------------


@pytest.mark.parametrize("signs", [True, False])
async def test_handle_outgoing_message_can_rewrite_messages(world, signs) -> None:
    class Loud(world.base):
        def handle_outgoing_message(self, stream, outgoing_msg):
            idents, (signature, *parts) = self.session.feed_identities(outgoing_msg)
            if json.loads(parts[0])["msg_type"] == "stream":
                parts[CONTENT] = shout(parts[CONTENT])
                signature = self.session.sign(parts[:4]) if signs else signature
            again = [*idents, b"<IDS|MSG>", signature, *parts]
            super().handle_outgoing_message(stream, again)

    _, handler = await world.open(Loud)
    if world.peer and world.dialect == "legacy" and not signs:
        # Jupyter Server's class verifies again; kbridge's does not, because the hub has verified.
        with pytest.raises(ValueError, match="Invalid Signature"):
            world.say(world.stream("a"))
        return
    told = world.message("iopub", "display_data", {"data": {}}, buffers=[b"\x00\xff"])
    world.say(world.stream("a"), told, world.stream("ü"))
    assert handler.texts() == ["A", "Ü"]
    (display,) = handler.read("display_data")
    assert display["buffers"] == [b"\x00\xff"]
    assert display["channel"] == "iopub"


async def test_handle_outgoing_message_is_given_a_stream_and_signed_parts(world) -> None:
    cls, heard = calls(world.base, "handle_outgoing_message")
    conn, handler = await world.open(cls)
    heard.clear()
    request = world.message("shell", "execute_request")
    handler.send(request)
    await world.settle()
    reply = world.message("shell", "execute_reply", {"status": "ok"}, parent=request.header)
    world.say(world.stream("a"), reply)
    await world.settle()
    for said, (_, stream, frames) in zip((world.stream("a"), reply), heard, strict=True):
        assert stream is conn.channels[str(said.channel)]
        assert stream.channel == str(said.channel)
        assert not stream.closed()
        read = parse(said.channel, list(frames), world.kernel.twin.signer)
        assert read._replace(header=b"") == said._replace(header=b"")
    assert [m["content"] for m in handler.read("execute_reply")] == [{"status": "ok"}]


async def test_handle_outgoing_message_accepts_the_name_of_a_channel(world) -> None:
    conn, handler = await world.open()
    said = world.stream("from somewhere")
    frames = [b"<IDS|MSG>", conn.session.sign(list(said[1:5])), *said[1:5]]
    conn.session.key = world.kernel.session.key
    frames[1] = conn.session.sign(frames[2:])
    conn.handle_outgoing_message("iopub", frames)
    await world.settle()
    assert handler.texts() == ["from somewhere"]


async def test_handle_outgoing_message_can_drop_messages(world) -> None:
    class Quiet(world.base):
        def handle_outgoing_message(self, stream, outgoing_msg):
            if b"quiet" not in outgoing_msg[-1]:
                super().handle_outgoing_message(stream, outgoing_msg)

    _, handler = await world.open(Quiet)
    world.say(*(world.stream(text) for text in ("one", "quiet", "last")))
    assert handler.texts() == ["one", "last"]


async def test_on_zmq_reply_is_given_parts_or_a_dict(world) -> None:
    class Mine(world.base):
        def _on_zmq_reply(self, stream, msg_list):
            if isinstance(msg_list, dict):
                assert msg_list["header"]["msg_type"] == msg_list["msg_type"] == "stream"
                msg_list["content"]["text"] = f"{stream.channel} dict"
            else:
                assert json.loads(msg_list[0])["msg_type"] == "stream"
                msg_list[CONTENT] = json.dumps({"text": f"{stream.channel} parts"}).encode()
            super()._on_zmq_reply(stream, msg_list)

    _, handler = await world.open(Mine)
    world.say(world.stream("a"))
    assert handler.texts() == [f"iopub {'parts' if world.dialect == 'v1' else 'dict'}"]


async def test_on_zmq_reply_can_call_write_message(world) -> None:
    """A subclass that replaces the method without calling the original."""

    class Mine(world.base):
        def _on_zmq_reply(self, stream, msg_list):
            if isinstance(msg_list, dict):
                data = self._reserialize_reply(msg_list, channel=stream.channel)
                self.write_message(data, binary=isinstance(data, bytes))
            else:
                self.write_message(serialize_msg_to_ws_v1(msg_list, stream.channel), binary=True)

    _, handler = await world.open(Mine)
    display = world.message("iopub", "display_data", {"data": {}}, buffers=[b"", b"\xff"])
    world.say(world.stream("a"), display, world.stream("b"))
    assert handler.texts() == ["a", "b"]
    assert [m["buffers"] for m in handler.read("display_data")] == [[b"", b"\xff"]]


async def test_reserialize_reply_applies_to_the_legacy_dialect(world) -> None:
    class Mine(world.base):
        def _reserialize_reply(self, msg_or_list, channel=None):
            msg_or_list["content"]["text"] += f" on {channel}"
            return super()._reserialize_reply(msg_or_list, channel)

    _, handler = await world.open(Mine)
    world.say(world.stream("a"))
    assert handler.texts() == ["a on iopub" if world.dialect == "legacy" else "a"]


@LEGACY
async def test_reserialize_reply_accepts_zeromq_parts(world) -> None:
    conn, _ = await world.open(calls(world.base, "_reserialize_reply")[0])
    for buffers in ([], [b"", b"\xff"]):
        frames = [*conn.session.serialize(conn.session.msg("x", {"a": "ü"})), *buffers]
        read = conn._reserialize_reply(frames, channel="shell")
        msg = deserialize_binary_message(read) if buffers else json.loads(read)
        assert (msg["channel"], msg["msg_type"], msg["content"]) == ("shell", "x", {"a": "ü"})
        assert msg["buffers"] == buffers


async def test_parts_are_read_with_get_part(world) -> None:
    world.configure(iopub_msg_rate_limit=1.0, rate_limit_window=1.0)
    cls, heard = calls(world.base, "get_part")
    _, handler = await world.open(cls)
    heard.clear()
    world.say(*(world.stream("a", parent=b'{"msg_id": "cell"}') for _ in range(3)))
    fields = [(call[1], call[2] is None) for call in heard]
    v1 = world.dialect == "v1"
    assert ("header", v1) in fields
    assert ("parent_header", v1) in fields
    assert all(len(call[3]) == 4 for call in heard)
    assert handler.texts()[0] == "a"


async def test_get_part_parses_only_the_missing_part(world) -> None:
    conn, _ = await world.open()
    parts = [b'{"a": 1}', b'{"b": 2}', b'{"c": 3}', b'{"d": 4}']
    assert conn.get_part("header", None, parts) == {"a": 1}
    assert conn.get_part("parent_header", None, parts) == {"b": 2}
    assert conn.get_part("content", None, parts) == {"d": 4}
    assert conn.get_part("content", {"known": 0}, parts) == {"known": 0}


async def test_write_message_may_be_a_property_with_its_own_callable(world) -> None:
    written = []

    class Mine(world.base):
        @property
        def write_message(self):
            usual = super().write_message

            def write(message, binary=False):
                written.append((type(message), binary))
                return usual(message, binary=binary)

            return write

    _, handler = await world.open(Mine)
    written.clear()
    display = world.message("iopub", "display_data", {"data": {}}, buffers=[b"\xff"])
    world.say(world.stream("a"), display)
    one = (bytes, True) if world.dialect == "v1" else (str, False)
    assert written == [one, (bytes, True)]
    assert handler.texts() == ["a"]
    assert len(handler.read("display_data")) == 1


async def test_on_error_is_called_for_every_message_on_every_channel(world) -> None:
    cls, heard = calls(world.base, "_on_error")
    _, handler = await world.open(cls)
    heard.clear()
    request = world.message("shell", "execute_request")
    handler.send(request)
    await world.settle()
    reply = world.message("shell", "execute_reply", {"status": "ok"}, parent=request.header)
    world.say(world.stream("a"), reply)
    await world.settle()
    assert [call[1] for call in heard] == ["iopub", "shell"]
    for _, _, msg, parts in heard:
        assert json.loads(parts[0])["msg_type"] in {"stream", "execute_reply"}
        if world.dialect == "legacy":
            assert msg["msg_type"] == json.loads(parts[0])["msg_type"]
            assert isinstance(msg["header"]["date"], datetime)
        assert {"header", "parent_header", "content"} <= set(msg)
    assert len(handler.read()) == 2


async def test_on_error_can_change_the_error(world) -> None:
    class Discreet(world.base):
        def _on_error(self, channel, msg, msg_list):
            header = self.get_part("header", msg["header"], msg_list)
            if channel == "iopub" and header["msg_type"] == "error":
                msg["content"] = self.get_part("content", msg["content"], msg_list)
                msg["content"]["evalue"] = "something"
                if self.subprotocol is not None:
                    msg_list[CONTENT] = self.session.pack(msg["content"])

    _, handler = await world.open(Discreet)
    error = {"ename": "E", "evalue": "secret", "traceback": []}
    world.say(world.message("iopub", "error", error), world.stream("a"))
    assert [m["content"]["evalue"] for m in handler.read("error")] == ["something"]
    assert handler.texts() == ["a"]


@OURS  # Jupyter Server's class expects a traceback where there is none
async def test_tracebacks_are_hidden_if_another_hook_is_overridden(world) -> None:
    world.kernels.allow_tracebacks = False
    _, handler = await world.open(calls(world.base, "_on_zmq_reply")[0])
    error = {"ename": "E", "evalue": "secret", "traceback": ["secret"]}
    world.say(world.message("iopub", "error", error))
    (told,) = handler.read("error")
    assert told["content"] == {
        "ename": "ExecutionError",
        "evalue": "Execution error",
        "traceback": [world.kernels.traceback_replacement_message],
    }


async def test_an_on_error_that_does_nothing_shows_tracebacks(world) -> None:
    world.kernels.allow_tracebacks = False

    class Open(world.base):
        def _on_error(self, channel, msg, msg_list): ...

    _, handler = await world.open(Open)
    error = {"ename": "E", "evalue": "secret", "traceback": ["secret"]}
    world.say(world.message("iopub", "error", error))
    assert [m["content"] for m in handler.read("error")] == [error]


# -- rate limits ----------------------------------------------------------------------------


async def test_limit_rate_can_drop_every_second_stream(world) -> None:
    class Half(world.base):
        count = 0

        def _limit_rate(self, channel, msg, msg_list):
            header = self.get_part("header", msg["header"], msg_list)
            if channel != "iopub" or header["msg_type"] != "stream":
                return False
            self.count += 1
            return self.count % 2 == 0

    _, handler = await world.open(Half)
    world.say(*(world.stream(str(n)) for n in range(5)))
    world.say(world.message("iopub", "status", {"execution_state": "idle"}))
    assert handler.texts() == ["0", "2", "4"]
    assert len(handler.read("status")) == 1


async def test_a_limit_rate_that_never_limits_passes_everything(world) -> None:
    world.configure(iopub_msg_rate_limit=1.0, rate_limit_window=1.0)

    class Free(world.base):
        def _limit_rate(self, channel, msg, msg_list):
            return False

    _, handler = await world.open(Free)
    world.say(*(world.stream(str(n)) for n in range(9)))
    assert handler.texts() == [str(n) for n in range(9)]


async def test_limit_rate_can_call_the_inherited_method(world) -> None:
    world.configure(iopub_msg_rate_limit=2.0, rate_limit_window=1.0)
    verdicts = []

    class Asking(world.base):
        def _limit_rate(self, channel, msg, msg_list):
            verdicts.append(super()._limit_rate(channel, msg, msg_list))
            return verdicts[-1]

    _, handler = await world.open(Asking)
    verdicts.clear()
    world.say(*(world.stream(str(n)) for n in range(5)))
    assert verdicts[:2] == [False, False]
    assert verdicts[-1] is True
    told = [m["content"] for m in handler.read("stream")]
    assert [c["text"] for c in told if c["name"] == "stdout"] == ["0", "1"]
    assert len([c for c in told if c["name"] == "stderr"]) == 1
    # The end of a cell resets the counts.
    world.say(world.message("iopub", "status", {"execution_state": "idle"}), world.stream("next"))
    assert handler.texts()[-1] == "next"


@pytest.mark.parametrize(
    ("limits", "named_limit"),
    [
        ({"iopub_msg_rate_limit": 1.0}, "iopub_msg_rate_limit"),
        ({"iopub_data_rate_limit": 100.0}, "iopub_data_rate_limit"),
    ],
)
async def test_write_stderr_reports_a_limit_once(world, limits, named_limit) -> None:
    world.configure(rate_limit_window=1.0, **limits)
    told = []

    class Mine(world.base):
        def write_stderr(self, error_message, parent_header):
            told.append((error_message, parent_header))

    _, handler = await world.open(Mine)
    told.clear()
    world.say(*(world.stream("x" * 50, parent=b'{"msg_id": "cell"}') for _ in range(6)))
    ((text, parent),) = told
    assert "rate exceeded" in text
    assert named_limit in text
    assert parent["msg_id"] == "cell"
    assert all(m["content"]["name"] == "stdout" for m in handler.read("stream"))
    assert len(handler.read("stream")) <= 1


async def test_write_stderr_writes_to_its_websocket_only(world) -> None:
    conn, handler = await world.open()
    _, other = await world.open(session="other")
    conn.write_stderr("look here: ü", {"msg_id": "cell", "msg_type": "execute_request"})
    await world.settle()
    (line,) = handler.read("stream")
    assert line["content"] == {"name": "stderr", "text": "look here: ü\n"}
    assert line["parent_header"]["msg_id"] == "cell"
    assert line["channel"] == "iopub"
    assert other.read("stream") == []


# -- messages to the kernel -----------------------------------------------------------------


def read_frame(connection: Any, frame: Any) -> tuple[str, dict[str, Any]]:
    if connection.subprotocol is not None:
        channel, parts = deserialize_msg_from_ws_v1(frame)
        return channel, json.loads(parts[0])
    msg = json.loads(frame)
    return msg["channel"], msg["header"]


async def test_handle_incoming_message_can_drop_messages(world) -> None:
    class Strict(world.base):
        def handle_incoming_message(self, incoming_msg):
            channel, header = read_frame(self, incoming_msg)
            if (channel, header["msg_type"]) == ("shell", "execute_request"):
                return None
            return super().handle_incoming_message(incoming_msg)

    _, handler = await world.open(Strict)
    for channel, msg_type in (
        ("shell", "execute_request"),
        ("shell", "complete_request"),
        ("control", "interrupt_request"),
    ):
        handler.send(world.message(channel, msg_type))
    await world.settle()
    assert [m.msg_type for m in world.asked] == ["complete_request", "interrupt_request"]
    assert handler.closes == []


async def test_handle_incoming_message_need_not_return_what_super_does(world) -> None:
    """Jupyter Server's method returns None, so overrides may not return kbridge's result."""

    class Careless(world.base):
        def handle_incoming_message(self, incoming_msg):
            super().handle_incoming_message(incoming_msg)

    _, handler = await world.open(Careless)
    handler.send(world.message("shell", "execute_request", {"code": "ü"}))
    await world.settle()
    assert [json.loads(m.content) for m in world.asked] == [{"code": "ü"}]


@pytest.mark.parametrize("also_outgoing", [False, True])
async def test_handle_incoming_message_can_send_on_the_channels_itself(
    world, also_outgoing
) -> None:
    """An override like Jupyter Server's own code: parse the frame, send with the session."""

    class Copied(world.base):
        def handle_incoming_message(self, incoming_msg):
            if not self.channels:
                return
            if self.subprotocol is not None:
                channel, parts = deserialize_msg_from_ws_v1(incoming_msg)
                self.session.send_raw(self.channels[channel], parts)
            else:
                if isinstance(incoming_msg, bytes):
                    msg = deserialize_binary_message(incoming_msg)
                else:
                    msg = json.loads(incoming_msg)
                self.session.send(self.channels[msg.pop("channel")], msg)

    cls = calls(Copied, "handle_outgoing_message")[0] if also_outgoing else Copied
    _, handler = await world.open(cls)
    _, other = await world.open(session="other")
    request = world.message("shell", "execute_request", {"code": "ü"})
    comm = world.message("control", "comm_msg", {"comm_id": "c"}, buffers=[b"\x00", b"\xff"])
    handler.send(request)
    handler.send(comm)
    await world.settle()
    assert [(m.channel, m.msg_id, m.msg_type) for m in world.asked] == [
        (m.channel, m.msg_id, m.msg_type) for m in (request, comm)
    ]
    assert json.loads(world.asked[0].content) == {"code": "ü"}
    assert [bytes(b) for b in world.asked[1].buffers] == [b"\x00", b"\xff"]
    reply = world.message("shell", "execute_reply", {"status": "ok"}, parent=world.asked[0].header)
    world.say(reply)
    await world.settle()
    assert [m["parent_header"]["msg_id"] for m in handler.read("execute_reply")] == [request.msg_id]
    assert other.read("execute_reply") == []


async def test_an_override_for_one_direction_leaves_the_other_working(world) -> None:
    _, handler = await world.open(calls(world.base, "handle_outgoing_message")[0])
    plain = world.message("shell", "execute_request", {"code": "ü"})
    comm = world.message("shell", "comm_msg", {"comm_id": "c"}, buffers=[b"\xff"])
    handler.send(plain)
    handler.send(comm)
    await world.settle()
    assert [m.msg_id for m in world.asked] == [plain.msg_id, comm.msg_id]
    assert [bytes(b) for b in world.asked[1].buffers] == [b"\xff"]
    assert handler.closes == []


async def test_allowed_message_types_apply_if_hooks_are_overridden(world) -> None:
    world.kernels.allowed_message_types = ["execute_request"]
    cls, heard = calls(world.base, "handle_incoming_message", "handle_outgoing_message")
    _, handler = await world.open(cls)
    handler.send(world.message("shell", "execute_request"))
    handler.send(world.message("shell", "complete_request"))
    await world.settle()
    assert [m.msg_type for m in world.asked] == ["execute_request"]
    assert named(heard).count("handle_incoming_message") == 2


# -- on the instance ------------------------------------------------------------------------


async def test_methods_can_be_replaced_on_the_instance(world) -> None:
    heard = []

    def patch(conn: Any) -> None:
        usual = conn.handle_outgoing_message

        def outgoing(stream, outgoing_msg):
            heard.append(stream.channel)
            usual(stream, outgoing_msg)

        conn.handle_outgoing_message = outgoing

    _, handler = await world.open(before=patch)
    heard.clear()
    world.say(world.stream("a"))
    assert heard == ["iopub"]
    assert handler.texts() == ["a"]


async def test_limit_rate_can_be_replaced_in_the_constructor(world) -> None:
    """The replacement must be set early; otherwise kbridge's hub limits for all websockets."""
    world.configure(iopub_msg_rate_limit=1.0, rate_limit_window=1.0)

    class Free(world.base):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self._limit_rate = lambda channel, msg, msg_list: b"secret" in msg_list[CONTENT]

    _, handler = await world.open(Free)
    world.say(*(world.stream(text) for text in "abcdefghi"), world.stream("a secret"))
    assert handler.texts() == list("abcdefghi")


async def test_handle_incoming_message_can_be_replaced_on_the_instance(world) -> None:
    came = []

    def patch(conn: Any) -> None:
        conn.handle_incoming_message = came.append

    _, handler = await world.open(before=patch)
    handler.send(world.message("shell", "execute_request"))
    await world.settle()
    assert len(came) == 1
    assert world.asked == []


# -- readiness ------------------------------------------------------------------------------


async def test_connect_returns_the_result_of_an_overridden_nudge(world) -> None:
    nudged: list[asyncio.Future[None]] = []

    class Slow(world.base):
        def nudge(self):
            nudged.append(asyncio.get_running_loop().create_future())
            return nudged[-1]

    conn, _ = await world.prepare(Slow)
    connected = conn.connect()
    await world.settle()
    assert len(nudged) == 1
    assert not connected.done()
    nudged[0].set_result(None)
    await asyncio.wait_for(connected, TIMEOUT)


async def test_a_wrapped_nudge_finishes_when_the_kernel_is_ready(world) -> None:
    cls, heard = calls(world.base, "nudge")
    conn, _ = await world.prepare(cls)
    await asyncio.wait_for(conn.connect(), TIMEOUT)
    assert named(heard) == ["nudge"]


async def test_prepare_awaits_an_overridden_request_kernel_info(world) -> None:
    asked = []

    class Mine(world.base):
        def request_kernel_info(self):
            asked.append(True)
            self._kernel_info_future.set_result({"implementation": "known"})
            return asyncio.wrap_future(self._kernel_info_future)

    conn, _ = await world.prepare(Mine)
    assert asked == [True]
    assert conn._kernel_info_future.result() == {"implementation": "known"}


async def test_a_wrapped_request_kernel_info_returns_the_kernel_info(world) -> None:
    infos = []

    class Mine(world.base):
        async def _remember(self, asked):
            infos.append(await asked)

        def request_kernel_info(self):
            asked = super().request_kernel_info()
            self.remembering = asyncio.ensure_future(self._remember(asked))
            return asked

    conn, _ = await world.prepare(Mine)
    await asyncio.wait_for(conn.remembering, TIMEOUT)
    assert [i["implementation"] for i in infos] == ["a-twin"]


async def test_handle_kernel_info_reply_is_given_the_original_reply(world) -> None:
    cls, heard = calls(world.base, "_handle_kernel_info_reply")
    await world.prepare(cls)
    ((_, frames),) = heard
    read = parse(Channel.SHELL, list(frames), world.kernel.twin.signer)
    assert read.msg_type == "kernel_info_reply"
    assert json.loads(read.content)["protocol_version"] == "5.3"


async def test_finish_kernel_info_is_given_the_info(world) -> None:
    infos = []

    class Mine(world.base):
        def _finish_kernel_info(self, info):
            infos.append({**info})
            super()._finish_kernel_info(info)

    conn, _ = await world.prepare(Mine)
    assert infos[0]["protocol_version"] == "5.3"
    assert conn._kernel_info_future.result()["implementation"] == "a-twin"


async def test_overrides_of_all_kernel_info_methods_are_called_in_order(world) -> None:
    names = ("request_kernel_info", "_handle_kernel_info_reply", "_finish_kernel_info")
    cls, heard = calls(world.base, *names)
    await world.prepare(cls)
    assert tuple(named(heard)) == names


async def test_an_unexpected_kernel_info_reply_leaves_empty_info(world) -> None:
    conn, _ = await world.prepare()
    conn._kernel_info_future = conn._default_kernel_info_future()
    said = world.message("shell", "execute_reply", {"status": "ok"})
    conn.session.key = world.kernel.session.key
    frames = [b"<IDS|MSG>", conn.session.sign(list(said[1:5])), *said[1:5]]
    conn._handle_kernel_info_reply(frames)
    assert conn._kernel_info_future.result() == {}


# -- life -----------------------------------------------------------------------------------


async def test_connecting_calls_create_stream(world) -> None:
    cls, heard = calls(world.base, "create_stream")
    conn, handler = await world.open(cls)
    assert named(heard) == ["create_stream"]
    assert {name: c.channel for name, c in conn.channels.items()} == {
        name: name for name in ("iopub", "shell", "control", "stdin")
    }
    world.say(world.stream("a"))
    assert handler.texts() == ["a"]


async def test_the_handler_calls_prepare_connect_and_disconnect(world) -> None:
    cls, heard = calls(world.base, "connect", "disconnect")

    class Mine(cls):
        async def prepare(self):
            heard.append(("prepare",))
            await super().prepare()

    _, handler = await world.open(Mine)
    assert named(heard) == ["prepare", "connect"]
    assert world.kernels.kernel_model(world.kernel.kernel_id)["connections"] == 1
    handler.on_close()
    assert named(heard) == ["prepare", "connect", "disconnect"]
    assert world.kernels.kernel_model(world.kernel.kernel_id)["connections"] == 0


async def test_close_and_close_all_call_disconnect(world) -> None:
    cls, heard = calls(world.base, "disconnect")
    conn, handler = await world.open(cls)
    conn.close()
    assert named(heard) == ["disconnect"]
    assert conn._close_future.done()
    handler.connection = None
    conn, handler = await world.open(cls)
    await asyncio.wait_for(world.base.close_all(), TIMEOUT)
    assert named(heard) == ["disconnect"] * 2
    assert conn._close_future.done()
    handler.connection = None


async def test_close_can_be_overridden(world) -> None:
    cls, heard = calls(world.base, "close", "disconnect")
    conn, handler = await world.open(cls)
    conn.close()
    handler.connection = None
    assert named(heard) == ["close", "disconnect"]


@pytest.mark.parametrize(
    ("event", "hook", "status"),
    [
        ("restart", "on_kernel_restarted", "restarting"),
        ("dead", "on_restart_failed", "dead"),
    ],
)
async def test_the_hooks_announce_restarts(world, event, hook, status) -> None:
    noting, heard = calls(world.base, hook, "_send_status_message")
    told = asyncio.Event()

    class Mine(noting):
        def _send_status_message(self, status):
            super()._send_status_message(status)
            told.set()

    _, handler = await world.open(Mine)
    await world.fire(event)
    async with asyncio.timeout(TIMEOUT):
        await told.wait()
    assert heard == [(hook,), ("_send_status_message", status)]
    await world.settle()
    assert [m["content"]["execution_state"] for m in handler.read("status")] == [status]


async def test_the_announcement_of_restarts_can_be_overridden(world) -> None:
    """A subclass that sends another status, or an additional one."""

    class Kind(world.base):
        def _send_status_message(self, status):
            self.write_stderr(f"the kernel is {status}", {})
            super()._send_status_message(status)

    conn, handler = await world.open(Kind)
    conn.on_kernel_restarted()
    await world.settle()
    assert handler.texts() == ["the kernel is restarting\n"]
    assert [m["content"]["execution_state"] for m in handler.read("status")] == ["restarting"]
    assert [m["header"]["msg_type"] for m in handler.read()] == ["stream", "status"]


async def test_a_reconnected_websocket_gets_missed_messages_through_the_hook(world) -> None:
    class Loud(world.base):
        def handle_outgoing_message(self, stream, outgoing_msg):
            _, (_, *parts) = self.session.feed_identities(outgoing_msg)
            if json.loads(parts[0])["msg_type"] == "stream":
                parts[CONTENT] = shout(parts[CONTENT])
            again = [b"<IDS|MSG>", self.session.sign(parts[:4]), *parts]
            super().handle_outgoing_message(stream, again)

    _, handler = await world.open(Loud)
    world.say(world.stream("before"))
    assert handler.texts() == ["BEFORE"]
    handler.on_close()
    world.say(world.stream("meanwhile"))
    _, again = await world.prepare(Loud)
    await asyncio.wait_for(again.open(world.kernel.kernel_id), TIMEOUT)
    await world.settle()
    world.say(world.stream("after"))
    assert handler.texts() == ["BEFORE"]
    assert again.texts() == ["MEANWHILE", "AFTER"]


# -- features of the hub --------------------------------------------------------------------


@OURS
async def test_overrides_do_not_affect_other_websockets_of_the_kernel(world) -> None:
    class Deaf(world.base):
        def handle_outgoing_message(self, stream, outgoing_msg): ...

    _, deaf = await world.open(Deaf, session="deaf")
    _, plain = await world.open(session="plain")
    other = "legacy" if world.dialect == "v1" else "v1"
    _, legacy = await world.open(session="other", dialect=other)
    world.say(world.stream("a"))
    assert (deaf.texts(), plain.texts(), legacy.texts()) == ([], ["a"], ["a"])


@OURS
async def test_an_override_that_raises_loses_only_its_message(world, caplog) -> None:
    class Clumsy(world.base):
        def _on_zmq_reply(self, stream, msg_list):
            if "boom" in str(msg_list):
                raise RuntimeError("boom")
            super()._on_zmq_reply(stream, msg_list)

    _, clumsy = await world.open(Clumsy)
    _, plain = await world.open(session="plain")
    world.say(*(world.stream(text) for text in ("a", "boom", "b")))
    assert clumsy.texts() == ["a", "b"]
    assert plain.texts() == ["a", "boom", "b"]
    assert caplog.text.count("RuntimeError: boom") == 1


@OURS
async def test_without_overrides_no_hook_runs(world) -> None:
    class Plain(world.base):
        """A subclass with more traits and the same hooks."""

        def connect(self):
            return super().connect()

    _, handler = await world.open(Plain)

    def refuse(*_args, **_kwargs):
        raise AssertionError("a message passed through the hooks")

    handler.write_message = refuse
    world.say(world.stream("a"))
    assert handler.texts() == ["a"]


@OURS
async def test_hooks_wait_for_a_browser_that_does_not_read(world) -> None:
    world.configure(limit_rate=False)
    cls, heard = calls(world.base, "handle_outgoing_message")
    _, handler = await world.open(cls)
    heard.clear()
    text = "x" * 100_000
    for _ in range(100):
        world.say(world.stream(text))
    assert len(heard) < 60, "passed on although no client reads"
    handler.seen.clear()
    async with asyncio.timeout(TIMEOUT):
        unread = b""
        while len(heard) < 100 or handler.writing():
            unread += _drained(handler.browser)
            await asyncio.sleep(0)
        unread += _drained(handler.browser)
    assert unread.count(text.encode()) == 100


def _drained(browser: Any) -> bytes:
    try:
        return bytes(browser.recv(1 << 22))
    except BlockingIOError:
        return b""


# -- with a real kernel under a real Jupyter Server -----------------------------------------

LOUD = """
class Hooked(ZMQChannelsWebsocketConnection):
    def handle_outgoing_message(self, stream, outgoing_msg):
        start = outgoing_msg.index(b"<IDS|MSG>") + 2
        if json.loads(outgoing_msg[start])["msg_type"] == "stream":
            content = json.loads(outgoing_msg[start + 3])
            content["text"] = content["text"].upper()
            outgoing_msg[start + 3] = self.session.pack(content)
        super().handle_outgoing_message(stream, outgoing_msg)
"""
STRICT = """
class Hooked(ZMQChannelsWebsocketConnection):
    def handle_incoming_message(self, incoming_msg):
        data = incoming_msg.encode() if isinstance(incoming_msg, str) else incoming_msg
        if b"forbidden" not in data:
            return super().handle_incoming_message(incoming_msg)
"""
HALF = """
class Hooked(ZMQChannelsWebsocketConnection):
    streams = 0

    def _limit_rate(self, channel, msg, msg_list):
        msg["header"] = self.get_part("header", msg["header"], msg_list)
        if channel == "iopub" and msg["header"]["msg_type"] == "stream":
            # The debugger of a kernel may write to stderr at its start.
            if self.get_part("content", msg["content"], msg_list)["name"] == "stdout":
                self.streams += 1
                return self.streams % 2 == 0
        return super()._limit_rate(channel, msg, msg_list)
"""


@pytest.fixture
def jupyter_server(new_server, tmp_path):
    """Start a Jupyter Server whose class `Hooked` is defined by `code`, and start a kernel."""

    def start(code: str) -> tuple[Any, str]:
        head = "import json\nfrom kbridge.jupyter import ZMQChannelsWebsocketConnection\n"
        (tmp_path / "hooked.py").write_text(head + code)
        server = new_server(
            "--ServerApp.kernel_websocket_connection_class=hooked.Hooked",
            command=[sys.executable, "-m", "jupyter_server", *FLAGS],
            env={"PYTHONPATH": str(tmp_path)},
        )
        return server, server.start_kernel()

    return start


FLAGS = (
    "--ip=127.0.0.1",
    "--no-browser",
    "--allow-root",
    "--ServerApp.disable_check_xsrf=True",
    "--ServerApp.jpserver_extensions={}",
)


@pytest.mark.kernel
async def test_a_real_kernels_output_is_rewritten(jupyter_server) -> None:
    server, kernel_id = jupyter_server(LOUD)
    async with attach(server, kernel_id, "v1") as v1, attach(server, kernel_id, "legacy") as legacy:
        for client in (v1, legacy):
            done = await client.execute("print('hello'); 'unchanged'")
            assert done.reply["status"] == "ok"
            assert done.text() == "HELLO\n"
            (result,) = done.of("execute_result")
            assert result["content"]["data"]["text/plain"] == "'unchanged'"
    server.assert_clean_log()


@pytest.mark.kernel
async def test_a_real_kernel_does_not_receive_dropped_messages(jupyter_server) -> None:
    server, kernel_id = jupyter_server(STRICT)
    async with attach(server, kernel_id, "v1") as v1, attach(server, kernel_id, "legacy") as legacy:
        for client in (v1, legacy):
            refused = await client.start("forbidden = 1", store_history=True)
            done = await client.execute("sorted(set(globals()) & {'for' + 'bidden'})")
            (result,) = done.of("execute_result")
            assert result["content"]["data"]["text/plain"] == "[]"
            parents = [m["parent_header"].get("msg_id") for m in client.seen]
            assert refused not in parents
    server.assert_clean_log()


@pytest.mark.kernel
async def test_a_real_kernels_output_is_limited_by_an_override(jupyter_server) -> None:
    server, kernel_id = jupyter_server(HALF)
    code = "import sys\nfor n in range(6):\n    print(n)\n    sys.stdout.flush()"
    async with attach(server, kernel_id, "v1") as v1, attach(server, kernel_id, "legacy") as legacy:
        for client in (v1, legacy):
            done = await client.execute(code)
            assert done.types == ["busy", "execute_input", "stream", "idle"]
            assert done.text() == "0\n2\n4\n"
    server.assert_clean_log()
