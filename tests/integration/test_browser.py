"""A real Chromium runs a cell from the unchanged page in examples/."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlencode

import pytest

from kbridge.link.holder.client import is_supported
from tests.conftest import ServerFactory
from tests.integration.test_holder import ARGS
from tests.support.browser import chromium_page, served
from tests.support.client import SLEEP
from tests.support.network import network_to
from tests.support.require import require
from tests.support.restartable_server import RestartableServer
from tests.support.server import LINK, TOKEN
from tests.support.waiting import TIMEOUT

pytestmark = [pytest.mark.kernel, pytest.mark.browser, pytest.mark.slow]

EXAMPLES = Path(__file__).parents[2] / "examples"
CODE = """
import sys
print("héllo from", sys.implementation.name)
print("beware", file=sys.stderr)
from IPython.display import Image, display
import base64
display(Image(base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    "AAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="), format="png"))
6 * 7
"""


async def test_a_page_of_an_allowed_origin_runs_cells(new_server: ServerFactory) -> None:
    with served(EXAMPLES) as origin:
        server = new_server(f"--allow-origin={origin}")
        async with chromium_page() as page:
            page.set_default_timeout(TIMEOUT * 1000)
            query = urlencode({"url": server.url, "token": TOKEN, "code": CODE})
            await page.goto(f"{origin}/browser.html?{query}")
            assert TOKEN not in page.url
            await page.click("#run")
            await page.wait_for_selector("#run:enabled")
            await page.wait_for_selector("#status[data-state=idle]")
            for kind, text in (
                ("stdout", "héllo from cpython\n"),
                ("stderr", "beware\n"),
                ("result", "42\n"),
            ):
                # ipykernel may split a line, and another stream may be in between.
                assert "".join(await page.locator(f".{kind}").all_text_contents()) == text
            image = page.locator("#output img")
            assert await image.evaluate("i => [i.complete, i.naturalWidth]") == [True, 1]
            # Use the same kernel again; cause an error, an interrupt and a shutdown.
            await page.fill("#code", "sys.undefined")
            await page.click("#run")
            await page.wait_for_selector("#output .error")
            assert "AttributeError" in await page.inner_text("#output .error")
            await page.fill("#code", SLEEP)
            await page.wait_for_selector("#run:enabled")
            await page.click("#run")
            await page.wait_for_selector("#output .stdout")
            await page.click("#interrupt")
            await page.wait_for_selector("#output .error")
            assert "KeyboardInterrupt" in await page.inner_text("#output .error")
            await page.wait_for_selector("#run:enabled")  # the reply has arrived too
            await page.click("#shutdown")
            await page.wait_for_selector("#status[data-state=none]")
        assert server.request("GET", "/api/kernels").json() == []


# Print a line, wait for a file, print a hundred more lines.
IN_TWO_PARTS = """import pathlib, time
print("first")
while not pathlib.Path({gate!r}).exists(): time.sleep(0.01)
for n in range(100): print("line", n, flush=True)"""


async def test_a_page_that_was_away_shows_the_whole_output(
    new_server: ServerFactory, tmp_path: Path
) -> None:
    gates = [tmp_path / "gate-1", tmp_path / "gate-2"]
    with served(EXAMPLES) as origin:
        server = new_server(f"--allow-origin={origin}")
        async with network_to(server.port) as network, chromium_page() as page:
            page.set_default_timeout(TIMEOUT * 1000)
            await page.goto(
                f"{origin}/browser.html?{urlencode({'url': network.url, 'token': TOKEN})}"
            )

            async def run(code: str) -> None:
                await page.fill("#code", code)
                await page.click("#run")

            async def shows(text: str) -> None:
                await page.wait_for_function(
                    "text => [...document.querySelectorAll('#output .stdout')]"
                    ".map(pre => pre.textContent).join('') === text",
                    arg=text,
                )

            lines = "".join(f"line {n}\n" for n in range(100))
            code = IN_TWO_PARTS.format(gate=str(gates[0]))
            await run(code)
            await shows("first\n")
            await page.reload()  # while the code runs
            await shows("first\n")
            assert await page.input_value("#code") == code
            gates[0].touch()
            await shows("first\n" + lines)
            await page.wait_for_selector("#run:enabled")
            await page.reload()  # after its end
            await shows("first\n" + lines)
            await page.wait_for_selector("#run:enabled")
            await run(IN_TWO_PARTS.format(gate=str(gates[1])))
            await shows("first\n")
            await network.reset()  # a lost connection
            gates[1].touch()
            await shows("first\n" + lines)
            await page.wait_for_selector("#run:enabled")
            await run("print(input('who? '))")
            await page.wait_for_selector("#output form")
            await page.reload()  # while the code waits for an answer
            await page.fill("#output input", "me")
            await page.press("#output input", "Enter")
            await shows("who? me\nme\n")
            await page.wait_for_selector("#run:enabled")
            await run(SLEEP)
            await page.wait_for_selector("#output .stdout")
            await page.reload()
            await page.wait_for_selector("#output .stdout")
            await page.click("#interrupt")
            await page.wait_for_selector("#output .error")
            assert "KeyboardInterrupt" in await page.inner_text("#output .error")


@pytest.mark.skipif(not is_supported() or LINK == "pyzmq", reason="connections do not stay")
async def test_a_page_shows_the_whole_output_after_a_crash_of_the_server(tmp_path: Path) -> None:
    require("ipykernel")
    gate = tmp_path / "gate"
    with served(EXAMPLES) as origin:
        server = RestartableServer(tmp_path, *ARGS, f"--allow-origin={origin}")
        try:
            server.start()
            async with chromium_page() as page:
                page.set_default_timeout(TIMEOUT * 1000)
                code = IN_TWO_PARTS.format(gate=str(gate))
                query = urlencode({"url": server.url, "token": TOKEN, "code": code})
                await page.goto(f"{origin}/browser.html?{query}")
                await page.click("#run")
                await page.wait_for_selector("#output .stdout")
                server.crash()
                gate.touch()
                await page.wait_for_selector("#status[data-state=error]")
                await asyncio.to_thread(server.start)
                await page.wait_for_selector("#run:enabled")
                shown = "".join(await page.locator("#output pre").all_text_contents())
                assert shown == "first\n" + "".join(f"line {n}\n" for n in range(100))
        finally:
            server.kill()


async def test_a_page_of_another_origin_is_refused(new_server: ServerFactory) -> None:
    with served(EXAMPLES) as allowed, served(EXAMPLES) as foreign:
        server = new_server(f"--allow-origin={allowed}")
        kernel = server.start_kernel()
        async with chromium_page() as page:
            page.set_default_timeout(TIMEOUT * 1000)
            await page.goto(f"{foreign}/browser.html?{urlencode({'url': server.url})}")
            await page.fill("#token", TOKEN)
            await page.click("#run")
            await page.wait_for_selector("#status[data-state=error]")
            assert [k["id"] for k in server.request("GET", "/api/kernels").json()] == [kernel]
            # The browser hides REST answers from the page; the server must refuse the websocket.
            opened = """([url]) => new Promise(done => {
                const socket = new WebSocket(url, ["v1.kernel.websocket.jupyter.org"]);
                socket.onopen = () => done("opened");
                socket.onclose = (event) => done(`closed ${event.code}`);
            })"""
            url = f"ws://127.0.0.1:{server.port}/api/kernels/{kernel}/channels?token={TOKEN}"
            assert await page.evaluate(opened, [url]) == "closed 1006"
            await page.goto(f"{allowed}/browser.html")
            assert await page.evaluate(opened, [url]) == "opened"
