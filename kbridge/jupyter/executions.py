"""REST handlers of the executions of a kernel, in Jupyter Server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from jupyter_server.auth.decorator import authorized
from tornado import web

from kbridge.connection import channels, executions
from kbridge.errors import KbridgeError
from kbridge.hub.hub import Hub
from kbridge.jupyter.api import KERNEL_ID, MSG_ID, KernelApiHandler
from kbridge.jupyter.connection import ZMQChannelsWebsocketConnection
from kbridge.jupyter.hubs import JupyterHubs

__all__ = ["ROUTES", "ExecutionHandler", "ExecutionsHandler"]


class _OfKernel(KernelApiHandler):
    """Base of these handlers."""

    def hub_of(self, kernel_id: str) -> Hub | None:
        """Return the hub of a kernel; None if no client has connected to the kernel yet.

        Raises
        ------
        tornado.web.HTTPError
            404 if no kernel has that id, or another extension handles the websockets of kernels.
        """
        used = self.settings.get("kernel_websocket_connection_class")
        if not (isinstance(used, type) and issubclass(used, ZMQChannelsWebsocketConnection)):
            raise web.HTTPError(404, "kbridge does not handle the websockets of kernels")
        if kernel_id not in self.kernel_manager:
            raise web.HTTPError(404, f"Kernel does not exist: {kernel_id}")
        hubs = self.settings.get(channels.HUBS)
        return hubs.table.get(kernel_id) if isinstance(hubs, JupyterHubs) else None


class ExecutionsHandler(_OfKernel):
    """`/api/kernels/{id}/executions`."""

    @web.authenticated
    @authorized
    async def get(self, kernel_id: str) -> None:
        """List the executions of a kernel, newest last."""
        with _http_errors():
            wanted = executions.parse_filter(self.request.query_arguments)
        self.finish(await executions.list_executions(self.hub_of(kernel_id), wanted))


class ExecutionHandler(_OfKernel):
    """`/api/kernels/{id}/executions/{msg_id}`."""

    @web.authenticated
    @authorized
    def get(self, kernel_id: str, msg_id: str) -> None:
        """Describe an execution."""
        with _http_errors():
            found = executions.find_execution(self.hub_of(kernel_id), msg_id)
        self.finish(json.dumps(found))

    @web.authenticated
    @authorized
    def delete(self, kernel_id: str, msg_id: str) -> None:
        """Delete the record of an execution that has ended."""
        with _http_errors():
            executions.forget_execution(self.hub_of(kernel_id), msg_id)
        self.set_status(204)
        self.finish()


@contextmanager
def _http_errors() -> Iterator[None]:
    """Turn kbridge's errors into Tornado's, which Jupyter Server answers as JSON."""
    try:
        yield
    except KbridgeError as error:
        raise web.HTTPError(error.http_status, error.reason) from error


ROUTES: tuple[tuple[str, type[web.RequestHandler]], ...] = (
    (rf"/api/kernels/{KERNEL_ID}/executions", ExecutionsHandler),
    (rf"/api/kernels/{KERNEL_ID}/executions/{MSG_ID}", ExecutionHandler),
)
"""The routes below the server's `base_url`."""
