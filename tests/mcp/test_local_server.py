"""The server of one `kbridge mcp`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from kbridge.client import connect
from kbridge.errors import BridgeError, Forbidden
from kbridge.mcp.local_server import local_server
from tests.support.waiting import TIMEOUT


@pytest.fixture(autouse=True)
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory for config files."""
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("KBRIDGE_URL", "http://127.0.0.1:1")
    return tmp_path


@pytest.mark.kernel
async def test_it_serves_the_owner_of_the_token_until_the_end() -> None:
    async with asyncio.timeout(TIMEOUT), local_server() as (url, token):
        async with connect(url, token) as server:
            assert await server.kernels() == []
        with pytest.raises(Forbidden):
            async with connect(url, "wrong"):
                pass
        folder = Path(unquote(urlsplit(url).netloc)).parent
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()


async def test_a_server_that_does_not_start_says_why(configuration: Path) -> None:
    (configuration / "jupyter_config.py").write_text("c.KbridgeApp.prot = 1\n")
    with pytest.raises(BridgeError, match=r"did not start.*port"):
        async with asyncio.timeout(TIMEOUT), local_server():
            pass


@pytest.mark.kernel
async def test_it_starts_on_other_platforms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python imports the module before the server's program."""
    (tmp_path / "sitecustomize.py").write_text(
        "import psutil, sys, sysconfig  # psutil has a module for each platform\n"
        "sysconfig.get_config_vars()  # from a file with the name of the platform\n"
        "sys.platform = 'another'\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with asyncio.timeout(TIMEOUT), local_server() as (url, token), connect(url, token) as it:
        assert await it.kernels() == []
