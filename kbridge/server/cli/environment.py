"""Reads kbridge's own environment variables: `KBRIDGE_PORT` for the setting `port`.

They have precedence over the variables of the kernel gateway, and config files over them.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from traitlets import Dict, List, TraitError, TraitType
from traitlets.config import Configurable

__all__ = ["PREFIX", "read", "variables"]

PREFIX: Final = "KBRIDGE_"

# Settings of every Jupyter program, such as `config_file`, are read too early for variables.
_FOREIGN: Final = ("traitlets.", "jupyter_core.")
_ALSO: Final = frozenset({"log_level"})
# `KBRIDGE_TOKEN` and `KBRIDGE_URL` are for clients, which may use another server.
_NOT_FOR_SERVERS: Final = frozenset({"token"})
# Variables that other parts of the program read, and those of tests and of Kubernetes.
_OTHERS: Final = frozenset({"KBRIDGE_PURE", "KBRIDGE_SOCKETS", "KBRIDGE_TOKEN", "KBRIDGE_URL"})
_OTHER_PREFIXES: Final = ("KBRIDGE_TEST_", "KBRIDGE_SERVICE_", "KBRIDGE_PORT_")

_Trait = TraitType[Any, Any]


def variables(
    classes: Iterable[type[Configurable]],
) -> dict[str, tuple[type[Configurable], _Trait]]:
    """Return the class and the trait of each variable; the first class with a name has it."""
    found: dict[str, tuple[type[Configurable], _Trait]] = {}
    for cls in classes:
        for name, trait in cls.class_traits(config=True).items():
            owner = trait.this_class
            foreign = owner is not None and owner.__module__.startswith(_FOREIGN)
            if (not foreign or name in _ALSO) and name not in _NOT_FOR_SERVERS:
                found.setdefault(PREFIX + name.upper(), (cls, trait))
    return found


def read(
    environ: Mapping[str, str], classes: Iterable[type[Configurable]]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Read the variables.

    Parameters
    ----------
    environ : mapping
        The environment.
    classes : iterable of type
        The classes with settings, the most important one first.

    Returns
    -------
    config : dict
        Settings by class and trait, for `traitlets.config.Config`.
    misspelled : dict
        Unknown variables, with the variable that each probably stands for.

    Raises
    ------
    traitlets.TraitError
        If a value is not valid. The message names the variable, but not the value.
    """
    known = variables(classes)
    config: dict[str, dict[str, Any]] = {}
    misspelled: dict[str, str] = {}
    for name, value in environ.items():
        if not name.startswith(PREFIX):
            continue
        if name in known:
            if not _is_of_kubernetes(name, value):
                cls, trait = known[name]
                config.setdefault(cls.__name__, {})[str(trait.name)] = _parse(name, value, trait)
        elif name not in _OTHERS and not name.startswith(_OTHER_PREFIXES):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            if near:
                misspelled[name] = near[0]
    return config, misspelled


def _is_of_kubernetes(name: str, value: str) -> bool:
    """Return True for the address that Kubernetes sets if a service is named `kbridge`."""
    return name == "KBRIDGE_PORT" and value.startswith(("tcp://", "udp://"))


def _parse(name: str, value: str, trait: _Trait) -> Any:
    """Return the value of a variable.

    Lists and tables have commas between their items, or are
    written as in Python.
    """
    try:
        if isinstance(trait, List | Dict):
            if value.startswith(("[", "{")):
                return ast.literal_eval(value)
            items = value.split(",") if value else []
            return trait.from_string_list([item.strip() for item in items])
        return trait.from_string(value)
    except (ValueError, TypeError, TraitError, SyntaxError):
        raise TraitError(f"{name} has a value that its setting does not accept") from None
