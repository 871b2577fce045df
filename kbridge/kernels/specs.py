"""Kernelspecs, read in a thread and cached until a file of them changes.

Reading 500 kernelspecs takes more than 0.1 s, which would block an event loop. The threads are
daemons: a kernelspec directory on a file system that hangs does not keep the process from ending.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Awaitable, Callable
from typing import Any

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel
from jupyter_client.provisioning.factory import KernelProvisionerFactory

from kbridge.storage.workers import Workers

__all__ = ["Specs"]

# The state that the answers of jupyter_client's own manager depend on.
_Stamp = tuple[Any, ...]


class Specs:
    """The kernelspecs of a manager, which may be of a class other than jupyter_client's.

    Parameters
    ----------
    manager : KernelSpecManager
        A manager whose methods are coroutines is called on the event loop; any other in a thread,
        one call at a time, and beside these at most one of `any_installed`. The answers of
        subclasses are not cached: where their kernelspecs come from is unknown.
    """

    def __init__(self, manager: Any) -> None:
        self.manager = manager
        # One thread: the calls of a manager follow one another.
        self._reader = Workers(1, "kbridge-kernelspecs")
        self._checker = Workers(1, "kbridge-kernelspecs-check")
        self._stamp: _Stamp = ()
        self._all: dict[str, Any] | None = None
        self._found: dict[str, Any] = {}

    async def get_all_specs(self) -> dict[str, Any]:
        """Return all kernelspecs as `KernelSpecManager.get_all_specs` does; do not modify it."""
        found: dict[str, Any] = await self._call(self.manager.get_all_specs, self._read_all)
        return found

    async def get_kernel_spec(self, name: str) -> Any:
        """Return a `KernelSpec`; do not modify it.

        Raises
        ------
        NoSuchKernel
            If no kernelspec has that name, or `allowed_kernelspecs` of the manager lacks it. The
            manager may raise other exceptions.
        """
        # jupyter_client only leaves them out of the list.
        allowed = getattr(self.manager, "allowed_kernelspecs", ())
        if allowed and name not in allowed and name.lower() not in allowed:
            raise NoSuchKernel(name)
        return await self._call(self.manager.get_kernel_spec, lambda: self._read(name), name)

    async def missing_provisioner(self, name: str) -> str:
        """Return the provisioner without which jupyter_client does not list a kernelspec.

        Empty if there is no such kernelspec, or its provisioner is installed.
        """
        if type(self.manager) is not KernelSpecManager:
            return ""
        found: str = await self._reader.call(lambda: self._missing_provisioner(name))
        return found

    def _missing_provisioner(self, name: str) -> str:
        directory = self.manager.find_kernel_specs().get(name.lower())
        if directory is None:
            return ""
        spec = KernelSpec.from_resource_dir(directory)
        if KernelProvisionerFactory.instance().is_provisioner_available(spec):
            return ""
        return str(spec.metadata["kernel_provisioner"]["provisioner_name"])

    async def any_installed(self) -> bool:
        """Return True if there is a kernelspec. No start of a kernel waits for this call.

        The cache is neither read nor written.
        """
        method = self.manager.get_all_specs
        if inspect.iscoroutinefunction(method):
            return bool(await method())
        found: Any = await self._checker.call(method)
        return bool(await found if isinstance(found, Awaitable) else found)

    def close(self) -> None:
        """End the threads, without waiting for them; the next call starts them again."""
        self._reader.close()
        self._checker.close()

    async def _call(
        self, method: Callable[..., Any], cached: Callable[[], Any], *arguments: str
    ) -> Any:
        if inspect.iscoroutinefunction(method):
            return await method(*arguments)
        ours = type(self.manager) is KernelSpecManager
        found: Any = await self._reader.call(cached if ours else lambda: method(*arguments))
        return await found if isinstance(found, Awaitable) else found

    def _read_all(self) -> dict[str, Any]:
        self._refresh()
        if self._all is None:
            self._all = self.manager.get_all_specs()
        return self._all

    def _read(self, name: str) -> Any:
        self._refresh()
        if name not in self._found:
            self._found[name] = self.manager.get_kernel_spec(name)
        return self._found[name]

    def _refresh(self) -> None:
        """Clear the cache if a directory, a kernel.json or a setting has changed."""
        stamp = _stamp(self.manager)
        if stamp != self._stamp:
            self._stamp, self._all, self._found = stamp, None, {}


def _stamp(manager: KernelSpecManager) -> _Stamp:
    allowed = tuple(sorted(manager.allowed_kernelspecs))
    stamp: list[Any] = [tuple(manager.kernel_dirs), allowed, manager.ensure_native_kernel]
    for directory in manager.kernel_dirs:
        try:
            with os.scandir(directory) as entries:
                names = sorted(entry.name for entry in entries)
        except OSError:  # most of the directories do not exist
            continue
        for name in names:
            try:
                file = os.stat(f"{directory}/{name}/kernel.json")  # noqa: PTH116 - of hundreds
            except OSError:
                continue
            stamp.append((directory, name, file.st_ino, file.st_size, file.st_mtime_ns))
    return tuple(stamp)
