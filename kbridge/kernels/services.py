"""The objects that every kernel of one server works with."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from kbridge.hub import HubTable
from kbridge.kernels.lifecycle.kernel_log import KeptLogs
from kbridge.kernels.lifecycle.lease import Lease
from kbridge.kernels.lifecycle.start_limits import StartLimits
from kbridge.kernels.registry.writer import RegistryWriter
from kbridge.kernels.settings import KernelOptions

__all__ = ["KernelServices"]


@dataclass(frozen=True, slots=True)
class KernelServices:
    """One per server; each object in it is shared by all kernels.

    Attributes
    ----------
    hubs : HubTable
        The hubs, which kernels open and close.
    writer : RegistryWriter
        Records the kernels that run; with a registry behind it, kernels outlive the server.
    options : KernelOptions
        The settings.
    limits : StartLimits
        Decides whether and when a kernel may start.
    kept_logs : KeptLogs
        The log files of kernels that failed.
    log : logging.Logger
        The logger of all kernels.
    lease : Lease
        Decides whether this server may act for its kernels.
    """

    hubs: HubTable
    writer: RegistryWriter
    options: KernelOptions
    limits: StartLimits
    kept_logs: KeptLogs
    log: logging.Logger
    lease: Lease = field(default_factory=Lease)
