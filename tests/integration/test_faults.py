"""Kernels that die, hang, flood and send invalid messages, and full disks: the effect for users."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kbridge.connect import write_connection_file
from kbridge.kernels.attached.connection_file import kernel_id_for
from tests.support.client import KernelClient, attach
from tests.support.server import Server
from tests.support.waiting import TIMEOUT, eventually

SCRIPTED_KERNEL = Path(__file__).parents[1] / "support" / "scripted_kernel.py"
MANAGER = "--BridgeKernelManager"
# Polling is off, so that the tests cannot depend on it.
NOBODY_LOOKS = f"{MANAGER}.watch_interval=3600"


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Start servers with the kernelspec of the scripted kernel."""
    servers: list[Server] = []

    def start(*args: str, **options: Any) -> Server:
        home = tmp_path_factory.mktemp("server")
        spec = home / "data" / "kernels" / "scripted" / "kernel.json"
        spec.parent.mkdir(parents=True)
        argv = [sys.executable, str(SCRIPTED_KERNEL), "{connection_file}"]
        spec.write_text(
            json.dumps({"argv": argv, "display_name": "Scripted", "language": "python"})
        )
        servers.append(Server(home, NOBODY_LOOKS, *args, **options))
        return servers[-1].start()

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="module")
def server(serve: Callable[..., Server]) -> Server:
    return serve(f"{MANAGER}.start_grace=10", "--KernelManager.shutdown_wait_time=0.2")


@pytest.fixture
def scripted(server: Server) -> Iterator[str]:
    """Start a kernel for one test, which may break it; return its id."""
    kernel_id = server.start_kernel("scripted")
    yield kernel_id
    server.stop_kernel(kernel_id)


@pytest.fixture
async def ws(server: Server, scripted: str, dialect: str) -> AsyncIterator[KernelClient]:
    async with attach(server, scripted, dialect) as client:
        yield client


@pytest.fixture(scope="module")
def liar(server: Server) -> str:
    """Return the id of a shared kernel that sends invalid messages and survives them."""
    return server.start_kernel("scripted")


@pytest.fixture
async def heard(server: Server, liar: str, dialect: str) -> AsyncIterator[KernelClient]:
    async with attach(server, liar, dialect) as client:
        yield client


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """Start a kernel without a server; return its connection file and its process."""
    path = tmp_path / "kernel-elsewhere.json"
    write_connection_file(str(path), key=b"a key")
    with subprocess.Popen([sys.executable, str(SCRIPTED_KERNEL), str(path)]) as kernel:
        yield path, kernel
        kernel.kill()


def pid_of(server: Server, kernel_id: str) -> int:
    """Return the process of a kernel, found by its connection file."""
    (pid,) = [p for p in server.children() if kernel_id in " ".join(psutil.Process(p).cmdline())]
    return pid


def is_status(state: str) -> Callable[[dict[str, Any]], bool]:
    return lambda msg: msg["content"].get("execution_state") == state


def text_of(messages: list[dict[str, Any]]) -> str:
    return "".join(m["content"]["text"] for m in messages if m["header"]["msg_type"] == "stream")


async def works(ws: KernelClient) -> None:
    """Check that the kernel runs a cell and all output arrives."""
    done = await ws.execute("k.stream('it works', parent)")
    assert done.types == ["busy", "stream", "idle"]
    assert done.text() == "it works"
    assert done.reply["status"] == "ok"


async def says(server: Server, kernel_id: str, wanted: str) -> None:
    """Wait until the REST interface shows a state."""

    def said() -> bool:
        model = server.request("GET", f"/api/kernels/{kernel_id}").json()
        return bool(model["execution_state"] == wanted)

    await asyncio.to_thread(eventually, said, f"the kernel is {wanted}")


async def state(server: Server, kernel_id: str) -> str:
    reply = await server.call("GET", f"/api/kernels/{kernel_id}")
    assert reply.status == 200
    return str(reply.json()["execution_state"])


# -- kernels that die -----------------------------------------------------------------------


@pytest.mark.parametrize("ports", ["the same", "new"])
async def test_a_death_is_announced_at_once_after_the_last_output(
    serve: Callable[..., Server], dialect: str, ports: str
) -> None:
    """The server polls the process once per hour: the operating system reports the death."""
    # A kernel that dies before it is stable counts as one whose ports were in use.
    server = serve(f"{MANAGER}.stable_start_time={0 if ports == 'the same' else 3600}")
    kernel_id = server.start_kernel("scripted")
    info = server.home / "runtime" / f"kernel-{kernel_id}.json"
    before = json.loads(info.read_text())
    async with attach(server, kernel_id, dialect) as ws:
        said = "for i in range(1000): k.stream(f'{i}\\n', parent)\n"
        await ws.start(said + "k.flush()\nk.die()")
        *old, told = await ws.until(is_status("restarting"))
        assert text_of(old) == "".join(f"{i}\n" for i in range(1000))
        assert told["channel"] == "iopub"
        await works(ws)
        states = [m["content"].get("execution_state") for m in ws.seen]
        assert states.count("restarting") == 1
        assert "dead" not in states
    after = json.loads(info.read_text())
    assert (before["shell_port"] == after["shell_port"]) == (ports == "the same")


async def test_a_dead_kernel_can_be_restarted(serve: Callable[..., Server], dialect: str) -> None:
    server = serve(f"{MANAGER}.restart_limit=0")
    kernel_id = server.start_kernel("scripted")
    async with attach(server, kernel_id, dialect) as ws:
        os.kill(pid_of(server, kernel_id), signal.SIGKILL)
        await ws.until(is_status("dead"))
        assert await state(server, kernel_id) == "dead"
        assert "ended by SIGKILL" in server.tail() or "is dead" in server.tail()
        reply = await server.call("POST", f"/api/kernels/{kernel_id}/restart")
        assert reply.status == 200
        await works(ws)
        assert await state(server, kernel_id) == "idle"


async def test_a_kernel_that_dies_within_a_message(ws: KernelClient) -> None:
    """Complete messages arrive; the incomplete one does not."""
    await ws.start("k.stream('whole', parent)\nk.stream('x' * (32 << 20), parent)\nk.die()")
    *old, _ = await ws.until(is_status("restarting"))
    texts = [m["content"]["text"] for m in old if m["header"]["msg_type"] == "stream"]
    # The death may also drop the first message, and may be too late for the second one.
    complete = ["whole", "x" * (32 << 20)]
    assert texts == complete[: len(texts)]
    await works(ws)


# -- kernels that hang ----------------------------------------------------------------------


async def test_a_kernel_that_hangs_can_be_restarted(
    server: Server, scripted: str, ws: KernelClient
) -> None:
    await works(ws)
    os.kill(pid_of(server, scripted), signal.SIGSTOP)
    lost = await ws.start("k.stream('never', parent)")
    reply = await server.call("POST", f"/api/kernels/{scripted}/restart")
    assert reply.status == 200
    *old, _ = await ws.until(is_status("starting"))
    assert text_of(old) == ""
    await works(ws)
    assert not [m for m in ws.seen if m["parent_header"].get("msg_id") == lost]


async def test_a_kernel_that_hangs_can_be_shut_down(server: Server, dialect: str) -> None:
    kernel_id = server.start_kernel("scripted")
    pid = pid_of(server, kernel_id)
    async with attach(server, kernel_id, dialect) as ws:
        os.kill(pid, signal.SIGSTOP)
        reply = await server.call("DELETE", f"/api/kernels/{kernel_id}")
        assert reply.status == 204
        await ws.closed()
    assert not psutil.pid_exists(pid)


async def test_a_kernel_that_hangs_for_a_while_loses_nothing(
    server: Server, scripted: str, ws: KernelClient
) -> None:
    os.kill(pid_of(server, scripted), signal.SIGSTOP)
    asked = [await ws.start(f"k.stream('{i}', parent)") for i in range(300)]
    alive = await ws.ws.ping()
    await alive
    os.kill(pid_of(server, scripted), signal.SIGCONT)
    seen = await ws.until(lambda m: m["content"].get("text") == "299")
    while len(replies := [m for m in seen if m["header"]["msg_type"] == "execute_reply"]) < 300:
        seen.append(await ws.recv())
    assert text_of(seen) == "".join(str(i) for i in range(300))
    assert [m["parent_header"]["msg_id"] for m in replies] == asked


@pytest.mark.parametrize("shown", ["unknown", "dead"])
async def test_an_attached_kernel_that_hangs_is_reported_until_it_continues(
    serve: Callable[..., Server], elsewhere: tuple[Path, subprocess.Popen[bytes]], shown: str
) -> None:
    """The process does not belong to the server; its heartbeat shows that it hangs."""
    path, kernel = elsewhere
    kernel_id = kernel_id_for(path)
    server = serve(
        *(str(path), f"{MANAGER}.heartbeat_interval=0.1", f"{MANAGER}.heartbeat_misses=10"),
        f"{MANAGER}.heartbeat_status={shown}",
        command=[sys.executable, "-m", "kbridge", "attach", "--ip=127.0.0.1"],
    )
    async with attach(server, kernel_id) as ws:
        while int((await ws.execute("k.stream(str(k.beats), parent)")).text()) < 2:
            assert kernel.poll() is None
        assert "heartbeats unanswered" not in server.tail()
        for times in (1, 2):
            kernel.send_signal(signal.SIGSTOP)
            await ws.until(is_status(shown))
            # The kernel may also have been silent before, for lack of a processor.
            await says(server, kernel_id, shown)
            assert "has not answered its heartbeats for 1 s" in server.tail()
            asked = await ws.start("k.stream('said meanwhile', parent)")
            kernel.send_signal(signal.SIGCONT)
            assert (await ws.finish(asked)).text() == "said meanwhile"
            await says(server, kernel_id, "idle")
            await works(ws)
            assert [m["content"].get("execution_state") for m in ws.seen].count(shown) >= times


@pytest.mark.parametrize("mute", ["kernel_info", "all"])
async def test_requests_are_sent_to_a_kernel_that_answers_no_probe(
    serve: Callable[..., Server], dialect: str, mute: str
) -> None:
    server = serve(f"{MANAGER}.kernel_info_timeout=1", f"{MANAGER}.start_grace=0.1")
    kernel_id = server.start_kernel("scripted", env={"KERNEL_SCRIPT_MUTE": mute})
    async with attach(server, kernel_id, dialect) as ws:
        asked = await ws.start("k.stream('after a second', parent)")
        if mute == "all":
            waited = lambda: "has not answered for 1 s" in server.tail()  # noqa: E731
            await asyncio.to_thread(eventually, waited, "it is given up on")
            assert await state(server, kernel_id) == "starting"
        else:
            assert (await ws.finish(asked)).text() == "after a second"
            assert "has not answered for 1 s (kernel_info_timeout)" in server.tail()
        reply = await server.call("POST", f"/api/kernels/{kernel_id}/interrupt")
        assert reply.status == 204
        assert (await server.call("DELETE", f"/api/kernels/{kernel_id}")).status == 204


# -- kernels that lie and garble ------------------------------------------------------------


@pytest.mark.parametrize(
    "said", [None, "", "99", "99.0", "five", 5, 4.1, [], [5, "x"], {}, "5" * 5000, "9" * 30 + ".1"]
)
async def test_any_protocol_version_of_a_kernel_is_accepted(server: Server, said: Any) -> None:
    env = {"KERNEL_SCRIPT_PROTOCOL": json.dumps(said)}
    kernel_id = server.start_kernel("scripted", env=env)
    async with attach(server, kernel_id) as ws:
        await works(ws)
    server.stop_kernel(kernel_id)


GOOD = "k.parts('stream', {'name': 'stdout', 'text': 'forged'}, parent)"
FRAMES = {
    "unsigned": f"k.send({GOOD}, b'')",
    "wrongly signed": f"k.send({GOOD}, b'0' * 64)",
    "signed with something else": f"k.send({GOOD}, b'\\xff\\x00' * 40)",
    "changed after it was signed": (
        f"p = {GOOD}\ns = k.sign(p)\np[3] = p[3].replace(b'forged', b'f0rged')\nk.send(p, s)"
    ),
    "no message": "k.send_raw([b'what is this'])",
    "an empty message": "k.send_raw([b''])",
    "no delimiter": f"k.send_raw([b'x', *{GOOD}])",
    "too few parts": f"k.send_raw([b'<IDS|MSG>', b'', *{GOOD}[:2]])",
    "a reply that is unsigned": f"k.send({GOOD}, b'', channel='shell')",
    "a reply that is no message": "k.send_raw([b'what', b'is', b'this'], 'shell')",
}


@pytest.mark.parametrize("fault", FRAMES)
async def test_an_invalid_message_is_dropped_and_others_arrive(
    heard: KernelClient, fault: str
) -> None:
    done = await heard.execute(f"k.stream('1', parent)\n{FRAMES[fault]}\nk.stream('2', parent)")
    assert done.text() == "12"
    assert done.reply["status"] == "ok"
    await works(heard)


GARBLED = {
    "a header that is no JSON": f"p = {GOOD}\np[0] = b'{{'\nk.send(p)",
    "a header that is a list": f"p = {GOOD}\np[0] = b'[]'\nk.send(p)",
    "a header that is no text": f"p = {GOOD}\np[0] = b'\\xff\\xfe'\nk.send(p)",
    "a parent that is no JSON": f"p = {GOOD}\np[1] = b'nothing'\nk.send(p)",
    "metadata that is no JSON": f"p = {GOOD}\np[2] = b''\nk.send(p)",
    "content that is no JSON": f"p = {GOOD}\np[3] = b'forged'\nk.send(p)",
    "content that is deep": f"p = {GOOD}\np[3] = b'[' * 100_000\nk.send(p)",
}


@pytest.mark.parametrize("fault", GARBLED)
async def test_invalid_content_with_a_valid_signature_harms_no_other_message(
    heard: KernelClient, fault: str
) -> None:
    """The bridge does not parse the whole message: it passes it unchanged, or not at all."""
    await heard.start(f"k.stream('1', parent)\n{GARBLED[fault]}\nk.stream('2', parent)")
    texts, garbled, replied = "", 0, False
    while texts != "12" or not replied:
        async with asyncio.timeout(TIMEOUT):
            frame = await heard.ws.recv()
        try:
            msg = heard.codec.decode(frame)
            replied = replied or msg["header"]["msg_type"] == "execute_reply"
            text = msg["content"].get("text", "") if msg["parent_header"] else ""
        except (ValueError, TypeError, RecursionError):
            garbled += 1
            continue
        texts += text if text in "12" else ""
    assert garbled <= 1
    await works(heard)


async def test_dropped_messages_are_logged(serve: Callable[..., Server]) -> None:
    server = serve()
    kernel_id = server.start_kernel("scripted")
    async with attach(server, kernel_id) as ws:
        await ws.execute(f"for i in range(1000): k.send({GOOD}, b'')")
    (line,) = [line for line in server.tail().splitlines() if "Rejected" in line]
    assert f"Rejected 1 message(s) of kernel {kernel_id}. The last, on iopub" in line
    assert "an invalid signature" in line


async def test_a_message_that_is_sent_twice_is_shown_twice(heard: KernelClient) -> None:
    """A kernel may send a message twice; other programs lack its TCP connection and its key."""
    done = await heard.execute(f"p = {GOOD}\nk.send(p)\nk.send(p)")
    assert done.text() == "forgedforged"
    await works(heard)


async def test_replies_reach_their_client_if_the_kernel_names_another_session(
    server: Server, liar: str, dialect: str
) -> None:
    async with (
        attach(server, liar, dialect) as one,
        attach(server, liar, dialect) as two,
    ):
        await works(two)
        done = await one.execute(
            f"other = {{**parent, 'session': '{two.session}'}}\n"
            "k.send(k.parts('odd_reply', {'status': 'ok'}, other), channel='shell')"
        )
        assert done.msg_id
        assert [m for m in one.seen if m["header"]["msg_type"] == "odd_reply"]
        await works(two)
        assert not [m for m in two.seen if m["header"]["msg_type"] == "odd_reply"]


# -- kernels that say too much --------------------------------------------------------------


async def test_a_message_larger_than_the_journal_arrives(
    serve: Callable[..., Server], dialect: str
) -> None:
    """It reaches clients that read; other clients receive a marker (test_limits)."""
    server = serve(f"--ZMQChannelsWebsocketConnection.journal_limit={1 << 20}")
    async with attach(server, server.start_kernel("scripted"), dialect) as ws:
        size = 4 << 20
        done = await ws.execute(f"k.stream('x' * {size}, parent)\nk.stream('after', parent)")
        text = text_of(done.iopub)
        assert text in ("x" * size + "after", text), len(text)
        assert len(text) == size + 5, (len(text), text[-200:])
        await works(ws)


FLOODS = {
    "streams": "k.stream('line\\n', parent)",
    "displays": "k.say('display_data', {'data': {'text/plain': 'x'}, 'metadata': {}}, parent)",
    "updates": (
        "k.say('update_display_data', {'data': {'text/plain': str(i)}, 'metadata': {},"
        " 'transient': {'display_id': 'one'}}, parent)"
    ),
    "comms": "k.say('comm_msg', {'comm_id': 'c', 'data': {'n': i}}, parent)",
    "unsigned": f"k.send({GOOD}, b'')",
    "garbage": "k.send_raw([b'garbage'])",
}


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_flood_ends_with_its_reply_and_harms_no_other_client(
    server: Server, liar: str, flood: str
) -> None:
    async with attach(server, liar) as ws, attach(server, liar, "legacy") as other:
        before = server.rss()
        done = await ws.execute(f"for i in range(5_000): {FLOODS[flood]}")
        assert done.reply["status"] == "ok"
        assert done.types[-1] == "idle"
        if flood == "streams":
            assert done.text() == "line\n" * 5_000
        elif flood == "comms":
            numbers = [m["content"]["data"]["n"] for m in done.of("comm_msg")]
            assert numbers == list(range(5_000)), "state is never dropped"
        elif flood == "updates":
            assert done.of("update_display_data")[-1]["content"]["data"]["text/plain"] == "4999"
        elif flood == "displays":
            assert len(done.of("display_data")) == 5_000
        else:
            assert done.types == ["busy", "idle"]
        await works(other)
        assert server.rss() - before < 200 << 20
    assert server.tail().count("refused") <= 20


# -- disks that are full --------------------------------------------------------------------


async def test_a_full_disk_fails_a_start_and_names_the_file(
    serve: Callable[..., Server],
) -> None:
    """A limit on the size of files simulates a full disk: the system refuses the same write."""
    server = serve()
    running = server.start_kernel("scripted")
    process = psutil.Process(server.process.pid)
    async with attach(server, running) as ws:
        runtime = server.home / "runtime"
        there = {p.name for p in runtime.iterdir()}
        limits = process.rlimit(resource.RLIMIT_FSIZE)
        process.rlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        try:
            reply = await server.call("POST", "/api/kernels", {"name": "scripted"})
        finally:
            process.rlimit(resource.RLIMIT_FSIZE, limits)
        assert reply.status == 500
        assert str(runtime / "kernel-") in reply.json()["message"], reply.json()
        assert "File too large" in reply.json()["message"]
        assert {p.name for p in runtime.iterdir()} == there
        await works(ws)
        assert await state(server, server.start_kernel("scripted")) == "idle"
