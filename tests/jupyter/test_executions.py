"""`/api/kernels/{id}/executions` in a Jupyter Server; the kernel is in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from jupyter_server.auth import Authorizer
from jupyter_server.services.kernels.connection.channels import (
    ZMQChannelsWebsocketConnection as PeerConnection,
)
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from kbridge.connection.channels import HUBS
from kbridge.hub.table import HubTable
from kbridge.jupyter.hubs import JupyterHubs
from tests.hub.rig import INFO, KEY
from tests.jupyter.apps import Jupyter
from tests.jupyter.conftest import KERNEL_ID, Kernels
from tests.support.execution_script import ExecutionScript
from tests.support.memory import MemoryKernels

TOKEN = "token-of-the-page"
LIST = f"api/kernels/{KERNEL_ID}/executions"


class Site:
    """A Jupyter Server with the extension and one kernel, which no client has used yet."""

    def __init__(self, jupyter: Jupyter, *argv: str, **kwargs: Any) -> None:
        self.jupyter = jupyter
        self.app = jupyter.start(f"--IdentityProvider.token={TOKEN}", *argv, **kwargs)
        self.kernels = Kernels()
        self.kernels.adopt_twin()
        self.app.web_app.settings["kernel_manager"] = self.kernels
        self.url = jupyter.serve(self.app)
        self.links = MemoryKernels()
        self.hubs = HubTable(link=self.links)

    def run_executions(self) -> None:
        """Let the first execution end, and the second one run."""
        self.app.web_app.settings[HUBS] = JupyterHubs(self.kernels, self.hubs)
        script = ExecutionScript(self.hubs.open(KERNEL_ID, INFO), self.links.latest, KEY)
        script.submit("a/b", cell="c1")
        script.submit("second", cell="c2")
        script.finish("a/b")
        script.begin("second")

    async def ask(
        self, path: str = LIST, method: str = "GET", token: str = TOKEN, **options: Any
    ) -> HTTPResponse:
        return await AsyncHTTPClient().fetch(
            self.url + path,
            method=method,
            headers={"Authorization": f"token {token}"} if token else {},
            raise_error=False,
            **options,
        )


MakeSite = Callable[..., Site]


@pytest.fixture
async def make_site(jupyter: Jupyter) -> AsyncIterator[MakeSite]:
    sites: list[Site] = []

    def make(*argv: str, **kwargs: Any) -> Site:
        sites.append(Site(jupyter, *argv, **kwargs))
        return sites[-1]

    yield make
    for site in sites:
        await site.hubs.aclose()
        assert TOKEN not in jupyter.log
    AsyncHTTPClient().close()


@pytest.fixture
async def site(make_site: MakeSite) -> Site:
    made = make_site()
    made.run_executions()
    return made


def message_of(reply: HTTPResponse) -> str:
    return str(json.loads(reply.body)["message"])


async def test_executions_are_listed_and_described(site: Site) -> None:
    reply = await site.ask()
    first, second = json.loads(reply.body)
    assert reply.headers["Content-Type"].startswith("application/json")
    assert (first["id"], first["state"]) == ("a/b", "done")
    assert (second["id"], second["state"]) == ("second", "running")
    assert json.loads((await site.ask(f"{LIST}?state=running&limit=1")).body) == [second]
    assert json.loads((await site.ask(f"{LIST}/second")).body) == second
    assert json.loads((await site.ask(f"{LIST}/a%2Fb")).body) == first


async def test_the_record_of_an_execution_that_has_ended_is_deleted(site: Site) -> None:
    reply = await site.ask(f"{LIST}/a%2Fb", "DELETE")
    assert (reply.code, reply.body) == (204, b"")
    assert (await site.ask(f"{LIST}/a%2Fb", "DELETE")).code == 404
    assert (await site.ask(f"{LIST}/a%2Fb")).code == 404
    assert (await site.ask(f"{LIST}/second", "DELETE")).code == 204
    assert json.loads((await site.ask(f"{LIST}/second")).body)["state"] == "running"
    assert [e["id"] for e in json.loads((await site.ask()).body)] == ["second"]


async def test_invalid_queries_are_refused_with_the_reason(site: Site) -> None:
    reply = await site.ask(f"{LIST}?state=busy&token={TOKEN}")
    assert reply.code == 400
    assert message_of(reply).startswith("'busy' is not a state;")
    reply = await site.ask(f"{LIST}?limit=0")
    assert (reply.code, message_of(reply)[:27]) == (400, "limit is not a positive num")


async def test_unknown_kernels_and_executions_are_not_found(site: Site) -> None:
    other = KERNEL_ID.replace("5b8e4d0a", "00000000")
    for below in ("", "/second"):
        assert (await site.ask(f"api/kernels/{other}/executions{below}")).code == 404
    reply = await site.ask(f"{LIST}/third")
    assert (reply.code, message_of(reply)) == (404, "no execution has the id 'third'")


async def test_a_kernel_that_no_client_has_used_has_none(make_site: MakeSite) -> None:
    site = make_site()
    assert json.loads((await site.ask()).body) == []
    for method in ("GET", "DELETE"):
        assert (await site.ask(f"{LIST}/x", method)).code == 404


async def test_clients_without_the_token_are_refused(site: Site) -> None:
    for token in ("", "wrong"):
        assert (await site.ask(token=token)).code == 403
        assert (await site.ask(f"{LIST}/a%2Fb", "DELETE", token=token)).code == 403
    assert len(json.loads((await site.ask()).body)) == 2


class ReadOnly(Authorizer):
    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        assert resource == "kernels"
        return action == "read"


class WriteOnly(Authorizer):
    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        assert resource == "kernels"
        return action == "write"


@pytest.mark.parametrize(
    ("authorizer", "statuses"), [(ReadOnly, (200, 200, 403)), (WriteOnly, (403, 403, 204))]
)
async def test_the_authorizer_decides(
    make_site: MakeSite, authorizer: type[Authorizer], statuses: tuple[int, int, int]
) -> None:
    site = make_site(authorizer_class=authorizer)
    site.run_executions()
    replies = [
        await site.ask(),
        await site.ask(f"{LIST}/a%2Fb"),
        await site.ask(f"{LIST}/a%2Fb", "DELETE"),
    ]
    assert tuple(reply.code for reply in replies) == statuses


async def test_other_methods_do_not_exist(site: Site) -> None:
    assert (await site.ask(method="DELETE")).code == 405
    assert (await site.ask(f"{LIST}/second", "PUT", body="{}")).code == 405


async def test_requests_for_executions_are_not_activity(site: Site) -> None:
    settings = site.app.web_app.settings
    before = settings.get("api_last_activity")
    await site.ask()
    await site.ask(f"{LIST}/a%2Fb", "DELETE")
    assert settings.get("api_last_activity") == before


async def test_an_extension_that_is_turned_off_has_no_such_path(make_site: MakeSite) -> None:
    site = make_site("--KbridgeExtension.enabled=False")
    assert (await site.ask()).code == 404


async def test_the_path_ends_when_another_extension_takes_the_websockets(site: Site) -> None:
    site.app.web_app.settings["kernel_websocket_connection_class"] = PeerConnection
    reply = await site.ask()
    assert reply.code == 404
    assert "kbridge does not handle" in message_of(reply)
