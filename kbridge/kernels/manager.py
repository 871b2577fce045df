"""The kernels of one server: started within the limit, restarted, interrupted, culled, ended.

Invariants:

- a kernel is in one place: being launched, waiting in the pool, or in use (`_kernels`);
- kernels in use and starts under way together never exceed `max_kernels`;
- once `shutdown_all` was called no kernel comes up any more.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kbridge.errors import (
    Busy,
    InvalidRequest,
    KbridgeError,
    KernelLimitReached,
    KernelNotFound,
    NotSupported,
)
from kbridge.kernels.attached.attached import AttachedKernel
from kbridge.kernels.kernel import BridgeKernel
from kbridge.kernels.lifecycle.culling import to_cull, to_verify
from kbridge.kernels.lifecycle.environment import working_dir
from kbridge.kernels.lifecycle.interrupt import interrupt_by_message
from kbridge.kernels.lifecycle.launchable import check_launchable
from kbridge.kernels.opening import OpeningTable
from kbridge.kernels.registry.models import Standing
from kbridge.kernels.tasks import in_thread

__all__ = ["BridgeKernelManager"]

# Seconds for the reply to interrupt_request: one that fails does so at once.
_INTERRUPT_REPLY = 0.5

_KERNEL_ID = re.compile(r"(?=.{9,64}$)[0-9A-Za-z_]+(-[0-9A-Za-z_]+){4}", re.ASCII)


class BridgeKernelManager(OpeningTable):
    """Start and end kernels, and keep their hubs in step with them.

    Parameters
    ----------
    hubs : Hubs
        The table of hubs; this manager opens and closes the hubs of its kernels in it.
    ledger : Ledger, optional
        Where its kernels are written down. With a registry behind it they outlive this process,
        unless `shutdown_all` was called.
    **kwargs
        As for any configurable: `parent`, `config`, `log`, traits.
    """

    # Life and death. jupyter_client, too, puts async methods in the place of these sync ones.

    async def start_kernel(  # type: ignore[override]
        self,
        kernel_name: str | None = None,
        *,
        env: Mapping[str, Any] | None = None,
        path: str | None = None,
        kernel_id: str | None = None,
        session_name: str | None = None,
    ) -> str:
        """Start a kernel, or take one that waits, and return its id.

        Returns when the kernel answers, or after `start_grace` seconds if it still comes up.

        Parameters
        ----------
        kernel_name : str, optional
            The kernelspec; the default one where it is not given.
        env : mapping, optional
            Environment variables; see `kernel_environment` for those that are let through.
        path : str, optional
            An API path under `root_dir`, for the working directory; see `working_dir`.
        kernel_id : str, optional
            The uuid it is to have. The id of a kernel in use returns that kernel.
        session_name : str, optional
            The document it is for (JPY_SESSION_NAME).

        Raises
        ------
        InvalidRequest
            If an argument is not what it must be.
        KernelspecNotFound
            If there is no such kernelspec.
        KernelLimitReached
            If `max_kernels` run already.
        KernelStartError
            If it cannot start or dies at once, with the last lines of its log.
        Busy
            If the server is shutting down.
        """
        await self.open()
        if kernel_id is not None and kernel_id in self._kernels:
            return kernel_id
        name = await self._spec_name(kernel_name)
        cwd = await in_thread(working_dir, Path(self.root_dir), path, env)
        with self._starting():
            kernel = None
            if self._pool and env is None and kernel_id is None and str(cwd) == self.root_dir:
                kernel = await self._pool.take(name)
            if kernel is None:
                kernel = await self._launch(name, env, cwd, kernel_id, session_name)
            elif self._closing:
                await self._life.discard(kernel, badly=False)
                raise Busy("The server is shutting down")
            self._use(kernel, session_name)
        await self._ledger.settled()
        return kernel.kernel_id

    async def restart_kernel(self, kernel_id: str, now: bool = False) -> None:  # type: ignore[override]
        """End a kernel's process and start a new one in its place.

        Returns as `start_kernel` does. A kernel that does not come up again is left dead, and
        may be restarted once more.

        Raises
        ------
        KernelNotFound
            If there is no such kernel.
        KernelStartError
            If the new process cannot start or dies at once.
        NotSupported
            If somebody else has started it.
        """
        kernel = self._find(kernel_id)
        if isinstance(kernel, AttachedKernel):
            raise NotSupported(
                f"Kernel {kernel_id} was started elsewhere; it can be restarted only there"
            )
        async with kernel.lock:
            if kernel.closing:
                raise KernelNotFound(f"Kernel {kernel_id} has been shut down")
            await self._life.restart(kernel, now=now)
        self._last_change = time.time()
        self.log.info("Kernel restarted: %s", kernel_id)

    async def interrupt_kernel(self, kernel_id: str) -> None:  # type: ignore[override]
        """Interrupt a kernel, by signal or by message as its kernelspec says.

        Not every kernel that is interrupted by message replies, so that no reply within
        `_INTERRUPT_REPLY` seconds is no failure.

        Raises
        ------
        KernelNotFound
            If there is no such kernel.
        KernelError
            If its process has gone, or it replies that it failed.
        NotSupported
            If somebody else has started it, and it does not answer the message.
        """
        kernel = self._find(kernel_id)
        if isinstance(kernel, AttachedKernel):
            await self._interrupt_attached(kernel)
            return
        hub = self.hubs.get(kernel_id)
        spec = kernel.kernel_spec
        if spec is None or spec.interrupt_mode != "message" or hub is None:
            await kernel.signal_interrupt()
            return
        if not await interrupt_by_message(kernel_id, hub, _INTERRUPT_REPLY):
            self.log.info("Kernel %s was sent interrupt_request, and has not replied", kernel_id)

    async def shutdown_kernel(self, kernel_id: str, now: bool = False) -> None:  # type: ignore[override]
        """End a kernel; returns when its process has gone. One that others started is let go of.

        A second call that comes while the first is at work waits for it.

        Raises
        ------
        KernelNotFound
            If there is no such kernel.
        KernelError
            If its provisioner cannot end it.
        """
        kernel = self._find(kernel_id)
        if isinstance(kernel, AttachedKernel):
            await self.detach(kernel)
            return
        kernel.closing = True
        async with kernel.lock:
            if self._kernels.get(kernel_id) is not kernel:
                return
            try:
                await self._life.discard(kernel, badly=kernel.failed, now=now)
            finally:
                del self._kernels[kernel_id]
                self._last_change = time.time()
        self.log.info("Kernel shut down: %s", kernel_id)

    async def cull(self) -> None:
        """Shut down the kernels that nobody uses, by the `cull_*` settings."""

        async def cull_one(kernel_id: str) -> None:
            self.log.warning("Culling kernel %s", kernel_id)
            try:
                await self.shutdown_kernel(kernel_id)
            except KbridgeError as error:
                self.log.error("%s", error)

        now = time.time()
        uses = self._idle_times.look(self._uses(), now, time.monotonic())
        for kernel_id in to_verify(uses, now, self.cull_settings):
            hub = self.hubs.get(kernel_id)
            if hub is not None:
                hub.verify_busy()
        unused = to_cull(uses, now, self.cull_settings)
        await asyncio.gather(*(cull_one(kernel_id) for kernel_id in unused))

    def rename_session(self, kernel_id: str, session_name: str) -> None:
        """Give a kernel another JPY_SESSION_NAME, from its next restart on."""
        self.update_env(kernel_id=kernel_id, env={"JPY_SESSION_NAME": session_name})
        kernel = self._kernels.get(kernel_id)
        if isinstance(kernel, BridgeKernel) and not kernel.failed:
            self._life.note(kernel)

    def statistics(self) -> dict[str, Any]:
        """Kernels in use, starts under way, the limit, and the pools."""
        return {
            "kernels": len(self._kernels),
            "starting": self._starts,
            "max_kernels": self.max_kernels,
            "kept_logs": len(self._life.kept_logs),
            "pool": self._pool.statistics() if self._pool is not None else {},
            "registry": self._ledger.statistics(),
            "heartbeats": self._heartbeats.statistics(),
        }

    # Helpers

    @contextmanager
    def _starting(self) -> Iterator[None]:
        """Hold one of the `max_kernels` places until the kernel is in use."""
        if self._closing:
            raise Busy("The server is shutting down")
        ours = [k for k in self._kernels.values() if not isinstance(k, AttachedKernel)]
        used = sum(not kernel.failed for kernel in ours) + self._starts
        if self.max_kernels is not None and used >= self.max_kernels:
            raise KernelLimitReached(f"{used} kernels run, and no more are allowed")
        self._starts += 1
        self._no_starts.clear()
        try:
            yield
        finally:
            self._starts -= 1
            if not self._starts:
                self._no_starts.set()

    async def _launch(
        self,
        name: str,
        env: Mapping[str, Any] | None = None,
        cwd: Path | None = None,
        kernel_id: str | None = None,
        session_name: str | None = None,
    ) -> BridgeKernel:
        """Make a kernel of a kernelspec and start its process; nobody uses it yet."""
        spec = await self._spec(name)  # nothing is awaited between the look at the id and `launch`
        environment = self._environment(env)
        if session_name:
            environment["JPY_SESSION_NAME"] = session_name
        check_launchable(name, spec.argv, {**environment, **spec.env})
        if kernel_id is None:
            kernel_id = self.new_kernel_id()
        elif not isinstance(kernel_id, str) or not _KERNEL_ID.fullmatch(kernel_id):
            raise InvalidRequest("The id of a kernel is a uuid")
        elif any(kernel.kernel_id == kernel_id for kernel in self._life.kernels):
            raise InvalidRequest(f"Kernel {kernel_id} is being started already")
        kernel = self._make(name, kernel_id)
        kernel.use_spec(spec)
        kernel.inherits_env = env is None
        if self.transport is not None:
            kernel.transport = self.transport
        if self.kernel_ip:
            kernel.ip = self.kernel_ip
        if self.transport_encryption is not None:
            kernel.encrypt(self.transport_encryption)
        await self._life.launch(kernel, environment, cwd or Path(self.root_dir))
        return kernel

    def _use(self, kernel: BridgeKernel, session_name: str | None) -> None:
        """Put a kernel that was launched in the table, and begin to watch it."""
        kernel.standing = Standing.USED
        self._kernels[kernel.kernel_id] = kernel
        self._last_change = time.time()
        if session_name:
            self.rename_session(kernel.kernel_id, session_name)
        hub = self.hubs.get(kernel.kernel_id)
        if hub is not None:
            hub.activity.touch(self._last_change)  # hours in the pool are no idleness
        self._life.note(kernel)
        self._life.watch(kernel)
        self._heartbeats.watch(kernel)
        self.log.info("Kernel started: %s (%s)", kernel.kernel_id, kernel.kernel_name)

    def _is_ours(self, kernel_id: str) -> bool:
        return any(kernel.kernel_id == kernel_id for kernel in self._life.kernels)
