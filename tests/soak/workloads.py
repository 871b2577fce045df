"""The cells of cooperative clients: they print numbered lines in several ways."""

from __future__ import annotations

import json
import random

__all__ = ["code_for"]


# A PUB drops messages beyond 1,000 that its I/O thread has not sent yet. On a loaded machine, the
# thread may not run for a second, and the lines would be lost in the kernel. `set_hwm` applies to
# present connections only.
_KEEP = (
    "io = get_ipython().kernel.iopub_socket.io_thread; io.schedule(lambda: io.socket.set_hwm(0))\n"
)


def code_for(spec: str, dice: random.Random, lines: int, size: int) -> str:
    """Return code that prints `lines` lines of `size` bytes."""
    return _flood(dice, lines, size) if spec == "stub" else _print(dice, lines, size)


def _flood(dice: random.Random, lines: int, size: int) -> str:
    batch = min(lines, dice.choice((1, 10, 100, 1000)))
    pace = dice.choice((0.0, 0.2, 0.6)) * batch / lines
    return json.dumps({"flood": lines, "size": size, "batch": batch, "interval": pace})


def _print(dice: random.Random, lines: int, size: int) -> str:
    ask = "input('go on? ')\n" if dice.random() < 0.2 else ""
    rest = dice.choice(("", "; flush()", "; i % 100 or sleep(0.05)"))
    return (
        f"{_KEEP}from sys import stdout; from time import sleep; flush = stdout.flush\n"
        f"{ask}"
        f"for i in range({lines}): stdout.write(f'#{{i:08d}} {'x' * (size - 11)}\\n'){rest}"
    )
