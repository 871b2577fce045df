"""Gates: places in the code of a kernel where it waits until the test lets it go on."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support.waiting import TIMEOUT, eventually

__all__ = ["Gates"]

_CODE = """\
import pathlib, time

def gate(name, directory=pathlib.Path({directory!r})):
    (directory / f"{{name}}.reached").touch()
    while not (directory / name).exists():
        time.sleep(0.01)
"""


class Gates:
    """Gates as files in an empty directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.code = _CODE.format(directory=str(directory))
        """Defines `gate(name)` in a kernel; it returns when the gate is open."""

    def open(self, *names: str) -> None:
        for name in names:
            (self._directory / name).touch()

    async def reached(self, name: str, timeout: float = TIMEOUT) -> None:
        """Wait until a kernel has reached the gate."""
        file = self._directory / f"{name}.reached"
        await asyncio.to_thread(
            eventually, file.exists, f"a kernel is at the gate {name!r}", timeout
        )
