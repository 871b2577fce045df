"""The pages for browsers: the live view at `/`, the console, and their files.

A client whose header Accept does not name HTML receives a short overview at `/`, and so does every
client if the setting `page` is off.
"""

from __future__ import annotations

import html
import importlib.metadata
import platform

from kbridge._version import __version__
from kbridge.errors import Forbidden, NotFound, UsersUnavailable
from kbridge.kernels.users import OPERATOR, User, visible
from kbridge.page import events, files
from kbridge.page.sampler import Watcher
from kbridge.server.api.access import AccessMixin, ApiHandler
from kbridge.server.api.login import HtmlHandler
from kbridge.server.auth.access_policy import AuthMethod

__all__ = [
    "ConsoleHandler",
    "FaviconHandler",
    "LiveHandler",
    "PageHandler",
    "ReadmeHandler",
    "StaticHandler",
]

_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" '
    'rx="7" fill="#1f4e79"/><path d="M3 23h26M7 23V11m18 12V11M3 17Q7 16 7 11q9 12 18 0 0 5 4 6" '
    'fill="none" stroke="#fff" stroke-width="2.4"/></svg>'
)


class _BrowserHandler(HtmlHandler):
    """Base of the pages: they redirect to the login form without the token."""

    public = True

    def admit(self) -> bool:
        """Return False after a redirect to the login form; a token in the URL becomes a cookie."""
        if self.problem:
            raise UsersUnavailable(self.problem)
        # Somebody else may have made a link with the token of a user: the browser would then work
        # with that user's kernels, and its own user would not notice.
        foreign = self.auth_method is AuthMethod.QUERY and self.user != OPERATOR
        if self.auth_method is None or foreign:
            self.redirect_to_login()
            return False
        if self.auth_method is AuthMethod.QUERY:
            self.set_login_cookie()
        return True

    def send_page(self, name: str) -> None:
        """Finish with a page of scripts."""
        services = self.services
        can_log_out = services.auth.policy.auth_enabled
        files.send_page(self, name, services.base_url, can_log_out=can_log_out)


class PageHandler(_BrowserHandler):
    """`/` and `/tree`: the live view, or version and counts."""

    def get(self) -> None:
        """Show the page."""
        if not self.admit():
            return
        self.set_header("Vary", "Accept")
        if self.services.page and files.accepts_html(self.request.headers.get("Accept", "")):
            self.send_page("index.html")
        else:
            self._show_overview()

    def _show_overview(self) -> None:
        services = self.services
        models = visible(self.user, services.kernels.models())
        facts = {
            "Version": __version__,
            "Python": platform.python_version(),
            "Kernels": str(len(models)),
            "Connections": str(sum(int(model["connections"]) for model in models)),
        }
        rows = "".join(f"<dt>{name}</dt><dd>{html.escape(v)}</dd>" for name, v in facts.items())
        base = html.escape(services.base_url)
        logout = (
            f' · <a href="{base}logout">log out</a>' if services.auth.policy.auth_enabled else ""
        )
        self.show(
            "<p>A bridge between Jupyter frontends and Jupyter kernels. "
            "Point a frontend at this address.</p>"
            f'<dl>{rows}</dl><p><a href="{base}readme">README</a> · '
            f'<a href="{base}api/status">status</a> · '
            f'<a href="{base}api/kernelspecs">kernelspecs</a>{logout}</p>'
        )

    def head(self) -> None:
        """Answer like `get`, without the body."""
        self.get()

    def post(self) -> None:
        """Log in with the token from a form, as `/login` does."""
        self.log_in()


class ConsoleHandler(_BrowserHandler):
    """`/console`: a console of the kernel in the argument `kernel`."""

    def get(self) -> None:
        """Show the page."""
        if not self.services.page:
            raise NotFound("the pages are turned off; see KbridgeApp.page")
        if self.admit():
            self.send_page("console.html")

    def head(self) -> None:
        """Answer like `get`, without the body."""
        self.get()


class StaticHandler(AccessMixin):
    """`/page/...`: the files of the pages."""

    def get(self, name: str) -> None:
        """Send a file, or 304 if the browser has this version of it."""
        if not self.services.page:
            raise NotFound("the pages are turned off; see KbridgeApp.page")
        files.send_file(self, name)

    def head(self, name: str) -> None:
        """Answer like `get`, without the body."""
        self.get(name)


class LiveHandler(ApiHandler):
    """`/api/live`: the figures of all kernels once per second, as server-sent events."""

    activity = False

    async def get(self) -> None:
        """Send them until the client goes, or has lost access."""
        sampler = self.services.sampler
        if sampler is None:
            raise NotFound("the pages are turned off; see KbridgeApp.page")
        self.require_listing()
        watcher = sampler.watch(self.user)
        live = _Live(watcher, self.user)
        self.keep_checking(live)
        try:
            await events.stream(self, watcher)
        finally:
            self.stop_checking(live)


class _Live:
    """A stream of samples, as the end of its access ends it."""

    def __init__(self, watcher: Watcher, user: User) -> None:
        self._watcher = watcher
        self._user = user

    def still_allowed(self, user: User) -> bool:
        """Return True if a user still sees the same kernels; the page connects again otherwise."""
        return user == self._user

    def end_access(self, _: Forbidden) -> None:
        """Let the stream end with the next sample."""
        self._watcher.end()


class ReadmeHandler(AccessMixin):
    """`/readme`: the README of the installed version; needs no network."""

    def get(self) -> None:
        """Send the README as text."""
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
    """`/favicon.ico`: browsers fetch it without credentials."""

    public = True

    def get(self) -> None:
        """Send the icon."""
        self.set_header("Content-Type", "image/svg+xml")
        self.set_header("Cache-Control", "public, max-age=86400")
        self.finish(_ICON)
