"""The resources of a job: what a kernelspec and a request may ask for, and sbatch's options.

Invariants:

- sbatch gets a list of arguments and no shell, and each value is in the same argument as its
  option, so a value cannot become an option;
- a value of a request has passed the pattern of its resource, and the limit of the kernelspec.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kbridge.errors import InvalidRequest, SetupError
from kbridge.kernels.lifecycle.resource_limits import parse_cpus, parse_memory

__all__ = [
    "FORBIDDEN",
    "PREFIX",
    "RESOURCES",
    "Allowance",
    "configured",
    "extra_options",
    "requested_resources",
    "sbatch_options",
    "within_limits",
]

# Variables of a request: KERNEL_SLURM_PARTITION and so on.
PREFIX: Final = "KERNEL_SLURM_"
# Options with which a job would not be one that this server knows.
FORBIDDEN: Final = frozenset(
    {
        *("--array", "-a", "--clusters", "-M", "--comment", "--export", "--export-file", "--help"),
        *("--parsable", "--requeue", "--test-only", "--usage", "--version", "-V", "--wait", "-W"),
        *("--wrap", "--uid", "--gid", "--ignore-pbs"),
    }
)
_LONGEST = 256

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,:@%+-]*", re.ASCII)
_GRES = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,:-]*", re.ASCII)
_FEATURES = re.compile(r"[A-Za-z0-9_\[(][A-Za-z0-9_.&|*,:\[\]()-]*", re.ASCII)
_NODES = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,\[\]-]*", re.ASCII)
_COUNT = re.compile(r"[1-9][0-9]{0,5}", re.ASCII)
_GPUS = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*:)?([1-9][0-9]{0,3})", re.ASCII)
_MEMORY = re.compile(r"([1-9][0-9]{0,11})([KMGT]?)", re.ASCII)
_TIME = re.compile(
    r"(?:(\d{1,4})-(\d{1,2})(?::(\d{1,2})(?::(\d{1,2}))?)?|(\d{1,7})(?::(\d{1,2})(?::(\d{1,2}))?)?)",
    re.ASCII,
)
_MIB: Final = {"K": 1 / 1024, "M": 1, "": 1, "G": 1024, "T": 1024 * 1024}


@dataclass(frozen=True, slots=True)
class Resource:
    """One thing that a job can ask for.

    Attributes
    ----------
    option : str
        The option of sbatch.
    pattern : re.Pattern
        The form of a value.
    form : str
        The same in words.
    size : callable or None
        Returns the number that a limit is compared with; None if the values are names.
    """

    option: str
    pattern: re.Pattern[str]
    form: str
    size: Callable[[str], float] | None = None


def _seconds(text: str) -> float:
    found = _TIME.fullmatch(text)
    assert found is not None, text
    days, hours, minutes, seconds, first, second, third = (int(p or 0) for p in found.groups())
    if found[1] is not None:
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if found[7] is not None:  # hours:minutes:seconds
        return (first * 60 + second) * 60 + third
    return first * 60 + second  # minutes[:seconds]


def _mebibytes(text: str) -> float:
    found = _MEMORY.fullmatch(text)
    assert found is not None, text
    return int(found[1]) * _MIB[found[2]]


def _gpus(text: str) -> float:
    found = _GPUS.fullmatch(text)
    assert found is not None, text
    return int(found[1])


RESOURCES: Final[Mapping[str, Resource]] = {
    "partition": Resource("--partition", _NAME, "names of partitions"),
    "time": Resource("--time", _TIME, "minutes, h:mm:ss or d-hh:mm:ss", _seconds),
    "memory": Resource("--mem", _MEMORY, "a number with K, M, G or T", _mebibytes),
    "cpus": Resource("--cpus-per-task", _COUNT, "a number", float),
    "gpus": Resource("--gpus", _GPUS, "a number, or type:number", _gpus),
    "gres": Resource("--gres", _GRES, "generic resources such as gpu:a100:1"),
    "account": Resource("--account", _NAME, "the name of an account"),
    "qos": Resource("--qos", _NAME, "the name of a quality of service"),
    "constraint": Resource("--constraint", _FEATURES, "features of nodes"),
    "reservation": Resource("--reservation", _NAME, "the name of a reservation"),
    "nodelist": Resource("--nodelist", _NODES, "names of nodes"),
    "exclude": Resource("--exclude", _NODES, "names of nodes"),
    "licenses": Resource("--licenses", _NAME, "names of licenses"),
}


@dataclass(frozen=True, slots=True)
class Allowance:
    """The resources that a request may ask for.

    Attributes
    ----------
    limits : mapping
        By the name of a resource: None for any value, a list of values, or the largest value.
    """

    limits: Mapping[str, tuple[str, ...] | str | None]

    @classmethod
    def parse(cls, allow: Any) -> Allowance:
        """Read the `allow` of a kernelspec: a list of names, or an object with limits.

        Raises
        ------
        SetupError
            If it names an unknown resource, or a limit is not a value of its resource.
        """
        if isinstance(allow, list | tuple):
            allow = dict.fromkeys(allow)
        if not isinstance(allow, Mapping):
            raise SetupError("allow is a list of names of resources, or an object with limits")
        limits: dict[str, tuple[str, ...] | str | None] = {}
        for name, limit in allow.items():
            if name not in RESOURCES:
                raise SetupError(f"allow: unknown resource {name!r}; known: {', '.join(RESOURCES)}")
            if limit is None or limit is True:
                limits[name] = None
            elif isinstance(limit, list | tuple):
                limits[name] = tuple(configured(name, value) for value in limit)
            elif RESOURCES[name].size is not None:
                limits[name] = configured(name, limit)
            else:
                raise SetupError(f"allow: the limit of {name} is a list of values")
        return cls(limits)

    def check(self, name: str, value: str) -> None:
        """Check a value of a request.

        Raises
        ------
        InvalidRequest
            If the kernelspec does not allow it; the text says what it allows.
        """
        variable = PREFIX + name.upper()
        if name not in self.limits:
            allowed = ", ".join(PREFIX + other.upper() for other in self.limits) or "none"
            raise InvalidRequest(
                f"This kernelspec does not allow {_shown(variable)} in a request; it allows:"
                f" {allowed}"
            )
        resource = RESOURCES[name]
        if len(value) > _LONGEST or not resource.pattern.fullmatch(value):
            raise InvalidRequest(f"{variable} is {_shown(value)}; it should be {resource.form}")
        limit = self.limits[name]
        if isinstance(limit, tuple) and value not in limit:
            raise InvalidRequest(f"{variable} is {value}; allowed are {', '.join(limit)}")
        if isinstance(limit, str):
            assert resource.size is not None
            if resource.size(value) > resource.size(limit) or resource.size(value) <= 0:
                raise InvalidRequest(f"{variable} is {value}; at most {limit} is allowed")


def configured(name: str, value: Any) -> str:
    """Return the value of a resource in a kernelspec or in the settings, as text.

    Raises
    ------
    SetupError
        If it is not a value of that resource.
    """
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if len(text) > _LONGEST or not RESOURCES[name].pattern.fullmatch(text):
        raise SetupError(f"{name} is {_shown(str(value))}; it should be {RESOURCES[name].form}")
    return text


def requested_resources(env: Mapping[str, str], allowance: Allowance) -> dict[str, str]:
    """Return the resources that a request asks for in its environment.

    Raises
    ------
    InvalidRequest
        If the kernelspec does not allow one of them.
    """
    found = {}
    for variable, value in env.items():
        if variable.startswith(PREFIX):
            name = variable.removeprefix(PREFIX).lower()
            allowance.check(name, value)
            found[name] = value
    return found


def within_limits(resources: Mapping[str, str], env: Mapping[str, str]) -> dict[str, str]:
    """Apply the limits of one kernel, which a kbridge server puts into its environment.

    A job without `memory` gets KERNEL_MEMORY_LIMIT: Slurm's default may be a whole node. Slurm
    counts whole processors, so KERNEL_CPUS_LIMIT is rounded up.

    Raises
    ------
    InvalidRequest
        If the job asks for more.
    """
    found = dict(resources)
    try:
        if cpus := env.get("KERNEL_CPUS_LIMIT"):
            most = math.ceil(parse_cpus(cpus))
            if "cpus" in found and int(found["cpus"]) > most:
                raise InvalidRequest(f"cpus is {found['cpus']}; KERNEL_CPUS_LIMIT allows {most}")
        if memory := env.get("KERNEL_MEMORY_LIMIT"):
            mebibytes = max(int(parse_memory(memory) / 2**20), 1)
            if _mebibytes(found.setdefault("memory", f"{mebibytes}M")) > mebibytes:
                raise InvalidRequest(
                    f"memory is {found['memory']}; KERNEL_MEMORY_LIMIT allows {mebibytes}M"
                )
    except ValueError as error:
        raise InvalidRequest(f"KERNEL_CPUS_LIMIT or KERNEL_MEMORY_LIMIT: {error}") from None
    return found


def extra_options(options: Sequence[str]) -> Sequence[str]:
    """Return sbatch's options of a kernelspec, after a check.

    Raises
    ------
    SetupError
        If one is not an option, or one that this server needs itself.
    """
    for option in options:
        name = option.partition("=")[0] if option.startswith("--") else option[:2]
        if not name.startswith("-") or name in FORBIDDEN or name == "--":
            raise SetupError(f"sbatch_options: {_shown(option)} cannot be used")
    return options


def sbatch_options(resources: Mapping[str, str], *others: str) -> Sequence[str]:
    """Return the arguments of sbatch for checked resources."""
    return [*(f"{RESOURCES[name].option}={value}" for name, value in resources.items()), *others]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")
