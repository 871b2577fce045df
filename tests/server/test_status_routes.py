import json
import re
from typing import Any

from kbridge import __version__


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
    assert (await status())["last_activity"].startswith("2001-09-09T01:46:40"), "to look is no act"
    await running.ask("GET", "/api/kernels?no_track_activity=1")
    assert (await status())["last_activity"].startswith("2001-09-09T01:46:40")
    await running.ask("GET", "/api/kernels")
    assert (await status())["last_activity"] == "2001-09-09T01:46:41.750000Z"
    await running.kernels.start_kernel()
    found = await status()
    assert (found["kernels"], found["connections"]) == (1, 2)
    assert found["last_activity"] == "2030-01-01T00:00:00.000000Z"


async def test_who_is_kept_out_is_no_activity(start: Any) -> None:
    now = 1_000_000_000.0
    running = await start(clock=lambda: now)
    before = running.services.last_request
    now += 10
    await running.ask("GET", "/api/kernels", token="wrong")
    assert running.services.last_request == before


async def test_timestamps_always_have_microseconds(start: Any) -> None:
    running = await start(clock=lambda: 1_000_000_000.0)
    found = json.loads((await running.ask("GET", "/api/status")).body)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", found["started"])
