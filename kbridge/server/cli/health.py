"""`kbridge health`: checks whether running servers answer.

The runtime file says where a server listens, with its base URL, TLS and port, so that the health
check of a container does not need any options.
"""

from __future__ import annotations

import http.client
import json
import ssl
import sys
from collections.abc import Mapping
from typing import Any, Final

from traitlets import Bool, Float

from kbridge.server.cli.commands import _Command, can_be_asked, names_of, say
from kbridge.server.cli.server_client import open_connection
from kbridge.server.runtime_file import Place

__all__ = ["HealthApp", "check"]

_LONGEST: Final = 64 << 10  # bytes of an answer
_FLAGS: dict[str, Any] = {
    **_Command.flags,
    "ready": (
        {"HealthApp": {"ready": True}},
        "Also check that kernels can be started, and files written.",
    ),
}


class HealthApp(_Command):
    """Checks running servers."""

    name = "kbridge-health"
    description = """Check that the kbridge servers of this account answer.

    Without an argument, all of them, and at least one; with a port or a socket's path, that one.
    Exits with 0 if each answers, else with 1.
    """
    examples = "kbridge health\nkbridge health 8888\nkbridge health --ready"
    flags = _FLAGS

    timeout = Float(4.0, help="Seconds that a server has for its answer.").tag(config=True)

    ready = Bool(
        False,
        help="""True: also check that kernels can be started, and files written (`/readyz`). For a
        person or a load balancer; a program that restarts the server would end kernels for
        nothing.""",
    ).tag(config=True)

    def start(self) -> None:
        """Check, and exit."""
        super().start()
        if len(self.extra_args) > 1:
            sys.exit("usage: kbridge health [PORT|SOCKET]")
        here = Place.here()
        # Containers may share the directory, but servers in other containers cannot be reached.
        servers = [s for s in self.servers() if can_be_asked(s, here)]
        if self.extra_args:
            servers = [s for s in servers if self.extra_args[0] in names_of(s)]
        if not servers:
            sys.exit(
                f"no kbridge server runs{' on ' * bool(self.extra_args)}{''.join(self.extra_args)}"
            )
        checked = (check(info, self.timeout, ready=self.ready) for info in servers)
        faults = [fault for fault in checked if fault]
        if faults:
            sys.exit("\n".join(faults))
        say(f"{len(servers)} server{'s' * (len(servers) > 1)}: ok")


def check(info: Mapping[str, Any], timeout: float, *, ready: bool = False) -> str:
    """Return an error message; empty if the server answers.

    Parameters
    ----------
    info : mapping
        Its runtime file.
    timeout : float
        Seconds to wait for its answer.
    ready : bool
        True to ask whether it is ready.
    """
    where = info.get("sock") or info["url"]
    connection = open_connection(info, _context(info), timeout)
    shaken_hands = False
    try:
        connection.connect()
        shaken_hands = bool(info.get("secure"))
        connection.request("GET", info["base_url"] + ("readyz" if ready else "api"))
        response = connection.getresponse()
        status, body = response.status, response.read(_LONGEST)
    except (OSError, http.client.HTTPException) as error:
        if shaken_hands and info.get("client_certificates"):
            return ""  # the server is up, and wants a client certificate, which we do not have
        return f"{where}: {error or type(error).__name__}"
    finally:
        connection.close()
    if status == 200:
        return ""
    return f"{where}: {_wrong(body) or f'HTTP status {status}'}"


def _wrong(body: bytes) -> str:
    """Return what a server says is wrong; empty if it says nothing."""
    try:
        checks = json.loads(body)["checks"]
        return "; ".join(f"{name}: {text}" for name, text in checks.items() if text != "ok")
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""


def _context(info: Mapping[str, Any]) -> ssl.SSLContext | None:
    """Return a context for TLS; None if the server does not use it.

    The certificate is not verified: the check is only whether the server answers.
    """
    if not info.get("secure"):
        return None
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
