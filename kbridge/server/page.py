"""The page at `/`: what runs here, for a browser; and the door that asks it for the token."""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.metadata
import platform
from http.client import responses
from typing import Any

from kbridge._version import __version__
from kbridge.errors import KbridgeError, NotFound
from kbridge.server.access import AccessMixin
from kbridge.server.policy import Via

__all__ = ["FaviconHandler", "PageHandler", "ReadmeHandler"]

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 40rem; margin: 3rem auto; padding: 0 1rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.5rem }
dt { opacity: .7 } dd { margin: 0 }
input, button { font: inherit; padding: .35rem .6rem }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'self'"
)
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" '
    'rx="7" fill="#1f4e79"/><path d="M3 23h26M7 23V11m18 12V11M3 17Q7 16 7 11q9 12 18 0 0 5 4 6" '
    'fill="none" stroke="#fff" stroke-width="2.4"/></svg>'
)


def document(title: str, body: str, base_url: str) -> str:
    """Return a whole page; `body` is HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f'<link rel="icon" href="{html.escape(base_url)}favicon.ico">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body>{body}</body></html>\n"
    )


class PageHandler(AccessMixin):
    """`/`: version and numbers; without a token, a form that asks for it."""

    def prepare(self) -> None:
        """Let the form through: a wrong token in it is told on the page."""
        if self.request.method == "POST":
            # Declared public for this one method, which checks the token itself.
            decision = self.services.access.decide(self.asked(), public=True)
            if decision.allowed:
                return
        super().prepare()

    def set_default_headers(self) -> None:
        """Allow our own style sheet and form, and nothing else."""
        super().set_default_headers()
        self.set_header("Content-Security-Policy", _POLICY)
        self.set_header("Cache-Control", "no-store")
        self.set_header("Cross-Origin-Opener-Policy", "same-origin")

    def get(self) -> None:
        """Show what runs here; a token in the URL becomes a cookie."""
        if self.via is Via.QUERY:
            self._remember()
        services = self.services
        models = services.kernels.models()
        facts = {
            "Version": __version__,
            "Python": platform.python_version(),
            "Kernels": str(len(models)),
            "Connections": str(sum(int(model["connections"]) for model in models)),
        }
        rows = "".join(f"<dt>{name}</dt><dd>{html.escape(v)}</dd>" for name, v in facts.items())
        base = html.escape(services.base_url)
        self.finish(
            document(
                "kbridge",
                "<h1>kbridge</h1><p>A bridge between Jupyter frontends and Jupyter kernels. "
                "Point a frontend at this address.</p>"
                f'<dl>{rows}</dl><p><a href="{base}readme">README</a> · '
                f'<a href="{base}api/status">status</a> · '
                f'<a href="{base}api/kernelspecs">kernelspecs</a></p>',
                services.base_url,
            )
        )

    def post(self) -> None:
        """Take the token from the form, and go to the page without it in the URL."""
        offered = self.request.body_arguments.get("token", [b""])[-1]
        if not self.services.access.is_token(offered.strip()):
            self.send_error(403)
            return
        self._remember()
        self.redirect(self.services.base_url, status=303)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Write the error as a page for a browser, as JSON for a program."""
        if "text/html" not in self.request.headers.get("Accept", "") or status_code >= 500:
            super().write_error(status_code, **kwargs)
            return
        error = kwargs.get("exc_info", (None, None, None))[1]
        reason = error.reason if isinstance(error, KbridgeError) else "that is not the token"
        if status_code != 403:
            reason = responses.get(status_code, "Unknown")
        base = html.escape(self.services.base_url)
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(
            document(
                "kbridge",
                f"<h1>kbridge</h1><p>{html.escape(reason)}</p><p>The terminal that kbridge runs "
                "in shows an address with the token, and so does <code>kbridge list</code>.</p>"
                f'<form method="post" action="{base}"><input name="token" type="password" '
                'autocomplete="off" aria-label="token" required> <button>Enter</button></form>',
                self.services.base_url,
            )
        )

    def _remember(self) -> None:
        """Give the browser a cookie that stands for the token."""
        if not self.services.access.auth_enabled:
            return
        self.set_cookie(
            self.services.cookie_name,
            self.services.access.cookie_value(),
            path=self.services.base_url,
            httponly=True,
            secure=self.request.protocol == "https",
            samesite="Strict",
        )


class ReadmeHandler(AccessMixin):
    """`/readme`: the README that this version was installed with, so that no network is needed."""

    def get(self) -> None:
        """Send it as text."""
        try:
            meta = importlib.metadata.metadata("kbridge")
        except importlib.metadata.PackageNotFoundError:
            raise NotFound(
                "kbridge runs without being installed, so its README is not here"
            ) from None
        text = str(meta.json.get("description", ""))
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(text)


class FaviconHandler(AccessMixin):
    """`/favicon.ico`: browsers ask for it by themselves, without credentials."""

    public = True

    def get(self) -> None:
        """Send the icon."""
        self.set_header("Content-Type", "image/svg+xml")
        self.set_header("Cache-Control", "public, max-age=86400")
        self.finish(_ICON)
