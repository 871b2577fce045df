"""The figures of a standalone server for the live view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kbridge.hub.table import HubTable
from kbridge.page.sampler import Source
from kbridge.server.api.services import Services

__all__ = ["ServerSource"]


class ServerSource(Source):
    """The kernels of a standalone server.

    Parameters
    ----------
    services : Services
        The objects of the server.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    @property
    def table(self) -> HubTable | None:
        """The hubs."""
        return self._services.hubs

    def kernels(self) -> list[tuple[str, str, str]]:
        """Return id, kernelspec and state of each kernel, starting and pooled ones included."""
        return self._services.kernels.states()

    def pids(self) -> Mapping[str, int]:
        """Return the process ids of the kernels on this machine, by kernel id."""
        return self._services.kernels.pids()

    def facts(self) -> Mapping[str, Any]:
        """Return the time of the start, the limit on kernels, and the number of websockets."""
        services = self._services
        return {
            "started": services.activity.started,
            "max_kernels": services.kernels.max_kernels,
            "websockets": len(services.websockets),
        }
