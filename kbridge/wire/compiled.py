"""The module of kbridge-speedups, if it is installed and fits.

`kbridge.wire.speedups` has the functions that use it. `KBRIDGE_PURE=1` in the environment turns it
off.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any, Final

__all__ = ["load", "module", "used"]

_API: Final = 3  # of the versions of kbridge-speedups that fit


def load(*, pure: bool) -> tuple[Any, str]:
    """Return the module or None, and a text for the log that says which and why.

    Parameters
    ----------
    pure : bool
        True for None in any case.
    """
    if pure:
        return None, "in Python (as KBRIDGE_PURE says)"
    try:
        found = import_module("kbridge_speedups")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "kbridge_speedups":
            return None, "in Python (kbridge-speedups is not installed)"
        return None, f"in Python: kbridge_speedups cannot be imported: {error}"
    if found.API != _API:
        return None, f"in Python (kbridge_speedups has API {found.API}, not {_API})"
    return found, "compiled"


module, used = load(pure=os.environ.get("KBRIDGE_PURE", "") not in {"", "0"})
