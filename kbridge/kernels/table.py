"""The kernels in use: the table, and what it shows of them.

Reads only: what starts and ends kernels is `kbridge.kernels.manager`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import (
    NATIVE_KERNEL_NAME,
    KernelSpec,
    KernelSpecManager,
    NoSuchKernel,
)
from jupyter_client.multikernelmanager import AsyncMultiKernelManager
from jupyter_core.paths import jupyter_runtime_dir
from traitlets import DottedObjectName, Instance, default

from kbridge.errors import InvalidRequest, KernelNotFound, KernelspecNotFound, KernelStartError
from kbridge.hub.clock import timestamp
from kbridge.kernels.attached.attached import AttachedKernel
from kbridge.kernels.hubs import Hub, Hubs
from kbridge.kernels.kernel import BridgeKernel
from kbridge.kernels.lifecycle.culling import KernelUse
from kbridge.kernels.settings import KernelSettings
from kbridge.kernels.specs import Specs
from kbridge.private import prepare_directory

__all__ = ["KernelTable"]


class KernelTable(KernelSettings, AsyncMultiKernelManager):
    """The kernels in use, by id.

    Parameters
    ----------
    hubs : Hubs
        The table of hubs.
    **kwargs
        As for any configurable: `parent`, `config`, `log`, traits.
    """

    kernel_manager_class = DottedObjectName(
        "kbridge.kernels.kernel.BridgeKernel",
        config=True,
        help="The class of one kernel; a subclass of kbridge.kernels.kernel.BridgeKernel.",
    )

    @default("connection_dir")
    def _default_connection_dir(self) -> str:
        path = Path(jupyter_runtime_dir())
        if warning := prepare_directory(path):
            self.log.warning("%s", warning)
        return str(path)

    kernel_spec_manager = Instance(KernelSpecManager)

    @default("kernel_spec_manager")
    def _default_kernel_spec_manager(self) -> KernelSpecManager:
        made = self.kernel_spec_manager_class(parent=self)
        assert isinstance(made, KernelSpecManager)
        return made

    def __init__(self, *, hubs: Hubs, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hubs = hubs
        self.specs = Specs(self.kernel_spec_manager)
        self._last_change = time.time()

    def model(self, kernel_id: str) -> dict[str, Any]:
        """Return a kernel as the REST interface shows it.

        Raises
        ------
        KernelNotFound
            If no kernel in use has that id.
        """
        kernel = self._find(kernel_id)
        hub = self.hubs.get(kernel_id)
        last_activity = hub.activity.last_activity if hub else self._last_change
        return {
            "id": kernel_id,
            "name": kernel.kernel_name,
            "last_activity": timestamp(last_activity),
            "execution_state": self._state(kernel, hub),
            "connections": self.hubs.connections(kernel_id),
        }

    def _state(self, kernel: BridgeKernel | AttachedKernel, hub: Hub | None) -> str:
        if hub is None:
            return "dead"
        if isinstance(kernel, AttachedKernel) and (hub.timed_out or not hub.ready):
            return "unknown"  # nobody here can look at its process
        return hub.activity.execution_state

    kernel_model = model

    def models(self) -> list[dict[str, Any]]:
        """Return all kernels in use; those that wait in a pool are not."""
        return [self.model(kernel_id) for kernel_id in self._kernels]

    list_kernels = models

    @property
    def last_kernel_activity(self) -> float:
        """When any kernel last did something, was started or shut down: unix seconds."""
        hubs = [hub for kernel_id in self._kernels if (hub := self.hubs.get(kernel_id))]
        return max([self._last_change, *(hub.activity.last_activity for hub in hubs)])

    def get_kernel(self, kernel_id: str) -> BridgeKernel | AttachedKernel:  # type: ignore[override]
        """Return a kernel in use.

        Raises
        ------
        KernelNotFound
            If there is none with that id.
        """
        return self._find(kernel_id)

    def _find(self, kernel_id: str) -> BridgeKernel | AttachedKernel:
        kernel: BridgeKernel | AttachedKernel | None = self._kernels.get(kernel_id)
        if kernel is None:
            raise KernelNotFound(f"There is no kernel {kernel_id}")
        return kernel

    async def _spec_name(self, name: str | None) -> str:
        """Return the name of the kernelspec to start, which is installed."""
        if name is not None and not isinstance(name, str):
            raise InvalidRequest("The name of a kernelspec is a string")
        name = self.force_kernel_name or name or self.default_kernel_name
        if name == "python":
            name = NATIVE_KERNEL_NAME
        await self._spec(name)
        return name

    async def _spec(self, name: str) -> KernelSpec:
        """Return an installed kernelspec."""
        try:
            spec: KernelSpec = await self.specs.get_kernel_spec(name)
        except NoSuchKernel:
            raise KernelspecNotFound(f"There is no kernelspec {name!r}") from None
        except Exception as error:  # whatever is wrong with somebody's kernel.json
            reason = f"The kernelspec {name!r} cannot be read: {error}"
            raise KernelStartError(reason) from error
        return spec

    def _uses(self) -> Iterator[KernelUse]:
        for kernel_id, kernel in self._kernels.items():
            if isinstance(kernel, AttachedKernel):
                continue
            hub = self.hubs.get(kernel_id)
            yield KernelUse(
                kernel_id=kernel_id,
                execution_state=hub.activity.execution_state if hub else "dead",
                last_activity=hub.activity.last_activity if hub else self._last_change,
                connections=self.hubs.connections(kernel_id),
                metadata=kernel.metadata,
            )
