"""The kept connections of kernels, with a real holder process and real sockets."""

from __future__ import annotations

import logging
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from kbridge.link.holder.client import Holder, is_supported
from kbridge.link.holder.keeper import Keeper, KeptKernel
from kbridge.wire.message import Channel
from kbridge.wire.zmtp.commands import ready
from kbridge.wire.zmtp.encoder import encode
from kbridge.wire.zmtp.greeting import GREETING
from kbridge.wire.zmtp.peer import Limits, Peer, SocketType
from tests.link.holder.counts import all_read
from tests.support.waiting import TIMEOUT, eventually, until

pytestmark = pytest.mark.skipif(not is_supported(), reason="needs Linux")

LOG = logging.getLogger("kbridge.test.keeper")
MESSAGE = encode((b"one", b"two"))


class Kernel:
    """The far ends of the connections of a kernel."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.far: dict[Channel, socket.socket] = {}
        self.near: dict[Channel, socket.socket] = {}

    def connect(self, kept: KeptKernel) -> None:
        for channel, port in kept.ports.items():
            near = socket.create_connection(self.listener.getsockname())
            self.near[channel] = near
            self.far[channel], _ = self.listener.accept()
            self.far[channel].settimeout(TIMEOUT)
            port.open(near)
            port.hold(near, peer(channel), b"" if channel is Channel.IOPUB else b"me")

    def leave(self) -> None:
        """Close the near ends, as the process does when it ends."""
        for sock in self.near.values():
            sock.close()

    def close(self) -> None:
        self.leave()
        for sock in (self.listener, *self.far.values()):
            sock.close()


def peer(channel: Channel) -> Peer:
    """Return a peer whose handshake is finished."""
    kind = SocketType.SUB if channel is Channel.IOPUB else SocketType.DEALER
    return Peer.resume(kind, b"", Limits(1 << 20, 1 << 22), 1)


def holders() -> list[psutil.Process]:
    """Return the holder processes that this process has started."""
    return [child for child in psutil.Process().children() if _is_holder(child)]


def _is_holder(process: psutil.Process) -> bool:
    try:
        return any("holder/__main__.py" in word for word in process.cmdline())
    except psutil.Error:  # it has ended
        return False


def leave(keeper: Keeper, *kernels: Kernel) -> None:
    """End this bridge without ending its connections."""
    keeper.leave()
    keeper.close()
    for kernel in kernels:
        kernel.leave()


async def taken(keeper: Keeper) -> KeptKernel:
    """Take over the connections of the only kernel."""
    await keeper.take()
    assert keeper.left == ["one"]
    return keeper.kernel("one")


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Keeper]]:
    made: list[Keeper] = []

    def make(*, limit: int = 1 << 30) -> Keeper:
        holder = Holder(tmp_path / "holder", tmp_path, limit, 600.0)
        made.append(Keeper(holder, LOG))
        return made[-1]

    yield make
    for keeper in made:
        keeper.close()
    eventually(lambda: not holders(), "the holders have ended")


@pytest.fixture
def few_descriptors() -> Iterator[Callable[[int], None]]:
    """A function that leaves a number of free descriptors, until the end of its test or a call."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    filling: list[int] = []

    def leave_free(count: int) -> None:
        most = max(int(each.name) for each in Path("/proc/self/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (most + 1 + count, before[1]))
        with suppress(OSError):
            while True:
                filling.append(os.dup(0))
        for _ in range(count):
            os.close(filling.pop())

    yield leave_free
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    for fd in filling:
        os.close(fd)


async def test_without_a_holder_there_is_nothing_to_take(make: Callable[[], Keeper]) -> None:
    keeper = make()
    await keeper.take()
    assert keeper.left == []
    assert keeper.kernel("one").seq is None
    assert not keeper.kernel("one").resumes
    assert keeper.kernel("one").lost == "the process that keeps the connections had ended, too"


async def test_the_next_keeper_goes_on(make: Callable[[], Keeper], kernel: Kernel) -> None:
    first = make()
    kept = first.kernel("one")
    kernel.connect(kept)
    assert kept.stays
    iopub = kept.ports[Channel.IOPUB]
    buffer = iopub.open(kernel.near[Channel.IOPUB])
    assert buffer is not None
    leave(first, kernel)
    kernel.far[Channel.IOPUB].sendall(MESSAGE)
    second = make()
    kept = await taken(second)
    assert kept.seq == 0
    assert kept.identity == b"me"
    port = kept.ports[Channel.IOPUB]
    assert port.minor == 1
    sock, buffer = port.resume(peer(Channel.IOPUB))
    replayed = b"".join(port.replay())
    while len(replayed) < len(MESSAGE):  # the holder may not have read it
        replayed += buffer.receive(sock)
    assert replayed == MESSAGE
    assert port.held is None
    sock.close()
    second.drop(kept)
    assert kernel.far[Channel.SHELL].recv(1) == b""  # no process has it


async def test_the_next_keeper_has_the_notes(make: Callable[[], Keeper], kernel: Kernel) -> None:
    first = make()
    kept = first.kernel("one")
    assert not kept.remember(b"too early\n"), "no connection would bring them to the next bridge"
    kernel.connect(kept)
    assert kept.remember(b"written\n")
    kept.begin_write()
    assert kept.remember(b"not written\n")
    kept.forget_written()
    leave(first, kernel)
    second = make()
    kept = await taken(second)
    assert kept.notes == b"not written\n"
    second.drop(kept)
    assert second.kernel("one").notes == b""


async def test_connections_of_a_kernel_that_has_ended_are_dropped(
    make: Callable[[], Keeper], kernel: Kernel
) -> None:
    keeper = make()
    kernel.connect(keeper.kernel("one"))
    keeper.forget("one")
    kernel.leave()
    assert kernel.far[Channel.IOPUB].recv(1) == b""


async def test_connections_that_no_kernel_uses_are_dropped(
    make: Callable[[], Keeper], kernel: Kernel
) -> None:
    first = make()
    kernel.connect(first.kernel("one"))
    leave(first, kernel)
    second = make()
    kept = await taken(second)
    assert not kept.unusable
    second.drop(kept, "the journal could not be read")
    assert second.kernel("one").lost == "the journal could not be read"
    assert [far.recv(1) for far in kernel.far.values()] == [b""] * 4


async def test_connections_for_which_no_descriptor_is_free_are_made_again(
    make: Callable[[], Keeper],
    kernel: Kernel,
    few_descriptors: Callable[[int], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = make()
    kernel.connect(first.kernel("one"))
    leave(first, kernel)
    second = make()
    few_descriptors(2)  # the control socket, and one of the eight that the holder sends
    await second.take()
    assert second.left == []
    kept = second.kernel("one")
    assert not kept.resumes
    assert kept.lost == "the connections could not be taken over (see the log of the server)"
    assert caplog.text.count("kernel one cannot be taken over: file descriptors were missing") == 1
    assert [far.recv(1) for far in kernel.far.values()] == [b""] * 4


async def test_stored_output_is_released_when_the_journal_has_it(
    make: Callable[..., Keeper], kernel: Kernel
) -> None:
    """Until then, the next bridge is told that output is missing behind it."""
    first = make(limit=1)
    kernel.connect(first.kernel("one"))
    watched = kernel.near[Channel.IOPUB].dup()
    leave(first, kernel)
    far = kernel.far[Channel.IOPUB]
    far.sendall(MESSAGE)
    await until(lambda: all_read(far, watched), "the holder has read")
    watched.close()
    second = make()
    kept = await taken(second)
    assert kept.full
    for channel, port in kept.ports.items():
        mine = peer(channel)
        sock, _ = port.resume(mine)
        kernel.near[channel] = sock
        for data in port.replay():
            mine.feed(data)
    kept.note()
    kept.reached(1)
    leave(second, kernel)
    third = make()
    kept = await taken(third)
    assert not kept.full
    third.drop(kept)


async def test_a_server_goes_on_for_two_that_have_ended(
    make: Callable[..., Keeper], kernel: Kernel
) -> None:
    """They had the same settings, and other ports."""
    first, second, other = make(), make(), Kernel()
    kernel.connect(first.kernel("one"))
    other.connect(second.kernel("two"))
    leave(first, kernel)
    leave(second, other)
    third = make()
    await third.take()
    assert sorted(third.left) == ["one", "two"]
    both = {name: third.kernel(name) for name in third.left}
    for kept in both.values():
        assert not kept.unusable
        for channel, port in kept.ports.items():
            sock, _ = port.resume(peer(channel))
            sock.close()
            assert not list(port.replay())
    # One process ends: its kernel is kept by the other one.
    found = await until(lambda: holders() if len(holders()) == 2 else [], "both holders run")
    found[1].kill()
    await until(lambda: not all(kept.stays for kept in both.values()), "the end is noticed")
    await until(lambda: len({id(kept.holder) for kept in both.values()}) == 1, "it is replaced")
    for name in both:
        third.forget(name)
    for far in (*kernel.far.values(), *other.far.values()):
        assert far.recv(1) == b""
    other.close()


async def test_a_message_counts_as_written_when_its_file_has_it(
    make: Callable[[], Keeper], kernel: Kernel
) -> None:
    first = make()
    kept = first.kernel("one")
    kernel.connect(kept)
    port = kept.ports[Channel.SHELL]
    mine = peer(Channel.SHELL)
    near = kernel.near[Channel.SHELL]
    buffer = port.open(near)
    assert buffer is not None
    port.hold(near, mine, b"me")
    kernel.far[Channel.SHELL].sendall(MESSAGE + MESSAGE[:-1])
    read = b""
    while len(read) < 2 * len(MESSAGE) - 1:
        data = buffer.receive(near)
        mine.feed(data)
        read += data
    kept.note()
    kept.reached(17)
    leave(first, kernel)
    second = make()
    kept = await taken(second)
    held = kept.ports[Channel.SHELL].held
    assert held is not None
    assert (held.taken, held.seq) == (len(MESSAGE), 17)
    assert b"".join(held.read()) == MESSAGE[:-1]
    second.drop(kept)


async def test_the_handshake_does_not_come_again(
    make: Callable[[], Keeper], kernel: Kernel
) -> None:
    """Although no message is in a file when the process ends."""
    first = make()
    kept = first.kernel("one")
    kernel.connect(kept)
    port, near = kept.ports[Channel.IOPUB], kernel.near[Channel.IOPUB]
    handshake = GREETING + ready(SocketType.SUB).replace(b"\3SUB", b"\3PUB")
    kernel.far[Channel.IOPUB].sendall(handshake + MESSAGE)
    buffer = port.open(near)
    assert buffer is not None
    mine = Peer(SocketType.SUB, b"", Limits(1 << 20, 1 << 22))
    while mine.taken < len(handshake + MESSAGE):
        mine.feed(buffer.receive(near))
    port.hold(near, mine, b"")
    leave(first, kernel)
    second = make()
    kept = await taken(second)
    held = kept.ports[Channel.IOPUB].held
    assert held is not None
    assert b"".join(held.read()) == MESSAGE
    second.drop(kept)


async def test_a_kernel_whose_link_cannot_be_kept(
    make: Callable[[], Keeper], kernel: Kernel
) -> None:
    kept = make().kernel("one")
    kept.give_up()
    kernel.connect(kept)
    assert not kept.stays
    assert holders() == []


async def test_a_connection_is_used_although_it_cannot_be_kept(
    make: Callable[[], Keeper], kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> int:
        raise OSError("no descriptor is left")

    monkeypatch.setattr(os, "memfd_create", fail)
    kept = make().kernel("one")
    kernel.connect(kept)
    assert not kept.stays
    assert kept.because == "memory or file descriptors were missing for it"
    assert kept.take_cause() == kept.because
    assert kept.take_cause() == "", "it is told once"


async def test_the_reason_says_that_no_holder_can_be_started(
    kernel: Kernel, tmp_path: Path
) -> None:
    keeper = Keeper(Holder(tmp_path / "missing" / "holder", None, 1, 1.0), LOG)
    kept = keeper.kernel("one")
    kernel.connect(kept)
    assert not kept.stays
    assert kept.because == "no process could be started that keeps it: No such file or directory"
    keeper.close()


async def test_a_holder_that_has_ended_is_replaced(
    make: Callable[[], Keeper], kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    first = make()
    kept = first.kernel("one")
    kernel.connect(kept)
    [holder] = await until(holders, "the holder runs")
    holder.kill()
    await until(lambda: [each for each in holders() if each != holder], "another holder runs")
    assert "another one is started" in caplog.text
    assert kept.stays
    kernel.far[Channel.IOPUB].sendall(MESSAGE)
    leave(first, kernel)
    second = make()
    kept = await taken(second)
    assert kept.seq == 0
    second.drop(kept)


async def test_connections_do_not_stay_until_another_holder_has_them(
    make: Callable[[], Keeper], kernel: Kernel
) -> None:
    first = make()
    one = first.kernel("one")
    kernel.connect(one)
    [holder] = await until(holders, "the holder runs")
    holder.kill()
    holder.wait()
    other, another = Kernel(), Kernel()
    try:
        other.connect(first.kernel("two"))  # finds that the holder has ended
        assert not one.stays
        assert not first.kernel("two").stays
        another.connect(first.kernel("three"))  # starts another holder
        assert first.kernel("three").stays
        assert not one.stays
        await until(lambda: one.stays, "another holder has all connections")
        leave(first, kernel, other, another)
        second = make()
        await second.take()
        assert sorted(second.left) == ["one", "three", "two"]
        for name in second.left:
            second.drop(second.kernel(name))
    finally:
        other.close()
        another.close()
