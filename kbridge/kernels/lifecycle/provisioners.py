"""The provisioner of a kernelspec: its name, and its import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from jupyter_client.provisioning.factory import KernelProvisionerFactory
from traitlets.config import Configurable

from kbridge.kernels.tasks import in_thread

__all__ = ["LOCAL", "load_provisioner", "provisioner_name"]

LOCAL: Final = "local-provisioner"  # jupyter_client's own


def provisioner_name(metadata: Mapping[str, Any], parent: Configurable | None) -> str:
    """Return the name of the provisioner that the metadata of a kernelspec asks for."""
    chosen = metadata.get("kernel_provisioner") or {}
    factory = KernelProvisionerFactory.instance(parent=parent)
    return str(chosen.get("provisioner_name") or factory.default_provisioner_name)


async def load_provisioner(name: str, parent: Configurable | None) -> None:
    """Import a provisioner in a thread, if it is installed.

    The packages of some provisioners take seconds, such as the client of Kubernetes. On the event
    loop, a replica would lose its lease in that time.

    Raises
    ------
    Exception
        Any exception of the import.
    """
    entry_point = KernelProvisionerFactory.instance(parent=parent).provisioners.get(name)
    if entry_point is not None and name != LOCAL:
        await in_thread(entry_point.load)
