"""A real OpenSSH server on 127.0.0.1, as root or as any user, with separate keys and files."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.support.require import require
from tests.support.server import free_port
from tests.support.waiting import TIMEOUT, eventually

__all__ = ["Sshd", "make_key"]

_USER = pwd.getpwuid(os.getuid()).pw_name


def _program(name: str) -> str:
    # The PATH of an ordinary user does not contain the directory of Debian's sshd.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    return shutil.which(name, path=path) or require(name)


def make_key(path: Path) -> Path:
    """Create a key without a passphrase, and its public key beside it."""
    keygen = [_program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path]
    subprocess.run(keygen, check=True, timeout=TIMEOUT)
    return path


class Sshd:
    """An sshd process, and the files that a client needs.

    Parameters
    ----------
    home : Path
        An empty directory for all files.
    *settings : str
        Lines for sshd_config, with precedence over the usual ones.

    Attributes
    ----------
    port : int
        The port, which stays the same after a restart.
    key : Path
        The private key for the login.
    config : Path
        An ssh_config that knows it as `box` and trusts its host key, for `ssh -F`.
    user : str
        The user who may log in: the one who runs the tests.
    """

    def __init__(self, home: Path, *settings: str) -> None:
        self.home = home
        self.user = _USER
        self.port = free_port()
        self.key = make_key(home / "user_key")
        self.config = home / "ssh_config"
        self.log = home / "sshd.log"
        self._process: subprocess.Popen[bytes] | None = None
        host_key = make_key(home / "host_key")
        shutil.copy(home / "user_key.pub", home / "authorized_keys")
        lines = [
            *settings,
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {host_key}",
            f"AuthorizedKeysFile {home}/authorized_keys",
            "AuthenticationMethods publickey",
            "StrictModes no",
            "UsePAM no",
            "PermitRootLogin yes",
            "PidFile none",
            "LogLevel VERBOSE",
        ]
        (home / "sshd_config").write_text("\n".join(lines) + "\n")
        public = " ".join((home / "host_key.pub").read_text().split()[:2])
        (home / "known_hosts").write_text(f"kbridge-test {public}\n")
        self.write_config([("box", [])])

    def write_config(self, hosts: Sequence[tuple[str, Sequence[str]]]) -> None:
        """Write an ssh_config: hosts by name, each with lines that override the usual ones."""
        text = ""
        for name, more in hosts:
            text += "".join(f"{line}\n  " for line in (f"Host {name}", *more)).rstrip(" ")
        text += "Host *\n  " + "\n  ".join(
            [
                "HostName 127.0.0.1",
                "HostKeyAlias kbridge-test",
                f"Port {self.port}",
                f"User {self.user}",
                f"IdentityFile {self.key}",
                "IdentityAgent none",
                f"UserKnownHostsFile {self.home}/known_hosts",
                "GlobalKnownHostsFile /dev/null",
                "StrictHostKeyChecking yes",
            ]
        )
        self.config.write_text(text + "\n")

    @property
    def options(self) -> list[str]:
        """Return the first options of every ssh command."""
        return ["-F", str(self.config)]

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "sshd was not started"
        return self._process

    def start(self) -> Sshd:
        if (
            os.getuid() == 0
        ):  # sshd as root runs its children in this directory, which Debian's start script creates
            Path("/run/sshd").mkdir(0o755, exist_ok=True)
        command = [_program("sshd"), "-D", "-e", "-f", str(self.home / "sshd_config")]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        eventually(self._listens, "sshd listens")
        return self

    def _listens(self) -> bool:
        assert self.process.poll() is None, f"sshd went away:\n{self.tail()}"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def tail(self) -> str:
        """Return the last lines of sshd's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def sessions(self) -> list[psutil.Process]:
        """Return the processes that serve connections."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self) -> None:
        """End the server and all its connections."""
        if self._process is None:
            return
        family = [] if self.process.poll() is not None else self.sessions()
        self.process.send_signal(signal.SIGKILL)
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait(TIMEOUT)
        self._process = None
