"""Where a server listens, and how clients connect to it: TCP, a unix socket, or TLS over TCP."""

from __future__ import annotations

import random
import socket
import ssl
import subprocess
from enum import Enum
from pathlib import Path

from benchmarks.measure import BenchmarkError

HOST = "127.0.0.1"


class Transport(Enum):
    """The transport between clients and the server."""

    TCP = "tcp"
    UNIX = "unix"
    TLS = "tls"


def free_port() -> int:
    """Return a free port below the ephemeral range, where a poll may connect to itself."""
    for _ in range(100):
        port = random.randrange(20_000, 30_000)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((HOST, port))
            except OSError:
                continue
            return port
    raise BenchmarkError("no free port")


class Address:
    """The address of one server.

    Parameters
    ----------
    transport : Transport
        The transport.
    home : Path
        The directory of the unix socket, or of the certificate.
    """

    def __init__(self, transport: Transport, home: Path) -> None:
        self.transport = transport
        self.port = 0
        self._socket = home / "server.sock"
        self._certificate = home / "certificate.pem"
        self._key = home / "key.pem"
        self._tls: ssl.SSLContext | None = None

    def prepare(self) -> None:
        """Choose a port; make a certificate for TLS. The directory must exist."""
        self.port = free_port()
        if self.transport is Transport.TLS and self._tls is None:
            self._make_certificate()
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._tls.load_verify_locations(self._certificate)

    def options(self) -> list[str]:
        """Return the options of the command line, which all servers share."""
        if self.transport is Transport.UNIX:
            return [f"--sock={self._socket}"]
        options = [f"--ip={HOST}", f"--port={self.port}"]
        if self.transport is Transport.TLS:
            options += [f"--certfile={self._certificate}", f"--keyfile={self._key}"]
        return options

    def connect(self, timeout: float, receive_buffer: int = 0) -> socket.socket:
        """Connect a client.

        Parameters
        ----------
        timeout : float
            Seconds, also of later reads and writes.
        receive_buffer : int
            Bytes of the receive buffer; 0 for the default.

        Raises
        ------
        OSError
            If the server does not listen.
        """
        unix = self.transport is Transport.UNIX
        sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        try:
            if receive_buffer:  # must be set before the TCP window is negotiated
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.settimeout(timeout)
            if unix:
                sock.connect(str(self._socket))
                return sock
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect((HOST, self.port))
            return self._tls.wrap_socket(sock, server_hostname=HOST) if self._tls else sock
        except BaseException:
            sock.close()
            raise

    def _make_certificate(self) -> None:
        """Make a self-signed certificate."""
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        command += ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName=IP:{HOST}"]
        command += ["-keyout", str(self._key), "-out", str(self._certificate)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except FileNotFoundError:
            raise BenchmarkError("TLS needs the program openssl") from None
        except subprocess.CalledProcessError as error:
            raise BenchmarkError(f"openssl: {error.stderr.decode(errors='replace')}") from error
