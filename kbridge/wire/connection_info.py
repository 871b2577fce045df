"""Connection information: where a kernel listens, and its keys.

The format is that of connection files (jupyter_client docs, "Connection files"), with keys as text
or as bytes: `KernelManager.get_connection_info` returns bytes.

Invariants:

- this is the only parser; other modules read fields of `ConnectionInfo`;
- a member that is missing, empty or null has the value of a kernel on this machine;
- no error message and no repr contains a key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from kbridge.errors import InvalidConnectionInfo
from kbridge.wire.message import Channel
from kbridge.wire.signing import hash_of

__all__ = ["FILE_LIMIT", "LOOPBACK", "ConnectionInfo", "address_of", "parse_connection_file"]

FILE_LIMIT: Final = 1 << 20
"""Bytes that a connection file may have. Those of Jupyter have less than 1000."""

LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """Where one kernel listens, and the keys that its clients need.

    Attributes
    ----------
    transport : str
        ``tcp`` or ``ipc``. Other transports of ZeroMQ are accepted here and refused by what cannot
        use them.
    ip : str
        IPv4 or IPv6 address or host name; for ipc, the prefix of the socket paths.
    ports : mapping of Channel to int or str
        TCP ports, or for ipc the suffixes of the socket paths.
    key : bytes
        Signs messages; empty if they are not signed.
    signature_scheme : str
        ``hmac-<hash>``.
    curve : (bytes, bytes) or None
        The CurveZMQ key pair (public, secret; Z85) of a kernel that encrypts. Its clients use the
        same pair.
    heartbeat : int, str or None
        The port for pings; None if the kernel has none.
    kernel_name : str
        The name of the kernelspec, perhaps empty.
    """

    transport: str
    ip: str
    ports: Mapping[Channel, int | str]
    key: bytes = field(repr=False, default=b"")
    signature_scheme: str = "hmac-sha256"
    curve: tuple[bytes, bytes] | None = field(repr=False, default=None)
    heartbeat: int | str | None = None
    kernel_name: str = ""

    @classmethod
    def from_connection_info(cls, info: Mapping[str, Any]) -> Self:
        """Parse the dict that `KernelManager.get_connection_info` or a connection file gives.

        Raises
        ------
        InvalidConnectionInfo
            If a port is missing, or a member has a value that cannot be used; names the member.
        """
        transport = _text(info, "transport") or "tcp"
        scheme = _text(info, "signature_scheme") or "hmac-sha256"
        hash_of(scheme)
        ports: dict[Channel, int | str] = {}
        for channel in Channel:
            port = _port(info, f"{channel}_port", transport)
            if port is None:
                raise InvalidConnectionInfo(f"the connection info has no {channel}_port")
            ports[channel] = port
        public, secret = (_bytes(info, f"curve_{half}key") for half in ("public", "secret"))
        return cls(
            transport=transport,
            ip=_text(info, "ip") or LOOPBACK,
            ports=ports,
            key=_bytes(info, "key"),
            signature_scheme=scheme,
            curve=(public, secret) if public and secret else None,
            heartbeat=_port(info, "hb_port", transport),
            kernel_name=str(info.get("kernel_name") or ""),
        )

    def url(self, channel: Channel) -> str:
        """Return the address of a channel as ZeroMQ spells it."""
        return self.address(self.ports[channel])

    def address(self, port: int | str) -> str:
        """Return the address of a port as ZeroMQ spells it."""
        return address_of(self.transport, self.ip, port)


def address_of(transport: str, ip: str, port: int | str) -> str:
    """Return an address as ZeroMQ spells it: ``tcp://[::1]:5000``, ``ipc:///run/kernel-1``."""
    if transport == "ipc":
        return f"ipc://{ip}-{port}"
    host = f"[{ip}]" if ":" in ip and not ip.startswith("[") else ip
    return f"{transport}://{host}:{port}"


def parse_connection_file(content: bytes | str, name: str) -> dict[str, Any]:
    """Return the JSON object of a connection file, whatever its members are.

    Parameters
    ----------
    content : bytes or str
        The file's content.
    name : str
        The file's path, for the error.

    Raises
    ------
    InvalidConnectionInfo
        If it is longer than `FILE_LIMIT`, or does not contain a JSON object.
    """
    if len(content) > FILE_LIMIT:
        raise InvalidConnectionInfo(f"{name} is too long for a connection file")
    try:
        info = json.loads(content)
    except (ValueError, RecursionError):
        info = None
    if not isinstance(info, dict):
        raise InvalidConnectionInfo(
            f"{name} is not a connection file: it does not contain a JSON object"
        )
    return info


def _text(info: Mapping[str, Any], name: str) -> str:
    value = info.get(name) or ""
    if not isinstance(value, str):
        raise InvalidConnectionInfo(f"{name} in the connection info is not text")
    return value


def _bytes(info: Mapping[str, Any], name: str) -> bytes:
    value = info.get(name) or b""
    try:
        return value.encode() if isinstance(value, str) else bytes(memoryview(value))
    except (TypeError, UnicodeEncodeError):  # its text may contain the key
        raise InvalidConnectionInfo(
            f"{name} in the connection info is neither valid text nor bytes"
        ) from None


def _port(info: Mapping[str, Any], name: str, transport: str) -> int | str | None:
    value = info.get(name)
    if not value:
        return None
    if transport == "tcp":
        if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 6:
            value = int(value)
        if type(value) is int and 0 < value < 65536:  # a bool is an int, too
            return value
    elif isinstance(value, int | str):
        return value
    raise InvalidConnectionInfo(f"{name} in the connection info is not a port")
