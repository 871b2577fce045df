"""An unchanged server, which writes a census of its objects as JSON on SIGPROF.

A script: `python observed.py CENSUS MODULE [options]` is `python -m MODULE [options]`. Tasks and
objects cannot be counted from outside.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import gc
import json
import runpy
import signal
import sys
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import FrameType

_OTHERS = {"IOStream", "HTTP1Connection", "HTTP1ServerConnection", "HTTPServerRequest"}
_CACHED = {"_Layout"}  # of shapes of headers: `wire.headers` has a bounded number


def census() -> dict[str, dict[str, int]]:
    """Count the objects of kbridge and of Tornado's connections by class, tasks, and threads."""
    forget_cancelled_timers()
    gc.collect()
    with suppress(AttributeError):  # only in glibc: return free memory to the system
        ctypes.CDLL(None).malloc_trim(0)
    found: Counter[str] = Counter()
    tasks = 0
    for thing in gc.get_objects():
        kind = type(thing)
        # Not isinstance, which evaluates lazy proxies.
        if issubclass(kind, asyncio.Task):
            tasks += not thing.done()
        elif issubclass(kind, asyncio.Future):
            found["Future"] += 1
        elif kind.__name__ in _CACHED:
            continue
        elif str(kind.__module__).startswith("kbridge") or kind.__name__ in _OTHERS:
            found[kind.__name__] += 1
    return {
        "objects": dict(found),
        "process": {"tasks": tasks, "threads": threading.active_count()},
    }


def forget_cancelled_timers() -> None:
    """Drop the contexts of cancelled timers.

    asyncio keeps a few cancelled timers until they are due. Tornado takes Jupyter Server's
    `ping_interval` (1000 ms) for seconds, so its timers keep a closed websocket for 1000 s.
    """
    with suppress(RuntimeError):  # no event loop runs
        for timer in getattr(asyncio.get_running_loop(), "_scheduled", ()):  # not in uvloop
            if timer.cancelled():
                timer._context = contextvars.Context()


def watch(path: Path) -> None:
    """Write a census on each SIGPROF."""

    def write(_signum: int, _frame: FrameType | None) -> None:
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(census()), encoding="utf-8")
        fresh.replace(path)

    signal.signal(signal.SIGPROF, write)


if __name__ == "__main__":
    sys.path.pop(0)  # this directory does not belong to the server
    watch(Path(sys.argv[1]))
    module = sys.argv[2]
    sys.argv[:3] = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
