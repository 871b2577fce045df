"""Starts and stops a server.

Order of the start: the address is bound first, so that clients that reconnect wait instead of being
refused. Then kernels that outlived the last server are adopted, so that clients do not get a 404
for them. Then connections are accepted.

Order of the shutdown: stop accepting, close websockets with 1001, end or detach kernels (their
restarters first), close hubs, cut the remaining connections, remove the runtime file and the unix
socket. Before a restart within the process, kernels are left, websockets are closed with 1012, and
the listening sockets are passed on.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import secrets
import socket
import ssl
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from kbridge._version import __version__
from kbridge.errors import Conflict
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.kernels.preload import preload
from kbridge.server.auth.credentials import Credentials, forget, recall, store
from kbridge.server.auth.jupyterhub import MODULES
from kbridge.server.components import Components, build
from kbridge.server.config import ServerConfig
from kbridge.server.http import listen
from kbridge.server.http.acceptor import raise_descriptor_limit
from kbridge.server.http.guarded_server import GuardedServer
from kbridge.server.metrics_listener import MetricsListener
from kbridge.server.restart import (
    ADVICE,
    check_losses,
    check_successors,
    inherited_sockets,
    installed_version,
    pass_sockets,
)
from kbridge.server.runtime_file import RuntimeFile
from kbridge.server.safe_log import hide
from kbridge.wire.closing import GOING_AWAY, SERVER_RESTARTS, SERVICE_RESTART

__all__ = ["Server"]

_CUT_AFTER = 1.0
_LONGEST_START = 45.0  # seconds; less than `kbridge restart` waits for the answer
_BUFFER_MARGIN = 1 << 20
_NOT_RUNNING = "the server is starting, or shutting down"


class Server:
    """One server: `open` it, check or attach kernels, then `accept` connections.

    Parameters
    ----------
    config : ServerConfig
    log : logging.Logger

    Attributes
    ----------
    config : ServerConfig
        With the token and cookie secret of the last server on this address, once it is open.
    port : int
        The port that it listens on; 0 for a unix socket.
    url : str
        Without the token.
    shutdown_requested : asyncio.Event
        Set when a client has asked for the shutdown.
    restart_requested : asyncio.Event
        Set by `request_restart`.
    """

    def __init__(self, config: ServerConfig, log: logging.Logger) -> None:
        self.config = config
        self.port = 0
        self.url = ""
        self.shutdown_requested = asyncio.Event()
        self.restart_requested = asyncio.Event()
        self._log = log
        self._components: Components | None = None
        self._context: ssl.SSLContext | None = None
        self._metrics: MetricsListener | None = None
        self._http: GuardedServer | None = None
        self._runtime: RuntimeFile | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._sockets: list[socket.socket] = []
        self._listening: list[socket.socket] = []
        self._socket_file: tuple[int, int] | None = None
        self._inherited = False  # True if the program before has opened the sockets
        self._checking: asyncio.Task[str] | None = None  # of the installed version

    async def open(self, attached: Collection[str] = ()) -> BridgeKernelManager:
        """Bind, and adopt the kernels of the last server.

        Parameters
        ----------
        attached : collection of str
            Ids of the kernels of other programs that the caller will attach.

        Returns
        -------
        BridgeKernelManager
            All kernels; the caller opens it after `accept`, to start kernels in advance.

        Raises
        ------
        ListenError
            If the server cannot listen on its address.
        RegistryError
            If the registry of kernels cannot be used.
        """
        raise_descriptor_limit(self.config.http.min_open_files_limit)
        self._context = listen.make_context(self.config.listen.tls)
        self._sockets = self._bind()
        self._metrics = MetricsListener(self.config.metrics, self.config.http, self._log)
        self.url = self.config.listen.url(self.port, self.config.base_url)
        self._recall_credentials()
        self._components = parts = build(self.config, self.port, self._log)
        parts.services.shutdown = self.shutdown_requested.set
        parts.services.restart = self.request_restart
        if parts.cluster is not None:
            await parts.cluster.membership.join()
            hide(parts.cluster.membership.secret)
            parts.cluster.open(
                parts.services, cookie_secret=self.config.auth.cookie_secret_is_random
            )
        owner = f"{platform.node()} {self.config.address}"
        parts.sessions.adopt(await parts.kernels.adopt(owner, attached))
        if parts.cluster is not None:
            await parts.cluster.hubs.open()
            await parts.cluster.ownership.open()
        return parts.kernels

    async def preload(self) -> None:
        """Import what the first kernel needs, so that it starts sooner; call it after `accept`."""
        assert self._components is not None, "the server is not open"
        more = MODULES if self._components.services.jupyterhub is not None else ()
        await preload(registry=self._components.registry.enabled, more=more)

    def accept(self) -> None:
        """Accept connections, and write the runtime file; called once, after `open`."""
        parts, http = self._components, self.config.http
        assert parts is not None, "the server is not open"
        self._http = GuardedServer(
            parts.application,
            auth=parts.services.auth,
            limits=http.connections,
            log=self._log,
            ssl_options=self._context,
            xheaders=http.trust_xheaders,
            max_body_size=http.max_body_size,
            heads=http.heads,
            # The stream's buffer must hold one websocket message and the beginning of the next.
            max_buffer_size=http.websocket_max_message_size + _BUFFER_MARGIN,
        )
        parts.hubs.accept_no_more()
        self._http.add_sockets(self._sockets)
        self._listening, self._sockets = self._sockets, []
        if self._metrics is not None:
            self._metrics.accept(parts.services, self._context)
        if parts.services.metrics is not None:
            parts.services.metrics.lag.start()
        if parts.services.user_activity is not None:
            parts.services.user_activity.start()
        self._runtime = RuntimeFile(self.config.runtime_dir, self._info())
        self._runtime.write()
        self._keeping = asyncio.create_task(self._runtime.keep(self._log))

    def kernels_that_end(self) -> int:
        """Return the number of kernels in use that would end with this server now."""
        parts = self._components
        stay = not self.config.shutdown_kernels_on_exit
        return 0 if parts is None or stay else len(parts.kernels.models())

    def shutdown_message(self) -> str:
        """Return a sentence for the log that says what the shutdown does to kernels."""
        count = self._components.kernels.count_staying() if self._components is not None else 0
        kernels = f"{count} kernel{'' if count == 1 else 's'}"
        if self.config.shutdown_kernels_on_exit:
            again = "signal again to kill the kernels"
            return f"shutting down {kernels} and closing all connections; {again}"
        return f"closing all connections; {kernels} will stay for the next start"

    async def request_restart(self, *, force: bool = False) -> str:
        """Request a restart within the process, if it loses nothing.

        A replica of a cluster gives its kernels to the others first.

        Parameters
        ----------
        force : bool
            True to request it although something is lost.

        Returns
        -------
        str
            The version of kbridge that will be started.

        Raises
        ------
        Conflict
            If something would be lost, or the installed version cannot be started.
            Kernels that clients are starting are waited for, and new starts refused meanwhile.
        SetupError
            If this system cannot replace the program of a process.
        """
        if self._checking is None:  # all requests of this time share one check
            self._checking = asyncio.create_task(asyncio.to_thread(installed_version))
            self._checking.add_done_callback(self._on_checked)
        version = await asyncio.shield(self._checking)
        parts = self._components
        if parts is None:
            raise Conflict(_NOT_RUNNING)
        # If the restart is refused, clients may start kernels again.
        with parts.kernels.hold_starts():
            await self._wait_for_starts(parts.kernels, force=force)
            if self._components is None or self._http is None:
                raise Conflict(_NOT_RUNNING)
            kernels = list(parts.kernels.index)
            if not force and parts.cluster is not None:
                # A replica that was started a moment ago is not in the last view.
                await parts.cluster.membership.refresh()
                check_successors(kernels, parts.cluster.ownership.kept())
            elif not force:
                check_losses(kernels, parts.hubs.settings, registry=parts.registry.enabled)
            # Not later: the start of a kernel that is admitted now would be cut off.
            parts.kernels.start_no_more()
        self.restart_requested.set()
        return version

    async def _wait_for_starts(self, kernels: BridgeKernelManager, *, force: bool) -> None:
        """Wait for kernels that clients are starting, which would end with this program."""
        starting = kernels.count_starting()
        if not starting:
            return
        self._log.info("the restart waits for %d kernel(s) that are starting", starting)
        limit = min(kernels.kernel_info_timeout, _LONGEST_START)
        try:
            async with asyncio.timeout(limit):
                await kernels.wait_for_starts()
        except TimeoutError:
            if not force:
                raise Conflict(
                    f"{kernels.count_starting()} kernel(s) are still starting after {limit:g} s,"
                    f" and would end. {ADVICE}"
                ) from None

    def _on_checked(self, check: asyncio.Task[str]) -> None:
        self._checking = None
        if not check.cancelled():
            check.exception()  # retrieved: perhaps no request waits

    async def aclose(
        self,
        force: asyncio.Event | None = None,
        *,
        keep: bool | None = None,
        restart: bool = False,
    ) -> None:
        """Shut down; a second call has no effect.

        Parameters
        ----------
        force : asyncio.Event, optional
            Once it is set, kernels are killed instead of asked to shut down.
        keep : bool, optional
            True if kernels stay, provided that there is a registry; by default as configured.
        restart : bool
            True if `start_again` follows: kernels stay, and so do the listening sockets.
        """
        if keep is None:
            keep = restart or not self.config.shutdown_kernels_on_exit
        # Also before a restart: in a cluster, connections to kernels end with the program.
        keep = await self._drain(force) or keep
        if restart and self._listening:
            self._pass_on()
        self._listening = []
        for unused in self._sockets:
            unused.close()
        http, self._http = self._http, None
        parts, self._components = self._components, None
        if http is not None:
            http.stop()
        await self._end_monitoring(parts)
        if parts is not None:
            await self._end_parts(parts, force, keep=keep, restart=restart)
        if http is not None:
            try:
                await asyncio.wait_for(http.close_all_connections(), _CUT_AFTER)
            except TimeoutError:
                self._log.info("cut connections that did not close within %.0f s", _CUT_AFTER)
        await self._end_tasks()
        if self._runtime is not None:
            self._runtime.remove()
        self._remove_socket_file()

    async def _end_parts(
        self, parts: Components, force: asyncio.Event | None, *, keep: bool, restart: bool
    ) -> None:
        again = restart or parts.cluster is not None  # clients go on with the next program
        if again:
            _close_websockets(parts, SERVICE_RESTART, SERVER_RESTARTS)
        else:
            _close_websockets(parts, GOING_AWAY, "the server is shutting down")
        keep = keep and parts.registry.enabled
        if parts.cluster is not None:
            await parts.cluster.ownership.aclose()
            await parts.cluster.hubs.aclose()
        await self._end_kernels(parts, force or asyncio.Event(), keep=keep)
        if not keep:
            parts.sessions.drop_orphans()
        await _close_parts(parts)
        if parts.cluster is not None:
            # After a restart, the next program of this process takes the kernels itself.
            await parts.cluster.membership.leave(quietly=restart)
            parts.cluster.others.peers.close()
            parts.cluster.sessions.close()

    async def _drain(self, force: asyncio.Event | None) -> bool:
        """Give the kernels to other replicas.

        Returns
        -------
        bool
            True if those that are left must not end, whatever the settings say.
        """
        cluster = self._components.cluster if self._components is not None else None
        if cluster is None or not cluster.membership.joined:
            return False
        seconds = self.config.cluster.drain_seconds if self._http is not None else 0.0
        draining = asyncio.create_task(cluster.ownership.drain(seconds))
        forced = asyncio.create_task((force or asyncio.Event()).wait())
        await asyncio.wait({draining, forced}, return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()
        if not draining.done():
            draining.cancel()
            await asyncio.wait({draining})
        elif (error := draining.exception()) is not None:
            self._log.error("kernels could not be given to other replicas", exc_info=error)
            return True
        # Without the lease, other replicas may serve them already.
        return not cluster.membership.lease.held

    async def _end_monitoring(self, parts: Components | None) -> None:
        if self._metrics is not None:
            await self._metrics.aclose()
        if parts is None:
            return
        if parts.services.metrics is not None:
            parts.services.metrics.lag.stop()
        if parts.services.sampler is not None:
            await parts.services.sampler.aclose()
        if parts.services.readiness is not None:
            await parts.services.readiness.aclose()
        if parts.services.user_activity is not None:
            await parts.services.user_activity.aclose()
        if parts.services.open_connections is not None:
            await parts.services.open_connections.aclose()
        if parts.services.auth.users is not None:
            await parts.services.auth.users.aclose()
        if parts.services.jupyterhub is not None:
            await parts.services.jupyterhub.aclose()

    def _pass_on(self) -> None:
        """Let the next program of this process have the address, and random credentials."""
        pass_sockets(self._place(), self._listening)
        self._socket_file = None
        if self._uses_free_port:
            self._store_credentials()

    async def _end_tasks(self) -> None:
        if self._checking is not None:
            await asyncio.wait({self._checking})
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})

    async def _end_kernels(self, parts: Components, force: asyncio.Event, *, keep: bool) -> None:
        ending = parts.kernels.leave_all() if keep else parts.kernels.shutdown_all()
        shutdown = asyncio.create_task(ending)
        forced = asyncio.create_task(force.wait())
        await asyncio.wait({shutdown, forced}, return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()
        if not shutdown.done():
            shutdown.cancel()
            await asyncio.wait({shutdown})
            if not keep:
                await parts.kernels.shutdown_all(now=True)
        elif (error := shutdown.exception()) is not None:
            self._log.error("kernels could not be shut down or detached", exc_info=error)

    def _bind(self) -> list[socket.socket]:
        where = self.config.listen
        inherited = inherited_sockets(self._place())
        self._inherited = bool(inherited)
        if where.sock:
            path = Path(where.sock)
            sockets = inherited or [listen.bind_unix(path, where.sock_mode)]
            self._socket_file = _identity(path)
            return sockets
        if inherited:
            self.port = int(inherited[0].getsockname()[1])
            return inherited
        sockets, self.port = listen.bind_tcp(where.ip, where.port, where.port_retries, self._log)
        return sockets

    def _place(self) -> str:
        """Return a text that differs if the next program cannot use the listening sockets."""
        where = self.config.listen
        if not where.sock:
            return self.config.address
        file = _identity(Path(where.sock))
        if file is None or self._socket_file not in (None, file):
            # No client reaches these sockets through the path, so the next program must bind again.
            return f"{self.config.address} {secrets.token_hex(8)}"
        return f"{self.config.address} {where.sock_mode} {file}"

    @property
    def _uses_free_port(self) -> bool:
        return not self.config.listen.sock and not self.config.listen.port

    def _store_credentials(self) -> None:
        """Store random credentials for the next program, which has the same port."""
        where, auth = self.config.listen, self.config.auth
        if auth.token and (auth.token_is_random or auth.cookie_secret_is_random):
            kept = Credentials.new()  # credentials that were set are not stored
            if auth.token_is_random:
                kept = replace(kept, token=auth.token)
            if auth.cookie_secret_is_random:
                kept = replace(kept, cookie_secret=auth.cookie_secret)
            store(self.config.runtime_dir, where.address(self.port), kept, self._log)

    def _recall_credentials(self) -> None:
        """Use the token and cookie secret of the last server on this address if none are set."""
        where, auth = self.config.listen, self.config.auth
        if not auth.token or not (auth.token_is_random or auth.cookie_secret_is_random):
            return
        if self._uses_free_port and not self._inherited:
            return  # the next server has another address
        kept = recall(self.config.runtime_dir, where.address(self.port), self._log)
        if self._uses_free_port:
            forget(self.config.runtime_dir, where.address(self.port))
        if auth.token_is_random:
            hide(kept.token)
            auth = replace(auth, token=kept.token)
        if auth.cookie_secret_is_random:
            auth = replace(auth, cookie_secret=kept.cookie_secret)
        self.config = replace(self.config, auth=auth)

    def _remove_socket_file(self) -> None:
        """Remove the unix socket, unless another file has taken its place."""
        path = Path(self.config.listen.sock)
        if self._socket_file is not None and _identity(path) == self._socket_file:
            path.unlink()
        self._socket_file = None

    def _info(self) -> dict[str, Any]:
        """Return the content of the runtime file."""
        where, tls = self.config.listen, self.config.listen.tls
        return {
            "url": self.url,
            "hostname": where.ip or "*",
            "port": self.port,
            "sock": where.sock,
            "secure": bool(tls.certfile),
            "client_certificates": bool(tls.client_ca),
            "base_url": self.config.base_url,
            "token": self.config.auth.token,
            "keeps_kernels": not self.config.shutdown_kernels_on_exit,
            "certfile": str(Path(tls.certfile).absolute()) if tls.certfile else "",
            "version": __version__,
            # Tells programs of one process apart, which have its id and time of start in common.
            "run": secrets.token_hex(8),
        }


def _identity(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of a file; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


async def _close_parts(parts: Components) -> None:
    """Close the hubs and all files; the kernels have ended or stay."""
    if parts.audit is not None:
        await asyncio.to_thread(parts.audit.close)
    # Those of kernels that ended are removed already; all others run on.
    await parts.hubs.aclose(keep=True)
    if parts.tracing is not None:
        await asyncio.to_thread(parts.tracing.close)
    await parts.registry.aclose()


def _close_websockets(parts: Components, code: int, reason: str) -> None:
    """Serve no more requests, and close all websockets."""
    parts.services.closing = True
    if parts.keepalive is not None:
        parts.keepalive.stop()
    for websocket in list(parts.services.websockets):
        websocket.close(code, reason)
