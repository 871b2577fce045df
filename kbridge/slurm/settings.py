"""The settings of the provisioner: in `kernel_provisioner.config` of a kernelspec, or for all.

A kernelspec sets them for its kernels. `c.SlurmProvisioner.NAME` in a configuration file sets them
for all kernelspecs that do not.
"""

from __future__ import annotations

from typing import Any, Final

from traitlets import Any as AnyTrait
from traitlets import CaselessStrEnum, Float, Integer, List, Unicode

from kbridge.kernels.lifecycle.queued import QueuedProvisioner
from kbridge.slurm.options import RESOURCES, configured

__all__ = ["SlurmSettings"]

_UNSET: Final = ""


def _resource(name: str) -> Any:
    resource = RESOURCES[name]
    text = f"sbatch's `{resource.option}`: {resource.form}. Empty: Slurm's default."
    return AnyTrait(_UNSET, config=True, help=text)


class SlurmSettings(QueuedProvisioner):
    """The settings of a provisioner."""

    partition = _resource("partition")
    time = _resource("time")
    memory = _resource("memory")
    cpus = _resource("cpus")
    gpus = _resource("gpus")
    gres = _resource("gres")
    account = _resource("account")
    qos = _resource("qos")
    constraint = _resource("constraint")
    reservation = _resource("reservation")
    nodelist = _resource("nodelist")
    exclude = _resource("exclude")
    licenses = _resource("licenses")
    allow = AnyTrait(
        (),
        config=True,
        help="""Resources that a request may set with KERNEL_SLURM_<NAME>: a list of names, or an
        object with limits, such as `{"partition": ["cpu", "gpu"], "time": "8:00:00", "gpus": 2}`.
        A list names the values, a number or a duration is the largest one, and null allows any.""",
    )
    sbatch_options = List(
        Unicode(),
        config=True,
        help="""More options of sbatch, each as one argument: `["--exclusive"]`.""",
    )
    job_name = Unicode("jupyter", config=True, help="The name of the jobs.")
    output = Unicode(
        "",
        config=True,
        help="""File for the output of the kernel, with sbatch's patterns: `/home/%u/kernel-%j.log`.
        Empty: a private file on the node, whose end is shown if the kernel does not start.""",
    )
    prologue = Unicode(
        "",
        config=True,
        help="""Lines of bash that run on the node before the kernel, in the same shell:
        `module load python`. A line that fails does not stop the kernel, unless you `set -e`.""",
    )
    python = Unicode(
        "/usr/bin/env python3",
        config=True,
        help="""Python 3.8 or newer on the nodes, as in the first line of a script. It starts the
        kernel, and need not be the Python of the kernel.""",
    )
    encryption = CaselessStrEnum(
        ["auto", "required", "off"],
        None,
        allow_none=True,
        config=True,
        help="""CurveZMQ between the server and the kernel. `auto`: if the kernelspec supports it
        (`"supported_encryption": ["curve"]`). None: as kbridge's `transport_encryption` says;
        `auto` in other servers.""",
    )
    kernel_address = CaselessStrEnum(
        ["callback", "node"],
        "callback",
        config=True,
        help="""The address of the node on which the kernel listens. `callback`: the one from which
        the job calls back. `node`: the NodeAddr of Slurm's configuration.""",
    )
    callback_ip = Unicode(
        "",
        config=True,
        help="""Address of this machine to which jobs call back. Nodes must be able to reach it.
        Empty: the address of this machine's name.""",
    )
    callback_port = Integer(
        0,
        min=0,
        max=65535,
        config=True,
        help="""Port to which jobs call back. 0: any free port; a later server listens on the same
        one while it has jobs.""",
    )
    callback_addresses = List(
        Unicode(),
        config=True,
        help="""Addresses (`host:port`) that jobs call, one after the other until one answers:
        those of all replicas of a cluster, or the outside of a NAT. Empty: `callback_ip` and the
        port.""",
    )
    callback_certfile = Unicode(
        "",
        config=True,
        help="""PEM file with a certificate for the hosts in `callback_addresses` (or for
        `callback_ip`): jobs then call back with TLS. Without it, the messages are encrypted, too,
        but not with TLS.""",
    )
    callback_keyfile = Unicode("", config=True, help="PEM file with the key of that certificate.")
    callback_cafile = Unicode(
        "",
        config=True,
        help="""PEM file with the certificates that jobs trust. Empty: `callback_certfile`, which
        is then self-signed.""",
    )
    callback_timeout = Float(
        600.0,
        min=1.0,
        config=True,
        help="""Seconds for which a job that has started calls a server that does not answer, such
        as one that is being restarted. Then the job ends.""",
    )
    start_timeout = Float(
        300.0,
        min=1.0,
        config=True,
        help="""Seconds that a kernel has from the start of its process until it listens on its
        ports. Then it is killed, and the start has failed.""",
    )
    restart_grace = Float(
        60.0,
        min=0.0,
        config=True,
        help="""Seconds for which a job stays when its kernel has ended, so that a restart needs
        neither the queue nor another node. 0: each restart is a new job.""",
    )
    poll_interval = Float(
        5.0,
        min=0.1,
        config=True,
        help="""Seconds between two questions about the states of jobs. One `squeue` asks for all
        jobs of this server. The start and the end of a kernel are reported by its job at once.""",
    )
    command_timeout = Float(
        30.0, min=1.0, config=True, help="Seconds that a command of Slurm may take."
    )
    commands_dir = Unicode(
        "", config=True, help="Directory of Slurm's commands. Empty: look for them in PATH."
    )

    def resources(self) -> dict[str, str]:
        """Return the resources that the settings name, as text.

        Raises
        ------
        SetupError
            If one is not a value of its resource.
        """
        values = {name: getattr(self, name) for name in RESOURCES}
        return {name: configured(name, value) for name, value in values.items() if value != _UNSET}
