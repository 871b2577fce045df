"""JupyterLab as a user sees it: a server process, and notebooks in a browser."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import nbformat

from tests.support import browser
from tests.support.gates import Gates
from tests.support.network import Network, network_to
from tests.support.notebook import UNREACHABLE, Notebook
from tests.support.require import require
from tests.support.server import TOKEN, Server
from tests.support.waiting import TIMEOUT, eventually

if TYPE_CHECKING:
    from playwright.async_api import Browser, Locator, Page, Request

__all__ = [
    "Lab",
    "Place",
    "change_settings",
    "jupyter_lab",
    "lab_page",
    "with_extension",
    "with_gateway",
]

# A directory for screenshots; None: do not save any.
_SCREENSHOTS = os.environ.get("KBRIDGE_SCREENSHOTS")
# News and updates would be requested from the internet; invisible cells would not be drawn.
_SETTINGS: dict[str, dict[str, Any]] = {
    "@jupyterlab/apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
    },
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}
# Defines gates that all open at once.
_ONE_GATE = """\
import pathlib, time

def gate(name):
    while not pathlib.Path({path!r}).exists():
        time.sleep(0.01)
"""
_EVENTS = 40
_EVENT_LENGTH = 200
_KERNELSPEC = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
# Notes the texts of the status bar item.
_WATCH_STATUS = """
window.statusTexts = [];
new MutationObserver(() => {
    const text = document.querySelector('.kb-Status')?.textContent;
    if (text && text !== window.statusTexts.at(-1)) window.statusTexts.push(text);
}).observe(document, {subtree: true, childList: true, characterData: true});
"""
# Errors of JupyterLab: it does not catch the failure of its requests when a kernel restarts, and a
# toolbar that is disposed right after it was shown uses its timer once more. Notebook 7 loads the
# settings of another plugin before those of its shortcuts. ipywidgets does not expect that a
# notebook is closed while its kernel restarts.
_TOLERATED = re.compile(
    r"Canceled future for .* before replies were done|reading 'promise'\)\s+at \w+\.invoke"
    r"|reading 'schema'\)\s+at \S+/notebook_core\."
    r"|reading 'kernel'\)\s+at \w+ \(\S+/@jupyter-widgets/"
)


def _settings(home: Path, plugin: str) -> Path:
    return home / "settings" / f"{plugin}.jupyterlab-settings"


def change_settings(home: Path, plugin: str, **values: Any) -> None:
    """Write the user's settings of a JupyterLab plugin; a page reads them when it loads."""
    path = _settings(home, plugin)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def jupyter_lab(home: Path, *args: str, env: Mapping[str, str] | None = None) -> Server:
    """Create a JupyterLab that makes no requests to the internet, without starting it."""
    for plugin, values in _SETTINGS.items():
        change_settings(home, plugin, **values)
    (home / "notebooks").mkdir()
    return Server(
        home,
        *("--ip=127.0.0.1", "--no-browser", "--allow-root"),
        f"--ServerApp.root_dir={home / 'notebooks'}",
        f"--LabApp.user_settings_dir={home / 'settings'}",
        f"--LabApp.workspaces_dir={home / 'workspaces'}",
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.extension_manager=readonly",
        "--JupyterNotebookApp.expose_app_in_browser=True",
        *args,
        env=env,
        command=[sys.executable, "-m", "jupyterlab"],
    )


@asynccontextmanager
async def lab_page(url: str, server: Server) -> AsyncIterator[Lab]:
    """Load JupyterLab from `url`, a URL of the server, with nothing open."""
    executable = require("chromium", "playwright")
    from playwright.async_api import async_playwright

    faults: list[str] = []
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(
            executable_path=executable, args=browser._ARGUMENTS, headless=True
        )
        try:
            yield await _new_page(chromium, Site(url, server, faults, deque(maxlen=_EVENTS)))
        finally:
            await chromium.close()
    untold = [fault for fault in faults if not _TOLERATED.search(fault)]
    assert not untold, untold


class Site(NamedTuple):
    """A Jupyter server, its URL for pages, the errors of its pages, and their latest events."""

    url: str
    server: Server
    faults: list[str]
    events: deque[str]


async def _new_page(chromium: Browser, site: Site) -> Lab:
    """Open a window that shares nothing with other windows, as another browser would."""
    context = await chromium.new_context(viewport={"width": 1100, "height": 700})
    page = await context.new_page()
    page.set_default_timeout(TIMEOUT * 1000)
    page.on("pageerror", lambda error: site.faults.append(error.stack or str(error)))
    _note_events(page, site.events)
    # JupyterLab asks before it leaves a notebook with changes.
    page.on("dialog", lambda dialog: dialog.accept())
    lab = Lab(page, site)
    await lab.come_back()
    # The dialog appears at any time after a failed request, and covers the page.
    await page.add_locator_handler(_unreachable(page), lab._close_dialog)
    return lab


def _note_events(page: Page, events: deque[str]) -> None:
    """Note what a page does, for `Lab.history`."""

    def note(what: str, text: str) -> None:
        events.append(f"{datetime.now(UTC):%H:%M:%S.%f} {what} {text[:_EVENT_LENGTH]}")

    def request(what: str, sent: Request) -> None:
        if "/api/kernels" in sent.url or "/api/sessions" in sent.url:
            path = urlsplit(sent.url).path
            note(what, f"{sent.method} {path} {sent.failure or ''}")

    page.on("console", lambda message: note("console", message.text))
    page.on("pageerror", lambda error: note("error", str(error)))
    page.on("crash", lambda _: note("crash", "the page is gone"))
    page.on("dialog", lambda dialog: note("dialog", dialog.message))
    page.on("websocket", lambda socket: note("websocket", urlsplit(socket.url).path))
    page.on("request", lambda sent: request("request", sent))
    page.on("requestfailed", lambda sent: request("failed", sent))
    page.on("response", lambda reply: request(f"{reply.status}", reply.request))


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
async def with_extension(
    home: Path, *args: str, env: Mapping[str, str] | None = None, foreign: bool = False
) -> AsyncIterator[Place]:
    """Run JupyterLab with the installed extension.

    `foreign` is true if the server has other extensions, whose errors in the log do not count.
    """
    require("jupyterlab", "ipywidgets", "ipykernel")
    async with AsyncExitStack() as stack:
        server = jupyter_lab(home, *args, env=env)
        stack.callback(server.kill)
        front = await stack.enter_async_context(network_to(server.start().port))
        lab = await stack.enter_async_context(lab_page(front.url, server))
        yield Place(lab, server, front)
        await lab.close()
        await asyncio.to_thread(server.end)
        server.assert_clean_log(foreign=foreign)


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
        lab = await stack.enter_async_context(lab_page(front.url, server))
        yield Place(lab, kernels, front, back)
        await lab.close()
        await asyncio.to_thread(server.end)
        await asyncio.to_thread(kernels.stop)
        kernels.assert_clean_log()


def _unreachable(page: Page) -> Locator:
    return page.locator(".jp-Dialog", has_text=UNREACHABLE)


class Lab:
    """JupyterLab in a page. Made by `lab_page`."""

    def __init__(self, page: Page, site: Site) -> None:
        self.page = page
        self._site = site
        self._numbers = itertools.count(1)
        self._loaded_settings = False  # True if the page may have the settings of one test
        self._unreachable = _unreachable(page)
        self.status = page.locator(".kb-Status")
        self.is_notebook = False
        """True for the application Notebook, which shows each notebook in a separate page."""

    def history(self) -> str:
        """Return what the pages and the server have done last, for the report of a failure."""
        return "\n".join([*self._site.events, "-- server", self._site.server.tail(_EVENTS)])

    @contextmanager
    def settings(self, plugin: str, **values: Any) -> Iterator[None]:
        """Change the user's settings of a JupyterLab plugin for pages that load meanwhile.

        `close_all` loads the page again, so that the next test does not have them.
        """
        self._loaded_settings = True
        home = self._site.server.home
        old = _settings(home, plugin).read_text() if _settings(home, plugin).exists() else "{}"
        change_settings(home, plugin, **values)
        try:
            yield
        finally:
            _settings(home, plugin).write_text(old)

    async def watch_status(self) -> None:
        """Note the texts of the status bar item in the pages that load from now on."""
        await self.page.add_init_script(_WATCH_STATUS)

    async def status_texts(self) -> list[str]:
        return list(await self.page.evaluate("window.statusTexts"))

    async def load(self, path: str) -> None:
        """Load a page of the server."""
        separator = "&" if "?" in path else "?"
        await self.page.goto(f"{self._site.url}{path}{separator}token={TOKEN}")
        await self._restored()

    async def reload(self, notebook: Notebook) -> Notebook:
        """Reload the page, and show the notebook in it."""
        await self.come_back()
        return await self.show(notebook.path)

    async def reload_all(self, notebook: Notebook) -> Notebook:
        """Reload the page, in which JupyterLab opens the notebook again."""
        workspaces = self._site.server.home / "workspaces"

        def is_noted() -> bool:
            files = workspaces.glob("*.jupyterlab-workspace")
            return any(notebook.path.name in file.read_text() for file in files)

        await asyncio.to_thread(eventually, is_noted, "JupyterLab notes the open notebook")
        # JupyterLab replaces the address of `come_back` some time after a notebook was opened.
        await self.page.wait_for_url(lambda url: "reset" not in url)
        await self.page.reload()
        await self._restored()
        await notebook.connected()
        return notebook

    async def come_back(self) -> None:
        """Load JupyterLab with nothing open.

        Otherwise it may open notebooks again that a test has closed before, and start kernels for
        them, because it stores the list of open notebooks some time later.
        """
        await self.load("/lab?reset")

    async def leave(self) -> None:
        """Close JupyterLab without closing its notebooks; `come_back` opens it again."""
        await self.page.goto("about:blank")

    async def close(self) -> None:
        """Close the window, without saving anything."""
        await self.page.context.close()

    async def _restored(self) -> None:
        await self.page.wait_for_function("window.jupyterapp?.restored.then(() => true)")

    @asynccontextmanager
    async def second_browser(self) -> AsyncIterator[Lab]:
        """Open JupyterLab in another browser."""
        assert self.page.context.browser is not None
        other = await _new_page(self.page.context.browser, self._site)
        try:
            yield other
        finally:
            await other.close()

    async def open(self, *codes: str) -> Notebook:
        """Open a new notebook with these cells (none: one empty cell), and wait for its kernel."""
        await self._dismiss()
        path = self._site.server.home / "notebooks" / f"notebook-{next(self._numbers)}.ipynb"
        cells = [nbformat.v4.new_code_cell(code) for code in codes or ("",)]
        document = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": _KERNELSPEC})
        nbformat.write(document, path)
        notebook = await self.show(path)
        await notebook.ready()
        return notebook

    async def start(self, gates: Gates, *codes: str) -> Notebook:
        """Open a notebook with these cells and start them all; they may use `gate`.

        Returns when the server has all requests, so that the page may leave.
        """
        notebook = await self.open(*codes)
        await notebook.prepare(gates.code)
        await self._run_all(notebook, len(codes))
        return notebook

    async def run(self, *codes: str) -> list[dict[str, Any]]:
        """Run cells in a notebook that stays open, and return them as they are in its file."""
        notebook = await self.open(*codes)
        with tempfile.TemporaryDirectory() as directory:
            # All requests wait in the kernel before the first gate opens: those behind an error
            # are aborted.
            gate = Path(directory, "gate")
            await notebook.prepare(_ONE_GATE.format(path=str(gate)))
            await self._run_all(notebook, len(codes))
            await asyncio.to_thread(gate.touch)
            await notebook.finished()
        await notebook.save()
        cells = notebook.saved_cells()
        await notebook.close()
        return cells

    async def _run_all(self, notebook: Notebook, cells: int) -> None:
        """Start all cells of a new kernel, and wait until the server has their requests."""
        kernel = await notebook.connected()
        await notebook.run_all()

        def has_all() -> bool:
            executions = self.executions(kernel)
            return executions is None or len(executions) >= cells

        await asyncio.to_thread(eventually, has_all, "the server has the requests of all cells")

    def executions(self, kernel: str) -> list[dict[str, Any]] | None:
        """Return the executions of cells of a kernel; None without kbridge."""
        reply = self._site.server.request("GET", f"/api/kernels/{kernel}/executions")
        if reply.status == 404:
            return None
        return [each for each in reply.json() if each["cell_id"] is not None]

    async def show(self, path: Path) -> Notebook:
        """Open a notebook, or show it if it is open, and wait until it is connected to a kernel."""
        if self.is_notebook:
            await self.load(f"/notebooks/{path.name}")
        else:
            await self.page.evaluate(
                "async path => {"
                " await window.jupyterapp.commands.execute('docmanager:open', {path}) }",
                path.name,
            )
        notebook = Notebook(self.page, path)
        await notebook.connected()
        return notebook

    async def close_all(self) -> None:
        """End all kernels, and close all notebooks without saving them."""
        if self._loaded_settings or not self.page.url.startswith(self._site.url):
            await self.come_back()
        self._loaded_settings = False
        await self.page.evaluate(
            """async () => {
                await window.jupyterapp.serviceManager.sessions.shutdownAll();
                for (const each of Array.from(window.jupyterapp.shell.widgets('main')))
                    each.dispose();
            }"""
        )
        await self._dismiss()

    async def idle(self, path: Path) -> None:
        """Wait until the server says that the kernel of a notebook has run everything.

        Works without a page.
        """

        def is_idle() -> bool:
            sessions = self._site.server.request("GET", "/api/sessions").json()
            [kernel] = [each["kernel"] for each in sessions if each["path"] == path.name]
            # The state may still be that of the cell before.
            executions = self.executions(kernel["id"]) or []
            over = all(each["state"] in ("done", "error", "aborted") for each in executions)
            return over and bool(kernel["execution_state"] == "idle")

        await asyncio.to_thread(eventually, is_idle, f"the kernel of {path.name} is idle")

    async def _dismiss(self) -> None:
        """Dismiss the dialogs that are open.

        A notebook that is opened behind a dialog does not become the active one. JupyterLab opens a
        dialog when a kernel dies, also when it cannot start because another program has taken one
        of the ports that were chosen for it.
        """
        await self.page.evaluate(
            """() => document.querySelectorAll('.jp-Dialog').forEach(
                dialog => dialog.querySelector('.jp-Dialog-footer button')?.click())"""
        )

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
