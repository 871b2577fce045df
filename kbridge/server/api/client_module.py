"""`/kbridge.js`: the client for browser pages, so that a page can load it from its server."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import kbridge
from kbridge.errors import NotFound
from kbridge.server.api.access import AccessMixin

__all__ = ["ClientModuleHandler", "client_module"]

_PACKAGE = Path(kbridge.__file__).parent
# In a wheel, and in a clone or a source distribution.
_PLACES = (_PACKAGE / "server" / "static", _PACKAGE.parent / "client-js")


@cache
def client_module() -> bytes:
    """Return the module; empty if this installation does not have it."""
    for place in _PLACES:
        try:
            return (place / "kbridge.js").read_bytes()
        except OSError:
            continue
    return b""


class ClientModuleHandler(AccessMixin):
    """`/kbridge.js`: browsers load modules without credentials, so it needs no token."""

    public = True

    def get(self) -> None:
        """Send the module, or 304 if the browser has this version of it."""
        module = client_module()
        if not module:
            raise NotFound("this installation of kbridge does not have kbridge.js")
        self.set_header("Content-Type", "text/javascript; charset=utf-8")
        # The module belongs to the version of the server, so a browser asks each time.
        self.set_header("Cache-Control", "public, no-cache")
        self.finish(module)  # Tornado adds an ETag, and compares it with the browser's

    def head(self) -> None:
        """Answer like `get`, without the body."""
        self.get()
