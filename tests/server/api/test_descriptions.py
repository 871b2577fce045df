import json
from typing import Any

import yaml

from kbridge.server.api import openapi, swagger


async def test_the_description_in_swagger_is_served(start: Any) -> None:
    running = await start(base_url="/b/")
    told = json.loads((await running.ask("GET", "/api/swagger.json")).body)
    assert told == swagger.describe("/b/")
    for path in ("/api/spec.yaml", "/api/swagger.yaml"):
        reply = await running.ask("GET", path)
        assert "yaml" in reply.headers["Content-Type"]
        assert yaml.safe_load(reply.body) == told


async def test_the_description_in_openapi_is_served(start: Any) -> None:
    running = await start(base_url="/b/")
    reply = await running.ask("GET", "/api/openapi.json")
    assert reply.headers["Content-Type"] == "application/json"
    assert json.loads(reply.body) == openapi.describe("/b/", "kbridge-test")
    assert (await running.ask("GET", "/api/openapi.json", token=None)).code == 403
