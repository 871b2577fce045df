"""Jupyter Server, unmodified, with kbridge behind it as its kernel gateway."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ServerFactory
from tests.support.client import SLEEP, attach, dial
from tests.support.jupyter_server import jupyter_server
from tests.support.require import require
from tests.support.server import TOKEN, Server
from tests.support.waiting import eventually

pytestmark = pytest.mark.kernel


@pytest.mark.slow
async def test_jupyter_server_runs_its_kernels_through_kbridge(
    server: Server, new_server: ServerFactory
) -> None:
    require("jupyter_server")
    front = new_server(
        f"--gateway-url={server.url}",
        f"--GatewayClient.auth_token={TOKEN}",
        "--ServerApp.disable_check_xsrf=True",
        *("--no-browser", "--allow-root", "--ip=127.0.0.1"),
        command=[sys.executable, "-m", "jupyter_server"],
    )
    specs = (await front.call("GET", "/api/kernelspecs")).json()
    assert "python3" in specs["kernelspecs"]
    made = await front.call("POST", "/api/kernels", {"name": "python3"})
    assert made.status == 201, made
    kernel = made.json()["id"]
    assert kernel in {k["id"] for k in (await server.call("GET", "/api/kernels")).json()}
    async with attach(front, kernel, "legacy") as ws:
        done = await ws.execute("import sys; print('through'); 6 * 7")
        assert done.text() == "through\n"
        assert done.of("execute_result")[0]["content"]["data"] == {"text/plain": "42"}
        asked = await ws.start("print(input('? '))", allow_stdin=True)
        *_, prompt = await ws.until(lambda m: m["channel"] == "stdin")
        await ws.send("input_reply", {"value": "yes"}, channel="stdin", parent=prompt["header"])
        assert (await ws.finish(asked)).text() == "yes\n"
        asked = await ws.start(SLEEP)
        await ws.until(lambda m: "asleep" in m["content"].get("text", ""))
        assert (await front.call("POST", f"/api/kernels/{kernel}/interrupt")).status == 204
        assert (await ws.finish(asked)).reply["ename"] == "KeyboardInterrupt"
        assert (await front.call("POST", f"/api/kernels/{kernel}/restart")).status == 200
        assert (await ws.execute("print('again')")).text() == "again\n"
    session = {"path": "a.ipynb", "type": "notebook", "name": "a", "kernel": {"name": "python3"}}
    made = await front.call("POST", "/api/sessions", session)
    assert made.status == 201, made
    await front.call("DELETE", f"/api/sessions/{made.json()['id']}")
    assert (await front.call("DELETE", f"/api/kernels/{kernel}")).status == 204
    assert kernel not in {k["id"] for k in (await server.call("GET", "/api/kernels")).json()}


@pytest.mark.slow
async def test_gateway_kernels_have_the_directory_and_locale_of_the_request(
    new_server: ServerFactory,
) -> None:
    require("jupyter_server")
    back = new_server(env={"LC_TIME": "C.UTF-8"})
    (back.home / "sub").mkdir()
    front = new_server(
        f"--gateway-url={back.url}",
        f"--GatewayClient.auth_token={TOKEN}",
        "--ServerApp.disable_check_xsrf=True",
        f"--ServerApp.root_dir={back.home}",
        *("--no-browser", "--allow-root", "--ip=127.0.0.1"),
        command=[sys.executable, "-m", "jupyter_server"],
    )
    session = {
        "path": "sub/a.ipynb",
        "type": "notebook",
        "name": "a",
        "kernel": {"name": "python3"},
    }
    made = await front.call("POST", "/api/sessions", session)
    assert made.status == 201, made
    async with attach(back, made.json()["kernel"]["id"]) as ws:
        done = await ws.execute("import os; print(os.getcwd(), os.environ['LC_TIME'])")
        assert done.text() == f"{back.home.resolve() / 'sub'} C.UTF-8\n"
    await front.call("DELETE", f"/api/sessions/{made.json()['id']}")


Front = Callable[[Server], Server]


@pytest.fixture
def new_front(tmp_path: Path) -> Iterator[Front]:
    """Start a Jupyter Server with the extension in front of a gateway."""
    require("jupyter_server")
    running: list[Server] = []

    def start(back: Server) -> Server:
        front = jupyter_server(
            tmp_path,
            f"--gateway-url={back.url}",
            f"--GatewayClient.auth_token={TOKEN}",
            "--ServerApp.disable_check_xsrf=True",
        )
        running.append(front)
        return front.start()

    try:
        yield start
        for front in running:
            front.assert_clean_log()
    finally:
        for front in running:
            front.kill()


@pytest.mark.slow
async def test_executions_and_their_websocket_pass_the_extension(
    server: Server, new_front: Front, own_kernel: str
) -> None:
    front = new_front(server)
    assert "requests for executions are forwarded to it" in front.log.read_text()
    executions = f"/api/kernels/{own_kernel}/executions"
    assert (await front.call("GET", executions)).json() == []
    path = f"ws://127.0.0.1:{front.port}/kbridge/kernels/{own_kernel}/channels"
    headers = {"Authorization": f"token {TOKEN}"}
    big = bytes(range(256)) * (16 << 10)  # 4 MiB
    async with dial(
        f"{path}?session_id=a-page", session="a-page", additional_headers=headers
    ) as ws:
        first = await ws.execute("print('through')")
        assert first.text() == "through\n"
        await ws.execute(_ECHO_BUFFERS)
        opened = {"comm_id": "c", "target_name": "echo", "data": {}}
        await ws.send("comm_open", opened)
        sent = {"comm_id": "c", "data": {}}
        await ws.send("comm_msg", sent, buffers=[big])
        *_, echo = await ws.until(lambda m: m["header"]["msg_type"] == "comm_msg")
        assert [bytes(buffer) for buffer in echo["buffers"]] == [big]
    # The end of the page's websocket reaches the gateway a little later.
    of_page = f"{executions}?session_id=a-page"
    await eventually_gone(server, of_page)
    found = (await front.call("GET", of_page)).json()
    assert [(e["id"], e["state"]) for e in found][:1] == [(first.msg_id, "done")]
    assert found == (await server.call("GET", executions)).json()
    follow = f"{path}?session_id=another&parents={first.msg_id}"
    async with dial(follow, session="another", additional_headers=headers) as ws:
        assert (await ws.finish(first.msg_id)).types == first.types
        assert {m["parent_header"].get("msg_id") for m in ws.seen} == {first.msg_id}
    one = f"{executions}/{first.msg_id}"
    assert (await front.call("GET", one)).json() == found[0]
    assert (await front.call("GET", f"{executions}?state=busy")).status == 400
    assert (await front.call("DELETE", one)).status == 204
    assert (await front.call("DELETE", one)).status == 404
    assert (await server.call("GET", one)).status == 404


async def eventually_gone(server: Server, executions: str) -> None:
    """Wait until the session of some executions has no websocket."""

    def is_gone() -> bool:
        return not any(e["connected"] for e in server.request("GET", executions).json())

    await asyncio.to_thread(eventually, is_gone, "the session has gone")


# A kernel that sends the buffers of a comm message back.
_ECHO_BUFFERS = """
def echo(comm, opened):
    comm.on_msg(lambda msg: comm.send({}, buffers=msg["buffers"]))
get_ipython().kernel.comm_manager.register_target("echo", echo)
"""


@pytest.mark.slow
async def test_a_gateway_without_executions_has_none(
    new_server: ServerFactory, new_front: Front
) -> None:
    require("jupyter_server")
    back = new_server(
        "--ServerApp.jpserver_extensions=kbridge=False",
        *("--ServerApp.disable_check_xsrf=True", "--no-browser", "--allow-root"),
        "--ip=127.0.0.1",
        command=[sys.executable, "-m", "jupyter_server"],
    )
    front = new_front(back)
    kernel = front.start_kernel()
    assert (await front.call("GET", f"/api/kernels/{kernel}/executions")).status == 404
    path = f"ws://127.0.0.1:{front.port}/kbridge/kernels/{kernel}/channels"
    async with dial(path, additional_headers={"Authorization": f"token {TOKEN}"}) as ws:
        assert (await ws.execute("print('through')")).text() == "through\n"
    front.stop_kernel(kernel)
