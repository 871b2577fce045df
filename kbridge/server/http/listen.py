"""The sockets that the server listens on, and TLS.

Every failure is an `OSError` or a `ListenError` with a sentence for the terminal.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

from kbridge.errors import ListenError
from kbridge.unix_sockets import remove_stale_socket

__all__ = ["TlsFiles", "bind_tcp", "bind_unix", "make_context"]

# Two thousand browsers may reconnect at once after a restart, perhaps behind a flood.
# Connections in the queue are accepted next; a client that finds it full retries after seconds.
_BACKLOG = 4096
# sockaddr_un.sun_path holds 108 bytes on Linux and 104 on macOS, including a zero byte.
_UNIX_PATH_LIMIT = 103
# KG_SSL_VERSION is one of Python's numbers for ssl.PROTOCOL_*.
_VERSIONS = {
    3: ssl.TLSVersion.TLSv1,
    4: ssl.TLSVersion.TLSv1_1,
    5: ssl.TLSVersion.TLSv1_2,
}
_ANY_VERSION = {0, 2, 16, 17}  # unset, PROTOCOL_TLS, and its two later names


def bind_tcp(
    ip: str, port: int, retries: int, log: logging.Logger
) -> tuple[list[socket.socket], int]:
    """Listen on `port`, or on the next free one.

    Parameters
    ----------
    ip : str
        An address or host name; empty for all addresses.
    port : int
        0 for any free port.
    retries : int
        The number of ports above `port` to try.

    Returns
    -------
    sockets : list of socket.socket
    port : int
        The port that is used.

    Raises
    ------
    ListenError
    """
    last = min(port + retries, 65535) if port else 0
    for candidate in range(port, last + 1):
        try:
            sockets = bind_all(ip, candidate)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                log.info("port %d is in use", candidate)
                continue
            if error.errno == errno.EACCES:
                raise ListenError(f"no permission to listen on port {candidate}") from error
            raise ListenError(f"cannot listen on {ip or '*'}: {error}") from error
        return sockets, int(sockets[0].getsockname()[1])
    raise ListenError(f"every port from {port} to {last} is in use; see --port")


def bind_all(ip: str, port: int) -> list[socket.socket]:
    """Listen on every address that `ip` stands for, on the same port; on none if one fails.

    Tornado's `bind_sockets` leaves sockets open when it fails.
    """
    found: list[socket.socket] = []
    addresses = socket.getaddrinfo(
        ip or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    try:
        for family, kind, proto, _, address in dict.fromkeys(addresses):
            try:
                sock = socket.socket(family, kind, proto)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT:  # a machine without IPv6
                    continue
                raise
            found.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            port = port or (found[0].getsockname()[1] if len(found) > 1 else 0)
            try:
                sock.bind((address[0], port, *address[2:]))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL or len(addresses) == 1:
                    raise
                found.remove(sock)  # a name may include an address that is not up
                sock.close()
                continue
            sock.listen(_BACKLOG)
    except BaseException:
        for sock in found:
            sock.close()
        raise
    if not found:
        raise OSError(errno.EADDRNOTAVAIL, "no address to listen on")
    return found


def bind_unix(path: Path, mode: int = 0o600) -> socket.socket:
    """Listen on a unix socket; other users cannot connect to it at any moment.

    The socket file of a dead server is replaced; one that something listens on is not.

    Raises
    ------
    ListenError
    """
    if not hasattr(socket, "AF_UNIX"):
        raise ListenError("unix sockets do not exist on this system; see --port")
    if len(os.fsencode(path)) > _UNIX_PATH_LIMIT:
        raise ListenError(f"the path of a unix socket can have {_UNIX_PATH_LIMIT} bytes: {path}")
    try:
        if path.exists() or path.is_symlink():
            _make_way(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        before = os.umask(0o777 & ~mode)
        try:
            sock.bind(str(path))
            sock.listen(_BACKLOG)
        except OSError:
            sock.close()
            raise
        finally:
            os.umask(before)
    except OSError as error:
        raise ListenError(f"cannot listen on {path}: {error}") from error
    return sock


def _make_way(path: Path) -> None:
    """Remove the socket file of a server that has ended."""
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise ListenError(f"{path} exists and is not a socket")
    if not remove_stale_socket(path, any_owner=True):
        raise ListenError(f"another server listens on {path}, or it cannot be removed")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files, and the TLS version.

    `keyfile` may be empty if `certfile` holds the key. With `client_ca`, clients must show a
    certificate of that authority. `version` is one of Python's numbers for `ssl.PROTOCOL_*`: 5
    means exactly TLS 1.2; 0 means 1.2 or later.
    """

    certfile: str = ""
    keyfile: str = ""
    client_ca: str = ""
    version: int = 0


def make_context(files: TlsFiles) -> ssl.SSLContext | None:
    """Return the context of an https server; None without files.

    Raises
    ------
    ListenError
        If a file cannot be read, or its content is not valid.
    """
    if not (files.certfile or files.keyfile or files.client_ca):
        return None
    if not files.certfile:
        raise ListenError("TLS needs a certificate; see --certfile")
    if files.version not in _VERSIONS and files.version not in _ANY_VERSION:
        raise ListenError(f"{files.version} is not the number of a TLS version; see --ssl-version")
    for name in (files.certfile, files.keyfile, files.client_ca):
        if name and not Path(name).is_file():  # the error of `ssl` does not name the file
            raise ListenError(f"cannot use the TLS files: there is no file {name}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if files.version in _VERSIONS:
        context.minimum_version = context.maximum_version = _VERSIONS[files.version]
    try:
        context.load_cert_chain(files.certfile, files.keyfile or None)
        if files.client_ca:
            context.load_verify_locations(files.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ListenError(f"cannot use the TLS files: {error}") from error
    return context
