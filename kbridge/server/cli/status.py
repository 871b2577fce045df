"""`kbridge status`: shows what running servers do."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from traitlets import Bool, Float

from kbridge.server.cli.commands import _Command, can_be_asked, names_of, say
from kbridge.server.cli.health import check
from kbridge.server.cli.server_client import request_status
from kbridge.server.runtime_file import Place

__all__ = ["StatusApp"]

_FLAGS: dict[str, Any] = {
    **_Command.flags,
    "json": ({"StatusApp": {"json": True}}, "Print one JSON object per line, without the token."),
}


class StatusApp(_Command):
    """Shows the state of running servers."""

    name = "kbridge-status"
    description = """Show the state of the kbridge servers of this account.

    Without an argument, of all of them; with a port or a socket's path, of that one: since when it
    runs, its kernels and websockets, and whether it can start kernels and write files. Exits with 1
    if a server does not answer, or none runs.
    """
    examples = "kbridge status\nkbridge status 8888 --json"
    flags = _FLAGS

    timeout = Float(4.0, help="Seconds that a server has for each answer.").tag(config=True)
    json = Bool(False, help="Print one JSON object per line, without the token.").tag(config=True)

    def start(self) -> None:
        """Show the state, and exit."""
        super().start()
        if len(self.extra_args) > 1:
            sys.exit("usage: kbridge status [PORT|SOCKET]")
        here = Place.here()
        servers = [s for s in self.servers() if can_be_asked(s, here)]
        if self.extra_args:
            servers = [s for s in servers if self.extra_args[0] in names_of(s)]
        if not servers:
            sys.exit(f"no kbridge server runs{''.join(f' on {a}' for a in self.extra_args)}")
        found = [state_of(info, self.timeout) for info in servers]
        for state in found:
            say(json.dumps(state) if self.json else describe(state))
        if any("error" in state for state in found):
            sys.exit(1)


def state_of(info: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Return the state of a server: its address and process, and its answers.

    Parameters
    ----------
    info : mapping
        Its runtime file.
    timeout : float
        Seconds for each answer.
    """
    state: dict[str, Any] = {name: info[name] for name in ("url", "pid", "version")}
    try:
        state |= request_status(info, timeout)
    except ConnectionError as error:
        return {**state, "error": str(error)}
    problem = check(info, timeout, ready=True)
    state["ready"] = not problem
    if problem:
        state["problem"] = problem.partition(": ")[2] or problem
    return state


def describe(state: Mapping[str, Any]) -> str:
    """Return the lines that show a state to a person."""
    head = f"{state['url']}  (pid {state['pid']}, kbridge {state['version']})"
    if "error" in state:
        return f"{head}\n    does not answer: {state['error']}"
    ready = "ready" if state["ready"] else f"not ready: {state['problem']}"
    return (
        f"{head}\n    {ready}\n"
        f"    kernels {state['kernels']}, websockets {state['connections']}\n"
        f"    started {state['started']}, last activity {state['last_activity']}"
    )
