"""The connection class for Jupyter Server: a subclass of its base class and of kbridge's class."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import suppress
from typing import Any, ClassVar, Final

from jupyter_server.services.kernels.connection.base import BaseKernelWebsocketConnection
from tornado import web
from traitlets import default

from kbridge.connection import channels
from kbridge.errors import HubClosed, InvalidConnectionInfo, KbridgeError, SetupError
from kbridge.hub.hub import Hub
from kbridge.hub.table import HubTable
from kbridge.jupyter.handler import adapt_handler
from kbridge.jupyter.hubs import JupyterHubs
from kbridge.jupyter.metrics import EXPORT
from kbridge.jupyter.page import close_samplers
from kbridge.server.safe_log import SafeLog

__all__ = ["TRACING", "ZMQChannelsWebsocketConnection"]

TRACING: Final = "kbridge_tracing"
"""The setting of the application with the `ExecutionTracing`; missing without tracing."""


class ZMQChannelsWebsocketConnection(  # type: ignore[misc]  # traits of the same names
    channels.ZMQChannelsWebsocketConnection, BaseKernelWebsocketConnection
):
    """Connects a websocket of Jupyter Server to a kernel of Jupyter Server.

    The extension sets `ServerApp.kernel_websocket_connection_class` to this class. The hubs belong
    to the application of the server: the first websocket creates the object that opens them, and
    each hub is closed when its kernel ends.
    """

    _all_hubs: ClassVar[weakref.WeakSet[JupyterHubs]] = weakref.WeakSet()

    @classmethod
    async def close_all(cls) -> None:
        """Disconnect all websockets and close all hubs of this event loop."""
        await super().close_all()
        loop = asyncio.get_running_loop()
        for hubs in list(cls._all_hubs):
            if hubs.loop is loop:
                await hubs.aclose()
                EXPORT.remove(hubs)
        EXPORT.unregister()
        await close_samplers()

    async def prepare(self) -> None:
        """Prepare the handler before the websocket opens.

        Waits while the process of the kernel is being launched, because its ports are not known
        yet. Does not wait for a launched process to answer.

        Raises
        ------
        tornado.web.HTTPError
            500 if the process could not be started.
        """
        await self._wait_for_process()
        with suppress(SetupError):  # `connect` tells the client
            await self._hubs().open()
        await super().prepare()
        adapt_handler(self.websocket_handler, self)

    def connect(self) -> asyncio.Future[Any]:  # type: ignore[override]  # a Future, as there
        """Attach the websocket to the kernel; close the websocket if the kernel has ended.

        Does not raise these errors: Tornado would log them with the URL, which contains the token.
        """
        try:
            return super().connect()
        except KbridgeError as error:
            # Missing ports may be known when the client reconnects.
            passing = isinstance(error, InvalidConnectionInfo)
            fault = HubClosed(error.reason) if passing else error
            self.log.warning("Cannot connect to kernel %s: %s", self.kernel_id, fault.reason)
            self.disconnect()
            self.websocket_handler.close(fault.close_code, fault.reason[:100])
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def _wait_for_process(self) -> None:
        """Wait until the kernel's process is launched; raise `HTTPError` 500 if that fails."""
        kernel = self.kernel_manager
        ready = getattr(kernel, "ready", None)
        if ready is None:
            return
        try:
            await (ready if isinstance(ready, asyncio.Future) else asyncio.wrap_future(ready))
        except Exception as error:
            kernel.execution_state = "dead"
            kernel.reason = str(error)
            raise web.HTTPError(500, str(error)) from error

    @default("log")
    def _log_default(self) -> SafeLog:
        """Return Jupyter Server's log, wrapped: it does not escape texts of clients and kernels."""
        return SafeLog(super()._log_default(), {})

    def _open_hub(self) -> Hub:
        return self._hubs().open_for(self.kernel_manager)

    def _hubs(self) -> JupyterHubs:
        """Return the hubs of the application; they are made for the first websocket.

        Raises
        ------
        SetupError
            If the settings are not correct.
        """
        settings = self.websocket_handler.settings
        hubs = settings.get(channels.HUBS)
        if hubs is None:
            manager = self.multi_kernel_manager
            chosen = type(self).hub_settings(self.config, manager, self)
            hubs = JupyterHubs(manager, HubTable(chosen, log=self.log))
            if (tracing := settings.get(TRACING)) is not None:
                hubs.table.trace_executions(tracing)
            settings[channels.HUBS] = hubs
            self._all_hubs.add(hubs)
            EXPORT.add(hubs)
        assert isinstance(hubs, JupyterHubs)
        return hubs
