"""HTTP requests to a running server of this user; its runtime file has the address and token."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from typing import Any

from kbridge.errors import Conflict

__all__ = ["open_connection", "request_restart", "request_shutdown", "request_status"]

_TIMEOUT_S = 5.0
_EVERYWHERE = {"*": "127.0.0.1", "": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def request_restart(info: Mapping[str, Any], *, force: bool, timeout: float) -> str:
    """Send `POST /api/restart`; return the version that the server is going to start.

    Parameters
    ----------
    info : mapping
        As for `request_shutdown`.
    force : bool
        True to restart although something is lost.
    timeout : float
        Seconds for the answer: the server tries the installed version first.

    Raises
    ------
    Conflict
        If the server refuses; the reason is that of the server.
    ConnectionError
        If the server cannot be asked.
    """
    status, body = _post(info, "api/restart", {"force": force}, timeout)
    if status == http.client.CONFLICT:
        raise Conflict(_message(body) or _reason(status, body))
    if status != http.client.OK:
        raise Conflict(_reason(status, body))
    return str(json.loads(body)["version"])


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
        status, body = _post(info, "api/shutdown", {}, _TIMEOUT_S)
    except ConnectionError as error:
        return str(error)
    return "" if status == http.client.OK else _reason(status, body)


def request_status(info: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Send `GET /api/status`; return the answer.

    Parameters
    ----------
    info : mapping
        As for `request_shutdown`.
    timeout : float
        Seconds for the answer.

    Raises
    ------
    ConnectionError
        If the server cannot be asked, or answers with an error.
    """
    status, body = _request(info, "GET", "api/status", None, timeout)
    if status != http.client.OK:
        raise ConnectionError(_reason(status, body))
    return dict(json.loads(body))


def _post(
    info: Mapping[str, Any], path: str, content: Mapping[str, Any], timeout: float
) -> tuple[int, bytes]:
    return _request(info, "POST", path, json.dumps(content), timeout)


def _request(
    info: Mapping[str, Any], method: str, path: str, body: str | None, timeout: float
) -> tuple[int, bytes]:
    """Send a request; return the status and the body of the reply."""
    try:
        connection = open_connection(info, _own_context(info), timeout)
        try:
            token = str(info.get("token") or "")
            headers = {"Content-Type": "application/json"}
            if token:
                headers["Authorization"] = f"token {token}"
            where = f"{info['base_url']}{path}"
            connection.request(method, where, body, headers)
            reply = connection.getresponse()
            return reply.status, reply.read(1 << 16)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        raise ConnectionError(str(error) or type(error).__name__) from None


def _reason(status: int, body: bytes) -> str:
    message = _message(body)
    return f"it answered {status}: {message}" if message else f"it answered {status}"


def _message(body: bytes) -> str:
    """Return the message of an error; empty if the body has none."""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return ""


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
