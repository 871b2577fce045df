"""The table of all metrics: names, types, labels and meanings.

The names follow Prometheus's conventions: base units, counters end in `_total`. Values of labels
come from sets that this code or the operator bounds, except the ids of kernels in the last group,
which is exported only on request. docs/monitoring.md explains them; a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

__all__ = ["METRICS", "PREFIX", "Metric", "MetricType"]

PREFIX: Final = "kbridge_"


class MetricType(StrEnum):
    """A type of metric, in the words of Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes
    ----------
    name : str
        The name without the prefix, and without the `_total` of counters.
    type : MetricType
    help : str
        The meaning, in a sentence.
    labels : tuple of str
        The names of the labels.
    """

    name: str
    type: MetricType
    help: str
    labels: tuple[str, ...] = ()

    @property
    def exported(self) -> str:
        """The name as Prometheus stores it; histograms have several, which begin with it."""
        total = "_total" if self.type is MetricType.COUNTER else ""
        return f"{PREFIX}{self.name}{total}"


def _counter(name: str, help_text: str, *labels: str) -> Metric:
    return Metric(name, MetricType.COUNTER, help_text, labels)


def _gauge(name: str, help_text: str, *labels: str) -> Metric:
    return Metric(name, MetricType.GAUGE, help_text, labels)


def _histogram(name: str, help_text: str, *labels: str) -> Metric:
    return Metric(name, MetricType.HISTOGRAM, help_text, labels)


METRICS: Final = (
    # kernels
    _gauge("kernels", "Kernels.", "kernelspec", "state"),
    _gauge("kernels_limit", "Value of max_kernels."),
    _histogram("kernel_start_seconds", "Time from a start to the first answer.", "kernelspec"),
    _counter("kernel_start_failures", "Starts that failed.", "kernelspec"),
    _counter("kernel_restarts", "Processes of kernels that were replaced.", "kind"),
    _counter("kernel_deaths", "Kernels that ended and were not restarted."),
    _counter("kernel_probes", "Probes that ask a kernel whether it is ready (nudges)."),
    # messages of kernels
    _counter("kernel_messages", "Messages of kernels and clients.", "direction", "channel"),
    _counter("kernel_bytes", "Bytes of these messages.", "direction", "channel"),
    _counter("kernel_unsent_messages", "Messages that kernels dropped and did not send."),
    _counter("refused_messages", "Messages of kernels that were dropped.", "kind"),
    _counter("ignored_messages", "Messages of clients that kernels do not accept."),
    _gauge("waiting_requests", "Requests that wait until a kernel reads them."),
    _gauge("waiting_request_bytes", "Bytes of these requests."),
    # websockets
    _gauge("websockets", "Open websockets."),
    _gauge("websockets_behind", "Websockets that have not been sent all output yet."),
    _gauge("websockets_blocked", "Websockets whose last write is not complete."),
    _gauge("websocket_lag_bytes", "Output that was not yet sent, summed over all websockets."),
    _gauge("websocket_max_lag_bytes", "Output not yet sent to the websocket that is most behind."),
    _gauge("parked_sessions", "Sessions of clients that are disconnected and may resume."),
    _counter("websockets_opened", "Websockets that were attached to a kernel."),
    _counter("websocket_writes", "Writes of output to websockets."),
    _counter("websocket_written_bytes", "Bytes of these writes."),
    _counter("coalesced_messages", "Messages saved for clients that lag.", "kind"),
    _counter("rate_limit_waits", "Times that output for pages began to wait for the data limit."),
    _counter("rate_limit_dropped_messages", "Messages dropped by rate_limit_policy=drop."),
    _counter("rate_limit_dropped_bytes", "Bytes of these messages."),
    _gauge("rate_limited_bytes", "Output for pages that waits for the data rate limit."),
    _gauge("flooding_kernels", "Kernels whose messages are released in ticks."),
    _histogram("acknowledgement_seconds", "Round trips from pings to pongs, sampled."),
    # journals
    _gauge("journal_bytes", "Bytes of all journals.", "kind"),
    _gauge("journal_limit_bytes", "Limits of these bytes.", "kind"),
    _counter("journal_dropped_frames", "Messages dropped before every client had read them."),
    _counter("journal_written_bytes", "Bytes written to disk."),
    _counter("journal_damages", "Damaged places found in files."),
    _gauge("journals_failing", "Kernels whose journals cannot be written at the moment."),
    # the server
    _histogram("event_loop_lag_seconds", "Lateness of the event loop, sampled."),
    _gauge("registry_enabled", "1 if kernels are recorded in a registry."),
    _gauge("registry_failing", "1 if the last write to the registry failed."),
    _gauge("registry_unwritten_rows", "Changes that are not in the registry yet."),
    _gauge("build_info", "Always 1.", "version"),
    # replicas of a cluster
    _gauge("followed_kernels", "Kernels of other replicas that this one follows."),
    _gauge("followed_journal_bytes", "Bytes in memory of the journals of followed kernels."),
    _gauge("passed_websockets", "Websockets passed on to other replicas."),
    _counter("passed_websockets_opened", "Websockets passed on so far."),
    # each kernel, if the setting metrics_per_kernel is on
    _gauge("kernel_state", "1 for the state of the kernel.", "kernel_id", "kernelspec", "state"),
    _gauge("kernel_websockets", "Open websockets of the kernel.", "kernel_id"),
    _gauge("kernel_lag_bytes", "Output not yet sent to the slowest websocket.", "kernel_id"),
    _gauge("kernel_journal_bytes", "Bytes of the kernel's journal in memory.", "kernel_id"),
    _counter("kernel_output_bytes", "Bytes appended to the kernel's journal.", "kernel_id"),
)
"""All metrics, in the order of the page."""
