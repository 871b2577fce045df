"""Internal: a provisioner that starts kernels as Slurm jobs.

Kernelspecs name it `slurm-provisioner`; docs/slurm.md describes its settings.
"""

from __future__ import annotations

from kbridge.slurm.provisioner import SlurmProvisioner

__all__ = ["SlurmProvisioner"]
