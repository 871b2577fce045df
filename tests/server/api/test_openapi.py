import re
from typing import Any

from tornado import web

from kbridge.server.api import openapi
from kbridge.server.api.routes import ROUTES
from kbridge.server.api.websocket import ChannelsHandler
from tests.support.require import require

METHODS = ("get", "head", "post", "patch", "put", "delete")
# Pages for people, and what they load.
PAGES = ("/", "/tree", "/readme", "/favicon.ico", "/console")
ALL_ROUTES = [*ROUTES, (r"/api/kernels/([^/]+)/channels", ChannelsHandler)]


def path_of(pattern: str) -> str:
    return re.sub(r"\(.*?\)", "{}", pattern).removesuffix("/?")


def test_every_route_is_described_with_its_methods() -> None:
    described = {
        re.sub(r"\{\w+\}", "{}", path): {name for name in found if name in METHODS}
        for path, found in openapi.describe("/")["paths"].items()
    }
    unset = web.RequestHandler.get
    routes = {
        path_of(pattern): {name for name in METHODS if getattr(handler, name) is not unset}
        for pattern, handler in ALL_ROUTES
        if path_of(pattern) not in PAGES and not pattern.startswith("/page/")
    }
    assert described == routes


def test_routes_without_a_token_are_described_as_such() -> None:
    public = {path_of(p) for p, handler in ALL_ROUTES if getattr(handler, "public", False)}
    found = openapi.describe("/")["paths"]
    described = {
        re.sub(r"\{\w+\}", "{}", path)
        for path, item in found.items()
        if any(item[name].get("security") == [] for name in METHODS if name in item)
    }
    # `/metrics` has a token that opens nothing else, which its handler checks.
    assert described == {path for path in public if path not in PAGES} - {"/metrics"}


def test_it_is_valid() -> None:
    require("openapi_spec_validator")
    from openapi_spec_validator import OpenAPIV31SpecValidator

    OpenAPIV31SpecValidator(openapi.describe("/base/")).validate()


def test_every_reference_is_used_and_found() -> None:
    document = openapi.describe("/")
    used = set(re.findall(r"#/components/(\w+/\w+)", str(document)))
    there = {
        f"{kind}/{name}"
        for kind in ("schemas", "responses")
        for name in document["components"][kind]
    }
    assert used == there


def test_the_server_is_the_base_url() -> None:
    assert openapi.describe("/")["servers"] == [{"url": "/"}]
    assert openapi.describe("/user/a%20b/")["servers"] == [{"url": "/user/a%20b"}]


def test_the_security_schemes_that_are_named_exist() -> None:
    document = openapi.describe("/", "kbridge-8888-abc")
    schemes: dict[str, Any] = document["components"]["securitySchemes"]
    assert schemes["cookie"]["name"] == "kbridge-8888-abc"
    named = {name for scheme in document["security"] for name in scheme}
    named |= {
        name
        for item in document["paths"].values()
        for method in METHODS
        for scheme in item.get(method, {}).get("security", ())
        for name in scheme
    }
    assert named == set(schemes)


def test_replies_503_say_when_to_try_again() -> None:
    reply = openapi.describe("/")["components"]["responses"]["503"]
    assert reply["headers"]["Retry-After"]["required"]
