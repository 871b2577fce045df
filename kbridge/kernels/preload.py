"""Imports the modules that the first kernel of a server needs.

They take about 0.4 s, which a server spends once it accepts connections: neither its start nor its
first kernel has to wait for them.
"""

from __future__ import annotations

import logging
from functools import partial
from importlib import import_module
from typing import Final

from kbridge.storage.workers import Workers

__all__ = ["preload"]

_log = logging.getLogger("kbridge.kernels")

# jupyter_client looks for kernelspecs in the directories of IPython and in ipykernel, and finds the
# addresses of this host with psutil.
_MODULES: Final = ("ipykernel.kernelspec", "psutil", "IPython.paths")
_REGISTRY: Final = ("kbridge.kernels.registry.store", "sqlalchemy.dialects.sqlite")


async def preload(*, registry: bool) -> None:
    """Import the modules in a thread, one after the other.

    Parameters
    ----------
    registry : bool
        True if the server keeps a registry of its kernels.
    """
    # Unlike the threads of `asyncio.to_thread`, this one does not delay the end of the server while
    # a slow disk is read.
    thread = Workers(1, "kbridge-preload")
    try:
        for name in (*_MODULES, *(_REGISTRY if registry else ())):
            await thread.call(partial(_load, name))
    finally:
        thread.close()


def _load(name: str) -> None:
    try:
        import_module(name)
    except Exception as error:  # noqa: BLE001 - a module may fail with anything while it is imported
        # The server runs on. The error is reported when the module is needed.
        _log.debug("%s was not loaded in advance: %r", name, error)
