"""`kbridge health`: asks a running server whether it answers.

The runtime file says where the server is, with its base URL, TLS and port, so that a container's
health check needs no options of its own.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import sys
from collections.abc import Mapping
from typing import Any

from traitlets import Float

from kbridge.server.commands import _Command, names_of, say

__all__ = ["HealthApp", "check"]


class HealthApp(_Command):
    """Checks running servers."""

    name = "kbridge-health"
    description = """Check that the kbridge servers of this account answer.

    Without an argument, all of them, and at least one; with a port or a socket's path, that one.
    Exits with 0 if each answers, else with 1.
    """
    examples = "kbridge health\nkbridge health 8888"

    timeout = Float(4.0, help="Seconds that a server has for its answer.").tag(config=True)

    def start(self) -> None:
        """Check, and exit."""
        super().start()
        if len(self.extra_args) > 1:
            sys.exit("usage: kbridge health [PORT|SOCKET]")
        servers = self.servers()
        if self.extra_args:
            servers = [s for s in servers if self.extra_args[0] in names_of(s)]
        if not servers:
            sys.exit(
                f"no kbridge server runs{' on ' * bool(self.extra_args)}{''.join(self.extra_args)}"
            )
        faults = [fault for info in servers if (fault := check(info, self.timeout))]
        if faults:
            sys.exit("\n".join(faults))
        say(f"{len(servers)} server{'s' * (len(servers) > 1)}: ok")


def check(info: Mapping[str, Any], timeout: float) -> str:
    """Return what is wrong with a server, an empty string if it answers.

    Parameters
    ----------
    info : mapping
        Its runtime file.
    timeout : float
        Seconds to wait for its answer.
    """
    where = info.get("sock") or info["url"]
    connection = _Connection(info, timeout)
    try:
        connection.request("GET", f"{info['base_url']}api", headers={"Host": "localhost"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        if connection.greeted and info.get("client_certificates"):
            return ""  # it is up, and asks for a certificate that we do not have
        return f"{where}: {error or type(error).__name__}"
    finally:
        connection.close()
    return "" if status == 200 else f"{where}: HTTP status {status}"


class _Connection(http.client.HTTPConnection):
    """A connection to a server on this machine: TCP or a unix socket, with TLS or without."""

    def __init__(self, info: Mapping[str, Any], timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._info = info
        self.greeted = False  # the server's half of the TLS handshake has arrived

    def connect(self) -> None:
        info = self._info
        if info.get("sock"):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            self.sock.connect(info["sock"])
        else:
            host = info["hostname"]
            everywhere = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
            self.sock = socket.create_connection(
                (everywhere.get(host, host), info["port"]), self.timeout
            )
        if info.get("secure"):
            # Whose certificate it is does not matter: it is asked whether the server answers.
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            self.sock = context.wrap_socket(self.sock)
            self.greeted = True
