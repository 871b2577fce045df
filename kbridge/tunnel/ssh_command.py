"""Build the command line of OpenSSH, and explain its messages. Runs nothing.

Invariants:

- OpenSSH alone decides how to log in (ssh_config, agents, keys, jump hosts): it never asks the user
  a question, and its messages are passed on unchanged;
- no ssh key is read here, and the key of the kernel is never on a command line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kbridge.errors import InvalidConnectionInfo, InvalidSshServer
from kbridge.wire.connection_info import ConnectionInfo

__all__ = ["CHANNELS", "SshOptions", "advice", "arguments", "login", "server", "targets"]

CHANNELS = ("shell", "iopub", "stdin", "hb", "control")
"""The channels in the order of the ports that `tunnel_to_kernel` returns."""

_LOOPBACK = {
    **dict.fromkeys(("", "127.0.0.1", "0.0.0.0", "*", "localhost"), "127.0.0.1"),  # noqa: S104
    **dict.fromkeys(("::", "::1"), "::1"),
}
_HOST = re.compile(r"[\w.-]+|[0-9A-Fa-f:.]+(%[\w.-]+)?")
_SERVER = re.compile(r"(\[(?P<v6>[^]@]+)]|(?P<host>[^]:[@]+))(:(?P<port>[0-9]{1,5}))?")
_BARE_V6 = re.compile(r"(?P<v6>[0-9A-Fa-f]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(%\w+)?)")
_SPECIAL = re.compile(r"([\\:\[\]])")

_ADVICE = {
    "Permission denied": "ssh cannot ask for a password here: log in with a key that an agent has, "
    "or with a key without a passphrase",
    "Host key verification failed": "run ssh to this host once, to see and accept its key",
    "cannot listen to port": "ssh_config has a LocalForward for this host, and its port is in use: "
    "give the name of a Host without LocalForward",
}


@dataclass(frozen=True, slots=True)
class SshOptions:
    """Options of the OpenSSH process of a tunnel.

    Attributes
    ----------
    arguments : sequence of str
        Additional arguments for ssh. They override the settings of kbridge.
    timeout : float
        Seconds that an attempt to open the tunnel may take.
    program : str
        The OpenSSH client.
    """

    arguments: Sequence[str] = ()
    timeout: float = 30.0
    program: str = "ssh"


def server(sshserver: str) -> list[str]:
    """Parse `host`, `user@host:port`, `user@[::1]:port`, an alias of ssh_config or an ssh:// URL.

    Returns
    -------
    list of str
        The end of the command line of ssh. It contains a port only if the text does.

    Raises
    ------
    InvalidSshServer
        If it has none of these forms, or ssh could read it as an option.
    """
    if sshserver.startswith("ssh://"):
        return ["--", _safe(sshserver.rstrip("/"), sshserver.removeprefix("ssh://"))]
    user, at, place = sshserver.rpartition("@")
    match = _BARE_V6.fullmatch(place) or _SERVER.fullmatch(place)
    if match is None or (at and not user):
        raise InvalidSshServer(f"not an ssh server: {sshserver!r} (want user@host:port)")
    parts = match.groupdict()
    host = parts["v6"] or parts["host"]
    where = f"{user}@{_safe(host, host)}" if user else host
    port = parts.get("port")
    if port and not 0 < int(port) < 65536:
        raise InvalidSshServer(f"not a port: {port} in {sshserver!r}")
    return [*(["-p", port] if port else []), "--", _safe(where, where)]


def _safe(text: str, name: str) -> str:
    if not name or name.startswith("-") or not text.isprintable() or " " in text:
        raise InvalidSshServer(f"not an ssh server: {text!r}")
    return text


def targets(info: ConnectionInfo) -> dict[str, str]:
    """Return where a kernel listens, as seen from the ssh server, in the form that `ssh -L` takes.

    Parameters
    ----------
    info : ConnectionInfo
        The kernel's; it must have a heartbeat port.

    Returns
    -------
    dict
        Channel -> `host:port` or the path of a unix socket. A kernel that listens on all addresses
        of the server, or on its loopback, is reached through the server's loopback.

    Raises
    ------
    InvalidConnectionInfo
        If a port is missing, or ssh cannot forward to the address.
    """
    if info.heartbeat is None:
        raise InvalidConnectionInfo("the connection info has no hb_port")
    ports: dict[str, int | str] = {str(c): port for c, port in info.ports.items()}
    ports["hb"] = info.heartbeat
    if info.transport == "ipc":
        return {channel: _path(f"{info.ip}-{ports[channel]}") for channel in CHANNELS}
    if info.transport == "tcp":
        host = _host(info.ip)
        return {channel: f"{host}:{ports[channel]}" for channel in CHANNELS}
    raise InvalidConnectionInfo(f"ssh forwards the transports tcp and ipc, not {info.transport!r}")


def _host(ip: str) -> str:
    host = _LOOPBACK.get(ip, ip)
    if not _HOST.fullmatch(host):
        raise InvalidConnectionInfo(f"ip in the connection info is not an address: {ip!r}")
    return f"[{host}]" if ":" in host else host


def _path(path: str) -> str:
    if not path.startswith("/") or "${" in path or not path.isprintable():
        raise InvalidConnectionInfo(f"ssh needs the whole path of an ipc socket, not {path!r}")
    return _SPECIAL.sub(r"\\\1", path).replace("%", "%%")


def arguments(
    destination: Sequence[str],
    forwards: Mapping[int, str],
    *,
    sshkey: str | None = None,
    options: Sequence[str] = (),
    connect_timeout: int = 10,
) -> list[str]:
    """Return the arguments of ssh.

    Parameters
    ----------
    destination : sequence of str
        The result of `server`.
    forwards : mapping
        Local port -> remote address, from `targets`.
    sshkey : str, optional
        A file with a private key, or with the public half of a key that an agent has.
    options : sequence of str
        Additional arguments. They come first, because ssh uses the first of two settings.
    connect_timeout : int
        Seconds to wait for a server that does not answer.
    """
    settings = {
        "ExitOnForwardFailure": "yes",
        "LogLevel": "INFO",
        # A dead connection is detected after three intervals.
        "ServerAliveInterval": "2",
        "ServerAliveCountMax": "2",
    }
    said = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    # With the loopback address, because GatewayPorts could open the ports to the network.
    ways = [part for at, to in forwards.items() for part in ("-L", f"127.0.0.1:{at}:{to}")]
    return [*options, "-N", *login(sshkey, connect_timeout), *said, *ways, *destination]


def login(sshkey: str | None, connect_timeout: float) -> list[str]:
    """Return the options of every ssh: ask no questions, and share no connection."""
    settings = {
        "BatchMode": "yes",
        # An ssh that shares a connection could be neither ended nor watched.
        "ControlMaster": "no",
        "ControlPath": "none",
        "RemoteCommand": "none",
        "ConnectTimeout": f"{connect_timeout:.0f}",
    }
    said = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    return ["-T", *said, *(["-i", sshkey, "-o", "IdentitiesOnly=yes"] if sshkey else [])]


def advice(output: str) -> str:
    """Return what the user can do about an error of ssh; empty if only waiting helps."""
    return next((hint for text, hint in _ADVICE.items() if text in output), "")
