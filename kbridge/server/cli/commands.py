"""`kbridge list` and `kbridge stop`."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from jupyter_core.application import NoStart, base_aliases, base_flags
from jupyter_core.paths import jupyter_runtime_dir
from traitlets import Bool, Float

from kbridge._version import __version__
from kbridge.kernels.lifecycle.processes import ProcessState, signal_process, state_of
from kbridge.server.cli.options import CheckedApp
from kbridge.server.cli.server_client import request_shutdown
from kbridge.server.runtime_file import Place, running_servers

__all__ = ["ListApp", "StopApp"]

_POLL = 0.05
_ALIASES: dict[str, Any] = {"log-level": base_aliases["log-level"]}
_FLAGS: dict[str, Any] = {"debug": base_flags["debug"]}
_LIST_FLAGS: dict[str, Any] = {
    **_FLAGS,
    "json": ({"ListApp": {"json": True}}, "Print one JSON object per line."),
    "jsonlist": ({"ListApp": {"jsonlist": True}}, "Print one JSON list."),
}


class _Command(CheckedApp):
    version = __version__
    aliases = _ALIASES
    flags = _FLAGS

    def servers(self) -> list[dict[str, Any]]:
        """Return the runtime files of the running servers."""
        return running_servers(Path(jupyter_runtime_dir()))

    def choose(self, usage: str, here: Place) -> tuple[str, list[dict[str, Any]]]:
        """Return the argument, and the runtime files of the servers that it names; or exit."""
        if len(self.extra_args) != 1:
            sys.exit(f"usage: {usage} PORT|SOCKET")
        wanted = self.extra_args[0]
        servers = self.servers()
        chosen = [s for s in servers if wanted in names_of(s)]
        if not chosen:
            running = ", ".join(str(s["sock"] or s["port"]) for s in servers) or "none"
            sys.exit(f"no kbridge server runs on {wanted}; running: {running}")
        # A server in another container may have the same port: prefer the one here.
        return wanted, [s for s in chosen if is_near(s, here)] or chosen


class ListApp(_Command):
    """Shows running servers."""

    name = "kbridge-list"
    description = "List the kbridge servers that run under this account."
    examples = "kbridge list\nkbridge list --json    # one JSON object per line"
    flags = _LIST_FLAGS

    json = Bool(False, help="Print one JSON object per line.").tag(config=True)
    jsonlist = Bool(False, help="Print one JSON list.").tag(config=True)

    def start(self) -> None:
        """Print the list."""
        super().start()
        found = self.servers()
        if self.jsonlist:
            say(json.dumps(found, indent=2))
        elif self.json:
            for info in found:
                say(json.dumps(info))
        else:
            say("Currently running servers:")
            for info in found:
                say(f"{address(info)} :: pid {info['pid']}, kbridge {info['version']}")


class StopApp(_Command):
    """Stops running servers."""

    name = "kbridge-stop"
    description = """Stop the kbridge server on a port or a unix socket, and its kernels.

    A server with shutdown_kernels_on_exit=False leaves its kernels to the next one.
    """
    examples = "kbridge stop 8888\nkbridge stop /run/user/1000/kbridge.sock"

    timeout = Float(15.0, help="Seconds to wait for the server to stop.").tag(config=True)

    def start(self) -> None:
        """Stop the server that the argument names."""
        super().start()
        here = Place.here()
        wanted, chosen = self.choose("kbridge stop", here)
        for info in chosen:
            if problem := end_server(info, here):
                sys.exit(f"cannot stop the server on {wanted}: {problem}")
        ids = {identity(info) for info in chosen}
        end = time.monotonic() + self.timeout
        while ids & {identity(info) for info in self.servers()}:
            if time.monotonic() > end:
                pids = ", ".join(str(info["pid"]) for info in chosen)
                sys.exit(f"the server on {wanted} does not stop; its pid is {pids}")
            time.sleep(_POLL)
        kept = any(info.get("keeps_kernels") for info in chosen)
        say(f"stopped {wanted}{'; its kernels stay for the next start' * kept}")


def is_near(info: dict[str, Any], here: Place) -> bool:
    """Return True if a server's process can be signalled, or its address reached, from here."""
    there = Place.of(info) or here
    return there.shares_processes(here) or can_be_asked(info, here)


def can_be_asked(info: dict[str, Any], here: Place) -> bool:
    """Return True if a server's address can be reached from here."""
    there = Place.of(info) or here
    return bool(info["sock"]) or there.shares_network(here)


def end_server(info: dict[str, Any], here: Place) -> str:
    """Stop a server: over HTTP, or with a signal if it does not answer.

    Returns
    -------
    str
        An error message; empty on success.
    """
    there = Place.of(info)
    problem = "it is in another network namespace"
    if there is not None and can_be_asked(info, here):
        problem = request_shutdown(info)
        if not problem:
            return ""
    if there is None:
        return f"its version of kbridge is too old to tell where process {info['pid']} runs"
    pid, born = int(info["pid"]), str(info["born"])
    state = state_of(pid, born)
    if state is ProcessState.HIDDEN:
        return (
            f"it runs as process {pid} of {there.host}, which cannot be seen from here (another"
            f" machine or container?), nor asked ({problem}). Run `kbridge stop` there."
        )
    try:
        if state is ProcessState.RUNNING:
            signal_process(pid, born, signal.SIGTERM)
    except ProcessLookupError:
        return ""  # it has ended in the meantime
    except OSError as error:
        return f"{error.strerror} (and over HTTP: {problem})"
    return ""


def identity(info: dict[str, Any]) -> tuple[object, ...]:
    """Return a key that identifies one server process."""
    return (info["pid"], info.get("born"), Place.of(info))


def names_of(info: dict[str, Any]) -> set[str]:
    """Return the names of a server on the command line: its port, or its socket's path."""
    return {str(info["sock"])} if info["sock"] else {str(info["port"])}


def address(info: dict[str, Any]) -> str:
    """Return a server's URL, with its token."""
    return f"{info['url']}?token={info['token']}" if info.get("token") else str(info["url"])


def say(text: str) -> None:
    """Print to the terminal."""
    sys.stdout.write(text + "\n")


def run(app: type[_Command], argv: list[str]) -> None:
    """Run a command without loading the server."""
    instance = app.instance()
    try:
        instance.initialize(argv)
        instance.start()
    except NoStart:
        return
