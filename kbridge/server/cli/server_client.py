"""HTTP requests to a running server of this user; its runtime file has the address and token."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from typing import Any

__all__ = ["open_connection", "request_shutdown"]

_TIMEOUT_S = 5.0
_EVERYWHERE = {"*": "127.0.0.1", "": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def request_shutdown(info: Mapping[str, Any]) -> str:
    """Send `POST /api/shutdown` to the server that a runtime file describes.

    Parameters
    ----------
    info : mapping
        The content of the runtime file. Its address must be reachable from this process.

    Returns
    -------
    str
        Empty if the server accepted the request, or an error message.
    """
    try:
        connection = open_connection(info, _own_context(info), _TIMEOUT_S)
        try:
            token = str(info.get("token") or "")
            headers = {"Content-Type": "application/json"}
            if token:
                headers["Authorization"] = f"token {token}"
            connection.request("POST", f"{info['base_url']}api/shutdown", "{}", headers)
            reply = connection.getresponse()
            body = reply.read(1 << 16)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        return str(error) or type(error).__name__
    return "" if reply.status == 200 else _reason(reply.status, body)


def _reason(status: int, body: bytes) -> str:
    try:
        return f"it answered {status}: {json.loads(body)['message']}"
    except (ValueError, KeyError, TypeError):
        return f"it answered {status}"


def open_connection(
    info: Mapping[str, Any], context: ssl.SSLContext | None, timeout: float
) -> http.client.HTTPConnection:
    """Return a connection to the server that a runtime file describes, not connected yet.

    Parameters
    ----------
    info : mapping
        The content of the runtime file.
    context : ssl.SSLContext, optional
        For TLS; None for plain HTTP.
    timeout : float
        Seconds for each step.
    """
    return _Connection(info, context, timeout)


def _own_context(info: Mapping[str, Any]) -> ssl.SSLContext | None:
    """Return a context that trusts the server's own certificate and nothing else."""
    if not info["secure"]:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the certificate itself is known
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(str(info["certfile"]))
    return context


class _Connection(http.client.HTTPConnection):
    """A connection to a server on this machine: TCP or a unix socket, with or without TLS."""

    def __init__(
        self, info: Mapping[str, Any], context: ssl.SSLContext | None, timeout: float
    ) -> None:
        # This Host header is always allowed.
        super().__init__("127.0.0.1", timeout=timeout)
        self._info = info
        self._context = context

    def connect(self) -> None:
        info = self._info
        if info.get("sock"):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            self.sock.connect(str(info["sock"]))
        else:
            host = str(info["hostname"])
            self.sock = socket.create_connection(
                (_EVERYWHERE.get(host, host), int(info["port"])), self.timeout
            )
        if self._context is not None:
            self.sock = self._context.wrap_socket(self.sock)
