"""The link with ZMTP on plain sockets, with a kernel that a test controls byte by byte."""

import asyncio
import errno
import os
import socket
import threading
from pathlib import Path

import pytest

from kbridge.errors import KernelError, MessageTooBig
from kbridge.link.endpoints import Endpoints
from kbridge.link.holder.client import Holder, is_supported
from kbridge.link.holder.keeper import KeptKernel
from kbridge.link.zmtp import connecting
from kbridge.link.zmtp import link as module
from kbridge.link.zmtp.connection import ZmtpConnection
from kbridge.link.zmtp.link import ZmtpLink
from kbridge.link.zmtp.send_queue import SendQueue
from kbridge.wire.message import Channel
from kbridge.wire.zmtp.encoder import encode
from kbridge.wire.zmtp.greeting import GREETING
from tests.link.kernel_side import Recorder, body, large, limited
from tests.link.zmtp.plain_kernel import Connected, PlainKernel, ready
from tests.support.waiting import TIMEOUT, eventually, until

HTTP = b"HTTP/1.0 400 Bad Request\r\n\r\n"
OLD = b"\xff\0\0\0\0\0\0\0\1\x7f\1\1\0\0"  # the greeting of libzmq 3: ZMTP 2.0


@pytest.fixture
async def kernel():
    made = PlainKernel()
    yield made
    made.close()


@pytest.fixture
def connect():
    """Make a link, and close it after the test."""
    links = []

    def make(endpoints: Endpoints, events: Recorder, identity: bytes = b"") -> ZmtpLink:
        links.append(ZmtpLink(endpoints, events, identity))
        return links[-1]

    yield make
    for link in links:
        link.close()


@pytest.fixture
async def linked(kernel, connect):
    events = Recorder()
    link = connect(kernel.endpoints, events)
    await kernel.accept_all()
    await events.until(lambda: events.news and events.stdin)
    return link, events


async def accept_unix(path: str, kind: bytes) -> Connected:
    """Accept the connection of a link to a unix socket, and complete its handshake."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        listening.setblocking(False)
        async with asyncio.timeout(TIMEOUT):
            sock, _ = await asyncio.get_running_loop().sock_accept(listening)
    sock.setblocking(False)
    made = Connected(sock, kind)
    await made.shake_hands()
    return made


async def turns(count: int = 5) -> None:
    """Let the event loop handle all that has arrived."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("first", [Channel.SHELL, Channel.IOPUB])
async def test_a_reply_and_an_idle_that_have_arrived_are_delivered_together(
    kernel, linked, first
) -> None:
    _, events = linked
    second = Channel.IOPUB if first is Channel.SHELL else Channel.SHELL
    take = events.on_messages
    seen: list[int] = []
    events.on_drained = lambda: seen.append(len(events.messages))

    def on_messages(channel, batch) -> None:
        # The second message arrives while the first one is handled.
        take(channel, batch)
        if channel is first:
            kernel.connected[second].sock.send(encode([b"name", *body(2)]))

    events.on_messages = on_messages
    kernel.connected[first].sock.send(encode([b"name", *body(1)]))
    await events.until(lambda: len(events.messages) == 2)
    await turns()
    assert seen == [2]


@pytest.mark.parametrize("first", [Channel.SHELL, Channel.IOPUB])
async def test_more_of_a_channel_that_was_read_early_is_delivered(kernel, linked, first) -> None:
    _, events = linked
    second = Channel.IOPUB if first is Channel.SHELL else Channel.SHELL
    take = events.on_messages

    def on_messages(channel, batch) -> None:
        take(channel, batch)
        if channel is first:
            kernel.connected[second].sock.send(encode([b"name", *body(2)]))

    events.on_messages = on_messages
    for count in (2, 4):
        kernel.connected[first].sock.send(encode([b"name", *body(1)]))
        await events.until(lambda count=count: len(events.messages) == count)
    # The event loop has announced nothing since the second one was read early.
    kernel.connected[second].sock.send(encode([b"name", *body(3)]))
    await events.until(lambda: len(events.messages) == 5)
    assert [channel for channel, _ in events.messages] == [first, second, first, second, second]


async def test_channels_whose_messages_arrive_together_are_read_once_each(
    kernel, linked, monkeypatch
) -> None:
    _, events = linked
    reads = []
    read = ZmtpConnection.read
    monkeypatch.setattr(
        ZmtpConnection, "read", lambda self: (reads.append(self.channel), read(self))[1]
    )
    for channel in (Channel.SHELL, Channel.IOPUB):
        kernel.connected[channel].sock.send(encode([b"name", *body(1)]))
    await events.until(lambda: len(events.messages) == 2)
    await turns()
    assert sorted(reads) == [Channel.IOPUB, Channel.SHELL]


async def test_a_large_batch_beside_another_is_written_apart(kernel, linked) -> None:
    _, events = linked
    take = events.on_messages
    seen: list[int] = []
    events.on_drained = lambda: seen.append(len(events.messages))

    def on_messages(channel, batch) -> None:
        take(channel, batch)
        if channel is Channel.SHELL:
            kernel.connected[Channel.IOPUB].sock.send(encode([b"name", *large(50_000)]))

    events.on_messages = on_messages
    kernel.connected[Channel.SHELL].sock.send(encode([b"name", *body(1)]))
    await events.until(lambda: len(events.messages) == 2)
    await turns()
    assert seen == [1, 2]


async def test_everything_is_delivered_before_the_end_is_reported_iopub_last(
    kernel, linked
) -> None:
    _, events = linked
    order: list[str] = []
    disconnected = events.on_disconnected

    def on_disconnected(channel) -> None:
        order.append(f"{channel} ended")
        disconnected(channel)

    events.on_messages = lambda channel, batch: order.append(f"{channel} {len(batch)}")
    events.on_disconnected = on_disconnected
    for channel in (Channel.IOPUB, Channel.SHELL):
        kernel.connected[channel].sock.send(b"".join(encode([b"n", *body(i)]) for i in range(20)))
    kernel.hang_up()
    await events.until(lambda: "disconnected" in events.news)
    assert sorted(order[:2]) == ["iopub 20", "shell 20"]
    assert order[2:] == ["shell ended", "control ended", "stdin ended", "iopub ended"]


async def test_a_drain_that_finds_the_end_leaves_the_report_to_the_loop(kernel, linked) -> None:
    link, events = linked
    kernel.connected[Channel.IOPUB].sock.send(encode([b"topic", *body(1)]))
    kernel.hang_up()
    link.drain()
    assert events.messages == [(Channel.IOPUB, [b"topic", *body(1)])]
    assert events.news == ["connected"]
    await events.until(lambda: events.news == ["connected", "disconnected"])


async def test_a_drain_ends_although_a_byte_cannot_be_received(connect, tmp_path) -> None:
    """The system counts a byte out of band among those that wait."""
    events = Recorder()
    prefix = str(tmp_path / "kernel")
    ports = dict.fromkeys(Channel, 1) | {Channel.IOPUB: 2}
    link = connect(Endpoints("ipc", prefix, ports, b"key"), events)
    iopub = await accept_unix(f"{prefix}-2", b"PUB")
    await events.until(lambda: events.news == ["connected"])
    await iopub.send([b"topic", *body(1)])
    try:
        iopub.sock.send(b"!", socket.MSG_OOB)
    except OSError:
        pytest.skip("needs unix sockets that send out of band")
    link.drain()
    assert len(events.messages) == 1
    iopub.close()


@pytest.mark.skipif(not is_supported(), reason="needs Linux")
@pytest.mark.parametrize("begun", [0, 500])
async def test_an_end_is_reported_behind_a_message_that_needs_two_reads(tmp_path, begun) -> None:
    """A shared buffer receives no more than to the end of its ring, of 1 MiB for control."""
    events = Recorder()
    prefix = str(tmp_path / "kernel")
    ports = dict.fromkeys(Channel, 1) | {Channel.IOPUB: 2, Channel.CONTROL: 3}
    holder = Holder(tmp_path / "holder", tmp_path, 1 << 30, 600)
    kept = KeptKernel("one", holder, {})
    link = ZmtpLink(Endpoints("ipc", prefix, ports, b"key"), events, kept=kept)
    control = await accept_unix(f"{prefix}-3", b"ROUTER")
    iopub = await accept_unix(f"{prefix}-2", b"PUB")
    await events.until(lambda: events.news == ["connected"])
    before = len(GREETING + ready(b"ROUTER"))
    rest = (1 << 20) - before - len(encode([*body(0), bytes(1000)])) - 1000
    await control.send([*body(0), bytes(1000 + rest)])  # up to 1,000 bytes before the end
    await events.until(lambda: len(events.messages) == 1)
    message = encode([*body(1), bytes(70_000)])
    await control.send_bytes(message[:begun])
    await turns(20)
    delivered = []
    tell = events.on_disconnected

    def on_disconnected(channel) -> None:
        delivered.append(len(events.messages))
        tell(channel)

    events.on_disconnected = on_disconnected
    iopub.close()
    assert control.sock.send(message[begun:]) == len(message) - begun
    await events.until(lambda: "disconnected" in events.news)
    assert delivered == [2]
    link.close()
    control.close()
    holder.close()
    eventually(lambda: not (tmp_path / "holder").exists(), "the holder has ended")


async def test_a_connection_is_closed_although_something_fails(kernel, linked, monkeypatch) -> None:
    errors: list[BaseException] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))

    def fail(_: SendQueue) -> None:
        raise RuntimeError("a fault of the queue")

    with monkeypatch.context() as patch:
        patch.setattr(SendQueue, "rewind", fail)
        iopub = kernel.connected[Channel.IOPUB]
        iopub.sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(TIMEOUT):
            assert await iopub.ended()
    assert list(map(str, errors)) == ["a fault of the queue"]


async def test_the_same_ports_are_connected_again_under_the_same_identity(kernel, connect) -> None:
    events = Recorder()
    connect(kernel.endpoints, events, b"the name")
    for expected in (1, 2):
        await kernel.accept_all()
        await events.until(lambda n=expected: events.news.count("connected") == n)
        assert b"the name" in kernel.connected[Channel.SHELL].greeted
        assert b"the name" not in kernel.connected[Channel.IOPUB].greeted
        kernel.hang_up()
        await events.until(lambda n=expected: events.news.count("disconnected") == n)


async def test_messages_that_come_with_the_handshake_are_delivered_after_on_connected(
    kernel, connect
) -> None:
    events = Recorder()
    connect(kernel.endpoints, events)
    stdin = await kernel.accept(Channel.STDIN)
    at_message: list[list[str]] = []
    take = events.on_messages

    def on_messages(channel, batch) -> None:
        at_message.append(list(events.stdin))
        take(channel, batch)

    events.on_messages = on_messages
    await stdin.shake_hands(encode(body(1)))
    await events.until(lambda: events.messages == [(Channel.STDIN, body(1))])
    assert at_message == [["connected"]]


async def test_a_connection_that_ends_before_its_handshake_is_made_again_silently(
    kernel, connect
) -> None:
    """The local end of a tunnel accepts connections when the kernel is not reachable."""
    events = Recorder()
    connect(kernel.endpoints, events)
    for _ in range(3):
        (await kernel.accept(Channel.IOPUB)).close()
    await (await kernel.accept(Channel.IOPUB)).shake_hands()
    await events.until(lambda: bool(events.news))
    assert events.news == ["connected"]
    assert events.gone == []


async def test_requests_wait_for_the_connection(kernel, connect) -> None:
    link = connect(kernel.endpoints, Recorder())
    assert link.send(Channel.SHELL, body(1))
    assert link.send(Channel.SHELL, large(100_000))
    shell = await kernel.accept(Channel.SHELL)
    await shell.shake_hands()
    assert await shell.receive() == body(1)
    assert await shell.receive() == large(100_000)


@pytest.mark.parametrize("size", [50_000, 20_000_000])
async def test_a_message_of_which_a_part_was_sent_is_sent_again_whole(kernel, linked, size) -> None:
    link, events = linked
    shell = kernel.connected[Channel.SHELL]
    count = 0
    while link.send(Channel.SHELL, large(size)):  # until the system and the queue take no more
        count += 1
    assert count
    async with asyncio.timeout(TIMEOUT):
        assert await asyncio.get_running_loop().sock_recv(shell.sock, 100)
    shell.close()
    again = await kernel.accept(Channel.SHELL)
    await again.shake_hands()
    assert await again.receive() == large(size)
    await events.until(lambda: "writable shell" in events.news)
    assert link.send(Channel.SHELL, body(7))


async def test_the_queue_is_bounded_in_bytes_and_takes_one_message_of_any_size(
    kernel, connect
) -> None:
    link = connect(kernel.endpoints, Recorder())
    assert link.send(Channel.SHELL, large(5_000_000))
    assert not link.send(Channel.SHELL, body(1))
    assert link.send(Channel.CONTROL, body(1))
    small = large(1000)
    count = 0
    while link.send(Channel.CONTROL, small):
        count += 1
    assert 900 < count < 1100


async def test_a_ping_is_answered(kernel, linked) -> None:
    shell = kernel.connected[Channel.SHELL]
    await shell.send_bytes(b"\x04\x0b\x04PING\0\x10here")
    async with asyncio.timeout(TIMEOUT):
        while not shell.decoder.commands:
            shell.decoder.feed(await asyncio.get_running_loop().sock_recv(shell.sock, 100))
    assert [body for _, body in shell.decoder.take_commands()] == [b"\x04PONGhere"]


async def test_pings_of_a_kernel_that_reads_nothing_are_answered_once(kernel, linked) -> None:
    link, events = linked
    shell = kernel.connected[Channel.SHELL]
    while link.send(Channel.SHELL, large(50_000)):  # until the system and the queue take no more
        pass
    await shell.send_bytes(b"\x04\x0b\x04PING\0\x10here" * 1000)
    await shell.send(body(1))
    await events.until(lambda: bool(events.messages))
    async with asyncio.timeout(TIMEOUT):
        while not shell.decoder.commands:
            await shell.receive()
    assert link.send(Channel.SHELL, body(2))
    while await shell.receive() != body(2):
        pass
    assert len(shell.decoder.take_commands()) <= 2


async def test_a_message_that_is_too_large_is_reported_with_its_limit(
    kernel, connect, monkeypatch
) -> None:
    monkeypatch.setattr(module, "_GONE_SECONDS", 0.01)
    events = Recorder()
    faults = []
    events.on_gone = lambda channel, fault: faults.append((channel, fault))
    connect(limited(kernel, 100_000), events)
    await kernel.accept_all()
    await events.until(lambda: bool(events.news))
    await kernel.connected[Channel.IOPUB].send(body(1), body(2), large(200_000))
    await events.until(lambda: events.news == ["connected", "disconnected"])
    assert [parts for _, parts in events.messages] == [body(1), body(2)]
    await (await kernel.accept(Channel.IOPUB)).shake_hands()
    await events.until(lambda: events.news == ["connected", "disconnected", "connected"])
    [(channel, fault)] = faults
    assert channel is Channel.IOPUB
    assert isinstance(fault, MessageTooBig)
    assert fault.limit == 100_000


async def test_a_port_of_another_program_is_reported_and_tried_again(
    kernel, connect, monkeypatch
) -> None:
    monkeypatch.setattr(module, "_GONE_SECONDS", 0.01)
    events = Recorder()
    connect(kernel.endpoints, events)
    await (await kernel.accept(Channel.STDIN)).send_bytes(HTTP)
    await events.until(lambda: events.gone == [Channel.STDIN])
    await (await kernel.accept(Channel.STDIN)).shake_hands()
    await events.until(lambda: events.stdin == ["connected"])


async def test_a_kernel_with_an_old_zmtp_is_reported_and_tried_again(
    kernel, connect, monkeypatch
) -> None:
    monkeypatch.setattr(module, "_GONE_SECONDS", 0.01)
    events = Recorder()
    connect(kernel.endpoints, events)
    for count in (1, 2):
        await (await kernel.accept(Channel.SHELL)).send_bytes(OLD)
        await events.until(lambda n=count: events.unsupported == [Channel.SHELL] * n)
    assert events.gone == []


async def test_a_link_may_be_closed_by_any_event(kernel, connect, monkeypatch) -> None:
    monkeypatch.setattr(module, "_GONE_SECONDS", 0.01)
    for event in ("on_connected", "on_messages", "on_disconnected", "on_gone", "on_unsupported"):
        events = Recorder()
        closed = asyncio.Event()
        link = connect(kernel.endpoints, events)

        def close(*_: object, link: ZmtpLink = link, closed: asyncio.Event = closed) -> None:
            link.close()
            closed.set()

        setattr(events, event, close)
        stdin = await kernel.accept(Channel.STDIN)
        if event == "on_unsupported":
            await stdin.send_bytes(OLD)
        elif event == "on_gone":
            await stdin.send_bytes(HTTP)
        else:
            await stdin.shake_hands(encode(body(1)))
            stdin.close()
        async with asyncio.timeout(TIMEOUT):
            await closed.wait()
        assert link.closed
        for sock in kernel.listening.values():  # the connections that wait to be accepted
            try:
                while True:
                    sock.accept()[0].close()
            except BlockingIOError:
                pass


async def test_a_failing_owner_does_not_keep_an_end_from_being_reported(kernel, linked) -> None:
    _, events = linked
    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))

    def on_messages(channel, batch) -> None:
        raise RuntimeError("a bug")

    events.on_messages = on_messages
    await kernel.connected[Channel.IOPUB].send([b"topic", *body(1)])
    kernel.hang_up()
    await events.until(lambda: "disconnected" in events.news)
    assert errors


async def test_a_kernel_has_four_descriptors(kernel, connect) -> None:
    def descriptors() -> set[str]:
        return {path.name for path in Path("/proc/self/fd").iterdir()}

    def readers() -> list[str]:
        return [each.name for each in threading.enumerate() if "late-reader" in each.name]

    # The thread closes its two descriptors soon after the last connection of an earlier test.
    await until(lambda: not readers(), "no thread has descriptors")
    before = descriptors()
    link = connect(kernel.endpoints, Recorder())
    assert len(descriptors() - before) == 4
    link.receive_for(b"of the dead")
    assert len(descriptors() - before) == 7
    link.renew(b"new", keep=False)
    assert len(descriptors() - before) == 7
    link.close()
    assert descriptors() <= before


async def test_without_descriptors_the_open_sockets_stay_open(kernel, linked, monkeypatch) -> None:
    link, _ = linked
    made: list[socket.socket] = []
    create = socket.socket

    def limited_create(*args, **options):
        if len(made) == 2:
            raise OSError(24, "Too many open files")
        made.append(create(*args, **options))
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", limited_create)
        with pytest.raises(KernelError, match="cannot create more sockets: Too many open files"):
            link.renew(b"new", keep=True)
        assert all(sock.fileno() == -1 for sock in made)
    assert link.send(Channel.SHELL, body(1))
    assert await kernel.connected[Channel.SHELL].receive() == body(1)


async def test_a_connection_that_finds_no_descriptor_is_tried_again(
    kernel, linked, monkeypatch
) -> None:
    _, events = linked
    failures = [OSError(24, "Too many open files") for _ in range(5)]
    exhausted = asyncio.Event()
    create = socket.socket

    def failing(*args, **options):
        if failures:
            raise failures.pop()
        exhausted.set()
        return create(*args, **options)

    kernel.hang_up()
    await events.until(lambda: "disconnected" in events.news)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", failing)
        async with asyncio.timeout(TIMEOUT):
            await exhausted.wait()
    await (await kernel.accept(Channel.IOPUB)).shake_hands()
    await events.until(lambda: events.news[-1] == "connected")


async def test_a_host_name_is_resolved_without_blocking(kernel, connect) -> None:
    events = Recorder()
    connect(Endpoints("tcp", "localhost", kernel.ports, b"key"), events)
    await kernel.accept_all()
    await events.until(lambda: events.news == ["connected"])


async def test_a_name_that_is_not_known_yet_is_tried_again(kernel, connect, monkeypatch) -> None:
    look_up = socket.getaddrinfo
    asked: list[str] = []

    def getaddrinfo(host, *args, **options):
        if host == "kernel.example" and not options["flags"] & socket.AI_NUMERICHOST:
            asked.append(host)
            if len(asked) < 9:  # two attempts of four connections
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            host = "127.0.0.1"
        return look_up(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    events = Recorder()
    connect(Endpoints("tcp", "kernel.example", kernel.ports, b"key"), events)
    await (await kernel.accept(Channel.IOPUB)).shake_hands()
    await events.until(lambda: events.news == ["connected"])


@pytest.mark.parametrize("abstract", [False, True])
async def test_a_kernel_on_unix_sockets(connect, tmp_path, abstract) -> None:
    prefix = f"@kbridge-test-{os.getpid()}-{tmp_path.name}" if abstract else str(tmp_path / "k")
    endpoints = Endpoints("ipc", prefix, {c: i for i, c in enumerate(Channel)}, b"key")
    events = Recorder()
    connect(endpoints, events)  # before the kernel listens
    await turns()
    with socket.socket(socket.AF_UNIX) as listening:
        path = f"{prefix}-{endpoints.ports[Channel.STDIN]}"
        listening.bind("\0" + path[1:] if abstract else path)
        listening.listen()
        listening.setblocking(False)
        async with asyncio.timeout(TIMEOUT):
            sock, _ = await asyncio.get_running_loop().sock_accept(listening)
        with sock:
            sock.setblocking(True)
            sock.sendall(GREETING + ready(b"ROUTER"))
            await events.until(lambda: events.stdin == ["connected"])


async def test_a_connection_that_meets_itself_is_given_up(kernel, connect, monkeypatch) -> None:
    """The system may choose the port of a kernel that does not listen for the connecting socket."""
    ports = dict(kernel.ports)
    kernel.close()
    create = socket.socket
    met = asyncio.Event()

    class Bound(socket.socket):
        def connect_ex(self, address) -> int:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.bind(address)
            code = super().connect_ex(address)
            if self.getsockname() == self.getpeername():
                met.set()
            return code

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", Bound)
        events = Recorder()
        connect(Endpoints("tcp", "127.0.0.1", ports, b"key"), events)
        assert met.is_set()
        patch.setattr(socket, "socket", create)
    await turns()
    later = PlainKernel(ports)  # the port is free
    try:
        await later.accept_all()
        await events.until(lambda: events.news == ["connected"])
    finally:
        later.close()


def keeps_alive(sock: socket.socket) -> bool:
    """Return True if the other end of a connection on this machine has a keep-alive timer."""
    ours, theirs = sock.getpeername()[1], sock.getsockname()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if (int(fields[1][-4:], 16), int(fields[2][-4:], 16)) == (ours, theirs):
            return fields[5].startswith("02:")
    raise AssertionError("there is no such connection")


@pytest.mark.parametrize("local", [True, False])
async def test_connections_to_other_machines_are_kept_alive(
    kernel, connect, monkeypatch, local
) -> None:
    monkeypatch.setattr(connecting, "is_local", lambda *_: local)
    events = Recorder()
    connect(kernel.endpoints, events)
    await kernel.accept_all()
    await events.until(lambda: bool(events.stdin))
    assert keeps_alive(kernel.connected[Channel.STDIN].sock) is not local


async def test_an_owner_that_fails_at_one_end_gets_the_others(kernel, linked) -> None:
    _, events = linked
    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    disconnected = events.on_disconnected

    def on_disconnected(channel) -> None:
        disconnected(channel)
        if channel is Channel.STDIN:
            raise RuntimeError("a bug")

    events.on_disconnected = on_disconnected
    kernel.hang_up()
    await events.until(lambda: events.news == ["connected", "disconnected"])
    assert events.stdin == ["connected", "disconnected"]
    await kernel.accept_all()
    await events.until(lambda: events.news[-1] == "connected" and events.stdin[-1] == "connected")
    assert len(errors) == 1


async def test_a_channel_that_stays_away_is_reported_as_gone(kernel, linked, monkeypatch) -> None:
    monkeypatch.setattr(module, "_GONE_SECONDS", 0.01)
    link, events = linked
    kernel.listening[Channel.SHELL].close()
    kernel.connected[Channel.SHELL].close()
    await events.until(lambda: events.gone == [Channel.SHELL])
    assert link.send(Channel.CONTROL, body(1))


async def test_queued_requests_are_sent_when_the_system_has_memory_again(
    kernel, connect, monkeypatch
) -> None:
    link = connect(kernel.endpoints, Recorder())
    assert link.send(Channel.SHELL, body(1))
    failures = [OSError(errno.ENOBUFS, "No buffer space available")]
    send = SendQueue.send

    def failing(queue, sock) -> bool:
        if queue.size and failures:
            raise failures.pop()
        return send(queue, sock)

    monkeypatch.setattr(SendQueue, "send", failing)
    shell = await kernel.accept(Channel.SHELL)
    await shell.shake_hands()
    async with asyncio.timeout(TIMEOUT):
        assert await shell.receive() == body(1)
    assert not failures


async def test_a_former_connection_that_ends_in_a_drain_is_made_again(kernel, connect) -> None:
    link = connect(kernel.endpoints, Recorder())
    link.receive_for(b"of the dead")
    connections = [await kernel.accept(Channel.SHELL) for _ in range(2)]
    for each in connections:
        await each.shake_hands()
    [former] = [each for each in connections if b"of the dead" in each.greeted]
    former.close()
    link.drain()
    again = await kernel.accept(Channel.SHELL)
    await again.shake_hands()
    assert b"of the dead" in again.greeted


async def test_room_is_reported_after_the_connection(kernel, connect) -> None:
    events = Recorder()
    order: list[str] = []
    events.on_writable = lambda channel: order.append(f"{channel} writable")
    connected = events.on_connected

    def on_connected(channel) -> None:
        order.append(f"{channel} connected")
        connected(channel)

    events.on_connected = on_connected
    link = connect(kernel.endpoints, events)
    assert link.send(Channel.STDIN, large(100_000))
    assert not link.send(Channel.STDIN, large(2_000_000))
    stdin = await kernel.accept(Channel.STDIN)
    await stdin.shake_hands()
    await stdin.receive()
    await events.until(lambda: bool(events.stdin))
    await turns()
    assert order == ["stdin connected", "stdin writable"]


@pytest.mark.parametrize(
    ("flood", "count"),
    [(encode([b""]) * 100_000, 100_000), (b"\4\1\0" * 100_000, 0)],
    ids=["messages", "commands"],
)
async def test_tiny_frames_do_not_hold_up_the_event_loop(kernel, linked, flood, count) -> None:
    _, events = linked
    batches: list[int] = []
    turns = 0
    take = events.on_messages

    def on_messages(channel, batch) -> None:
        batches.append(len(batch))
        take(channel, batch)

    events.on_messages = on_messages
    sending = asyncio.ensure_future(
        kernel.connected[Channel.IOPUB].send_bytes(flood + encode(body(1)))
    )
    while (Channel.IOPUB, body(1)) not in events.messages[-1:]:
        await asyncio.sleep(0)
        turns += 1
    await sending
    assert sum(batches) == count + 1
    assert max(batches) <= 2000
    assert turns >= 100_000 / 2000 / 2


async def test_messages_that_are_left_are_read_without_another_event(kernel, linked) -> None:
    """All bytes were received at once, so the system announces nothing."""
    _, events = linked
    stdin = kernel.connected[Channel.STDIN]
    await stdin.send_bytes(encode([b""]) * 5000)
    await events.until(lambda: len(events.messages) == 5000)
    await stdin.send_bytes(encode([b""]) * 5000 + encode(body(1)))
    stdin.close()
    await events.until(lambda: "disconnected" in events.stdin)
    assert len(events.messages) == 10_001


async def test_many_messages_that_come_with_the_handshake(kernel, connect) -> None:
    events = Recorder()
    connect(kernel.endpoints, events)
    await (await kernel.accept(Channel.STDIN)).shake_hands(encode([b""]) * 5000)
    await events.until(lambda: len(events.messages) == 5000)
    assert events.stdin == ["connected"]
