"""Where a server is: from arguments, the environment, or the files of running servers."""

from __future__ import annotations

import json
import os
import ssl
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
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
    token: str = field(default="", repr=False)
    sock: str = ""
    tls: ssl.SSLContext | None = None

    @property
    def is_local(self) -> bool:
        """True if the server is on this machine."""
        host = urlsplit(self.url).hostname or ""
        try:
            return bool(self.sock) or host == "localhost" or ip_address(host).is_loopback
        except ValueError:
            return False

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
        except ValueError:  # its text may contain a part of a password
            raise InvalidRequest(f"{_shown(url)!r} is not a URL of a server") from None
        scheme, _, kind = parts.scheme.partition("+")
        if scheme not in ("http", "https") or kind not in ("", "unix") or not parts.netloc:
            shown = _shown(url)
            raise InvalidRequest(
                f"{shown!r} is not a URL of a server, such as http://127.0.0.1:8888"
            )
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
    url : str
        By default `KBRIDGE_URL` of the environment, or the server of this user that runs.
    token : str
        By default the one in the URL, or the first of these that is there, so that no token is sent
        to another server than its own: `KBRIDGE_TOKEN`, if the server is that of `KBRIDGE_URL`; the
        token of the server of this user with this URL; for a server on this machine,
        `KBRIDGE_TOKEN` without a `KBRIDGE_URL`, and `JUPYTER_TOKEN`.
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
    named = environment.get("KBRIDGE_URL", "")
    own = environment.get("KBRIDGE_TOKEN", "")
    servers = list(_running(_runtime_directory()))
    if not (url or named):
        if len(servers) != 1:
            urls = ", ".join(sorted(str(info["url"]) for info in servers))
            raise NoServer(
                f"several kbridge servers of this user run: {urls}. Name one."
                if servers
                else f"no kbridge server of this user runs. {_HOW}"
            )
        url = str(servers[0]["url"])
    address = Address.parse(url or named, token, tls)
    found = address.token
    if not found and named and _is_same(address, named):
        found = Address.parse(named, own, tls).token
    info = next((each for each in servers if _is_same(address, str(each["url"]))), None)
    if info is not None:
        found = found or str(info.get("token") or "")
        url, tls = str(info["url"]), tls or _certificate(info)
    if not found and address.is_local:
        found = ("" if named else own) or environment.get("JUPYTER_TOKEN", "")
    return Address.parse(url or named, found, tls)


def _shown(url: str) -> str:
    """Return a text that may be a URL, without the parts that may have passwords or tokens."""
    text = url.partition("?")[0].partition("#")[0]
    before, at, rest = text.rpartition("@")
    scheme, colon, _ = before.partition("://")
    return f"{scheme}{colon}{rest}" if at and colon else rest


def _runtime_directory() -> Path:
    from jupyter_core.paths import jupyter_runtime_dir

    return Path(jupyter_runtime_dir())


def _is_same(address: Address, url: str) -> bool:
    other = Address.parse(url, tls=address.tls)
    return (address.url.replace("//localhost:", "//127.0.0.1:"), address.sock) == (
        other.url.replace("//localhost:", "//127.0.0.1:"),
        other.sock,
    )


def _certificate(info: Mapping[str, Any]) -> ssl.SSLContext | None:
    """Return a context that trusts the certificate of a server of this user."""
    if not (info.get("secure") and info.get("certfile")):
        return None
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False  # the certificate itself is known
    tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    tls.load_verify_locations(str(info["certfile"]))
    return tls


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
