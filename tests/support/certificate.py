"""Certificates for 127.0.0.1 and localhost: self-signed, or of a private authority."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Authority", "Certificate", "self_signed"]


@dataclass(frozen=True, slots=True)
class Certificate:
    """The files of a certificate."""

    cert: Path
    key: Path


def self_signed(folder: Path) -> Certificate:
    """Create the files in a folder."""
    made = Certificate(folder / "cert.pem", folder / "key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
            *("-keyout", str(made.key), "-out", str(made.cert)),
        ],
        check=True,
        capture_output=True,
    )
    return made


class Authority:
    """A private certificate authority, with its files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.cert = folder / "ca.pem"
        self._key = folder / "ca-key.pem"
        self._run("-x509", "-subj", "/CN=A private authority", key=self._key, out=self.cert)

    def sign(self, name: str, *, usage: str = "serverAuth,clientAuth") -> Certificate:
        """Create a certificate for `localhost` or another name.

        Parameters
        ----------
        name : str
            The host.
        usage : str
            The extended key usage.
        """
        stem = f"{name}-{usage}"
        made = Certificate(self._folder / f"{stem}.pem", self._folder / f"{stem}-key.pem")
        names = ("-addext", f"subjectAltName=DNS:{name}", "-addext", f"extendedKeyUsage={usage}")
        signed = ("-CA", str(self.cert), "-CAkey", str(self._key))
        self._run("-x509", "-subj", f"/CN={name}", *names, *signed, key=made.key, out=made.cert)
        return made

    def _run(self, *options: str, key: Path, out: Path) -> None:
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
        command = ["openssl", "req", *curve, *options, "-keyout", str(key), "-out", str(out)]
        subprocess.run(command, check=True, capture_output=True)
