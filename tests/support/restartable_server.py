"""A server that is killed and started again on the same address, and its surviving kernels."""

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
    """Like `Server`, but with the same port and log for all starts."""

    def __init__(
        self,
        home: Path,
        *args: str,
        env: Mapping[str, str] | None = None,
        command: list[str] | None = None,
    ) -> None:
        super().__init__(home, *args, env=env, command=command or _COMMAND)
        self.port = free_port()

    def start(self, *args: str) -> RestartableServer:
        """Start the server, for the first time or again; `args` are for this start only."""
        self.launch(*args)
        port = self.port
        try:
            assert eventually(self._listening, "it listens") == port
        except AssertionError as late:
            self.kill()
            raise AssertionError(f"{late}\n{self.tail()}") from None
        return self

    def launch(self, *args: str) -> subprocess.Popen[bytes]:
        """Start the server without waiting for it."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(*self.command, f"--port={self.port}", "--port-retries=0"),
                    *self._options(*args),
                ],
                cwd=self.home,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self._process

    def crash(self) -> None:
        """Kill the server, as the system does when memory runs out."""
        self.process.kill()
        assert self.process.wait(TIMEOUT) == -signal.SIGKILL

    def install(self, name: str, code: str | Path) -> None:
        """Install a kernelspec for a Python program, given as a path or as source code."""
        there = self.home / "data" / "kernels" / name / "kernel.json"
        there.parent.mkdir(parents=True)
        program = [str(code)] if isinstance(code, Path) else ["-c", code]
        argv = [sys.executable, *program, "{connection_file}"]
        spec = {"argv": argv, "display_name": name, "language": "python"}
        there.write_text(json.dumps(spec))

    def said(self, words: str) -> int:
        """Return how often a text occurs in the log of all starts."""
        return self.log.read_text(errors="replace").count(words)

    def kernels(self) -> dict[str, int]:
        """Return the pids of the running kernels of all starts, by kernel id."""
        return {
            Path(path).stem.removeprefix("kernel-"): process.pid for process, path in self.started()
        }
