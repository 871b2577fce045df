"""Readiness: valid and invalid proofs, and that the wait always ends."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbridge.flow.readiness import (
    QUIET_REPLIES,
    QUIET_SECONDS,
    RENEW_SECONDS,
    STDIN_SECONDS,
    TRANSITIONS,
    Decision,
    Event,
    Readiness,
    State,
)

TIMEOUT = 60.0
INTERVAL = 0.5
EVENTS = {
    "reply": Event.REPLY,
    "iopub": Event.IOPUB,
    "welcome": Event.WELCOME,
    "connected": Event.CONNECTED,
    "disconnected": Event.DISCONNECTED,
    "stdin": Event.STDIN_CONNECTED,
    "nostdin": Event.STDIN_DISCONNECTED,
}


def machine(now: float = 100.0) -> Readiness:
    readiness = Readiness(INTERVAL, TIMEOUT)
    readiness.reset(now)
    readiness.note(Event.STDIN_CONNECTED, now)
    return readiness


def play(readiness: Readiness, events: str, now: float = 100.0) -> Readiness:
    """Words: poll, reply, iopub, welcome, connected, disconnected, stdin, nostdin, reset, +seconds.

    After a reset stdin is connected, unless the next word is nostdin.
    """
    for word in events.split():
        if word.startswith("+"):
            now += float(word)
        elif word == "reset":
            readiness.reset(now)
            readiness.note(Event.STDIN_CONNECTED, now)
        elif word == "poll":
            readiness.poll(now)
        else:
            readiness.note(EVENTS[word], now)
    return readiness


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ("", "new"),
        ("poll", "asked"),
        ("poll reply", "replied"),
        ("poll iopub", "heard"),
        ("poll reply iopub", "proven"),
        ("poll iopub reply", "proven"),
        ("poll reply reply", "replied"),
        ("poll iopub iopub iopub", "heard"),
        # Events before the first probe do not prove anything.
        ("iopub poll reply", "replied"),
        ("reply iopub", "new"),
        ("reply poll iopub", "heard"),
        # A welcome is enough, at any time.
        ("welcome", "proven"),
        ("poll welcome", "proven"),
        ("poll reply welcome", "proven"),
        ("poll iopub welcome", "proven"),
        # Later polls keep the evidence.
        ("poll reply +1 poll iopub", "proven"),
        # A reset removes it.
        ("poll reply reset iopub", "new"),
        ("poll reply iopub reset", "new"),
        ("poll reply reset poll iopub", "heard"),
        ("welcome reset", "new"),
        # A lost connection removes it too, and nothing counts until it is back.
        ("poll reply iopub disconnected", "lost"),
        ("poll reply disconnected", "lost"),
        ("disconnected poll reply iopub welcome", "lost"),
        ("poll reply disconnected connected", "new"),
        ("poll reply disconnected connected iopub", "new"),
        ("poll reply disconnected connected poll reply iopub", "proven"),
        ("poll reply disconnected reset poll reply iopub", "proven"),
        # Evidence from before the handshake belongs to an older connection.
        ("poll reply connected iopub", "new"),
        ("poll connected poll reply iopub", "proven"),
        # The handshake may be reported after the proof.
        ("poll reply iopub connected", "proven"),
        ("welcome connected", "proven"),
        # The timeout.
        ("poll +60 poll", "asked timed_out"),
        ("disconnected +60 poll", "lost timed_out"),
        ("poll reply +60 poll iopub", "proven"),
        ("poll +60 poll reset", "new"),
        ("poll +60 poll disconnected", "lost"),
        ("poll +60 poll connected", "new"),
        ("poll +60 poll connected poll reply iopub", "proven"),
        ("poll +60 poll reply iopub", "proven"),
        # A kernel that answers every probe, but publishes nothing over a connected iopub.
        (f"connected poll reply +0.5 poll reply +0.5 poll reply +{QUIET_SECONDS} poll", "proven"),
        ("connected poll reply +0.5 poll reply +0.5 poll reply +0.5 poll", "replied"),
        (f"connected poll reply +{QUIET_SECONDS} poll reply", "replied"),
        (f"poll reply +0.5 poll reply +0.5 poll reply +{QUIET_SECONDS} poll", "replied"),
        (
            f"connected poll reply reply reply disconnected connected poll +{QUIET_SECONDS} poll",
            "asked",
        ),
    ],
)
def test_state_after_a_sequence_of_events(events: str, state: str) -> None:
    readiness = play(machine(), events)
    name, _, timed_out = state.partition(" ")
    assert readiness.state is State[name.upper()]
    assert readiness.timed_out == bool(timed_out)
    assert readiness.ready == (name == "proven" or bool(timed_out))


def test_probes_are_sent_at_once_and_then_at_the_interval() -> None:
    readiness = machine(100.0)
    assert readiness.poll(100.0) == Decision(True, False, False, 100.5)
    assert readiness.poll(100.2) == Decision(False, False, False, 100.5)
    assert readiness.poll(100.5) == Decision(True, False, False, 101.0)
    # A late poll does not send the missed probes.
    assert readiness.poll(107.0) == Decision(True, False, False, 107.5)


def test_the_last_wait_ends_at_the_timeout() -> None:
    readiness = machine(100.0)
    assert readiness.poll(159.75) == Decision(True, False, False, 160.0)
    assert readiness.poll(160.0) == Decision(False, True, True, None)
    assert readiness.poll(1000.0) == Decision(False, True, True, None)


def test_a_handshake_makes_the_next_probe_due_at_once() -> None:
    readiness = machine(100.0)
    readiness.poll(100.0)
    readiness.note(Event.CONNECTED, 100.1)
    assert readiness.poll(100.1) == Decision(True, False, False, 100.6)


def test_a_hub_without_connection_does_not_probe() -> None:
    readiness = machine(100.0)
    readiness.note(Event.DISCONNECTED, 100.0)
    assert readiness.poll(130.0) == Decision(False, False, False, 160.0)
    readiness.note(Event.CONNECTED, 140.0)
    assert readiness.poll(140.0).probe


def test_proof_ends_the_wait() -> None:
    readiness = play(machine(100.0), "poll +2 reply iopub")
    assert readiness.poll(102.0) == Decision(False, True, False, None)


@pytest.mark.parametrize(
    ("events", "ready"),
    [
        ("nostdin poll reply iopub", False),
        ("nostdin welcome", False),
        ("nostdin poll reply iopub stdin", True),
        ("nostdin welcome stdin", True),
        ("nostdin poll stdin reply iopub", True),
        # Only stdin disconnects, and connects again.
        ("welcome nostdin", False),
        ("welcome nostdin stdin", True),
        ("welcome nostdin disconnected connected stdin", False),
        ("welcome nostdin disconnected stdin connected poll reply iopub", True),
        # A kernel that never accepts stdin is ready after this time.
        (f"nostdin welcome +{STDIN_SECONDS - 1} poll", False),
        (f"nostdin welcome +{STDIN_SECONDS} poll", True),
        (f"welcome +1000 poll nostdin +{STDIN_SECONDS - 1} poll", False),
        (f"welcome +1000 poll nostdin +{STDIN_SECONDS} poll", True),
        (f"nostdin +{TIMEOUT - 1} poll welcome +1 poll", True),
        (f"nostdin +{TIMEOUT} poll welcome poll", True),
        # The wait starts again after another connection.
        (f"nostdin welcome +{STDIN_SECONDS} poll disconnected connected welcome", False),
        ("nostdin poll reply iopub reset nostdin poll reply iopub", False),
    ],
)
def test_a_kernel_is_ready_only_when_stdin_is_connected(events: str, ready: bool) -> None:
    assert play(machine(), events).ready == ready


def test_the_wait_for_stdin_has_an_end_and_is_named() -> None:
    readiness = play(machine(100.0), "nostdin welcome")
    assert readiness.poll(101.0) == Decision(False, False, False, 100.0 + STDIN_SECONDS)
    decision = readiness.poll(100.0 + STDIN_SECONDS)
    assert decision == Decision(False, True, False, None, lacks="stdin")
    readiness.note(Event.STDIN_CONNECTED, 200.0)
    assert readiness.poll(200.0) == Decision(False, True, False, None)


def test_a_kernel_without_status_messages_becomes_ready() -> None:
    readiness = play(machine(100.0), "connected poll" + " reply" * QUIET_REPLIES)
    decision = readiness.poll(100.0 + QUIET_SECONDS)
    assert decision == Decision(False, True, False, None, lacks="iopub")


def renewals(readiness: Readiness, iopub: bool, seconds: int = 59, now: float = 100.0) -> list[int]:
    """Return the seconds after which new sockets were requested."""
    found = []
    for second in range(seconds):
        if iopub:
            readiness.note(Event.IOPUB, now + second)
        if readiness.poll(now + second).renew:
            found.append(second)
            readiness.note(Event.STDIN_CONNECTED, now + second)
    return found


def test_a_kernel_that_publishes_and_does_not_answer_gets_new_sockets() -> None:
    readiness = play(machine(), "connected poll")
    first, second, third = renewals(readiness, iopub=True)
    assert first == RENEW_SECONDS
    assert second - first >= 2 * RENEW_SECONDS
    assert third - second >= 4 * RENEW_SECONDS
    play(readiness, "reply", 160.0)
    assert readiness.state is State.PROVEN


def test_without_iopub_messages_no_more_sockets_are_made() -> None:
    """For example when output is delayed, or the kernel is busy."""
    assert renewals(play(machine(), "connected poll iopub"), iopub=False) == [RENEW_SECONDS]
    assert renewals(play(machine(), "connected poll"), iopub=False) == []
    assert renewals(play(machine(), "connected poll iopub reply"), iopub=True) == []
    assert renewals(play(machine(), "connected poll iopub disconnected"), iopub=True) == []


@pytest.mark.parametrize("ready", ["poll reply iopub", "+60 poll"])
@pytest.mark.parametrize("event", ["disconnected", "reset nostdin"])
def test_a_ready_hub_that_loses_its_kernel_waits_the_whole_timeout_again(
    ready: str, event: str
) -> None:
    readiness = play(machine(100.0), ready)
    assert readiness.ready
    play(readiness, event, 200.0)
    assert not readiness.poll(259.9).ready
    assert readiness.poll(260.0) == Decision(False, True, True, None)


def test_repeated_disconnects_do_not_extend_the_timeout() -> None:
    readiness = machine(100.0)
    for second in range(100, 160):
        readiness.note(Event.DISCONNECTED, second)
        readiness.note(Event.CONNECTED, second + 0.5)
        assert not readiness.poll(second + 0.5).ready
    assert readiness.poll(160.0).timed_out


def test_an_event_and_its_poll_are_one_call() -> None:
    readiness = machine(100.0)
    assert readiness.take(Event.CONNECTED, 100.0) == Decision(True, False, False, 100.5)
    assert readiness.take(Event.REPLY, 100.1) == Decision(False, False, False, 100.5)
    assert readiness.take(Event.IOPUB, 100.2) == Decision(False, True, False, None)
    assert readiness.proven
    lost = readiness.take(Event.STDIN_DISCONNECTED, 101.0)
    assert lost == Decision(False, False, False, 101.0 + STDIN_SECONDS)
    assert not readiness.proven


@pytest.mark.parametrize(
    ("events", "lack"),
    [
        ("welcome", ""),
        ("poll +60 poll", "has not answered for 60 s (kernel_info_timeout)"),
        ("poll iopub +60 poll", "publishes on iopub"),
        ("poll reply +60 poll", "has published nothing on iopub for 60 s"),
        ("disconnected +60 poll", "has not accepted a connection to its iopub port"),
        (f"nostdin welcome +{STDIN_SECONDS} poll", "input() will not work"),
        (f"connected poll reply reply reply +{QUIET_SECONDS} poll", "without a status on iopub"),
    ],
)
def test_the_log_says_what_the_proof_lacks(events: str, lack: str) -> None:
    readiness = play(machine(), events)
    assert readiness.ready
    assert lack in readiness.explain()
    assert bool(lack) == bool(readiness.explain())


def test_an_interval_must_have_a_length() -> None:
    with pytest.raises(ValueError, match="interval"):
        Readiness(0.0)


def test_a_timeout_of_zero_means_no_wait() -> None:
    assert Readiness(timeout=0.0).poll(0.0) == Decision(False, True, True, None)


def test_decisions_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        machine().poll(100.0).ready = True  # type: ignore[misc]


def test_the_table_has_all_states_and_the_expected_proofs() -> None:
    assert set(TRANSITIONS) == set(State)
    # The only proofs: a welcome, or the second half of the evidence.
    proofs = {
        (s, e) for s, row in TRANSITIONS.items() for e, to in row.items() if to is State.PROVEN
    }
    assert proofs == {
        *((s, Event.WELCOME) for s in (State.NEW, State.ASKED, State.REPLIED, State.HEARD)),
        (State.REPLIED, Event.IOPUB),
        (State.HEARD, Event.REPLY),
    }
    for state in set(State) - {State.LOST}:
        assert TRANSITIONS[state][Event.DISCONNECTED] is State.LOST


class Model:
    """A model that stores all events of the wait and derives the result from them."""

    def __init__(self, now: float) -> None:
        self.handshake = False
        self.start(now)

    def poll(self, now: float) -> None:
        if self.handshake and len(self.replies) >= QUIET_REPLIES and not self.proven:
            self.quiet = now >= self.replies[0] + QUIET_SECONDS
        if not self.ready and now >= self.since + TIMEOUT:
            self.timed_out = True

    def start(self, now: float) -> None:
        self.since = now
        self.timed_out = False
        self.up = True
        self.clear()

    def clear(self) -> None:
        self.probed = self.iopub = self.welcome = self.quiet = False
        self.replies: list[float] = []

    @property
    def proven(self) -> bool:
        return self.welcome or self.quiet or (bool(self.replies) and self.iopub)

    @property
    def ready(self) -> bool:
        return self.proven or self.timed_out

    def on(self, word: str, now: float) -> None:
        if word == "reset":
            self.start(now)
            self.handshake = False
        elif word == "disconnected":
            if self.ready:
                self.start(now)
            self.clear()
            self.up = self.handshake = False
        elif word == "connected":
            if not self.proven:
                if self.timed_out:
                    self.start(now)
                self.clear()
            self.up = self.handshake = True
        elif self.up and not self.proven:
            self.welcome |= word == "welcome"
            if word == "reply" and self.probed:
                self.replies.append(now)
            self.iopub |= word == "iopub" and self.probed


WORDS = ["poll", "poll", "reply", "iopub", "welcome", "connected", "disconnected", "reset"]


@settings(deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.0, 0.125, 0.25, 0.5, 1.0, 30.0, 60.0]), st.sampled_from(WORDS)
        ),
        max_size=60,
    )
)
def test_readiness_agrees_with_a_model(steps: list[tuple[float, str]]) -> None:
    now = 100.0
    readiness, model = machine(now), Model(now)
    last_probe: float | None = None
    for step, word in steps:
        now += step
        if word == "poll":
            was_ready = readiness.ready
            decision: Any = readiness.poll(now)
            model.poll(now)
            assert decision.ready == model.ready
            assert decision.timed_out == readiness.timed_out
            if decision.probe:
                assert not was_ready
                assert not decision.ready
                assert model.up
                assert last_probe is None or now >= last_probe + INTERVAL
                model.probed, last_probe = True, now
                if decision.renew:  # the new sockets connect, including stdin
                    readiness.note(Event.STDIN_CONNECTED, now)
            # A caller that follows `next_at` polls in time, and only while there is a reason.
            if decision.ready:
                assert decision.next_at is None
            else:
                assert now < decision.next_at <= model.since + TIMEOUT
        else:
            play(readiness, word, now)
            model.on(word, now)
            if word in ("connected", "reset"):
                last_probe = None
        assert readiness.ready == model.ready
        assert readiness.timed_out == (model.timed_out and not model.proven)


@settings(deadline=None)
@given(
    events=st.lists(
        st.sampled_from(["reply", "iopub", "connected", "disconnected", "nothing"]), max_size=300
    )
)
def test_the_first_wait_always_ends_by_its_timeout(events: list[str]) -> None:
    """Driven as by a hub: at each `next_at`, with an event before each poll."""
    now = start = 100.0
    readiness = machine(start)
    pending = iter(events)
    for _ in range(1000):
        decision = readiness.poll(now)
        if decision.ready:
            break
        assert decision.next_at is not None
        now = decision.next_at
        event = next(pending, "nothing")
        if event != "nothing":
            play(readiness, event, now)
    assert readiness.ready
    assert now <= start + TIMEOUT
