"""The hubs of all kernels that a process serves."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from kbridge.errors import HubClosed, KernelNotFound
from kbridge.hub.broadcast.burst import Allowance
from kbridge.hub.hub import Hub
from kbridge.hub.kernel.process_link import LinkFactory
from kbridge.hub.settings import HubSettings
from kbridge.link.kernel import KernelLink

__all__ = ["GOING_AWAY", "HubTable"]

GOING_AWAY: Final = 1001
"""Close code of websockets when the server shuts down (RFC 6455, section 7.4.1)."""


class HubTable:
    """Opens, finds and closes hubs.

    Parameters
    ----------
    settings : HubSettings
        The settings of each hub.
    link : callable
        Makes the links to kernels.
    log : logging.Logger or adapter
        The logger of all hubs.
    """

    def __init__(
        self,
        settings: HubSettings | None = None,
        *,
        link: LinkFactory = KernelLink,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger] | None = None,
    ) -> None:
        self.settings = settings or HubSettings()
        self._link = link
        self._log = log
        self._allowance: Allowance | None = None
        self._hubs: dict[str, Hub] = {}

    def open(
        self,
        kernel_id: str,
        connection_info: Mapping[str, Any],
        *,
        former: Sequence[bytes] = (),
        adopted: bool = False,
    ) -> Hub:
        """The hub of a kernel, made where there is none; see `Hub` for the arguments."""
        hub = self._hubs.get(kernel_id)
        if hub is None:
            if self._allowance is None:  # not before: settings may come late
                self._allowance = Allowance(self.settings.burst_limit)
            hub = Hub(
                kernel_id,
                connection_info,
                self.settings,
                link=self._link,
                log=self._log,
                former=former,
                adopted=adopted,
                allowance=self._allowance,
            )
            self._hubs[kernel_id] = hub
        return hub

    def get(self, kernel_id: str) -> Hub | None:
        """The hub of a kernel, or None."""
        return self._hubs.get(kernel_id)

    def __getitem__(self, kernel_id: str) -> Hub:
        hub = self._hubs.get(kernel_id)
        if hub is None:
            raise KernelNotFound(f"no kernel has the id {kernel_id!r}")
        return hub

    def connections(self, kernel_id: str) -> int:
        """Websockets that are attached to a kernel."""
        hub = self._hubs.get(kernel_id)
        return hub.connections if hub else 0

    async def close(
        self,
        kernel_id: str,
        code: int = HubClosed.close_code,
        reason: str = "the kernel was shut down",
    ) -> None:
        """Close a kernel's hub, where there is one; its websockets are closed with `code`."""
        hub = self.take(kernel_id)
        if hub is not None:
            await hub.aclose(code, reason)

    def take(self, kernel_id: str) -> Hub | None:
        """Take a kernel's hub out of the table, where there is one; the caller closes it."""
        return self._hubs.pop(kernel_id, None)

    async def aclose(self) -> None:
        """Close all because the server ends; may be called twice.

        Clients may come back to another server with the same kernels: their websockets are closed
        with `GOING_AWAY`.
        """
        for kernel_id in list(self._hubs):
            await self.close(kernel_id, GOING_AWAY, "the server is shutting down")

    def __iter__(self) -> Iterator[Hub]:
        return iter(list(self._hubs.values()))

    def __len__(self) -> int:
        return len(self._hubs)

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Each hub's, by kernel id."""
        return {hub.kernel_id: hub.statistics() for hub in self}
