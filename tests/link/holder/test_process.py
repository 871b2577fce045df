"""A holder process, with readers that are killed."""

from __future__ import annotations

import itertools
import os
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import kbridge.link.holder
from kbridge.link.holder import held as module
from kbridge.link.holder.buffer import SharedMemory
from kbridge.link.holder.client import HeldConnection, Holder, is_supported
from kbridge.link.holder.header import CHUNK, PIECE, unread
from kbridge.link.holder.held import Held
from tests.link.holder.counts import all_read
from tests.support.waiting import TIMEOUT, eventually

pytestmark = pytest.mark.skipif(not is_supported(), reason="needs Linux")

ROOT = Path(__file__).parents[3]
PLACES = ["received", "writing", "written", "marked", "taking", "replaying", "received", "marked"]
SECONDS = 600.0


class Kernel:
    """A kernel in miniature: sends numbered records over one connection."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._numbers = itertools.count()
        self.sock: socket.socket | None = None
        self.sent = b""

    def send(self, count: int) -> None:
        if self.sock is None:
            self.sock, _ = self._listener.accept()
        data = b""
        for number in itertools.islice(self._numbers, count):
            size = random.choice([8, 20, 300, 300, 3000, 100_000])
            data += size.to_bytes(4, "big") + number.to_bytes(size, "big")
        self.sent += data
        self.sock.sendall(data)

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()

    def end(self) -> None:
        assert self.sock is not None
        self.sent += bytes(4)
        self.sock.sendall(bytes(4))


@pytest.fixture(params=["tcp", "unix"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    """A socket that listens, as a kernel does."""
    with socket.socket(socket.AF_INET if request.param == "tcp" else socket.AF_UNIX) as listener:
        listener.bind(("127.0.0.1", 0) if request.param == "tcp" else "\0" + str(tmp_path)[-80:])
        listener.listen()
        yield listener


def read(tmp_path: Path, where: str, *address: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.link.holder.reader", str(tmp_path / "holder")]
    reads = str(random.randrange(1, 20))
    return subprocess.Popen(
        [*command, str(tmp_path / "journal"), where, reads, *address],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )


def words(listener: socket.socket) -> list[str]:
    name = listener.getsockname()
    if isinstance(name, tuple):
        return [name[0], str(name[1])]
    return ["@" + name.decode()[1:]]


def test_readers_that_are_killed_lose_and_repeat_nothing(
    address: socket.socket, tmp_path: Path
) -> None:
    kernel = Kernel(address)
    for turn, where in enumerate(PLACES):
        with read(tmp_path, where, *(words(address) if not turn else [])) as process:
            assert process.stdout is not None
            if process.stdout.readline():
                while process.poll() is None:
                    kernel.send(20)
            assert process.wait(TIMEOUT) == -9
        kernel.send(50)  # while no reader runs
    with read(tmp_path, "never") as process:
        kernel.send(50)
        kernel.end()
        assert process.wait(TIMEOUT) == 0
    assert (tmp_path / "journal").read_bytes() == kernel.sent
    eventually(lambda: not sockets(tmp_path / "holder"), "the holder has ended")
    kernel.close()


class Bridge:
    """A bridge with one connection, in this process."""

    def __init__(self, holder: Holder, address: socket.socket, size: int = 16 * CHUNK) -> None:
        self.holder = holder
        holder.start()
        memory = SharedMemory([size])
        holder.share("memory", memory.fd)
        memory.close_descriptor()
        self.sock = socket.socket(address.family)
        self.sock.connect(address.getsockname())
        self.kernel, _ = address.accept()
        self.buffer = memory.buffer(0, announce=address.family == socket.AF_UNIX)
        holder.hold("key", "info", self.sock.fileno(), ("memory", 0))

    def leave(self) -> None:
        self.holder.close()

    def close(self) -> None:
        self.leave()
        self.sock.close()
        self.kernel.close()


@pytest.fixture
def make_bridge(address: socket.socket, tmp_path: Path) -> Iterator[Callable[..., Bridge]]:
    made: list[Bridge] = []

    def make(holder: Holder, size: int = 16 * CHUNK) -> Bridge:
        made.append(Bridge(holder, address, size))
        return made[-1]

    yield make
    for bridge in made:
        bridge.close()


@pytest.fixture
def holder(tmp_path: Path) -> Holder:
    return Holder(tmp_path / "holder", tmp_path, 1 << 30, SECONDS)


def taken(tmp_path: Path) -> HeldConnection:
    """Take the connection over, let the holder drop it, and return it."""
    holder = Holder(tmp_path / "holder", tmp_path, 1 << 30, SECONDS)
    [held] = holder.take()
    holder.drop("key")
    holder.close()
    eventually(lambda: not sockets(tmp_path / "holder"), "the holder has ended")
    return held


def receive(bridge: Bridge, size: int) -> None:
    while size:
        size -= len(bridge.buffer.receive(bridge.sock))


def test_bytes_before_and_after_the_end_of_a_bridge(
    holder: Holder, make_bridge: Callable[..., Bridge], tmp_path: Path
) -> None:
    bridge = make_bridge(holder)
    bridge.kernel.sendall(b"taken read unread")
    receive(bridge, len("taken read unread"))
    bridge.buffer.mark_taken(6, 17)
    bridge.kernel.sendall(b" stored")
    bridge.leave()
    eventually(lambda: unread(bridge.sock) == 0, "the holder has read")
    bridge.sock.close()
    held = taken(tmp_path)
    assert (held.key, held.info, held.complete, held.torn, held.full, held.closed) == (
        *("key", "info", True),
        *(False, False, False),
    )
    assert (held.taken, held.seq) == (6, 17)
    assert b"".join(held.read()) == b"read unread stored"
    bridge.kernel.sendall(b"next")
    assert held.sock.recv(100) == b"next"
    held.sock.sendall(b"answer")
    assert bridge.kernel.recv(100) == b"answer"
    held.close()
    assert bridge.kernel.recv(100) == b""  # no process has a duplicate


def sockets(path: Path) -> list[Path]:
    """Return the sockets of the holders of one name."""
    return list(path.parent.glob(f"{path.name}*"))


def test_a_holder_is_found_as_soon_as_it_is_started(
    make_bridge: Callable[..., Bridge], tmp_path: Path
) -> None:
    path = tmp_path / ("a path that is longer than the address of a unix socket" * 2) / "holder"
    path.parent.mkdir()
    bridge = make_bridge(Holder(path, tmp_path, 1 << 30, SECONDS))
    bridge.leave()  # before the interpreter of the holder has begun
    following = Holder(path, tmp_path, 1 << 30, SECONDS)
    [held] = following.take()
    [found] = sockets(path)
    assert found.stat().st_mode & 0o777 == 0o600
    held.close()
    following.drop("key")
    following.close()
    eventually(lambda: not sockets(path), "the holder has ended")


def test_sockets_of_holders_that_have_ended_are_removed(
    holder: Holder, make_bridge: Callable[..., Bridge], tmp_path: Path
) -> None:
    path = tmp_path / "holder"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as ended:
        ended.bind(f"{path}-ended")
    bridge = make_bridge(holder)
    bridge.leave()
    taken(tmp_path).close()
    eventually(lambda: not sockets(path), "the holder has ended, too")


def test_holders_of_servers_with_the_same_settings_are_separate(
    address: socket.socket, tmp_path: Path
) -> None:
    holders = [Holder(tmp_path / "holder", tmp_path, 1 << 30, SECONDS) for _ in range(2)]
    bridges = [Bridge(each, address) for each in holders]
    for number, bridge in enumerate(bridges):
        bridge.leave()
        bridge.kernel.sendall(b"%d" % number)
        eventually(lambda each=bridge: all_read(each.kernel, each.sock), "the holder has read")
    following = Holder(tmp_path / "holder", tmp_path, 1 << 30, SECONDS)
    found = following.take()
    assert sorted(b"".join(held.read()) for held in found) == [b"0", b"1"]
    for held in found:
        held.close()
        held.holder.drop("key")
        held.holder.close()
    for bridge in bridges:
        bridge.close()
    eventually(lambda: not sockets(tmp_path / "holder"), "the holders have ended")


def test_the_holder_of_a_server_that_runs_is_left_alone(
    holder: Holder, make_bridge: Callable[..., Bridge], tmp_path: Path
) -> None:
    bridge = make_bridge(holder)
    program = (
        "import sys; from pathlib import Path; from kbridge.link.holder.client import Holder\n"
        "Holder(Path(sys.argv[1]), None, 1, 1.0).take()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "holder")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert "FileNotFoundError: there is no holder whose bridge has ended" in done.stderr
    bridge.kernel.sendall(b"later")
    bridge.leave()
    eventually(lambda: all_read(bridge.kernel, bridge.sock), "the holder has read")
    held = taken(tmp_path)
    assert b"".join(held.read()) == b"later"
    held.close()


def test_a_holder_that_cannot_be_started_leaves_no_socket(
    holder: Holder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError, match="missing"):
        holder.start()
    assert not sockets(tmp_path / "holder")
    assert not holder.running


def test_only_the_owner_can_connect(
    holder: Holder, make_bridge: Callable[..., Bridge], tmp_path: Path
) -> None:
    bridge = make_bridge(holder)
    [found] = sockets(tmp_path / "holder")
    assert found.stat().st_mode & 0o777 == 0o600
    bridge.leave()
    taken(tmp_path).close()


def test_a_buffer_that_is_too_small_is_noticed(
    holder: Holder, make_bridge: Callable[..., Bridge], tmp_path: Path
) -> None:
    bridge = make_bridge(holder, size=CHUNK)
    receive_all = 2 * CHUNK
    while receive_all:
        bridge.kernel.sendall(b"x" * 1024)
        receive(bridge, 1024)
        receive_all -= 1024
    bridge.leave()
    held = taken(tmp_path)
    assert not held.complete
    held.close()


def test_a_ring_goes_round(
    holder: Holder, make_bridge: Callable[..., Bridge], tmp_path: Path
) -> None:
    bridge = make_bridge(holder, size=CHUNK)
    sent = b""
    for turn in range(400):
        data = turn.to_bytes(1000, "big")
        sent += data
        bridge.kernel.sendall(data)
        receive(bridge, len(data))
        bridge.buffer.mark_taken(max(0, len(sent) - 50_000), turn)
    bridge.leave()
    held = taken(tmp_path)
    assert held.complete
    assert b"".join(held.read()) == sent[-50_000:]
    held.close()


def test_a_message_that_was_being_sent(
    holder: Holder, make_bridge: Callable[..., Bridge], tmp_path: Path
) -> None:
    bridge = make_bridge(holder)
    bridge.buffer.note_sending(True)
    bridge.leave()
    held = taken(tmp_path)
    assert held.torn
    held.close()


def test_the_limit_stops_the_holder(make_bridge: Callable[..., Bridge], tmp_path: Path) -> None:
    bridge = make_bridge(Holder(tmp_path / "holder", tmp_path, 1, SECONDS))
    bridge.kernel.sendall(b"more than one byte")
    bridge.leave()
    eventually(lambda: unread(bridge.sock) == 0, "the holder has read")
    bridge.sock.close()
    bridge.kernel.sendall(b", and the rest")
    held = taken(tmp_path)
    assert held.full
    assert held.complete
    assert b"".join(held.read()) == b"more than one byte"
    assert held.sock.recv(100) == b", and the rest"
    held.close()


class Next:
    """The next bridge: it takes the only connection over, and has another buffer."""

    def __init__(self, tmp_path: Path, limit: int = 1 << 30) -> None:
        self.holder = Holder(tmp_path / "holder", tmp_path, limit, SECONDS)
        [self.held] = self.holder.take()
        memory = SharedMemory([CHUNK])
        self.holder.share("memory", memory.fd)
        memory.close_descriptor()
        announce = self.held.sock.family == socket.AF_UNIX
        self.buffer = memory.buffer(0, self.held.position, announce=announce)
        self.buffer.mark_taken(self.held.taken, self.held.seq)
        self.holder.use("key", ("memory", 0))

    def leave(self, *, sent: bytes = b"", kernel: socket.socket | None = None) -> None:
        """End, and wait until the holder has stored what the kernel sends then."""
        self.holder.close()
        if kernel is not None:
            kernel.sendall(sent)
            eventually(lambda: all_read(kernel, self.held.sock), "the holder has read")
        self.held.close()


def holder_process(tmp_path: Path) -> psutil.Process:
    """Return the holder process of a test, once its program runs."""

    def find() -> list[psutil.Process]:
        found = []
        for each in psutil.Process().children():
            with suppress(psutil.Error):  # it has ended
                found += [each] if str(tmp_path / "holder") in str(each.cmdline()) else []
        return found

    [process] = eventually(find, "the holder runs")
    return process


def test_a_holder_keeps_nothing_that_the_journal_has(
    holder: Holder, make_bridge: Callable[..., Bridge], tmp_path: Path
) -> None:
    bridge = make_bridge(holder)
    process = holder_process(tmp_path)
    bridge.leave()
    opened = []
    for _ in range(70):  # more than the descriptors of one packet
        following = Next(tmp_path)
        following.buffer.mark_taken(following.held.position, 1)
        following.leave()
        opened.append(process.num_fds())
    assert max(opened) < min(opened) + 35
    taken(tmp_path).close()


def test_more_extents_than_one_packet_has_descriptors(
    holder: Holder, make_bridge: Callable[..., Bridge], tmp_path: Path
) -> None:
    """No bridge writes anything: each adds a buffer, and a file."""
    bridge = make_bridge(holder)
    bridge.leave()
    sent = b""
    for turn in range(70):
        data = turn.to_bytes(4, "big")
        Next(tmp_path).leave(sent=data, kernel=bridge.kernel)
        sent += data
    held = taken(tmp_path)
    assert held.complete
    assert b"".join(held.read()) == sent
    held.close()


def test_the_limit_applies_to_what_no_journal_has(
    make_bridge: Callable[..., Bridge], tmp_path: Path
) -> None:
    bridge = make_bridge(Holder(tmp_path / "holder", tmp_path, 10, SECONDS))
    bridge.leave()
    first = Next(tmp_path)
    first.leave(sent=b"ten bytes.", kernel=bridge.kernel)
    second = Next(tmp_path)
    assert second.held.full
    second.leave()  # before anything was written
    third = Next(tmp_path)
    assert third.held.full
    third.buffer.mark_taken(third.held.position, 1)
    third.holder.forget("key", third.held.position)
    third.leave(sent=b"nine more", kernel=bridge.kernel)
    held = taken(tmp_path)
    assert not held.full
    assert b"".join(held.read()) == b"nine more"
    held.close()


def test_a_full_connection_is_known_until_its_notice_is_written(
    make_bridge: Callable[..., Bridge], tmp_path: Path
) -> None:
    bridge = make_bridge(Holder(tmp_path / "holder", tmp_path, 1, SECONDS))
    bridge.leave()
    first = Next(tmp_path)
    first.leave(sent=b"stored", kernel=bridge.kernel)
    second = Next(tmp_path)
    second.buffer.mark_taken(second.held.position, 1)  # the notice may be behind it
    second.leave()
    third = Next(tmp_path)
    assert third.held.full
    bridge.kernel.sendall(b"later")
    assert third.buffer.receive(third.held.sock) == b"later"
    third.buffer.mark_taken(third.buffer.position, 2)
    third.leave()
    held = taken(tmp_path)
    assert not held.full
    held.close()


def test_bytes_that_a_full_disk_does_not_take_are_in_memory(
    address: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = SharedMemory([CHUNK])
    memory.buffer(0, announce=False)
    with socket.socket(address.family) as sock:
        held = Held(sock.detach(), "info")
    held.use(memory.fd, 0)
    monkeypatch.setattr(module, "_open_file", lambda _: os.open("/dev/full", os.O_WRONLY))
    assert not held.append(memoryview(b"not torn"), "")
    last = held.extents[-1]
    assert (last.start, last.end) == (0, 8)
    assert os.pread(last.fd, 100, 0) == b"not torn"
    held.close()
    memory.close_descriptor()


def test_a_holder_ends_with_the_kernel(
    holder: Holder, make_bridge: Callable[..., Bridge], tmp_path: Path
) -> None:
    bridge = make_bridge(holder)
    bridge.leave()
    bridge.kernel.close()
    eventually(lambda: not sockets(tmp_path / "holder"), "the holder has ended")


def test_a_holder_ends_with_the_last_connection(
    holder: Holder, make_bridge: Callable[..., Bridge], tmp_path: Path
) -> None:
    bridge = make_bridge(holder)
    holder.drop("key")
    bridge.leave()
    eventually(lambda: not sockets(tmp_path / "holder"), "the holder has ended")


def test_a_holder_ends_if_no_bridge_comes(
    make_bridge: Callable[..., Bridge], tmp_path: Path
) -> None:
    bridge = make_bridge(Holder(tmp_path / "holder", tmp_path, 1, 0.0))
    bridge.leave()
    bridge.sock.close()
    assert bridge.kernel.recv(1) == b""  # the last duplicate is closed


def test_without_a_holder_nothing_can_be_taken_over(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Holder(tmp_path / "holder", None, 1, SECONDS).take()


def test_memory_is_kept_during_a_burst_and_returned_after_it(address: socket.socket) -> None:
    memory = SharedMemory([64 * CHUNK])
    buffer = memory.buffer(0, announce=address.family == socket.AF_UNIX)

    def used() -> int:
        return os.fstat(memory.fd).st_blocks

    with socket.socket(address.family) as near:
        near.connect(address.getsockname())
        far, _ = address.accept()

        def receive(size: int) -> None:
            far.sendall(b"x" * size)
            while size:
                size -= len(buffer.receive(near))

        def receive_burst() -> None:
            for _ in range(40):
                receive(100_000)

        receive_burst()
        full = used()
        for _ in range(3):
            buffer.mark_taken(buffer.position, 1)
            for _ in range(10):
                receive(1)
                buffer.mark_taken(buffer.position, 1)
            receive_burst()
            assert used() >= full
        for _ in range(50):
            buffer.mark_taken(buffer.position, 1)
            receive(1)
        assert used() < full / 2
        receive_burst()
        assert used() >= full
        far.close()
    memory.close_descriptor()


def test_a_long_frame_is_received_in_few_reads(address: socket.socket) -> None:
    memory = SharedMemory([64 * CHUNK])
    buffer = memory.buffer(0, announce=address.family == socket.AF_UNIX)
    pending = memoryview(bytearray(1_000_000))
    data = random.randbytes(150_000)  # more than one read of other bytes
    with socket.socket(address.family) as near:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * len(data))
        near.connect(address.getsockname())
        far, _ = address.accept()
        with far:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * len(data))
            far.sendall(data)
            eventually(lambda: unread(near) == len(data), "all bytes have arrived")
            assert buffer.receive_long(near, pending) == len(data)
    assert pending[: len(data)] == data
    assert buffer.position == len(data)
    memory.close_descriptor()


def test_the_process_imports_only_small_modules() -> None:
    program = Path(kbridge.link.holder.__file__).with_name("__main__.py")
    # Without arguments, it fails after the imports.
    command = [sys.executable, "-I", "-S", "-X", "importtime", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert "missing 6 required positional arguments" in done.stderr
    names = re.findall(r"\| +([\w.]+)$", done.stderr, flags=re.MULTILINE)
    # The last one of the program; Python 3.13 imports more to print the error.
    imported = set(names[: names.index("kbridge.link.holder.process") + 1])
    assert "kbridge.link.holder.held" in imported
    assert not imported & {"asyncio", "pathlib", "re", "socket", "typing", "kbridge._lazy"}


def test_another_thread_receives_while_messages_are_taken(
    holder: Holder, make_bridge: Callable[..., Bridge], tmp_path: Path
) -> None:
    bridge = make_bridge(holder)
    bridge.sock.setblocking(False)
    buffer = bridge.buffer
    sent = b"".join(number.to_bytes(8, "big") for number in range(1_500_000))
    sending = threading.Thread(target=bridge.kernel.sendall, args=(sent,))
    taken_until = 0
    received: list[bytes] = []

    def receive_all() -> None:
        while buffer.position < len(sent):
            size = min(unread(bridge.sock), PIECE)
            if size and buffer.position - taken_until < 4 * CHUNK:  # the buffer holds 16
                received.append(buffer.collect(bridge.sock, size))

    receiving = threading.Thread(target=receive_all)
    sending.start()
    receiving.start()
    while taken_until < len(sent) - 8:
        taken_until = max(0, buffer.position - 8)
        buffer.mark_taken(taken_until, taken_until // 8)
    receiving.join(TIMEOUT)
    sending.join(TIMEOUT)
    assert b"".join(received) == sent
    bridge.leave()
    held = taken(tmp_path)
    assert held.complete
    assert (held.taken, held.seq) == (len(sent) - 8, len(sent) // 8 - 1)
    assert b"".join(held.read()) == sent[-8:]
    held.close()
