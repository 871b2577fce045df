"""The connection class that Jupyter Server takes: a subclass of its own base, and of ours."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any, ClassVar

from jupyter_server.services.kernels.connection.base import BaseKernelWebsocketConnection
from tornado import web
from traitlets import default

from kbridge.connection import channels
from kbridge.errors import HubClosed, InvalidConnectionInfo, KbridgeError
from kbridge.hub.hub import Hub
from kbridge.jupyter.handler import adapt_handler
from kbridge.jupyter.hubs import JupyterHubs
from kbridge.server.safe_log import SafeLog

__all__ = ["ZMQChannelsWebsocketConnection"]


class ZMQChannelsWebsocketConnection(  # type: ignore[misc]  # traits of the same names
    channels.ZMQChannelsWebsocketConnection, BaseKernelWebsocketConnection
):
    """Bridges a websocket of Jupyter Server to a kernel of Jupyter Server's.

    To be set as `ServerApp.kernel_websocket_connection_class`, which the extension does. The hubs
    belong to the server's application: the first websocket makes them, and they go with the
    kernels.
    """

    _tables: ClassVar[weakref.WeakSet[JupyterHubs]] = weakref.WeakSet()

    @classmethod
    async def close_all(cls) -> None:
        """Disconnect every websocket, and let go of every kernel, as a server does at its end."""
        await super().close_all()
        loop = asyncio.get_running_loop()
        for table in list(cls._tables):
            if table.loop is loop:
                await table.aclose()

    async def prepare(self) -> None:
        """Do what comes before the websocket opens.

        A kernel whose process is still being started is waited for, as its ports are not known;
        one that is starting up is not.

        Raises
        ------
        tornado.web.HTTPError
            500 if the process could not be started.
        """
        await self._wait_for_process()
        await super().prepare()
        adapt_handler(self.websocket_handler, self)

    def connect(self) -> asyncio.Future[Any]:  # type: ignore[override]  # a Future, as there
        """Attach the websocket to the kernel; close it where there is none any more.

        What escaped from here Tornado would log with the URL of the request, and the token in it.
        """
        try:
            return super().connect()
        except KbridgeError as error:
            # Ports that are missing now may be known when the client comes back.
            passing = isinstance(error, InvalidConnectionInfo)
            fault = HubClosed(error.reason) if passing else error
            self.log.warning("no way to kernel %s: %s", self.kernel_id, fault.reason)
            self.disconnect()
            self.websocket_handler.close(fault.close_code, fault.reason[:100])
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def _wait_for_process(self) -> None:
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
        """Jupyter Server's log, which escapes nothing of what clients and kernels send."""
        return SafeLog(super()._log_default(), {})

    def _open_hub(self) -> Hub:
        settings = self.websocket_handler.settings
        hubs = settings.get(channels.HUBS)
        if hubs is None:
            manager = self.multi_kernel_manager
            chosen = type(self).hub_settings(self.config, manager, self)
            hubs = JupyterHubs(manager, chosen, self.log)
            settings[channels.HUBS] = hubs
            self._tables.add(hubs)
        assert isinstance(hubs, JupyterHubs)
        return hubs.open_for(self.kernel_manager)
