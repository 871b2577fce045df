"""The entries of a state log, read after a crash; damaged entries cost nothing else."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from kbridge.flow.execution import Execution
from kbridge.flow.input_requests import InputRequest
from kbridge.hub.recovered import (
    LIVES,
    Life,
    Lives,
    SavedSession,
    SavedState,
    input_entry,
    is_of_another_kernel,
    kernel_mark,
    read_entries,
    unwritten_requests,
)
from kbridge.wire.message import Channel, Message

NOW = 1.8e9
HEADER = b'{"msg_id": "ask", "msg_type": "execute_request", "session": "\xff"}'


def begin(state: SavedState, end: int, now: float = NOW, markers: str = "me_") -> Lives:
    return Lives.begin(state, end, now=now, markers=markers)


def after(*crashes: tuple[int, float]) -> Lives:
    """Return the lives after bridges that began at a sequence number and a time."""
    entries: dict[str, object] = {}
    lives = begin(SavedState(), 0)
    entries["life/0"] = list(lives.present)
    for end, now in crashes:
        lives = begin(read_entries(entries, end), end, now, markers=f"{end}_")
        entries[f"life/{lives.index}"] = list(lives.present)
    return lives


# -- the numbers of several bridges ---------------------------------------------------------------


def test_the_first_bridge_counts_from_the_microsecond_of_its_start() -> None:
    lives = begin(SavedState(), 0)
    assert lives.origin == int(NOW * 1e6)
    assert lives.index == 0
    assert lives.seq_of(lives.origin + 17) == 17
    assert lives.seq_of(lives.origin - 1) is None


def test_numbers_of_an_earlier_bridge_name_its_frames() -> None:
    lives = after((100, NOW + 1))
    first = int(NOW * 1e6)
    assert lives.seq_of(first + 17) == 17
    assert lives.seq_of(first + 99) == 99
    assert lives.seq_of(lives.origin + 100) == 100


def test_a_number_beyond_what_the_earlier_bridge_wrote_is_its_last_frame() -> None:
    lives = after((100, NOW + 1))
    first = int(NOW * 1e6)
    assert lives.seq_of(first + 100) == 99
    assert lives.seq_of(lives.origin + 99) == 99
    assert lives.seq_of(lives.origin - 1) == 99


def test_a_bridge_that_wrote_nothing_has_no_frame_to_name() -> None:
    lives = after((100, NOW + 1), (100, NOW + 2))
    second = lives.past[1].origin
    assert lives.seq_of(second + 100) == 99
    lives = after((0, NOW + 1))
    assert lives.seq_of(int(NOW * 1e6)) == -1


@given(
    st.lists(st.tuples(st.integers(0, 1 << 31), st.floats(-1e9, 1e9)), min_size=1, max_size=5),
    st.integers(0, (1 << 32) - 1),
)
def test_numbers_of_two_bridges_never_overlap(crashes: list[tuple[int, float]], sent: int) -> None:
    """Also if the clock went back between them."""
    ends = sorted(end for end, _ in crashes)
    lives = after(*((end, NOW + at) for end, (_, at) in zip(ends, crashes, strict=True)))
    every = [*lives.past, lives.present]
    for life, later in itertools.pairwise(every):
        number = life.origin + life.first + min(sent, (1 << 32) - 1)
        assert number < later.origin + later.first
        seq = lives.seq_of(number)
        assert seq is not None
        assert seq < later.first


def test_clients_of_two_bridges_have_different_numbers() -> None:
    """Also if the log has lost the earlier ones, which wrote private frames."""
    numbers = {begin(SavedState(), 0, markers=f"{name}_").first_client for name in range(100)}
    assert len({number >> 32 for number in numbers}) == 100
    assert max(numbers) < 1 << 62, "with the numbers of its clients, it fits in a block on disk"


def test_only_entries_with_the_mark_of_a_kernel_are_its_own() -> None:
    info = {"key": "a key"}
    assert not is_of_another_kernel({"kernel": kernel_mark(info)}, info)
    assert is_of_another_kernel({"kernel": kernel_mark({"key": "another"})}, info)
    assert is_of_another_kernel({"life/0": [1, 0, "me_"]}, info), "the log was damaged"


def test_old_lives_are_forgotten_and_numbers_go_on() -> None:
    entries = {f"life/{i}": [i + 1, 0, f"{i}_"] for i in range(7, LIVES + 10)}
    lives = begin(read_entries(entries, 0), 0)
    assert lives.index == LIVES + 10
    assert len(lives.past) == LIVES


def test_markers_of_earlier_bridges_name_their_place() -> None:
    lives = after((100, NOW), (200, NOW))
    assert lives.marker_seq("200_250") == 250
    assert lives.marker_seq("100_150") == 150
    assert lives.marker_seq("100_205") == 199, "a frame that was not written"
    assert lives.marker_seq("me_-1") == -1
    for other in ("me_", "me_x", "me_1.5", "you_1", "", "me_²"):
        assert lives.marker_seq(other) is None


# -- sessions -------------------------------------------------------------------------------------


def test_sessions_have_their_numbers_and_places() -> None:
    entries: dict[str, object] = {
        "session/a": 1,
        "session/with/slash": 3,
        "place/3": 70,
        "session/new": 4,
        "place/4": None,
        "session/ahead": 5,
        "place/5": 1000,
    }
    assert read_entries(entries, 100).sessions == [
        SavedSession("a", 1, None),
        SavedSession("with/slash", 3, 70),
        SavedSession("new", 4, None),
        SavedSession("ahead", 5, 100),
    ]


# -- damage ---------------------------------------------------------------------------------------

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                *("life/0", "life/x", "session/a", "place/1", "execution/r", "input/q"),
                *("other", ""),
            ]
        ),
        ANY,
    )
)
def test_any_entry_can_be_read(entries: dict[str, object]) -> None:
    question = InputRequest(Message(Channel.STDIN, HEADER, b"{}", b"{}", b"{}", ()), 12, 4)
    sound: dict[str, object] = {
        "input/sound": input_entry(question),
        "session/sound": 12,
        "place/12": 5,
        "life/3": [10**15, 4, "me_"],
        "execution/sound": Execution("sound", 12, HEADER).entry(),
    }
    state = read_entries({**sound, **entries}, 10)
    assert state.sessions[0] == SavedSession("sound", 12, 5)
    assert state.executions[0] == Execution("sound", 12, HEADER)
    assert state.inputs[0] == question
    assert state.lives[0] == Life(10**15, 4, "me_")
    assert state.next_index >= 4


def test_an_execution_without_the_number_of_its_client_is_ignored() -> None:
    entry = Execution("ask", 7, HEADER).entry()
    del entry["client"]
    assert read_entries({"execution/ask": entry}, 0).executions == []


def test_the_cause_for_which_connections_ended_is_read() -> None:
    assert read_entries({}, 0).cut == ""
    assert read_entries({"cut": "link is pyzmq"}, 0).cut == "link is pyzmq"
    assert read_entries({"cut": ["damaged"]}, 0).cut == ""
    assert len(read_entries({"cut": "x" * 10_000}, 0).cut) == 200


def test_requests_in_the_notes_are_added_to_those_in_the_log() -> None:
    entries: dict[str, object] = {
        "session/mine": 1,
        "session/damaged": ["1"],
        "execution/written": {"client": 1, "state": "done"},
    }
    notes: dict[str, object] = {
        "execution/written": {"client": 1},
        "execution/new": {"client": 1},
        "execution/of an unknown session": {"client": 2},
        "execution/without a client": {},
        "execution/damaged": ["client", 1],
        "session/other": 3,
    }
    assert unwritten_requests(notes, entries) == {"execution/new": {"client": 1}}
    assert unwritten_requests({}, entries) == {}
    assert unwritten_requests(notes, {}) == {}
