"""Standard streams, and questions to the terminal that the server was started on."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

__all__ = ["Question", "can_ask", "open_streams", "say"]

_PATIENCE = 5.0  # seconds, as in Jupyter Server
_NAMES = ("stdin", "stdout", "stderr")


def open_streams() -> None:
    """Open the null device for each of stdin, stdout and stderr that is closed.

    Otherwise the next socket or file would get that number: printed text would go to a client, and
    kernels would inherit it. Call this before anything else is opened.
    """
    for number, name in enumerate(_NAMES):
        try:
            os.fstat(number)
        except OSError:
            # The system returns the lowest free number, and the lower ones are open by now.
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
            setattr(sys, f"__{name}__", getattr(sys, name))


def say(text: str) -> None:
    """Print to stdout; after an error (a closed pipe, a full disk) write to the null device."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def can_ask() -> bool:
    """Return True if a person at a terminal can read a question and answer it."""
    try:
        # The system would stop a background process that reads from the terminal.
        return os.isatty(0) and os.isatty(1) and os.tcgetpgrp(0) == os.getpgrp()
    except (OSError, AttributeError):  # Windows does not have process groups of terminals
        return False


class Question:
    """A yes-or-no question on the terminal.

    Parameters
    ----------
    text : str
        The question.
    on_yes, on_no : callable
        One of them is called, once. No answer within five seconds counts as no.
    """

    def __init__(
        self, text: str, on_yes: Callable[[], object], on_no: Callable[[], object]
    ) -> None:
        self._on_yes = on_yes
        self._on_no = on_no
        self._loop = asyncio.get_running_loop()
        # uvloop makes the terminal non-blocking, which the shell and other programs share.
        self._blocking = os.get_blocking(0)
        self._loop.add_reader(0, self._on_line)
        self._timer = self._loop.call_later(_PATIENCE, self._on_silence)
        say(text)

    def cancel(self) -> None:
        """Withdraw the question; a second call has no effect."""
        self._timer.cancel()
        self._loop.remove_reader(0)
        os.set_blocking(0, self._blocking)

    def _on_line(self) -> None:
        try:
            line = os.read(0, 1024)
        except OSError:
            line = b""
        self.cancel()
        (self._on_yes if line.strip().lower() in (b"y", b"yes") else self._on_no)()

    def _on_silence(self) -> None:
        self.cancel()
        say("no answer\n")
        self._on_no()
