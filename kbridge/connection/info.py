"""kernel_info and readiness of a kernel, under the names of Jupyter Server.

A hub probes its kernel once for all websockets. The methods here ask the kernel again.
"""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from jupyter_client import protocol_version as current_version  # type: ignore[attr-defined]
from traitlets import Any as AnyTrait
from traitlets import Instance, default

from kbridge.connection.base import BaseKernelWebsocketConnection
from kbridge.hub.hub import Hub
from kbridge.wire.zmq import serialize, split

__all__ = ["KernelInfo"]


def _ensure_future(f: Future[Any]) -> Any:
    """Return a concurrent future as an asyncio future, if an event loop runs."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return f
    return asyncio.wrap_future(f)


class KernelInfo(BaseKernelWebsocketConnection):
    """Requests kernel_info, and waits until a kernel is ready."""

    kernel_info_channel = AnyTrait(
        None,
        allow_none=True,
        help="Where a subclass may keep a socket; closed when the websocket is detached.",
    )

    _kernel_info_future = Instance(Future, help="The content of the first kernel_info_reply.")

    @default("_kernel_info_future")
    def _default_kernel_info_future(self) -> Future[dict[str, Any]]:
        return Future()

    if TYPE_CHECKING:  # defined by the subclass

        @property
        def hub(self) -> Hub: ...  # noqa: D102

    def nudge(self) -> asyncio.Future[Any]:
        """Wait until the kernel is ready.

        Returns
        -------
        Future
            True if the kernel is proven to be ready, False after `kernel_info_timeout`.
        """
        return asyncio.ensure_future(self.hub.wait_ready())

    def request_kernel_info(self) -> asyncio.Future[dict[str, Any]]:
        """Ask the kernel for its kernel_info.

        Returns
        -------
        Future
            The content of the reply; empty after `kernel_info_timeout` seconds without one.
        """
        return asyncio.ensure_future(self._ask_for_kernel_info())

    async def _ask_for_kernel_info(self) -> dict[str, Any]:
        hub, timeout = self.hub, self.kernel_info_timeout
        try:
            reply = await hub.request("kernel_info_request", {}, timeout=timeout)
        except TimeoutError:
            self.log.warning(
                "Kernel %s has not answered kernel_info_request for %g s (kernel_info_timeout)",
                self.kernel_id,
                timeout,
            )
            self._finish_kernel_info({})
            return {}
        self._handle_kernel_info_reply(serialize(reply, hub.signer))
        content: dict[str, Any] = json.loads(reply.content)
        return content

    def _forget_kernel_info(self) -> None:
        """End the wait for kernel_info: the websocket is being detached."""
        channel, self.kernel_info_channel = self.kernel_info_channel, None
        if channel is not None and not channel.closed():
            channel.close()
        if self.trait_has_value("_kernel_info_future") and not self._kernel_info_future.done():
            self._kernel_info_future.set_result({})

    def _handle_kernel_info_reply(self, msg: list[Any]) -> None:
        """Take a kernel_info_reply, given as ZeroMQ parts."""
        header, _, _, content = split(msg)[2][:4]
        info = json.loads(bytes(content))
        if json.loads(bytes(header)).get("msg_type") != "kernel_info_reply":
            self.log.error(
                "Kernel %s answered kernel_info_request with another message", self.kernel_id
            )
            info = {}
        self._finish_kernel_info(info)

    def _finish_kernel_info(self, info: dict[str, Any]) -> None:
        """Take the content of a kernel_info_reply, and end the wait for it.

        Messages of an older protocol are translated by the hub, for all its websockets.
        """
        version = info.get("protocol_version", current_version)
        if version.split(".")[0] != current_version.split(".")[0]:
            self.log.debug("Kernel %s uses protocol %s", self.kernel_id, version)
        if not self._kernel_info_future.done():
            self._kernel_info_future.set_result(info)
