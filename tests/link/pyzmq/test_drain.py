"""Read valid and malformed messages from real ZeroMQ sockets, and stop at the limits."""

import itertools

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kbridge.errors import KernelMessageError
from kbridge.link.pyzmq.drain import drain
from kbridge.wire.message import Channel
from kbridge.wire.signing import Signer
from kbridge.wire.zmq import DELIMITER, parse

PLENTY = 1 << 30
_names = itertools.count()


def message(text: bytes = b"{}", *buffers: bytes, topic: bytes | None = b"topic") -> list[bytes]:
    idents = [] if topic is None else [topic]
    return [*idents, DELIMITER, b"sig", b'{"h":1}', b"{}", b"{}", text, *buffers]


@pytest.fixture
def pair():
    """Two sockets in this process; a sent message arrives immediately."""
    context = zmq.Context()
    name = f"inproc://drain-{next(_names)}"
    ours, kernel = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    for socket in (ours, kernel):
        socket.linger = 0
        socket.hwm = 0
    ours.bind(name)
    kernel.connect(name)
    yield ours, kernel
    ours.close()
    kernel.close()
    context.term()


def plain(batch):
    return [[bytes(part) for part in parts] for parts in batch]


def test_messages_are_read_complete_and_in_order(pair) -> None:
    ours, kernel = pair
    sent = [message(b'{"n":%d}' % n, *[b"buf"] * (n % 3)) for n in range(20)]
    sent += [message(b"{}", topic=None)]
    for parts in sent:
        kernel.send_multipart(parts)
    assert plain(drain(ours, 100, PLENTY)[0]) == sent
    assert drain(ours, 100, PLENTY) == ([], False)


def test_buffers_are_not_copied(pair) -> None:
    ours, kernel = pair
    kernel.send_multipart(message(b"{}", b"x" * 100_000))
    ((parts,), _) = drain(ours, 100, PLENTY)
    assert isinstance(parts[-1], memoryview)
    assert len(parts[-1]) == 100_000


@pytest.mark.parametrize(("max_messages", "max_bytes"), [(3, PLENTY), (100, 500)])
def test_a_batch_ends_at_its_limit_and_the_rest_is_read_later(
    pair, max_messages, max_bytes
) -> None:
    ours, kernel = pair
    sent = [message(b'{"t":"' + b"x" * 190 + b'"}') for _ in range(10)]
    for parts in sent:
        kernel.send_multipart(parts)
    batch, more = drain(ours, max_messages, max_bytes)
    assert (len(batch), more) == (3, True)
    batch, more = drain(ours, 100, PLENTY)
    assert (len(batch), more) == (7, False)


SHORT = st.lists(
    st.sampled_from([b"", b"{", b"{}", b"topic", b"sig", DELIMITER, b"junk"]),
    min_size=1,
    max_size=9,
)


@given(st.lists(st.one_of(st.none(), SHORT), max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_a_malformed_message_costs_at_most_the_next_one(pair, plan) -> None:
    """Valid messages arrive unchanged, except possibly one right behind a malformed message.

    A malformed message that looks like the beginning of a valid one may be joined with the next
    message. Later messages are not affected, and no message appears that was not sent.
    """
    ours, kernel = pair
    key = Signer(b"key")
    good: dict[bytes, bool] = {}
    after_bad = False
    for i, junk in enumerate(plan):
        if junk is None:
            parts = [b'{"i":%d}' % i, b"{}", b"{}", b'{"body":%d}' % i]
            kernel.send_multipart([b"topic", DELIMITER, key.sign(parts), *parts])
            good[parts[0]] = after_bad
            after_bad = False
        else:
            kernel.send_multipart(junk)
            after_bad = True
    seen = []
    while batch := drain(ours, 5, PLENTY)[0]:
        for frames in batch:
            try:
                seen.append(parse(Channel.IOPUB, frames, key).header)
            except KernelMessageError:
                continue
    assert seen == [h for h in good if h in seen], "out of order, or twice"
    for header, behind_junk in good.items():
        assert header in seen or behind_junk, f"{header!r} was lost without a reason"
