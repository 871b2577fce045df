import json
from typing import Any


async def test_life_of_a_session(running: Any, error_of: Any) -> None:
    body = {"path": "a.ipynb", "type": "notebook"}
    created = await running.ask("POST", "/api/sessions", body=body)
    model = json.loads(created.body)
    path = f"/api/sessions/{model['id']}"
    assert (created.code, created.headers["Location"]) == (201, path)
    assert json.loads((await running.ask("GET", "/api/sessions")).body) == [model]
    patched = await running.ask("PATCH", path, body={"path": "b.ipynb"})
    assert json.loads(patched.body)["path"] == "b.ipynb"
    assert json.loads((await running.ask("GET", path)).body)["path"] == "b.ipynb"
    assert (await running.ask("DELETE", path)).code == 204
    for method in ("GET", "PATCH", "DELETE"):
        assert error_of(await running.ask(method, path, body=b""))[:2] == (404, "Not Found")


async def test_malformed_bodies(running: Any, error_of: Any) -> None:
    assert error_of(await running.ask("POST", "/api/sessions", body=b"{"))[0] == 400
    assert error_of(await running.ask("PATCH", "/api/sessions/x", body=b"[]"))[0] == 400
