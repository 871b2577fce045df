"""Kernels of other versions and other languages.

Each Python kernel has a separate virtual environment, created once in `.cache/kernels` (or in
KBRIDGE_KERNELS) and reused while its requirements are the same.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.client import SLEEP
from tests.support.environment import environment
from tests.support.require import lack

__all__ = ["KERNELS", "ForeignKernel"]

_CACHE = Path(os.environ.get("KBRIDGE_KERNELS") or Path(__file__).parents[2] / ".cache" / "kernels")


@dataclass(frozen=True)
class ForeignKernel:
    """How to install and start a kernel, and cells in its language.

    Attributes
    ----------
    argv : tuple of str
        As in kernel.json; `{python}` is the interpreter of its environment.
    requirements : tuple of str
        Packages to install into its environment; empty if it needs none.
    program, advice
        A program that must be installed instead, and how to install it.
    ask, say, fail, loop : str
        Cells: print what input() gives, print "hello", fail with "bad", print "looping" and then
        loop. Empty if the kernel cannot.
    interrupt_mode : str
        As in kernel.json.
    late_output : bool
        True if its output may come after the idle of the cell.
    """

    argv: tuple[str, ...]
    requirements: tuple[str, ...] = ()
    program: str = ""
    advice: str = ""
    ask: str = "print('got ' + input('?'))"
    say: str = "print('hello')"
    fail: str = "raise ValueError('bad')"
    loop: str = SLEEP.replace("asleep", "looping")
    interrupt_mode: str = "signal"
    late_output: bool = False

    def installed(self) -> list[str]:
        """Install the kernel and return its argv; skip or fail the test if that is impossible."""
        if self.program:
            where = shutil.which(self.program) or _node_module(self.program)
            if not where:
                lack(f"{self.program} is missing: {self.advice}")
            if self.program == "R" and not _succeeds([where, "--slave", "-e", "library(IRkernel)"]):
                lack(f"IRkernel is missing: {self.advice}")
            return [arg.format(program=where, **_KEEP) for arg in self.argv]
        python = str(environment(_CACHE, self.requirements))
        return [arg.format(python=python, **_KEEP) for arg in self.argv]


_KEEP = {"connection_file": "{connection_file}"}
_IPYKERNEL = ("{python}", "-m", "ipykernel_launcher", "-f", "{connection_file}")

KERNELS = {
    "ipykernel-5.5": ForeignKernel(
        _IPYKERNEL,
        ("ipykernel==5.5.6", "jupyter_client<8", "tornado<6.2", "ipython<8", "pyzmq<25"),
    ),
    "ipykernel-6.9": ForeignKernel(
        _IPYKERNEL, ("ipykernel==6.9.2", "jupyter_client<8", "ipython<9", "setuptools<81")
    ),
    "ipykernel-6.29": ForeignKernel(_IPYKERNEL, ("ipykernel==6.29.5", "ipython<9")),
    "bash": ForeignKernel(
        ("{python}", "-m", "bash_kernel", "-f", "{connection_file}"),
        ("bash_kernel==0.10.0", "ipykernel==6.29.5", "ipython<9"),
        ask="",
        say="echo hello",
        fail="no_such_command_bad",
        loop="echo looping; sleep 600",
    ),
    "xeus-python": ForeignKernel(
        ("{python}", "-m", "xpython_launcher", "-f", "{connection_file}"),
        ("xeus-python==0.19.0",),
        loop="",  # an interrupt ends the process of this kernel
    ),
    "ir": ForeignKernel(
        ("{program}", "--slave", "-e", "IRkernel::main()", "--args", "{connection_file}"),
        program="R",
        advice="install Debian's r-cran-irkernel",
        ask="cat('got', readline('?'))",
        say="cat('hello\\n')",
        fail="stop('bad')",
        loop="cat('looping\\n'); flush(stdout()); repeat Sys.sleep(0.01)",
    ),
    "deno": ForeignKernel(
        ("{program}", "jupyter", "--kernel", "--conn", "{connection_file}"),
        program="deno",
        advice="npm install --global deno",
        ask="console.log('got ' + prompt('?'))",
        say="console.log('hello')",
        fail="throw new Error('bad')",
        loop="",
        interrupt_mode="message",
        late_output=True,
    ),
}


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def _node_module(program: str) -> str:
    """Find a program that npm has installed globally, if it is not in the PATH."""
    npm = shutil.which("npm")
    if npm is None:
        return ""
    prefix = subprocess.run([npm, "prefix", "--global"], capture_output=True, text=True, timeout=60)
    return shutil.which(program, path=str(Path(prefix.stdout.strip()) / "bin")) or ""
