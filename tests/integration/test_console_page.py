"""The console at `/console` in a real Chromium, with real kernels."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ServerFactory
from tests.support.axe import findings
from tests.support.browser import chromium_page
from tests.support.client import SLEEP, attach
from tests.support.jupyter_server import jupyter_server
from tests.support.network import network_to
from tests.support.require import require
from tests.support.server import TOKEN, Server
from tests.support.waiting import TIMEOUT

if TYPE_CHECKING:
    from playwright.async_api import Page

pytestmark = [pytest.mark.kernel, pytest.mark.browser, pytest.mark.slow]

# The text of the outputs of a cell, also of lines that are not in view.
TEXT = """cell => [...document.querySelectorAll(`${cell} .outputs > *`)]
  .map(each => each.textContent).join('\\n')"""
ENDED = ":is([data-state=ok], [data-state=error], [data-state=aborted], [data-state=lost])"
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    "AAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Console:
    """The page, as a person uses it."""

    def __init__(self, page: Page) -> None:
        self.page = page

    async def open(self, server_url: str, kernel_id: str) -> None:
        await self.page.goto(f"{server_url}/console?kernel={kernel_id}&token={TOKEN}")
        await self.restored()

    async def restored(self) -> None:
        """Wait until the executions that the server knows are there, and read to their end."""
        await self.page.wait_for_selector("html[data-restored=yes]")

    async def type(self, code: str) -> None:
        await self.page.fill("#editor", code)
        await self.page.press("#editor", "Shift+Enter")

    async def run(self, code: str) -> str:
        """Run code to its end; return the text of its outputs."""
        await self.type(code)
        await self.page.wait_for_selector(f".cell:last-child{ENDED}")
        return await self.text()

    async def text(self, cell: str = ".cell:last-child") -> str:
        """Return the text of the outputs of a cell."""
        await self.page.evaluate("() => new Promise(requestAnimationFrame)")
        return str(await self.page.evaluate(TEXT, cell))

    async def shows(self, text: str, cell: str = ".cell:last-child") -> None:
        """Wait for the text of the outputs of a cell."""
        await self.page.wait_for_function(
            f"([cell, text]) => ({TEXT})(cell) === text",
            arg=[cell, text],
        )


@asynccontextmanager
async def console(url: str, kernel_id: str) -> AsyncIterator[Console]:
    async with chromium_page() as page:
        page.set_default_timeout(TIMEOUT * 1000)
        opened = Console(page)
        await opened.open(url, kernel_id)
        yield opened


@pytest.fixture
async def here(server: Server, own_kernel: str) -> AsyncIterator[Console]:
    async with console(server.url, own_kernel) as opened:
        yield opened


async def test_text_colours_errors_and_results(here: Console) -> None:
    assert TOKEN not in here.page.url
    out = await here.run("print('plain \\x1b[1;31mred\\x1b[0m')\n6 * 7")
    assert out.split() == ["plain", "red", "42"]
    assert await here.page.text_content(".ansi-bold.ansi-fg-1") == "red"
    await here.run("import sys; print('beware', file=sys.stderr)")
    assert await here.page.text_content(".cell:last-child .stderr") == "beware"
    out = await here.run("1 / 0")
    assert "ZeroDivisionError: division by zero" in out
    assert "\x1b" not in out
    assert await here.page.locator(".cell:last-child .error [class^=ansi-fg]").count()
    assert await here.page.inner_text(".cell:last-child .number") == "[3]"
    out = await here.run("print('%s progress')\nprint?")  # a pager
    assert "Prints the values to a stream" in out


async def test_lines_that_programs_write_over(here: Console) -> None:
    code = "import time\nfor n in range(101): print(f'\\r{n}%', end='', flush=True)\nprint()"
    assert (await here.run(code)).strip() == "100%"
    up = "print('a\\nb\\nc')\nprint('\\x1b[2A\\x1b[2KB\\n')"
    assert (await here.run(up)).split() == ["a", "B", "c"]


async def test_displays(here: Console) -> None:
    page = here.page
    await here.run(
        "from IPython.display import *\nimport base64\n"
        f"display(Image(base64.b64decode('{PNG}'), format='png'))\n"
        'display(SVG(\'<svg xmlns="http://www.w3.org/2000/svg" width="30" height="20"/>\'))'
    )
    await page.wait_for_function("() => document.querySelectorAll('.image img').length === 2")
    widths = "async images => { await Promise.all(images.map(i => i.decode())); "
    widths += "return images.map(i => i.naturalWidth); }"
    assert await page.locator(".image img").evaluate_all(widths) == [1, 30]
    await here.run("HTML('<b style=\"color: rgb(1, 2, 3)\">bold</b>')")
    bold = page.frame_locator(".cell:last-child iframe").locator("b")
    assert await bold.evaluate("b => getComputedStyle(b).color") == "rgb(1, 2, 3)"
    await here.run("Markdown('# Title\\n\\n*text* and $x^2$')")
    frame = page.frame_locator(".cell:last-child iframe")
    assert await frame.locator("h1").text_content() == "Title"
    assert await frame.locator("math msup").count() == 1
    await here.run("Math(r'\\frac{1}{2}')")
    await page.frame_locator(".cell:last-child iframe").locator("mfrac").wait_for()
    out = await here.run("JSON({'a': [1, None]})")
    assert "a: " in out
    assert await page.locator(".cell:last-child .json-null").count() == 1
    out = await here.run(
        "display({'application/vnd.plotly.v1+json': {}, 'text/plain': 'Figure()'}, raw=True)"
    )
    assert out.startswith("Figure()")
    assert "Scripts do not run here" in out


async def test_an_output_that_cannot_be_rendered_does_not_hide_the_next_one(here: Console) -> None:
    code = "from IPython.display import *\nprint('before')\ndisplay(Markdown('>' * 20_000))\n"
    code += "print('after')"
    out = await here.run(code)
    assert await here.page.get_attribute(".cell:last-child", "data-state") == "ok"
    shown = out.split("\n")
    assert (shown[0], shown[-1]) == ("before", "after")
    assert out.count(">") == 20_000
    assert "The console cannot show this text/markdown: " in out


async def test_a_frame_is_as_high_as_its_content(here: Console) -> None:
    await here.run("from IPython.display import HTML\nHTML('<div style=\"height: 123px\">x</div>')")
    height = "document.querySelector('.cell:last-child iframe').offsetHeight"
    await here.page.wait_for_function(f"() => {height} >= 123 && {height} < 140")
    await here.run("HTML('<div style=\"height: 3000px\">x</div>')")
    await here.page.click(".cell:last-child .html-output button")
    await here.page.wait_for_function(f"() => {height} >= 3000 && {height} < 3020")


async def test_html_that_is_updated_stays_in_its_frame(here: Console) -> None:
    page = here.page
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await here.run(
        "from IPython.display import *\nshown = display(HTML('<p>0</p>'), display_id=True)\n"
        "for n in range(1, 21): shown.update(HTML(f'<p>{n}</p>'))"
    )
    lines = page.frame_locator(".cell:last-child iframe").locator("p")
    await lines.filter(has_text="20").wait_for()
    assert await lines.all_text_contents() == ["20"]
    await here.run(
        "for n in range(21):\n    clear_output(wait=True)\n    display(HTML(f'<p>{n}</p>'))\n"
        "    if n < 20: print(n)"
    )
    await lines.filter(has_text="20").wait_for()
    assert await lines.all_text_contents() == ["20"]
    assert await page.locator(".cell:last-child .outputs > *").count() == 1
    assert len([url for url in asked if url.endswith("frame.html")]) == 2


async def test_a_frame_whose_height_depends_on_itself_comes_to_rest(here: Console) -> None:
    html = "<style>body { height: 400px } "
    html += "@media (min-height: 300px) { body { height: 200px } }</style>"
    await here.page.evaluate(
        "() => { window.reports = 0; addEventListener('message', () => window.reports++); }"
    )
    await here.run(f"from IPython.display import HTML\nHTML({html!r})")
    await here.page.wait_for_function("() => window.reports > 50")
    # Ten drawn frames without a report.
    await here.page.wait_for_function(
        """async () => {
          const before = window.reports;
          for (let n = 0; n < 10; n++) await new Promise(requestAnimationFrame);
          return window.reports === before;
        }"""
    )
    height = "document.querySelector('.cell:last-child iframe').offsetHeight"
    assert await here.page.evaluate(height) >= 400


async def test_updates_and_clearing(here: Console) -> None:
    await here.run("from IPython.display import *\nshown = display('one', display_id=True)")
    await here.run("shown.update('two')")
    assert await here.text(".cell:nth-child(1)") == "'two'"
    code = "for n in range(3):\n    print(n)\n    clear_output(wait=True)\nprint('last')"
    assert (await here.run(code)).strip() == "last"
    assert (await here.run("print('x'); clear_output()")) == ""
    # After a reload, the update comes before or after the display.
    await here.page.reload()
    await here.restored()
    await here.shows("'two'", ".cell:nth-child(1)")


async def test_questions_and_passwords(here: Console) -> None:
    page = here.page
    await here.type("print(input('who? '))")
    await page.wait_for_selector(".ask input:focus")
    await page.keyboard.type("me")
    await page.keyboard.press("Enter")
    await page.wait_for_selector(f".cell:last-child{ENDED}")
    assert (await here.text()).split() == ["who?", "me", "me"]
    assert await page.evaluate("() => document.activeElement.id") == "editor"
    await here.type("import getpass; print(len(getpass.getpass('secret? ')))")
    await page.wait_for_selector(".ask input[type=password]")
    await page.reload()  # while the code waits for an answer
    await page.fill(".ask input[type=password]", "abc")
    await page.press(".ask input", "Enter")
    await page.wait_for_selector(f".cell:last-child{ENDED}")
    out = await here.text()
    assert "abc" not in out
    assert out.split()[-1] == "3"


async def test_interrupt_and_restart(here: Console) -> None:
    page = here.page
    await here.type(SLEEP)
    await page.wait_for_selector(".cell .stdout")
    await page.wait_for_selector("#status[data-state=busy]")
    await page.click("#interrupt")
    await page.wait_for_selector(f".cell:last-child{ENDED}")
    assert "KeyboardInterrupt" in await here.text()
    await here.run("x = 1")
    await page.click("#restart")
    await page.click("#confirm-restart button[value=no]")
    assert (await here.run("x")).strip() == "1"
    await page.click("#restart")
    await page.click("#confirm-restart button[value=yes]")
    await page.wait_for_selector(".mark")
    assert "NameError" in await here.run("x")


async def test_a_page_that_is_reloaded_in_mid_run_shows_everything(
    here: Console, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    await here.run("print('before')")
    code = f"import pathlib, time\nprint('first')\nwhile not pathlib.Path({str(gate)!r}).exists():"
    await here.type(f"{code}\n    time.sleep(0.01)\nfor n in range(3000): print('line', n)")
    await here.shows("first")
    await here.page.reload()
    await here.shows("first")
    assert await here.page.text_content(".cell:first-child .code") == "print('before')"
    await here.shows("before", ".cell:first-child")
    gate.touch()
    await here.page.wait_for_selector(f".cell:last-child{ENDED}")
    lines = "\n".join(["first", *(f"line {n}" for n in range(3000))])
    await here.shows(lines)
    await here.page.reload()  # after the end
    await here.restored()
    await here.shows(lines)


async def test_markdown_that_takes_minutes_does_not_hold_up_the_page(here: Console) -> None:
    await here.type("from IPython.display import Markdown\nMarkdown('**a* ' * 60_000)")
    out = await here.run("print('another cell')")
    assert out.strip() == "another cell"
    notice = here.page.locator(".cell:first-child .notice")
    await notice.wait_for()
    assert await notice.text_content() == (
        "The console cannot show this text/markdown: it takes too long"
    )
    assert (await here.text(".cell:first-child")).startswith("**a* **a* ")
    await here.run("Markdown('# Title')")
    frame = here.page.frame_locator(".cell:last-child iframe")
    assert await frame.locator("h1").text_content() == "Title"


async def test_output_that_the_server_has_dropped_is_told_where_it_is_missing(
    new_server: ServerFactory, node_modules: Path
) -> None:
    """The journal has room for a part of the output only, and the page comes when it has ended."""
    name = "ZMQChannelsWebsocketConnection"
    options = {"journal_limit": 200_000, "history_limit": 100_000, "journal_dir": ""}
    server = new_server(*(f"--{name}.{key}={value}" for key, value in options.items()))
    kernel_id = server.start_kernel()
    lines = "for n in range(2000): print(f'line {n} ' + 'x' * 200, flush=True)"
    async with attach(server, kernel_id, session="a-script") as client:
        await client.execute(f"{lines}\nprint('last')")
    async with console(server.url, kernel_id) as here:
        page = here.page
        await page.wait_for_selector(".cell .notice.warning")
        text = await here.text()
        notice = await page.locator(".cell .notice").first.text_content() or ""
        told = r"Output is missing here: [\d,]+ messages of output were dropped"
        assert re.match(told, notice)
        assert "Raise journal_limit" in notice
        before, _, after = text.partition(notice)
        assert "line 0 " not in before
        assert after.rstrip().endswith("last")
        assert "kbridge:" not in text, "it is not a part of the output"
        assert await findings(page, node_modules) == []
        assert (await here.run("print(6 * 7)")).strip() == "42"
        assert await page.locator(".cell:last-child .notice").count() == 0


async def test_a_lost_connection_is_told_and_nothing_is_missing(
    server: Server, own_kernel: str
) -> None:
    async with network_to(server.port) as network, console(network.url, own_kernel) as here:
        await here.type("import time\nfor n in range(300): print('line', n); time.sleep(0.01)")
        for number in (20, 150):
            await here.page.wait_for_function(
                "text => document.querySelector('.cell .stdout')?.textContent.includes(text)",
                arg=f"line {number}\n",
            )
            await network.reset()
        await here.page.wait_for_selector(f".cell:last-child{ENDED}")
        await here.shows("\n".join(f"line {n}" for n in range(300)))


async def test_executions_of_other_clients_appear(
    here: Console, server: Server, own_kernel: str
) -> None:
    async with attach(server, own_kernel) as client:
        await client.execute("print('from elsewhere')")
    await here.shows("from elsewhere")
    assert await here.page.text_content(".cell .code") == "print('from elsewhere')"
    assert await here.page.locator(".cell").count() == 1


async def test_executions_that_the_server_does_not_know_are_not_shown(
    here: Console, server: Server, own_kernel: str
) -> None:
    opened: list[str] = []
    here.page.on("websocket", lambda socket: opened.append(socket.url))
    code = "kernel = get_ipython().kernel\nfor n in range(60):\n    kernel.session.send("
    code += "kernel.iopub_socket, 'execute_input', {'code': 'x', 'execution_count': n}, "
    code += "parent={'header': {'msg_id': f'forged-{n}'}})"
    await here.run(code)
    async with attach(server, own_kernel) as client:
        await client.execute("print('from elsewhere')")
    await here.shows("from elsewhere")  # this one came after the others
    assert await here.page.locator(".cell").count() == 2
    assert len(opened) == 1


async def test_the_oldest_cells_make_room(here: Console, server: Server, own_kernel: str) -> None:
    page = here.page
    await here.run("print('first')")
    async with attach(server, own_kernel) as client:
        for number in range(205):
            await client.execute(f"print({number})")
    await here.shows("204")
    cells = "() => document.querySelectorAll('.cell').length"
    await page.wait_for_function(f"() => ({cells})() === 200")
    await page.click(".earlier button:has-text('Show 6 earlier executions')")
    await here.shows("first", ".cell:nth-child(1)")
    assert await page.locator(".earlier").count() == 0
    assert await page.evaluate(cells) == 206
    for number in range(6):  # in order
        await here.shows(str(number), f".cell:nth-child({number + 2})")


async def test_fifty_thousand_lines(here: Console) -> None:
    page = here.page
    await here.run("print('\\n'.join(f'line {n}' for n in range(50_000)))")
    await page.wait_for_function(
        "() => document.querySelector('.outputs').textContent.endsWith('line 49999')"
    )
    # The number of elements does not grow with the output.
    assert await page.locator(".outputs *").count() < 60
    await page.click(".outputs .more button")
    await page.wait_for_function(
        "() => !document.querySelector('.outputs .more') "
        "&& document.querySelector('.outputs').textContent.startsWith('line 0\\nline 1\\n')"
    )
    await here.shows("\n".join(f"line {n}" for n in range(50_000)))
    longest = "blocks => Math.max(...blocks.map(block => block.textContent.split('\\n').length))"
    assert await page.locator(".block").evaluate_all(longest) <= 201


async def test_two_streams_in_turn(here: Console) -> None:
    code = "import sys\nfor n in range(150):\n    for stream in (sys.stdout, sys.stderr):\n"
    await here.run(f"{code}        print(n, file=stream, flush=True)")
    texts = (
        "() => [...document.querySelectorAll('.outputs > .text')].map(e => e.textContent.trim())"
    )
    await here.page.wait_for_function(f"() => ({texts})().at(-1) === '149'")
    wanted = [str(n) for n in range(150) for _ in range(2)]
    assert await here.page.evaluate(texts) == wanted[-200:]
    await here.page.click(".outputs > button.more:text-is('Show 100 earlier texts')")
    await here.page.wait_for_function(f"() => ({texts})().length === 300")
    await here.page.wait_for_selector(".outputs > button.more", state="detached")
    await here.page.evaluate("() => new Promise(requestAnimationFrame)")
    assert await here.page.evaluate(texts) == wanted


async def test_many_displays(here: Console) -> None:
    await here.run("from IPython.display import *\nfor n in range(250): display(n)")
    assert await here.page.locator(".display").count() == 200
    await here.page.click(".outputs > button.more")
    await here.page.wait_for_function("() => document.querySelectorAll('.display').length === 250")


async def test_keys(here: Console) -> None:
    page = here.page
    value = "() => document.querySelector('#editor').value"

    async def becomes(text: str) -> None:
        await page.wait_for_function(f"text => ({value})() === text", arg=text)

    await here.run("first_name = second_name = 1")
    await here.run("2")
    await page.press("#editor", "ArrowUp")
    await page.press("#editor", "ArrowUp")
    await becomes("first_name = second_name = 1")
    await page.press("#editor", "ArrowDown")
    await page.press("#editor", "ArrowDown")
    await becomes("")
    await page.reload()
    await here.restored()
    await page.press("#editor", "ArrowUp")
    await becomes("2")  # also after a reload
    await page.fill("#editor", "first_n")
    await page.press("#editor", "Tab")
    await becomes("first_name")
    await page.fill("#editor", "import os; os.path.ex")
    await page.press("#editor", "Tab")
    await page.wait_for_selector("#completions [aria-selected=true]")
    active = "() => document.getElementById(document.activeElement.getAttribute("
    chosen = await page.evaluate(f"{active}'aria-activedescendant')).firstChild.textContent")
    await page.press("#editor", "Enter")
    await becomes(f"import os; os.path.{chosen.rsplit('.', 1)[-1]}")
    await page.fill("#editor", "if x:")
    await page.press("#editor", "Enter")
    await page.press("#editor", "Tab")
    await becomes("if x:\n        ")
    await page.press("#editor", "Escape")
    await page.press("#editor", "Tab")  # leaves the editor
    assert await page.evaluate("() => document.activeElement.id") == "run"


async def test_a_kernel_is_chosen_with_the_keyboard(server: Server, own_kernel: str) -> None:
    async with chromium_page() as page:
        page.set_default_timeout(TIMEOUT * 1000)
        before = {model["id"] for model in server.request("GET", "/api/kernels").json()}
        await page.goto(f"{server.url}/console?token={TOKEN}")
        await page.wait_for_selector(f".card:has-text('{own_kernel[:8]}')")
        await page.focus(".card:has-text('python3')")
        await page.keyboard.press("Enter")
        here = Console(page)
        await here.restored()
        started = {model["id"] for model in server.request("GET", "/api/kernels").json()} - before
        assert {page.url.rpartition("kernel=")[2]} == started
        assert (await here.run("6 * 7")).strip() == "42"
        await page.go_back()
        await page.wait_for_selector(".card")
        await page.click(f".card:has-text('{own_kernel[:8]}')")
        await here.restored()
        assert page.url.endswith(own_kernel)
        for kernel_id in started:
            server.stop_kernel(kernel_id)


async def test_a_kernel_that_does_not_exist_is_told(server: Server) -> None:
    async with chromium_page() as page:
        await page.goto(f"{server.url}/console?kernel=nothing&token={TOKEN}")
        await page.wait_for_selector(".notice")
        assert await page.locator("#console").is_hidden()


async def test_in_jupyter_server(tmp_path: Path) -> None:
    require("ipykernel")
    server = jupyter_server(tmp_path)
    server.start()
    try:
        async with chromium_page() as page:
            page.set_default_timeout(TIMEOUT * 1000)
            await page.goto(f"{server.url}/kbridge/console?token={TOKEN}")
            await page.click(".card:has-text('python3')")
            here = Console(page)
            await here.restored()
            await here.run("from IPython.display import HTML\nHTML('<b>bold</b>')")
            bold = page.frame_locator(".cell:last-child iframe").locator("b")
            assert await bold.evaluate("() => self.origin") == "null"
            await page.click("#restart")
            await page.click("#confirm-restart button[value=yes]")
            await page.wait_for_selector(".mark")
            await page.reload()
            await here.restored()
            assert await page.locator(".cell").count() == 1
    finally:
        server.kill()


# -- output that attacks the page -----------------------------------------------------------------

# Each says that it ran, in the places where somebody could see it.
RAN = (
    "(window.ran = window.ran || []).push('NAME'); try { top.ran = ['NAME'] } catch {} "
    "try { parent.postMessage({ height: 7777 }, '*') } catch {} "
    "try { fetch('/api/kernels?ran=NAME') } catch {}"
).replace("'", "&apos;")
ATTACKS = {
    "script": "<script>JS</script>",
    "module": '<script type="module">JS</script>',
    "remote-script": '<script src="/kbridge.js?ran=NAME"></script>',
    "error": '<img src="x" onerror="JS">',
    "load": f'<img src="data:image/png;base64,{PNG}" onload="JS">',
    "svg-load": '<svg onload="JS"></svg>',
    "svg-script": "<svg><script>JS</script></svg>",
    "svg-animate": '<svg><animate onbegin="JS" attributeName="x" dur="1s"/></svg>',
    "toggle": '<details open ontoggle="JS">text</details>',
    "focus": '<input autofocus onfocus="JS">',
    "media": '<video src="/page/icon.svg?ran=NAME" onerror="JS"></video>',
    "mutation": '<noscript><p title="</noscript><img src=x onerror=JS>"></noscript>',
    "mathml": '<math><mtext><table><mglyph><style><img src=x onerror="JS"></style></table></math>',
    "shadow": '<div><template shadowrootmode="open"><img src=x onerror="JS"></template></div>',
    "link": '<a class="try" href="javascript:JS">link</a>',
    "svg-link": (
        '<svg height="20"><a class="try" xlink:href="javascript:JS">'
        '<text y="15">link</text></a></svg>'
    ),
    "top-link": '<a class="try" href="/api/kernels?ran=NAME" target="_top">top</a>',
    "refresh": '<meta http-equiv="refresh" content="0; url=/api/kernels?ran=NAME">',
    "policy": '<meta http-equiv="Content-Security-Policy" content="script-src \'unsafe-inline\'">',
    "base": '<base href="/api/">',
    "form": (
        '<form action="/api/kernels?ran=NAME" method="post">'
        '<button class="try">send</button></form>'
    ),
    "form-script": '<form action="javascript:JS"><button class="try">send</button></form>',
    "frame": '<iframe src="/api/kernels?ran=NAME"></iframe>',
    "frame-document": '<iframe srcdoc="<script>parent.parent.ran = 1</script>"></iframe>',
    "object": '<object data="/api/kernels?ran=NAME"></object><embed src="/api/kernels?ran=NAME">',
    "style": (
        "<style>@import url('/page/common.css?ran=NAME'); "
        "p { background: url('/page/icon.svg?ran=NAME') } "
        "@font-face { font-family: f; src: url('/page/icon.svg?ran=NAME') } p { font-family: f }"
        "</style><p>styled</p>"
    ),
    "stylesheet": '<link rel="stylesheet" href="/page/common.css?ran=NAME">',
    "image": '<img src="/page/icon.svg?ran=NAME"><img srcset="/page/icon.svg?ran=NAME 2x">',
    "ping": '<a class="try" href="#here" ping="/api/kernels?ran=NAME">ping</a>',
}


def attack(name: str) -> str:
    return ATTACKS[name].replace("JS", RAN).replace("NAME", name)


async def test_html_of_a_kernel_has_no_rights(here: Console) -> None:
    page = here.page
    context = page.context
    answered: list[str] = []
    context.on("response", lambda response: answered.append(response.url))
    refused: dict[str, str | None] = {}
    context.on("requestfailed", lambda request: refused.update({request.url: request.failure}))
    address = page.url
    page.on("dialog", lambda dialog: dialog.accept())
    await here.run("from IPython.display import *")
    for name in ATTACKS:
        html = f"<p class=shown>{name}</p>{attack(name)}"
        for kind in ("HTML", "Markdown"):
            await here.run(f"{kind}({html!r})")
            frame = page.frame_locator(".cell:last-child iframe")
            assert await frame.locator(".shown").first.text_content() == name
            for element in await frame.locator(".try").all():
                await element.dispatch_event("click")
                await element.click(force=True)
    # Other ways into the page.
    script = f"<script>{RAN.replace('&apos;', chr(34))}</script>"
    svg = f"<svg xmlns='http://www.w3.org/2000/svg' onload='ran=1'>{script}</svg>"
    await here.run(f"display(SVG({svg!r}))")
    await here.run(
        f"print({script!r}); display(JSON({{{script!r}: {script!r}}}), Latex({script!r}))"
    )
    await here.run(f"display(Javascript('window.ran = 1')); raise ValueError({script!r})")
    await here.run(f"display({{'image/png': {script!r}, 'text/plain': {script!r}}}, raw=True)")
    await here.run("HTML('<p class=end>end</p>')")
    await page.frame_locator(".cell:last-child iframe").locator(".end").wait_for()

    assert page.url == address
    assert len(context.pages) == 1
    assert not [url for url in answered if "ran=" in url]
    # Chromium lists some requests that the policy has stopped before they were sent.
    assert {refused[url] for url in refused if "ran=" in url} <= {"csp"}
    frames = [frame for frame in page.frames if frame is not page.main_frame]
    assert len(frames) > 2 * len(ATTACKS)
    for frame in page.frames:
        assert await frame.evaluate("() => window.ran") is None
        assert "/console" in frame.url
    heights = "frames => Math.max(...frames.map(each => each.offsetHeight))"
    assert await page.locator("iframe").evaluate_all(heights) < 1000


async def test_the_attacks_would_work_in_a_page_without_protection(here: Console) -> None:
    """Otherwise the test above would show nothing."""
    page = await here.page.context.new_page()
    ran = []
    for name in ("script", "error", "load", "svg-load", "toggle", "svg-animate", "focus"):
        html = attack(name).replace("&apos;", '"') if "<script" in ATTACKS[name] else attack(name)
        await page.set_content(html)
        await page.wait_for_function("() => window.ran")
        ran += await page.evaluate("() => window.ran")
        await page.evaluate("() => { window.ran = undefined }")
    assert {"script", "error", "load", "svg-load", "toggle", "svg-animate", "focus"} <= set(ran)


async def test_a_script_in_the_frame_could_do_nothing(here: Console) -> None:
    """The second line of defence, if a script ran there after all."""
    page = here.page
    await here.run("from IPython.display import HTML\nHTML('<p>here</p>')")
    await page.frame_locator(".cell:last-child iframe").locator("p").wait_for()
    frame = page.frames[-1]
    address = page.url
    tried = await frame.evaluate(
        """async () => {
          // Without an origin, some of these fail for other reasons, too.
          const blocked = (directive, address) => new Promise(resolve =>
            document.addEventListener('securitypolicyviolation', event => {
              if (event.effectiveDirective === directive && event.blockedURI.startsWith(address)) {
                resolve();
              }
            }));
          const reports = [
            blocked('connect-src', 'http'),
            blocked('connect-src', 'ws'),
            blocked('worker-src', 'blob')
          ];
          const attempts = {
            page: () => parent.document.title,
            top: () => { top.location = '/api/kernels?ran=top'; },
            cookies: () => document.cookie,
            storage: () => localStorage.length,
            fetch: () => fetch('/api/kernels?ran=fetch', { credentials: 'include' }),
            websocket: () => new Promise((resolve, reject) => {
              const socket = new WebSocket(`ws://${new URL(location.href).host}/api/kernels`);
              socket.onerror = reject;
              socket.onopen = resolve;
            }),
            worker: () => new Promise((resolve, reject) => {
              const code = URL.createObjectURL(new Blob(['postMessage(1)']));
              const worker = new Worker(code);
              worker.onerror = reject;
              worker.onmessage = resolve;
            }),
            form: () => {
              const form = document.createElement('form');
              form.action = '/api/kernels?ran=form';
              document.body.append(form);
              form.submit();
              return Promise.reject(new Error('not sent'));
            }
          };
          const results = {};
          for (const [name, attempt] of Object.entries(attempts)) {
            try {
              await attempt();
              results[name] = 'worked';
            } catch {
              results[name] = 'failed';
            }
          }
          await Promise.all(reports);
          return [results, self.origin];
        }"""
    )
    results, origin = tried
    assert origin == "null"
    assert set(results.values()) == {"failed"}, json.dumps(results)
    assert page.url == address


async def test_output_that_leaves_its_frame_is_removed(here: Console) -> None:
    page = here.page
    await here.run("from IPython.display import HTML\nHTML('<p>here</p>')")
    await page.frame_locator(".cell:last-child iframe").locator("p").wait_for()
    await page.frames[-1].evaluate("() => { location.href = '/page/icon.svg' }")
    await page.wait_for_selector(".html-output .notice")
    assert await page.locator("iframe").count() == 0


async def test_links_open_a_tab_without_the_cookie(here: Console, server: Server) -> None:
    page = here.page
    target = f"{server.url}/api/status"
    await here.run(f"from IPython.display import HTML\nHTML('<a href=\"{target}\">out</a>')")
    async with page.context.expect_page() as opening:
        await page.frame_locator(".cell:last-child iframe").locator("a").click()
    opened = await opening.value
    await opened.wait_for_load_state()
    assert opened.url == target
    assert "Forbidden" in (await opened.text_content("body") or "")
    assert await opened.evaluate("() => window.opener") is None


# -- accessibility --------------------------------------------------------------------------------

OPTIONS: tuple[dict[str, Any], ...] = (
    {"color_scheme": "light"},
    {"color_scheme": "dark", "viewport": {"width": 360, "height": 740}},
)


@pytest.mark.parametrize("options", OPTIONS, ids=["light", "dark-phone"])
async def test_axe_finds_nothing(
    server: Server, own_kernel: str, node_modules: Path, options: dict[str, Any]
) -> None:
    async with chromium_page(**options) as page:
        page.set_default_timeout(TIMEOUT * 1000)
        here = Console(page)
        await page.goto(f"{server.url}/console?token={TOKEN}")
        await page.wait_for_selector(".card")
        assert await findings(page, node_modules) == []
        await here.open(server.url, own_kernel)
        assert await findings(page, node_modules) == []  # without cells
        colours = "".join(f"\\x1b[{n}m{n} " for n in (*range(30, 38), *range(90, 98)))
        await here.run(f"import sys\n# note\nprint('{colours}\\x1b[0m')\nprint(1, file=sys.stderr)")
        await here.run(
            "from IPython.display import *\nimport base64\n"
            "display(HTML('<table><tr><th>a<td>1</table>'), JSON({'a': [1, 'x', None]}), "
            f"Image(base64.b64decode('{PNG}'), format='png'), Markdown('# T'))"
        )
        await here.run("def broken(): return 1 / 0\nbroken()")
        await page.fill("#editor", "import os; os.path.ex")
        await page.press("#editor", "Tab")
        await page.wait_for_selector("#completions [aria-selected=true]")
        assert await findings(page, node_modules) == []
        await here.type("input('who? ')")
        await page.wait_for_selector(".ask")
        await page.click("#restart")
        await page.wait_for_selector("#confirm-restart[open]")
        assert await findings(page, node_modules) == []
        width = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert await page.evaluate(width) == 0
