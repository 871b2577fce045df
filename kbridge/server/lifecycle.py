"""From listening to the end.

The order of the start: first the address is taken, so that clients that come back wait instead of
being refused; then kernels that outlived the server before are found, so that they see no 404; then
clients are let in.

The order of the end, which every kernel and client relies on: no new connections, websockets
closed with 1001, kernels told to go or let go of (their restarters first), hubs closed, what is
left of the connections cut, runtime file and socket removed.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from kbridge._version import __version__
from kbridge.hub.table import GOING_AWAY
from kbridge.server.auth.credentials import recall
from kbridge.server.cli.terminal import Question, can_ask, say
from kbridge.server.components import Wired, wire
from kbridge.server.http import listen
from kbridge.server.http.acceptor import raise_descriptor_limit
from kbridge.server.http.connection_limiter import ConnectionLimits
from kbridge.server.http.guarded_server import GuardedServer
from kbridge.server.runtime_file import RuntimeFile
from kbridge.server.safe_log import hide

if TYPE_CHECKING:
    from kbridge.server.cli.app import KbridgeApp

__all__ = ["Server", "serve"]

_CUT_AFTER = 1.0
_BUFFER_MARGIN = 1 << 20
# Windows has no SIGHUP.
_SIGNALS = [signal.Signals[n] for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]


async def serve(app: KbridgeApp) -> None:
    """Listen, and return when a signal has come and everything is gone.

    A second signal kills the kernels instead of asking them. A start that fails ends no kernel
    that was there before it.
    """
    loop = asyncio.get_running_loop()
    server = Server(app)
    signals = _SignalHandler(app, server)
    stop, hurry = signals.stop, signals.hurry
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup asked for that
            _handle(loop, number, signals)
        elif number in (signal.SIGINT, signal.SIGTERM):
            # Ignored by the shell that started this server in the background. Processes inherit
            # that, but not a handler: kernels can be interrupted.
            signal.signal(number, _do_nothing)
    server.on_shutdown = lambda: signals.end("POST /api/shutdown")
    stopping = asyncio.create_task(stop.wait())
    # A seed notebook may take its time to come: a signal must not wait for it.
    opening = asyncio.create_task(server.open())
    try:
        await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            opening.result()
        # What was made by now stays: full collections need not walk it again and again.
        gc.freeze()
        await stopping
    finally:
        for task in (opening, stopping):
            task.cancel()
        await asyncio.wait({opening, stopping})
        failed = not opening.cancelled() and opening.exception() is not None
        await server.aclose(hurry, keep=failed or not app.shutdown_kernels_on_exit)


def _do_nothing(*_: object) -> None:
    """Handle a signal that is to have no effect."""


class _SignalHandler:
    """Decides what a signal means: the end, a question first, or that the end is too slow."""

    def __init__(self, app: KbridgeApp, server: Server) -> None:
        self._app = app
        self._server = server
        self._question: Question | None = None
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()

    def __call__(self, number: signal.Signals) -> None:
        if self.stop.is_set():
            self.hurry.set()
            return
        count = self._server.kernels_that_end()
        asked, self._question = self._question, None
        if asked is not None:
            asked.cancel()
        elif number is signal.SIGINT and count and not self._app.answer_yes and can_ask():
            kernels = f"{count} kernel{'' if count == 1 else 's'}"
            self._question = Question(
                f"\nShut down this server and {kernels} (y/[n])? Ctrl-C again does. ",
                lambda: self.end(number.name),
                self._go_on,
            )
            return
        self.end(number.name)

    def end(self, cause: str) -> None:
        """Begin to end the server, and log why and what happens to its kernels."""
        if not self.stop.is_set():
            self._app.log.info("%s: %s", cause, self._server.farewell())
            self.stop.set()

    def _go_on(self) -> None:
        self._question = None
        say(f"The server goes on at {self._server.url}\n")


def _handle(
    loop: asyncio.AbstractEventLoop,
    number: signal.Signals,
    handler: Callable[[signal.Signals], None],
) -> None:
    try:
        loop.add_signal_handler(number, handler, number)
    except NotImplementedError:  # Windows
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(handler, number))


class Server:
    """One server that listens.

    Parameters
    ----------
    app : KbridgeApp
        Its settings.

    Attributes
    ----------
    url : str
        Where it is, without the token.
    on_shutdown : callable, optional
        Called when a client asks for the end of the server; to be set before `open`.
    """

    on_shutdown: Callable[[], None] | None = None

    def __init__(self, app: KbridgeApp) -> None:
        self._app = app
        self._log: logging.Logger = app.log
        self._wired: Wired | None = None
        self._http: GuardedServer | None = None
        self._runtime: RuntimeFile | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._sockets: list[socket.socket] = []
        self._socket_file: tuple[int, int] | None = None
        self.port = 0
        self.url = ""

    async def open(self) -> None:
        """Find kernels again, listen, then begin to start kernels ahead.

        Raises
        ------
        ListenError
            If there is nowhere to listen.
        RegistryError
            If the registry of kernels cannot be used.
        KbridgeError
            If the settings name a kernelspec or notebook that is not there.
        """
        raise_descriptor_limit(self._app.min_open_files_limit)
        context = self._context()
        self._sockets = self._bind()
        self.url = self._make_url(secure=context is not None)
        self._recall_credentials()
        self._wired = wired = wire(self._app, self.port)
        wired.services.shutdown = self.on_shutdown
        wired.sessions.take_up(await wired.kernels.adopt())
        await self._app.prepare(wired.kernels)
        self._http = GuardedServer(
            wired.application,
            auth=wired.services.auth,
            limits=ConnectionLimits(
                self._app.max_unauthenticated_connections,
                self._app.request_timeout,
                self._app.keep_alive_timeout,
            ),
            log=self._log,
            ssl_options=context,
            xheaders=self._app.trust_xheaders,
            max_body_size=self._app.max_body_size,
            max_header_size=self._app.max_header_size,
            max_header_count=self._app.max_header_count,
            # A websocket's message must fit in the stream's buffer, and the next one's beginning.
            max_buffer_size=self._app.websocket_max_message_size + _BUFFER_MARGIN,
        )
        self._http.add_sockets(self._sockets)
        self._sockets = []
        self._runtime = RuntimeFile(Path(self._app.runtime_dir), self._info())
        self._runtime.write()
        self._keeping = asyncio.create_task(self._runtime.keep(self._log))
        if wired.keepalive is not None:
            wired.keepalive.start()
        self._announce()
        await wired.kernels.open()

    def kernels_that_end(self) -> int:
        """Return how many kernels in use would end with this server now."""
        wired = self._wired
        stay = not self._app.shutdown_kernels_on_exit
        return 0 if wired is None or stay else len(wired.kernels.models())

    def farewell(self) -> str:
        """What is about to happen at the end, in one sentence."""
        count = self._wired.kernels.staying() if self._wired is not None else 0
        kernels = f"{count} kernel{'' if count == 1 else 's'}"
        if self._app.shutdown_kernels_on_exit:
            return f"{kernels} and all connections are being closed; once more to hurry"
        return f"{kernels} will stay for the next start; all connections are being closed"

    async def aclose(self, hurry: asyncio.Event | None = None, *, keep: bool | None = None) -> None:
        """End everything; may be called twice.

        Parameters
        ----------
        hurry : asyncio.Event, optional
            Set when kernels are to be killed rather than asked.
        keep : bool, optional
            Whether kernels are to stay, where there is a registry; by default as the settings say.
        """
        if keep is None:
            keep = not self._app.shutdown_kernels_on_exit
        for unused in self._sockets:
            unused.close()
        http, self._http = self._http, None
        wired, self._wired = self._wired, None
        if http is not None:
            http.stop()
        if wired is not None:
            wired.services.closing = True
            if wired.keepalive is not None:
                wired.keepalive.stop()
            for websocket in list(wired.services.websockets):
                websocket.close(GOING_AWAY, "the server is shutting down")
            keep = keep and wired.ledger.enabled
            await self._end_kernels(wired, hurry or asyncio.Event(), keep=keep)
            if not keep:
                wired.sessions.drop_orphans()
            await wired.hubs.aclose()
            await wired.ledger.aclose()
        if http is not None:
            try:
                await asyncio.wait_for(http.close_all_connections(), _CUT_AFTER)
            except TimeoutError:
                self._log.info("connections that did not end were cut")
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        if self._runtime is not None:
            self._runtime.remove()
        self._remove_socket_file()

    async def _end_kernels(self, wired: Wired, hurry: asyncio.Event, *, keep: bool) -> None:
        ending = wired.kernels.let_go() if keep else wired.kernels.shutdown_all()
        asked = asyncio.create_task(ending)
        hurried = asyncio.create_task(hurry.wait())
        await asyncio.wait({asked, hurried}, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not asked.done():
            asked.cancel()
            await asyncio.wait({asked})
            if not keep:
                await wired.kernels.shutdown_all(now=True)
        elif (error := asked.exception()) is not None:
            self._log.error("kernels could not be shut down or left", exc_info=error)

    def _context(self) -> ssl.SSLContext | None:
        app = self._app
        return listen.make_context(
            listen.TlsFiles(app.certfile, app.keyfile, app.client_ca, app.ssl_version)
        )

    def _bind(self) -> list[socket.socket]:
        app = self._app
        if app.sock:
            path = Path(app.sock)
            sockets = [listen.bind_unix(path, int(app.sock_mode, 8))]
            status = path.stat()
            self._socket_file = (status.st_dev, status.st_ino)
            return sockets
        sockets, self.port = listen.bind_tcp(app.ip, app.port, app.port_retries, app.log)
        return sockets

    def _recall_credentials(self) -> None:
        """Use the token and cookie secret of the last server on this address, where none is set."""
        app = self._app
        # Reading the two draws the defaults, and marks them as drawn.
        if not app.token or not app.cookie_secret:
            return
        if not (app.token_is_random or app.cookie_secret_is_random):
            return
        if not app.sock and not app.port:
            return  # the next start on any free port has another address
        address = app.sock or f"{app.ip or '*'}:{self.port}"
        kept = recall(Path(app.runtime_dir), address, self._log)
        if app.token_is_random:
            app.token = kept.token
            hide(kept.token)
        if app.cookie_secret_is_random:
            app.cookie_secret = kept.cookie_secret

    def _remove_socket_file(self) -> None:
        """Remove our socket, but not one that somebody has put in its place."""
        path = Path(self._app.sock)
        if self._socket_file is not None and path.exists():
            status = path.stat()
            if (status.st_dev, status.st_ino) == self._socket_file:
                path.unlink()
        self._socket_file = None

    def _make_url(self, *, secure: bool) -> str:
        app = self._app
        if app.sock:
            return f"http{'s' * secure}+unix://{quote(app.sock, safe='')}{app.base_url}"
        host = app.ip if app.ip not in ("", "0.0.0.0", "::") else "127.0.0.1"  # noqa: S104
        if ":" in host:
            host = f"[{host}]"
        return f"http{'s' * secure}://{host}:{self.port}{app.base_url}"

    def _info(self) -> dict[str, Any]:
        app = self._app
        return {
            "url": self.url,
            "hostname": app.ip or "*",
            "port": self.port,
            "sock": app.sock,
            "secure": bool(app.certfile),
            "client_certificates": bool(app.client_ca),
            "base_url": app.base_url,
            "token": app.token,
            "keeps_kernels": not app.shutdown_kernels_on_exit,
            "certfile": str(Path(app.certfile).absolute()) if app.certfile else "",
            "version": __version__,
        }

    def _announce(self) -> None:
        """Say where the server is; the token only to a terminal, or where nobody else knows it."""
        app = self._app
        url = self.url
        if not app.token:
            who = "any page in any browser" if "*" in app.allow_origin else "whoever"
            app.log.warning("no token is asked for: %s that reaches %s may run code", who, self.url)
        elif app.token_is_random or sys.stdout.isatty():
            url += f"?token={quote(app.token)}"
        say(f"kbridge {__version__} serves kernels at\n    {url}\n")
        if sys.stdout.isatty():
            kernels = " and its kernels" if app.shutdown_kernels_on_exit else "; kernels stay"
            say(f"Ctrl-C stops it{kernels}.\n")
        app.listening(self.url)
