from pathlib import Path
from typing import Any

import kbridge

MODULE = Path(kbridge.__file__).parents[1] / "client-js" / "kbridge.js"


async def test_the_module_is_the_file_of_the_package(start: Any) -> None:
    running = await start(base_url="/b/")
    reply = await running.ask("GET", "/kbridge.js", token=None)
    assert reply.code == 200
    assert reply.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Connection"] == "close"
    assert reply.body == MODULE.read_bytes()
    assert len(reply.body) < 65_536, "docs/threat-model.md names the size"


async def test_a_browser_that_has_the_module_does_not_load_it_again(running: Any) -> None:
    reply = await running.ask("GET", "/kbridge.js", token=None)
    assert reply.headers["Cache-Control"] == "public, no-cache"
    etag = {"If-None-Match": reply.headers["Etag"]}
    again = await running.ask("GET", "/kbridge.js", token=None, headers=etag)
    assert (again.code, again.body) == (304, b"")
    head = await running.ask("HEAD", "/kbridge.js", token=None)
    assert (head.code, head.body) == (200, b"")


async def test_only_pages_of_allowed_origins_can_load_it(start: Any) -> None:
    running = await start(policy={"allow_origin": ("https://page.example",)})
    for origin, code in (("https://page.example", 200), ("https://other.example", 403)):
        reply = await running.ask("GET", "/kbridge.js", token=None, headers={"Origin": origin})
        allowed = reply.headers.get("Access-Control-Allow-Origin", "")
        assert (reply.code, allowed == origin) == (code, code == 200)
