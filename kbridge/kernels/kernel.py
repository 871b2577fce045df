"""One kernel's process, through jupyter_client and whatever provisioner its kernelspec names.

This module is the border to jupyter_client: errors of jupyter_client and of provisioners leave it
as one of `kbridge.errors`. jupyter_client's own restarter is never started, because the hub of the
kernel must take part in a restart (`lifecycle.kernel_process`).
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Callable, Collection, Mapping
from contextlib import aclosing
from copy import deepcopy
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.localinterfaces import is_local_ip
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from traitlets import default

from kbridge.connect import ipc
from kbridge.connect.files import port_names
from kbridge.connect.ports import LocalPortCache
from kbridge.errors import ClientError, KernelError, KernelStartError
from kbridge.kernels.lifecycle.environment import innermost_directory
from kbridge.kernels.lifecycle.kernel_log import KernelLog
from kbridge.kernels.lifecycle.process_exit import exit_checks
from kbridge.kernels.lifecycle.processes import AdoptedProcess
from kbridge.kernels.lifecycle.provisioners import LOCAL, load_provisioner, provisioner_name
from kbridge.kernels.registry.persistent import PersistentKernel
from kbridge.kernels.settings import KernelOptions
from kbridge.kernels.tasks import in_thread

__all__ = ["BridgeKernel"]


class BridgeKernel(PersistentKernel):
    """A kernel: its process, its connection file and its log.

    Connection files and ports are `kbridge.connect`'s, not jupyter_client's.

    Attributes
    ----------
    encryption : str or None
        The setting `transport_encryption` of this server.
    """

    @default("cache_ports")
    def _default_cache_ports(self) -> bool:
        return False  # otherwise its provisioner would choose them, from jupyter_client's cache

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.encryption: str | None = None
        self.output = KernelLog(Path(self.connection_file).with_suffix(".log"))

    def _ip_default(self) -> str:
        if self.transport == "ipc":
            return ipc.private_beside(self.connection_file)
        return super()._ip_default()

    def configure(
        self,
        options: KernelOptions,
        spec: KernelSpec,
        *,
        inherits_env: bool,
        independent: bool,
    ) -> None:
        """Prepare the start of the first process.

        Parameters
        ----------
        options : KernelOptions
            Transport, address and encryption.
        spec : KernelSpec
            The kernelspec. Without it, jupyter_client would read it on the event loop.
        inherits_env : bool
            True if the kernel gets the server's environment.
        independent : bool
            True if the kernel keeps running when the server ends.

        Raises
        ------
        KernelStartError
            If encryption is required and this jupyter_client does not support it.
        """
        # A provisioner may modify the kernelspec, and others get the same one from a cache.
        self._kernel_spec = deepcopy(spec)
        self.inherits_env = inherits_env
        self.independent = independent
        if options.transport is not None:
            self.transport = options.transport
        if options.kernel_ip:
            self.ip = options.kernel_ip
        if options.transport_encryption is not None:
            self._encrypt(options.transport_encryption)

    def _encrypt(self, policy: str) -> None:
        policy = {"off": "disabled", "preferred": "auto"}.get(policy, policy)
        if self.has_trait("transport_encryption"):
            self.transport_encryption = policy
        elif policy == "required":
            raise KernelStartError("transport_encryption needs jupyter_client 8.10 or newer")

    def _must_encrypt(self) -> bool:
        return str(getattr(self, "transport_encryption", "")).lower() == "required"

    def _check_encrypted(self) -> None:
        if self._must_encrypt() and self._curve_keys()[0] is None:
            raise KernelError("its provisioner does not support transport_encryption=required")

    def _make_provisioner(self) -> None:
        """Make the provisioner before jupyter_client does, which asks for its settings later."""
        if self.provisioner is None:
            factory = KernelProvisionerFactory.instance(parent=self.parent)
            self.provisioner = factory.create_provisioner_instance(
                self.kernel_id, self.kernel_spec, parent=self
            )
        queued = self.queued
        if queued is not None and queued.remote:
            # Also for a kernel that an earlier server has started.
            names = [kind.__name__ for kind in type(self).__mro__]
            if self.encryption is not None:
                self._encrypt(self.encryption)
            elif not any("transport_encryption" in self.config.get(name, {}) for name in names):
                self._encrypt("preferred")  # others share the network with the kernel

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata in the kernelspec."""
        spec = self.kernel_spec
        return spec.metadata if spec is not None else {}

    async def start(self, *, env: dict[str, str], cwd: Path) -> None:
        """Start the process.

        Raises
        ------
        KernelStartError
            If the program or the provisioner does not exist, or the provisioner refuses.
        InvalidRequest
            If the environment asks a provisioner of kbridge for something that is not allowed.
        """
        await self._start(kernel_id=self.kernel_id, env=env, cwd=str(cwd))

    async def start_again(self, *, newports: bool) -> None:
        """Start a new process with the arguments of the old one, after `stop`.

        Raises
        ------
        KernelStartError
            As `start`.
        """
        if newports:
            self._return_ports()
            self.cleanup_random_ports()
        arguments: dict[str, Any] = dict(self._launch_args or {})
        wished = arguments.get("cwd")
        if wished:
            # The directory may have been renamed or removed since.
            arguments["cwd"] = await in_thread(self._existing, str(wished))
        try:
            await self._start(**arguments)
        finally:
            if wished and self._launch_args is not None:
                self._launch_args["cwd"] = wished

    def _existing(self, directory: str) -> str:
        root = Path(getattr(self.parent, "root_dir", "/"))
        inside = directory == str(root) or directory.startswith(f"{root}/")
        return str(innermost_directory(root if inside else Path("/"), directory))

    async def _start(self, **kwargs: Any) -> None:
        self._starting = True
        try:
            if self.starts_here:
                await in_thread(self._start_in_thread, kwargs)
            else:
                await load_provisioner(self.provisioner_name, self.parent)
                self._make_provisioner()
                if self.queued is None:
                    await in_thread(self._choose_ports)
                await self.start_kernel(**kwargs)
            if self.queued is None:
                try:
                    self._check_encrypted()
                except KernelError:
                    await self.stop(now=True)
                    raise
        except ClientError:  # a request that the provisioner refuses
            raise
        except Exception as error:  # provisioners are third parties
            by = "" if self.starts_here else f" by its provisioner {self.provisioner_name}"
            reason = f"Kernel {self.kernel_name} could not be started{by}: {error}"
            raise KernelStartError(reason, self.output.tail()) from error
        finally:
            self._starting = False
        await self.ask_provisioner()

    def _choose_ports(self) -> None:
        """Choose free ports, which no other kernel of this server gets.

        For kernels on another machine, the provisioner chooses.
        """
        if self.transport != "tcp" or not is_local_ip(self.ip):
            return
        self._record_random_port_names()
        for name in port_names:
            if not getattr(self, name):
                port = LocalPortCache.instance().find_available_port(self.ip)
                self._promised.append(port)
                setattr(self, name, port)

    def _start_in_thread(self, arguments: Mapping[str, Any]) -> None:
        self._choose_ports()
        # jupyter_client writes files and forks, but its coroutines never wait.
        asyncio.run(self._start_kernel(**arguments))

    async def _start_kernel(self, **kwargs: Any) -> None:
        await self.start_kernel(**kwargs)

    @property
    def starts_here(self) -> bool:
        """Return True if the kernelspec names jupyter_client's own provisioner, or none."""
        return self.provisioner_name == LOCAL

    @property
    def provisioner_name(self) -> str:
        """The name of the provisioner that the kernelspec names, or the default one."""
        return provisioner_name(self.metadata, self.parent)

    async def _async_launch_kernel(self, kernel_cmd: list[str], **kw: Any) -> None:
        if not kernel_cmd and isinstance(self.provisioner, LocalProvisioner):
            folder = self.kernel_spec.resource_dir if self.kernel_spec is not None else ""
            raise KernelError(
                "its kernelspec has an empty argv; it should hold the command that starts the"
                f" kernel: see {Path(folder) / 'kernel.json'}"
            )
        if self.abandoned:
            raise KernelError("another server serves it now")
        if self.queued is not None:
            await self.queued.submit(kernel_cmd, **kw)
            return
        # Not among the arguments of `start`: those are kept for restarts, but the file is open
        # only during the launch.
        with self.output.open() as log:
            # gateway_provisioners' DistributedProvisioner passes its own log file to Popen.
            if not hasattr(self.provisioner, "kernel_log"):
                kw = {"stdout": log, "stderr": subprocess.STDOUT, **kw}
            if self.independent and isinstance(self.provisioner, LocalProvisioner):
                kw["independent"] = True
                # If this server was started from a kernel, its kernels would end with that kernel.
                kw["env"] = {n: value for n, value in kw["env"].items() if n != "JPY_PARENT_PID"}
            await super()._async_launch_kernel(kernel_cmd, **kw)

    # -- the queue of a scheduler ------------------------------------------------------------------

    @property
    def queue_text(self) -> str:
        """The state and the reason of a kernel that waits in a queue; empty if it does not."""
        return self.queued.queue_text if self.queued is not None else ""

    def observe_queue(self, listener: Callable[[], None] | None) -> None:
        """Call `listener` when `queue_text` has changed; None to stop that."""
        if self.queued is not None:
            self.queued.on_change = listener

    async def wait_running(self) -> None:
        """Wait until a kernel that was started, and waits in a queue, runs.

        Raises
        ------
        KernelStartError
            If its job ended before, or its connection info cannot be used.
        """
        queued = self.queued
        assert queued is not None, "only a kernel with a queue waits"
        try:
            self._reconcile_connection_info(await queued.wait_running())
            self._check_encrypted()
        except KernelStartError:
            raise
        except Exception as error:  # provisioners are third parties
            await self.kill_quietly()  # it may run, and nobody would reach it
            reason = f"Kernel {self.kernel_name} could not be started: {error}"
            raise KernelStartError(reason, self.output.tail()) from error
        await self.ask_provisioner()

    def ended_as_one_of(self, kinds: Collection[str]) -> bool:
        """Return True if the job of the kernel ended in one of these ways, or it has no job."""
        return self.queued is None or self.queued.end_kind in kinds

    async def stop(self, *, now: bool, restart: bool = False) -> None:
        """End the process, with a shutdown request or at once, and remove its files.

        Raises
        ------
        KernelError
            If the provisioner fails; the process may then still run.
        """
        try:
            # A process that has ended, or has no address yet, cannot be sent a shutdown request.
            alive = await self.is_alive()
            unreachable = self.waiting or not any(self.ports)
            if self.queued is not None and (unreachable or not alive):
                if alive:
                    await self.queued.kill(restart=restart)
                await self.cleanup_resources(restart=restart)
            else:
                await self.shutdown_kernel(now=now or not alive, restart=restart)
            if not restart:
                self._return_ports()
        except Exception as error:  # provisioners are third parties
            raise KernelError(f"Kernel {self.kernel_id} could not be stopped: {error}") from error

    def _connect_control_socket(self) -> None:
        # jupyter_client connects after each start, only for the request that ends the process. It
        # connects again when that is sent; until then, two descriptors are saved.
        if not self._starting:
            super()._connect_control_socket()

    def _close_control_socket(self) -> None:
        # Without a linger time: a shutdown request that the process did not receive would otherwise
        # reach the next process on its port, within jupyter_client's linger time of 0.1 s.
        sock, self._control_socket = self._control_socket, None
        if sock is not None:
            sock.close(linger=0)

    async def kill(self) -> None:
        """End the process without asking or waiting.

        Raises
        ------
        KernelError
            If the provisioner cannot.
        """
        if not self.has_kernel or self.provisioner is None:
            return
        try:
            await self.provisioner.kill()
        except Exception as error:  # provisioners are third parties
            raise KernelError(f"Kernel {self.kernel_id} could not be killed: {error}") from error

    async def kill_quietly(self) -> None:
        """End the process without asking or waiting; log an error if the provisioner cannot."""
        try:
            await self.kill()
        except KernelError as error:
            self.log.error("%s", error)

    async def _async_interrupt_kernel(self) -> None:
        # Called before a shutdown, which a failed interrupt must not prevent.
        try:
            await super()._async_interrupt_kernel()
        except Exception as error:  # noqa: BLE001 - provisioners are third parties
            self.log.debug("Kernel %s was not interrupted: %s", self.kernel_id, error)

    async def signal_interrupt(self) -> None:
        """Send SIGINT to the kernel and what it runs.

        Raises
        ------
        KernelError
            If no process runs, or the process cannot be signalled.
        """
        try:
            await self.signal_kernel(signal.SIGINT)
        except Exception as error:  # provisioners are third parties
            raise KernelError(f"Kernel {self.kernel_id} cannot be interrupted: {error}") from error

    def stable_time(self, recommended: float) -> float:
        """Return how many seconds the process must run to count as stable."""
        if self.provisioner is None:
            return recommended
        return float(self.provisioner.get_stable_start_time(recommended=recommended))

    async def wait_exit(self, interval: float) -> None:
        """Return when the process has ended; meanwhile keep its log within bounds.

        Parameters
        ----------
        interval : float
            Seconds between two checks, where the operating system does not report the end.
        """
        process = self.process
        pid = process.pid if process is not None else None
        async with aclosing(exit_checks(interval, pid)) as checks:
            async for _ in checks:
                self.output.trim()
                if not await self.is_alive():
                    return

    async def exit_description(self) -> str:
        """Return one sentence on how the process ended."""
        code = await self.provisioner.poll() if self.provisioner is not None else None
        if self.queued is not None and self.queued.end_text:
            return self.queued.end_text
        if isinstance(self.process, AdoptedProcess):
            code = None  # only a parent learns the exit code
        return f"Kernel {self.kernel_name} ended{_how(code)}"


def _how(code: int | None) -> str:
    if code is None:
        return ""
    if code >= 0:
        return f" with exit code {code}"
    try:
        return f" by {signal.Signals(-code).name}"
    except ValueError:
        return f" by signal {-code}"
