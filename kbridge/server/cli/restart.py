"""`kbridge restart`: starts the installed version in the process of a running server."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from traitlets import Bool, Float

from kbridge.errors import Conflict
from kbridge.kernels.lifecycle.processes import ProcessState, signal_process, state_of
from kbridge.server.cli.commands import _FLAGS, _Command, can_be_asked, names_of, say
from kbridge.server.cli.health import check
from kbridge.server.cli.server_client import request_restart
from kbridge.server.runtime_file import Place

__all__ = ["RestartApp"]

_POLL = 0.05
_ANSWER = 4.0
_RESTART_FLAGS: dict[str, Any] = {
    **_FLAGS,
    "force": ({"RestartApp": {"force": True}}, "Restart although something is lost."),
}


class RestartApp(_Command):
    """Restarts a running server."""

    name = "kbridge-restart"
    description = """Restart the kbridge server on a port or a unix socket; its kernels stay.

    The server starts the installed version in its process, with the same command line. On Linux, no
    output, reply or input request of a kernel is lost. If something would be lost, the server says
    so and goes on, unless --force is given.
    """
    examples = "kbridge restart 8888    # after an upgrade"
    flags = _RESTART_FLAGS

    force = Bool(False, help="Restart although something is lost.").tag(config=True)
    timeout = Float(60.0, help="Seconds to wait for the server.").tag(config=True)

    def start(self) -> None:
        """Restart the server that the argument names."""
        super().start()
        here = Place.here()
        wanted, chosen = self.choose("kbridge restart", here)
        [info] = chosen if len(chosen) == 1 else [None]
        if info is None:
            sys.exit(f"several servers run on {wanted}")
        self._request(wanted, info, here)
        found = _wait(lambda: self._successor(wanted, info), self.timeout)
        if found is None:
            sys.exit(self._failure(wanted, info))
        say(f"restarted {wanted}: kbridge {info['version']} -> {found['version']}")

    def _request(self, wanted: str, info: dict[str, Any], here: Place) -> None:
        """Ask the server over HTTP, or with a signal if it cannot be asked."""
        if "run" not in info:
            sys.exit(f"kbridge {info['version']}, which runs on {wanted}, has no restart: stop it")
        problem = "it is in another network namespace"
        if can_be_asked(info, here):
            try:
                request_restart(info, force=self.force, timeout=self.timeout)
            except Conflict as refused:
                sys.exit(f"not restarted: {refused.reason}")
            except ConnectionError as error:
                problem = str(error)
            else:
                return
        pid, born = int(info["pid"]), str(info["born"])
        if self.force or state_of(pid, born) is not ProcessState.RUNNING:
            sys.exit(f"the server on {wanted} cannot be asked to restart: {problem}")
        try:
            signal_process(pid, born, signal.SIGUSR2)
        except (OSError, AttributeError) as error:  # Windows has no such signal
            sys.exit(f"the server on {wanted} cannot be asked to restart: {problem}; {error}")

    def _successor(self, wanted: str, before: dict[str, Any]) -> dict[str, Any] | None:
        """Return the runtime file of the next server, once it answers."""
        for info in self.servers():
            next_one = wanted in names_of(info) and info.get("run") != before["run"]
            if next_one and not check(info, _ANSWER):
                return info
        return None

    def _failure(self, wanted: str, before: dict[str, Any]) -> str:
        """Return an error message for a server that has not come back."""
        if any(info.get("run") == before["run"] for info in self.servers()):
            return f"the server on {wanted} still runs; its log says why"
        return (
            f"no server answers on {wanted} after {self.timeout:g} s; its log says why. Kernels"
            " keep running, and so do their connections: start kbridge again on the same address"
        )


def _wait(find: Callable[[], dict[str, Any] | None], timeout: float) -> dict[str, Any] | None:
    """Call a function until it returns something; return None after `timeout` seconds."""
    end = time.monotonic() + timeout
    while (found := find()) is None and time.monotonic() < end:
        time.sleep(_POLL)
    return found
