"""The settings of `BridgeKernelManager`, each a trait for the config file and the command line.

Where Jupyter Server or the kernel gateway has the same setting, the name is the same or the
help text names that setting.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from traitlets import (
    Bool,
    CaselessStrEnum,
    Dict,
    Float,
    Integer,
    List,
    TraitError,
    Type,
    Unicode,
    default,
    validate,
)
from traitlets.config import LoggingConfigurable

from kbridge.kernels.lifecycle.queued import JobEnd
from kbridge.kernels.lifecycle.resource_limits import parse_cpus, parse_memory

__all__ = ["KernelOptions", "KernelSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelOptions:
    """The values of the `KernelSettings` that kernels work with, under the same names."""

    max_kernels: int | None
    max_kernels_per_user: int | None
    kernel_cpus_limit: str
    kernel_memory_limit: str
    force_kernel_name: str
    root_dir: str
    allowed_envs: tuple[str, ...]
    inherited_envs: tuple[str, ...]
    kernel_ip: str
    transport: str | None
    transport_encryption: str | None
    attach_dir: str
    port_attempts: int
    max_concurrent_starts: int
    start_grace: float
    queue_grace: float
    resubmit_after: tuple[str, ...]
    kernel_info_timeout: float
    interrupt_timeout: float
    restart_limit: int
    stable_start_time: float
    watch_interval: float
    heartbeat_interval: float
    heartbeat_misses: int
    heartbeat_status: str
    log_limit: int
    pool: Mapping[str, int]
    prespawn_count: int
    seed_uri: str | None
    seed_timeout: float
    cull_idle_timeout: float
    cull_interval: float
    cull_connected: bool
    cull_busy: bool

    @classmethod
    def of(cls, settings: KernelSettings) -> KernelOptions:
        """Return the present values of the settings."""
        values = {field.name: getattr(settings, field.name) for field in fields(cls)}
        for name in ("allowed_envs", "inherited_envs", "resubmit_after"):
            values[name] = tuple(values[name])
        return cls(**{**values, "pool": dict(values["pool"])})


class KernelSettings(LoggingConfigurable):
    """The traits. They are read once, when the manager is made: see `KernelOptions`."""

    max_kernels = Integer(
        None,
        allow_none=True,
        config=True,
        help="""Maximum number of kernels. None: no limit. Kernels that wait in a pool and dead
        kernels are not counted. (KG_MAX_KERNELS)""",
    )
    max_kernels_per_user = Integer(
        None,
        allow_none=True,
        min=1,
        config=True,
        help="""Maximum number of kernels of one user; in a cluster, at all replicas together. None:
        no limit. Dead kernels are not counted, and neither are those of clients that have the
        token of the server.""",
    )
    kernel_cpus_limit = Unicode(
        "",
        config=True,
        help="""Maximum number of processors of one kernel, such as 2 or 500m, which its provisioner
        applies: it is passed on as KERNEL_CPUS_LIMIT. Empty: no limit. With a limit, kernelspecs
        whose provisioner does not apply it are refused.""",
    )
    kernel_memory_limit = Unicode(
        "",
        config=True,
        help="""Maximum memory of one kernel, such as 4Gi, which its provisioner applies: it is
        passed on as KERNEL_MEMORY_LIMIT. Empty: no limit. With a limit, kernelspecs whose
        provisioner does not apply it are refused.""",
    )
    force_kernel_name = Unicode(
        "",
        config=True,
        help="Kernelspec to start, whichever a request names. (KG_FORCE_KERNEL_NAME)",
    )
    root_dir = Unicode(
        config=True,
        help="""Directory that paths in requests are relative to, and that kernels start in. By
        default the current directory.""",
    )
    kernel_spec_manager_class = Type(
        KernelSpecManager,
        config=True,
        help="""Class that finds kernelspecs: a subclass of
        jupyter_client.kernelspec.KernelSpecManager, such as
        nb_conda_kernels.CondaKernelSpecManager.""",
    )
    allowed_envs = List(
        Unicode(),
        config=True,
        help="""Environment variables that a request may set, besides those that begin with
        KERNEL_. (KG_ENV_WHITELIST)""",
    )
    inherited_envs = List(
        Unicode(),
        config=True,
        help="""Environment variables of the server that a kernel inherits if its request has an
        `env`. Without `env` a kernel inherits all of them but the tokens of the server and the
        passwords that it uses itself (docs/jupyterhub.md).
        (KG_ENV_PROCESS_WHITELIST)""",
    )
    kernel_ip = Unicode(
        "",
        config=True,
        help="Address that kernels listen on. Empty: the loopback address.",
    )
    transport = CaselessStrEnum(
        ["tcp", "ipc"],
        None,
        allow_none=True,
        config=True,
        help="""Transport to kernels: `tcp`, or `ipc` for unix sockets in a private directory
        below the runtime directory. None: as KernelManager.transport says.""",
    )
    transport_encryption = CaselessStrEnum(
        ["off", "preferred", "required", "disabled", "auto"],
        None,
        allow_none=True,
        config=True,
        help="""Encryption (CurveZMQ) of the traffic with kernels that this server starts.
        `required`: kernelspecs without support for it cannot be started. `preferred`: used where
        the kernelspec supports it ("metadata": {"supported_encryption": ["curve"]}). `off`:
        none. `auto` and `disabled` are jupyter_client's names for `preferred` and `off`. None:
        as KernelManager.transport_encryption says, and `preferred` for kernels that a scheduler
        starts on other machines. Needs jupyter_client 8.10.""",
    )
    attach_dir = Unicode(
        "",
        config=True,
        help="""Directory with connection files (*.json) of kernels that other programs started.
        The kernels are served while their files are there, and never ended. Read once per
        second. Empty: no directory.""",
    )
    port_attempts = Integer(
        5,
        min=1,
        config=True,
        help="""Maximum number of attempts to start a kernel that ends because another process
        took one of its ports. Each attempt uses other ports.""",
    )
    max_concurrent_starts = Integer(
        min=1,
        config=True,
        help="""Maximum number of kernels that start or restart at the same time; others wait for
        their turn. By default the number of processors, but at least 4. Kernels of other
        provisioners than jupyter_client's own are not counted.""",
    )
    start_grace = Float(
        2.0,
        config=True,
        help="""Seconds that the start of a kernel waits for its first answer. If the kernel dies
        within that time, the request fails with the last lines of the kernel's log; if it is
        still starting afterwards, the request succeeds.""",
    )
    queue_grace = Float(
        5.0,
        min=0.0,
        config=True,
        help="""Seconds that a request to start or restart a kernel waits for a kernel in the queue
        of a scheduler, such as Slurm. Afterwards the request succeeds; the kernel is `starting`
        until it runs, and the `reason` in its model says why it waits.""",
    )
    resubmit_after = List(
        CaselessStrEnum([str(kind) for kind in JobEnd]),
        [str(JobEnd.CRASH)],
        config=True,
        help="""Ends of a scheduler's job after which its kernel is submitted again without a
        request, at most `restart_limit` times in a row: `crash` (of the process, or for lack of
        memory), `time_limit`, `preemption`, `node_failure`, `cancelled` (with the commands of the
        scheduler), `unknown`. After any other end the kernel is dead, and can be restarted.""",
    )
    kernel_info_timeout = Float(
        60.0,
        config=True,
        help="""Seconds to wait for a new kernel to answer before requests are sent to it
        regardless.""",
    )
    interrupt_timeout = Float(
        5.0,
        config=True,
        help="""Seconds after which a kernel that was started elsewhere, and does not reply to
        interrupt_request, counts as one that cannot be interrupted.""",
    )
    restart_limit = Integer(
        5,
        config=True,
        help="Maximum number of consecutive automatic restarts.",
    )
    stable_start_time = Float(
        10.0,
        config=True,
        help="""Seconds that a kernel must run before its automatic restarts are counted from
        zero again.""",
    )
    watch_interval = Float(
        1.0,
        config=True,
        help="Seconds between two checks of whether a kernel's process is running.",
    )
    heartbeat_interval = Float(
        3.0,
        min=0.0,
        config=True,
        help="""Seconds between two pings of a kernel whose process this server cannot watch: an
        attached kernel, or one that its provisioner runs on another machine. 0: no pings.""",
    )
    heartbeat_misses = Integer(
        3,
        min=1,
        config=True,
        help="""Number of consecutive unanswered pings after which such a kernel counts as
        lost.""",
    )
    heartbeat_status = CaselessStrEnum(
        ["unknown", "dead"],
        "unknown",
        config=True,
        help="""Status of a kernel that does not answer its pings. `unknown`: the kernel can come
        back. `dead`: final for JupyterLab, which then drops the kernel and the output of its
        running cells even if only the network failed.""",
    )
    log_limit = Integer(
        10 * 2**20,
        config=True,
        help="""Maximum size of the log file of a kernel's stdout and stderr, in bytes.""",
    )
    pool = Dict(
        value_trait=Integer(min=0),
        key_trait=Unicode(),
        config=True,
        help="""Kernels to start in advance: a number for each kernelspec. A request without
        `env` whose directory is the root directory gets one of them. Each
        other request starts a new kernel, because environment and directory cannot be changed in
        a running process. On a server with users, only kernels that the server starts itself are
        handed out to users, and they have no KERNEL_USERNAME until they are restarted.""",
    )
    prespawn_count = Integer(
        0,
        config=True,
        help="""Number of kernels of the default kernelspec to start in advance.
        (KG_PRESPAWN_COUNT)""",
    )
    seed_uri = Unicode(
        None,
        allow_none=True,
        config=True,
        help="""Path or http(s) URL of a notebook. Its code cells run in every new kernel of the
        notebook's kernelspec. (KG_SEED_URI)""",
    )
    seed_timeout = Float(
        600.0, config=True, help="Maximum time for one cell of the seed notebook, in seconds."
    )
    cull_idle_timeout = Integer(
        0,
        config=True,
        help="""Seconds without activity after which a kernel is shut down. 0: never. A
        kernelspec can opt out with "metadata": {"kbridge": {"cull": false}}, or set its own
        timeout with "metadata": {"cull_idle_timeout": SECONDS}.""",
    )
    cull_interval = Integer(
        300, min=1, config=True, help="Seconds between two searches for kernels to cull."
    )
    cull_connected = Bool(False, config=True, help="Also cull kernels with open websockets.")
    cull_busy = Bool(False, config=True, help="Also cull busy kernels.")
    allowed_message_types = List(
        Unicode(),
        config=True,
        help="Message types that clients may send. Empty: all.",
    )
    untracked_message_types = List(
        Unicode(),
        config=True,
        help="""Types of request messages that do not count as activity of a kernel, in addition
        to the built-in ones (such as kernel_info_request).""",
    )
    buffer_offline_messages = Bool(
        True,
        config=True,
        help="""Send the messages that a client missed when it reconnects. If False, a client
        that reconnects gets no earlier messages, as with
        ZMQChannelsWebsocketConnection.resume_timeout=0.""",
    )
    allow_tracebacks = Bool(True, config=True, help="Show the tracebacks of kernels to clients.")
    traceback_replacement_message = Unicode(
        "An exception occurred at runtime, which is not shown due to security reasons.",
        config=True,
        help="""Text that clients see in place of a traceback if allow_tracebacks is False.""",
    )

    @default("max_concurrent_starts")
    def _default_max_concurrent_starts(self) -> int:
        return max(4, os.cpu_count() or 1)

    @default("root_dir")
    def _default_root_dir(self) -> str:
        return str(Path.cwd())

    @validate("kernel_cpus_limit", "kernel_memory_limit")
    def _parsable_limit(self, proposal: dict[str, Any]) -> str:
        parse = parse_cpus if proposal["trait"].name == "kernel_cpus_limit" else parse_memory
        value = str(proposal["value"])
        try:
            _ = value and parse(value)
        except ValueError as error:
            raise TraitError(f"{proposal['trait'].name}: {error}") from None
        return value

    @validate("root_dir")
    def _absolute_root_dir(self, proposal: dict[str, Any]) -> str:
        root = Path(proposal["value"]).expanduser().resolve()
        if not root.is_dir():
            raise TraitError(f"root_dir {str(root)!r} is not a directory")
        return str(root)
