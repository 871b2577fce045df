"""Public names of a package, imported when they are first used.

The parts of kbridge import each other by the full names of their modules, and a start loads only
what it needs. So a package's `__init__` names what it offers, and `exports` looks it up on demand.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["exports"]


def exports(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module-level `__getattr__` (PEP 562).

    Parameters
    ----------
    package : str
        The package's `__name__`.
    homes : mapping
        For each public name, the module that defines it.
    """

    def lookup(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return lookup
