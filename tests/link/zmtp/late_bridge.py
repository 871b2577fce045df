"""A bridge in miniature whose event loop is blocked until a test kills it.

Arguments: the holder's socket, a directory, and the prefix of the kernel's unix sockets.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

from kbridge.link.endpoints import Endpoints
from kbridge.link.holder.client import Holder
from kbridge.link.holder.keeper import KeptKernel
from kbridge.link.zmtp.link import ZmtpLink
from kbridge.wire.message import Channel
from tests.link.kernel_side import Recorder


async def main(path: str, directory: str, prefix: str) -> None:
    kept = KeptKernel("kernel", Holder(Path(path), Path(directory), 1 << 30, 600), {})
    endpoints = Endpoints("ipc", prefix, dict.fromkeys(Channel, 1) | {Channel.IOPUB: 2}, b"key")
    events = Recorder()
    ZmtpLink(endpoints, events, kept=kept)
    await events.until(lambda: events.news == ["connected"])
    print("connected", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
