"""JupyterLab in a real Chromium, its kernels over kbridge: inside the server, and as a gateway.

`KBRIDGE_SCREENSHOTS=docs/images` saves the screenshots of the documentation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.client import SLEEP
from tests.support.lab import Place, with_extension, with_gateway
from tests.support.notebook import Notebook, expect
from tests.support.server import Server

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
]


Factory = pytest.TempPathFactory


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def extension(tmp_path_factory: Factory) -> AsyncIterator[Place]:
    async with with_extension(tmp_path_factory.mktemp("lab")) as place:
        yield place


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: Factory) -> AsyncIterator[Place]:
    kernels = Server(tmp_path_factory.mktemp("kbridge"))
    async with with_gateway(tmp_path_factory.mktemp("lab"), kernels) as place:
        yield place


only_extension = pytest.mark.parametrize("place", ["extension"], indirect=True)
only_gateway = pytest.mark.parametrize("place", ["gateway"], indirect=True)


@pytest.fixture(params=["extension", "gateway"])
def place(request: pytest.FixtureRequest) -> Place:
    """Both servers, whatever the order of the tests."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Place)
    return found


@pytest_asyncio.fixture(loop_scope="module")
async def notebook(place: Place) -> AsyncIterator[Notebook]:
    """A new notebook for the test, with a kernel."""
    opened = await place.open()
    yield opened
    await place.restore()
    await opened.close()


@only_extension
async def test_the_extension_serves_the_websockets_of_jupyterlab(
    place: Place, notebook: Notebook
) -> None:
    assert "kernel websockets go over kbridge" in place.kernels.log.read_text()
    # kbridge closes with a reason; Jupyter Server's own class breaks the connection (1006).
    closed = """id => new Promise(done => {
        const url = `ws://${location.host}/api/kernels/${id}/channels?session_id=rude`;
        const socket = new WebSocket(url, ["v1.kernel.websocket.jupyter.org"]);
        socket.onopen = () => socket.send("not a message");
        socket.onclose = (event) => done(event.code);
    })"""
    assert await place.lab.page.evaluate(closed, await notebook.connected()) == 1003


@only_gateway
async def test_a_gateway_serves_the_kernels_of_jupyterlab(place: Place, notebook: Notebook) -> None:
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


async def test_a_notebook_shows_streams_and_rich_output(place: Place, notebook: Notebook) -> None:
    await notebook.prepare(PNG)
    cell = await notebook.run(OUTPUT)
    await cell.shows("to stdout\n")
    await cell.shows("to stderr\n", "stderr")
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


async def test_input_is_answered_on_the_page(notebook: Notebook) -> None:
    cell = await notebook.start("name = input('Your name? ')\nprint('Hello', name)")
    answer = cell.locator.locator(".jp-Stdin-input")
    await answer.fill("Ada")
    await answer.press("Enter")
    await cell.done()
    await expect(cell.stream("stdout").last).to_have_text("Hello Ada\n")


async def test_a_slider_moves_on_the_page_and_in_python(place: Place, notebook: Notebook) -> None:
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


# Jupyter Server as the client of a gateway reads only text frames; a frame with buffers ends its
# reading.
@only_extension
async def test_buffers_pass_in_both_directions(place: Place, notebook: Notebook) -> None:
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
    cell = await notebook.start(SLEEP)
    await expect(cell.stream("stdout")).to_have_text("asleep\n")
    await notebook.choose("Kernel", "Interrupt Kernel")
    await cell.done()
    await expect(cell.output.last).to_contain_text("KeyboardInterrupt")
    after = await notebook.run("6 * 7")
    await expect(after.output).to_have_text("42")


async def test_a_restart_from_the_menu_is_not_shown_as_a_crash(
    place: Place, notebook: Notebook
) -> None:
    await notebook.run("kept = True")
    kernel = await notebook.connected()
    await notebook.restart()
    cell = await notebook.run("'kept' in globals()")  # JupyterLab queues it until it is connected
    await expect(cell.output).to_have_text("False")
    await notebook.ready()
    await notebook.no_dialog()
    assert await notebook.connected() == kernel


async def test_a_kernel_that_dies_is_restarted(place: Place, notebook: Notebook) -> None:
    await notebook.run("kept = True")
    kernel = await notebook.connected()
    await notebook.start("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    await expect(notebook.dialog).to_contain_text("appears to have died. It will restart")
    await place.picture("died")
    await notebook.accept()
    await notebook.no_dialog()
    await notebook.ready()
    cell = await notebook.run("'kept' in globals()")
    await expect(cell.output).to_have_text("False")
    assert await notebook.connected() == kernel
