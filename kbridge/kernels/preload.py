"""Imports the modules that the first kernel of a server needs.

They take about 0.4 s, which a server spends once it accepts connections: neither its start nor its
first kernel has to wait for them.

They are imported on the event loop, one in each turn. In a thread, they would be in the way of
imports by the first request: two threads that import the same modules in another order can see
modules that are not complete.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from importlib import import_module
from typing import Final

__all__ = ["preload"]

_log = logging.getLogger("kbridge.kernels")

# jupyter_client looks for kernelspecs in the directories of IPython and in ipykernel, and finds the
# addresses of this host with psutil.
_MODULES: Final = (
    *("kbridge.hub.hub", "kbridge.link.zmtp.link"),
    *("ipykernel.kernelspec", "psutil", "IPython.paths"),
)
_REGISTRY: Final = ("kbridge.kernels.registry.store", "sqlalchemy.dialects.sqlite")


async def preload(*, registry: bool, more: Iterable[str] = ()) -> None:
    """Import the modules, one after the other; other tasks run in between.

    Parameters
    ----------
    registry : bool
        True if the server keeps a registry of its kernels.
    more : iterable of str
        Further modules.
    """
    for name in (*_MODULES, *(_REGISTRY if registry else ()), *more):
        _load(name)
        await asyncio.sleep(0)


def _load(name: str) -> None:
    try:
        import_module(name)
    except Exception as error:  # noqa: BLE001 - a module may fail with anything while it is imported
        # The server runs on. The error is reported when the module is needed.
        _log.debug("%s was not loaded in advance: %r", name, error)
