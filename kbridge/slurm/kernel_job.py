"""The job of one kernel: its state, and the answers to its calls. No input or output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from kbridge.errors import InvalidRequest
from kbridge.slurm.callback import JobKeys
from kbridge.slurm.job import PORTS

__all__ = ["KernelJob"]

_MOST_TAIL = 8192


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
        True if this server has ended the job.
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

    def info(self) -> dict[str, Any]:
        """Return what another process needs, as JSON."""
        return {
            "job_id": self.job_id,
            "token": self.keys.token.hex(),
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
        keys = JobKeys(bytes.fromhex(values.pop("token")), bytes.fromhex(values.pop("secret")))
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
        self.final = self.by_itself = False

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
        if message.get("generation") != self.generation or self.code is not None:
            return {}
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
