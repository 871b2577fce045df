import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kbridge import HubTable, __version__
from kbridge.hub.settings import HubSettings
from kbridge.link import MemoryKernel
from tests.hub.rig import INFO


async def test_version(running: Any) -> None:
    reply = await running.ask("GET", "/api", token=None)
    assert json.loads(reply.body) == {"version": __version__}
    assert (await running.ask("GET", "/api/", token=None)).code == 200
    head = await running.ask("HEAD", "/api", token=None)
    assert (head.code, head.body) == (200, b"")


async def test_status(start: Any) -> None:
    now = 1_000_000_000.5
    running = await start(clock=lambda: now)

    async def status() -> dict[str, Any]:
        return dict(json.loads((await running.ask("GET", "/api/status")).body))

    assert await status() == {
        "started": "2001-09-09T01:46:40.500000Z",
        "last_activity": "2001-09-09T01:46:40.500000Z",
        "connections": 0,
        "kernels": 0,
    }
    now += 1.25
    assert (await status())["last_activity"].startswith("2001-09-09T01:46:40"), (
        "reading the status is not activity"
    )
    await running.ask("GET", "/api/kernels?no_track_activity=1")
    assert (await status())["last_activity"].startswith("2001-09-09T01:46:40")
    await running.ask("GET", "/api/kernels")
    assert (await status())["last_activity"] == "2001-09-09T01:46:41.750000Z"
    await running.kernels.start_kernel()
    found = await status()
    assert (found["kernels"], found["connections"]) == (1, 2)
    assert found["last_activity"] == "2030-01-01T00:00:00.000000Z"


async def test_counters_of_the_hubs(start: Any) -> None:
    running = await start(hubs=HubTable(link=MemoryKernel))

    async def hubs(query: str) -> Any:
        return json.loads((await running.ask("GET", f"/api/status{query}")).body).get("hubs")

    assert await hubs("?statistics=1") == []
    running.services.hubs.open("a-kernel", INFO)
    try:
        [hub] = await hubs("?statistics=1")
        assert (hub["kernel_id"], hub["refused_kernel_messages"]) == ("a-kernel", 0)
        assert hub["journal"]
        assert await hubs("") is None
        assert await hubs("?statistics=0") is None
    finally:
        await running.services.hubs.aclose()


async def test_counters_of_the_journals(start: Any, tmp_path: Path) -> None:
    hubs = HubTable(HubSettings(journal_dir=str(tmp_path)), link=MemoryKernel)
    running = await start(hubs=hubs)

    async def status(query: str) -> Any:
        return json.loads((await running.ask("GET", f"/api/status{query}")).body)

    assert (await status("?statistics=1"))["journals"] == {}
    await hubs.open_journal()
    try:
        hubs.open("a-kernel", INFO)
        journals = (await status("?statistics=1"))["journals"]
        assert (journals["kernels"], journals["failing_kernels"]) == (1, 0)
        assert "journals" not in await status("")
    finally:
        await hubs.aclose()


async def test_counters_do_not_name_kernels_that_may_not_be_listed(start: Any) -> None:
    running = await start(list_kernels=False, hubs=HubTable(link=MemoryKernel))
    running.services.hubs.open("a-kernel", INFO)
    try:
        body = (await running.ask("GET", "/api/status?statistics=1")).body
        assert b"refused_kernel_messages" in body
        assert b"a-kernel" not in body
    finally:
        await running.services.hubs.aclose()


async def test_refused_requests_do_not_count_as_activity(start: Any) -> None:
    now = 1_000_000_000.0
    running = await start(clock=lambda: now)
    before = running.services.activity.last_request
    now += 10
    await running.ask("GET", "/api/kernels", token="wrong")
    assert running.services.activity.last_request == before


async def test_timestamps_always_have_microseconds(start: Any) -> None:
    running = await start(clock=lambda: 1_000_000_000.0)
    found = json.loads((await running.ask("GET", "/api/status")).body)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", found["started"])


async def test_me(running: Any, error_of: Any) -> None:
    found = json.loads((await running.ask("GET", "/api/me")).body)
    assert set(found) == {"identity", "permissions"}
    assert found["identity"]["username"]
    assert found["permissions"] == {}
    wanted = '{"kernels":["read","write"]}'
    reply = await running.ask("GET", f"/api/me?permissions={quote(wanted)}")
    assert json.loads(reply.body)["permissions"] == {"kernels": ["read", "write"]}
    for bad in ("{", "[]", '{"kernels": "read"}', '{"kernels": [1]}', "[" * 5_000):
        reply = await running.ask("GET", f"/api/me?permissions={quote(bad)}")
        assert error_of(reply)[0] == 400
    assert (await running.ask("GET", "/api/me", token=None)).code == 403
