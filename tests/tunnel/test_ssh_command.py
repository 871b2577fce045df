"""The command line of ssh, and the advice for its errors."""

from __future__ import annotations

from typing import Any

import pytest

from kbridge.errors import InvalidConnectionInfo
from kbridge.tunnel.ssh_command import CHANNELS, advice, arguments, server, targets
from kbridge.wire.connection_info import ConnectionInfo

INFO = {
    "transport": "tcp",
    "ip": "127.0.0.1",
    "key": "a-secret",
    **{f"{channel}_port": port for port, channel in enumerate(CHANNELS, start=5001)},
}


def targets_of(**more: Any) -> dict[str, str]:
    return targets(ConnectionInfo.from_connection_info({**INFO, **more}))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("box", ["--", "box"]),
        ("me@box", ["--", "me@box"]),
        ("me@box:2222", ["-p", "2222", "--", "me@box"]),
        ("box:22", ["-p", "22", "--", "box"]),
        ("me@corp.example@box", ["--", "me@corp.example@box"]),
        ("::1", ["--", "::1"]),
        ("me@fe80::1%eth0", ["--", "me@fe80::1%eth0"]),
        ("[::1]", ["--", "::1"]),
        ("me@[2001:db8::7]:2222", ["-p", "2222", "--", "me@2001:db8::7"]),
        ("ssh://me@box:2222", ["--", "ssh://me@box:2222"]),
        ("ssh://box/", ["--", "ssh://box"]),
    ],
)
def test_servers(given: str, wanted: list[str]) -> None:
    assert server(given) == wanted


@pytest.mark.parametrize(
    "given",
    [
        "",
        "-oProxyCommand=id",
        "me@-oProxyCommand=id",
        "ssh://-oProxyCommand=id",
        "ssh://",
        "box; id",
        "box\n",
        "box:port",
        "box:0",
        "box:65536",
        "box:",
        "@box",
        "[::1",
        "box:22:33:x",
    ],
)
def test_texts_that_do_not_name_a_server(given: str) -> None:
    with pytest.raises(ValueError, match=r"not an ssh server|not a port"):
        server(given)


@pytest.mark.parametrize(
    ("ip", "wanted"),
    [
        ("127.0.0.1", "127.0.0.1:5001"),
        ("0.0.0.0", "127.0.0.1:5001"),
        ("*", "127.0.0.1:5001"),
        ("localhost", "127.0.0.1:5001"),
        ("", "127.0.0.1:5001"),
        ("::", "[::1]:5001"),
        ("::1", "[::1]:5001"),
        ("10.1.2.3", "10.1.2.3:5001"),
        ("node7.cluster", "node7.cluster:5001"),
        ("2001:db8::7", "[2001:db8::7]:5001"),
    ],
)
def test_where_a_kernel_listens(ip: str, wanted: str) -> None:
    assert targets_of(ip=ip)["shell"] == wanted


def test_an_ipc_kernel() -> None:
    found = targets_of(transport="ipc", ip="/run/k 100%:1")
    assert found["control"] == r"/run/k 100%%\:1-5005"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"hb_port": 0}, "no hb_port"),
        ({"ip": "1.2.3.4:99 -x"}, "not an address"),
        ({"transport": "ipc", "ip": "kernel-ipc"}, "whole path"),
        ({"transport": "ipc", "ip": "/run/${HOME}"}, "whole path"),
        ({"transport": "udp"}, "not 'udp'"),
        ({"shell_port": "x"}, "not a port"),
    ],
)
def test_addresses_that_cannot_be_forwarded(more: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConnectionInfo, match=words) as caught:
        targets_of(**more)
    assert "a-secret" not in str(caught.value)


def test_the_command_line() -> None:
    ways = dict(zip(range(6001, 6006), targets_of().values(), strict=True))
    args = arguments(server("me@box:22"), ways, sshkey="key", options=["-v"])
    assert args[0] == "-v"
    assert args[-4:] == ["-p", "22", "--", "me@box"]
    assert "-L 127.0.0.1:6005:127.0.0.1:5005" in " ".join(args)
    assert "-i key -o IdentitiesOnly=yes" in " ".join(args)
    assert {"-N", "-T", "BatchMode=yes", "ExitOnForwardFailure=yes"} <= set(args)
    assert "a-secret" not in " ".join(args)
    assert "-i" not in arguments(server("box"), ways)


def test_advice() -> None:
    assert "agent" in advice("me@box: Permission denied (publickey).")
    assert not advice("ssh: connect to host box port 22: Connection refused")
