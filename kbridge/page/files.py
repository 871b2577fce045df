"""The files of the pages, and the headers that they are sent with.

The standalone server and the extension of Jupyter Server authenticate clients in different ways, so
each has its own handlers, which call `send_page` and `send_file`.

Only names in the package's directory of static files are served. The paths of requests never become
paths of files: they are looked up in a table that was read from the directory.
"""

from __future__ import annotations

import html
from functools import cache
from pathlib import Path
from typing import Final

from tornado import web

from kbridge.errors import NotFound
from kbridge.page import frame

__all__ = ["POLICY", "accepts_html", "send_file", "send_page"]

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'self'"
)
"""The content security policy: nothing but the files and the API of this server."""

_STATIC: Final = Path(__file__).parent / "static"
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".woff2": "font/woff2",
}
_PLACEHOLDER: Final = 'data-api=""'


@cache
def _files() -> dict[str, Path]:
    """Return the static files by name, such as `page.js` or `vendor/uplot.js`."""
    return {
        str(path.relative_to(_STATIC)): path
        for path in _STATIC.rglob("*")
        if path.suffix in _TYPES and path.is_file()
    }


@cache
def _content(name: str) -> bytes:
    path = _files().get(name)
    if path is None:
        raise NotFound("no such file")
    return path.read_bytes()


@cache
def _policy_of(name: str) -> str:
    return frame.frame_policy(_content(name).decode()) if name == frame.NAME else POLICY


def accepts_html(request_accept: str) -> bool:
    """Return True if a header Accept names HTML, as those of browsers do."""
    return "text/html" in request_accept.lower()


def send_page(handler: web.RequestHandler, name: str, api: str, *, can_log_out: bool) -> None:
    """Finish with one of the pages.

    Parameters
    ----------
    handler : RequestHandler
        The handler of the request, which was authenticated.
    name : str
        The name of the file.
    api : str
        The path below which the page finds `api/kernels`.
    can_log_out : bool
        True to show a link to `/logout`.
    """
    text = _content(name).decode()
    values = f'data-api="{html.escape(api)}"' + (' data-logout="yes"' if can_log_out else "")
    _set_headers(handler, name)
    # The page shows the state of the server, and whether the browser is logged in.
    handler.set_header("Cache-Control", "no-store")
    handler.set_header("Cross-Origin-Opener-Policy", "same-origin")
    handler.finish(text.replace(_PLACEHOLDER, values, 1))


def send_file(handler: web.RequestHandler, name: str) -> None:
    """Finish with a static file, or with 304 if the browser has it.

    Raises
    ------
    NotFound
        If no file has that name.
    """
    content = _content(name)
    _set_headers(handler, name)
    # The files belong to the version of the server, so a browser asks each time.
    handler.set_header("Cache-Control", "private, no-cache")
    handler.finish(content)  # Tornado adds an ETag, and compares it with the browser's


def _set_headers(handler: web.RequestHandler, name: str) -> None:
    handler.set_header("Content-Type", _TYPES[Path(name).suffix])
    handler.set_header("Content-Security-Policy", _policy_of(name))
    handler.set_header("X-Content-Type-Options", "nosniff")
    handler.set_header("Referrer-Policy", "same-origin")
