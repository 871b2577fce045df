"""The figures of a standalone server for the live view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kbridge.hub.table import HubTable
from kbridge.page.sampler import Source
from kbridge.server.api.services import Services

__all__ = ["ServerSource"]


class ServerSource(Source):
    """The kernels of a standalone server; in a cluster, also those of the other replicas.

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
        """Return id, kernelspec and state of each kernel, starting and pooled ones included.

        The kernels of other replicas are as in the last view of the cluster.
        """
        found = self._services.kernels.states()
        here = {kernel_id for kernel_id, _, _ in found}
        return found + [
            (kernel.kernel_id, kernel.kernel_name, kernel.execution_state())
            for kernel in self._services.cluster or ()
            if kernel.kernel_id not in here
        ]

    def owners(self) -> Mapping[str, str]:
        """Return the URL of the replica that owns each kernel, by kernel id."""
        cluster = self._services.cluster
        if cluster is None:
            return {}
        others = {
            kernel.kernel_id: kernel.replica.url if kernel.replica is not None else ""
            for kernel in cluster
        }
        me = cluster.view.me.url
        return others | {kernel_id: me for kernel_id, _, _ in self._services.kernels.states()}

    def users(self) -> Mapping[str, str]:
        """Return the names of the users who started kernels, by kernel id."""
        others = {kernel.kernel_id: kernel.user for kernel in self._services.cluster or ()}
        return others | self._services.kernels.users()

    def reasons(self) -> Mapping[str, str]:
        """Return why kernels wait in a queue, or are dead, by kernel id."""
        others = {kernel.kernel_id: kernel.reason for kernel in self._services.cluster or ()}
        found = others | self._services.kernels.reasons()
        return {kernel_id: reason for kernel_id, reason in found.items() if reason}

    def pids(self) -> Mapping[str, int]:
        """Return the process ids of the kernels on this machine, by kernel id."""
        return self._services.kernels.pids()

    def facts(self) -> Mapping[str, Any]:
        """Return the time of the start, the limit on kernels, and the number of websockets.

        In a cluster, also the URL of this replica.
        """
        services = self._services
        me = {} if services.cluster is None else {"replica": services.cluster.view.me.url}
        return {
            **me,
            "started": services.activity.started,
            "max_kernels": services.kernels.max_kernels,
            "websockets": len(services.websockets),
        }
