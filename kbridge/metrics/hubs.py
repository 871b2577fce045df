"""Reads the values of hubs, for the standalone server and for the extension."""

from __future__ import annotations

from collections.abc import Iterable

from kbridge.hub.table import HubTable
from kbridge.metrics.samples import Samples

__all__ = ["add_followed", "add_hubs", "add_kernels"]


def add_kernels(
    samples: Samples, kernels: Iterable[tuple[str, str, str]], *, per_kernel: bool
) -> None:
    """Add the number of kernels by kernelspec and state, and with `per_kernel` each of them.

    Parameters
    ----------
    samples : Samples
        Where to add.
    kernels : iterable
        Id, kernelspec and state of each kernel.
    per_kernel : bool
        True to export the ids of kernels.
    """
    for kernel_id, name, state in kernels:
        kernelspec = samples.kernelspec(name)
        samples.add(1, "kernels", kernelspec, state)
        if per_kernel:
            samples.add(1, "kernel_state", kernel_id, kernelspec, state)


def add_hubs(samples: Samples, tables: Iterable[HubTable], *, per_kernel: bool) -> None:
    """Add the values of all hubs in some tables."""
    slowest = 0
    for table in tables:
        totals = table.totals()
        samples.values.update(totals.counts)
        samples.add_histogram(totals.round_trips, "acknowledgement_seconds")
        for kernel_id, figures in table.statistics().items():
            journal, clients, pace = figures["journal"], figures["clients"], figures["pace"]
            outbox = figures["outbox"]
            slowest = max(slowest, clients["max_lag_bytes"])
            for name, value in (
                ("websockets", clients["attached"]),
                ("websockets_behind", clients["behind"]),
                ("websockets_blocked", clients["blocked"]),
                ("websocket_lag_bytes", clients["lag_bytes"]),
                ("parked_sessions", clients["parked"]),
                ("rate_limited_bytes", pace["held_bytes"]),
                ("flooding_kernels", int(pace["flooding"])),
                ("waiting_requests", outbox["requests"]),
                ("waiting_request_bytes", outbox["bytes"]),
            ):
                samples.add(value, name)
            samples.add(journal["bytes"], "journal_bytes", "memory")
            samples.add(journal["limit"], "journal_limit_bytes", "memory")
            if per_kernel:
                samples.add(clients["attached"], "kernel_websockets", kernel_id)
                samples.add(clients["max_lag_bytes"], "kernel_lag_bytes", kernel_id)
                samples.add(journal["bytes"], "kernel_journal_bytes", kernel_id)
                samples.add(journal["appended_bytes"], "kernel_output_bytes", kernel_id)
        _add_disk(samples, table.journal_statistics())
    samples.add(slowest, "websocket_max_lag_bytes")


def add_followed(samples: Samples, table: HubTable) -> None:
    """Add the values of the hubs that follow kernels of other replicas.

    `add_hubs` does not include these hubs. The files of their journals are among those on disk.
    """
    hubs = table.followed.values()
    samples.add(len(hubs), "followed_kernels")
    journals = [hub.statistics()["journal"] for hub in hubs]
    samples.add(sum(journal["bytes"] for journal in journals), "followed_journal_bytes")


def _add_disk(samples: Samples, figures: dict[str, int]) -> None:
    if figures:
        samples.add(figures["bytes"], "journal_bytes", "disk")
        samples.add(figures["limit"], "journal_limit_bytes", "disk")
        samples.add(figures["written_bytes"], "journal_written_bytes")
        samples.add(figures["damages"], "journal_damages")
        samples.add(figures["failing_kernels"], "journals_failing")
