"""The rate limits work as in Jupyter Server, but never drop messages with state."""

import math
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbridge.flow.policy import DROP, PASS
from kbridge.flow.ratelimit import EXEMPT, GRAINS, RateLimit
from kbridge.wire.message import Channel, Message

PARENT = b'{"msg_id": "cell", "msg_type": "execute_request"}'


def message(
    msg_type: str = "stream",
    size: int = 100,
    channel: Channel = Channel.IOPUB,
    content: bytes = b"",
) -> Message:
    """Return a message of about that many bytes."""
    header = f'{{"msg_type": "{msg_type}"}}'.encode()
    rest = size - len(header) - len(PARENT) - 2
    return Message(channel, header, PARENT, b"{}", content or b"x" * rest)


IDLE = message("status", content=b'{"execution_state": "idle"}')
BUSY = message("status", content=b'{"execution_state": "busy"}')


class Notices:
    """Builds notices as the bridge does, and records them."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.parents: list[bytes] = []
        self.events: list[str] = []

    def __call__(self, text: str, parent_header: bytes) -> Message:
        self.texts.append(text)
        self.parents.append(parent_header)
        return Message(Channel.IOPUB, b"notice", parent_header, b"{}", text.encode())


def limiter(
    msgs: float = 10, data: float = 1e6, window: float = 1, *, on: bool = True
) -> tuple[RateLimit, Notices]:
    notices = Notices()
    return RateLimit(
        on, msgs, data, window, notice=notices, on_event=notices.events.append
    ), notices


def feed(limit: RateLimit, messages: Iterable[Message], now: float) -> str:
    """One letter per message: p passed, d dropped, n dropped with a notice, N with two."""
    letters = {PASS: "p", DROP: "d"}
    out = ""
    for msg in messages:
        verdict = limit(msg, msg.msg_type, now)
        out += letters[verdict] if not verdict else "nN"[len(verdict) - 1]
    return out


def test_defaults_are_those_of_jupyter_server() -> None:
    notices = Notices()
    limit = RateLimit(notice=notices)
    assert feed(limit, [message()] * 3002, 0.0) == "p" * 3000 + "nd"
    assert "iopub_msg_rate_limit=1000 (msgs/sec)" in notices.texts[0]
    assert "rate_limit_window=3 (secs)" in notices.texts[0]
    limit = RateLimit(notice=notices)
    assert feed(limit, [message(size=1_000_000)] * 5, 0.0) == "pppnd"
    assert "iopub_data_rate_limit=1000000 (bytes/sec)" in notices.texts[1]


def test_one_notice_names_the_setting_and_has_the_parent() -> None:
    limit, notices = limiter(msgs=2)
    assert feed(limit, [message()] * 6, 0.0) == "ppnddd"
    assert notices.parents == [PARENT]
    text = notices.texts[0]
    assert text.startswith("IOPub message rate exceeded.\n")
    assert text.endswith("\n")
    assert "`ZMQChannelsWebsocketConnection.iopub_msg_rate_limit`" in text
    assert notices.events == ["IOPub message rate exceeded"]


def test_the_notice_replaces_the_message() -> None:
    limit, _ = limiter(msgs=1)
    feed(limit, [message()], 0.0)
    verdict = limit(message(), "stream", 0.0)
    assert verdict is not None
    assert [m.header for m in verdict] == [b"notice"]


def test_both_limits_at_once_make_two_notices() -> None:
    limit, notices = limiter(msgs=1, data=1000)
    assert feed(limit, [message(), message(size=2000), message()], 0.0) == "pNd"
    assert [text.split(".")[0] for text in notices.texts] == [
        "IOPub message rate exceeded",
        "IOPub data rate exceeded",
    ]


def test_the_data_limit_has_its_own_notice_while_messages_are_limited() -> None:
    limit, _ = limiter(msgs=1, data=1000)
    assert feed(limit, [message(), message(), message(size=2000), message()], 0.0) == "pnnd"


def test_output_resumes_below_80_percent_and_is_reported() -> None:
    limit, notices = limiter(msgs=10, window=1)
    assert feed(limit, [message()] * 5, 0.0) == "ppppp"
    assert feed(limit, [message()] * 6, 0.5) == "pppppn"
    # Five left the window: this one is the sixth of ten.
    assert feed(limit, [message()], 1.0) == "p"
    assert notices.events == ["IOPub message rate exceeded", "iopub messages resumed"]


def test_output_does_not_resume_between_80_percent_and_the_limit() -> None:
    limit, notices = limiter(msgs=10, window=1)
    feed(limit, [message()] * 2, 0.0)
    feed(limit, [message()] * 9, 0.5)
    # Two left the window: this would be the ninth, then the eighth is not below eight either.
    assert feed(limit, [message()] * 5, 1.25) == "ddddd"
    assert len(notices.texts) == 1
    assert feed(limit, [message()], 1.5) == "p"


def test_a_second_excess_has_a_second_notice() -> None:
    limit, notices = limiter(msgs=2, window=1)
    assert feed(limit, [message()] * 4, 0.0) == "ppnd"
    assert feed(limit, [message()] * 4, 2.0) == "ppnd"
    assert len(notices.texts) == 2


def test_resuming_is_reported_when_neither_limit_is_exceeded() -> None:
    limit, notices = limiter(msgs=10, data=1000, window=1)
    feed(limit, [message(size=500)] * 2, 0.0)
    assert (
        feed(limit, [message("display_data")] * 8 + [message("display_data")], 0.5) == "ppppppppn"
    )
    assert feed(limit, [message(size=2000)], 0.75) == "n"
    assert "iopub messages resumed" not in notices.events
    # Both are empty again.
    assert feed(limit, [message()], 2.0) == "p"
    assert notices.events[-1] == "iopub messages resumed"
    assert notices.events.count("iopub messages resumed") == 1


def test_idle_resets_the_window() -> None:
    limit, notices = limiter(msgs=2)
    assert feed(limit, [message()] * 4, 0.0) == "ppnd"
    assert feed(limit, [BUSY, message()], 0.0) == "pd"
    assert feed(limit, [IDLE], 0.0) == "p"
    assert limit.statistics()["window_messages"] == 0
    assert feed(limit, [message()] * 4, 0.0) == "ppnd"
    assert len(notices.texts) == 2


@pytest.mark.parametrize(
    "spelling", [b'{"execution_state":"idle"}', b'{"execution_state" : "idle"}']
)
def test_idle_is_read_in_any_spelling(spelling: bytes) -> None:
    limit, _ = limiter(msgs=1)
    feed(limit, [message()] * 2, 0.0)
    assert feed(limit, [message("status", content=spelling), message()], 0.0) == "pp"


STATEFUL = [*sorted(EXEMPT), "shutdown_reply", "execute_reply", "comm_info_reply"]
DROPPABLE = ["stream", "display_data", "update_display_data", "clear_output", "never_heard_of"]


@pytest.mark.parametrize("msg_type", STATEFUL)
def test_messages_with_state_are_not_counted_and_not_dropped(msg_type: str) -> None:
    limit, _ = limiter(msgs=2)
    assert feed(limit, [message(msg_type)] * 50, 0.0) == "p" * 50
    assert feed(limit, [message()] * 3, 0.0) == "ppn"
    assert feed(limit, [message(msg_type, size=10**7)] * 50, 0.0) == "p" * 50


@pytest.mark.parametrize("msg_type", DROPPABLE)
def test_output_is_dropped(msg_type: str) -> None:
    limit, _ = limiter(msgs=2)
    assert feed(limit, [message(msg_type)] * 4, 0.0) == "ppnd"


@pytest.mark.parametrize("channel", [c for c in Channel if c is not Channel.IOPUB])
def test_other_channels_are_not_limited(channel: Channel) -> None:
    limit, _ = limiter(msgs=1)
    assert feed(limit, [message("anything", channel=channel)] * 10, 0.0) == "p" * 10
    assert limit.statistics()["window_messages"] == 0


@pytest.mark.parametrize("msg_type", ["display_data", "never_heard_of"])
def test_only_streams_count_for_the_data_rate(msg_type: str) -> None:
    limit, _ = limiter(data=1000)
    assert feed(limit, [message(msg_type, size=10**6)] * 3, 0.0) == "ppp"
    assert feed(limit, [message(size=2000)], 0.0) == "n"


def test_buffers_count_for_the_data_rate() -> None:
    limit, _ = limiter(data=1000)
    assert feed(limit, [message()._replace(buffers=(b"x" * 500, memoryview(b"x" * 501)))], 0) == "n"
    assert limit.statistics()["dropped_bytes"] == 1101


@pytest.mark.parametrize(("msgs", "data"), [(0, 0), (-1, -1)])
def test_a_limit_of_zero_disables_the_limit(msgs: float, data: float) -> None:
    limit, _ = limiter(msgs=msgs, data=data)
    assert feed(limit, [message(size=10**6)] * 50, 0.0) == "p" * 50


def test_one_limit_of_zero_leaves_the_other_limit() -> None:
    assert feed(limiter(msgs=0, data=1000)[0], [message()] * 12, 0.0) == "p" * 10 + "nd"
    assert feed(limiter(msgs=2, data=0)[0], [message(size=10**6)] * 3, 0.0) == "ppn"


def test_infinite_limits_are_accepted() -> None:
    limit, _ = limiter(msgs=math.inf, data=1e300)
    assert feed(limit, [message()] * 50, 0.0) == "p" * 50


def test_limit_rate_false_disables_both_limits() -> None:
    limit, _ = limiter(msgs=1, on=False)
    assert feed(limit, [message()] * 50, 0.0) == "p" * 50


@pytest.mark.parametrize("window", [0, -3, math.nan])
def test_a_window_must_be_longer_than_zero(window: float) -> None:
    with pytest.raises(ValueError, match="rate_limit_window"):
        limiter(window=window)


def test_events_need_no_listener() -> None:
    limit = RateLimit(True, 2, 0, 1, notice=Notices())
    assert feed(limit, [message()] * 3, 0.0) + feed(limit, [message()], 2.0) == "ppnp"


def test_memory_of_the_window_is_bounded() -> None:
    limit, _ = limiter(msgs=0, data=1e12)
    for step in range(20_000):
        feed(limit, [message()], step / 5000)
    statistics = limit.statistics()
    assert statistics["window_buckets"] <= GRAINS
    # One second at 5,000 messages per second, within a grain.
    assert abs(statistics["window_messages"] - 5000) <= 2 * 5000 / GRAINS + 1


class Naive:
    """The algorithm of Jupyter Server: a queue of single messages."""

    def __init__(self, msgs: float, data: float, window: float) -> None:
        self.limits = (msgs, data)
        self.window = window
        self.reset()

    def reset(self) -> None:
        self.sent: list[tuple[float, int]] = []
        self.exceeded = [False, False]

    def take(self, msg: Message, now: float) -> str:
        msg_type = msg.msg_type
        if msg_type == "status":
            if b"idle" in msg.content:
                self.reset()
            return "p"
        self.sent = [(at, n) for at, n in self.sent if now < at + self.window]
        nbytes = msg.nbytes if msg_type == "stream" else 0
        self.sent.append((now, nbytes))
        values = (len(self.sent), sum(n for _, n in self.sent))
        told = 0
        for i, (value, limit) in enumerate(zip(values, self.limits, strict=True)):
            rate = value / self.window
            if 0 < limit < rate:
                told += not self.exceeded[i]
                self.exceeded[i] = True
            elif self.exceeded[i] and rate < 0.8 * limit:
                self.exceeded[i] = False
        if not any(self.exceeded):
            return "p"
        self.sent.pop()
        return "dnN"[told]


BATCH = st.tuples(
    # Steps of whole grains; many are zero, and some are longer than the window.
    st.sampled_from([0, 0, 0, 1, 2, 100, 256, 511, 512, 1023, 1024, 1025, 3000]),
    st.lists(
        st.one_of(
            st.builds(message, size=st.sampled_from([100, 125, 128, 500, 1024])),
            st.builds(message, st.just("display_data")),
            st.sampled_from([BUSY, IDLE]),
        ),
        max_size=12,
    ),
)


@settings(deadline=None)
@given(
    msgs=st.sampled_from([0, 1, 2, 5, 8, 10]),
    data=st.sampled_from([0, 256, 1000, 1024]),
    window=st.sampled_from([0.5, 1.0, 2.0]),
    batches=st.lists(BATCH, max_size=20),
)
def test_verdicts_agree_with_jupyter_servers_algorithm(
    msgs: float, data: float, window: float, batches: list[tuple[int, list[Message]]]
) -> None:
    limit, notices = limiter(msgs, data, window)
    naive = Naive(msgs, data, window)
    now = 100.0
    for grains, messages in batches:
        now += grains * window / GRAINS
        expected = "".join(naive.take(msg, now) for msg in messages)
        assert feed(limit, messages, now) == expected
    statistics = limit.statistics()
    assert statistics["limited"] == any(naive.exceeded)
    assert all(parent == PARENT for parent in notices.parents)
