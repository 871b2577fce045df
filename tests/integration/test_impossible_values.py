"""REST bodies with values that no kernel, file or session can have: a 4xx with a reason."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import Reply, Server

ODD: dict[str, Any] = {
    "long": "x" * 200_000,
    "many parts": "a/" * 60_000,
    "many dots": "../" * 40_000,
    "half a character": "\ud800",
    "the other half": "\udc80",
    "a NUL": "a\0b",
    "control characters": "\x1b[31m\n\x01",
    "empty": "",
    "a number": 5,
    "a huge number": 10**400,
    "NaN": float("nan"),
    "true": True,
    "null": None,
    "a list": ["x"],
    "an object": {"x": 1},
    "deep": json.loads("[" * 900 + "]" * 900),
}
BODIES = [
    b"\xff",
    b"{",
    b"[" * 100_000,
    b'{"name":"quick","env":' + b'{"a":' * 50_000,
    b'{"path": "\xed\xa0\x80", "type": "notebook"}',
    b'{"a":' + b"9" * 5000 + b"}",
]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose kernels start very fast."""
    home = tmp_path_factory.mktemp("fuzzed")
    command = [sys.executable, "-m", "kbridge", "--ip=127.0.0.1"]
    running = Server(home, "--BridgeKernelManager.start_grace=0.01", command=command)
    try:
        running.start()
        for name, fields in SPECS.items():
            install(home, name, fields)
        yield running
        running.assert_clean_log()
    finally:
        running.kill()


# Kernelspecs whose kernels the operating system does not start.
SPECS: dict[str, dict[str, Any]] = {
    "odd-argument": {"argv": ["true", "\ud800"]},
    "odd-nul": {"argv": ["true", "a\0"]},
    "odd-long": {"argv": ["true", "x" * 200_000]},
    "odd-number": {"argv": ["true", 5]},
    "odd-variable": {"argv": ["true"], "env": {"A": "\ud800"}},
    "odd-value": {"argv": ["true"], "env": {"A": 5}},
}


def install(home: Path, name: str, fields: dict[str, Any]) -> None:
    spec = home / "data" / "kernels" / name / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"display_name": name, "language": "python", **fields}))


def refused_or_taken(server: Server, reply: Reply) -> None:
    """Fail unless the reply is a 4xx with a reason; shut started kernels down."""
    if reply.status in {200, 201}:
        made = reply.json()
        kernel = made.get("kernel", made)
        server.stop_kernel(kernel["id"])
        return
    assert 400 <= reply.status < 500, (reply.status, reply.body[:500])
    assert reply.json()["message"], reply.body


@pytest.mark.parametrize("name", ODD)
def test_impossible_values_for_a_kernel_are_refused_or_accepted(fuzzed: Server, name: str) -> None:
    odd = ODD[name]
    bodies: list[Any] = [odd, *({"name": "mute", field: odd} for field in ("name", "path", "env"))]
    bodies.append({"name": "mute", "env": {"KERNEL_A": odd}})
    if isinstance(odd, str):
        bodies.append({"name": "mute", "env": {f"KERNEL_{odd}": "x"}})
        bodies.append({"name": "mute", "env": {"KERNEL_WORKING_DIR": f"/{odd}"}})
    for body in bodies:
        raw = json.dumps(body).encode()
        refused_or_taken(fuzzed, fuzzed.request("POST", "/api/kernels", raw))


@pytest.mark.parametrize("name", ODD)
def test_impossible_values_for_a_session_are_refused_or_accepted(fuzzed: Server, name: str) -> None:
    odd = ODD[name]
    good = {"path": "a", "type": "notebook", "name": "b", "kernel": {"name": "mute"}}
    bodies = [{**good, field: odd} for field in ("path", "type", "name", "kernel", "notebook")]
    bodies += [{**good, "notebook": {"path": odd}}, {**good, "kernel": {"name": odd}}]
    bodies += [{**good, "kernel": {"name": "mute", "id": odd}}]
    for body in bodies:
        refused_or_taken(fuzzed, fuzzed.request("POST", "/api/sessions", body))


@pytest.mark.parametrize("name", ODD)
def test_impossible_changes_of_a_session_are_refused_or_accepted(fuzzed: Server, name: str) -> None:
    odd = ODD[name]
    good = {"path": f"nb {list(ODD).index(name)}", "type": "notebook", "kernel": {"name": "mute"}}
    made = fuzzed.request("POST", "/api/sessions", good).json()
    bodies = [{field: odd} for field in ("path", "type", "name", "kernel", "notebook", "id")]
    bodies += [{"kernel": {"name": odd}}, {"kernel": {"id": odd}}]
    path = f"/api/sessions/{made['id']}"
    for body in bodies:
        reply = fuzzed.request("PATCH", path, body)
        assert reply.status == 200 or 400 <= reply.status < 500, (reply.status, reply.body[:500])
    assert fuzzed.request("POST", f"/api/kernels/{made['kernel']['id']}/restart").status == 200
    assert fuzzed.request("DELETE", path).status == 204


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_a_body_that_is_not_an_object_is_refused(fuzzed: Server, body: bytes) -> None:
    for method, path in (("POST", "kernels"), ("POST", "sessions"), ("PATCH", "sessions/x")):
        reply = fuzzed.request(method, f"/api/{path}", body)
        assert reply.status in {400, 404}, (reply.status, reply.body[:500])


@pytest.mark.parametrize("name", SPECS)
def test_impossible_names_of_kernelspecs_are_refused(fuzzed: Server, name: str) -> None:
    reply = fuzzed.request("POST", "/api/kernels", {"name": name})
    assert reply.status == 400, (reply.status, reply.body)
    said = reply.json()["message"]
    assert "Argument 1" in said or "The variable 'A'" in said
