"""`kbridge list` and `kbridge stop`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from jupyter_core.application import NoStart, base_aliases, base_flags
from jupyter_core.paths import jupyter_runtime_dir
from traitlets import Bool, Float

from kbridge._version import __version__
from kbridge.server.options import CheckedApp
from kbridge.server.runtime import running_servers

__all__ = ["ListApp", "StopApp"]

_POLL = 0.05
_ALIASES: dict[str, Any] = {"log-level": base_aliases["log-level"]}
_FLAGS: dict[str, Any] = {"debug": base_flags["debug"]}
_LIST_FLAGS: dict[str, Any] = {
    **_FLAGS,
    "json": ({"ListApp": {"json": True}}, "Print one JSON object a line."),
    "jsonlist": ({"ListApp": {"jsonlist": True}}, "Print one JSON list."),
}


class _Command(CheckedApp):
    version = __version__
    aliases = _ALIASES
    flags = _FLAGS

    def servers(self) -> list[dict[str, Any]]:
        """Return what the running servers tell."""
        return running_servers(Path(jupyter_runtime_dir()))


class ListApp(_Command):
    """Shows running servers."""

    name = "kbridge-list"
    description = "List the kbridge servers that run under this account."
    examples = "kbridge list\nkbridge list --json    # one JSON object a line"
    flags = _LIST_FLAGS

    json = Bool(False, help="Print one JSON object a line.").tag(config=True)
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

    timeout = Float(15.0, help="Seconds to wait for the server to be gone.").tag(config=True)

    def start(self) -> None:
        """Stop the server that the one argument names."""
        super().start()
        if len(self.extra_args) != 1:
            sys.exit("usage: kbridge stop PORT|SOCKET")
        wanted = self.extra_args[0]
        servers = self.servers()
        chosen = [s for s in servers if wanted in names_of(s)]
        if not chosen:
            running = ", ".join(str(s["sock"] or s["port"]) for s in servers) or "none"
            sys.exit(f"no kbridge server runs on {wanted}; running: {running}")
        for info in chosen:
            os.kill(int(info["pid"]), signal.SIGTERM)
        pids = {info["pid"] for info in chosen}
        end = time.monotonic() + self.timeout
        while pids & {info["pid"] for info in self.servers()}:
            if time.monotonic() > end:
                sys.exit(f"the server on {wanted} does not stop; its pid is {pids}")
            time.sleep(_POLL)
        kept = any(info.get("keeps_kernels") for info in chosen)
        say(f"stopped {wanted}{'; its kernels stay for the next start' * kept}")


def names_of(info: dict[str, Any]) -> set[str]:
    """Return what a server may be called by: its port, or its socket's path."""
    return {str(info["sock"])} if info["sock"] else {str(info["port"])}


def address(info: dict[str, Any]) -> str:
    """Return a server's URL, with its token."""
    return f"{info['url']}?token={info['token']}" if info.get("token") else str(info["url"])


def say(text: str) -> None:
    """Print to the terminal."""
    sys.stdout.write(text + "\n")


def run(app: type[_Command], argv: list[str]) -> None:
    """Run a command by itself, without loading the server."""
    instance = app.instance()
    try:
        instance.initialize(argv)
        instance.start()
    except NoStart:
        return
