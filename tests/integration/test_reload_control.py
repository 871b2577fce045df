"""Interrupts, restarts and edits after a reload of JupyterLab, in a real Chromium."""

from __future__ import annotations

import asyncio
import os
import re

import pytest
from playwright.async_api import Response

from tests.support.gates import Gates
from tests.support.lab import Lab
from tests.support.notebook import expect
from tests.support.waiting import TIMEOUT, eventually

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
]

SETTINGS = "@kbridge/jupyterlab/plugin"
CHANGED = "This cell was changed after it ran; its earlier output was not restored."
HALF = "print('before')\ngate('half')\nprint('after')"


async def test_an_interrupt_after_a_reload_ends_the_cell(lab: Lab, gates: Gates) -> None:
    notebook = await lab.start(gates, HALF)
    await gates.reached("half")
    notebook = await lab.reload(notebook)
    cell = notebook.cell(0)
    await cell.shows("before\n")
    await notebook.choose("Kernel", "Interrupt Kernel")
    await expect(cell.output.last).to_contain_text("KeyboardInterrupt")
    await expect(cell.prompt).to_have_text("[1]:")
    assert await cell.text() == "before\n"


async def test_a_restart_after_a_reload_leaves_nothing_running(lab: Lab, gates: Gates) -> None:
    """ipykernel reports the interrupt of the first cell, and may begin the second one, or not."""
    notebook = await lab.start(gates, HALF, "gate('second')\nprint('never')")
    await gates.reached("half")
    notebook = await lab.reload(notebook)
    for number in (0, 1):
        await notebook.cell(number).running()
    await notebook.restart()
    await notebook.nothing_runs()
    gates.open("half", "second")  # not before: the old kernel would run the second cell
    await notebook.ready()
    notebook = await lab.reload(notebook)
    await notebook.restored()
    await notebook.nothing_runs()
    assert await notebook.cell(0).text() == "before\n"
    assert await notebook.cell(1).text() == ""


async def test_a_cell_that_was_changed_is_left_alone(lab: Lab, gates: Gates) -> None:
    notebook = await lab.start(gates, HALF, "print('second')")
    await notebook.cell(0).shows("before\n")
    await notebook.cell(0).change("print('changed')")
    await notebook.save()
    notebook = await lab.reload(notebook)
    gates.open("half")
    await notebook.cell(1).shows("second\n")
    await notebook.restored()
    cell = notebook.cell(0)
    await expect(cell.locator).to_contain_text(CHANGED)
    await cell.shows("before\n")  # as it is in the file
    await notebook.save()
    assert CHANGED not in notebook.path.read_text(), "the note is in the file"
    await cell.run()
    await cell.shows("changed\n")
    await expect(cell.locator).not_to_contain_text(CHANGED)


async def test_output_that_a_person_cleared_stays_away(lab: Lab, gates: Gates) -> None:
    gates.open("half")
    notebook = await lab.start(gates, HALF, "print('second')")
    await notebook.finished()
    notebook = await lab.reload(notebook)
    await notebook.cell(0).shows("before\nafter\n")
    deleted: list[str] = []

    def note(response: Response) -> None:
        if response.request.method == "DELETE":
            deleted.append(response.url)

    lab.page.on("response", note)
    await notebook.command("notebook:clear-all-cell-outputs")
    await notebook.save()
    async with asyncio.timeout(TIMEOUT):
        while len(deleted) < 2:  # the page has told the server
            await lab.page.evaluate("() => new Promise(requestAnimationFrame)")
    notebook = await lab.reload(notebook)
    await notebook.restored()
    for number in (0, 1):
        await expect(notebook.cell(number).output).to_have_count(0)
    assert not await notebook.changed()


@pytest.mark.parametrize("restored", [False, True])
async def test_output_that_was_cleared_right_before_the_reload_stays_away(
    lab: Lab, gates: Gates, restored: bool
) -> None:
    """The page leaves in the same task, before it has told the server."""
    gates.open("half")
    notebook = await lab.start(gates, HALF, "print('second')")
    await notebook.finished()
    if restored:
        notebook = await lab.reload(notebook)
        await notebook.cell(1).shows("second\n")
        await notebook.restored()
    kernel = await notebook.connected()
    async with lab.page.expect_navigation(url="about:blank"):
        await notebook.command("notebook:clear-all-cell-outputs", "location.href = 'about:blank'")
    await asyncio.to_thread(
        eventually, lambda: not lab.executions(kernel), "it has told the server"
    )
    await lab.come_back()
    notebook = await lab.show(notebook.path)
    await notebook.restored()
    for number in (0, 1):
        await expect(notebook.cell(number).output).to_have_count(0)


@pytest.mark.parametrize("restored", [False, True])
async def test_a_running_cell_that_a_person_cleared_stays_clear(
    lab: Lab, gates: Gates, restored: bool
) -> None:
    notebook = await lab.start(gates, HALF)
    await notebook.cell(0).shows("before\n")
    if restored:
        notebook = await lab.reload(notebook)
        await notebook.cell(0).shows("before\n")
    async with lab.page.expect_response(lambda r: r.request.method == "DELETE") as answer:
        await notebook.command("notebook:clear-all-cell-outputs")
    assert (await answer.value).status == 204
    notebook = await lab.reload(notebook)
    await notebook.cell(0).running()
    await notebook.restored()
    gates.open("half")
    await notebook.cell(0).done()
    await notebook.cell(0).shows("after\n")


async def test_a_list_that_fails_is_requested_again_and_holds_up_no_deletion(
    lab: Lab, gates: Gates
) -> None:
    lists = re.compile(r"/executions(\?.*)?$")
    await lab.page.route(lists, lambda route: route.abort())
    try:
        notebook = await lab.start(gates, HALF)
        await notebook.cell(0).shows("before\n")
        async with lab.page.expect_response(lambda r: r.request.method == "DELETE") as answer:
            await notebook.command("notebook:clear-all-cell-outputs")
        assert (await answer.value).status == 204
        await notebook.not_restored()
    finally:
        await lab.page.unroute(lists)
    await notebook.restored()


async def test_output_that_the_file_has_is_not_requested(lab: Lab, gates: Gates) -> None:
    gates.open("half")
    notebook = await lab.start(gates, HALF, "6 * 7", "1 / 0")
    await notebook.finished()
    await notebook.save()
    later = notebook.path.stat().st_mtime + 90
    os.utime(notebook.path, (later, later))
    cells = notebook.saved_cells()
    sockets: list[str] = []
    lab.page.on("websocket", lambda socket: sockets.append(socket.url))
    notebook = await lab.reload(notebook)
    await notebook.restored()
    assert await notebook.cells() == cells
    assert [url for url in sockets if "/channels" in url]
    assert not [url for url in sockets if "parents=" in url]


async def test_a_new_run_with_the_counts_of_the_file_is_restored(lab: Lab, gates: Gates) -> None:
    """As after "Restart Kernel and Run All Cells"."""
    gates.open("half")
    notebook = await lab.start(gates, HALF, "print('gate', gate('half'))")
    await notebook.finished()
    await notebook.save()
    await notebook.restart()
    await notebook.ready()
    await notebook.prepare("gate = lambda name: 'new'")
    await notebook.run_all()
    await notebook.cell(1).shows("gate new\n")
    await notebook.finished()
    cells = await notebook.cells()
    assert [cell["execution_count"] for cell in cells] == [1, 2]
    notebook = await lab.reload(notebook)
    await notebook.becomes(cells)


async def test_a_cell_that_runs_again_replaces_its_output(lab: Lab, gates: Gates) -> None:
    """The first run waits at the gate; the second one is started in the reloaded page."""
    notebook = await lab.start(gates, HALF)
    await gates.reached("half")
    notebook = await lab.reload(notebook)
    cell = notebook.cell(0)
    await cell.shows("before\n")
    await cell.run()
    gates.open("half")
    await expect(cell.prompt).to_have_text("[2]:")
    await cell.shows("before\nafter\n")
    await notebook.finished()
    await notebook.save()
    assert [c["outputs"][0]["text"] for c in notebook.saved_cells()] == ["before\nafter\n"]


async def test_two_browsers_show_the_same(lab: Lab, gates: Gates) -> None:
    notebook = await lab.start(gates, HALF, "gate('second')\n6 * 7")
    await gates.reached("half")
    async with lab.second_browser() as other_lab:
        other = await other_lab.show(notebook.path)
        await other.cell(0).shows("before\n")
        for number in (0, 1):
            await other.cell(number).running()
        gates.open("half", "second")
        for page in (notebook, other):
            await page.finished()
            await page.cell(0).shows("before\nafter\n")
            await expect(page.cell(1).output).to_have_text("42")
            await expect(page.cell(1).prompt).to_have_text("[2]:")
        # A cell that starts while both pages are open.
        await notebook.cell(0).run()
        await expect(other.cell(0).prompt).to_have_text("[3]:")
        await expect(notebook.cell(0).prompt).to_have_text("[3]:")
        for page in (notebook, other):
            await page.cell(0).shows("before\nafter\n")
        assert await other.cells() == await notebook.cells()


async def test_widgets_do_not_break_the_page(lab: Lab, gates: Gates) -> None:
    codes = (
        "import ipywidgets as widgets\nslider = widgets.IntSlider()\nslider",
        "output = widgets.Output()\ndisplay(output)\nwith output: print('captured')",
        "print('before')\ngate('half')\nslider.value = 77\nslider.value",
    )
    notebook = await lab.start(gates, *codes)
    await gates.reached("half")
    await expect(notebook.cell(0).output.locator(".widget-readout")).to_have_text("0")
    notebook = await lab.reload(notebook)
    await notebook.cell(2).shows("before\n")
    gates.open("half")
    await expect(notebook.cell(2).output.last).to_have_text("77")
    await notebook.finished()
    await expect(notebook.cell(0).output.locator(".widget-readout")).to_have_text("77")
    await notebook.cell(1).shows("captured\n")
    # A widget of the reloaded page works.
    await notebook.cell(0).run()
    await expect(notebook.cell(0).output.locator(".widget-readout")).to_have_text("0")


async def test_a_cell_that_is_not_drawn_is_restored(lab: Lab, gates: Gates) -> None:
    """JupyterLab draws only the visible cells of long notebooks."""
    codes = [f"print('cell', {n})" for n in range(99)]
    notebook = await lab.start(gates, *codes, HALF)
    await gates.reached("half")
    with lab.settings("@jupyterlab/notebook-extension/tracker", windowingMode="full"):
        notebook = await lab.reload(notebook)
    gates.open("half")
    texts = [*(f"cell {n}\n" for n in range(99)), "before\nafter\n"]
    await notebook.becomes(
        [
            {
                "source": code,
                "execution_count": number,
                "outputs": [{"name": "stdout", "output_type": "stream", "text": text}],
            }
            for number, (code, text) in enumerate(zip([*codes, HALF], texts, strict=True), 1)
        ]
    )


async def test_the_status_bar_says_what_is_restored(lab: Lab, gates: Gates) -> None:
    code = "gate('start')\nfor n in range(100_000): print('line', n)\ngate('end')"
    notebook = await lab.start(gates, code)
    await expect(lab.status).to_have_text(re.compile(r"^kbridge \d+ ms$"))
    await gates.reached("start")
    await lab.leave()
    gates.open("start")
    await gates.reached("end")
    await lab.watch_status()
    await lab.come_back()
    notebook = await lab.show(notebook.path)
    gates.open("end")
    await notebook.cell(0).done()
    await expect(lab.status).to_have_text(re.compile(r"^kbridge \d+ ms$"))
    texts = await lab.status_texts()
    behind = [text for text in texts if re.search(r"catching up, [\d,]+ lines behind$", text)]
    assert behind, texts
    assert texts.index(behind[-1]) < texts.index("kbridge: output restored")


async def test_the_status_bar_leads_to_the_settings(lab: Lab, gates: Gates) -> None:
    notebook = await lab.open()
    await lab.status.click()
    await expect(lab.page.locator(".jp-SettingsPanel")).to_contain_text("kbridge")
    await lab.show(notebook.path)


async def test_restoring_is_turned_off_in_the_settings(lab: Lab, gates: Gates) -> None:
    """As in JupyterLab without the extension, the page shows the outputs of the file."""
    notebook = await lab.start(gates, HALF, "print('second')")
    await gates.reached("half")
    with lab.settings(SETTINGS, restoreOutput=False):
        notebook = await lab.reload(notebook)
    gates.open("half")
    await notebook.ready()
    await notebook.cell(1).run()
    await notebook.cell(1).shows("second\n")
    cell, _ = await notebook.cells()
    assert (cell["outputs"], cell["execution_count"]) == ([], None)


async def test_a_notebook_opens_after_the_kernel_of_another_one_died(
    lab: Lab, gates: Gates
) -> None:
    notebook = await lab.start(gates, "import os\nos._exit(1)")
    await expect(notebook.dialog).to_be_visible()
    await lab.close_all()
    notebook = await lab.start(gates, HALF)
    await notebook.cell(0).shows("before\n")
    gates.open("half")
    await notebook.finished()
