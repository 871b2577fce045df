"""`connect`, and the server that it returns."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from kbridge.client.address import find_server
from kbridge.client.kernel import ClientOptions, Kernel
from kbridge.client.rest import Rest
from kbridge.errors import KbridgeError

__all__ = ["Server", "connect"]

_SHUTDOWN_S = 60.0  # for kernels whose start was cancelled


def connect(
    url: str = "",
    token: str = "",
    *,
    tls: ssl.SSLContext | None = None,
    buffer: int = 8 << 20,
    patience: float = 600.0,
    ping_interval: float = 20.0,
) -> Server:
    """Return a client of a server: ``async with connect() as server:``.

    Parameters
    ----------
    url, token : str
        The server: http, https, or http+unix with the quoted path of a socket. By default those in
        `KBRIDGE_URL` and `KBRIDGE_TOKEN`, or the server of this user that runs.
    tls : ssl.SSLContext, optional
        Verifies an https server; by default with the authorities of the system.
    buffer : int
        Bytes of unread output that an execution or a comm holds. Beyond it, this client stops
        reading, and the server keeps the output.
    patience : float
        Seconds without a connection after which a session fails with a `NetworkError`.
    ping_interval : float
        Seconds between pings to the server, and seconds for its answer.

    Raises
    ------
    NoServer
        If no server is named, and none or several run.
    InvalidRequest
        If the URL cannot be used.
    """
    address = find_server(url, token, tls)
    return Server(Rest(address), ClientOptions(buffer, patience, ping_interval))


class Server:
    """A server of kernels. Made by `connect`."""

    def __init__(self, rest: Rest, options: ClientOptions) -> None:
        self._rest = rest
        self._options = options
        self._kernels: list[Kernel] = []
        self._shutting_down: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        try:
            await self._rest.kernelspecs()  # checks the address and the token
        except BaseException:
            self._rest.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all sessions; kernels and executions go on. May be called twice."""
        if self._shutting_down:
            await asyncio.wait(self._shutting_down, timeout=_SHUTDOWN_S)
        while self._kernels:
            await self._kernels.pop().aclose()
        self._rest.close()

    @property
    def url(self) -> str:
        """The URL of the server, without a token."""
        return self._rest.address.url

    async def kernelspecs(self) -> dict[str, Any]:
        """Return the kernelspecs by name, and the name of the default one; see docs/rest.md."""
        return await self._rest.kernelspecs()

    async def kernels(self) -> list[dict[str, Any]]:
        """Return the models of all kernels; see docs/rest.md."""
        return await self._rest.kernels()

    async def start_kernel(
        self,
        name: str = "",
        *,
        env: Mapping[str, str] | None = None,
        path: str = "",
        on_progress: Callable[[str], object] | None = None,
    ) -> Kernel:
        """Start a kernel, and wait until it answers.

        Parameters
        ----------
        name : str
            The kernelspec; by default the default one of the server.
        env : mapping, optional
            Environment variables of the kernel; the server decides which ones it allows.
        path : str
            The directory of the kernel, below the root directory of the server.
        on_progress : callable, optional
            Called with `starting`, then `connecting` when the process runs, `waiting` while it does
            not answer, and `ready`. While the kernel waits in the queue of a scheduler, also with
            `waiting:` and the reason, whenever that changes.

        If it fails or is cancelled, the kernel is shut down.

        Raises
        ------
        KernelspecNotFound
            If the kernelspec does not exist.
        KernelStartError
            If it does not start; the reason has its last lines.
        KernelDied
            If it ends before it answers.
        """
        progress = on_progress or _ignore
        wanted: dict[str, Any] = {"name": name, "env": env and dict(env), "path": path}
        progress("starting")
        body = {key: value for key, value in wanted.items() if value}
        started = asyncio.create_task(self._rest.start(body))
        try:
            model = await asyncio.shield(started)
            progress("connecting")
            kernel = await self.kernel(str(model["id"]))
            progress("waiting")
            kernel.observe_reason(lambda reason: reason and progress(f"waiting: {reason}"))
            await kernel.kernel_info()
            kernel.observe_reason(None)
            progress("ready")
        except BaseException:
            # Nobody has its id. The request is not cancelled: the server may have begun.
            task = asyncio.create_task(self._shut_down(started))
            self._shutting_down.add(task)
            task.add_done_callback(self._shutting_down.discard)
            raise
        return kernel

    async def _shut_down(self, started: asyncio.Task[dict[str, Any]]) -> None:
        """Shut a kernel down whose start has failed or was cancelled."""
        with suppress(KbridgeError):
            kernel_id = str((await started)["id"])
            for kernel in list(self._kernels):
                if kernel.kernel_id == kernel_id:
                    await kernel.aclose()
            await self._rest.shutdown(kernel_id)

    async def kernel(self, kernel_id: str) -> Kernel:
        """Open a session on a kernel that runs.

        Raises
        ------
        KernelNotFound
            If the kernel does not exist.
        """
        kernel = Kernel(self._rest, kernel_id, self._options)
        await kernel.open()
        self._kernels = [each for each in self._kernels if not each.closed]
        self._kernels.append(kernel)
        return kernel


def _ignore(_stage: str) -> None:
    """Take a stage that nobody wants to know."""
