"""Output that a page missed: JupyterLab in a real Chromium is reloaded, and shows it in its cells.

Each test compares the cells with those of a notebook that ran without a reload, or with the text
that the kernel printed.
"""

from __future__ import annotations

import os

import pytest

from tests.support.gates import Gates
from tests.support.lab import Lab
from tests.support.notebook import expect
from tests.support.waiting import TIMEOUT

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
]

AWAY = float(os.environ.get("KBRIDGE_AWAY", "5"))  # seconds
# Otherwise text waits in the journal: of 50 MB, most of a minute.
LAB_OPTIONS = ["--ZMQChannelsWebsocketConnection.iopub_data_rate_limit=1000000000"]


LINES = "for n in range(150):\n    print('line', n)\n    if n == 19: gate('half')"
TEXT = [f"line {n}\n" for n in range(150)]


async def test_a_running_cell_goes_on_after_a_reload(lab: Lab, gates: Gates) -> None:
    notebook = await lab.start(gates, LINES)
    await notebook.cell(0).shows("".join(TEXT[:20]))
    notebook = await lab.reload_all(notebook)
    cell = notebook.cell(0)
    await cell.running()
    await cell.shows("".join(TEXT[:20]))
    await notebook.busy()
    gates.open("half")
    await cell.shows("".join(TEXT))
    await expect(cell.prompt).to_have_text("[1]:")
    await notebook.save()
    [saved] = notebook.saved_cells()
    assert [output["text"] for output in saved["outputs"]] == ["".join(TEXT)]
    assert saved["execution_count"] == 1


async def test_a_notebook_is_opened_after_its_run_has_ended(lab: Lab, gates: Gates) -> None:
    expected = await lab.run(LINES)
    notebook = await lab.start(gates, LINES + "\ngate('end')")
    await gates.reached("half")
    await lab.leave()
    gates.open("half")
    await gates.reached("end")
    gates.open("end")
    await lab.come_back()
    notebook = await lab.show(notebook.path)
    await notebook.becomes([{**expected[0], "source": LINES + "\ngate('end')"}])


async def test_a_file_that_was_saved_in_between_gets_the_rest(lab: Lab, gates: Gates) -> None:
    expected = await lab.run(LINES)
    notebook = await lab.start(gates, LINES)
    await notebook.cell(0).shows("".join(TEXT[:20]))
    await notebook.save()
    [saved] = notebook.saved_cells()
    assert saved["outputs"][0]["text"] == "".join(TEXT[:20])
    notebook = await lab.reload(notebook)
    gates.open("half")
    await notebook.becomes(expected)


async def test_complete_output_in_the_file_is_not_changed(lab: Lab, gates: Gates) -> None:
    gates.open("half")
    notebook = await lab.start(gates, LINES, "display(1)\n2", "1 / 0")
    await notebook.finished()
    await notebook.save()
    cells = notebook.saved_cells()
    notebook = await lab.reload(notebook)
    # A cell that runs later has output after the others have been restored.
    await notebook.restored()
    assert await notebook.cells() == cells
    assert not await notebook.changed()


QUEUE = [LINES, "print('second')\n6 * 7", "gate('end')\n1 / 0", "print('never')"]


@pytest.mark.parametrize("away_until", ["first", "end"])
async def test_cells_that_wait_run_after_a_reload(lab: Lab, gates: Gates, away_until: str) -> None:
    """The third cell fails, and the fourth does not run."""
    expected = await lab.run(*QUEUE)
    assert [cell["execution_count"] for cell in expected] == [1, 2, 3, None]
    notebook = await lab.start(gates, *QUEUE)
    await notebook.cell(0).shows("".join(TEXT[:20]))
    await lab.leave()
    if away_until == "end":
        gates.open("half")
        await gates.reached("end")
        gates.open("end")
        await lab.idle(notebook.path)
    await lab.come_back()
    notebook = await lab.show(notebook.path)
    if away_until == "first":
        for number in range(len(QUEUE)):
            await notebook.cell(number).running()
        gates.open("half", "end")
    await notebook.becomes(expected)
    await expect(notebook.cell(3).prompt).to_have_text("[ ]:")


# Code by name; `# %%` begins another cell.
SCENES = {
    "carriage returns": """\
for n in range(101):
    print(f"\\r{n} % of the work", end="", flush=True)
    if n == 50:
        gate("half")
print("\\rdone")""",
    "display update": """\
handle = display("first", display_id=True)
print("between")
handle.update("second")
gate("half")
handle.update("third")""",
    "display updates from another cell": """\
handle = display("first", display_id=True)
"result"
# %%
print("before")
handle.update("second")
gate("half")
handle.update("third")""",
    "one display in two cells": """\
display("first", display_id="twin")
# %%
handle = display("second", display_id="twin")
gate("half")
handle.update("third")""",
    "clear_output": """\
from IPython.display import clear_output
print("before")
clear_output()
print("half")
gate("half")
clear_output()
print("after")""",
    "clear_output that waits": """\
from IPython.display import clear_output
print("before")
clear_output(wait=True)
gate("half")
print("after")
clear_output(wait=True)""",
    "two streams": """\
import sys
for n in range(10):
    print("out", n, flush=True)
    print("err", n, file=sys.stderr, flush=True)
    if n == 4:
        gate("half")""",
    "rich output": """\
from IPython.display import HTML, Markdown
display(HTML("<b>bold</b>"), Markdown("*text*"))
gate("half")
display({"application/json": {"a": [1, 2]}, "text/plain": "a"}, raw=True)
6 * 7""",
    "error": """\
print("before")
gate("half")
1 / 0""",
}


@pytest.mark.parametrize("name", SCENES)
async def test_output_is_as_if_the_page_had_stayed(lab: Lab, gates: Gates, name: str) -> None:
    expected = await lab.run(*SCENES[name].split("\n# %%\n"))
    notebook = await lab.start(gates, *SCENES[name].split("\n# %%\n"))
    await gates.reached("half")
    await notebook.leave()
    notebook = await lab.show(notebook.path)
    await notebook.cell(len(expected) - 1).running()
    gates.open("half")
    await notebook.becomes(expected)


@pytest.mark.parametrize("name", SCENES)
async def test_output_is_complete_after_the_run(lab: Lab, gates: Gates, name: str) -> None:
    expected = await lab.run(*SCENES[name].split("\n# %%\n"))
    notebook = await lab.start(gates, *SCENES[name].split("\n# %%\n"))
    await gates.reached("half")
    await notebook.leave()
    gates.open("half")
    await lab.idle(notebook.path)
    notebook = await lab.show(notebook.path)
    await notebook.becomes(expected)


async def test_input_is_answered_after_a_reload(lab: Lab, gates: Gates) -> None:
    code = "name = input('Your name? ')\nprint('Hello', name)"
    reference = await lab.start(gates, code)
    await reference.cell(0).answer("Ada")
    await reference.finished()
    await reference.save()
    notebook = await lab.start(gates, code)
    await notebook.cell(0).question.wait_for()
    notebook = await lab.reload(notebook)
    await notebook.cell(0).running()
    await notebook.cell(0).answer("Ada")
    await notebook.becomes(reference.saved_cells())
    await expect(notebook.cell(0).question).to_have_count(0)


@pytest.mark.timeout(600 + 3 * AWAY)
async def test_output_of_the_time_when_nobody_was_connected(lab: Lab, gates: Gates) -> None:
    code = (
        f"import time\nend, n = time.monotonic() + {AWAY}, 0\ngate('start')\n"
        f"while time.monotonic() < end or n <= {20 * AWAY}:\n"
        "    print('line', n)\n    n += 1\n    time.sleep(0.01)\n"
        "gate('end')"
    )
    notebook = await lab.start(gates, code)
    await gates.reached("start")
    await lab.leave()
    gates.open("start")
    await gates.reached("end", timeout=TIMEOUT + AWAY)
    gates.open("end")
    await lab.idle(notebook.path)
    await lab.come_back()
    notebook = await lab.show(notebook.path)
    await notebook.restored()
    await notebook.cell(0).done()
    [cell] = await notebook.cells()
    [output] = cell["outputs"]
    lines = output["text"].splitlines()
    assert lines == [f"line {n}" for n in range(len(lines))]
    assert len(lines) > 20 * AWAY


@pytest.mark.timeout(900)
async def test_fifty_megabytes_are_restored(lab: Lab, gates: Gates) -> None:
    """Half a million lines of 100 bytes."""
    code = "gate('start')\nfor n in range(500_000): print(f'{n:099}')\n"
    notebook = await lab.start(gates, code)
    await gates.reached("start")
    await lab.leave()
    gates.open("start")
    await lab.idle(notebook.path)
    await lab.come_back()
    notebook = await lab.show(notebook.path)
    await notebook.restored()
    await notebook.save()
    [cell] = notebook.saved_cells()
    [output] = cell["outputs"]
    assert output["text"] == "".join(f"{n:099}\n" for n in range(500_000))
    assert cell["execution_count"] == 1
