"""Where a kernel listens, as its connection file says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kbridge.wire.message import Channel

__all__ = ["MESSAGE_LIMIT", "Endpoints"]

MESSAGE_LIMIT = 512 << 20  # bytes; no browser can hold a longer text
# Where less is enough: a reply may hold a help text or a history, a question is one line.
_SHARES = {Channel.IOPUB: 1, Channel.SHELL: 8, Channel.CONTROL: 8, Channel.STDIN: 512}


@dataclass(frozen=True, slots=True)
class Endpoints:
    """A kernel's addresses and the key that its messages are signed with.

    The shape is that of a connection file (jupyter_client docs, "Connection files"). Keys are kept
    out of the repr. `curve` is the key pair, public and secret (Z85), of a kernel that encrypts;
    its clients have the same. `heartbeat` is the port for pings, None if it has none.
    `message_limit` is not the kernel's: the bytes that one part of a message on iopub may have.
    """

    transport: str
    ip: str
    ports: Mapping[Channel, int | str]
    key: bytes = field(repr=False, default=b"")
    signature_scheme: str = "hmac-sha256"
    curve: tuple[bytes, bytes] | None = field(repr=False, default=None)
    heartbeat: int | str | None = None
    message_limit: int = MESSAGE_LIMIT

    @classmethod
    def from_connection_info(cls, info: Mapping[str, Any]) -> Endpoints:
        """Read the dict that `KernelManager.get_connection_info` or a connection file gives.

        Raises
        ------
        ValueError
            If a port is missing; names it.
        """
        ports: dict[Channel, int | str] = {}
        for channel in Channel:
            port = info.get(f"{channel}_port")
            if not port:
                raise ValueError(f"the connection info has no {channel}_port")
            ports[channel] = port
        key = info.get("key", b"")
        return cls(
            transport=info.get("transport") or "tcp",
            ip=info.get("ip") or "127.0.0.1",
            ports=ports,
            key=key.encode() if isinstance(key, str) else bytes(key),
            signature_scheme=info.get("signature_scheme") or "hmac-sha256",
            curve=_curve(info),
            heartbeat=info.get("hb_port") or None,
        )

    def limit(self, channel: Channel) -> int:
        """Return the bytes that one part of a message on a channel may have."""
        return max(1, self.message_limit // _SHARES[channel])

    def url(self, channel: Channel) -> str:
        """The address of a channel in ZeroMQ's spelling."""
        return self.address(self.ports[channel])

    def address(self, port: int | str) -> str:
        """The address of a port in ZeroMQ's spelling."""
        if self.transport == "ipc":
            return f"ipc://{self.ip}-{port}"
        host = f"[{self.ip}]" if ":" in self.ip else self.ip
        return f"{self.transport}://{host}:{port}"


def _curve(info: Mapping[str, Any]) -> tuple[bytes, bytes] | None:
    pair = [info.get(name) for name in ("curve_publickey", "curve_secretkey")]
    if not all(pair):
        return None
    public, secret = (k.encode() if isinstance(k, str) else bytes(k) for k in pair if k)
    return public, secret
