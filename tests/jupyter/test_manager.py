"""A real Jupyter Server with real ipykernels, whose websockets use kbridge's class."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from jupyter_server.services.kernels.websocket import KernelWebsocketHandler
from websockets.exceptions import InvalidStatus

from kbridge.connection.channels import HUBS
from kbridge.jupyter import kernel_watch
from tests.jupyter.inside import Inside, environment, running
from tests.jupyter.rig import until
from tests.support.client import Execution, KernelClient, attach, dial
from tests.support.require import require
from tests.support.waiting import TIMEOUT

pytestmark = [pytest.mark.kernel, pytest.mark.asyncio(loop_scope="module")]

CONFIG: dict[str, Any] = {
    # Poll for the end of a process as often as possible.
    "KernelRestarter": {"time_to_dead": 0.2, "restart_limit": 2},
    # The port cache of jupyter_client would keep the ports over a restart.
    "KernelManager": {"cache_ports": False},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    """Directories for all servers of this module."""
    require("ipykernel")
    home = tmp_path_factory.mktemp("jupyter")
    with pytest.MonkeyPatch.context() as patch:
        environment(patch, home)
        patch.setattr(kernel_watch, "_CHECK_SECONDS", 0.05)
        yield home


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server(place: Any, tmp_path_factory: Any) -> AsyncIterator[Inside]:
    async with running(tmp_path_factory.mktemp("shared"), CONFIG) as server:
        yield server
        assert HUBS not in server.settings or not len(server.hubs), "a hub has outlived its kernel"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_kernel(shared_server: Inside) -> AsyncIterator[str]:
    """A kernel that no test restarts."""
    kernel_id = await shared_server.new_kernel()
    yield kernel_id
    await shared_server.call("DELETE", f"/api/kernels/{kernel_id}")
    await until(lambda: no_hub(shared_server, kernel_id), "its hub is freed")


@pytest.fixture
def inside(shared_server: Inside, caplog: pytest.LogCaptureFixture) -> Any:
    """The server; the test fails if it has logged warnings."""
    yield shared_server
    complaints = [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR]
    assert not complaints, caplog.text[-3000:]


@pytest_asyncio.fixture(loop_scope="module")
async def kernel(inside: Inside) -> AsyncIterator[str]:
    """A kernel for one test, which may restart or kill it."""
    kernel_id = await inside.new_kernel()
    await inside.until_answers(kernel_id)
    yield kernel_id
    reply = await inside.call("DELETE", f"/api/kernels/{kernel_id}")
    assert reply.status in {204, 404}, reply.body
    await until(lambda: no_hub(inside, kernel_id), "its hub is freed")


def no_hub(inside: Inside, kernel_id: str) -> bool:
    return HUBS not in inside.settings or inside.hubs.get(kernel_id) is None


def states(client: KernelClient, *which: str) -> list[str]:
    """Return the kernel states that a client received, filtered by `which` if given."""
    told = [
        m["content"]["execution_state"] for m in client.seen if "execution_state" in m["content"]
    ]
    return [state for state in told if state in which]


def status(state: str) -> Any:
    return lambda m: m["content"].get("execution_state") == state


async def gather(client: KernelClient, asked: list[str]) -> list[Execution]:
    """Collect the messages of several requests, which may be interleaved."""
    done = {msg_id: Execution(msg_id) for msg_id in asked}
    missing = {(msg_id, what) for msg_id in asked for what in ("idle", "reply")}
    while missing:
        msg = await client.recv()
        msg_id = msg["parent_header"].get("msg_id", "")
        if msg_id not in done:
            continue
        done[msg_id].messages.append(msg)
        if msg["header"]["msg_type"].endswith("_reply"):
            missing.discard((msg_id, "reply"))
        elif msg["content"].get("execution_state") == "idle":
            missing.discard((msg_id, "idle"))
    return list(done.values())


async def closed_with(client: KernelClient) -> int:
    return (await client.closed())[0]


# -- one hub per kernel ---------------------------------------------------------------------


async def test_websockets_share_one_hub_and_are_counted(inside, shared_kernel) -> None:
    model = await inside.model(shared_kernel)
    assert model["connections"] == 0
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(attach(inside, shared_kernel))
        await first.execute("1")
        hub = inside.hub(shared_kernel)
        await inside.says(shared_kernel, connections=1)
        others = [
            await stack.enter_async_context(attach(inside, shared_kernel, dialect))
            for dialect in ("v1", "legacy")
        ]
        await inside.says(shared_kernel, connections=3)
        done = await first.execute("print('to all')")
        assert done.text() == "to all\n"
        for other in others:
            heard = await other.finish(done.msg_id, reply=False)
            assert heard.text() == "to all\n"
        assert inside.hub(shared_kernel) is hub
        assert hub.connections == 3
        assert len(inside.hubs) == 1
        others[1].cut()
        await inside.says(shared_kernel, connections=2)
    await inside.says(shared_kernel, connections=0)
    assert inside.hub(shared_kernel) is hub, "output is kept for clients that reconnect"


async def test_a_kernel_is_busy_until_its_cell_ends_despite_control_replies(
    inside, shared_kernel
) -> None:
    async with attach(inside, shared_kernel) as client:
        await client.execute("1")
        assert inside.kernels.get_kernel(shared_kernel)._activity_stream is None, "taken over"
        asked = await client.start("input()", allow_stdin=True)
        came = await client.until(lambda m: m["header"]["msg_type"] == "input_request")
        await inside.says(shared_kernel, execution_state="busy")
        control = await client.request("kernel_info_request", {}, channel="control")
        assert control.reply["status"] == "ok"
        assert (await inside.model(shared_kernel))["execution_state"] == "busy"
        parent = came[-1]["header"]
        await client.send("input_reply", {"value": "1"}, channel="stdin", parent=parent)
        await client.finish(asked)
        await inside.says(shared_kernel, execution_state="idle")


async def test_automatic_requests_of_pages_do_not_count_as_activity(inside, shared_kernel) -> None:
    async with attach(inside, shared_kernel) as client:
        await client.execute("1")
        before = (await inside.model(shared_kernel))["last_activity"]
    async with attach(inside, shared_kernel) as client:
        for kind in ("kernel_info_request", "comm_info_request"):
            await client.request(kind, {})
        assert (await inside.model(shared_kernel))["last_activity"] == before
        after = before
        async with asyncio.timeout(TIMEOUT):
            while after <= before:  # the manager's value may be a tenth of a second late
                await client.execute("1")
                after = (await inside.model(shared_kernel))["last_activity"]


@pytest.mark.parametrize(
    ("frame", "code"), [(b"\x01" * 9, 1007), ("no JSON", 1007), ('{"channel": "iopub"}', 1008)]
)
async def test_an_invalid_frame_closes_only_its_websocket(
    inside, shared_kernel, frame, code
) -> None:
    async with attach(inside, shared_kernel) as honest:
        async with attach(inside, shared_kernel, "legacy") as other:
            await other.ws.send(frame)
            assert await closed_with(other) == code
        assert (await honest.execute("print(1)")).text() == "1\n"


# -- buffering ------------------------------------------------------------------------------

# Waits after the first number until the file exists; the client that reads it has left by then.
PRINTING = """
import os, time
print(0, flush=True)
while not os.path.exists({!r}):
    time.sleep(0.005)
for i in range(1, 200):
    print(i, flush=True)
"""


async def print_behind_the_back(inside: Inside, kernel: str, session: str, gate: Path) -> str:
    """Let a kernel print while no client reads; return the id of the request."""
    async with attach(inside, kernel, session=session) as client:
        asked = await client.start(PRINTING.format(str(gate)))
        await client.until(lambda m: m["header"]["msg_type"] == "stream")
    await inside.says(kernel, connections=0, execution_state="busy")
    await asyncio.to_thread(gate.touch)
    await inside.says(kernel, execution_state="idle")
    return asked


async def test_output_without_a_client_is_delivered_once_and_in_order(
    inside, shared_kernel, tmp_path
) -> None:
    asked = await print_behind_the_back(inside, shared_kernel, "back", tmp_path / "gate")
    async with attach(inside, shared_kernel, session="back") as client:
        done = await client.finish(asked)
        # The last message may come again, if the client left before it acknowledged it; `print`
        # writes a line and its end in two.
        rest = done.text().removeprefix("0").removeprefix("\n")
        assert rest == "".join(f"{i}\n" for i in range(1, 200))
    async with attach(inside, shared_kernel) as stranger:
        await stranger.execute("1")
        assert not [m for m in stranger.seen if m["header"]["msg_type"] == "stream"]


async def test_nothing_is_buffered_if_buffering_is_off(inside, shared_kernel, tmp_path) -> None:
    async with inside.set(buffer_offline_messages=False):
        await print_behind_the_back(inside, shared_kernel, "back", tmp_path / "gate")
        async with attach(inside, shared_kernel, session="back") as client:
            done = await client.execute("print('afresh')")
            assert done.text() == "afresh\n"
            streams = [m for m in client.seen if m["header"]["msg_type"] == "stream"]
            assert "".join(m["content"]["text"] for m in streams) == "afresh\n"


# -- what the manager allows ----------------------------------------------------------------


async def test_message_types_that_are_not_allowed_do_not_reach_the_kernel(
    inside, shared_kernel, caplog
) -> None:
    allowed = ["kernel_info_request"]
    async with (
        inside.set(allowed_message_types=allowed),
        attach(inside, shared_kernel) as client,
    ):
        refused = await client.start("print('no')")
        await client.request("kernel_info_request", {})
        assert all(m["parent_header"].get("msg_id") != refused for m in client.seen)
    assert "execute_request" in caplog.text


@pytest.mark.parametrize("dialect", ["v1", "legacy"])
async def test_tracebacks_are_hidden_by_the_setting_of_the_manager(
    inside, shared_kernel, dialect
) -> None:
    replacement = "nothing to see"
    async with (
        inside.set(allow_tracebacks=False, traceback_replacement_message=replacement),
        attach(inside, shared_kernel, dialect) as client,
    ):
        done = await client.execute("1 / 0  # secret")
    (error,) = done.of("error")
    for content in (error["content"], done.reply):
        assert "ZeroDivision" not in str(content)
        assert "secret" not in str(content)
    assert replacement in str(error["content"])


# -- restarts -------------------------------------------------------------------------------

NEW_PORTS = "kernel, new ports"


async def restart(inside: Inside, kernel_id: str, how: str) -> None:
    if how == "REST":
        reply = await inside.call("POST", f"/api/kernels/{kernel_id}/restart")
        assert reply.status == 200, reply.body
    elif how == "manager":
        await (await inside.kernels.restart_kernel(kernel_id))
    else:
        kernel = inside.kernels.get_kernel(kernel_id)
        await kernel.restart_kernel(newports=how == NEW_PORTS, now=True)


@pytest.mark.parametrize(
    ("how", "dialect"),
    [("REST", "v1"), ("REST", "legacy"), ("manager", "v1"), ("kernel", "v1"), (NEW_PORTS, "v1")],
)
async def test_cells_sent_right_after_a_manual_restart_lose_nothing(
    inside, kernel, how, dialect
) -> None:
    async with attach(inside, kernel, dialect) as client:
        await client.execute("before = 1")
        ports = inside.kernels.get_kernel(kernel).ports
        await restart(inside, kernel, how)
        asked = [await client.start(f"print({i}, 'before' in globals())") for i in range(8)]
        for i, done in enumerate(await gather(client, asked)):
            assert done.types == ["busy", "execute_input", "stream", "idle"]
            assert done.text() == f"{i} False\n"
        assert "starting" in states(client, "starting", "restarting", "dead")
        assert "restarting" not in states(client, "restarting"), "the kernel did not crash"
        changed = inside.kernels.get_kernel(kernel).ports != ports
        assert changed == (how == NEW_PORTS)
        await inside.says(kernel, execution_state="idle", connections=1)


@pytest.mark.parametrize("how", ["REST", "kernel"])
async def test_a_restarted_kernel_without_clients_is_idle(inside, kernel, how) -> None:
    async with attach(inside, kernel) as client:
        await client.execute("1")
        await restart(inside, kernel, how)
        await client.until(status("starting"))
        await inside.hub(kernel).wait_ready()
        await inside.says(kernel, execution_state="idle")


@pytest.mark.parametrize("new_ports", [True, False])
async def test_a_killed_kernel_is_restarted_and_its_websockets_continue(
    inside, kernel, new_ports
) -> None:
    manager = inside.kernels.get_kernel(kernel)
    manager._restarter.random_ports_until_alive = new_ports
    async with attach(inside, kernel) as one, attach(inside, kernel) as other:
        await one.execute("before = 1")
        ports, pid = manager.ports, inside.pid(kernel)
        os.kill(pid, signal.SIGKILL)
        for client in (one, other):
            await client.until(status("restarting"))
        asked = [await one.start(f"print({i}, 'before' in globals())") for i in range(8)]
        cells = await gather(one, asked)
        for i, done in enumerate(cells):
            assert done.types == ["busy", "execute_input", "stream", "idle"]
            assert done.text() == f"{i} False\n"
        last = cells[-1].iopub[-1]["header"]
        await other.until(lambda m: m["header"] == last)
        assert inside.pid(kernel) != pid
        assert (manager.ports != ports) == new_ports
        for client in (one, other):
            assert states(client, "restarting", "dead") == ["restarting"]
        await inside.says(kernel, execution_state="idle", connections=2)
        # The manager must know the new ports, too, or its next restart would not end.
        await restart(inside, kernel, "manager")
        assert (await one.execute("print(1)")).text() == "1\n"


async def test_a_kernel_that_dies_while_busy_is_idle_after_the_restart(inside, kernel) -> None:
    async with attach(inside, kernel) as client:
        await client.start("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
        await client.until(status("restarting"))
        await inside.hub(kernel).wait_ready()
        await inside.says(kernel, execution_state="idle")


async def test_a_kernel_that_dies_too_often_is_dead_and_its_hub_closes(inside) -> None:
    kernel_id = await inside.new_kernel("broken")
    async with attach(inside, kernel_id) as client:
        hub = inside.hub(kernel_id)
        await client.until(status("dead"))
        assert states(client, "restarting", "dead")[-1] == "dead"
        assert await closed_with(client) == 1012
    await until(lambda: inside.hubs.get(kernel_id) is None)
    assert hub.closed
    reply = await inside.call("GET", f"/api/kernels/{kernel_id}")
    assert reply.status == 404


# -- the end --------------------------------------------------------------------------------


async def test_deleting_a_kernel_closes_its_hub_and_websockets(inside) -> None:
    kernel_id = await inside.new_kernel()
    async with attach(inside, kernel_id) as client:
        await client.execute("1")
        hub = inside.hub(kernel_id)
        reply = await inside.call("DELETE", f"/api/kernels/{kernel_id}")
        assert reply.status == 204
        assert await closed_with(client) == 1012
    await until(lambda: inside.hubs.get(kernel_id) is None)
    assert hub.closed
    assert hub.connections == 0


async def test_a_websocket_that_opens_while_its_kernel_ends_is_closed(inside) -> None:
    kernel_id = await inside.new_kernel()
    deleting = asyncio.ensure_future(inside.call("DELETE", f"/api/kernels/{kernel_id}"))
    manager = inside.kernels.get_kernel(kernel_id)
    await until(lambda: not manager.ready.done(), "the end begins")
    try:
        async with attach(inside, kernel_id) as client:
            end = await closed_with(client)
    except InvalidStatus as refused:
        end = refused.response.status_code
    assert end in {1012, 404}
    await deleting
    await until(lambda: inside.hubs.get(kernel_id) is None)


# -- handlers of other extensions -----------------------------------------------------------


class HidesSources(KernelWebsocketHandler):
    """A handler that shows the output of cells but not their code, as Voila's does."""

    def write_message(self, message: Any, binary: bool = False) -> Any:
        if b"execute_input" in (message if binary else message.encode()):
            return None
        return super().write_message(message, binary=binary)


async def test_a_handler_that_filters_messages_is_called_for_each(
    inside: Inside, kernel: str, dialect: str
) -> None:
    inside.app.web_app.add_handlers(
        r".*$", [(r"/viewer/(?P<kernel_id>[-\w]+)/channels", HidesSources)]
    )
    headers = {"Authorization": f"token {inside.token}"}
    url = f"ws://127.0.0.1:{inside.port}/viewer/{kernel}/channels?session_id=viewer"
    async with (
        dial(url, dialect, additional_headers=headers) as viewer,
        attach(inside, kernel, dialect) as author,
    ):
        for n in range(7):
            done = await author.execute(f"print({n})")
            assert [m["content"]["code"] for m in done.of("execute_input")] == [f"print({n})"]
            seen = await viewer.finish(done.msg_id, reply=False)
            assert seen.text() == f"{n}\n"
            assert seen.of("execute_input") == []
        assert (await viewer.execute("6 * 7")).reply["status"] == "ok"
        assert not [m for m in viewer.seen if m["header"]["msg_type"] == "execute_input"]


# -- a kernel that does not read ------------------------------------------------------------


async def test_a_client_that_floods_a_blocked_kernel_is_not_read(inside, shared_kernel) -> None:
    count, size = 200, 200_000
    inside.settings.update(ws_ping_interval=100, ws_ping_timeout=500)
    try:
        async with attach(inside, shared_kernel) as client:
            await client.execute("1")
            hub, pid = inside.hub(shared_kernel), inside.pid(shared_kernel)
            os.kill(pid, signal.SIGSTOP)
            try:
                asked: list[str] = []
                flooding = asyncio.ensure_future(flood(client, size, count, asked))
                outbox = lambda: hub.statistics()["outbox"]  # noqa: E731
                await until(lambda: outbox()["senders_waiting"] == 1, "it waits")
                with inside.handlers() as (handler,):
                    pinged = handler.last_ping
                    await until(lambda: handler.last_ping > pinged + 1.2, "pings go on")
                assert outbox()["bytes"] <= hub.settings.request_limit + size + 1000
                assert outbox()["senders_waiting"] == 1
                assert not flooding.done()
                assert hub.connections == 1, "silence must not count as death"
            finally:
                os.kill(pid, signal.SIGCONT)
            replies: set[str] = set()
            while len(replies) < count:
                msg = await client.recv()
                if msg["header"]["msg_type"] == "kernel_info_reply":
                    replies.add(msg["parent_header"]["msg_id"])
            await flooding
            assert replies == set(asked)
            assert outbox()["bytes"] == 0
    finally:
        inside.settings.pop("ws_ping_interval")
        inside.settings.pop("ws_ping_timeout")


async def flood(client: KernelClient, size: int, count: int, asked: list[str]) -> None:
    while len(asked) < count:
        asked += [await client.send("kernel_info_request", {"padding": size * "x"})]


# -- other servers --------------------------------------------------------------------------


async def test_idle_kernels_are_culled_and_connected_ones_if_configured(place, tmp_path) -> None:
    culling = {"cull_idle_timeout": 3600, "cull_interval": 1}
    async with running(tmp_path, {"MappingKernelManager": culling}) as server:
        never, left, stays = [await server.new_kernel() for _ in range(3)]
        async with attach(server, left) as client:
            await client.execute("1")
        async with attach(server, stays) as client:
            await client.execute("1")
            server.kernels.cull_idle_timeout = (
                1  # set late, because kernels take longer than this to start
            )
            await until(lambda: never not in server.kernels and left not in server.kernels)
            await until(lambda: server.hubs.get(left) is None)
            assert stays in server.kernels
            asked = await client.start("import time; time.sleep(2.5); print('busy')")
            await client.until(status("busy"))
            server.kernels.cull_connected = True
            assert (await client.finish(asked)).text() == "busy\n"
            assert await closed_with(client) == 1012
        await until(lambda: len(server.hubs) == 0)


async def test_websockets_wait_for_pending_kernels_and_failed_starts_give_500(
    place, tmp_path, caplog
) -> None:
    config = {"AsyncMultiKernelManager": {"use_pending_kernels": True}}
    async with running(tmp_path, config) as server:
        missing = await server.new_kernel("missing")
        with pytest.raises(InvalidStatus) as refused:
            async with attach(server, missing):
                pass
        assert refused.value.response.status_code == 500
        model = await server.model(missing)
        assert model["execution_state"] == "dead"
        assert "/nonexistent/kernel" in model["reason"]
        kernel_id = await server.new_kernel()
        async with attach(server, kernel_id) as client:
            assert (await client.execute("print(1)")).text() == "1\n"
        assert len(server.hubs) == 1


async def test_encrypted_kernels_are_supported(place, tmp_path, caplog) -> None:
    config = {"MappingKernelManager": {"transport_encryption": "required"}}
    async with running(tmp_path, config) as server:
        kernel_id = await server.new_kernel()
        info = server.kernels.get_kernel(kernel_id).get_connection_info()
        assert info["curve_publickey"]
        async with attach(server, kernel_id) as client:
            assert (await client.execute("print('in cipher')")).text() == "in cipher\n"
            await restart(server, kernel_id, "manager")
            assert (await client.execute("print('again')")).text() == "again\n"
    for secret in (info["curve_secretkey"], info["key"]):
        assert (secret if isinstance(secret, str) else secret.decode()) not in caplog.text
