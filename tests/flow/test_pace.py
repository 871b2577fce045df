"""The pace of output: the two buckets, ticks, and held output."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.flow.pace import _GRAIN, JOINED, TICK, Pace
from kbridge.flow.policy import PASS
from kbridge.wire.message import Channel, Message

IDLE = b'{"execution_state": "idle"}'
BUSY = b'{"execution_state": "busy"}'


class Desk:
    """A pace, and the part of a journal that it uses: the frames and their sizes."""

    def __init__(self, messages: float = 0, data: float = 0, window: float = 1.0, **more) -> None:
        self.pace = Pace(
            iopub_msg_rate_limit=messages / JOINED,
            iopub_data_rate_limit=data,
            rate_limit_window=window,
            burst=window,
            **more,
        )
        self.now = 1000.0
        self.first = 0
        self.sizes: list[int] = []  # stream bytes of each frame
        self.again: float | None = None

    @property
    def end(self) -> int:
        return len(self.sizes)

    @property
    def open_to(self) -> int:
        """Return the horizon of the journal."""
        return min(self.pace.horizon, self.end)

    @property
    def held(self) -> int:
        return self.pace.statistics()["held_bytes"]

    def settle(self, after: float = 0.0) -> None:
        self.now += after
        self.again = self.pace.settle(self.first, self.end, self.now)

    def take(self, msg_type: str, content: bytes) -> None:
        msg = Message(Channel.IOPUB, b"", b"", b"", content)
        assert self.pace(msg, msg_type, self.now) is PASS
        self.sizes.append(len(content) if msg_type == "stream" else 0)

    def say(self, *messages: int | str) -> None:
        """Process one wake-up: stream messages of given sizes, or messages of some type."""
        for what in messages:
            if isinstance(what, int):
                self.take("stream", b"x" * what)
            else:
                self.take(*{"idle": ("status", IDLE)}.get(what, (what, BUSY)))
        self.settle()

    def calm(self) -> int:
        """Settle as often as requested; return the number of times."""
        for turns in itertools.count():
            if self.again is None:
                return turns
            assert turns < 100_000, "it never ends"
            self.settle(self.again)
        raise AssertionError


def test_texts_counted_together_are_those_counted_one_by_one() -> None:
    one, other = (Desk(messages=20, data=1000) for _ in range(2))
    for sizes in ([10] * 30, [500, 600], [1], []):
        one.say(*sizes)
        other.pace.count_texts(len(sizes), sum(sizes))
        other.sizes += sizes
        other.settle()
        assert (one.open_to, one.held, one.again) == (other.open_to, other.held, other.again)


# -- without a limit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{"limit_rate": False, "messages": 1, "data": 1}, {"messages": 0, "data": -1}]
)
def test_without_limits_nothing_is_held(settings) -> None:
    desk = Desk(**settings)
    assert not desk.pace.limits
    for _ in range(10):
        desk.say(*[1000] * 100)
        assert desk.again is None
        assert desk.open_to == desk.end
    assert desk.pace.statistics() == {"flooding": False, "held_bytes": 0}


@pytest.mark.parametrize("window", [0, -1.0, float("nan")])
def test_a_window_must_have_a_length(window) -> None:
    with pytest.raises(ValueError, match="rate_limit_window"):
        Pace(rate_limit_window=window)


@pytest.mark.parametrize("limits", [{"messages": 1}, {"data": 1}])
def test_one_limit_is_enough_to_pace(limits) -> None:
    assert Desk(**limits).pace.limits


# -- messages -----------------------------------------------------------------------------------


def test_a_burst_within_the_window_is_not_a_flood() -> None:
    desk = Desk(messages=100, window=3.0)
    desk.say(*[1] * 300)
    assert (desk.open_to, desk.again, desk.pace.flooding) == (300, None, False)
    desk.say(1)
    assert desk.pace.flooding


@pytest.mark.parametrize("kind", ["stream", "display_data", "update_display_data", "clear_output"])
def test_all_types_that_coalescing_handles_are_counted(kind) -> None:
    desk = Desk(messages=10)
    desk.say(*[kind] * 11)
    assert desk.pace.flooding


def test_messages_with_state_are_never_a_flood() -> None:
    desk = Desk(messages=10)
    desk.say(*["comm_msg"] * 1000)
    assert not desk.pace.flooding
    assert desk.open_to == desk.end


def flooded(**more) -> Desk:
    """Return a desk during a flood, right after a tick."""
    desk = Desk(messages=100, **more)
    desk.say(*[1] * 101)
    assert desk.pace.flooding
    desk.calm()
    desk.settle(TICK)
    assert desk.open_to == desk.end
    return desk


def test_a_flood_is_released_in_ticks() -> None:
    desk = flooded()
    start = desk.end
    desk.settle(TICK / 5)
    desk.say(1, 1)
    assert desk.open_to == start
    assert desk.again == pytest.approx(TICK * 4 / 5)
    desk.settle(TICK / 5)
    desk.say(1)
    assert desk.open_to == start
    assert desk.again == pytest.approx(TICK * 3 / 5)
    desk.settle(desk.again)
    assert desk.open_to == desk.end == start + 3
    assert desk.again is None


@pytest.mark.parametrize("kind", ["status", "execute_result", "error", "input_request", "comm_msg"])
def test_a_message_with_state_ends_the_tick(kind) -> None:
    desk = flooded()
    desk.say(1, 1)
    assert desk.open_to < desk.end
    desk.say(1, kind, 1)
    assert desk.open_to == desk.end
    assert desk.pace.flooding, "but not the flood"
    desk.say(1)
    assert desk.open_to < desk.end, "only that tick ended"


def test_idle_ends_the_flood() -> None:
    desk = flooded()
    desk.say(1, "idle")
    assert not desk.pace.flooding
    assert (desk.open_to, desk.again) == (desk.end, None)
    desk.say(*[1] * 100)
    assert not desk.pace.flooding, "the next cell has a new burst"


def test_busy_does_not_end_the_flood() -> None:
    desk = flooded()
    desk.say("status")
    assert desk.pace.flooding


def test_a_flood_ends_when_the_rate_falls_below_the_limit() -> None:
    desk = flooded()
    desk.settle(0.1)  # 10 messages less: 90 % of the bucket
    assert desk.pace.flooding
    desk.settle(0.2)
    assert not desk.pace.flooding
    desk.say(1, 1)
    assert desk.open_to == desk.end


def test_a_long_flood_ends_soon_after_it_stops() -> None:
    desk = Desk(messages=100)
    for _ in range(50):
        desk.say(*[1] * 100)
        desk.settle(TICK)
    assert desk.pace.flooding
    desk.settle(0.5)
    assert not desk.pace.flooding, "not only after the 50 windows that draining would take"


def test_a_clock_that_goes_back_holds_no_message_forever() -> None:
    desk = flooded()
    desk.say(1)
    desk.now -= 500
    desk.say(1)
    assert desk.again is not None
    assert desk.calm() < 100_000
    assert desk.open_to == desk.end


# -- data ---------------------------------------------------------------------------------------

KB = 1000


def test_data_within_the_window_passes_and_more_data_waits() -> None:
    desk = Desk(data=100 * KB)
    desk.say(99 * KB)
    assert (desk.open_to, desk.again) == (1, None)
    desk.say(2 * KB)
    assert (desk.open_to, desk.again) == (2, None), "the bucket was not full yet"
    desk.say(20 * KB, 20 * KB)
    assert (desk.open_to, desk.again, desk.held) == (2, TICK, 40 * KB)


def test_held_data_is_released_at_the_rate_of_the_limit() -> None:
    desk = Desk(data=100 * KB)
    desk.say(100 * KB)
    for _ in range(50):
        desk.say(10 * KB)
    begun, went = desk.now, [desk.open_to]
    while desk.again is not None:
        desk.settle(desk.again)
        went.append(desk.open_to)
        gone = sum(desk.sizes[: desk.open_to])
        assert gone <= 100 * KB + 100 * KB * (desk.now - begun) + 10 * KB
    assert went == sorted(went)
    assert desk.open_to == desk.end
    assert desk.now - begun >= 500 * KB / (100 * KB) - 1
    assert desk.now - begun <= 500 * KB / (100 * KB) + 1, "it must not be slower than the limit"
    assert desk.held == 0


def test_displays_are_held_only_behind_held_streams() -> None:
    desk = Desk(data=1 * KB)
    desk.say(*["display_data"] * 500)
    assert desk.open_to == desk.end
    desk.say(2 * KB)
    desk.say(2 * KB, "display_data")
    assert desk.open_to == desk.end - 2


def test_messages_behind_held_data_wait_and_keep_their_order() -> None:
    desk = Desk(data=10 * KB)
    desk.say(10 * KB)
    desk.say(5 * KB)
    held_from = desk.open_to
    desk.say("status", "execute_result")
    desk.say("idle")
    assert desk.open_to == held_from == 1
    assert desk.held == 5 * KB
    desk.calm()
    assert desk.open_to == desk.end


def test_a_message_with_state_passes_if_nothing_is_held() -> None:
    """The cell has ended even if its first burst exceeded the limit."""
    desk = Desk(data=10 * KB)
    desk.say(1000 * KB)
    assert desk.open_to == 1
    desk.say("execute_result", "idle")
    assert (desk.open_to, desk.again, desk.held) == (desk.end, None, 0)
    assert desk.pace.statistics() == {"flooding": False, "held_bytes": 0}


def test_more_data_after_an_excess_waits_although_nothing_is_held() -> None:
    desk = Desk(data=10 * KB)
    desk.say(1000 * KB)
    desk.say("execute_result")
    desk.say(1)
    assert desk.open_to == desk.end - 1
    before = desk.now
    desk.calm()
    assert desk.open_to == desk.end
    assert desk.now - before == pytest.approx(99, abs=0.1)


def test_idle_while_output_is_held_leaves_the_end_of_the_wait_to_the_next_one() -> None:
    desk = Desk(data=10 * KB)
    desk.say(1000 * KB)
    desk.say(1000 * KB)
    desk.say("idle")
    desk.calm()
    desk.say("idle")
    desk.say(1000 * KB)
    assert desk.open_to == desk.end


def test_idle_ends_the_wait_after_an_excess_if_nothing_is_held() -> None:
    desk = Desk(data=10 * KB)
    desk.say(1000 * KB)
    desk.say("idle")
    desk.say(1000 * KB)
    assert desk.open_to == desk.end
    desk.say(1000 * KB)
    desk.say("idle")
    assert desk.open_to == desk.end - 2, "held output must stay held"
    desk.settle(TICK)
    assert desk.open_to == desk.end - 2, "for the same time as before"
    desk.say(1)
    desk.calm()
    assert desk.open_to == desk.end


def test_small_messages_are_released_in_groups() -> None:
    desk = Desk(data=300 * KB)
    desk.say(600 * KB)
    for _ in range(10_000):
        desk.say(100)
    assert desk.held == 1000 * KB
    assert len(desk.pace._held) <= 1000 * KB // (_GRAIN - 100) + 1
    desk.calm()
    assert (desk.held, desk.open_to) == (0, desk.end)


def test_a_flood_of_messages_and_data_is_released_in_ticks_at_the_limit() -> None:
    desk = Desk(messages=100, data=10 * KB)
    desk.say(*[100] * 200)
    desk.say(*[100] * 200)
    assert desk.pace.flooding
    assert desk.held == 20 * KB
    moves = [(desk.now, desk.open_to)]
    while desk.again is not None:
        desk.settle(desk.again / 3)
        if desk.open_to != moves[-1][1]:
            moves.append((desk.now, desk.open_to))
    assert moves[-1][1] == desk.end
    floods = [b[0] - a[0] for a, b in itertools.pairwise(moves[1:])]
    assert all(gap >= TICK * 0.99 for gap in floods)


# -- forgetting, and letting go -----------------------------------------------------------------


def test_after_a_gap_the_next_frame_is_released_one_window_later() -> None:
    desk = Desk(data=10 * KB, window=3.0)
    crossed: list[float] = []
    for _ in range(1200):
        for content in ([10 * KB], []):
            before = desk.open_to
            desk.now += TICK / 4
            desk.say(*content)
            if before < desk.first < desk.open_to:
                crossed.append(desk.now)
            desk.first = max(desk.first, desk.end - 5)  # a journal for five frames
    took = desk.now - 1000.0
    assert 3 <= len(crossed) <= took / 3.0 + 1
    assert all(b - a >= 3.0 - 1e-6 for a, b in itertools.pairwise(crossed))


def test_held_messages_that_the_journal_dropped_are_not_counted() -> None:
    desk = Desk(data=100 * KB)
    desk.say(200 * KB)
    for _ in range(20):
        desk.say(50 * KB)
    assert desk.held == 1000 * KB
    desk.first = 11  # ten of the held frames were dropped
    desk.settle()
    assert desk.open_to == 1
    assert desk.again is not None
    before = desk.now
    while desk.open_to == 1:
        desk.settle(desk.again)
    assert desk.now - before >= 1.0 - 1e-9
    assert desk.held == sum(desk.sizes[desk.open_to :])
    desk.calm()
    assert (desk.open_to, desk.held) == (desk.end, 0)


def test_pacing_continues_after_all_held_messages_were_dropped() -> None:
    desk = Desk(data=10 * KB)
    desk.say(20 * KB)
    desk.say(20 * KB)
    desk.first = desk.end
    desk.settle(TICK)
    desk.calm()
    assert desk.open_to == desk.end
    assert desk.held == 0


def test_release_releases_everything_at_once() -> None:
    desk = Desk(messages=10, data=10 * KB)
    desk.say(*[1 * KB] * 30)
    desk.say(*[1 * KB] * 30)
    assert desk.open_to < desk.end
    desk.pace.release()
    assert desk.open_to == desk.end
    assert desk.pace.statistics() == {"flooding": False, "held_bytes": 0}
    desk.settle()
    assert (desk.open_to, desk.again) == (desk.end, None)
    desk.say(5 * KB)
    assert desk.open_to == desk.end, "the buckets are empty"


# -- whatever comes -----------------------------------------------------------------------------

SAID = st.lists(
    st.one_of(
        st.integers(0, 30_000),
        st.sampled_from(["display_data", "status", "idle", "comm_msg", "clear_output"]),
    ),
    max_size=30,
)
UNDER_WAY = SAID.map(lambda said: [what for what in said if what != "idle"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("say"), UNDER_WAY),
        st.tuples(st.just("wait"), st.floats(0, 2.0)),
        st.tuples(st.just("turn"), st.just(None)),
    ),
    max_size=40,
)
LIMITS = {
    "messages": st.sampled_from([0, 5, 50]),
    "data": st.sampled_from([0, 1000, 20_000]),
    "window": st.sampled_from([0.1, 1.0, 3.0]),
}


def step(desk: Desk, what: str, how) -> None:
    if what == "say":
        desk.say(*how)
    elif what == "wait":
        desk.settle(how)
    elif desk.again is not None:
        desk.settle(desk.again)


@given(STEPS, st.fixed_dictionaries(LIMITS))
def test_nothing_is_released_early_and_everything_in_the_end(steps, limits) -> None:
    desk = Desk(**limits)
    begun, before, largest = desk.now, 0, _GRAIN
    for what, how in steps:
        if what == "say":
            largest = max(largest, sum(n for n in how if isinstance(n, int)))
        step(desk, what, how)
        assert desk.open_to >= before, "released output must stay released"
        before = desk.open_to
        if desk.again is None:
            assert desk.open_to == desk.end, "held output without a timer"
        else:
            assert 0 < desk.again <= TICK
        if limits["data"] > 0:
            gone = sum(desk.sizes[: desk.open_to])
            allowed = limits["data"] * (limits["window"] + desk.now - begun) + largest
            assert gone <= allowed + 1e-6
            assert desk.held == sum(desk.sizes[desk.pace.released :])
    desk.calm()
    assert desk.open_to == desk.end
    assert desk.held == 0


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("say"), SAID),
            st.tuples(st.just("wait"), st.floats(0, 2.0)),
            st.tuples(st.just("turn"), st.just(None)),
            st.tuples(st.just("forget"), st.integers(1, 60)),
            st.tuples(st.just("release"), st.just(None)),
        ),
        max_size=40,
    ),
    st.fixed_dictionaries(LIMITS),
)
def test_the_rest_is_released_after_drops_and_gaps_are_a_window_apart(steps, limits) -> None:
    desk = Desk(**limits)
    before, gaps = 0, []
    for what, how in steps:
        if what == "forget":
            desk.first = min(desk.first + how, desk.end)
            desk.settle()
        elif what == "release":
            desk.pace.release()
            desk.settle()
            assert desk.open_to == desk.end
            gaps.clear()
        else:
            step(desk, what, how)
        assert desk.open_to >= before
        if before < desk.first < desk.open_to:
            gaps.append(desk.now)
        before = desk.open_to
        assert 0 <= desk.held <= sum(desk.sizes)
        if desk.again is None:
            assert desk.open_to == desk.end
    desk.calm()
    assert (desk.open_to, desk.held) == (desk.end, 0)
    if not limits["messages"]:
        assert all(b - a >= limits["window"] - 1e-6 for a, b in itertools.pairwise(gaps))


def test_released_messages_are_marked_late() -> None:
    """Late messages are joined, even if the flood has ended in the meantime."""
    pace = Pace(True, 0.0, 1000.0, 1.0)
    msg = Message(Channel.IOPUB, b"{}", b"{}", b"{}", b"x" * 2000)
    pace(msg, "stream", 0.0)
    assert pace.settle(0, 1, 0.0) is None
    assert not pace.late, "the first message was not held"
    pace(msg, "stream", 0.0)
    assert pace.settle(0, 2, 0.0) is not None
    assert pace.settle(0, 2, 5.0) is None
    assert pace.late
    assert pace.settle(0, 2, 6.0) is None
    assert not pace.late


def test_messages_released_by_idle_are_marked_late() -> None:
    pace = Pace(True, 1.0, 0.0, 1.0, burst=1.0)
    msg = Message(Channel.IOPUB, b"{}", b"{}", b"{}", b"{}")
    for seq in range(1, 4):
        pace(msg, "stream", 0.0)
        pace.settle(0, seq, 0.01 * seq)
    assert pace.flooding
    idle = Message(Channel.IOPUB, b"{}", b"{}", b"{}", b'{"execution_state": "idle"}')
    pace(idle, "status", 0.0)
    assert pace.settle(0, 4, 0.04) is None
    assert not pace.flooding
    assert pace.late


def test_ten_messages_at_once_pass_and_more_are_released_in_ticks() -> None:
    """With default settings: a page may need 50 ms per message."""
    pace = Pace()
    msg = Message(Channel.IOPUB, b"{}", b"{}", b"{}", b"{}")
    for seq in range(1, 11):
        pace(msg, "stream", 0.0)
        assert pace.settle(0, seq, 0.0) is None
    assert not pace.late
    pace(msg, "stream", 0.0)
    assert pace.settle(0, 11, 0.0) == TICK
    assert pace.horizon == 10
    assert pace.settle(0, 11, TICK) is None
    assert pace.horizon >= 11
    assert pace.late


def writes_in_a_minute(pace: Pace, rate: int) -> int:
    """Return how often messages at a steady rate are released."""
    msg = Message(Channel.IOPUB, b"{}", b"{}", b"{}", b"{}")
    writes = gone = 0
    for seq in range(1, 60 * rate + 1):
        pace(msg, "stream", 0.0)
        pace.settle(0, seq, seq / rate)
        if min(pace.horizon, seq) > gone:
            gone = min(pace.horizon, seq)
            writes += 1
    return writes


def test_a_rate_that_a_page_cannot_show_is_released_in_ticks() -> None:
    assert writes_in_a_minute(Pace(iopub_msg_rate_limit=1000.0), 600) < 60 / TICK + 20


def test_a_rate_that_a_page_can_show_is_not_held() -> None:
    assert writes_in_a_minute(Pace(iopub_msg_rate_limit=1000.0), 90) == 60 * 90


def test_a_higher_limit_is_respected() -> None:
    assert writes_in_a_minute(Pace(iopub_msg_rate_limit=10_000.0), 600) == 60 * 600


def test_without_a_limit_of_messages_there_are_no_ticks() -> None:
    pace = Pace(iopub_msg_rate_limit=0.0)
    assert pace.limits
    assert writes_in_a_minute(pace, 600) == 60 * 600
