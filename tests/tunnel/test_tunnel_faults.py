"""Tunnels that cannot be opened: the error has the output of ssh, and no key."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest

from kbridge.errors import TunnelError
from kbridge.tunnel.tunnel import SshOptions, Tunnel
from tests.support.server import free_port
from tests.support.sshd import Sshd, make_key
from tests.support.waiting import eventually
from tests.tunnel.echo import CHANNELS, KEY, Talk

pytestmark = pytest.mark.usefixtures("no_tunnel_is_left")


def fails(info: dict[str, Any], where: str, *args: Any, **kwargs: Any) -> str:
    """Return the error message of a first opening that fails."""
    tunnel = Tunnel(info, where, *args, **kwargs)
    with pytest.raises(TunnelError) as caught:
        tunnel.start()
    assert tunnel.closed
    assert isinstance(caught.value, ConnectionError)
    assert KEY not in str(caught.value)
    return str(caught.value)


def test_a_wrong_key(sshd: Sshd, echo: dict[str, Any], tmp_path: Path) -> None:
    key = make_key(tmp_path / "key")
    options = ["-o", "IdentityAgent=none", "-o", f"UserKnownHostsFile={sshd.home}/known_hosts"]
    options = ["-F", "/dev/null", "-o", "HostKeyAlias=kbridge-test", *options]
    said = fails(echo, f"{sshd.user}@127.0.0.1:{sshd.port}", key, options=SshOptions(options))
    assert "Permission denied (publickey)" in said
    assert "agent" in said
    assert not set(key.read_text().split("\n")[1:-2]) & set(said.split())


def test_a_key_file_that_does_not_exist(sshd: Sshd, echo: dict[str, Any], tmp_path: Path) -> None:
    said = fails(echo, "box", tmp_path / "missing", options=SshOptions(sshd.options))
    assert re.search(r"key file .*/missing cannot be read: No such file", said)


def test_an_unknown_host(echo: dict[str, Any]) -> None:
    said = fails(echo, "no-such-host.invalid", options=SshOptions(["-F", "/dev/null"]))
    assert "Could not resolve hostname no-such-host.invalid" in said


def test_a_refused_port(echo: dict[str, Any]) -> None:
    said = fails(echo, f"127.0.0.1:{free_port()}", options=SshOptions(["-F", "/dev/null"]))
    assert "Connection refused" in said


def test_a_host_that_never_answers(echo: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as dead:
        where = f"127.0.0.1:{dead.getsockname()[1]}"
        said = fails(echo, where, options=SshOptions(["-F", "/dev/null"], timeout=6))
        assert "Connection timed out during banner exchange" in said
        slow = ["-F", "/dev/null", "-o", "ConnectTimeout=100"]
        said = fails(echo, where, options=SshOptions(slow, timeout=1))
        assert "not up within 1 s" in said


def test_an_unknown_host_key(sshd: Sshd, echo: dict[str, Any]) -> None:
    options = ["-o", "UserKnownHostsFile=/dev/null", *sshd.options]
    said = fails(echo, "box", options=SshOptions(options))
    assert "Host key verification failed" in said
    assert "run ssh to this host once" in said


def test_a_missing_ssh_program_is_an_error(echo: dict[str, Any]) -> None:
    assert "no program 'no-ssh'" in fails(echo, "box", options=SshOptions(program="no-ssh"))


def test_a_local_forward_of_the_user_on_a_used_port_is_an_error(
    sshd: Sshd, echo: dict[str, Any]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = [*sshd.options, "-o", f"LocalForward=127.0.0.1:{port} 127.0.0.1:9"]
        said = fails(echo, "box", options=SshOptions(options))
    assert f"cannot listen to port: {port}" in said
    assert "without LocalForward" in said


def test_a_server_that_forbids_forwarding_is_logged(
    tmp_path: Path, echo: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    server = Sshd(tmp_path, "AllowTcpForwarding no")
    try:
        server.start()
        with Tunnel(echo, "box", options=SshOptions(server.options)) as tunnel:
            with Talk(tunnel.ports["shell"]) as talk:
                assert talk.line() == ""
            eventually(lambda: "prohibited" in caplog.text, "ssh says so")
    finally:
        server.stop()


def test_before_the_start() -> None:
    tunnel = Tunnel({f"{c}_port": 1 for c in CHANNELS}, "box")
    with pytest.raises(RuntimeError, match="before it is started"):
        _ = tunnel.ports
    tunnel.close()
    assert tunnel.closed
