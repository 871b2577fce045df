"""Lines from stdin for code that calls `input()`, without blocking the event loop."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

if sys.platform != "win32":
    import termios

__all__ = ["LineInput"]


class LineInput:
    """Reads lines from a file descriptor.

    Parameters
    ----------
    prompt : callable
        Shows the prompt.
    fd : int
        A terminal, a pipe or a file.
    """

    def __init__(self, prompt: Callable[[str], None], fd: int = 0) -> None:
        self._prompt = prompt
        self._fd = fd
        self._rest = b""
        self._lock = asyncio.Lock()

    async def ask(self, prompt: str, password: bool) -> str:
        """Return the next line, without its end.

        Raises
        ------
        EOFError
            If there are no more lines.
        """
        async with self._lock:
            self._prompt(prompt)
            if not password or not os.isatty(self._fd):
                return await self._line()
            before = termios.tcgetattr(self._fd)
            silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
            termios.tcsetattr(self._fd, termios.TCSADRAIN, silent)
            try:
                return await self._line()
            finally:
                termios.tcsetattr(self._fd, termios.TCSADRAIN, before)
                self._prompt("\n")

    async def _line(self) -> str:
        while b"\n" not in self._rest:
            data = await self._read()
            if not data:
                if not self._rest:
                    raise EOFError("stdin has no more lines")
                data = b"\n"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode(errors="replace")

    async def _read(self) -> bytes:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        try:
            loop.add_reader(self._fd, ready.set)
        except OSError:  # a file, which is always ready
            return os.read(self._fd, 1 << 16)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._fd)
        return os.read(self._fd, 1 << 16)
