"""The interface of provisioners whose kernels wait in the queue of a scheduler.

Such a kernel has no address before its job runs, which may take hours. kbridge calls `submit`,
writes the data of the provisioner to the registry, and waits for `wait_running` in the background.
Plain jupyter_client calls `launch_kernel`, which does both.

Rules for subclasses, beyond those of jupyter_client:

- from the return of `submit` to the end of the job, `has_process` is True and `poll` returns None,
  whether the job waits or runs;
- `kill` and `terminate` end a waiting job, too; `send_signal` has no effect on a waiting job;
- `get_provisioner_info` is complete when `submit` has returned: with it, a provisioner in another
  process goes on with the same job, also while the job waits;
- a job that has run is not put into the queue again by the scheduler: it would have another address
  and none of the user's variables. It has ended, and a server may submit another one;
- the same provisioner may `submit` again after its job has ended (a restart).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

__all__ = ["JobEnd", "QueuedProvisioner"]


class JobEnd(StrEnum):
    """The kind of the end of a job, which decides whether a server submits the kernel again."""

    CRASH = "crash"  # the process ended by itself, or used too much memory
    TIME_LIMIT = "time_limit"
    PREEMPTION = "preemption"  # a job with a higher priority got the resources
    NODE_FAILURE = "node_failure"
    CANCELLED = "cancelled"  # by the user or an administrator, not by this server
    UNKNOWN = "unknown"


class QueuedProvisioner(KernelProvisionerBase):
    """A provisioner whose kernel may wait in a queue before it runs, on a machine chosen then.

    Attributes
    ----------
    on_change : callable or None
        Set by the server. Subclasses call `changed` whenever `queue_text` has changed.
    """

    on_change: Callable[[], None] | None = None

    @abstractmethod
    async def submit(self, cmd: list[str], **kwargs: Any) -> None:
        """Give the kernel to the scheduler; return once it has the job, within seconds.

        Parameters
        ----------
        cmd : list of str
            The command of the kernel, from `pre_launch`.
        **kwargs
            The other results of `pre_launch`, above all `env`.

        Raises
        ------
        Exception
            If the scheduler refuses the job, with its reason.
        """

    @abstractmethod
    async def wait_running(self) -> KernelConnectionInfo:
        """Return the connection information when the sockets of the kernel are bound.

        It may wait for hours. It may be cancelled and called again, also after
        `load_provisioner_info` in another process. When the kernel runs, it returns at once.

        Raises
        ------
        KernelStartError
            If the job ended before the kernel ran. `end_text` says why.
        """

    @property
    @abstractmethod
    def waiting(self) -> bool:
        """True from `submit` until `wait_running` has returned or raised KernelStartError."""

    @property
    @abstractmethod
    def queue_text(self) -> str:
        """One line on the state and the reason of a job that waits; empty if it does not.

        For example "Slurm job 42 waits in partition gpu: Resources".
        """

    @property
    @abstractmethod
    def end_text(self) -> str:
        """One line on the end of the job, once `poll` has not returned None; empty if unknown.

        For example "Slurm job 42 ended: TIMEOUT (time limit of 1:00:00 reached)".
        """

    @property
    def end_kind(self) -> JobEnd:
        """The kind of the end, once `poll` has not returned None."""
        return JobEnd.UNKNOWN

    @property
    def remote(self) -> bool:
        """True if the kernel may run on another machine than this process.

        kbridge then sets `transport_encryption` of the kernel's manager (`self.parent`) to `auto`,
        unless its settings say something else, before it calls `pre_launch`.
        """
        return True

    def release(self) -> None:
        """Leave the job to another process, without ending it. May be called twice."""

    def changed(self) -> None:
        """Tell the server that `queue_text` has changed; called on the event loop."""
        if self.on_change is not None:
            self.on_change()

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Submit the kernel and wait until it runs; for plain jupyter_client.

        If the caller is cancelled, as by a timeout, the job is ended.
        """
        await self.submit(cmd, **kwargs)
        try:
            return await self.wait_running()
        except BaseException:
            with suppress(Exception):  # above all, it must not hide a cancellation
                await self.kill()
            raise
