"""Kernels in memory for hubs, which a test can speak for."""

from __future__ import annotations

from typing import Any

from kbridge.link.memory import MemoryKernel

__all__ = ["MemoryKernels"]


class MemoryKernels:
    """Makes the links of a `HubTable` and keeps them: `HubTable(link=MemoryKernels())`."""

    def __init__(self) -> None:
        self.made: list[MemoryKernel] = []

    def __call__(self, *args: Any, **options: Any) -> MemoryKernel:
        self.made.append(MemoryKernel(*args, **options))
        return self.made[-1]

    @property
    def latest(self) -> MemoryKernel:
        """The kernel to which a hub connected last."""
        return self.made[-1]
