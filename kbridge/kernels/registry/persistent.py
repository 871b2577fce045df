"""A kernel manager whose state can be recorded, and restored by another process.

jupyter_client keeps the state of a running kernel in its manager. This module converts that state
to a row of the registry and back.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.localinterfaces import is_local_ip
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from kbridge.connect.methods import ConnectionFileMethods
from kbridge.connect.ports import LocalPortCache
from kbridge.errors import KernelError
from kbridge.kernels.lifecycle.kernel_log import KernelLog
from kbridge.kernels.lifecycle.processes import (
    AdoptedProcess,
    ProcessState,
    find_command,
    same_boot,
    start_id,
    state_of,
)
from kbridge.kernels.lifecycle.provisioners import load_provisioner, provisioner_name
from kbridge.kernels.lifecycle.queued import QueuedProvisioner
from kbridge.kernels.registry.models import KernelRole, KernelRow, decode, encode

__all__ = ["USERNAME", "PersistentKernel"]

USERNAME: Final = "KERNEL_USERNAME"
"""The variable in which provisioners and kernels find the name of the user."""

_SPEC_FIELDS: Final = (
    *("argv", "env", "display_name", "language", "interrupt_mode", "metadata", "resource_dir"),
)


class PersistentKernel(ConnectionFileMethods, AsyncKernelManager):
    """A kernel that can be written to a registry and restored from it.

    Attributes
    ----------
    independent : bool
        True if the kernel keeps running when the server ends.
    role : KernelRole
        The use of the kernel: starting, pooled or used.
    inherits_env : bool
        True if the kernel has the server's environment, except for some variables; False if a
        request supplied the environment.
    abandoned : bool
        True after `abandon`: no process is started any longer.
    pool_fingerprint : str
        A digest of what a kernel that was started for a pool was made from; else empty.
    user : str
        The name of the user who started the kernel; empty for the operator.
    identities : list of bytes
        The ZeroMQ identities of the kernel's hub and of earlier hubs, newest last.
    seed_cells : tuple of str
        The cells of the seed notebook that have to run when the kernel leaves a queue.
    output : KernelLog
        The output of the kernel on stdout and stderr.
    """

    output: KernelLog

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.independent = False
        self.role = KernelRole.STARTING
        self.inherits_env = True
        self.abandoned = False
        self._starting = False
        self.pool_fingerprint = ""
        self.user = ""
        self.identities: list[bytes] = []
        self.seed_cells: tuple[str, ...] = ()
        self._promised: list[int] = []
        self._provisioner_info: dict[str, Any] | None = None

    # -- setters ----------------------------------------------------------------------

    def identify(self, kernel_id: str, log_path: Path | None, log_limit: int) -> None:
        """Set the id, and the path (None: beside the connection file) and limit of the log."""
        self.kernel_id = kernel_id
        self.output = KernelLog(log_path or self.output.path, log_limit)

    def set_role(self, role: KernelRole, pool_fingerprint: str = "") -> None:
        """Set the use of the kernel, and what a pooled kernel was made from."""
        self.role = role
        self.pool_fingerprint = pool_fingerprint or self.pool_fingerprint

    def give_to(self, user: str) -> None:
        """Set the user whose kernel it is; the next process gets the name in KERNEL_USERNAME."""
        self.user = user
        if user:
            self.update_env(env={USERNAME: user})

    # -- recording ----------------------------------------------------------------------------

    @property
    def process(self) -> subprocess.Popen[bytes] | AdoptedProcess | None:
        """The process on this machine; None if the provisioner may run it on another one."""
        process = getattr(self.provisioner, "process", None)
        return process if isinstance(process, subprocess.Popen | AdoptedProcess) else None

    @property
    def queued(self) -> QueuedProvisioner | None:
        """The provisioner, if its kernels may wait in a queue."""
        found = self.provisioner
        return found if isinstance(found, QueuedProvisioner) else None

    @property
    def waiting(self) -> bool:
        """True while the kernel waits in a queue: it has no process and no address yet."""
        return self.queued is not None and self.queued.waiting

    async def ask_provisioner(self) -> None:
        """Store the data that the provisioner needs to find the kernel again."""
        if not self.independent or self.provisioner is None:
            return
        try:
            self._provisioner_info = await self.provisioner.get_provisioner_info()
        except Exception as error:  # noqa: BLE001 - provisioners are third parties
            self._provisioner_info = None
            self.log.error(
                "Kernel %s will not be found at the next start: its provisioner gives no data: %s",
                self.kernel_id,
                error,
            )

    def record(self, identities: list[bytes] | None = None) -> KernelRow:
        """Return the row of the registry that describes the kernel now.

        Parameters
        ----------
        identities : list of bytes, optional
            The ZeroMQ identities of the kernel's hub, newest last, if they may have changed.

        Raises
        ------
        KernelError
            If the data of the provisioner cannot be represented as JSON.
        """
        if identities is not None:
            self.identities = identities
        process = self.process
        pid = process.pid if process is not None and process.returncode is None else 0
        spec = self.kernel_spec
        details: dict[str, Any] = {
            "connection_file": str(Path(self.connection_file).absolute()),
            "provisioner": self._provisioner_info,
            "identities": self.identities,
            "ahead": self.pool_fingerprint,
            "launch": self._recorded_launch(),
            "kernelspec": spec and {name: getattr(spec, name) for name in _SPEC_FIELDS},
        }
        if self.seed_cells:
            details["seed"] = list(self.seed_cells)
        if self.waiting:
            details["waiting"] = True
        elif self._provisioner_info is not None:
            details["connection"] = dict(self.get_connection_info())
        try:
            text = encode(details)
        except (TypeError, ValueError) as error:
            reason = f"the data of its provisioner cannot be recorded: {error}"
            raise KernelError(
                f"Kernel {self.kernel_id} will not be found at the next start: {reason}"
            ) from None
        return KernelRow(
            kernel_id=str(self.kernel_id),
            kernel_name=self.kernel_name,
            role=str(self.role),
            pid=pid,
            start_id=start_id(pid) if pid else "",
            log_path=str(self.output.path.absolute()),
            details=text,
            user=self.user,
        )

    def _recorded_launch(self) -> dict[str, Any]:
        """Return the launch arguments, without the variables that equal those of the server."""
        arguments: dict[str, Any] = dict(self._launch_args or {})
        env: dict[str, str] = arguments.pop("env", {})
        if self.inherits_env:
            env = {n: value for n, value in env.items() if os.environ.get(n) != value}
        return {"inherits": self.inherits_env, "env": env, "arguments": arguments}

    # -- restoring ----------------------------------------------------------------------------

    async def prepare_adoption(self, row: KernelRow) -> None:
        """Import the provisioner of a recorded kernel, which may take seconds.

        Raises
        ------
        KernelError
            If the row cannot be read, or the import fails.
        """
        try:
            spec = decode(row.details)["kernelspec"] or {}
            name = provisioner_name(spec.get("metadata") or {}, self.parent)
            await load_provisioner(name, self.parent)
        except Exception as error:  # provisioners are third parties
            raise KernelError(f"Kernel {row.kernel_id} cannot be adopted: {error}") from error

    async def adopt(
        self,
        row: KernelRow,
        env: Mapping[str, str],
        commands: Callable[[], Awaitable[dict[int, list[str]]]],
    ) -> bool:
        """Become the manager of a recorded kernel.

        Parameters
        ----------
        row : KernelRow
            The row of the registry.
        env : mapping
            The environment that a kernel inherits from this server.
        commands : callable
            Returns the command lines of all processes. If the kernel's process was not recorded in
            time, it is looked for among them.

        Returns
        -------
        bool
            True if the kernel runs; else its files can be removed.

        Raises
        ------
        KernelError
            If its provisioner fails.
        """
        try:
            details = decode(row.details)
            self._restore(row, details, env)
            provisioner = KernelProvisionerFactory.instance(
                parent=self.parent
            ).create_provisioner_instance(self.kernel_id, self.kernel_spec, parent=self)
            self.provisioner = provisioner  # released if this fails
            info = details["provisioner"]
            if info is not None:
                await provisioner.load_provisioner_info(info)
            if isinstance(provisioner, LocalProvisioner):
                alive = await self._hold(provisioner, row, details, commands)
            else:
                alive = info is not None and await provisioner.poll() is None
                if alive and not provisioner.has_process:
                    raise KernelError("its provisioner cannot adopt kernels of another process")
                self.load_connection_info(details.get("connection", {}))
            await self.ask_provisioner()
        except Exception as error:  # provisioners are third parties
            raise KernelError(f"Kernel {row.kernel_id} cannot be adopted: {error}") from error
        return alive

    def _restore(self, row: KernelRow, details: Mapping[str, Any], env: Mapping[str, str]) -> None:
        self.role = KernelRole(row.role)
        self.user = row.user
        self.independent = True
        # An earlier version recorded one identity. A kernel that was starting may have none.
        old = [details["identity"]] if "identity" in details else []
        self.identities = details.get("identities") or old
        self.pool_fingerprint = details["ahead"]
        self.seed_cells = tuple(details.get("seed") or ())
        self.connection_file = details["connection_file"]
        self._connection_file_written = True
        self._ipc_files_ours = True
        self._attempted_start = True
        self._provisioner_info = details["provisioner"]
        if details["kernelspec"] is not None:
            # The recorded one: the file may have been changed or removed since.
            self._kernel_spec = KernelSpec(**details["kernelspec"])
        launch = details["launch"]
        self.inherits_env = launch["inherits"]
        inherited = env if self.inherits_env else {}
        arguments: Any = {**launch["arguments"], "env": {**inherited, **launch["env"]}}
        self._launch_args = arguments

    async def _hold(
        self,
        provisioner: Any,
        row: KernelRow,
        details: Mapping[str, Any],
        commands: Callable[[], Awaitable[dict[int, list[str]]]],
    ) -> bool:
        """Give a local provisioner its process; return False if the process has ended."""
        process = _held(row.pid, row.start_id)
        state = state_of(row.pid, row.start_id) if row.start_id else ProcessState.GONE
        if process is None and state is ProcessState.HIDDEN:
            raise KernelError("its process runs, or ran, in another container or pid namespace")
        if process is None and same_boot(row.start_id):
            # The server may have died between a restart of the kernel and its record.
            pid = find_command(self.format_kernel_cmd(), await commands())
            process = _held(pid, start_id(pid)) if pid else None
            if process is not None:
                with suppress(OSError, ValueError):
                    self.load_connection_file()
        self.load_connection_info(details.get("connection", {}))
        if process is None:
            return False
        provisioner.process = process
        provisioner.pid = process.pid
        # AdoptedProcess signals the group; a group id may have been reused.
        provisioner.pgid = None
        if self.transport == "tcp" and is_local_ip(self.ip):
            self._promised = [port for port in self.ports if port]
            LocalPortCache.instance().currently_used_ports.update(self._promised)
        return True

    def abandon(self) -> None:
        """Release the process without ending it or removing its files. May be called twice.

        A process that is being started is not released: its caller does so, or ends it.
        """
        self.abandoned = True
        if self._starting:
            return
        self._connection_file_written = False
        self._close_control_socket()
        self._return_ports()
        process = self.process
        if isinstance(process, AdoptedProcess):
            process.close()
        elif process is not None:
            process.returncode = 0  # otherwise Popen warns that the process still runs
        if self.queued is not None:
            self.queued.release()
        self.provisioner = None

    def remove_files(self) -> None:
        """Remove the connection file, and the sockets if the transport is ipc."""
        self.cleanup_connection_file()
        self.cleanup_ipc_files()

    def _return_ports(self) -> None:
        while self._promised:
            LocalPortCache.instance().return_port(self._promised.pop())


def _held(pid: int, recorded: str) -> AdoptedProcess | None:
    try:
        return AdoptedProcess(pid, recorded) if pid else None
    except ProcessLookupError:
        return None
