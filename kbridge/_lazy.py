"""Public names of a package, imported when they are first used.

Modules of kbridge import each other by their full names, so that a start loads only what it needs.
A package's `__init__` lists its public names, and `exports` imports each of them on demand.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["exports"]


def exports(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a `__getattr__` and a `__dir__` for a package (PEP 562).

    Parameters
    ----------
    package : str
        The package's `__name__`.
    homes : mapping
        For each public name, the module that defines it; for a public module, that module itself.

    Returns
    -------
    tuple of callables
        `__getattr__`, which imports a public name, and `__dir__`, which lists the public names and
        what the package has loaded so far.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807  # what PEP 562 calls it
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        module = import_module(home)
        value = module if home == f"{package}.{name}" else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:  # noqa: N807
        return sorted({*vars(sys.modules[package]), *homes})

    return __getattr__, __dir__
