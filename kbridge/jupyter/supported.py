"""Which versions of Jupyter Server the extension works in.

Installing kbridge turns the extension on, also beside a Jupyter Server that pip was not asked to
look at (`pip install kbridge` without the extra). It must then do nothing, and say so.
"""

from __future__ import annotations

from typing import Any, Final

import jupyter_server

__all__ = ["MINIMUM", "load_nothing", "reason_against"]

MINIMUM: Final = (2, 14)
"""The oldest version: as in pyproject.toml's extra `jupyter`."""


def reason_against(version: str = jupyter_server.__version__) -> str:
    """Return why the extension cannot work in this Jupyter Server; empty if it can."""
    try:
        major, minor = (int(number) for number in version.split(".")[:2])
    except ValueError:
        return ""  # a version of another form is not an old one
    if (major, minor) >= MINIMUM:
        return ""
    needed = ".".join(map(str, MINIMUM))
    return (
        f"off: it needs Jupyter Server {needed} or newer, and this is {version}"
        " (pip install 'kbridge[jupyter]' updates it)"
    )


def load_nothing(serverapp: Any) -> None:
    """Load the extension where it cannot work: say why, and change nothing."""
    serverapp.log.warning("kbridge | %s", reason_against())
