"""A real Chromium, and pages from other origins than the server's."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from fnmatch import fnmatchcase
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.require import require

if TYPE_CHECKING:
    from playwright.async_api import Page

__all__ = ["chromium_page", "served"]

_ARGUMENTS = [
    "--no-sandbox",
    "--headless=new",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """Serve files; give the origin (`http://127.0.0.1:port`)."""
    handler = partial(_Quiet, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{httpd.server_port}"
        finally:
            httpd.shutdown()
            thread.join()


@asynccontextmanager
async def chromium_page(*tolerated: str, **options: Any) -> AsyncIterator[Page]:
    """Open an empty page; uncaught errors of its scripts fail the test, except tolerated ones.

    The tolerated errors are patterns as for file names, with `*`.

    Options are those of `Browser.new_context`.
    """
    executable = require("chromium", "playwright")
    from playwright.async_api import async_playwright

    faults: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=executable, args=_ARGUMENTS, headless=True
        )
        context = await browser.new_context(**options)
        page = await context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        try:
            yield page
        finally:
            await browser.close()
    faults = [fault for fault in faults if not any(fnmatchcase(fault, each) for each in tolerated)]
    assert not faults, faults
