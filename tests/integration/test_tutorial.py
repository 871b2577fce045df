"""The steps of docs/tutorial.md, one after the other, with the files and commands of the page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ServerFactory
from tests.support.browser import chromium_page, served
from tests.support.server import TOKEN, Server
from tests.support.waiting import TIMEOUT

pytestmark = pytest.mark.kernel

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
COUNT, FOLLOW = (code for tag, code in BLOCKS if tag == "python")
[HTML] = (code for tag, code in BLOCKS if tag == "html")
# Without the lines that set a variable, or concern the environment.
COMMANDS = [
    line
    for tag, block in BLOCKS
    if not tag
    for line in block.splitlines()
    if line.startswith(("kbridge", "curl"))
]
WHOLE = "wanted => document.querySelector('#output').textContent === wanted"
# The tutorial prints a line per second.
FAST = ("time.sleep(1)", "time.sleep(0.01)")


def shell(server: Server, command: str, folder: Path, **variables: str) -> str:
    """Run a command of the page against the server of the test; return what it prints."""
    done = subprocess.run(
        ["bash", "-c", command.replace("localhost:8888", f"localhost:{server.port}")],
        cwd=folder,
        env={
            **server.environment,
            "PATH": f"{Path(sys.executable).parent}:{server.environment['PATH']}",
            "TOKEN": TOKEN,
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}\n{server.tail()}"
    return done.stdout


def command(start: str) -> str:
    [line] = [line for line in COMMANDS if line.startswith(start)]
    return line


def test_all_commands_are_known() -> None:
    """The tests below run each of them."""
    known = (
        "kbridge --allow-origin=",
        "kbridge list",
        "curl -s -X POST",
        "kbridge run",
        "curl -s -X DELETE",
    )
    assert len(COMMANDS) == len(known)
    for start in known:
        command(start)


def test_the_steps_without_a_page(new_server: ServerFactory, tmp_path: Path) -> None:
    [option] = command("kbridge --allow").split()[1:]
    server = new_server(option)
    assert f"token={TOKEN}" in shell(server, command("kbridge list"), tmp_path)
    kernel_id = json.loads(shell(server, command("curl -s -X POST"), tmp_path))["id"]
    (tmp_path / "count.py").write_text(COUNT.replace(*FAST))
    shown = shell(server, command("kbridge run"), tmp_path, ID=kernel_id).split()[-1]
    numbers = "".join(f"{number}\n" for number in range(30))
    assert shell(server, f"kbridge logs {shown} -f", tmp_path) == numbers
    (tmp_path / "follow.py").write_text(FOLLOW)
    for _ in range(2):
        assert shell(server, "python follow.py", tmp_path) == numbers
    assert shell(server, command("curl -s -X DELETE"), tmp_path, ID=kernel_id) == ""
    assert server.request("GET", "/api/kernels").json() == []


@pytest.mark.browser
@pytest.mark.slow
async def test_the_page_can_be_reloaded(new_server: ServerFactory, tmp_path: Path) -> None:
    with served(tmp_path) as origin:
        server = new_server(f"--allow-origin={origin}")
        server.start_kernel()
        html = HTML.replace("http://localhost:8888", server.url).replace(*FAST)
        (tmp_path / "page.html").write_text(html)
        async with chromium_page() as page:
            page.set_default_timeout(TIMEOUT * 1000)

            async def answer(dialog: Any) -> None:
                await dialog.accept(TOKEN)

            page.on("dialog", answer)
            await page.goto(f"{origin}/page.html")
            await page.locator("#output").filter(has_text="line 3").wait_for()
            for _ in range(2):  # while the code runs or later, and certainly later
                await page.reload()
                await page.wait_for_function(WHOLE, arg="".join(f"line {n}\n" for n in range(30)))
