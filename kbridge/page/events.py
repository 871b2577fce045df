"""Sends samples to a browser as server-sent events (HTML standard, section 9.2).

At most one sample is in the buffer of a connection. While the browser does not read it, newer ones
are skipped. A connection that takes nothing for a minute is closed: its browser has gone, and it
must not keep the sampler running. If no sample comes, a comment is sent now and then, because a
browser that has gone is noticed with the next write only.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from tornado import web
from tornado.iostream import StreamClosedError

from kbridge.page.sampler import Watcher

__all__ = ["stream"]

_PATIENCE: Final = 60.0
_QUIET: Final = 15.0
_COMMENT: Final = b":\n\n"  # browsers ignore it


async def stream(
    handler: web.RequestHandler,
    watcher: Watcher,
    patience: float = _PATIENCE,
    quiet: float = _QUIET,
) -> None:
    """Send samples until the browser goes, or there are no more.

    Parameters
    ----------
    handler : RequestHandler
        The handler of the request, which was authenticated.
    watcher : Watcher
        Receives the samples; it leaves at the end.
    patience : float
        Seconds that the browser may take to read one sample.
    quiet : float
        Seconds without a sample after which a comment is sent.
    """
    handler.set_header("Content-Type", "text/event-stream; charset=utf-8")
    handler.set_header("Cache-Control", "no-store")
    handler.set_header("X-Accel-Buffering", "no")  # nginx would hold the events back
    try:
        while (event := await _next_event(watcher, quiet)) is not None:
            handler.write(event)
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


async def _next_event(watcher: Watcher, quiet: float) -> bytes | None:
    """Return the next sample as an event, or a comment; None after the last sample."""
    try:
        async with asyncio.timeout(quiet):
            sample = await watcher.next()
    except TimeoutError:
        return _COMMENT
    return None if sample is None else b"data: %b\n\n" % sample


def _cut(handler: web.RequestHandler) -> None:
    """Close a connection whose buffer is full; the buffer is lost."""
    connection = handler.request.connection
    iostream = getattr(connection, "stream", None)
    if iostream is not None:
        iostream.close()
