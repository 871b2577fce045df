"""Interrupts a kernel by message: for its `interrupt_mode`, or because it is attached."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kbridge.errors import KernelError
from kbridge.wire.message import Channel

if TYPE_CHECKING:
    from kbridge.hub.hub import Hub

__all__ = ["interrupt_by_message"]


async def interrupt_by_message(kernel_id: str, hub: Hub, timeout: float) -> bool:
    """Send `interrupt_request` and wait for the reply.

    Parameters
    ----------
    kernel_id : str
        The id of the kernel, for the error.
    hub : Hub
        The hub of the kernel.
    timeout : float
        Seconds to wait.

    Returns
    -------
    bool
        True if the kernel replied in time. If not, it still gets the request.

    Raises
    ------
    KernelError
        If the kernel replied that it failed.
    """
    try:
        reply = await hub.request("interrupt_request", {}, Channel.CONTROL, timeout)
    except TimeoutError:
        return False
    try:
        content = json.loads(reply.content)
    except (ValueError, RecursionError):
        return True  # the kernel has replied
    if isinstance(content, dict) and content.get("status") == "error":
        fault = ascii(f"{content.get('ename', '')}: {content.get('evalue', '')}")[:200]
        raise KernelError(f"Kernel {kernel_id} failed to interrupt its work: {fault}")
    return True
