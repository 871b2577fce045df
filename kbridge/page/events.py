"""Sends samples to a browser as server-sent events (HTML standard, section 9.2).

At most one sample is in the buffer of a connection. While the browser does not read it, newer ones
are skipped. A connection that takes nothing for a minute is closed: its browser has gone, and it
must not keep the sampler running.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from tornado import web
from tornado.iostream import StreamClosedError

from kbridge.page.sampler import Sampler

__all__ = ["stream"]

_PATIENCE: Final = 60.0


async def stream(
    handler: web.RequestHandler, sampler: Sampler, patience: float = _PATIENCE
) -> None:
    """Send samples until the browser goes, or the sampler is closed.

    Parameters
    ----------
    handler : RequestHandler
        The handler of the request, which was authenticated.
    sampler : Sampler
        The sampler.
    patience : float
        Seconds that the browser may take to read one sample.
    """
    handler.set_header("Content-Type", "text/event-stream; charset=utf-8")
    handler.set_header("Cache-Control", "no-store")
    handler.set_header("X-Accel-Buffering", "no")  # nginx would hold the events back
    watcher = sampler.watch()
    try:
        while (sample := await watcher.next()) is not None:
            handler.write(b"data: %b\n\n" % sample)
            async with asyncio.timeout(patience):
                await handler.flush()
    except StreamClosedError:
        return
    except TimeoutError:
        _cut(handler)
        return
    finally:
        watcher.leave()
    with suppress(StreamClosedError):
        await handler.finish()


def _cut(handler: web.RequestHandler) -> None:
    """Close a connection whose buffer is full; the buffer is lost."""
    connection = handler.request.connection
    iostream = getattr(connection, "stream", None)
    if iostream is not None:
        iostream.close()
