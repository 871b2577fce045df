"""Chooses the event loop of a server: that of uvloop where it is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["loop_factory", "run"]


_Result = TypeVar("_Result")


def loop_factory(*, use_uvloop: bool) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the function that makes the event loop; None for the loop of asyncio.

    Parameters
    ----------
    use_uvloop : bool
        True to use uvloop if it can be imported.
    """
    if not use_uvloop:
        return None
    try:
        import uvloop
    except ImportError:  # not installed, or not made for this Python
        return None
    return uvloop.new_event_loop


def run(main: Coroutine[Any, Any, _Result], *, use_uvloop: bool) -> _Result:
    """Run a coroutine to its end, as `asyncio.run` does, and return its result."""
    with asyncio.Runner(loop_factory=loop_factory(use_uvloop=use_uvloop)) as runner:
        return runner.run(main)
