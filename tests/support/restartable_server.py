"""A server that is killed and started again in the same place, and the kernels that outlive it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.server import _COMMAND, Server, free_port
from tests.support.waiting import TIMEOUT, eventually

__all__ = ["RestartableServer"]


class RestartableServer(Server):
    """Like `Server`, but with one port and one log for all its lives."""

    def __init__(self, home: Path, *args: str, env: Mapping[str, str] | None = None) -> None:
        super().__init__(home, *args, env=env, command=_COMMAND)
        self.port = free_port()

    def start(self, *args: str) -> RestartableServer:
        """Start it, for the first time or again; `args` are for this life only."""
        self.launch(*args)
        port = self.port
        try:
            assert eventually(self._listening, "it listens") == port
        except AssertionError as late:
            self.kill()
            raise AssertionError(f"{late}\n{self.tail()}") from None
        return self

    def launch(self, *args: str) -> subprocess.Popen[bytes]:
        """Start it, and do not wait for it."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, f"--port={self.port}", "--port-retries=0", *self._args, *args],
                cwd=self.home,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self._process

    def crash(self) -> None:
        """End it as the system does that is out of memory."""
        self.process.kill()
        assert self.process.wait(TIMEOUT) == -signal.SIGKILL

    def install(self, name: str, code: str | Path) -> None:
        """Install a kernelspec whose kernel is a Python program: a path, or what is in it."""
        there = self.home / "data" / "kernels" / name / "kernel.json"
        there.parent.mkdir(parents=True)
        program = [str(code)] if isinstance(code, Path) else ["-c", code]
        argv = [sys.executable, *program, "{connection_file}"]
        spec = {"argv": argv, "display_name": name, "language": "python"}
        there.write_text(json.dumps(spec))

    def said(self, words: str) -> int:
        """How often something stands in the log of all its lives."""
        return self.log.read_text(errors="replace").count(words)

    def kernels(self) -> dict[str, int]:
        """Pids of the kernels that run, by id, whoever has started them."""
        return {
            Path(path).stem.removeprefix("kernel-"): process.pid for process, path in self.started()
        }
