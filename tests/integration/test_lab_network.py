"""JupyterLab in a real Chromium during network failures, floods and crashes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from kbridge.storage.state_log import parse
from tests.support.client import until_connected
from tests.support.lab import Place, with_extension, with_gateway
from tests.support.network import Network
from tests.support.notebook import Cell, Notebook, expect
from tests.support.restartable_server import RestartableServer
from tests.support.server import KEPT, Server
from tests.support.waiting import eventually

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
    kernels = RestartableServer(tmp_path_factory.mktemp("kbridge"))
    async with with_gateway(tmp_path_factory.mktemp("lab"), kernels) as place:
        yield place


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Place:
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


def all_acknowledged(server: Server, kernel_id: str) -> bool:
    """Return True if the files of a kernel say that a client has acknowledged all messages."""
    status = server.request("GET", "/api/status?statistics=1").json()
    [hub] = [each for each in status["hubs"] if each["kernel_id"] == kernel_id]
    end = hub["journal"]["appended_frames"]
    log = server.home / "runtime" / "kbridge-journal" / kernel_id / "state.log"
    records = parse(log.read_bytes()) if log.exists() else {}
    return end in [place for key, place in records.items() if key.startswith("place/")]


def between(*cases: tuple[str, str]) -> pytest.MarkDecorator:
    """Return the names of the networks that a test interrupts."""
    return pytest.mark.parametrize(("place", "stretch"), cases, indirect=["place"])


both = pytest.mark.parametrize("place", ["extension", "gateway"], indirect=True)
only_extension = pytest.mark.parametrize("place", ["extension"], indirect=True)
only_gateway = pytest.mark.parametrize("place", ["gateway"], indirect=True)
# The page's connections are not cut if kbridge is a gateway: Jupyter Server, which is then the
# client of kbridge, keeps websockets that its page has closed.
kbridges = between(("extension", "front"), ("gateway", "back"))


class Lines:
    """A cell that prints numbered lines, and waits once in between."""

    waits_at = 9

    def __init__(self, directory: Path, count: int = 80, pause: float = 0.1) -> None:
        self.count = count
        self._pause = pause
        self._progress = directory / "progress"
        self._gate = directory / "gate"
        self._directory = directory

    async def start(self, notebook: Notebook) -> Cell:
        """Start the cell, and wait until the page has all lines before the pause."""
        await notebook.prepare(f"import os; os.chdir({str(self._directory)!r})")
        cell = await notebook.start(
            f"import pathlib, time\nfor n in range({self.count}):\n"
            f"    print('line', n)\n    time.sleep({self._pause})\n"
            "    pathlib.Path('progress').write_text(str(n))\n"
            f"    while n == {self.waits_at} and not pathlib.Path('gate').exists():\n"
            "        time.sleep(0.01)"
        )
        await cell.shows(self.text(self.waits_at + 1))
        return cell

    async def start_into_silence(self, notebook: Notebook, network: Network) -> Cell:
        """Start the cell, and let the network accept and keep the lines in the middle."""
        cell = await self.start(notebook)
        network.swallow()
        self.go_on()
        await self.printed(65)
        assert await cell.text() == self.text(self.waits_at + 1)
        return cell

    def text(self, end: int | None = None) -> str:
        return "".join(f"line {n}\n" for n in range(end or self.count))

    async def all_stand_in(self, cell: Cell) -> None:
        """Wait until the cell has run, and check that all lines are in order; some may be
        duplicate.

        Unacknowledged messages arrive again after the connection broke.
        """
        await cell.done()
        expected = self.text().splitlines()
        await expect(cell.stream("stdout").last).to_contain_text(expected[-1])
        shown = dict.fromkeys((await cell.text()).splitlines())
        assert [line for line in shown if line in set(expected)] == expected
        await expect(cell.stream("stderr")).to_have_count(0)

    def go_on(self) -> None:
        self._gate.touch()

    async def printed(self, number: int) -> None:
        """Wait until the kernel has printed this line, even if it was lost."""
        await asyncio.to_thread(
            eventually,
            lambda: self._progress.exists() and int(self._progress.read_text() or 0) >= number,
            f"the kernel prints line {number}",
        )


@between(("extension", "front"), ("gateway", "front"), ("gateway", "back"))
async def test_no_line_is_missing_after_five_seconds_of_silence(
    place: Place, stretch: str, notebook: Notebook, tmp_path: Path
) -> None:
    lines, network = Lines(tmp_path), getattr(place, stretch)
    cell = await lines.start_into_silence(notebook, network)
    await network.restore()
    await cell.done()
    await cell.shows(lines.text())
    await notebook.cell(1).locator.scroll_into_view_if_needed()
    await place.picture("network")


@kbridges
async def test_no_line_is_missing_after_silence_that_ends_in_a_reset(
    place: Place, stretch: str, notebook: Notebook, tmp_path: Path
) -> None:
    lines, network = Lines(tmp_path), getattr(place, stretch)
    # Messages in the meantime were accepted, and are lost with the connection.
    cell = await lines.start_into_silence(notebook, network)
    await network.reset()
    await lines.all_stand_in(cell)


@kbridges
async def test_no_line_is_missing_after_cuts_during_a_print(
    place: Place, stretch: str, notebook: Notebook, tmp_path: Path
) -> None:
    lines, network = Lines(tmp_path, count=4000, pause=0.001), getattr(place, stretch)
    cell = await lines.start(notebook)
    lines.go_on()
    for number in (300, 700, 1100):
        await lines.printed(number)
        await network.reset()
        await expect(cell.stream("stdout").last).to_contain_text(f"line {number}\n")
    await lines.all_stand_in(cell)


@kbridges
async def test_no_line_is_missing_after_a_cut_between_two_messages(
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
    await lines.all_stand_in(cell)


@both
async def test_a_reloaded_page_shows_its_kernel_as_busy(
    place: Place, notebook: Notebook, tmp_path: Path
) -> None:
    lines = Lines(tmp_path, count=20)
    kernel = await notebook.connected()
    cell = await lines.start(notebook)
    await notebook.save()
    await place.lab.page.reload()
    assert await notebook.connected() == kernel
    await notebook.busy()
    lines.go_on()
    assert await notebook.ready() == kernel
    await notebook.cell(0).shows(lines.text(lines.count))
    cell = await notebook.run("n")
    await expect(cell.output).to_have_text(str(lines.count - 1))


@only_extension
@pytest.mark.parametrize("event", ["online", "visibilitychange"])
async def test_a_page_connects_again_after_jupyterlab_has_given_up(
    place: Place, notebook: Notebook, event: str, tmp_path: Path
) -> None:
    lines = Lines(tmp_path)
    await notebook.restored()
    cell = await lines.start(notebook)
    await notebook.given_up()
    lines.go_on()
    await lines.printed(lines.count - 1)
    assert await cell.text() == lines.text(lines.waits_at + 1), "it does not connect by itself"
    target = "window" if event == "online" else "document"
    await place.lab.page.evaluate(f"{target}.dispatchEvent(new Event('{event}'))")
    await notebook.connected()
    await lines.all_stand_in(cell)


# Each line is a separate message, without the joining of ipykernel: more than twice
# iopub_msg_rate_limit. Lines are sent in bursts, because the PUB socket of ipykernel drops messages
# beyond 1,000 waiting ones, and a page that draws them may use the processor for a while.
FLOOD = """\
import time
kernel = get_ipython().kernel
for n in range(10_000):
    content = {"name": "stdout", "text": f"line {n}\\n"}
    kernel.send_response(kernel.iopub_socket, "stream", content)
    if n % 250 == 0:
        time.sleep(0.1)"""


@only_extension
async def test_a_flood_arrives_completely_and_the_page_responds(
    place: Place, notebook: Notebook
) -> None:
    await notebook.count_outputs()
    cell = await notebook.run(FLOOD)
    expected = "".join(f"line {n}\n" for n in range(10_000))
    await notebook.ready()
    assert await notebook.received() == expected
    await cell.shows(expected)
    await expect(cell.stream("stderr")).to_have_count(0)
    assert await notebook.outputs() < 5_000, "the page received them unchanged"


BARS = """\
from IPython.display import HTML, clear_output, display
steps, padding = 1000, "." * 500

def bar(n):
    return HTML(f"<progress value={n} max={steps}></progress> {n} of {steps} <!--{padding}-->")

def progress():
    for n in range(steps + 1):
        clear_output(wait=True)
        print("step", n, flush=True)
        display(bar(n))
"""


@both
async def test_a_progress_bar_on_a_slow_page_ends_where_it_should(
    place: Place, notebook: Notebook
) -> None:
    await notebook.prepare(BARS)
    elsewhere = await notebook.run("handle = display(bar(0), display_id=True)")
    async with place.lab.slow():
        wiping = await notebook.run("progress()\nprint('done')")
        updating = await notebook.run(
            "own = display(bar(0), display_id=True)\n"
            "for n in range(steps + 1):\n    own.update(bar(n))\n    handle.update(bar(steps - n))"
        )
    await wiping.shows("step 1000\ndone\n")
    for cell, end in ((wiping, 1000), (updating, 1000), (elsewhere, 0)):
        await expect(cell.output.locator("progress")).to_have_count(1)
        await expect(cell.output.locator("progress")).to_have_attribute("value", str(end))


# JupyterLab treats the repeated input request as another one: there are two boxes, and the
# unanswered one stays. The first answer counts.
@pytest.mark.parametrize(
    ("place", "stretch", "box"),
    [("extension", "front", 0), ("extension", "front", 1), ("gateway", "back", 0)],
    indirect=["place"],
)
async def test_an_input_request_is_answered_once_after_a_cut(
    place: Place, stretch: str, box: int, notebook: Notebook
) -> None:
    cell = await notebook.start("for name in [input('Name? ')]:\n    print('Hello', name)")
    await cell.question.wait_for()
    await cell.question.fill("Ada")
    await getattr(place, stretch).reset()
    await expect(cell.question).to_have_count(2)
    await expect(cell.question.first).to_have_value("Ada")
    await place.picture("input")
    await cell.question.nth(box).fill("Ada L.")
    await cell.question.nth(box).press("Enter")
    await cell.done()
    await cell.shows("Name?  Ada L.\nHello Ada L.\n")
    await expect(cell.question).to_have_count(1)

    following = await notebook.start("print(input('And now? '))")
    await following.question.wait_for()
    await cell.question.fill("too late")
    await cell.question.press("Enter")
    await expect(cell.question).to_have_count(0)
    await following.question.fill("the kernel goes on")
    await following.question.press("Enter")
    await following.done()
    await expect(following.stream("stdout").last).to_have_text("the kernel goes on\n")


@only_gateway
async def test_a_killed_server_finds_its_kernels_at_the_next_start(
    place: Place, notebook: Notebook, tmp_path: Path
) -> None:
    assert isinstance(place.kernels, RestartableServer)
    lines = Lines(tmp_path)
    await notebook.run("kept = 'variables are kept'")
    kernel = await notebook.connected()
    cell = await lines.start(notebook)
    # Lines that the page has not acknowledged when the server ends are sent again.
    await asyncio.to_thread(
        eventually,
        lambda: all_acknowledged(place.kernels, kernel),
        "the page has acknowledged all lines",
    )
    place.kernels.crash()
    place.kernels.start()
    await until_connected(place.kernels, kernel)
    lines.go_on()  # the page may not have reconnected yet
    await cell.done()
    await cell.shows(lines.text())
    if KEPT:
        await expect(cell.stream("stderr")).to_have_count(0)
    else:
        await expect(cell.stream("stderr")).to_contain_text(
            "the server was restarted while this cell was running"
        )
    assert await notebook.ready() == kernel
    after = await notebook.run("kept")
    await expect(after.output).to_have_text("'variables are kept'")
