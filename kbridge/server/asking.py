"""A server of this user's, asked to end: over HTTP, with the token from its runtime file."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from typing import Any

__all__ = ["ask_to_end"]

_TIMEOUT_S = 5.0


def ask_to_end(info: dict[str, Any]) -> str:
    """Send `POST /api/shutdown` to the server that a runtime file describes.

    Parameters
    ----------
    info : dict
        The runtime file. Its address must mean the same here as there.

    Returns
    -------
    str
        Empty if the server agreed, or else why it did not.
    """
    try:
        connection = _connection(info)
        try:
            token = str(info.get("token") or "")
            # Always allowed, whatever names the server is known by.
            headers = {"Host": "127.0.0.1", "Content-Type": "application/json"}
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


def _connection(info: dict[str, Any]) -> http.client.HTTPConnection:
    if info["sock"]:
        return _UnixConnection(str(info["sock"]), _context(info))
    host = str(info["hostname"])
    host = "127.0.0.1" if host in ("*", "", "0.0.0.0", "::") else host  # noqa: S104
    port, context = int(info["port"]), _context(info)
    if context is None:
        return http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    return http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)


def _context(info: dict[str, Any]) -> ssl.SSLContext | None:
    """Return a context that trusts the server's own certificate and nothing else."""
    if not info["secure"]:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the certificate itself is known
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(str(info["certfile"]))
    return context


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, context: ssl.SSLContext | None) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path
        self._context = context

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(self.timeout)
        try:
            sock.connect(self._path)
            self.sock = sock if self._context is None else self._context.wrap_socket(sock)
        except BaseException:
            sock.close()
            raise
