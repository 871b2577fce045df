"""Limits on the processors and the memory of each kernel, which its provisioner applies.

A kernel gets them as the environment variables of Enterprise Gateway and gateway_provisioners. A
process on this machine cannot be limited without a control group, so kernels of provisioners that
ignore the variables are refused, unless their kernelspec says that its command applies them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final

from kbridge.errors import InvalidRequest, KernelStartError

__all__ = ["ResourceLimits", "parse_cpus", "parse_memory"]

_APPLYING: Final = frozenset({"kubernetes-provisioner", "slurm-provisioner"})
_BYTES: Final[dict[str, float]] = {
    **{f"{unit}i": float(1024**power) for power, unit in enumerate("KMGTP", 1)},
    **{unit: float(1000**power) for power, unit in enumerate("kMGTP", 1)},
}
_LONGEST: Final = 30


def parse_cpus(text: str) -> float:
    """Return the number of processors: `2`, `0.5` or `500m`.

    Raises
    ------
    ValueError
        If the text is not such a number.
    """
    if text.endswith("m"):
        return _number(text[:-1]) / 1000
    return _number(text)


def parse_memory(text: str) -> float:
    """Return the number of bytes: `4Gi`, `500M` or a number, as Kubernetes writes it.

    Raises
    ------
    ValueError
        If the text is not such a size.
    """
    for unit, size in _BYTES.items():
        if text.endswith(unit):
            return _number(text.removesuffix(unit)) * size
    return _number(text)


def _number(text: str) -> float:
    digits = text.replace(".", "", 1)
    if not (digits.isascii() and digits.isdigit()) or len(text) > _LONGEST:
        raise ValueError(f"{text!r} is not a positive number")
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError(f"{text!r} is not a positive number")
    return number


class ResourceLimits:
    """The limits of the settings.

    Parameters
    ----------
    cpus, memory : str
        The values of `kernel_cpus_limit` and `kernel_memory_limit`; empty for no limit.
    """

    def __init__(self, cpus: str, memory: str) -> None:
        rows: tuple[tuple[str, str, str, Callable[[str], float]], ...] = (
            ("kernel_cpus_limit", cpus, "KERNEL_CPUS", parse_cpus),
            ("kernel_memory_limit", memory, "KERNEL_MEMORY", parse_memory),
        )
        self._rows = [row for row in rows if row[1]]

    def __bool__(self) -> bool:
        return bool(self._rows)

    def apply(
        self,
        env: MutableMapping[str, str],
        kernelspec: str,
        provisioner: str,
        metadata: Mapping[str, Any],
    ) -> None:
        """Set the limits in the environment of a kernel, if it has no lower ones.

        Parameters
        ----------
        env : mutable mapping
            The environment of the kernel.
        kernelspec, provisioner : str
            The names of its kernelspec and its provisioner.
        metadata : mapping
            The metadata of the kernelspec.

        Raises
        ------
        InvalidRequest
            If the environment asks for more.
        KernelStartError
            If the limits would not be applied.
        """
        if not self._rows:
            return
        own = metadata.get("kbridge")
        if provisioner not in _APPLYING and not (isinstance(own, Mapping) and own.get("limits")):
            settings = " and ".join(setting for setting, *_ in self._rows)
            raise KernelStartError(
                f"The kernelspec {kernelspec!r} cannot be started, because its provisioner"
                f" {provisioner} does not apply {settings}; see docs/provisioners.md"
            )
        for setting, limit, variable, parse in self._rows:
            for name in (variable, f"{variable}_LIMIT"):
                if name not in env:
                    continue
                try:
                    wished = parse(env[name])
                except ValueError as error:
                    raise InvalidRequest(f"{name}: {error}") from None
                if wished > parse(limit):
                    raise InvalidRequest(
                        f"{name}={env[name]} is more than {setting} ({limit}) allows"
                    )
            env.setdefault(f"{variable}_LIMIT", limit)
