"""The manager of a kernel that another program started.

Jupyter's classes expect a manager of each kernel; it also knows how the kernel is reached.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from traitlets.config import Configurable

__all__ = ["AttachedKernelManager"]


class AttachedKernelManager(Configurable):
    """Stands for jupyter_client's kernel manager of a kernel that another program manages.

    Like a kernel manager, it is the parent of the connections of the kernel's websockets.

    Parameters
    ----------
    kernel_id : str
        The id of the kernel on this server.
    kernel_name : str
        The name that clients see.
    connection_info : mapping
        The content of the connection file.
    source : str
        The origin of the connection info, for the log.
    release : callable, optional
        Releases what the kernel is reached through, such as a tunnel; called once.
    """

    kernel_spec = None

    def __init__(
        self,
        kernel_id: str,
        kernel_name: str,
        connection_info: Mapping[str, Any],
        *,
        source: str,
        release: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__()
        self.kernel_id = kernel_id
        self.kernel_name = kernel_name
        self.source = source
        self._info = dict(connection_info)
        self._release = release

    def get_connection_info(self) -> dict[str, Any]:
        """Return the addresses and the key of the kernel."""
        return dict(self._info)

    @property
    def tunnelled(self) -> bool:
        """True if the kernel is reached through something that ends with this server."""
        return self._release is not None

    def set_parent(self, parent: Configurable) -> None:
        """Set the manager of all kernels, whose settings apply to the websockets."""
        self.parent = parent

    async def release(self) -> None:
        """Release what the kernel is reached through. May be called twice."""
        release, self._release = self._release, None
        if release is not None:
            await release()
