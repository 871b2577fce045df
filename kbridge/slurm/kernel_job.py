"""The job of one kernel: its state, and the answers to its calls. No input or output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from kbridge.errors import InvalidRequest
from kbridge.kernels.lifecycle.queued import JobEnd
from kbridge.slurm.callback import JobKeys
from kbridge.slurm.job import PORTS
from kbridge.slurm.status import JobStatus

__all__ = ["KernelJob"]

_MOST_TAIL = 8192
# States that explain the end of a kernel even if Slurm named them after that end.
_ENDS = frozenset({"TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY"})


@dataclass(slots=True)
class KernelJob:
    """A job that was submitted.

    Attributes
    ----------
    job_id : int
        The id that sbatch printed.
    keys : JobKeys
        The secrets that the job and the bridge share.
    launch : dict
        The command, the environment and the keys of the kernel.
    ip, port : str, int
        Where the job calls, on this machine.
    generation : int
        The number of the kernel in this job; a restart within the job raises it.
    asked : bool
        True if the job has received `launch`.
    node_ip : str
        The address of the kernel; empty before it is bound.
    ports : dict
        The ports of the kernel; empty before they are bound.
    code : int or None
        The exit code of the kernel; None before it has ended.
    tail : str
        The last lines of output of a kernel that has ended.
    stays_until : float
        The time (monotonic) until which the job waits for the next kernel, after the end of one.
    final : bool
        True if no kernel follows the current one.
    cancelled : bool
        True if this server has ended the job, or wants it to end.
    restarts : bool
        True if a restart was asked for before the end of the kernel.
    by_itself : bool
        True if the kernel ended while Slurm did not end the job.
    """

    job_id: int
    keys: JobKeys = field(repr=False)
    launch: dict[str, Any] = field(repr=False)
    ip: str
    port: int
    generation: int = 1
    asked: bool = False
    node_ip: str = ""
    ports: dict[str, int] = field(default_factory=dict)
    code: int | None = None
    tail: str = ""
    stays_until: float = 0.0
    final: bool = False
    cancelled: bool = False
    by_itself: bool = False
    restarts: bool = False

    def info(self) -> dict[str, Any]:
        """Return what another process needs, as JSON."""
        return {
            "job_id": self.job_id,
            "token": self.keys.token.hex(),
            "job_public": self.keys.job_public.hex(),
            "secret": self.keys.secret.hex(),
            "launch": self.launch,
            "ip": self.ip,
            "port": self.port,
            "generation": self.generation,
            "asked": self.asked,
            "node_ip": self.node_ip,
            "ports": self.ports,
        }

    @classmethod
    def load(cls, info: dict[str, Any]) -> Self:
        """Return the job that `info` describes."""
        values = dict(info)
        names = ("token", "secret", "job_public")
        keys = JobKeys(*(bytes.fromhex(values.pop(name)) for name in names))
        return cls(keys=keys, **values)

    @property
    def connection(self) -> dict[str, Any]:
        """The connection information of the kernel, whose ports are bound."""
        connection = {**self.launch["connection"], "ip": self.node_ip, **self.ports}
        return {**connection, "key": connection["key"].encode()}

    def launch_next(self, launch: dict[str, Any]) -> None:
        """Start another kernel in the job, which waits for that."""
        self.launch = launch
        self.generation += 1
        self.asked = False
        self.node_ip, self.ports, self.code, self.tail = "", {}, None, ""
        self.final = self.by_itself = self.restarts = False

    # -- texts ----------------------------------------------------------------------------------

    def queue_text(self, status: JobStatus | None, error: str) -> str:
        """Return one line on a job whose kernel does not run yet."""
        if status is None:
            text = f"Slurm job {self.job_id} was submitted"
        else:
            text = f"{status.text}; the kernel starts" if status.runs else status.text
        return f"{text}; Slurm does not answer now: {error}" if error else text

    def ended_by_slurm(self, status: JobStatus | None) -> bool:
        """Return True if the job has ended, and not because of the end of the kernel."""
        if status is None or not status.ended:
            return False
        return not self.by_itself or status.state in _ENDS

    def end_text(self, status: JobStatus | None) -> str:
        """Return one line on the end of the job or of the kernel in it; empty if unknown."""
        if self.cancelled:
            return ""
        if status is not None and self.ended_by_slurm(status):
            return status.text
        if self.code is None:
            return ""
        return f"The kernel ended with exit code {self.code} in Slurm job {self.job_id}"

    def end_kind(self, status: JobStatus | None) -> JobEnd:
        """Return the kind of the end; see `JobEnd`."""
        if self.cancelled:
            return JobEnd.UNKNOWN
        if status is not None and self.ended_by_slurm(status):
            return status.end_kind
        return JobEnd.UNKNOWN if self.code is None else JobEnd.CRASH

    # -- the calls of the job -------------------------------------------------------------------

    def hello(self, message: dict[str, Any], node_ip: str) -> dict[str, Any]:
        """Answer the question what to start."""
        generation = message.get("generation")
        if self.cancelled or (self.final and self.code is not None):
            return {"end": True}
        if generation == self.generation and self.code is None:
            self.asked = True
            return {"launch": self.launch, "ip": node_ip}
        if generation == self.generation + 1 and self.code is None:
            self.code = 1  # `ended` was lost, while no server ran
        return {}

    def ready(self, message: dict[str, Any], node_ip: str) -> dict[str, Any]:
        """Note the ports of the kernel.

        Raises
        ------
        InvalidRequest
            If they are not ports.
        """
        if self.cancelled:
            return {"end": True}
        if message.get("generation") != self.generation or self.code is not None:
            return {}
        if message.get("ip") != node_ip:
            raise InvalidRequest("the call does not come from the address of the kernel")
        ports = message.get("ports")
        valid = (
            isinstance(ports, dict)
            and set(ports) == set(PORTS)
            and all(type(port) is int and 0 < port < 65536 for port in ports.values())
            and len(set(ports.values())) == len(PORTS)
        )
        if not valid:
            raise InvalidRequest("not the ports of a kernel")
        if not self.ports:
            self.asked = True
            self.node_ip, self.ports = node_ip, dict(message["ports"])
        return {}

    def ended(
        self, message: dict[str, Any], *, by_itself: bool, stay: float, now: float
    ) -> dict[str, Any]:
        """Note the end of the kernel; the job stays for `stay` seconds, if another may follow."""
        code, tail = message.get("code"), message.get("tail")
        if message.get("generation") != self.generation or type(code) is not int:
            return {"stay": 0}
        self.code, self.by_itself = code, by_itself
        self.tail = tail[-_MOST_TAIL:] if isinstance(tail, str) else ""
        if self.final or self.cancelled or not by_itself or not self.ports:
            stay = 0.0  # a kernel that did not start is not started again in the same job
        self.stays_until = now + stay
        return {"stay": stay}
