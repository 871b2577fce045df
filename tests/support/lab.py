"""JupyterLab as a user sees it: a server process, and notebooks in a browser."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import nbformat
import pytest

from tests.support import browser
from tests.support.network import Network, network_to
from tests.support.require import require
from tests.support.server import TOKEN, Server
from tests.support.waiting import TIMEOUT

if TYPE_CHECKING:
    from playwright.async_api import Locator, LocatorAssertions, Page

__all__ = [
    "Cell",
    "Lab",
    "Notebook",
    "Place",
    "expect",
    "jupyter_lab",
    "lab_page",
    "with_extension",
    "with_gateway",
]

# A directory for screenshots; None: do not save any.
_SCREENSHOTS = os.environ.get("KBRIDGE_SCREENSHOTS")
# News and updates would be requested from the internet; invisible cells would not be drawn.
_SETTINGS: dict[str, dict[str, Any]] = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
_KERNELSPEC = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
# The page's information about the kernel of the active notebook.
_KERNEL = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
_UNREACHABLE = "Server Connection Error"
# Errors of JupyterLab, which does not catch the failure of its requests when a kernel restarts.
_TOLERATED = re.compile("Canceled future for .* before replies were done")


def expect(locator: Locator) -> LocatorAssertions:
    """Playwright's `expect`, with this suite's timeout."""
    from playwright.async_api import expect

    expect.set_options(timeout=TIMEOUT * 1000)
    return expect(locator)


def jupyter_lab(home: Path, *args: str) -> Server:
    """Create a JupyterLab that makes no requests to the internet, without starting it."""
    for name, values in _SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    (home / "notebooks").mkdir()
    return Server(
        home,
        *("--ip=127.0.0.1", "--no-browser", "--allow-root"),
        f"--ServerApp.root_dir={home / 'notebooks'}",
        f"--LabApp.user_settings_dir={home / 'settings'}",
        f"--LabApp.workspaces_dir={home / 'workspaces'}",
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.extension_manager=readonly",
        *args,
        command=[sys.executable, "-m", "jupyterlab"],
    )


@asynccontextmanager
async def lab_page(url: str, home: Path) -> AsyncIterator[Lab]:
    """Load JupyterLab from `url`, a URL of the server whose home is `home`, with nothing open."""
    executable = require("chromium", "playwright")
    from playwright.async_api import async_playwright

    faults: list[str] = []
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(
            executable_path=executable, args=browser._ARGUMENTS, headless=True
        )
        page = await chromium.new_page(viewport={"width": 1100, "height": 700})
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.set_default_timeout(TIMEOUT * 1000)
        try:
            await page.goto(f"{url}/lab?reset&token={TOKEN}")
            await page.wait_for_function("window.jupyterapp?.restored.then(() => true)")
            lab = Lab(page, home)
            # The dialog appears at any time after a failed request, and covers the page.
            await page.add_locator_handler(_unreachable(page), lab._close_dialog)
            yield lab
        finally:
            await chromium.close()
    untold = [fault for fault in faults if not _TOLERATED.search(fault)]
    assert not untold, untold


class Place(NamedTuple):
    """JupyterLab in a page, and its servers and networks.

    `front` is the network between the page and JupyterLab, `back` the one between JupyterLab and
    kbridge; None if kbridge runs inside JupyterLab's server.
    """

    lab: Lab
    kernels: Server
    front: Network
    back: Network | None = None

    async def picture(self, name: str) -> None:
        if self.back is None:
            await self.lab.screenshot(name)

    async def open(self) -> Notebook:
        """Open a new notebook, after restoring the network."""
        await self.restore()
        return await self.lab.open()

    async def restore(self) -> None:
        for network in filter(None, (self.front, self.back)):
            await network.restore()


@asynccontextmanager
async def with_extension(home: Path) -> AsyncIterator[Place]:
    """Run JupyterLab with the installed extension."""
    require("jupyterlab", "ipywidgets", "ipykernel")
    async with AsyncExitStack() as stack:
        server = jupyter_lab(home)
        stack.callback(server.kill)
        front = await stack.enter_async_context(network_to(server.start().port))
        lab = await stack.enter_async_context(lab_page(front.url, home))
        yield Place(lab, server, front)
        server.stop()
        server.assert_clean_log()


@asynccontextmanager
async def with_gateway(home: Path, kernels: Server, *args: str) -> AsyncIterator[Place]:
    """Run JupyterLab with a new server as its gateway."""
    require("jupyterlab", "ipywidgets", "ipykernel")
    async with AsyncExitStack() as stack:
        stack.callback(kernels.kill)
        back = await stack.enter_async_context(network_to(kernels.start().port))
        options = f"--gateway-url={back.url}", f"--GatewayClient.auth_token={TOKEN}"
        server = jupyter_lab(home, *options, *args)
        stack.callback(server.kill)
        front = await stack.enter_async_context(network_to(server.start().port))
        lab = await stack.enter_async_context(lab_page(front.url, home))
        yield Place(lab, kernels, front, back)
        server.stop()
        kernels.stop()
        kernels.assert_clean_log()


def _unreachable(page: Page) -> Locator:
    return page.locator(".jp-Dialog", has_text=_UNREACHABLE)


class Lab:
    """JupyterLab in a page. Made by `lab_page`."""

    def __init__(self, page: Page, home: Path) -> None:
        self.page = page
        self._home = home
        self._numbers = itertools.count(1)
        self._unreachable = _unreachable(page)

    async def open(self) -> Notebook:
        """Open a new notebook, and wait for its kernel."""
        if await self._unreachable.is_visible():
            await self._close_dialog()
        name = f"notebook-{next(self._numbers)}.ipynb"
        document = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell()], metadata={"kernelspec": _KERNELSPEC}
        )
        nbformat.write(document, self._home / "notebooks" / name)
        await self.page.evaluate(
            "async path => { await window.jupyterapp.commands.execute('docmanager:open', {path}) }",
            name,
        )
        notebook = Notebook(self.page)
        await notebook.ready()
        return notebook

    async def _close_dialog(self, *_: object) -> None:
        await self._unreachable.get_by_role("button", name="Close").click()

    @asynccontextmanager
    async def slow(self, times: int = 4) -> AsyncIterator[None]:
        """Slow down the processor of the page."""
        chromium = await self.page.context.new_cdp_session(self.page)
        await chromium.send("Emulation.setCPUThrottlingRate", {"rate": times})
        try:
            yield
        finally:
            await chromium.send("Emulation.setCPUThrottlingRate", {"rate": 1})
            await chromium.detach()

    async def screenshot(self, name: str) -> None:
        """Save a screenshot, if a directory for them is set."""
        if _SCREENSHOTS:
            await self.page.screenshot(path=Path(_SCREENSHOTS) / f"lab-{name}.png")


class Notebook:
    """The active notebook."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.dialog = page.locator(".jp-Dialog")
        self._cells = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell")

    async def connected(self) -> str:
        """Wait until the page is connected to a kernel; return its id."""
        await self.page.wait_for_function(f"{_KERNEL}?.connectionStatus === 'connected'")
        return str(await self.page.evaluate(f"{_KERNEL}.id"))

    async def ready(self) -> str:
        """Wait until the page shows its kernel as idle; return the id of the kernel."""
        await self.page.wait_for_function(
            f"{_KERNEL}?.connectionStatus === 'connected' && {_KERNEL}.status === 'idle'"
        )
        return str(await self.page.evaluate(f"{_KERNEL}.id"))

    def cell(self, number: int) -> Cell:
        return Cell(self._cells.nth(number))

    async def start(self, code: str) -> Cell:
        """Type code into the last cell and run it, which adds a new cell below."""
        cell = self.cell(await self._cells.count() - 1)
        await cell.locator.locator(".cm-content").click()
        await self.page.keyboard.insert_text(code)
        await self.page.keyboard.press("Shift+Enter")
        return cell

    async def run(self, code: str) -> Cell:
        """Run a cell and wait for its end."""
        cell = await self.start(code)
        await cell.done()
        return cell

    async def prepare(self, code: str) -> None:
        """Run code without a cell."""
        await self.page.evaluate(
            f"async code => {{ await {_KERNEL}.requestExecute({{code, silent: true}}).done }}", code
        )

    async def count_outputs(self) -> None:
        """Start to count the messages that the page receives from its kernel, and to store printed
        text.

        Ignores stderr, where ipykernel logs requests of JupyterLab for missing widgets.
        """
        await self.page.evaluate(
            "() => { window.outputs = 0; window.texts = [];"
            f" {_KERNEL}.iopubMessage.connect((_, message) => {{ window.outputs++;"
            " if (message.content.name === 'stdout') window.texts.push(message.content.text) }) }"
        )

    async def outputs(self) -> int:
        return int(await self.page.evaluate("window.outputs"))

    async def received(self) -> str:
        """Return the text on stdout since `count_outputs`, even if it is not drawn."""
        return str(await self.page.evaluate("window.texts.join('')"))

    async def choose(self, menu: str, item: str) -> None:
        """Select a menu item."""
        await self.page.locator(".lm-MenuBar-item", has_text=menu).click()
        await self.page.locator(".lm-Menu-item", has_text=item).click()

    async def accept(self) -> None:
        """Accept the dialog."""
        await self.dialog.locator(".jp-mod-accept").click()

    async def connection_error(self) -> None:
        """Wait until JupyterLab reports that it cannot reach its server.

        Does not use the locator of the dialog, because waiting for it calls the handler that closes
        it.
        """
        await self.page.wait_for_function(
            "title => [...document.querySelectorAll('.jp-Dialog')]"
            ".some(dialog => dialog.textContent.includes(title))",
            arg=_UNREACHABLE,
        )

    async def save(self) -> None:
        await self.page.evaluate("window.jupyterapp.shell.currentWidget.context.save()")

    async def close(self) -> None:
        """Save the notebook, end its kernel and close it."""
        await self.save()
        await self.page.evaluate(
            """async () => {
                const panel = window.jupyterapp.shell.currentWidget;
                await panel.sessionContext.shutdown();
                panel.dispose();
            }"""
        )


class Cell:
    """A code cell and its output."""

    def __init__(self, locator: Locator) -> None:
        self.locator = locator
        self.output = locator.locator(".jp-OutputArea-output")
        self.question = locator.locator(".jp-Stdin-input")

    def stream(self, name: str) -> Locator:
        """The outputs of stdout or stderr; there may be several."""
        return self.locator.locator(f'[data-mime-type="application/vnd.jupyter.{name}"]')

    async def text(self, name: str = "stdout") -> str:
        """The text of all outputs of one stream."""
        return "".join(await self.stream(name).locator("pre").all_text_contents())

    async def shows(self, text: str, name: str = "stdout") -> None:
        """Wait until a text is the whole output of one stream."""
        shown: str | None = None
        try:
            async with asyncio.timeout(TIMEOUT):
                while (shown := await self.text(name)) != text:
                    await self.locator.page.evaluate("() => new Promise(requestAnimationFrame)")
        except TimeoutError:
            pairs = zip_longest(shown or "", text)
            differs = next(n for n, (one, other) in enumerate(pairs) if one != other)
            pytest.fail(f"{name} differs from {differs} on: {(shown or '')[differs:][:99]!r}")

    async def done(self) -> None:
        """Wait until the kernel has replied to the execution of the cell."""
        await expect(self.locator.locator(".jp-InputPrompt")).to_have_text(re.compile(r"\[\d+\]:"))
