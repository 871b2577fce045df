"""The live page in a Jupyter Server; the kernel is in memory."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from jupyter_server.auth import Authorizer
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from kbridge.connection.channels import HUBS
from kbridge.hub.table import HubTable
from kbridge.jupyter.hubs import JupyterHubs
from kbridge.jupyter.page import JupyterSource
from kbridge.page.files import POLICY
from tests.hub.rig import INFO
from tests.jupyter.apps import Jupyter
from tests.jupyter.conftest import KERNEL_ID, Kernels
from tests.support.memory import MemoryKernels
from tests.support.waiting import TIMEOUT

TOKEN = "token-of-the-page"
PATHS = ("kbridge/", "kbridge/console", "kbridge/page/common.css", "kbridge/kbridge.js")


class Site:
    """A Jupyter Server with the extension and one kernel."""

    def __init__(self, jupyter: Jupyter, *argv: str, **kwargs: Any) -> None:
        options = (f"--IdentityProvider.token={TOKEN}", "--ServerApp.base_url=/b/", *argv)
        self.app = jupyter.start(*options, **kwargs)
        self.kernels = Kernels()
        self.kernels.adopt_twin()
        self.settings = self.app.web_app.settings
        self.settings["kernel_manager"] = self.kernels
        self.url = jupyter.serve(self.app)

    async def ask(self, path: str, token: str = TOKEN) -> HTTPResponse:
        client = AsyncHTTPClient(force_instance=True)
        try:
            return await client.fetch(
                self.url + path,
                headers={"Authorization": f"token {token}"} if token else {},
                raise_error=False,
                follow_redirects=False,
            )
        finally:
            client.close()

    async def watch(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Ask for samples."""
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(self.url).port)
        head = f"GET /b/kbridge/api/live HTTP/1.0\r\nAuthorization: token {TOKEN}\r\n\r\n"
        writer.write(head.encode())
        return reader, writer


class Nobody(Authorizer):
    """Permits nothing that concerns kernels."""

    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        return resource != "kernels"


async def sample_of(reader: asyncio.StreamReader) -> Any:
    async with asyncio.timeout(TIMEOUT):
        return json.loads((await reader.readuntil(b"\n\n")).rpartition(b"data: ")[2])


async def test_pages_and_their_files(jupyter: Jupyter) -> None:
    site = Site(jupyter)
    types = []
    for path in PATHS:
        reply = await site.ask(path)
        assert reply.code == 200, path
        types.append(reply.headers["Content-Type"].split(";")[0])
    assert types == ["text/html", "text/html", "text/css", "text/javascript"]
    moved = await site.ask("kbridge")
    assert (moved.code, moved.headers["Location"]) == (302, "/b/kbridge/")
    page = await site.ask("kbridge/")
    assert 'data-api="/b/">' in page.body.decode()
    assert page.headers["Content-Security-Policy"] == POLICY
    assert "_xsrf=" in page.headers["Set-Cookie"]
    assert (await site.ask("kbridge/page/nothing.js")).code == 404
    assert (await site.ask("kbridge/page/../files.py")).code == 404


async def test_jupyter_server_authenticates_and_authorizes(jupyter: Jupyter) -> None:
    site = Site(jupyter)
    for path in PATHS:
        reply = await site.ask(path, token="")
        assert (reply.code, "/b/login" in reply.headers["Location"]) == (302, True), path
    assert (await site.ask("kbridge/api/live", token="wrong")).code == 403
    denied = Site(jupyter, authorizer_class=Nobody)
    for path in (*PATHS, "kbridge/api/live"):
        assert (await denied.ask(path)).code == 403, path


@pytest.mark.parametrize(
    "option", ["--KbridgeExtension.page=False", "--KbridgeExtension.enabled=False"]
)
async def test_the_page_can_be_turned_off(jupyter: Jupyter, option: str) -> None:
    site = Site(jupyter, option)
    for path in (*PATHS[1:], "kbridge", "kbridge/api/live"):
        assert (await site.ask(path)).code == 404, path


async def test_samples_show_the_kernels_of_the_server(jupyter: Jupyter) -> None:
    site = Site(jupyter)
    before = site.settings.get("api_last_activity")
    reader, writer = await site.watch()
    sample = await sample_of(reader)
    [kernel] = sample["kernels"]
    assert kernel["id"] == KERNEL_ID
    assert "clients" not in kernel, "no client has used it yet"
    assert sample["started"] <= sample["now"]
    assert site.settings.get("api_last_activity") == before
    table = HubTable(link=MemoryKernels())
    site.settings[HUBS] = JupyterHubs(site.kernels, table)
    table.open(KERNEL_ID, INFO)
    try:
        while "clients" not in (await sample_of(reader))["kernels"][0]:
            pass
        await site.app.kernel_websocket_connection_class.close_all()  # the server ends
        async with asyncio.timeout(TIMEOUT):
            await reader.read()
    finally:
        writer.close()
        await table.aclose()


async def test_processes_are_those_of_provisioners(jupyter: Jupyter) -> None:
    site = Site(jupyter)
    source = JupyterSource(site.settings)
    assert source.pids() == {}
    assert source.table is None

    class Process:
        pid = 123

    class Provisioner:
        process = Process()

    site.kernels.get_kernel(KERNEL_ID).provisioner = Provisioner()  # type: ignore[assignment]
    assert source.pids() == {KERNEL_ID: 123}


async def test_a_kernel_whose_manager_fails_hides_no_other(
    jupyter: Jupyter, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(jupyter)
    source = JupyterSource(site.settings)
    [known] = source.kernels()
    good = site.kernels.get_kernel

    def get(kernel_id: str) -> Any:
        if kernel_id == "odd":
            raise RuntimeError("on purpose")
        return good(kernel_id)

    monkeypatch.setattr(site.kernels, "get_kernel", get)
    monkeypatch.setattr(site.kernels, "list_kernel_ids", lambda: ["odd", KERNEL_ID])
    assert source.kernels() == [("odd", "unknown", "unknown"), known]
    assert source.pids() == {}
