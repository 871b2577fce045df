"""Coalescing: fewer frames, and the notebook looks the same."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbridge.flow.coalesce import MAX_JOINED, coalesce
from kbridge.flow.journal import LOSABLE
from kbridge.wire import frames as websocket
from kbridge.wire import v1
from kbridge.wire.message import Channel, Message

# -- messages -----------------------------------------------------------------------------------


def dump(value: Any) -> bytes:
    """As ipykernel writes it."""
    if isinstance(value, bytes):
        return value
    return json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")


def frame(
    msg_type: str,
    content: Any,
    msg_id: str = "1",
    parent: Any = "p",
    *,
    channel: Channel = Channel.IOPUB,
    metadata: Any = None,
    buffers: tuple[bytes, ...] = (),
    header: Any = None,
) -> bytes:
    header = header or {"msg_id": msg_id, "msg_type": msg_type, "session": "s", "version": "5.4"}
    parent = {"msg_id": parent, "msg_type": "execute_request"} if type(parent) is str else parent
    parts = (dump(part) for part in (header, parent, metadata or {}, content))
    return v1.encode_frame(Message(channel, *parts, buffers))


def stream(
    text: str, msg_id: str = "1", parent: Any = "p", *, name: str = "stdout", **k: Any
) -> bytes:
    return frame("stream", {"name": name, "text": text}, msg_id, parent, **k)


def display(text: str, display_id: str | None = None, parent: Any = "p", **k: Any) -> bytes:
    transient = {} if display_id is None else {"display_id": display_id}
    content = {"data": {"text/plain": text}, "metadata": {}, "transient": transient}
    return frame(k.pop("msg_type", "display_data"), content, parent=parent, **k)


def update(text: str, display_id: str = "d", parent: Any = "p", **k: Any) -> bytes:
    return display(text, display_id, parent, msg_type="update_display_data", **k)


def clear(parent: Any = "p", *, wait: Any = False, **k: Any) -> bytes:
    return frame("clear_output", {"wait": wait}, parent=parent, **k)


def status(state: str = "busy", parent: Any = "p") -> bytes:
    return frame("status", {"execution_state": state}, parent=parent)


def comm(parent: Any = "p") -> bytes:
    return frame("comm_msg", {"comm_id": "c", "data": {}}, parent=parent)


def parsed(one: bytes) -> Message:
    return v1.split(websocket.payload(one))


def content(one: bytes) -> Any:
    return json.loads(parsed(one).content.decode())


A, B, C = stream("a", "1"), stream("b", "2"), stream("c", "3")
AB = stream("ab", "2")
WAIT = clear(wait=True)
AT2 = int.from_bytes(A[28:36], "little")  # the end of the header


# -- case by case -------------------------------------------------------------------------------

JOINED = {
    "two": ([A, B], [AB]),
    "three": ([A, B, C], [stream("abc", "3")]),
    "one": ([A], [A]),
    "none": ([], []),
    "each name": (
        [A, B, stream("x", name="stderr"), stream("y", "4", name="stderr"), A, B],
        [AB, stream("xy", "4", name="stderr"), AB],
    ),
    "each parent": (
        [A, B, stream("x", "1", "q"), stream("y", "2", "q")],
        [AB, stream("xy", "2", "q")],
    ),
    "not past what stays": ([A, status(), B], [A, status(), B]),
    "not past a display": ([A, display("x"), B], [A, display("x"), B]),
    "not past a lone update": ([A, update("x"), B], [A, update("x"), B]),
    "past what is left out": ([A, update("1"), B, update("2")], [AB, update("2")]),
    "empty texts": ([stream(""), stream("", "2")], [stream("", "2")]),
    "without a parent": ([stream("a", parent={}), stream("b", "2", {})], [stream("ab", "2", {})]),
    "not other metadata": (
        [A, stream("b", metadata={"m": 1})],
        [A, stream("b", metadata={"m": 1})],
    ),
    "not with buffers": (
        [A, stream("b", buffers=(b"x",)), C],
        [A, stream("b", buffers=(b"x",)), C],
    ),
    "not on other channels": (
        [stream("a", channel=Channel.SHELL), stream("b", channel=Channel.SHELL)],
        [stream("a", channel=Channel.SHELL), stream("b", channel=Channel.SHELL)],
    ),
    "same parent in other bytes": (
        [A, stream("b", parent=b'{"msg_type": "execute_request", "msg_id": "p"}')],
        [A, stream("b", parent=b'{"msg_type": "execute_request", "msg_id": "p"}')],
    ),
}

SUPERSEDED = {
    "an update": ([update("1"), update("2")], [update("2")]),
    "many": ([update(str(i)) for i in range(9)], [update("8")]),
    "not another id": ([update("1"), update("2", "e")], [update("1"), update("2", "e")]),
    "not another parent's": (
        [update("1"), update("2", parent="q")],
        [update("1"), update("2", parent="q")],
    ),
    "with a display between": (
        [update("1"), display("x", "d"), update("2")],
        [display("x", "d"), update("2")],
    ),
    "not by a display": ([update("1"), display("x", "d")], [update("1"), display("x", "d")]),
    "not past a comm": ([update("1"), comm(), update("2")], [update("1"), comm(), update("2")]),
    "not past idle": (
        [update("1"), status("idle"), update("2")],
        [update("1"), status("idle"), update("2")],
    ),
    "not past a restart": (
        [update("1"), status("restarting"), update("2")],
        [update("1"), status("restarting"), update("2")],
    ),
    "nor by a clear_output, for other cells show it": (
        [update("1"), clear(), A],
        [update("1"), clear(), A],
    ),
    "past a clear_output": ([update("1"), clear(), update("2")], [clear(), update("2")]),
}

WIPED = {
    "stream": ([A, clear()], [clear()]),
    "display": ([display("x"), clear()], [clear()]),
    "all before": ([A, display("x"), B, clear(), C], [clear(), C]),
    "earlier clears": ([clear(), A, WAIT, B, clear(), C], [clear(), C]),
    "clears alone": ([clear(), clear()], [clear()]),
    "not another parent's": ([A, clear("q")], [A, clear("q")]),
    "around another parent's": (
        [A, stream("x", parent="q"), clear()],
        [stream("x", parent="q"), clear()],
    ),
    "waiting, a stream follows": ([A, WAIT, B], [WAIT, B]),
    "waiting, a display follows": ([A, WAIT, display("x")], [WAIT, display("x")]),
    "waiting, nothing follows": ([A, WAIT], [A, WAIT]),
    "waiting, an update follows": ([A, WAIT, update("x")], [A, WAIT, update("x")]),
    "waiting, another parent follows": (
        [A, WAIT, stream("b", parent="q")],
        [A, WAIT, stream("b", parent="q")],
    ),
    "waiting twice": ([A, WAIT, WAIT], [A, WAIT]),
    "the last that wipes": ([A, WAIT, B, WAIT, C, WAIT], [WAIT, C, WAIT]),
    "waiting, then not": ([A, WAIT, clear()], [clear()]),
    "not a display with an id": ([display("x", "d"), clear()], [display("x", "d"), clear()]),
    "a display that is shown again": (
        [display("x", "d"), WAIT, display("y", "d")],
        [WAIT, display("y", "d")],
    ),
    "a display that is updated": (
        [display("x", "d"), clear(), update("y")],
        [clear(), update("y")],
    ),
    "not past a comm": ([A, comm(), clear()], [A, comm(), clear()]),
    "not past idle": ([A, status("idle"), clear()], [A, status("idle"), clear()]),
    "waiting for what is past a comm": ([A, WAIT, comm(), B], [A, WAIT, comm(), B]),
    "not without a parent": (
        [stream("a", parent={}), clear({})],
        [stream("a", parent={}), clear({})],
    ),
}

ALIEN = {
    "no dict": frame("stream", [1]),
    "no JSON": frame("stream", b'{"name": "stdout", "text": "a'),
    "a control character": frame("stream", b'{"name": "stdout", "text": "a\n"}'),
    "a wrong escape": frame("stream", b'{"name": "stdout", "text": "\\x"}'),
    "a short escape": frame("stream", b'{"name": "stdout", "text": "\\u12"}'),
    "a quote": frame("stream", b'{"name": "stdout", "text": "a"b"}'),
    "no UTF-8": frame("stream", b'{"name": "stdout", "text": "\xff"}'),
    "no text": frame("stream", {"name": "stdout"}),
    "no string": frame("stream", {"name": "stdout", "text": ["a"]}),
    "more": frame("stream", {"name": "stdout", "text": "a", "more": 1}),
    "empty": frame("stream", b""),
    "too large": stream("x" * MAX_JOINED),
    "too large to be parsed": update("x" * (1 << 20)),
    "bad header": frame("stream", {"name": "stdout", "text": "a"}, header=b'{"msg_type": "stream"'),
    "no header": frame("stream", {"name": "stdout", "text": "a"}, header=b"[]"),
    "bad parent": stream("a", parent=b'{"msg_id": "p"'),
    "bad metadata": stream("a", metadata=b"{"),
    "NaN": display("x", metadata=b'{"a": NaN}'),
    "display without data": frame("display_data", {"metadata": {}}),
    "display without metadata": frame("display_data", {"data": {}}),
    "display with an odd id": frame(
        "display_data", {"data": {}, "metadata": {}, "transient": {"display_id": 1}}
    ),
    "update without an id": frame("update_display_data", {"data": {}, "metadata": {}}),
    "update without data": frame("update_display_data", {"transient": {"display_id": "d"}}),
    "clear without wait": frame("clear_output", {}),
    "clear with an odd wait": clear(wait="yes"),
    "a type of its own": frame("stream2", {"name": "stdout", "text": "a"}),
    "a ping": websocket.ping(b"1"),
    "a text frame": websocket.frame(websocket.payload(A), websocket.TEXT),
    "another size": A[:2] + b"\x00\x7f" + A[4:],
    "offsets that fall": A[:36] + (AT2 - 2).to_bytes(8, "little") + A[44:],
    "deep": stream("a", metadata=b'{"a": ' + b"[" * 99_999 + b"]" * 99_999 + b"}"),
    "half a frame": A[:-1],
    "more than a frame": A + b"x",
    "no frame": b"",
}


def cases(table: dict[str, Any]) -> Any:
    return pytest.mark.parametrize(("before", "after"), table.values(), ids=table.keys())


@cases(JOINED)
def test_consecutive_streams_are_joined(before: list[bytes], after: list[bytes]) -> None:
    assert coalesce(before) == after


@cases(SUPERSEDED)
def test_superseded_updates_are_left_out(before: list[bytes], after: list[bytes]) -> None:
    assert coalesce(before) == after


@cases(WIPED)
def test_cleared_output_is_left_out(before: list[bytes], after: list[bytes]) -> None:
    assert coalesce(before) == after


@pytest.mark.parametrize("alien", ALIEN.values(), ids=ALIEN.keys())
def test_an_unknown_frame_is_kept_and_ends_a_run(alien: bytes) -> None:
    before = [A, B, update("1"), alien, A, B, clear(), update("2")]
    assert coalesce(before) == [AB, update("1"), alien, clear(), update("2")]


STATE = sorted({"status", "execute_input", "execute_result", "error", "comm_open", "comm_close"})


@pytest.mark.parametrize("msg_type", [*STATE, "input_request", "execute_reply", "debug_event", "x"])
def test_a_frame_with_state_is_kept_and_ends_a_run(msg_type: str) -> None:
    state = frame(msg_type, {"data": {}, "metadata": {}, "transient": {"display_id": "d"}})
    before = [A, update("1"), state, WAIT, B, clear(), update("2")]
    assert coalesce(before) == [A, update("1"), state, clear(), update("2")]


def test_a_joined_message_has_the_header_of_the_last_one() -> None:
    header = b'{ "msg_id":"9", "more": {"a": [1]},"msg_type" : "stream" }'
    (one,) = coalesce([A, stream("b", header=header)])
    assert parsed(one).header == header
    assert one == stream("ab", header=header)


@pytest.mark.parametrize(
    ("known", "alike"),
    [
        (b'{"msg_type": "stream", "n": 11}', b'{"msg_type": "stream", "n": 01}'),
        (b'{"msg_type": "str\\u0065am"}', b'{"msg_type": "str\\u0066am"}'),
        (b'{"msg_type": "stream", "n": "\\u0001"}', b'{"msg_type": "stream2", "n": "\\u0001"}'),
        (b'{"msg_id": "1", "msg_type": "stream"}', b'{"msg_id": "1", "msg_type": "status"}'),
        (b'{"msg_id": "1", "msg_type": "stream"}', b'{"msg_id": "1", "abc_defg": "stream"}'),
        (b'{"msg_type": "stream", "msg_id": "1"}', b'{"msg_typo": "stream", "msg_id": "1"}'),
        (b'{"msg_id": "", "msg_type": "stream"}', b'{"msg_id": "", "msg_type": "status"}'),
    ],
)
def test_headers_of_one_shape_may_still_differ(known: bytes, alike: bytes) -> None:
    good, bad = stream("a", header=known), stream("a", header=alike)
    assert coalesce([good, good, bad, good, good, good]) == [
        stream("aa", header=known),
        bad,
        stream("aaa", header=known),
    ]


@pytest.mark.parametrize("channel", [Channel.SHELL, Channel.STDIN])
def test_a_stream_on_another_channel_is_kept_and_ends_a_run(channel: Channel) -> None:
    other = v1.encode_frame(parsed(B)._replace(channel=channel))
    assert coalesce([A, B, other, A, B]) == [AB, other, AB]


@pytest.mark.parametrize(
    "spelling",
    [
        b'{"name":"stdout","text":"b"}',
        b'{"text": "b", "name": "stdout"}',
        b'{"text":"b","name":"stdout"}',
        b' {"name" : "stdout" ,\n"text": "b" } ',
        b'{"name": "std\\u006fut", "te\\u0078t": "\\u0062"}',
        b'{"name": "stdout", "text": "x", "text": "b"}',
    ],
)
def test_other_spellings_of_the_json_are_joined(spelling: bytes) -> None:
    (one,) = coalesce([A, frame("stream", spelling, "2"), C])
    assert content(one) == {"name": "stdout", "text": "abc"}


TEXTS = [
    'quotes " and \\ and \\" and \\\\n',
    "\r\b\n\t\x1b[31m\x00\x7f",
    "é 中 😀 \u2028",
    "\\ud83d",
    "\\",
]


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_special_characters_are_unchanged(text: str, *, ascii_only: bool) -> None:
    raw = json.dumps({"name": "stdout", "text": text}, ensure_ascii=ascii_only).encode()
    (one,) = coalesce([frame("stream", raw), stream("-"), frame("stream", raw)])
    assert content(one)["text"] == f"{text}-{text}"


HIGH, LOW = (
    frame("stream", b'{"name": "stdout", "text": "%s"}' % x) for x in (b"\\uD83D", b"\\ude00")
)


def test_lone_surrogates_are_unchanged() -> None:
    assert [content(one)["text"] for one in coalesce([LOW, A, HIGH])] == ["\ude00a\ud83d"]
    assert coalesce([HIGH, LOW]) == [HIGH, LOW], "two characters, not one"
    assert [content(one)["text"] for one in coalesce([HIGH, stream(""), LOW])] == [
        "\ud83d",
        "\ude00",
    ]


def test_joined_messages_are_bounded() -> None:
    text = "x" * (MAX_JOINED // 4)
    frames = [stream(text, str(i)) for i in range(9)]
    out = coalesce(frames)
    assert [content(one)["text"] for one in out] == [text * 4, text * 4, text]
    assert coalesce(out) == out


def test_ten_thousand_messages_become_one() -> None:
    frames = [stream(f"{i}\n", str(i)) for i in range(10_000)]
    (one,) = coalesce(frames)
    assert content(one)["text"] == "".join(f"{i}\n" for i in range(10_000))
    assert json.loads(parsed(one).header)["msg_id"] == "9999"


@pytest.mark.parametrize(
    "frames",
    [
        [display("a", buffers=(bytes(1_000_000),))],
        [stream("a", "1"), display("b", buffers=(bytes(500_000),)), stream("c", "3")],
    ],
    ids=["alone", "between streams"],
)
def test_outputs_with_large_buffers_are_not_copied(frames: list[bytes]) -> None:
    tracemalloc.start()
    try:
        assert coalesce(frames) == frames
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_frames_that_cannot_be_joined_are_the_same_objects() -> None:
    frames = [A, status(), stream("x" * MAX_JOINED), display("x" * 70_000), B]
    assert all(one is other for one, other in zip(coalesce(frames), frames, strict=True))


# -- against a notebook -------------------------------------------------------------------------


class Area:
    """The outputs of a cell or of an Output widget, as JupyterLab's OutputAreaModel keeps them."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, Any]] = []
        self.clear_next = False

    def clear(self, wait: Any) -> None:
        if wait:
            self.clear_next = True
        else:
            self.outputs = []

    def add(self, output: dict[str, Any]) -> dict[str, Any]:
        if self.clear_next:
            self.clear_next = False
            self.outputs = []
        last = self.outputs[-1] if self.outputs else {}
        if output["type"] == last.get("type") == "stream" and output["name"] == last["name"]:
            last["text"] += output["text"]
            return last
        self.outputs.append(output)
        return output


class Notebook:
    """The output that a frontend shows for its messages.

    JupyterLab processes messages of every cell while the kernel lives, and updates a display in all
    cells with its id. Other frontends ignore a cell after its idle (nbclient), and some process
    only their own requests (jupyter_client's `execute_interactive`).
    """

    def __init__(self, listens: str) -> None:
        self.listens = listens
        self.cells: dict[str, Area] = {}
        self.widgets = {name: Area() for name in ("w1", "w2")}
        self.captures: dict[str, list[str]] = {}  # parent -> widgets; the last one has its output
        self.displays: dict[str, set[str]] = {}  # id -> parents that have shown it
        self.closed: set[str] = set()

    def feed(self, frames: list[bytes]) -> None:
        for one in frames:
            msg = parsed(one)
            try:
                header, parent, _, body = (json.loads(part.decode()) for part in msg[1:5])
                self.take(header["msg_type"], parent["msg_id"], body)
            except (ValueError, KeyError, AttributeError):
                continue  # a frontend logs it and continues

    def take(self, msg_type: str, parent: str, body: dict[str, Any]) -> None:
        if parent in self.closed or (self.listens == "to one cell" and parent != "p"):
            return
        cell = self.cells.setdefault(parent, Area())
        captures = self.captures.setdefault(parent, [])
        area = self.widgets[captures[-1]] if captures else cell
        match msg_type:
            case "stream":
                area.add({"type": "stream", "name": body["name"], "text": body["text"] + ""})
            case "error":
                area.add({"type": "error", **body})
            case "display_data" | "update_display_data" | "execute_result":
                self.show(msg_type, parent, area, body)
            case "clear_output":
                area.clear(body.get("wait"))
            case "execute_reply" if body.get("page"):
                cell.add({"type": "page"})
            case "input_request":
                cell.add({"type": "stream", "name": "stdin", "text": "typed"})
            case "comm_msg" if body["captures"]:
                captures.append(body["widget"])
            case "comm_msg" if body["widget"] in captures:
                captures.remove(body["widget"])
            case "status" if body["execution_state"] == "restarting":
                self.closed |= self.cells.keys()
                self.displays.clear()
            case "status" if body["execution_state"] == "idle" and self.listens != "for good":
                self.closed.add(parent)

    def show(self, msg_type: str, parent: str, area: Area, body: dict[str, Any]) -> None:
        data = {"data": body["data"], "metadata": body["metadata"]}
        display_id = (body.get("transient") or {}).get("display_id")
        for shown in self.displays.get(display_id, set()) if display_id else ():
            if not self.captures[shown]:
                for output in self.cells[shown].outputs:
                    if output.get("id") == display_id:
                        output.update(data)
        if msg_type != "update_display_data":
            area.add({"type": msg_type, "id": display_id, **data})
            self.displays.setdefault(display_id, set()).add(parent)

    def seen(self) -> Any:
        areas = {**self.cells, **self.widgets}
        return {name: area.outputs for name, area in areas.items() if area.outputs}


TEXTS_SHOWN = ["", "a", "b\n", "\r50%", "\b", 'é"\\', "\x1b[0m", "😀"]
WIDGETS = [{"widget": w, "captures": on} for w in ("w1", "w2") for on in (True, False)]
ODD = [
    ("stream", b'{"name": "stdout", "text": "a'),
    ("stream", {"name": "stdout", "text": "a", "more": 1}),
    ("display_data", b'{"data": {}, "metadata": {}'),
    ("display_data", {"metadata": {}}),
    ("update_display_data", {"transient": {"display_id": "d"}}),
    ("clear_output", {}),
    ("clear_output", b"{"),
]


def shown(text: str, display_id: str | None) -> dict[str, Any]:
    transient = {"display_id": display_id} if display_id else {}
    return {"data": {"text/plain": text}, "metadata": {}, "transient": transient}


OUTPUT = [
    *[("stream", {"name": "stdout", "text": text}) for text in TEXTS_SHOWN],
    *[("stream", {"name": "stderr", "text": text}) for text in TEXTS_SHOWN[:4]],
    *[("display_data", shown(text, which)) for text in "xy" for which in (None, "d", "e")],
    *[("update_display_data", shown(text, which)) for text in "xyz" for which in "de"],
    *[("clear_output", {"wait": wait}) for wait in (True, False, True, False)],
]
STATE_OR_ODD = [
    *[("status", {"execution_state": state}) for state in ("busy", "idle", "restarting")],
    *[("comm_msg", body) for body in WIDGETS],
    *[("execute_result", shown("r", which)) for which in (None, "d")],
    ("error", {"ename": "E"}),
    ("execute_reply", {"page": True}),
    ("input_request", {"prompt": "?"}),
    *ODD,
]


def steps(contents: list[tuple[str, Any]]) -> Any:
    """Message types, contents and parents; one parent is more frequent."""
    raw = [(msg_type, dump(body), parent) for msg_type, body in contents for parent in "ppq"]
    return st.sampled_from(raw)


def numbered(some: list[tuple[str, bytes, str]]) -> list[bytes]:
    """Frames, each with a `msg_id` each."""
    return [frame(kind, body, f"k_{i}", parent) for i, (kind, body, parent) in enumerate(some)]


def runs(longest: int = 25) -> Any:
    """Stretches with occasional state."""
    step = st.one_of(*[steps(OUTPUT)] * 5, steps(STATE_OR_ODD))
    return st.lists(step, max_size=longest).map(numbered)


FRAMES = runs()


def cut(frames: list[bytes], places: set[int]) -> list[list[bytes]]:
    ends = [*sorted(place for place in places if place < len(frames)), len(frames)]
    return [frames[low:high] for low, high in zip([0, *ends], ends, strict=False)]


def msg_type_of(one: bytes) -> str:
    return str(json.loads(parsed(one).header)["msg_type"])


def text_of(frames: list[bytes], parent: str, name: str) -> str:
    bodies = [
        content(one)
        for one in frames
        if msg_type_of(one) == "stream"
        and json.loads(parsed(one).parent_header)["msg_id"] == parent
    ]
    return "".join(body["text"] for body in bodies if body["name"] == name)


@pytest.mark.parametrize("listens", ["for good", "until idle", "to one cell"])
@given(FRAMES, st.sets(st.integers(1, 24)))
@settings(max_examples=300)
def test_a_notebook_shows_the_same_output(
    listens: str, frames: list[bytes], places: set[int]
) -> None:
    plain, fed = Notebook(listens), Notebook(listens)
    # At the end each cell prints something, so that a `clear_output` with wait takes effect.
    for part in [*cut(frames, places), [stream("more", parent=parent) for parent in "pq"]]:
        plain.feed(part)
        fed.feed(coalesce(part))
        assert fed.seen() == plain.seen()


@given(st.lists(steps(OUTPUT), max_size=25).map(numbered))
def test_no_stream_text_is_lost_without_a_clear_output(frames: list[bytes]) -> None:
    frames = [one for one in frames if msg_type_of(one) != "clear_output"]
    out = coalesce(frames)
    for parent in "pq":
        for name in ("stdout", "stderr"):
            assert text_of(out, parent, name) == text_of(frames, parent, name)


@given(FRAMES)
def test_frames_with_state_and_the_order_are_unchanged(frames: list[bytes]) -> None:
    out = coalesce(frames)
    state = [one for one in frames if msg_type_of(one) not in LOSABLE]
    assert [one for one in out if msg_type_of(one) not in LOSABLE] == state
    ids = [int(json.loads(parsed(one).header)["msg_id"][2:]) for one in out]
    assert ids == sorted(set(ids))
    assert ids[-1:] == [*range(len(frames))][-1:], "the result must have the last message"


@given(FRAMES)
def test_coalescing_twice_changes_nothing_more(frames: list[bytes]) -> None:
    out = coalesce(frames)
    assert coalesce(out) == out
    assert len(out) <= len(frames)


@given(FRAMES, st.data())
def test_truncated_frames_are_kept(frames: list[bytes], data: st.DataObject) -> None:
    if not frames:
        return
    index = data.draw(st.integers(0, len(frames) - 1))
    size = len(frames[index])
    broken = frames[index][: data.draw(st.integers(0, size - 1))]
    assert broken in coalesce([*frames[:index], broken, *frames[index + 1 :]])


@given(FRAMES, st.data())
def test_corrupted_frames_raise_no_error(frames: list[bytes], data: st.DataObject) -> None:
    if not frames:
        return
    index = data.draw(st.integers(0, len(frames) - 1))
    flipped = bytearray(frames[index])
    place = data.draw(st.integers(0, len(flipped) - 1))
    flipped[place] ^= data.draw(st.integers(1, 255))
    out = coalesce([*frames[:index], bytes(flipped), *frames[index + 1 :]])
    assert coalesce(out) == out


@given(st.lists(st.binary(max_size=80)))
def test_random_bytes_are_kept(frames: list[bytes]) -> None:
    assert coalesce(frames) == frames
