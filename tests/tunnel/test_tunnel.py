"""Tunnels through a real OpenSSH server to five echo servers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from kbridge.errors import TunnelError
from kbridge.tunnel.tunnel import SshOptions, Tunnel, open_tunnels, tunnel_to_kernel
from tests.support.network import network_to
from tests.support.server import free_port, gone
from tests.support.sshd import Sshd
from tests.support.waiting import TIMEOUT, eventually
from tests.tunnel.echo import CHANNELS, KEY, Talk, echo_kernel, hear, ipc_echo_kernel

pytestmark = pytest.mark.usefixtures("no_tunnel_is_left")

ITSELF = {channel: channel for channel in CHANNELS}
ROOT = Path(__file__).parents[2]


# -- forwarding --------------------------------------------------------------------------------


def test_five_ports_through_one_process(sshd: Sshd, echo: dict[str, Any]) -> None:
    with Tunnel(echo, "box", options=SshOptions(sshd.options)) as tunnel:
        assert tunnel.up
        assert hear(tunnel.ports) == ITSELF
        assert tunnel.pid is not None
        listening = psutil.Process(tunnel.pid).net_connections()
        ours = {c.laddr for c in listening if c.status == psutil.CONN_LISTEN}
        assert ours == {("127.0.0.1", port) for port in tunnel.ports.values()}
    assert not tunnel.up


def test_connection_info_is_for_this_machine(sshd: Sshd, echo: dict[str, Any]) -> None:
    with Tunnel({**echo, "ip": "0.0.0.0"}, "box", options=SshOptions(sshd.options)) as tunnel:
        info = tunnel.connection_info
        local = {f"{channel}_port": port for channel, port in tunnel.ports.items()}
        assert info == {**echo, **local, "ip": "127.0.0.1", "transport": "tcp"}
        assert KEY not in repr(tunnel)
        assert hear(tunnel.ports) == ITSELF


@pytest.mark.usefixtures("ssh_on_path")
def test_tunnel_to_kernel(sshd: Sshd, echo: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "kernel-1.json"
    file.write_text(json.dumps(echo))
    for info in (echo, str(file)):
        where = f"{sshd.user}@127.0.0.1:{sshd.port}"
        ports = tunnel_to_kernel(info, where, sshkey=str(sshd.key))
        assert hear(dict(zip(CHANNELS, ports, strict=True))) == ITSELF
        (tunnel,) = open_tunnels()
        tunnel.close()


@pytest.mark.parametrize(
    "where", ["box", "{user}@box", "box:{port}", "ssh://{user}@127.0.0.1:{port}/", "[127.0.0.1]"]
)
def test_ways_to_name_the_server(sshd: Sshd, echo: dict[str, Any], where: str) -> None:
    server = where.format(user=sshd.user, port=sshd.port)
    with Tunnel(echo, server, options=SshOptions(sshd.options)) as tunnel:
        assert hear({"hb": tunnel.ports["hb"]}) == {"hb": "hb"}


def test_ipc(sshd: Sshd, tmp_path: Path) -> None:
    with (
        ipc_echo_kernel(tmp_path / "odd 100%: [k]") as info,
        Tunnel(info, "box", options=SshOptions(sshd.options)) as tunnel,
    ):
        assert tunnel.connection_info["transport"] == "tcp"
        assert hear(tunnel.ports) == ITSELF


def test_ipv6(sshd: Sshd) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no ::1")
    with (
        echo_kernel("::1") as info,
        Tunnel(info, "box", options=SshOptions(sshd.options)) as tunnel,
    ):
        assert hear(tunnel.ports) == ITSELF


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127/8")
def test_another_host_behind_the_server(sshd: Sshd) -> None:
    with (
        echo_kernel("127.0.0.9") as info,
        Tunnel(info, "box", options=SshOptions(sshd.options)) as tunnel,
    ):
        assert hear(tunnel.ports) == ITSELF


def test_a_jump_host(own_sshd: Sshd, sshd: Sshd, echo: dict[str, Any]) -> None:
    own_sshd.start()
    own_sshd.write_config(
        [
            ("inner", ["ProxyJump outer"]),
            (
                "outer",
                [
                    f"Port {sshd.port}",
                    f"IdentityFile {sshd.key}",
                    f"UserKnownHostsFile {sshd.home}/known_hosts",
                ],
            ),
        ]
    )
    with Tunnel(echo, "inner", options=SshOptions(own_sshd.options)) as tunnel:
        assert hear(tunnel.ports) == ITSELF
        assert tunnel.pid is not None
        (jump,) = (p for p in psutil.Process(tunnel.pid).children() if p.name() == "ssh")
        jump.kill()
        assert tunnel.wait(2, TIMEOUT)
        assert hear(tunnel.ports) == ITSELF


def test_gateway_ports_do_not_open_it_to_the_network(sshd: Sshd, echo: dict[str, Any]) -> None:
    options = [*sshd.options, "-o", "GatewayPorts=yes"]
    with Tunnel(echo, "box", options=SshOptions(options)) as tunnel:
        assert tunnel.pid is not None
        listening = psutil.Process(tunnel.pid).net_connections()
        ips = {c.laddr.ip for c in listening if c.status == psutil.CONN_LISTEN}
        assert ips == {"127.0.0.1"}


# -- failures ----------------------------------------------------------------------------------


def test_a_killed_ssh_comes_back_on_the_same_ports(sshd: Sshd, echo: dict[str, Any]) -> None:
    with Tunnel(echo, "box", options=SshOptions(sshd.options)) as tunnel:
        ports = tunnel.ports
        for times in (2, 3):
            assert tunnel.pid is not None
            os.kill(tunnel.pid, signal.SIGKILL)
            assert tunnel.wait(times, TIMEOUT)
            assert tunnel.ports == ports
            assert hear(ports) == ITSELF


def test_a_server_that_restarts(
    own_sshd: Sshd, echo: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    own_sshd.start()
    changes: list[bool] = []
    down = threading.Event()

    def listener(up: bool) -> None:
        changes.append(up)
        if not up:
            down.set()

    with Tunnel(echo, "box", options=SshOptions(own_sshd.options), on_change=listener) as tunnel:
        ports = tunnel.ports
        own_sshd.stop()
        assert down.wait(TIMEOUT)
        assert not tunnel.up
        eventually(lambda: "refused" in caplog.text, "an attempt fails")
        if sys.platform == "linux":
            with socket.socket() as thief, pytest.raises(OSError, match="in use"):
                thief.bind(("127.0.0.1", ports["shell"]))
        own_sshd.start()
        assert tunnel.wait(2, TIMEOUT)
        assert changes == [True, False, True]
        assert hear(ports) == ITSELF
    assert changes == [True, False, True, False]
    assert "was lost" in caplog.text
    assert KEY not in caplog.text


async def test_a_network_that_drops_all_packets_is_noticed(
    sshd: Sshd, echo: dict[str, Any]
) -> None:
    down = asyncio.Event()
    loop = asyncio.get_running_loop()

    def listener(up: bool) -> None:
        if not up:
            loop.call_soon_threadsafe(down.set)

    async with network_to(sshd.port) as network:
        # The keepalive that is on by default takes six seconds to give up; a test need not.
        alive = ["-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1"]
        where = [*sshd.options, "-o", f"Port={network.port}", *alive]
        async with Tunnel(echo, "box", options=SshOptions(where), on_change=listener) as tunnel:
            network.swallow()
            async with asyncio.timeout(TIMEOUT):
                await down.wait()
            await network.restore()
            assert await asyncio.to_thread(tunnel.wait, 2, TIMEOUT)
            assert await asyncio.to_thread(hear, tunnel.ports) == ITSELF


def test_connections_to_an_ended_kernel_are_logged_once(
    sshd: Sshd, echo: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = {**echo, **{f"{c}_port": free_port() for c in CHANNELS}}
    with Tunnel(nowhere, "box", options=SshOptions(sshd.options)) as tunnel:
        for _ in range(5):
            for port in tunnel.ports.values():
                with Talk(port) as talk:
                    assert talk.line() == ""
        eventually(lambda: "open failed" in caplog.text, "ssh says so")
        assert tunnel.up
    told = [r for r in caplog.records if "open failed" in r.getMessage()]
    assert [r.levelno for r in told].count(logging.WARNING) == 1


# -- closing -----------------------------------------------------------------------------------


def test_close_ends_ssh_and_its_children(sshd: Sshd, echo: dict[str, Any]) -> None:
    tunnel = Tunnel(echo, "box", options=SshOptions(sshd.options)).start()
    assert tunnel.pid is not None
    family = [tunnel.pid, *(p.pid for p in psutil.Process(tunnel.pid).children(recursive=True))]
    tunnel.close()
    tunnel.close()
    assert tunnel.closed
    for pid in family:
        eventually(lambda pid=pid: gone(pid), "the process has ended")
    with socket.socket() as again:
        again.bind(("127.0.0.1", tunnel.ports["shell"]))
    with pytest.raises(TunnelError, match="closed"):
        tunnel.start()


def test_a_listener_may_close_the_tunnel_or_fail(
    sshd: Sshd, echo: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    def listener(up: bool) -> None:
        if up and tunnel.openings == 2:
            tunnel.close()
        raise ValueError("a listener's own fault")

    tunnel = Tunnel(echo, "box", options=SshOptions(sshd.options), on_change=listener).start()
    assert tunnel.up
    assert tunnel.pid is not None
    os.kill(tunnel.pid, signal.SIGKILL)
    eventually(lambda: tunnel.closed and tunnel.pid is None, "the listener closes it")
    assert "a listener's own fault" in caplog.text


@pytest.mark.parametrize("how", ["exit", "SIGKILL"])
@pytest.mark.usefixtures("ssh_on_path")
def test_no_ssh_outlives_its_process(
    sshd: Sshd, echo: dict[str, Any], how: str, tmp_path: Path
) -> None:
    code = f"""
import sys
from kbridge.tunnel.tunnel import open_tunnels, tunnel_to_kernel
tunnel_to_kernel({echo!r}, "box")
print(open_tunnels()[0].pid, flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        pid = int(process.stdout.readline())
        assert not gone(pid)
        if how == "SIGKILL":
            process.kill()
        process.stdin.close()
        assert process.wait(TIMEOUT) == (-signal.SIGKILL if how == "SIGKILL" else 0)
    eventually(lambda: gone(pid), "ssh has ended")


async def test_asyncio(sshd: Sshd, echo: dict[str, Any]) -> None:
    tunnel = await Tunnel.open(echo, "box", options=SshOptions(sshd.options))
    assert await asyncio.to_thread(hear, tunnel.ports) == ITSELF
    await tunnel.aclose()
    await tunnel.aclose()
    assert tunnel.closed


async def test_an_opening_that_is_cancelled(echo: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as dead:
        port = dead.getsockname()[1]
        tunnel = Tunnel(echo, f"nobody@127.0.0.1:{port}", options=SshOptions(["-F", "/dev/null"]))
        opening = asyncio.create_task(tunnel.__aenter__())
        await asyncio.to_thread(eventually, lambda: tunnel.pid, "ssh runs")
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await asyncio.to_thread(eventually, lambda: tunnel.pid is None, "ssh has ended")
        await tunnel.aclose()


@pytest.mark.usefixtures("ssh_on_path")
def test_a_fork_that_ends_closes_nothing(echo: dict[str, Any]) -> None:
    code = f"""
import os, sys
from kbridge.tunnel.tunnel import open_tunnels, tunnel_to_kernel
tunnel_to_kernel({echo!r}, "box")
(tunnel,) = open_tunnels()
pid = os.fork()
if pid:
    os.waitpid(pid, 0)
    assert tunnel.up and tunnel.openings == 1
    os.kill(tunnel.pid, 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, done.stderr


def test_an_account_whose_shell_runs_nothing(
    sshd: Sshd, echo: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", "/usr/sbin/nologin")
    with Tunnel(echo, "box", options=SshOptions(sshd.options)) as tunnel:
        assert tunnel.up
