"""What a kernel says of itself, and whether it is ready.

The hub asks once for all its websockets. What stands here asks again, for who wants to know.
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
    """A concurrent future as one of asyncio, where an event loop runs."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return f
    return asyncio.wrap_future(f)


class KernelInfo(BaseKernelWebsocketConnection):
    """kernel_info, and the wait for a kernel."""

    kernel_info_channel = AnyTrait(
        None,
        allow_none=True,
        help="Where a subclass may keep a socket; closed when the websocket is detached.",
    )

    _kernel_info_future = Instance(Future, help="The content of the first kernel_info_reply.")

    @default("_kernel_info_future")
    def _default_kernel_info_future(self) -> Future[dict[str, Any]]:
        return Future()

    if TYPE_CHECKING:  # what the class that this is a part of has

        @property
        def hub(self) -> Hub: ...  # noqa: D102

    def nudge(self) -> asyncio.Future[Any]:
        """Wait until the kernel is ready.

        Returns
        -------
        Future
            True once its hub has seen it answer on a working subscription, False if it was given
            up on.
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
                "kernel %s has not answered kernel_info for %g s (kernel_info_timeout)",
                self.kernel_id,
                timeout,
            )
            self._finish_kernel_info({})
            return {}
        self._handle_kernel_info_reply(serialize(reply, hub.signer))
        content: dict[str, Any] = json.loads(reply.content)
        return content

    def _forget_kernel_info(self) -> None:
        """Let go of what waits for kernel_info: the websocket is being detached."""
        channel, self.kernel_info_channel = self.kernel_info_channel, None
        if channel is not None and not channel.closed():
            channel.close()
        if self.trait_has_value("_kernel_info_future") and not self._kernel_info_future.done():
            self._kernel_info_future.set_result({})

    def _handle_kernel_info_reply(self, msg: list[Any]) -> None:
        """Take a kernel_info_reply, given as it comes over ZeroMQ."""
        header, _, _, content = split(msg)[2][:4]
        info = json.loads(bytes(content))
        if json.loads(bytes(header)).get("msg_type") != "kernel_info_reply":
            self.log.error("kernel %s answered kernel_info with something else", self.kernel_id)
            info = {}
        self._finish_kernel_info(info)

    def _finish_kernel_info(self, info: dict[str, Any]) -> None:
        """Take what a kernel says of itself; who waits for it goes on.

        Messages of an older protocol are translated by the hub, for all its websockets.
        """
        version = info.get("protocol_version", current_version)
        if version.split(".")[0] != current_version.split(".")[0]:
            self.log.debug("kernel %s speaks protocol %s", self.kernel_id, version)
        if not self._kernel_info_future.done():
            self._kernel_info_future.set_result(info)
