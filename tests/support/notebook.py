"""A notebook in JupyterLab, as a user sees and uses it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.waiting import TIMEOUT

if TYPE_CHECKING:
    from playwright.async_api import Locator, LocatorAssertions, Page

__all__ = ["Cell", "Notebook", "expect"]

# The page's information about the kernel of the active notebook.
_PANEL = "window.jupyterapp.shell.currentWidget"
_KERNEL = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
UNREACHABLE = "Server Connection Error"


def expect(locator: Locator) -> LocatorAssertions:
    """Playwright's `expect`, with this suite's timeout."""
    from playwright.async_api import expect

    expect.set_options(timeout=TIMEOUT * 1000)
    return expect(locator)


class Notebook:
    """The active notebook."""

    def __init__(self, page: Page, path: Path) -> None:
        self.page = page
        self.path = path
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

    async def run_all(self) -> None:
        """Start all cells, without waiting for their end."""
        await self.command("notebook:run-all-cells")

    async def command(self, name: str, then: str = "") -> None:
        """Start a command of JupyterLab, without waiting for its end, and run a script at once."""
        await self.page.evaluate(
            f"name => {{ void window.jupyterapp.commands.execute(name); {then} }}", name
        )

    async def busy(self) -> None:
        """Wait until the page shows its kernel as busy."""
        await self.page.wait_for_function(f"{_KERNEL}?.status === 'busy'")

    async def given_up(self) -> None:
        """Let JupyterLab give up to connect to the kernel at the next failure, and wait for that.

        By itself, it gives up after about two minutes, and only if the server can be reached.
        """
        kernel = f"{_PANEL}.sessionContext.session.kernel"
        limit = await self.page.evaluate(
            f"() => {{ const kernel = {kernel}; const limit = kernel._reconnectLimit;"
            " kernel._reconnectLimit = 0; kernel._reconnect(); return limit }"
        )
        await self.page.wait_for_function(f"{kernel}.connectionStatus === 'disconnected'")
        await self.page.evaluate(f"limit => {{ {kernel}._reconnectLimit = limit }}", limit)

    async def finished(self) -> None:
        """Wait until no cell is running or waiting, and the page shows the kernel as idle."""
        await self.nothing_runs()
        await self.ready()

    async def nothing_runs(self) -> None:
        """Wait until the page shows no cell as running or waiting."""
        await expect(self._cells.locator(".jp-InputPrompt", has_text="[*]")).to_have_count(0)

    async def restored(self) -> None:
        """Wait until the extension has looked at all cells, and has received earlier output."""
        await expect(self.page.locator(".kb-Status[data-phase=restored]")).to_have_count(1)

    async def not_restored(self) -> None:
        """Wait until the extension shows no state: it has not looked at the cells."""
        await expect(self.page.locator(".kb-Status[data-phase=restored]")).to_have_count(0)

    async def cells(self) -> list[dict[str, Any]]:
        """Return source, execution count and outputs of all code cells in the page."""
        model = await self.page.evaluate(f"{_PANEL}.context.model.toJSON()")
        return _parts(model)

    def saved_cells(self) -> list[dict[str, Any]]:
        """Return source, execution count and outputs of all code cells in the file."""
        return _parts(json.loads(self.path.read_text()))

    async def becomes(self, cells: list[dict[str, Any]]) -> None:
        """Wait until the page has exactly these cells, save it, and compare the file."""
        seen: list[dict[str, Any]] = []
        try:
            async with asyncio.timeout(TIMEOUT):
                while (seen := await self.cells()) != cells:
                    await self.page.evaluate("() => new Promise(requestAnimationFrame)")
        except TimeoutError:
            pytest.fail("\n".join(_differences(seen, cells)))
        await self.save()
        assert self.saved_cells() == cells

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

    async def restart(self) -> None:
        """Restart the kernel from the menu, and wait until the server has started it again."""
        await self.choose("Kernel", "Restart Kernel…")
        async with self.page.expect_response(re.compile("/restart")) as answer:
            await self.accept()
        assert (await answer.value).status == 200

    async def no_dialog(self) -> None:
        """Wait until the page shows no dialog."""
        try:
            await expect(self.dialog).to_have_count(0)
        except AssertionError:
            pytest.fail(f"dialogs remain: {await self.dialog.all_inner_texts()}")

    async def connection_error(self) -> None:
        """Wait until JupyterLab reports that it cannot reach its server.

        Does not use the locator of the dialog, because waiting for it calls the handler that closes
        it.
        """
        await self.page.wait_for_function(
            "title => [...document.querySelectorAll('.jp-Dialog')]"
            ".some(dialog => dialog.textContent.includes(title))",
            arg=UNREACHABLE,
        )

    async def save(self) -> None:
        await self.page.evaluate(f"{_PANEL}.context.save()")

    async def changed(self) -> bool:
        """Return True if the page has changes that are not in the file."""
        return bool(await self.page.evaluate(f"{_PANEL}.context.model.dirty"))

    async def leave(self) -> None:
        """Close the notebook without saving it; its kernel stays."""
        await self.page.evaluate(f"{_PANEL}.dispose()")

    async def close(self) -> None:
        """Save the notebook, end its kernel and close it."""
        await self.save()
        await self.page.evaluate(
            f"""async () => {{
                const panel = {_PANEL};
                await panel.sessionContext.shutdown();
                panel.dispose();
            }}"""
        )


class Cell:
    """A code cell and its output."""

    def __init__(self, locator: Locator) -> None:
        self.locator = locator
        self.output = locator.locator(".jp-OutputArea-output")
        self.prompt = locator.locator(".jp-InputPrompt")
        self.question = locator.locator(".jp-Stdin-input")

    async def run(self) -> None:
        """Start the cell, without waiting for its end."""
        await self.locator.locator(".cm-content").click()
        await self.locator.page.keyboard.press("Control+Enter")

    async def change(self, code: str) -> None:
        """Replace the code of the cell."""
        await self.locator.locator(".cm-content").fill(code)

    async def answer(self, text: str) -> None:
        """Answer the question of `input()`."""
        await self.question.fill(text)
        await self.question.press("Enter")

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
        await expect(self.prompt).to_have_text(re.compile(r"\[\d+\]:"))

    async def running(self) -> None:
        """Wait until the page shows the cell as running or waiting."""
        await expect(self.prompt).to_have_text("[*]:")


def _parts(document: dict[str, Any]) -> list[dict[str, Any]]:
    names = ("source", "execution_count", "outputs")
    cells = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    # A file has texts as lists of lines.
    return [{name: _joined(cell[name]) for name in names} for cell in cells]


def _differences(seen: list[dict[str, Any]], expected: list[dict[str, Any]]) -> Iterator[str]:
    for number, (one, other) in enumerate(zip_longest(seen, expected)):
        if one != other:
            yield f"cell {number} is\n    {one}\ninstead of\n    {other}"


def _joined(value: Any) -> Any:
    """Join lists of strings, but not those of tracebacks."""
    match value:
        case dict():
            return {k: v if k == "traceback" else _joined(v) for k, v in value.items()}
        case [*items] if items and all(isinstance(item, str) for item in items):
            return "".join(items)
        case [*items]:
            return [_joined(item) for item in items]
        case _:
            return value
