"""Real OpenSSH servers, and kernels that are reached through them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kbridge.tunnel.tunnel import open_tunnels
from tests.support.sshd import Sshd
from tests.tunnel.echo import echo_kernel


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A server that is shared, and that no test stops."""
    running = Sshd(tmp_path_factory.mktemp("sshd"))
    try:
        yield running.start()
    finally:
        running.stop()


@pytest.fixture
def own_sshd(tmp_path: Path) -> Iterator[Sshd]:
    """A server for one test, which may stop it; not started."""
    (home := tmp_path / "sshd").mkdir()
    server = Sshd(home)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def echo() -> Iterator[dict[str, Any]]:
    """The connection info of five echo servers."""
    with echo_kernel() as info:
        yield info


@pytest.fixture
def no_tunnel_is_left() -> Iterator[None]:
    """Check that the test has closed its tunnels."""
    yield
    left = open_tunnels()
    for tunnel in left:
        tunnel.close()
    assert not left


@pytest.fixture
def ssh_on_path(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put an `ssh` that reads the configuration of the test first on the PATH."""
    wrapper = tmp_path / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F "{sshd.config}" "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}")
    return wrapper
