"""The settings of `BridgeKernelManager`, each a trait for the config file and the command line.

Where Jupyter Server or the kernel gateway has the same setting, the name is the same or the
help text says which one it stands for.
"""

from __future__ import annotations

import os
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

from kbridge.kernels.culling import CullSettings

__all__ = ["KernelSettings"]


class KernelSettings(LoggingConfigurable):
    """Traits only; what they do is in the modules that read them."""

    max_kernels = Integer(
        None,
        allow_none=True,
        config=True,
        help="""How many kernels may run; None: any number. Kernels waiting in a pool and kernels
        that died do not count. (KG_MAX_KERNELS)""",
    )
    force_kernel_name = Unicode(
        "",
        config=True,
        help="Start this kernelspec, whichever a request names. (KG_FORCE_KERNEL_NAME)",
    )
    root_dir = Unicode(
        config=True,
        help="The directory that paths in requests are relative to, and that kernels start in.",
    )
    kernel_spec_manager_class = Type(
        KernelSpecManager,
        config=True,
        help="""The class that finds kernelspecs, a subclass of
        jupyter_client.kernelspec.KernelSpecManager, such as
        nb_conda_kernels.CondaKernelSpecManager. Jupyter Server and the kernel gateway have the
        setting on their application.""",
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
        help="""Environment variables of this server that a kernel inherits when its request
        brings an environment; else it inherits all but the token.
        (KG_ENV_PROCESS_WHITELIST)""",
    )
    kernel_ip = Unicode(
        "",
        config=True,
        help="The address that kernels listen on; empty: this machine's loopback.",
    )
    transport = CaselessStrEnum(
        ["tcp", "ipc"],
        None,
        allow_none=True,
        config=True,
        help="""How kernels are reached: tcp ports or ipc (unix sockets in a private
        directory below the runtime directory). None: as KernelManager.transport says.""",
    )
    transport_encryption = CaselessStrEnum(
        ["off", "preferred", "required", "disabled", "auto"],
        None,
        allow_none=True,
        config=True,
        help="""Whether traffic with kernels that are started here is encrypted with CurveZMQ:
        `required`, a kernelspec without support for it cannot be started; `preferred`, where the
        kernelspec says that it can ("metadata": {"supported_encryption": ["curve"]}); `off`.
        `disabled` and `auto` are jupyter_client's names for the last two. None: as
        KernelManager.transport_encryption says. Needs jupyter_client 8.10.""",
    )
    attach_dir = Unicode(
        "",
        config=True,
        help="""A directory whose connection files (*.json) are of kernels that others started:
        they are served while their file is there, and never ended. Looked into every second.
        Empty: none.""",
    )
    port_attempts = Integer(
        5,
        min=1,
        config=True,
        help="""How often the start of a kernel is tried that ends because another process has
        taken one of its ports first. Each time it gets others.""",
    )
    max_concurrent_starts = Integer(
        min=1,
        config=True,
        help="""How many kernels may be starting or restarting at once; further ones wait for their
        turn. By default the number of processors, but at least 4: more would only make each start
        slower, and everything else with it.""",
    )
    start_grace = Float(
        2.0,
        config=True,
        help="""Seconds for which the start of a kernel waits until it answers. One that dies
        within them makes the request fail with the last lines of its log; one that still comes
        up is left to it.""",
    )
    kernel_info_timeout = Float(
        60.0,
        config=True,
        help="Seconds after which a kernel that does not answer is given the requests anyway.",
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
        help="How often in a row a kernel that dies is started again before it is left dead.",
    )
    stable_start_time = Float(
        10.0,
        config=True,
        help="Seconds after which a process counts as up, and restarts are counted anew.",
    )
    watch_interval = Float(
        1.0, config=True, help="Seconds between two looks at whether a kernel's process runs."
    )
    heartbeat_interval = Float(
        3.0,
        min=0.0,
        config=True,
        help="""Seconds between two pings of a kernel whose process cannot be watched from here:
        one that was attached, or that its provisioner runs elsewhere. 0: no pings.""",
    )
    heartbeat_misses = Integer(
        3,
        min=1,
        config=True,
        help="How many pings in a row such a kernel may leave unanswered before it counts as lost.",
    )
    heartbeat_status = CaselessStrEnum(
        ["unknown", "dead"],
        "unknown",
        config=True,
        help="""What a kernel is shown as that leaves its pings unanswered: `unknown`, which it
        comes back from; or `dead`, which is final for JupyterLab: the page lets go of the kernel,
        and of the output of its running cells, even if it is only the network that is gone.""",
    )
    log_limit = Integer(
        10 * 2**20,
        config=True,
        help="Bytes to which the log file of a kernel's stdout and stderr may grow.",
    )
    pool = Dict(
        value_trait=Integer(min=0),
        key_trait=Unicode(),
        config=True,
        help="""Kernels to start ahead, by kernelspec name. A request that brings no environment
        and asks for no other directory than the root gets one of them; any other gets a kernel
        of its own, since neither can be given to a process that runs.""",
    )
    prespawn_count = Integer(
        0,
        config=True,
        help="Kernels of the default kernelspec to start ahead. (KG_PRESPAWN_COUNT)",
    )
    seed_uri = Unicode(
        None,
        allow_none=True,
        config=True,
        help="""Path or http(s) URL of a notebook whose code cells run in every new kernel of its
        kernelspec. (KG_SEED_URI)""",
    )
    seed_timeout = Float(
        600.0, config=True, help="Seconds that one cell of the seed notebook may take."
    )
    cull_idle_timeout = Integer(
        0,
        config=True,
        help="""Seconds without activity after which a kernel is shut down; 0: never. A kernelspec
        opts out with "metadata": {"kbridge": {"cull": false}}, or sets its own timeout with
        "metadata": {"cull_idle_timeout": seconds}.""",
    )
    cull_interval = Integer(
        300, min=1, config=True, help="Seconds between two looks for kernels to cull."
    )
    cull_connected = Bool(False, config=True, help="Cull kernels with open websockets, too.")
    cull_busy = Bool(False, config=True, help="Cull kernels that are busy, too.")
    allowed_message_types = List(
        Unicode(),
        config=True,
        help="Message types that clients may send; empty: all.",
    )
    untracked_message_types = List(
        Unicode(),
        config=True,
        help="""Message types of requests that do not count as activity of a kernel, besides
        those that are known not to (kernel_info_request and the like).""",
    )
    buffer_offline_messages = Bool(
        True,
        config=True,
        help="""Whether a client that reconnects receives what it missed. False: it starts afresh,
        as with ZMQChannelsWebsocketConnection.resume_timeout=0.""",
    )
    allow_tracebacks = Bool(True, config=True, help="Whether clients see the kernels' tracebacks.")
    traceback_replacement_message = Unicode(
        "An exception occurred at runtime, which is not shown due to security reasons.",
        config=True,
        help="What clients see instead of a traceback when allow_tracebacks is False.",
    )

    @default("max_concurrent_starts")
    def _default_max_concurrent_starts(self) -> int:
        return max(4, os.cpu_count() or 1)

    @default("root_dir")
    def _default_root_dir(self) -> str:
        return str(Path.cwd())

    @validate("root_dir")
    def _absolute_root_dir(self, proposal: dict[str, Any]) -> str:
        root = Path(proposal["value"]).expanduser().resolve()
        if not root.is_dir():
            raise TraitError(f"root_dir {str(root)!r} is not a directory")
        return str(root)

    @property
    def cull_settings(self) -> CullSettings:
        """What the culling decision is made by."""
        return CullSettings(
            idle_timeout=self.cull_idle_timeout,
            connected=self.cull_connected,
            busy=self.cull_busy,
        )
