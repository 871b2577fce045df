"""The live page in a real Chromium, with real kernels."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ServerFactory
from tests.support.axe import findings
from tests.support.browser import chromium_page
from tests.support.jupyter_server import jupyter_server
from tests.support.require import require
from tests.support.restartable_server import RestartableServer
from tests.support.server import TOKEN, Server
from tests.support.waiting import TIMEOUT, eventually

if TYPE_CHECKING:
    from playwright.async_api import Locator, Page

pytestmark = [pytest.mark.kernel, pytest.mark.browser, pytest.mark.slow]

# Runs code on a kernel, as a page that stays connected.
RUN = """async ([kernelId, code, url]) => {
    const {connect} = await import(new URL("kbridge.js", location.href));
    const kernel = connect({url}).kernel(kernelId);
    const execution = kernel.execute(code);
    globalThis.started = (async () => { for await (const _ of execution) { } })();
    globalThis.started.catch(() => {});
}"""
ENDLESS = "import time\nwhile True:\n    print('x' * 1000, flush=True)\n    time.sleep(0.05)"
HOSTILE = "<img src=x onerror='globalThis.hacked = true'>.ipynb"


@asynccontextmanager
async def open_page(server: Server, path: str = "", **options: Any) -> AsyncIterator[Page]:
    """Open the page with the token; what its policy blocks fails the test."""
    async with chromium_page(**options) as page:
        page.set_default_timeout(TIMEOUT * 1000)
        blocked: list[str] = []
        page.on(
            "console",
            lambda line: "Security Policy" in line.text and blocked.append(line.text),
        )
        await page.goto(f"{server.url}/{path}?token={TOKEN}")
        await page.wait_for_selector("#connection[data-state=live]")
        assert TOKEN not in page.url
        yield page
        assert blocked == []


def card(page: Page, kernel_id: str) -> Locator:
    return page.locator(f"[data-kernel='{kernel_id}']")


async def wait_state(page: Page, kernel_id: str, state: str) -> None:
    await page.wait_for_selector(f"[data-kernel='{kernel_id}'] .states > [data-state={state}]")


def kernels_of(server: Server) -> list[str]:
    return [kernel["id"] for kernel in server.request("GET", "/api/kernels").json()]


async def test_kernels_are_started_watched_and_ended(new_server: ServerFactory) -> None:
    server = new_server()
    async with open_page(server) as page:
        await page.wait_for_selector("text=No kernel is running.")
        await page.route("**/api/kernelspecs", lambda route: route.abort())
        await page.click("#start")
        await page.click("#notices .notice[data-kind=error] button")
        assert await page.is_hidden("#start-dialog"), "there is nothing to choose from"
        await page.unroute("**/api/kernelspecs")
        await page.dblclick("#start")  # starts one kernel
        await page.click("#specs label:has-text('python3')")
        await page.click("#start-dialog button[value=start]")
        await page.wait_for_selector("[data-kernel]")
        await page.wait_for_selector("#notices .notice", state="detached")
        [kernel_id] = kernels_of(server)
        await wait_state(page, kernel_id, "idle")
        assert await page.inner_text("#count") == "1"

        await page.evaluate(RUN, [kernel_id, ENDLESS])
        await wait_state(page, kernel_id, "busy")
        shown = card(page, kernel_id)
        await shown.locator(".executions [data-state=running]").wait_for()
        await shown.locator(".clients tbody tr").wait_for()
        # A rate, memory, and a line in the chart.
        await shown.locator(".value", has_text=re.compile(r" kB/s$")).first.wait_for()
        assert "MB" in await shown.locator(".facts").inner_text()
        assert await shown.locator(".line").first.get_attribute("d")
        assert await page.title() == "(1) kbridge"

        await shown.locator("[data-action=interrupt]").click()
        await shown.locator(".executions [data-state=error]").wait_for()
        await wait_state(page, kernel_id, "idle")

        await shown.locator("[data-action=restart]").click()
        await page.click("#confirm-dialog [value=cancel]")
        assert kernels_of(server) == [kernel_id]
        await shown.locator("[data-action=restart]").click()
        await page.click("#confirm-button")
        eventually(lambda: "restarted" in server.log.read_text(), "the kernel was restarted")
        await wait_state(page, kernel_id, "idle")

        await shown.locator("[data-action='shut down']").click()
        await page.click("#confirm-button")
        await shown.wait_for(state="detached")
        await page.wait_for_selector("#empty:visible")
        assert kernels_of(server) == []


async def test_a_kernel_that_does_not_start_says_why(new_server: ServerFactory) -> None:
    server = new_server()
    async with open_page(server) as page:
        await page.click("#start")
        await page.click("#specs label:has-text('broken')")
        await page.click("#start-dialog button[value=start]")
        await page.wait_for_selector(".notice[data-kind=error]")
        assert "did not start" in await page.inner_text(".notice p")
        assert "this kernel has no engine" in await page.inner_text(".notice pre")
        await page.click(".notice button")
        await page.wait_for_selector(".notice", state="detached")


async def test_the_page_returns_with_the_server(own_server: RestartableServer) -> None:
    own_server.start()
    async with open_page(own_server) as page:
        await asyncio.to_thread(own_server.crash)
        await page.wait_for_selector("#connection:not([data-state=live])")
        await asyncio.to_thread(own_server.start)
        await page.wait_for_selector("#connection[data-state=live]")


async def test_a_page_whose_cookie_is_refused_leads_to_the_login(
    own_server: RestartableServer,
) -> None:
    own_server.start()
    async with open_page(own_server) as page:
        await asyncio.to_thread(own_server.crash)
        await asyncio.to_thread(own_server.start, "--token=another-one")
        await page.wait_for_url("**/login?next=*")
        await page.fill("input[type=password]", "another-one")
        await page.press("input[type=password]", "Enter")
        await page.wait_for_selector("#connection[data-state=live]")


async def test_names_of_users_are_text(new_server: ServerFactory) -> None:
    server = new_server()
    kernel_id = server.start_kernel()
    session = {
        "name": HOSTILE,
        "path": HOSTILE,
        "type": "notebook",
        "kernel": {"id": kernel_id},
    }
    assert server.request("POST", "/api/sessions", session).status == 201
    async with open_page(server) as page:
        await page.wait_for_selector(".document:has-text('.ipynb')")
        assert await card(page, kernel_id).locator(".document").inner_text() == HOSTILE
        await card(page, kernel_id).locator("[data-action=restart]").click()
        assert HOSTILE in await page.inner_text("#confirm-title")
        assert await page.evaluate("globalThis.hacked") is None
        assert await page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize(
    "options",
    [
        {"color_scheme": "light"},
        {"color_scheme": "dark"},
        {"color_scheme": "light", "viewport": {"width": 380, "height": 800}},
        {"color_scheme": "dark", "viewport": {"width": 380, "height": 800}},
    ],
    ids=["light", "dark", "light phone", "dark phone"],
)
@pytest.mark.timeout(700)
async def test_axe_finds_nothing(
    new_server: ServerFactory, node_modules: Path, options: dict[str, Any]
) -> None:
    server = new_server()
    idle, busy = server.start_kernel(), server.start_kernel()
    async with open_page(server, reduced_motion="reduce", **options) as page:
        await page.evaluate(RUN, [busy, ENDLESS])
        await wait_state(page, idle, "idle")
        await wait_state(page, busy, "busy")
        await card(page, busy).locator(".clients tbody tr").wait_for()
        assert await findings(page, node_modules) == []
        width = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert width <= 0, "nothing is wider than the screen"
        await page.click("#start")
        await page.wait_for_selector("#specs label")
        assert await findings(page, node_modules) == []
        await page.click("#specs label:has-text('broken')")
        await page.click("#start-dialog button[value=start]")
        await page.wait_for_selector(".notice[data-kind=error]")
        assert await findings(page, node_modules) == []
        await card(page, idle).locator("[data-action='shut down']").click()
        assert await findings(page, node_modules) == []
        await page.keyboard.press("Escape")
        await page.wait_for_selector("#confirm-dialog", state="hidden")
        assert sorted(kernels_of(server)) == sorted([idle, busy])


async def test_in_jupyter_server(tmp_path: Path) -> None:
    """A start and an end: requests repeat Jupyter Server's cookie in a header."""
    require("ipykernel")
    server = jupyter_server(tmp_path)
    server.start()
    try:
        async with open_page(server, "kbridge/") as page:
            assert await page.locator("#logout").count() == 0
            await page.click("#start")
            await page.click("#specs label:has-text('python3')")
            await page.click("#start-dialog button[value=start]")
            await page.wait_for_selector("[data-kernel]")
            [kernel_id] = kernels_of(server)
            await page.evaluate(RUN, [kernel_id, ENDLESS, server.url])
            await card(page, kernel_id).locator(".executions [data-state=running]").wait_for()
            await card(page, kernel_id).locator("[data-action='shut down']").click()
            await page.click("#confirm-button")
            await page.wait_for_selector("#empty:visible")
    finally:
        server.kill()
