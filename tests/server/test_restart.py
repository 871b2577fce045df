"""A restart within the process: the losses, and the sockets that are passed on."""

from __future__ import annotations

import errno
import logging
import os
import socket
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

import kbridge
from kbridge.errors import Conflict
from kbridge.hub.settings import HubSettings
from kbridge.link.holder.client import is_supported
from kbridge.server.restart import (
    check_losses,
    check_successors,
    inherited_sockets,
    installed_version,
    no_holder,
    pass_sockets,
    start_again,
)
from kbridge.tunnel import tunnel

KEEPS = HubSettings(link="auto", journal_dir="/a/directory")


@dataclass
class Kernel:
    kernel_id: str = "one"
    connections_stay: bool = True
    outlives_server: bool = False
    hub: Any = None


def refusal(*kernels: Any, settings: HubSettings = KEEPS, registry: bool = True) -> str:
    with pytest.raises(Conflict) as refused:
        check_losses(kernels, settings, registry=registry)
    return refused.value.reason


def test_nothing_is_lost() -> None:
    check_losses([], KEEPS, registry=False)
    check_losses([Kernel()], KEEPS, registry=True)
    check_losses([Kernel(outlives_server=True)], KEEPS, registry=False)


def test_kernels_that_the_next_program_would_not_find() -> None:
    assert "would end 1 kernel (one)" in refusal(Kernel(), registry=False)


def test_connections_that_do_not_stay() -> None:
    cut = [Kernel(str(number), connections_stay=False) for number in range(7)]
    said = refusal(Kernel("kept"), *cut)
    assert "of 7 kernels (0, 1, 2, 3, 4, ...) during a restart would be lost" in said
    assert "encrypted" in said or not is_supported()


def test_requests_that_a_kernel_has_not_received() -> None:
    check_losses([Kernel(hub=SimpleNamespace(waiting_requests=0))], KEEPS, registry=True)
    said = refusal(Kernel(), Kernel("two", hub=SimpleNamespace(waiting_requests=3)))
    assert said.startswith("requests that wait for 1 kernel (two) would be lost: ")


def test_kernels_that_no_other_replica_can_take() -> None:
    gone = Kernel("one", connections_stay=False)
    check_successors([gone], [])
    with pytest.raises(Conflict) as refused:
        check_successors([gone, Kernel("two", connections_stay=False)], ["two"])
    said = refused.value.reason
    assert said.startswith("output, replies and input requests of 1 kernel (two)")
    assert "no other replica of the cluster" in said
    assert "--force" in said
    with pytest.raises(Conflict, match="requests that wait for 1 kernel"):
        check_successors([Kernel(hub=SimpleNamespace(waiting_requests=3))], [])


@pytest.mark.skipif(not is_supported(), reason="needs Linux")
def test_reasons() -> None:
    assert no_holder(KEEPS) == ""
    assert "journal_dir is empty" in no_holder(replace(KEEPS, journal_dir=""))
    assert "link is pyzmq" in no_holder(replace(KEEPS, link="pyzmq"))
    said = refusal(Kernel(connections_stay=False), settings=replace(KEEPS, link="pyzmq"))
    assert "link is pyzmq (auto keeps connections). `kbridge restart --force`" in said


def test_the_installed_version() -> None:
    assert installed_version() == kbridge.__version__


def test_a_package_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(Conflict, match="cannot be imported") as refused:
        installed_version()
    assert "--force" not in refused.value.reason


def test_sockets_are_passed_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        name = listener.getsockname()
        pass_sockets("an address", [listener])
    [inherited] = inherited_sockets("an address")
    with inherited, socket.create_connection(name):
        connection, _ = inherited.accept()
        connection.close()
        assert not inherited.get_inheritable()
        assert not inherited.getblocking()
    assert inherited_sockets("an address") == [], "once only"


def test_other_settings_do_not_use_the_sockets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        name = listener.getsockname()
        pass_sockets("an address", [listener])
    assert inherited_sockets("another address") == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(name)


def test_a_child_does_not_use_the_sockets_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pass_sockets("an address", [listener])
        [inherited] = inherited_sockets("an address")
        pass_sockets("an address", [inherited])
        monkeypatch.setattr(os, "getpid", lambda: 1)
        assert inherited_sockets("an address") == []
        inherited.close()


def test_hooks_that_run_at_the_exit_run_before_the_next_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []

    def execv(*_: object) -> None:
        said.append("exec")
        raise OSError(errno.ENOENT, "missing")

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr(tunnel, "close_tunnels", lambda: said.append("tunnels"))
    monkeypatch.setattr(logging, "shutdown", lambda: said.append("logs"))
    with pytest.raises(SystemExit):
        start_again(logging.getLogger("kbridge.test.restart"))
    assert said == ["tunnels", "logs", "exec"]
