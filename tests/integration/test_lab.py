"""JupyterLab in a real Chromium, its kernels over kbridge: inside the server, and as a gateway.

`KBRIDGE_SCREENSHOTS=docs/images` takes the pictures that the documentation shows.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from tests.support.lab import Cell, Lab, Notebook, expect, jupyter_lab, lab_page
from tests.support.network import Network, network_to
from tests.support.require import require
from tests.support.server import TOKEN, Server
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
]


class Place(NamedTuple):
    """JupyterLab in a page, and all that is behind it.

    `front` is the network between the page and JupyterLab, `back` the one between JupyterLab and
    what has the kernels: kbridge, or nothing where kbridge is inside JupyterLab's server.
    """

    lab: Lab
    kernels: Server
    front: Network
    back: Network | None = None

    async def picture(self, name: str) -> None:
        if self.back is None:
            await self.lab.screenshot(name)


Factory = pytest.TempPathFactory


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def extension(tmp_path_factory: Factory) -> AsyncIterator[Place]:
    """JupyterLab with the extension, as it is installed."""
    require("jupyterlab", "ipywidgets", "ipykernel")
    home = tmp_path_factory.mktemp("lab")
    async with AsyncExitStack() as stack:
        server = jupyter_lab(home)
        stack.callback(server.kill)
        front = await stack.enter_async_context(network_to(server.start().port))
        lab = await stack.enter_async_context(lab_page(front.url, home))
        yield Place(lab, server, front)
        server.stop()
        server.assert_clean_log()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: Factory) -> AsyncIterator[Place]:
    """JupyterLab with kbridge as its gateway."""
    require("jupyterlab", "ipywidgets", "ipykernel")
    home = tmp_path_factory.mktemp("lab")
    async with AsyncExitStack() as stack:
        kernels = Server(tmp_path_factory.mktemp("kbridge"))
        stack.callback(kernels.kill)
        back = await stack.enter_async_context(network_to(kernels.start().port))
        options = f"--gateway-url={back.url}", f"--GatewayClient.auth_token={TOKEN}"
        server = jupyter_lab(home, *options)
        stack.callback(server.kill)
        front = await stack.enter_async_context(network_to(server.start().port))
        lab = await stack.enter_async_context(lab_page(front.url, home))
        yield Place(lab, kernels, front, back)
        server.stop()
        kernels.stop()
        kernels.assert_clean_log()


only_extension = pytest.mark.parametrize("place", ["extension"], indirect=True)
only_gateway = pytest.mark.parametrize("place", ["gateway"], indirect=True)


@pytest.fixture(params=["extension", "gateway"])
def place(request: pytest.FixtureRequest) -> Place:
    """Each of the two, whatever the order of tests."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Place)
    return found


@pytest_asyncio.fixture(loop_scope="module")
async def notebook(place: Place) -> AsyncIterator[Notebook]:
    """A notebook of the test's own, with a kernel."""
    opened = await place.lab.open()
    yield opened
    for network in filter(None, (place.front, place.back)):
        await network.restore()
    await opened.close()


@only_extension
async def test_websockets_are_kbridges_inside_jupyter(place: Place, notebook: Notebook) -> None:
    assert "kernel websockets go over kbridge" in place.kernels.log.read_text()
    # What kbridge closes with a reason, Jupyter Server's own class breaks off (1006).
    closed = """id => new Promise(done => {
        const url = `ws://${location.host}/api/kernels/${id}/channels?session_id=rude`;
        const socket = new WebSocket(url, ["v1.kernel.websocket.jupyter.org"]);
        socket.onopen = () => socket.send("not a message");
        socket.onclose = (event) => done(event.code);
    })"""
    assert await place.lab.page.evaluate(closed, await notebook.connected()) == 1003


@only_gateway
async def test_kernels_are_kbridges_behind_a_gateway(place: Place, notebook: Notebook) -> None:
    kernels = {k["id"]: k for k in (await place.kernels.call("GET", "/api/kernels")).json()}
    assert kernels[await notebook.connected()]["connections"] > 0


PNG = """\
import struct, zlib

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

def png(width, height):
    rows = (b"\\0" + bytes(v for x in range(width) for v in (x, 2 * y, 160)) for y in range(height))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(rows)))
    return b"\\x89PNG\\r\\n\\x1a\\n" + head + body + chunk(b"IEND", b"")
"""
OUTPUT = """\
import sys
from IPython.display import HTML, Image, display
print("to stdout")
print("to stderr", file=sys.stderr)
rows = "".join(f"<tr><td>{n}</td><td>{n * n}</td></tr>" for n in range(1, 4))
display(HTML(f"<table><tr><th>n</th><th>n²</th></tr>{rows}</table>"))
display(Image(png(240, 100)))
6 * 7"""


async def test_streams_and_rich_output(place: Place, notebook: Notebook) -> None:
    await notebook.prepare(PNG)
    cell = await notebook.run(OUTPUT)
    await expect(cell.stream("stdout")).to_have_text("to stdout\n")
    await expect(cell.stream("stderr")).to_have_text("to stderr\n")
    await expect(cell.output.locator("table tr").last).to_have_text("39")
    image = cell.output.locator("img")
    await expect(image).to_be_visible()
    assert await image.evaluate("i => [i.complete, i.naturalWidth]") == [True, 240]
    await expect(cell.output.last).to_have_text("42")
    await place.picture("output")


async def test_an_error_shows_its_traceback(place: Place, notebook: Notebook) -> None:
    await notebook.run("def reciprocal(x):\n    return 1 / x")
    cell = await notebook.run("reciprocal(0)")
    for text in ("reciprocal(0)", "return 1 / x", "ZeroDivisionError: division by zero"):
        await expect(cell.output).to_contain_text(text)
    await place.picture("error")


async def test_input_is_answered_in_the_page(notebook: Notebook) -> None:
    cell = await notebook.start("name = input('Your name? ')\nprint('Hello', name)")
    answer = cell.locator.locator(".jp-Stdin-input")
    await answer.fill("Ada")
    await answer.press("Enter")
    await cell.done()
    await expect(cell.stream("stdout").last).to_have_text("Hello Ada\n")


async def test_a_slider_moves_in_the_page_and_in_python(place: Place, notebook: Notebook) -> None:
    cell = await notebook.run(
        "import ipywidgets as widgets\nslider = widgets.IntSlider(description='speed')\nslider"
    )
    handle = cell.output.locator(".noUi-handle")
    await handle.focus()
    for _ in range(3):
        await handle.press("ArrowRight")
    await expect(cell.output.locator(".widget-readout")).to_have_text("3")
    seen = await notebook.run("slider.value")
    await expect(seen.output).to_have_text("3")
    await notebook.run("slider.value = 77")
    await expect(cell.output.locator(".widget-readout")).to_have_text("77")
    await place.picture("widget")


# Jupyter Server as a gateway's client reads text frames only: what has buffers ends its reading.
@only_extension
async def test_buffers_go_both_ways(place: Place, notebook: Notebook) -> None:
    await notebook.prepare(PNG)
    cell = await notebook.run(
        "import ipywidgets as widgets\n"
        "image, upload = widgets.Image(value=png(200, 100)), widgets.FileUpload()\n"
        "widgets.VBox([image, upload])"
    )
    image = cell.output.locator("img")
    await expect(image).to_be_visible()
    assert await image.evaluate("i => [i.complete, i.naturalWidth]") == [True, 200]
    file = {"name": "all.bin", "mimeType": "application/octet-stream", "buffer": bytes(range(256))}
    async with place.lab.page.expect_file_chooser() as chooser:
        await cell.output.locator("button").click()
    await (await chooser.value).set_files(file)
    await expect(cell.output.locator("button")).to_have_text("Upload (1)")
    seen = await notebook.run("bytes(upload.value[0].content) == bytes(range(256))")
    await expect(seen.output).to_have_text("True")


async def test_a_sleeping_cell_is_interrupted(notebook: Notebook) -> None:
    cell = await notebook.start("import time\nprint('sleeping')\ntime.sleep(600)")
    await expect(cell.stream("stdout")).to_have_text("sleeping\n")
    await notebook.choose("Kernel", "Interrupt Kernel")
    await cell.done()
    await expect(cell.output.last).to_contain_text("KeyboardInterrupt")
    after = await notebook.run("6 * 7")
    await expect(after.output).to_have_text("42")


async def test_a_restart_from_the_menu_is_no_crash(place: Place, notebook: Notebook) -> None:
    await notebook.run("kept = True")
    kernel = await notebook.connected()
    await notebook.choose("Kernel", "Restart Kernel…")
    async with place.lab.page.expect_response(re.compile("/restart")) as answer:
        await notebook.accept()
    assert (await answer.value).status == 200
    cell = await notebook.run("'kept' in globals()")  # JupyterLab holds it until it is connected
    await expect(cell.output).to_have_text("False")
    await notebook.ready()
    await expect(notebook.dialog).to_have_count(0)
    assert await notebook.connected() == kernel


async def test_a_kernel_that_dies_comes_back(place: Place, notebook: Notebook) -> None:
    await notebook.run("kept = True")
    kernel = await notebook.connected()
    await notebook.start("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    await expect(notebook.dialog).to_contain_text("appears to have died. It will restart")
    await place.picture("died")
    await notebook.accept()
    await expect(notebook.dialog).to_have_count(0)
    await notebook.ready()
    cell = await notebook.run("'kept' in globals()")
    await expect(cell.output).to_have_text("False")
    assert await notebook.connected() == kernel


class Lines:
    """A cell that prints numbered lines, a tenth of a second apart, and waits once in between."""

    waits_at = 9

    def __init__(self, directory: Path, count: int = 80) -> None:
        self.count = count
        self._progress = directory / "progress"
        self._gate = directory / "gate"
        self._directory = directory

    async def start(self, notebook: Notebook) -> Cell:
        """Start it, and wait until the page has all that it printed before it waits."""
        await notebook.prepare(f"import os; os.chdir({str(self._directory)!r})")
        cell = await notebook.start(
            f"import pathlib, time\nfor n in range({self.count}):\n"
            "    print('line', n)\n    time.sleep(0.1)\n"
            "    pathlib.Path('progress').write_text(str(n))\n"
            f"    while n == {self.waits_at} and not pathlib.Path('gate').exists():\n"
            "        time.sleep(0.01)"
        )
        await expect(cell.stream("stdout")).to_have_text(self.text(self.waits_at + 1))
        return cell

    def text(self, end: int | None = None) -> str:
        return "".join(f"line {n}\n" for n in range(end or self.count))

    def go_on(self) -> None:
        self._gate.touch()

    async def printed(self, number: int) -> None:
        """Wait until the kernel has printed this line, wherever it went."""
        await asyncio.to_thread(
            eventually,
            lambda: self._progress.exists() and int(self._progress.read_text() or 0) >= number,
            f"the kernel prints line {number}",
        )


def between(*cases: tuple[str, str]) -> pytest.MarkDecorator:
    """Name the stretches of network that a test takes away."""
    return pytest.mark.parametrize(("place", "stretch"), cases, indirect=["place"])


@between(("extension", "front"), ("gateway", "front"), ("gateway", "back"))
async def test_no_line_is_missing_after_five_seconds_of_silence(
    place: Place, stretch: str, notebook: Notebook, tmp_path: Path
) -> None:
    lines, network = Lines(tmp_path), getattr(place, stretch)
    cell = await lines.start(notebook)
    lines.go_on()
    await expect(cell.stream("stdout")).to_contain_text("line 12")
    network.swallow()
    await lines.printed(65)
    assert "line 40" not in await cell.text()
    await network.restore()
    await cell.done()
    assert await cell.text() == lines.text()
    await notebook.cell(1).locator.scroll_into_view_if_needed()
    await place.picture("network")


# The page's connections are not cut where kbridge is a gateway: Jupyter Server, which then is
# kbridge's client, holds on to websockets that its page has given up.
@between(("extension", "front"), ("gateway", "back"))
async def test_no_line_is_missing_after_a_connection_was_cut_between_two(
    place: Place, stretch: str, notebook: Notebook, tmp_path: Path
) -> None:
    lines, network = Lines(tmp_path), getattr(place, stretch)
    cell = await lines.start(notebook)
    await network.cut()
    lines.go_on()
    await lines.printed(65)
    if network is place.front:
        await notebook.connection_error()
    await network.restore()
    await cell.done()
    assert await cell.text() == lines.text()


async def test_a_reloaded_page_finds_its_kernel_at_work(
    place: Place, notebook: Notebook, tmp_path: Path
) -> None:
    lines = Lines(tmp_path, count=20)
    kernel = await notebook.connected()
    cell = await lines.start(notebook)
    await notebook.save()
    await place.lab.page.reload()
    assert await notebook.connected() == kernel
    lines.go_on()
    assert await notebook.ready() == kernel
    # To JupyterLab the running cell was another page's: what is said of it meanwhile is not shown.
    assert await notebook.cell(0).text() == lines.text(lines.waits_at + 1)
    cell = await notebook.run("n")
    await expect(cell.output).to_have_text(str(lines.count - 1))
