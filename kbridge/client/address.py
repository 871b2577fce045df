"""Where a server is: from arguments, the environment, or the files of running servers."""

from __future__ import annotations

import json
import os
import ssl
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from kbridge.errors import InvalidRequest, NoServer

if sys.platform != "win32":
    import fcntl

__all__ = ["Address", "find_server"]

_HOW = "Start one with `kbridge`, or name one (--server URL, url=..., or KBRIDGE_URL)."


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a server.

    Attributes
    ----------
    url : str
        With a slash at the end. The host is `localhost` for a unix socket.
    token : str
        May be empty.
    sock : str
        The path of the unix socket; empty for TCP.
    tls : ssl.SSLContext or None
        Verifies the server; None without TLS.
    """

    url: str
    token: str = ""
    sock: str = ""
    tls: ssl.SSLContext | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every request."""
        return {"Authorization": f"token {self.token}"} if self.token else {}

    def websocket(self, path: str) -> str:
        """Return the URL of a websocket below the server's base URL."""
        return f"ws{self.url.removeprefix('http')}{path}"

    @classmethod
    def parse(cls, url: str, token: str = "", tls: ssl.SSLContext | None = None) -> Address:
        """Return the address for a URL: http, https, http+unix or https+unix.

        Raises
        ------
        InvalidRequest
            If the URL cannot be used.
        """
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError as error:
            raise InvalidRequest(f"{url} is not a URL of a server: {error}") from None
        scheme, _, kind = parts.scheme.partition("+")
        if scheme not in ("http", "https") or kind not in ("", "unix") or not parts.netloc:
            raise InvalidRequest(f"{url!r} is not a URL of a server, such as http://127.0.0.1:8888")
        for part in parts.query.split("&"):  # as the server prints its URL
            token = token or part.removeprefix("token=") * part.startswith("token=")
        host = "localhost" if kind else parts.netloc.rpartition("@")[2]
        path = parts.path if parts.path.endswith("/") else f"{parts.path}/"
        if scheme == "https" and tls is None:
            tls = ssl.create_default_context()
        return cls(
            f"{scheme}://{host}{path}",
            token,
            unquote(parts.netloc) if kind else "",
            tls if scheme == "https" else None,
        )


def find_server(
    url: str = "",
    token: str = "",
    tls: ssl.SSLContext | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Address:
    """Return the address of the server to use.

    Parameters
    ----------
    url, token : str
        By default those in the environment: `KBRIDGE_URL`; `KBRIDGE_TOKEN` or `JUPYTER_TOKEN`.
        Without a URL there, the server of this user that runs; without a token, that of the server
        of this user with this URL.
    tls : ssl.SSLContext, optional
        Verifies the server. By default the authorities of the system are trusted, and the
        certificate of a server of this user that runs.
    environment : mapping
        The environment variables.

    Raises
    ------
    NoServer
        If no server is named, and none or several run.
    InvalidRequest
        If the URL cannot be used.
    """
    url = url or environment.get("KBRIDGE_URL", "")
    token = token or environment.get("KBRIDGE_TOKEN", "")
    servers = list(_running(_runtime_directory()))
    if not url:
        if len(servers) != 1:
            urls = ", ".join(sorted(str(info["url"]) for info in servers))
            raise NoServer(
                f"several kbridge servers of this user run: {urls}. Name one."
                if servers
                else f"no kbridge server of this user runs. {_HOW}"
            )
        [info] = servers
        return _own(info, token or str(info.get("token") or ""), tls)
    address = Address.parse(url, token, tls)
    for info in servers:
        if _same(address, info):
            found = address.token or str(info.get("token") or "")
            return _own(info, found, tls)
    if not address.token:
        return Address.parse(url, environment.get("JUPYTER_TOKEN", ""), tls)
    return address


def _runtime_directory() -> Path:
    from jupyter_core.paths import jupyter_runtime_dir

    return Path(jupyter_runtime_dir())


def _same(address: Address, info: Mapping[str, Any]) -> bool:
    other = Address.parse(str(info["url"]), tls=address.tls)
    return (address.url.replace("//localhost:", "//127.0.0.1:"), address.sock) == (
        other.url.replace("//localhost:", "//127.0.0.1:"),
        other.sock,
    )


def _own(info: Mapping[str, Any], token: str, tls: ssl.SSLContext | None) -> Address:
    if info.get("secure") and tls is None and info.get("certfile"):
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname = False  # the certificate itself is known
        tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        tls.load_verify_locations(str(info["certfile"]))
    return Address.parse(str(info["url"]), token, tls)


def _running(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the contents of the files of kbridge servers that run.

    A server holds a lock on its file while it runs. Without the lock, another program may listen
    at the address in the file, and must not get the token.
    """
    if sys.platform == "win32":
        return
    for path in sorted(folder.glob("kbserver-*.json")):
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with os.fdopen(os.open(path, flags), "rb") as file:
                if os.fstat(file.fileno()).st_uid != os.geteuid():
                    continue
                info = json.load(file)
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    if isinstance(info, dict) and info.get("url"):
                        yield info
        except (OSError, ValueError):
            continue
