"""Record what a reload of the page does to a running cell: JupyterLab with kbridge, and without.

`make recording` writes `docs/images/reload.gif`. The script starts two JupyterLab servers, one with
kbridge's extensions and one with Jupyter Server alone, and opens the same notebook of each in a
Chromium. It runs the cell in both pages, reloads both in mid-run, and takes screenshots until the
cell has ended. The picture has the two pages beside each other, in real time.

The script fails, and writes nothing, if the page with kbridge does not show the whole output.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from io import BytesIO
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import nbformat
from PIL import Image, ImageDraw, ImageFont
from playwright.async_api import Browser, Error, Page, async_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.lab import jupyter_lab  # noqa: E402
from tests.support.require import require  # noqa: E402
from tests.support.server import TOKEN, Server  # noqa: E402

OUTPUT = ROOT / "docs" / "images" / "reload.gif"
LABEXTENSION = "@kbridge/jupyterlab"
TITLES = ("JupyterLab with kbridge", "JupyterLab without kbridge")
STEPS = 12
PAUSE = 1.2  # seconds between two lines
RELOAD_AFTER = 3  # lines
CODE = f"""\
import time

for step in range(1, {STEPS + 1}):
    print("step", step, "of {STEPS}")
    time.sleep({PAUSE})"""
NOTEBOOK = "training.ipynb"
TIMEOUT = 60.0

PAGE = {"width": 540, "height": 480}
BAR = 34  # height of the titles and of the caption, in pixels
GAP = 8
INTERVAL = 0.25  # seconds between two screenshots
HOLD = 4.0  # seconds for which the last frame stays
COLOURS = 128
DARK, LIGHT, ACCENT = "#20242c", "#ffffff", "#ff9d5c"


class Frame(NamedTuple):
    """Both pages at one moment."""

    time: float
    caption: str
    pages: tuple[bytes, bytes]  # PNG


@asynccontextmanager
async def lab(home: Path, *, kbridge: bool) -> AsyncIterator[Server]:
    """Run a JupyterLab server with a notebook, with kbridge's extensions or without."""
    server = jupyter_lab(home)
    document = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE)])
    document.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)"}
    nbformat.write(document, home / "notebooks" / NOTEBOOK)
    if not kbridge:
        config = home / "config"
        (config / "labconfig").mkdir(parents=True)
        switch = {"ServerApp": {"jpserver_extensions": {"kbridge": False}}}
        (config / "jupyter_server_config.json").write_text(json.dumps(switch))
        page = {"disabledExtensions": {LABEXTENSION: True}}
        (config / "labconfig" / "page_config.json").write_text(json.dumps(page))
    try:
        server.start()
        served = "kernel websockets go over kbridge" in server.log.read_text()
        assert served == kbridge, f"kbridge: {served}\n{server.tail()}"
        yield server
    finally:
        server.kill()


async def open_notebook(browser: Browser, server: Server) -> Page:
    """Open the notebook alone in a page, and wait for its kernel."""
    context = await browser.new_context(viewport=PAGE)
    page = await context.new_page()
    page.set_default_timeout(TIMEOUT * 1000)
    # A page with unsaved changes asks before it is left.
    page.on("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
    await page.goto(f"{server.url}/doc/tree/{NOTEBOOK}?reset&token={TOKEN}")
    kernel = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
    await page.wait_for_function(
        f"{kernel}?.connectionStatus === 'connected' && {kernel}.status === 'idle'"
    )
    await page.locator(".jp-CodeCell .cm-content").first.click()
    return page


async def lines(page: Page) -> list[str]:
    """Return the lines of output that a page shows."""
    shown = await page.locator(".jp-OutputArea-output pre").all_text_contents()
    return "".join(shown).splitlines()


class Recorder:
    """Takes screenshots of both pages, at regular times, with a caption."""

    def __init__(self, pages: tuple[Page, Page]) -> None:
        self.caption = ""
        self.frames: list[Frame] = []
        self._pages = pages

    async def run(self) -> None:
        """Record until cancelled."""
        began = monotonic()
        shots = [await page.screenshot() for page in self._pages]
        while True:
            now = monotonic() - began
            for number, page in enumerate(self._pages):
                try:
                    shots[number] = await page.screenshot(timeout=1000)
                except Error:
                    continue  # the page is loading: it keeps its last picture
            self.frames.append(Frame(now, self.caption, (shots[0], shots[1])))
            await asyncio.sleep(max(0.0, now + INTERVAL - (monotonic() - began)))


async def perform(pages: tuple[Page, Page], recorder: Recorder) -> None:
    """Run the cell in both pages, reload them in mid-run, and wait for the end of the cell."""
    recorder.caption = "A cell is running ..."
    await asyncio.gather(*(page.keyboard.press("Control+Enter") for page in pages))
    await asyncio.gather(*(reached(page, RELOAD_AFTER) for page in pages))
    recorder.caption = "... the page is reloaded ..."
    await asyncio.gather(*(page.reload() for page in pages))
    await asyncio.gather(*(page.wait_for_selector(".jp-CodeCell .cm-content") for page in pages))
    recorder.caption = "... and the cell is still running."
    ended = "document.querySelector('.jp-InputPrompt').textContent.includes('[1]')"
    try:
        async with asyncio.timeout(2 * PAUSE * STEPS):
            await reached(pages[0], STEPS)
            await pages[0].wait_for_function(ended)
    except TimeoutError:
        pass  # the caller compares the lines
    recorder.caption = "The cell has ended."
    await asyncio.sleep(1)


async def reached(page: Page, count: int) -> None:
    """Wait until a page shows a number of lines."""
    await page.wait_for_function(
        "count => [...document.querySelectorAll('.jp-OutputArea-output pre')]"
        ".map(pre => pre.textContent).join('').split('\\n').length > count",
        arg=count,
    )


async def record() -> list[Frame]:
    """Run everything once and return the frames."""
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kbridge-recording-")))
        homes = [home / name for name in ("with", "without")]
        for directory in homes:
            directory.mkdir()
        left = await stack.enter_async_context(lab(homes[0], kbridge=True))
        right = await stack.enter_async_context(lab(homes[1], kbridge=False))
        playwright = await stack.enter_async_context(async_playwright())
        browser = await playwright.chromium.launch(
            executable_path=require("chromium"), args=["--no-sandbox", "--headless=new"]
        )
        stack.push_async_callback(browser.close)
        pages = (await open_notebook(browser, left), await open_notebook(browser, right))
        recorder = Recorder(pages)
        recording = asyncio.create_task(recorder.run())
        try:
            await asyncio.sleep(1)
            await perform(pages, recorder)
        finally:
            recording.cancel()
            await asyncio.wait([recording])
        counts = [len(await lines(page)) for page in pages]
        print(f"lines shown: {counts[0]} of {STEPS} with kbridge, {counts[1]} without")
        if counts[0] != STEPS:
            sys.exit("The page with kbridge does not show the whole output; nothing is written.")
        return recorder.frames


def picture(frame: Frame) -> Image.Image:
    """Draw both pages beside each other, with titles and the caption."""
    width, height = PAGE["width"], PAGE["height"]
    canvas = Image.new("RGB", (2 * width + GAP, height + 2 * BAR), DARK)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=18)
    for number, (title, png) in enumerate(zip(TITLES, frame.pages, strict=True)):
        x = number * (width + GAP)
        canvas.paste(Image.open(BytesIO(png)).convert("RGB"), (x, BAR))
        draw.text((x + width // 2, BAR // 2), title, fill=LIGHT, font=font, anchor="mm")
    below = (canvas.width // 2, height + BAR + BAR // 2)
    draw.text(below, frame.caption, fill=ACCENT, font=font, anchor="mm")
    return canvas


def common_palette(images: list[Image.Image]) -> Image.Image:
    """Return a palette of the most frequent colours: pages are flat, and white must stay white."""
    counts: Counter[tuple[int, int, int]] = Counter()
    for image in images:
        counts.update({colour: number for number, colour in image.getcolors(1 << 24) or ()})
    palette = Image.new("P", (1, 1))
    # Pillow looks colours up with six bits per channel, so two similar ones would be confused.
    chosen: dict[tuple[int, ...], tuple[int, int, int]] = {}
    for colour, _ in counts.most_common():
        chosen.setdefault(tuple(value >> 2 for value in colour), colour)
    palette.putpalette([value for colour in list(chosen.values())[:COLOURS] for value in colour])
    return palette


def save(frames: list[Frame], path: Path) -> None:
    """Write an animated GIF with one palette; equal frames in a row become one."""
    drawn: list[Image.Image] = []
    times: list[float] = []
    for frame in frames:
        image = picture(frame)
        if not drawn or image.tobytes() != drawn[-1].tobytes():
            drawn.append(image)
            times.append(frame.time)
    palette = common_palette(drawn)
    first, *others = (i.quantize(palette=palette, dither=Image.Dither.NONE) for i in drawn)
    ends = [*times[1:], times[-1] + HOLD]
    durations = [round(1000 * (end - begin)) for begin, end in zip(times, ends, strict=True)]
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0)
    print(f"{path}: {len(drawn)} frames, {path.stat().st_size / 1024:.0f} KiB")


def main() -> None:
    """Record, and write the picture."""
    parser = argparse.ArgumentParser(description="Record a reload with kbridge and without.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the GIF to write")
    args = parser.parse_args()
    save(asyncio.run(record()), args.output)


if __name__ == "__main__":
    main()
