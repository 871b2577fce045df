"""Keep the machine busy, as other programs on a server do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# It ends with its parent, also if that is killed.
_BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(10_000))"


@contextmanager
def busy_cores(count: int = os.cpu_count() or 1) -> Iterator[None]:
    """Run one busy process of normal priority per core for a `with` block."""
    processes = [subprocess.Popen([sys.executable, "-S", "-c", _BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
