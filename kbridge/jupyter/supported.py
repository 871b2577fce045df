"""The versions of Jupyter Server that the extension supports.

Installing kbridge enables the extension, also if an older Jupyter Server is installed
(`pip install .` without the extra does not update it). The extension must then do nothing,
and say so in the log.
"""

from __future__ import annotations

from typing import Any, Final

import jupyter_server

__all__ = ["MINIMUM", "load_nothing", "reason_against"]

MINIMUM: Final = (2, 14)
"""The oldest supported version, the same as in the extra `jupyter` of pyproject.toml."""


def reason_against(version: str = jupyter_server.__version__) -> str:
    """Return why the extension cannot work in this Jupyter Server; empty if it can."""
    try:
        major, minor = (int(number) for number in version.split(".")[:2])
    except ValueError:
        return ""  # a version of another form; assume that it is new
    if (major, minor) >= MINIMUM:
        return ""
    needed = ".".join(map(str, MINIMUM))
    return (
        f"off: it needs Jupyter Server {needed} or newer, and this is {version}"
        " (pip install '.[jupyter]' in a clone of kbridge updates it)"
    )


def load_nothing(serverapp: Any) -> None:
    """Log why the extension cannot work, and change nothing."""
    serverapp.log.warning("kbridge | %s", reason_against())
