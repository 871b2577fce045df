"""Reloads of JupyterLab in front of other servers, and of Notebook, in a real Chromium."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.client import until_connected
from tests.support.gates import Gates
from tests.support.lab import Lab, Place, with_extension, with_gateway
from tests.support.notebook import expect
from tests.support.overlay import overlay
from tests.support.restartable_server import RestartableServer
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
]

HALF = "print('before')\ngate('half')\nprint('after')"
PLAIN = "jupyter_server.services.kernels.connection.channels.ZMQChannelsWebsocketConnection"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    kernels = RestartableServer(tmp_path_factory.mktemp("kbridge"))
    async with with_gateway(tmp_path_factory.mktemp("lab"), kernels) as place:
        yield place


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(module_gateway: Place) -> AsyncIterator[Place]:
    """JupyterLab without notebooks; its kernels run in the standalone server."""
    yield module_gateway
    await module_gateway.lab.close_all()


def is_on_disk(server: RestartableServer, kernel_id: str) -> bool:
    """Return True if the two executions and the first output of the kernel are in its journal."""
    home = server.home / "runtime" / "kbridge-journal" / kernel_id
    content = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    executions = set(re.findall(rb"execution/([-\w]+)", content))
    return len(executions) >= 2 and b'"before\\n"' in content


async def restores(lab: Lab, gates: Gates) -> None:
    """Reload the page in the middle of a cell, and check the output."""
    expected = await lab.run(HALF)
    notebook = await lab.start(gates, HALF)
    await gates.reached("half")
    notebook = await lab.reload(notebook)
    cell = notebook.cell(0)
    await cell.running()
    await cell.shows("before\n")
    gates.open("half")
    await notebook.becomes(expected)


async def test_a_gateway_restores(gateway: Place, gates: Gates) -> None:
    await restores(gateway.lab, gates)


async def test_input_is_answered_through_a_gateway(gateway: Place, gates: Gates) -> None:
    notebook = await gateway.lab.start(gates, "print('Hello', input('Your name? '))")
    await notebook.cell(0).question.wait_for()
    notebook = await gateway.lab.reload(notebook)
    await notebook.cell(0).answer("Ada")
    await notebook.cell(0).shows("Your name?  Ada\nHello Ada\n")
    await notebook.cell(0).done()


async def test_a_killed_server_and_a_reload(gateway: Place, gates: Gates) -> None:
    """The journal on disk has the output from before the crash."""
    assert isinstance(gateway.kernels, RestartableServer)
    notebook = await gateway.lab.start(gates, HALF, "print('second')")
    await notebook.cell(0).shows("before\n")
    kernel = await notebook.connected()
    await asyncio.to_thread(eventually, partial(is_on_disk, gateway.kernels, kernel), "on disk")
    gateway.kernels.crash()
    gateway.kernels.start()
    await until_connected(gateway.kernels, kernel)
    notebook = await gateway.lab.reload(notebook)
    for number in (0, 1):
        await notebook.cell(number).running()
    gates.open("half")
    await notebook.finished()
    await notebook.cell(0).shows("before\nafter\n")
    await expect(notebook.cell(0).prompt).to_have_text("[1]:")
    await notebook.cell(1).shows("second\n")


async def test_notebook_restores(tmp_path: Path, gates: Gates) -> None:
    async with with_extension(tmp_path / "lab") as place:
        place.lab.is_notebook = True
        await restores(place.lab, gates)


@pytest.mark.parametrize("together", [True, False], ids=["together", "one after the other"])
async def test_a_shared_document_has_output_once(
    together: bool, tmp_path: Path, gates: Gates
) -> None:
    env = overlay("collaboration")
    async with with_extension(tmp_path / "lab", env=env, foreign=True) as place:
        lab = place.lab
        notebook = await lab.start(gates, HALF)
        await notebook.cell(0).shows("before\n")
        async with lab.second_browser() as other_lab:
            other = await other_lab.show(notebook.path)
            await other.cell(0).shows("before\n")
            await lab.leave()
            await other_lab.leave()
            for each in (lab, other_lab):
                await each.come_back()
            if together:
                pages = (each.show(notebook.path) for each in (lab, other_lab))
                notebook, other = await asyncio.gather(*pages)
            else:
                notebook, other = [await each.show(notebook.path) for each in (lab, other_lab)]
            for page in (notebook, other):
                await page.restored()
            gates.open("half")
            for page in (notebook, other):
                await page.cell(0).shows("before\nafter\n")
                await expect(page.cell(0).prompt).to_have_text("[1]:")
            await notebook.save()
        [saved] = notebook.saved_cells()
        assert [output["text"] for output in saved["outputs"]] == ["before\nafter\n"]


async def test_another_class_for_websockets_keeps_the_extension_quiet(
    tmp_path: Path, gates: Gates
) -> None:
    """JupyterLab then shows the outputs of the file, as without the extension."""
    option = f"--ServerApp.kernel_websocket_connection_class={PLAIN}"
    async with with_extension(tmp_path / "lab", option) as place:
        lab = place.lab
        notebook = await lab.start(gates, HALF, "print('second')")
        await gates.reached("half")
        requests: list[str] = []
        lab.page.on("request", lambda request: requests.append(request.url))
        notebook = await lab.reload(notebook)
        gates.open("half")
        await notebook.ready()
        await notebook.cell(1).run()
        await notebook.cell(1).shows("second\n")
        cell, _ = await notebook.cells()
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        await expect(lab.status).to_be_hidden()
        assert len([url for url in requests if "/executions" in url]) <= 1
