import json
from typing import Any

import pytest

from kbridge.errors import InvalidRequest
from kbridge.server.api.rest import env_of


async def test_a_kernel_is_started_interrupted_restarted_and_shut_down(
    running: Any, error_of: Any
) -> None:
    created = await running.ask("POST", "/api/kernels", body={"name": "fake"})
    model = json.loads(created.body)
    assert created.code == 201
    assert created.headers["Location"] == f"/api/kernels/{model['id']}"
    path = created.headers["Location"]
    assert json.loads((await running.ask("GET", "/api/kernels")).body) == [model]
    assert json.loads((await running.ask("GET", path)).body) == model
    interrupted = await running.ask("POST", f"{path}/interrupt")
    assert (interrupted.code, interrupted.body) == (204, b"")
    restarted = await running.ask("POST", f"{path}/restart")
    assert (restarted.code, json.loads(restarted.body)) == (200, model)
    assert [what for what, _ in running.kernels.calls] == ["interrupt", "restart"]
    deleted = await running.ask("DELETE", path)
    assert (deleted.code, deleted.body) == (204, b"")
    for method, below in (
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/interrupt"),
        ("POST", "/restart"),
    ):
        status, reason, message = error_of(await running.ask(method, path + below))
        assert (status, reason) == (404, "Not Found")
        assert model["id"] in message


@pytest.mark.parametrize(
    ("body", "started"),
    [
        (None, {"name": None, "env": None, "path": None}),
        ("", {"name": None, "env": None, "path": None}),
        ({}, {"name": None, "env": None, "path": None}),
        ({"name": None}, {"name": None, "env": None, "path": None}),
        ({"name": ""}, {"name": None, "env": None, "path": None}),
        (
            {"name": "fake", "env": {"KERNEL_USER": "ö"}, "path": "a/b"},
            {"name": "fake", "env": {"KERNEL_USER": "ö"}, "path": "a/b"},
        ),
    ],
)
async def test_the_body_of_a_start_request_is_passed_to_the_manager(
    running: Any, body: Any, started: Any
) -> None:
    assert (await running.ask("POST", "/api/kernels", body=body)).code == 201
    assert running.kernels.started == [started]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "not JSON"),
        (b"\xff", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"[]", 400, "not a JSON object"),
        (b'"text"', 400, "not a JSON object"),
        ({"name": 1}, 400, "name is not of type str"),
        ({"path": []}, 400, "path is not of type str"),
        ({"env": []}, 400, "env is not of type dict"),
        ({"env": {"KERNEL_A": 1}}, 400, "env is not an object of strings"),
        ({"name": "missing"}, 404, "no kernelspec is named missing"),
        ({"name": "dies"}, 500, "it died\nthe last line of its log"),
    ],
)
async def test_errors_of_a_start_are_answered_with_their_status(
    running: Any, error_of: Any, body: Any, status: int, says: str
) -> None:
    found, _, message = error_of(await running.ask("POST", "/api/kernels", body=body))
    assert found == status
    assert says in message
    assert running.kernels.started == []


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A\0": "x"}, {"A": "\0"}])
def test_invalid_environment_variables_are_refused(env: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        env_of({"env": env})


async def test_listing_may_be_off(start: Any, error_of: Any) -> None:
    running = await start(list_kernels=False)
    created = await running.ask("POST", "/api/kernels")
    for path in ("/api/kernels", "/api/sessions"):
        assert error_of(await running.ask("GET", path))[0] == 403
    assert (await running.ask("GET", created.headers["Location"])).code == 200


async def test_below_a_base_url(start: Any) -> None:
    running = await start(base_url="/user/me/")
    created = await running.ask("POST", "/api/kernels")
    assert created.headers["Location"].startswith("/user/me/api/kernels/")
    assert (await running.ask("GET", "")).headers["Location"] == "/user/me/"
    outside = await running.client.fetch(f"http://127.0.0.1:{running.port}/api", raise_error=False)
    assert outside.code == 404
