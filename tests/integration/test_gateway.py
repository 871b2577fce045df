"""Jupyter Server, unmodified, with kbridge behind it as its kernel gateway."""

from __future__ import annotations

import sys

import pytest

from tests.conftest import ServerFactory
from tests.support.client import SLEEP, attach
from tests.support.require import require
from tests.support.server import TOKEN, Server

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
