"""Runs a server until a signal arrives, and communicates with the operator."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Callable
from typing import Protocol
from urllib.parse import quote

from kbridge._version import __version__
from kbridge.errors import KbridgeError
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.server.cli.terminal import Question, can_ask, say
from kbridge.server.config import ServerConfig
from kbridge.server.restart import reap_inherited
from kbridge.server.server import Server
from kbridge.wire import speedups

__all__ = ["Hooks", "serve"]

# Windows does not have SIGHUP.
_SIGNALS = [signal.Signals[n] for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]


class Hooks(Protocol):
    """Methods of the application that run while the server starts.

    The application, of which users may write subclasses, imports this module to run a server; so
    this module cannot name its class.
    """

    def attached_ids(self) -> list[str]:
        """Return the ids of the kernels that `prepare` will attach."""

    async def prepare(self, kernels: BridgeKernelManager) -> None:
        """Check or attach kernels, before connections are accepted."""

    def listening(self, url: str) -> None:
        """Act once connections are accepted at `url`."""


async def serve(config: ServerConfig, hooks: Hooks, log: logging.Logger) -> bool:
    """Run a server; return when a signal has arrived and everything is closed.

    A second signal kills the kernels instead of asking them to shut down. If the start fails,
    kernels that ran before it keep running.

    Returns
    -------
    bool
        True if the program must be started again, see `kbridge.server.restart`.
    """
    gc.freeze()  # imported objects stay, so collections need not visit them
    gc.enable()
    loop = asyncio.get_running_loop()
    run = _Run(config, hooks, log)
    reap_inherited()
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            _handle(loop, number, run.on_signal)
        elif number in (signal.SIGINT, signal.SIGTERM):
            # A shell that started this server in the background has set it to be ignored. Child
            # processes inherit that, but not a handler: this way kernels can be interrupted.
            signal.signal(number, _do_nothing)
    if hasattr(signal, "SIGUSR2"):  # ignored since the program before, if there was one
        # Not a handler of the event loop: to remove that would restore the default for a moment, in
        # which the signal ends the process.
        before = signal.signal(
            signal.SIGUSR2,
            lambda *_: loop.call_soon_threadsafe(run.on_restart_signal, signal.SIGUSR2),
        )
    stopping = asyncio.create_task(run.stop.wait())
    # A seed notebook may take long to download: a signal must not wait for it.
    opening = asyncio.create_task(run.open())
    requests = asyncio.create_task(run.follow_requests())
    restarts = asyncio.create_task(run.follow_restarts())
    try:
        await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            opening.result()
        # The objects created so far stay: garbage collections need not visit them again.
        gc.freeze()
        await stopping
    finally:
        tasks = {opening, stopping, requests, restarts, *run.asking}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        failed = not opening.cancelled() and opening.exception() is not None
        keep = failed or run.restarting or not config.shutdown_kernels_on_exit
        await run.server.aclose(run.force, keep=keep, restart=run.restarting)
        if hasattr(signal, "SIGUSR2"):
            signal.signal(signal.SIGUSR2, signal.SIG_IGN if run.restarting else before)
    if run.restarting:
        _ignore_signals()
    return run.restarting


def _ignore_signals() -> None:
    """Let the next program find signals ignored: `exec` resets handlers to the defaults."""
    for number in _SIGNALS:
        if signal.getsignal(number) is _do_nothing:
            signal.signal(number, signal.SIG_IGN)


def _do_nothing(*_: object) -> None:
    """Handle a signal without an effect."""


class _Run:
    """One run of a server: what its signals mean, and what the terminal shows.

    Attributes
    ----------
    stop : asyncio.Event
        Set when the server must shut down.
    force : asyncio.Event
        Set when kernels must be killed.
    restarting : bool
        True if the program must be started again after the end.
    asking : set of asyncio.Task
        Requests of a restart by signal.
    """

    def __init__(self, config: ServerConfig, hooks: Hooks, log: logging.Logger) -> None:
        self._hooks = hooks
        self._log = log
        self._question: Question | None = None
        self.server = Server(config, log)
        self.stop = asyncio.Event()
        self.force = asyncio.Event()
        self.restarting = False
        self.asking: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Open the server, and start kernels in advance.

        Raises
        ------
        KbridgeError
            If the server cannot start, or a setting names something that does not exist.
        """
        kernels = await self.server.open(self._hooks.attached_ids())
        await self._hooks.prepare(kernels)
        self.server.accept()
        _announce(self.server, self._log)
        self._hooks.listening(self.server.url)
        await kernels.open()
        await self.server.preload()
        if self.server.config.jupyterhub is not None:
            from kbridge.kernels.startup_checks import warn_of_shared_account

            await warn_of_shared_account(kernels)

    async def follow_requests(self) -> None:
        """Shut down when a client asks for it."""
        await self.server.shutdown_requested.wait()
        self._shut_down("POST /api/shutdown")

    async def follow_restarts(self) -> None:
        """Restart when that is requested."""
        await self.server.restart_requested.wait()
        if not self.stop.is_set():
            self._log.info("restarting: kernels stay, and so do their connections where possible")
            self.restarting = True
            self.stop.set()

    def on_restart_signal(self, _number: signal.Signals) -> None:
        """Request a restart that loses nothing, unless a request is being checked."""
        if self.asking or self.restarting:
            return
        task = asyncio.create_task(self._request_restart())
        self.asking.add(task)
        task.add_done_callback(self.asking.discard)

    async def _request_restart(self) -> None:
        try:
            await self.server.request_restart()
        except KbridgeError as error:
            self._log.error("SIGUSR2: %s", error)

    def on_signal(self, number: signal.Signals) -> None:
        """Shut down, ask first, or force a shutdown that is under way."""
        if self.stop.is_set() and self.restarting:
            self._log.info("%s: the server ends; kernels keep running", number.name)
            self.restarting = False
            return
        if self.stop.is_set():
            self.force.set()
            return
        count = self.server.kernels_that_end()
        question, self._question = self._question, None
        if question is not None:
            question.cancel()
        elif number is signal.SIGINT and count and not self.server.config.answer_yes and can_ask():
            kernels = f"{count} kernel{'' if count == 1 else 's'}"
            self._question = Question(
                f"\nShut down this server and {kernels} (y/[n])? Press Ctrl-C again to do so. ",
                lambda: self._shut_down(number.name),
                self._go_on,
            )
            return
        self._shut_down(number.name)

    def _shut_down(self, cause: str) -> None:
        """Begin to shut down, and log the cause and what happens to the kernels."""
        if not self.stop.is_set():
            self._log.info("%s: %s", cause, self.server.shutdown_message())
            self.stop.set()

    def _go_on(self) -> None:
        self._question = None
        say(f"The server keeps running at {self.server.url}\n")


def _handle(
    loop: asyncio.AbstractEventLoop,
    number: signal.Signals,
    handler: Callable[[signal.Signals], None],
) -> None:
    try:
        loop.add_signal_handler(number, handler, number)
    except NotImplementedError:  # Windows
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(handler, number))


def _announce(server: Server, log: logging.Logger) -> None:
    """Print the server's URL; with the token only if it is random, or to a terminal.

    The log of JupyterHub, which has what its services print, must not have the token.
    """
    auth, url = server.config.auth, server.url
    if not auth.token and server.config.jupyterhub is None and auth.resolver is None:
        who = "any page in any browser" if "*" in auth.allow_origin else "any client"
        log.warning("authentication is off: %s that reaches %s can run code", who, server.url)
    elif (auth.token_is_random and server.config.jupyterhub is None) or sys.stdout.isatty():
        url += f"?token={quote(auth.token)}"
    say(f"kbridge {__version__} serves kernels at\n    {url}\n")
    if sys.stdout.isatty():
        ends = server.config.shutdown_kernels_on_exit
        kernels = " and its kernels" if ends else "; kernels keep running"
        say(f"Press Ctrl-C to stop it{kernels}.\n")
    if (hub := server.config.jupyterhub) is not None:
        log.info("users of JupyterHub (%s) have their own kernels", hub.api_url)
    log.info("the functions of the hot path are %s", speedups.used)
