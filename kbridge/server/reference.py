"""The page of all settings, made from the settings: `python -m kbridge.server.reference`.

A test holds docs/settings.md to what this prints, so no setting goes undocumented.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from traitlets import TraitType
from traitlets.config import Configurable

from kbridge.server import kg
from kbridge.server.app import KbridgeApp

__all__ = ["settings_page"]

_INTRODUCTION = """\
# Settings

Made from the code by `python -m kbridge.server.reference > docs/settings.md`.

A setting is given, the strongest first,

1. on the command line: `kbridge --port 9999`, or in full `kbridge --KbridgeApp.port=9999`;
2. in a config file, `kbridge_config.py` or `.json` in a directory that `jupyter --paths` lists:
   `c.KbridgeApp.port = 9999` (`kbridge --generate-config` writes one that explains them all);
3. by an environment variable of the kernel gateway, where the last column names one.

Variables that begin with `KG_` and are not named here are warned about once, at the start.
"""
_ABOUT = {
    "KbridgeApp": "The server: where it listens, and who may come in.",
    "BridgeKernelManager": "The kernels: which, how many, where, and for how long.",
    "ZMQChannelsWebsocketConnection": "Each websocket, and what a kernel's output may cost.",
}
# What every Jupyter program has, and what nobody sets.
_FOREIGN = ("traitlets.", "jupyter_core.")


def settings_page() -> str:
    """Return the page, in Markdown."""
    parts = [_INTRODUCTION]
    for cls in (KbridgeApp, *KbridgeApp.classes):
        rows = "\n".join(_row(cls, name, trait) for name, trait in _settings(cls))
        about = _ABOUT.get(cls.__name__, "")
        parts.append(
            f"## {cls.__name__}\n\n{about}\n\n"
            f"| setting | default | meaning | also |\n| --- | --- | --- | --- |\n{rows}\n"
        )
    return "\n".join(parts)


def _settings(cls: type[Configurable]) -> list[tuple[str, TraitType[Any, Any]]]:
    """Return the traits of a class that kbridge or jupyter_client define for it."""
    traits = cls.class_traits(config=True)
    return sorted(
        (name, trait)
        for name, trait in traits.items()
        if not str(getattr(trait.this_class, "__module__", "")).startswith(_FOREIGN)
    )


def _row(cls: type[Configurable], name: str, trait: TraitType[Any, Any]) -> str:
    setting = f"{cls.__name__}.{name}"
    also = [f"`--{alias}`" for alias, target in KbridgeApp.aliases.items() if target == setting]
    also += [f"`{v.name}`" for v in kg.VARIABLES if v.setting == setting]
    return f"| `{name}` | {_default(cls, name, trait)} | {_meaning(trait)} | {', '.join(also)} |"


def _default(cls: type[Configurable], name: str, trait: TraitType[Any, Any]) -> str:
    """Return a default that does not depend on where the page was made."""
    computed = any(
        getattr(vars(base).get(method), "trait_name", name) == name
        for base in cls.__mro__
        for method in (f"_{name}_default", f"_default_{name}")
        if method in vars(base)
    )
    return "computed" if computed else f"`{_cell(trait.default_value_repr())}`"


def _meaning(trait: TraitType[Any, Any]) -> str:
    """Return the help on one line, without the variables, which have a column of their own."""
    return _cell(re.sub(r"\s+", " ", re.sub(r"\s*\(KG_\w+\)", "", trait.help)).strip())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(settings_page())
