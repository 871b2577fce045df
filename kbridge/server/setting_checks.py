"""Checks of settings: normalizes values, and refuses those that could never match a request.

Each function takes a value as the operator wrote it and returns the value to compare with, or
raises a `ValueError` with the reason. The reason never repeats a secret.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, quote, unquote, urlsplit

from traitlets import HasTraits, TraitError, validate

__all__ = [
    "Checks",
    "check_base_url",
    "check_cluster",
    "check_header",
    "check_host",
    "check_ip",
    "check_origins",
    "check_token",
    "check_url",
    "checked",
    "database_hosts",
    "is_loopback",
]

T = TypeVar("T")

# The characters that RFC 3986 allows in a segment and browsers do not encode, except `;`, which the
# path of a cookie cannot contain.
_PATH_SAFE = "/:@!$&'()*+,=~"
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#@\s]*)", re.IGNORECASE)
# The name stands where servers without a cluster have their address, which always contains a slash.
_CLUSTER = re.compile(r"[A-Za-z0-9._-]{1,100}")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def checked(name: str, check: Callable[[str], T], value: str) -> T:
    """Return the result of `check`; add the name of the setting to its error."""
    try:
        return check(value)
    except ValueError as error:
        raise TraitError(f"{name}: {error}") from None


def check_token(value: str) -> str:
    """Return a token without the white space around it, such as the newline in a file.

    A header cannot contain other control characters, or characters beyond Latin-1.
    """
    token = value.strip()
    if value and not token:
        raise ValueError(
            "it consists of white space only; an empty value ('') turns authentication off"
        )
    if any(char > "\xff" or not (char.isprintable() or char == "\xa0") for char in token):
        raise ValueError(
            "it contains control characters or letters beyond Latin-1, which cannot be sent in a"
            " header"
        )
    return token


def check_base_url(value: str) -> str:
    """Return a path with a slash at both ends, percent-encoded like in browsers."""
    inner = unquote(value.strip()).strip("/")
    if "://" in inner:
        raise ValueError("it is a path, not a whole URL")
    bad = set(inner) & set("?#;\\") or {c for c in inner if not c.isprintable()}
    if bad:
        raise ValueError(f"a path cannot contain {', '.join(map(repr, sorted(bad)))}")
    if any(part in ("", ".", "..") for part in inner.split("/")) and inner:
        raise ValueError("it has a part that is empty, `.` or `..`, which clients remove")
    return f"/{quote(inner, safe=_PATH_SAFE)}/" if inner else "/"


def check_origins(value: str) -> tuple[str, ...]:
    """Return the origins in a list separated by commas or spaces, as browsers send them."""
    return tuple(_origin(part) for part in re.split(r"[,\s]+", value.strip()) if part)


def _origin(value: str) -> str:
    if value in ("*", "null"):
        return value
    match = _ORIGIN.fullmatch(value.rstrip("/"))
    if match is None:
        raise ValueError(f"{value!r} is not an origin: scheme, host and port (https://host:8000)")
    scheme, host = match[1].lower(), match[2]
    if "*" in host:
        raise ValueError(
            f"{value!r} has a wildcard, which is compared literally; see allow_origin_pat"
        )
    host = _ascii(host.lower()).removesuffix(_DEFAULT_PORTS.get(scheme, "none"))
    return f"{scheme}://{host}"


def check_host(value: str) -> str:
    """Return a host name or address as a Host header names it, without a port."""
    name = value.strip().lower()
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    if "*" in name:
        raise ValueError(
            f"{value!r} has a wildcard, which is compared literally; see allow_remote_access"
        )
    if _is_address(name):
        return name
    if not name or re.search(r"[/:@\s\[\]]", name):
        raise ValueError(f"{value!r} is not a host name: it has no scheme, port or path")
    return _ascii(name)


def check_ip(value: str) -> str:
    """Return an address or name to listen on, empty for all addresses."""
    name = value.strip()
    if name in ("", "*"):
        return ""
    try:
        check_host(name)
    except ValueError:
        raise ValueError(
            f"{value!r} is not an address or a host name; the port is another setting"
        ) from None
    return name[1:-1] if name.startswith("[") else name


def check_cluster(value: str) -> str:
    """Return the name of a cluster, empty for none."""
    name = value.strip()
    if name and not _CLUSTER.fullmatch(name):
        raise ValueError(
            f"{value!r} is not a name of at most 100 letters, digits, dots, hyphens and underscores"
        )
    return name


def check_url(value: str) -> str:
    """Return the http(s) URL of a server without a path; empty for none."""
    url = value.strip().rstrip("/")
    if not url:
        return ""
    match = _ORIGIN.fullmatch(url)
    if match is None or match[1].lower() not in ("http", "https") or not match[2]:
        raise ValueError("it is not like http://host:port, without a path, a user or a password")
    if "@" in match[2]:
        raise ValueError("it must not contain a user or a password")
    return f"{match[1].lower()}://{match[2]}"


def is_loopback(host: str) -> bool:
    """Return True for the name or an address of this machine that no other machine can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def database_hosts(url: str) -> list[str]:
    """Return the hosts in the URL of a database; empty for a file, a unix socket and a default."""
    try:
        parts = urlsplit(url)
        named = [parts.hostname or ""]
    except ValueError:  # SQLAlchemy reports it
        return []
    for hosts in parse_qs(parts.query).get("host", []):
        named += [host.partition(":")[0] for host in hosts.split(",")]
    return [host for host in named if host and not host.startswith("/")]


def check_header(value: str) -> str:
    """Return the value of a header, without the white space around it."""
    text = value.strip()
    if any(char > "\xff" or not (char.isprintable() or char in "\t\xa0") for char in text):
        raise ValueError("a header cannot contain control characters, or characters beyond Latin-1")
    return text


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _ascii(host: str) -> str:
    """Return an international name in its ASCII form."""
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        raise ValueError(f"{host!r} is not a host name") from None


class Checks(HasTraits):
    """Checks the settings of `KbridgeApp` when a value is set."""

    @validate("token")
    def _valid_token(self, proposal: dict[str, Any]) -> str:
        return checked("KbridgeApp.token", check_token, proposal["value"])

    @validate("ip")
    def _valid_ip(self, proposal: dict[str, Any]) -> str:
        return checked("KbridgeApp.ip", check_ip, proposal["value"])

    @validate("base_url")
    def _valid_base_url(self, proposal: dict[str, Any]) -> str:
        return checked("KbridgeApp.base_url", check_base_url, proposal["value"])

    @validate("allow_origin")
    def _valid_allow_origin(self, proposal: dict[str, Any]) -> str:
        return ",".join(checked("KbridgeApp.allow_origin", check_origins, proposal["value"]))

    @validate("local_hostnames")
    def _valid_local_hostnames(self, proposal: dict[str, Any]) -> list[str]:
        name = "KbridgeApp.local_hostnames"
        return [checked(name, check_host, value) for value in proposal["value"]]

    @validate("allow_credentials", "allow_headers", "allow_methods", "expose_headers", "max_age")
    def _valid_header(self, proposal: dict[str, Any]) -> str:
        return checked(f"KbridgeApp.{proposal['trait'].name}", check_header, proposal["value"])

    @validate("sock")
    def _valid_sock(self, proposal: dict[str, Any]) -> str:
        value = str(proposal["value"])
        return str(Path(value).expanduser().absolute()) if value else ""

    @validate("sock_mode")
    def _valid_sock_mode(self, proposal: dict[str, Any]) -> str:
        value = str(proposal["value"])
        if not re.fullmatch("0?[0-7]{3}", value):
            raise TraitError(f"sock_mode {value!r} is not an octal mode such as 0600")
        return value

    @validate("allow_origin_pat")
    def _valid_allow_origin_pat(self, proposal: dict[str, Any]) -> str:
        value = str(proposal["value"]).strip()
        try:
            re.compile(value)
        except re.error as error:
            raise TraitError(f"allow_origin_pat is not a regular expression: {error}") from None
        return value
