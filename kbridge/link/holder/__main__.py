"""Starts the holder: `python -I -S .../kbridge/link/holder/__main__.py ARGUMENTS`.

The packages of kbridge are entered without their `__init__`, which would import 2 MB more.
"""

from __future__ import annotations

import os
import sys

_PACKAGES = ("kbridge.link.holder", "kbridge.link", "kbridge")


def _start() -> None:
    folder = os.path.dirname(os.path.abspath(__file__))
    for name in _PACKAGES:
        package = sys.modules[name] = type(sys)(name)
        package.__path__ = [folder]
        folder = os.path.dirname(folder)
    from kbridge.link.holder.process import main

    main(*sys.argv[1:])


if __name__ == "__main__":
    _start()
