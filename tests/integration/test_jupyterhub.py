"""A real JupyterHub with kbridge as its service, and as the gateway of a user's server."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

import kbridge.client
from tests.support.browser import chromium_page
from tests.support.client import dial
from tests.support.jupyterhub import ADMIN, PASSWORD, Hub, jupyterhub
from tests.support.require import require
from tests.support.server import Reply
from tests.support.waiting import TIMEOUT, eventually

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

SERVICE = "services/kbridge"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    require("ipykernel")
    with jupyterhub(
        tmp_path_factory.mktemp("hub"),
        "--KbridgeApp.hub_activity_seconds=0.5",
        "--KbridgeApp.hub_cache_seconds=2",
    ) as made:
        for user in ("carol", "dave"):  # side by side, while other tests run
            made.token(user)
            assert made.api("POST", f"users/{user}/server").status in (201, 202)
        yield made


def kernel_of(hub: Hub, user: str) -> str:
    reply = hub.service("POST", "api/kernels", user=user)
    assert reply.status == 201, reply
    return str(reply.json()["id"])


async def in_thread(method: Any, *args: Any, **kwargs: Any) -> Any:
    return await asyncio.to_thread(method, *args, **kwargs)


async def run(url: str, token: str, kernel_id: str, code: str) -> str:
    """Execute code with the client library; return the text that it prints."""
    async with asyncio.timeout(TIMEOUT), kbridge.client.connect(url, token) as client:
        execution = await (await client.kernel(kernel_id)).execute(code)
        return "".join([output.text async for output in execution])


async def websocket_status(hub: Hub, user: str, kernel_id: str) -> int:
    url = f"ws{hub.url.removeprefix('http')}/{SERVICE}/api/kernels/{kernel_id}/channels"
    try:
        async with connect(f"{url}?token={hub.token(user)}", open_timeout=TIMEOUT):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


async def test_users_reach_their_own_kernels_with_tokens_of_the_hub(hub: Hub) -> None:
    hers = await in_thread(kernel_of, hub, "alice")
    url = f"{hub.url}/{SERVICE}"
    code = "import os; print(sorted(n for n in os.environ if 'HUB' in n or 'TOKEN' in n))"
    assert await run(url, hub.token("alice"), hers, code) == "[]\n"
    code = "import os; print(os.environ['KERNEL_USERNAME'])"
    assert await run(url, hub.token("alice"), hers, code) == "alice\n"

    def ask(user: str, path: str, method: str = "GET") -> Reply:
        return hub.service(method, path, user=user)

    for user, seen in (("alice", True), ("bob", False), (ADMIN, True)):
        listed = await in_thread(ask, user, "api/kernels")
        assert (hers in [model["id"] for model in listed.json()]) is seen
        executions = await in_thread(ask, user, f"api/kernels/{hers}/executions")
        assert executions.status == (200 if seen else 404)
        assert (await websocket_status(hub, user, hers) == 101) is seen
        status = await in_thread(ask, user, "api/status?statistics=1")
        assert (hers in str(status.json())) is seen
    for path in (f"api/kernels/{hers}/interrupt", f"api/kernels/{hers}/restart"):
        assert (await in_thread(ask, "bob", path, "POST")).status == 404
    assert [(await in_thread(ask, user, "metrics")).status for user in ("bob", ADMIN)] == [403, 200]
    assert (await in_thread(ask, "bob", f"api/kernels/{hers}", "DELETE")).status == 404
    assert (await in_thread(ask, "alice", f"api/kernels/{hers}", "DELETE")).status == 204


def test_the_scopes_of_a_token_count(hub: Hub) -> None:
    access = f"access:services!service={SERVICE.rpartition('/')[2]}"

    def status(token: str, path: str) -> int:
        return hub.request("GET", f"/{SERVICE}/{path}", token=token).status

    assert status(hub.token("alice", "read:users!user"), "api/kernels") == 403
    allowed = hub.token("alice", access)
    assert status(allowed, "api/kernels") == 200
    # An administrator's token with fewer scopes is that of a user.
    assert status(hub.token(ADMIN, access), "metrics") == 403
    assert status(hub.token(ADMIN, access, "custom:kbridge:admin"), "metrics") == 200
    assert status("no-token-at-all", "api/kernels") == 403
    hub.withdraw("alice", allowed)
    eventually(lambda: status(allowed, "api/kernels") == 403, "the withdrawn token is refused")


def test_only_administrators_restart_the_service_and_users_outlive_it(hub: Hub) -> None:
    hers = kernel_of(hub, "alice")
    assert hub.service("POST", "api/restart", user="alice").status == 403

    def started() -> str:
        reply = hub.service("GET", "api/status", user=ADMIN)
        return str(reply.json()["started"]) if reply.status == 200 else ""

    before = started()
    assert hub.service("POST", "api/restart", user=ADMIN).status == 200
    eventually(lambda: started() not in (before, ""), "the next program answers")
    assert hub.service("GET", f"api/kernels/{hers}", user="bob").status == 404
    assert hub.service("DELETE", f"api/kernels/{hers}", user="alice").status == 204


def runtime_file(hub: Hub) -> str:
    found = [path.read_text() for path in (hub.home / "runtime").glob("kbserver-*.json")]
    return "".join(found)


async def test_activity_reaches_the_hub(hub: Hub) -> None:
    """Without requests in the meantime: each question about a token is an activity, too."""
    kernel_id = await in_thread(kernel_of, hub, "erin")
    code = "import time; time.sleep(3); print(time.time())"
    done = float(await run(f"{hub.url}/{SERVICE}", hub.token("erin"), kernel_id, code))

    def reported() -> bool:
        last = hub.api("GET", "users/erin").json()["last_activity"]
        return datetime.fromisoformat(last).timestamp() > done

    await in_thread(eventually, reported, "the activity of the kernel is at JupyterHub")


async def server_of(hub: Hub, user: str) -> str:
    """Wait for the server of a user; return its address."""

    def ready() -> bool:
        servers = hub.api("GET", f"users/{user}").json()["servers"]
        return bool(servers and servers[""]["ready"])

    await in_thread(eventually, ready, f"the server of {user} is ready", 4 * TIMEOUT)
    return f"{hub.url}/user/{user}"


async def test_the_server_of_a_user_has_its_kernels_in_kbridge(hub: Hub) -> None:
    """With the token that JupyterHub gives that server."""
    base = await server_of(hub, "carol")
    path = f"{base.removeprefix(hub.url)}/api/kernels"
    token = hub.token("carol")
    started = await in_thread(hub.request, "POST", path, token=token, body={"name": "python3"})
    assert started.status == 201, started
    kernel_id = started.json()["id"]
    url = f"ws{base.removeprefix('http')}/api/kernels/{kernel_id}/channels"
    headers = {"Authorization": f"token {token}"}
    async with dial(url, "legacy", additional_headers=headers) as client:
        assert (await client.execute("print(6 * 7)")).text() == "42\n"
    found = await in_thread(hub.service, "GET", f"api/kernels/{kernel_id}", user="carol")
    assert (found.status, found.json()["user"]) == (200, "carol")
    assert (
        await in_thread(hub.service, "GET", f"api/kernels/{kernel_id}", user="bob")
    ).status == 404
    # Neither does her server see the kernels of others.
    other = await in_thread(kernel_of, hub, "bob")
    listed = await in_thread(hub.request, "GET", path, token=token)
    assert other not in [model["id"] for model in listed.json()]
    assert (
        await in_thread(hub.request, "DELETE", f"{path}/{kernel_id}", token=token)
    ).status == 204


async def test_the_extension_serves_the_server_of_a_user(hub: Hub) -> None:
    base = await server_of(hub, "dave")
    path = f"{base.removeprefix(hub.url)}/api/kernels"
    token = hub.token("dave")
    started = await in_thread(hub.request, "POST", path, token=token, body={"name": "python3"})
    kernel_id = started.json()["id"]
    code = "import os; print('JUPYTERHUB_API_TOKEN' in os.environ)"
    # In a user's server, the token is that of the user, and kernels have it as ever.
    assert await run(base, token, kernel_id, code) == "True\n"
    listed = await in_thread(hub.request, "GET", f"{path}/{kernel_id}/executions", token=token)
    assert [entry["state"] for entry in listed.json()] == ["done"]
    await in_thread(hub.request, "DELETE", f"{path}/{kernel_id}", token=token)


@pytest.mark.browser
async def test_users_log_in_at_the_hub_with_a_browser(hub: Hub) -> None:
    url = f"{hub.url}/{SERVICE}/"
    hers = await in_thread(kernel_of, hub, "alice")
    async with chromium_page() as page:
        await log_in(page, url, "alice")
        await page.wait_for_selector("#connection[data-state=live]")
        await page.wait_for_selector(f"[data-kernel='{hers}'] :text('started by alice')")
        [cookie] = [c for c in await page.context.cookies(url) if c["name"].startswith("kbridge-")]
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
        assert cookie["path"] == f"/{SERVICE}/"
        await page.goto(f"{url}console?kernel={hers}")
        await page.wait_for_selector("html[data-restored=yes]")
        await page.fill("#editor", "print(6 * 7)")
        await page.press("#editor", "Shift+Enter")
        await page.wait_for_selector(".cell:last-child .stdout:has-text('42')")
        # A browser's change from another page is refused, although it sends the cookie.
        forged = await page.context.request.post(f"{url}api/kernels")
        assert forged.status == 403
        await page.goto(f"{url}logout")
        assert "kbridge-" not in str(await page.context.cookies(url))
        await page.goto(url)
        await page.wait_for_selector("#username_input")
    async with chromium_page() as page:
        await log_in(page, url, "bob")
        await page.wait_for_selector("#connection[data-state=live]")
        shown = await page.locator("[data-kernel]").evaluate_all(
            "all => all.map(e => e.dataset.kernel)"
        )
        assert hers not in shown
        await page.goto(f"{url}console?kernel={hers}")
        await page.wait_for_selector(f"text=There is no kernel {hers}")


async def log_in(page: Any, url: str, user: str) -> None:
    """Open a page of kbridge; JupyterHub asks who the user is, and whether kbridge may know."""
    page.set_default_timeout(TIMEOUT * 1000)
    await page.goto(url)
    await page.fill("#username_input", user)
    await page.fill("#password_input", PASSWORD)
    await page.click("#login_submit")
    await page.click("button:has-text('Authorize')")
    await page.wait_for_url(url)


async def test_a_login_that_another_browser_has_begun_is_refused(hub: Hub) -> None:
    reply = await in_thread(
        hub.request, "GET", f"/{SERVICE}/oauth_callback?code=stolen-code&state=of-another-browser"
    )
    assert reply.status == 403
    assert "has not begun this login" in reply.json()["message"]


def test_no_secret_is_logged(hub: Hub) -> None:
    kernel_of(hub, "alice")
    hub.request("GET", f"/{SERVICE}/api/kernels?token={hub.token('alice')}")
    hub.request("GET", f"/{SERVICE}/oauth_callback?code=stolen-code&state=x")
    [pid] = re.findall(r'"pid": (\d+)', runtime_file(hub))
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    [token] = [v for v in environment if v.startswith(b"JUPYTERHUB_API_TOKEN=")]
    operator = re.findall(r'"token": "(\w+)"', runtime_file(hub))
    log = hub.log.read_text()
    secrets = [token.partition(b"=")[2].decode(), hub.token("alice"), "stolen-code", *operator]
    assert [secret for secret in secrets if secret in log] == []
    assert os.environ.get("JUPYTERHUB_API_TOKEN") is None
