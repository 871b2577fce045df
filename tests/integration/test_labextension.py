"""The JupyterLab extension in JupyterLab and Notebook 7: its status item and its settings."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import nbformat
import pytest

from tests.support.browser import chromium_page
from tests.support.network import Network, network_to
from tests.support.require import require
from tests.support.server import TOKEN, Server
from tests.support.waiting import TIMEOUT

if TYPE_CHECKING:
    from playwright.async_api import Page, Request

pytestmark = [pytest.mark.browser, pytest.mark.kernel, pytest.mark.slow]

APPS = {"jupyterlab": "/lab/tree/", "notebook": "/notebooks/"}
# Requests of a page that loads, whose failure it does not catch: if one of them is aborted, the
# page has the uncaught error "Failed to fetch". So the network is not cut before they are answered.
SETTINGS = "/lab/api/settings/@jupyterlab"
UNCAUGHT = {
    "jupyterlab": (
        "/lab/api/build",
        "/api/config/jupyterlabapputilsextensionannouncements",
        f"{SETTINGS}/docmanager-extension:plugin",
        f"{SETTINGS}/codemirror-extension:plugin",
        "/api/nbconvert",
    ),
    "notebook": (
        "/api/contents/test.ipynb/checkpoints",
        f"{SETTINGS}/codemirror-extension:plugin",
        "/api/nbconvert",
    ),
}
ROUND_TRIP = re.compile(r"^kbridge \d+ ms$")
TOLERATED = (
    # Notebook 7 loads the settings of another plugin before those of its shortcuts.
    "Cannot read properties of undefined (reading 'schema')",
    # Notebook 7.2.0 reads the last checkpoint of a file that has none; it does so as well when the
    # browser does not load this extension, and when kbridge is off.
    "Cannot read properties of undefined (reading 'last_modified')",
    # JupyterLab does not catch the failure of its requests when a kernel restarts.
    "*Canceled future for *_request message before replies were done",
)
KERNELSPEC = {"name": "python3", "display_name": "Python 3", "language": "python"}


def _is_for(path: str, request: Request) -> bool:
    return urlsplit(request.url).path == path


class Place:
    """A notebook in a page of JupyterLab or Notebook 7, and the network to the server."""

    def __init__(self, app: str, page: Page, network: Network) -> None:
        self.app, self.page, self.network = app, page, network
        self.status = page.get_by_role("status").and_(page.locator(".kb-Status"))
        self.executions: list[str] = []
        page.on("request", self._note)

    def _note(self, request: object) -> None:
        url = str(getattr(request, "url", ""))
        if "/executions" in url:
            self.executions.append(url)

    async def open(self) -> None:
        """Open the notebook, and wait until its kernel is idle.

        Afterwards, the network may be cut.
        """
        async with AsyncExitStack() as answers:
            for path in UNCAUGHT[self.app]:
                answer = self.page.expect_request_finished(partial(_is_for, path))
                await answers.enter_async_context(answer)
            await self.page.goto(f"{self.network.url}{APPS[self.app]}test.ipynb?token={TOKEN}")
        await self.page.wait_for_function(
            "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status"
            " === 'idle'"
        )


@asynccontextmanager
async def notebook_page(app: str, home: Path, *args: str) -> AsyncIterator[Place]:
    require(app, "ipykernel", "labextension")
    (home / "notebooks").mkdir()
    document = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell()], metadata={"kernelspec": KERNELSPEC}
    )
    nbformat.write(document, home / "notebooks" / "test.ipynb")
    server = Server(
        home,
        *("--ip=127.0.0.1", "--no-browser", "--allow-root"),
        f"--ServerApp.root_dir={home / 'notebooks'}",
        f"--LabServerApp.user_settings_dir={home / 'settings'}",
        f"--LabServerApp.workspaces_dir={home / 'workspaces'}",
        "--LabApp.expose_app_in_browser=True",
        "--JupyterNotebookApp.expose_app_in_browser=True",
        *args,
        command=[sys.executable, "-m", app],
    )
    async with AsyncExitStack() as stack:
        stack.callback(server.kill)
        network = await stack.enter_async_context(network_to(server.start().port))
        page = await stack.enter_async_context(chromium_page(*TOLERATED))
        page.set_default_timeout(TIMEOUT * 1000)
        yield Place(app, page, network)


@pytest.mark.parametrize("app", APPS)
async def test_the_status_item_shows_the_connection_and_leads_to_the_settings(
    app: str, tmp_path: Path
) -> None:
    from playwright.async_api import expect

    expect.set_options(timeout=TIMEOUT * 1000)
    async with notebook_page(app, tmp_path) as place:
        await place.open()
        button = place.status.get_by_role("button")
        await expect(button).to_have_text(ROUND_TRIP)
        await expect(button).to_have_attribute("title", re.compile("settings of kbridge"))

        await place.network.cut()
        await expect(button).to_have_text("kbridge: disconnected")
        await place.network.restore()
        await expect(button).to_have_text(ROUND_TRIP)

        await button.click()
        show = place.page.get_by_label("Show the status")
        await expect(show).to_be_checked()
        await expect(place.page.get_by_label("Restore output")).to_be_checked()
        # A request that is under way when the page closes would be an uncaught error of the page.
        async with place.page.expect_response(
            lambda response: response.request.method == "PUT" and "/api/settings/" in response.url
        ):
            await show.uncheck()
            if app == "notebook":
                await place.page.get_by_role("button", name="Save", exact=True).click()
        await place.page.wait_for_function(
            "document.querySelector('.kb-Status')?.closest('.lm-mod-hidden')"
        )


async def test_without_kbridge_the_extension_makes_one_request_and_shows_nothing(
    tmp_path: Path,
) -> None:
    async with notebook_page("jupyterlab", tmp_path, "--KbridgeExtension.enabled=False") as place:
        async with place.page.expect_response(re.compile("/executions")) as answer:
            await place.open()
        assert (await answer.value).status == 404
        # A restart of the kernel, a return to the page: the same kernel is not asked again.
        # Jupyter Server alone may lose the statuses after a restart, so the reply is waited for.
        await place.page.evaluate(
            """async () => {
                const { kernel } = window.jupyterapp.shell.currentWidget.sessionContext.session;
                await kernel.restart();
                await kernel.requestKernelInfo();
            }"""
        )
        assert len(place.executions) == 1
        assert not await place.status.is_visible()
