"""kernel_info of a kernel, for methods of a connection under the names of Jupyter Server.

A hub probes its kernel once for all websockets. The functions here ask the kernel again.
"""

from __future__ import annotations

import asyncio
import json
import logging
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from jupyter_client import protocol_version as current_version  # type: ignore[attr-defined]

from kbridge.wire.message import Message
from kbridge.wire.zmq import split

if TYPE_CHECKING:
    from kbridge.hub.hub import Hub

__all__ = ["ask", "is_current", "read_reply"]

_Log = logging.Logger | logging.LoggerAdapter[Any]


def _ensure_future(f: Future[Any]) -> Any:
    """Return a concurrent future as an asyncio future, if an event loop runs."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return f
    return asyncio.wrap_future(f)


async def ask(hub: Hub, timeout: float, log: _Log) -> Message | None:
    """Return the kernel's kernel_info_reply; None after `timeout` seconds without one."""
    try:
        return await hub.request("kernel_info_request", {}, timeout=timeout)
    except TimeoutError:
        log.warning(
            "Kernel %s has not answered kernel_info_request for %g s (kernel_info_timeout)",
            hub.kernel_id,
            timeout,
        )
        return None


def read_reply(parts: list[Any]) -> dict[str, Any] | None:
    """Return the content of a kernel_info_reply, given as ZeroMQ parts; None if it is another."""
    header, _, _, content = split(parts)[2][:4]
    info: dict[str, Any] = json.loads(bytes(content))
    is_reply = json.loads(bytes(header)).get("msg_type") == "kernel_info_reply"
    return info if is_reply else None


def is_current(version: str) -> bool:
    """Return True if a protocol version has the same major number as that of jupyter_client."""
    return version.split(".", maxsplit=1)[0] == str(current_version).split(".")[0]
