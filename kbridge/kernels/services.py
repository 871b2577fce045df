"""The objects that every kernel of one server works with."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from kbridge.hub import HubTable
from kbridge.kernels.index import KernelIndex
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
    index : KernelIndex
        The kernels that exist.
    writer : RegistryWriter
        Records the kernels that run; with a registry behind it, kernels outlive the server.
    options : KernelOptions
        The settings.
    limits : StartLimits
        Decides whether and when a kernel may start.
    log : logging.Logger
        The logger of all kernels.
    """

    hubs: HubTable
    index: KernelIndex
    writer: RegistryWriter
    options: KernelOptions
    limits: StartLimits
    log: logging.Logger
