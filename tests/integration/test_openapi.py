"""Requests that schemathesis makes from the description of the API, to a server as users start it.

The tests fail on an internal error, on a status that is not in the description, and on a reply that
does not have the described content, headers or schema; and if a route accepts a request without the
token that should need it. The kernels do nothing, so that they start quickly.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kbridge.server.api import openapi
from tests.support.client import attach
from tests.support.require import require
from tests.support.server import TOKEN, Server
from tests.support.waiting import TIMEOUT, eventually

pytestmark = pytest.mark.kernel

OPTIONS = [
    "--default-kernel=quiet",
    "--max-kernels=4",
    "--BridgeKernelManager.start_grace=0.05",
    "--KernelManager.shutdown_wait_time=0.1",
]
# These end the server, so another test starts one for each.
ENDING = ("/api/shutdown", "/api/restart")
# Never ends.
STREAMS = ("/api/live",)
OPERATIONS = [
    (path, method.upper())
    for path, found in openapi.describe("/")["paths"].items()
    for method in found
    if method != "parameters" and path not in (*ENDING, *STREAMS)
]
SETTINGS = settings(
    max_examples=8,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
# Does not answer, and ignores interrupts.
QUIET = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: signal.pause()"
AUTH = {"Authorization": f"token {TOKEN}"}
SESSION = {"path": "a.ipynb", "type": "notebook", "name": "a", "kernel": {"name": "quiet"}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    require("ipykernel", "schemathesis")
    running = Server(tmp_path_factory.mktemp("server"), *OPTIONS)
    spec = running.home / "data" / "kernels" / "quiet" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, "-c", QUIET, "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "quiet", "language": "python"}))
    running.start()
    try:
        yield running
        running.stop()
        running.assert_clean_log()
    finally:
        running.kill()


def described(server: Server) -> Any:
    """Return the description that the server sends, as schemathesis uses it."""
    import schemathesis

    document = server.request("GET", "/api/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(
        base_url=server.url,
        headers=AUTH,
        request_timeout=TIMEOUT,
    )
    return schema


def real_names(server: Server, path: str) -> dict[str, str]:
    """Return names of things that exist, for the parameters of a path."""
    found = {"name": "python3", "path": "logo-64x64.png", "msg_id": "unknown"}
    if "{kernel_id}" in path:
        kernels = server.request("GET", "/api/kernels").json()
        found["kernel_id"] = kernels[0]["id"] if kernels else server.start_kernel("quiet")
    if "{session_id}" in path:
        reply = server.request("POST", "/api/sessions", SESSION)
        if reply.status == 403:  # as many kernels are running as the settings allow
            server.stop_kernel(server.request("GET", "/api/kernels").json()[0]["id"])
            reply = server.request("POST", "/api/sessions", SESSION)
        found["session_id"] = reply.json()["id"]
    return {name: value for name, value in found.items() if f"{{{name}}}" in path}


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=lambda part: part.strip("/"))
def test_replies_are_as_described(home: Server, path: str, method: str) -> None:
    from schemathesis.specs.openapi.checks import positive_data_acceptance as accepts

    operation = described(home)[path][method]
    # schemathesis does not upgrade to websockets, so the server answers 400.
    excluded = [accepts] if path.endswith("/channels") else []

    @SETTINGS
    @given(case=operation.as_strategy(), real=st.booleans())
    def check(case: Any, real: bool) -> None:
        if real:
            case.path_parameters.update(real_names(home, path))
            if path in ("/api/kernels", "/api/sessions") and isinstance(case.body, dict):
                case.body = SESSION if path.endswith("sessions") else {"name": "quiet"}
        reply = case.call(allow_redirects=False)
        case.validate_response(reply, excluded_checks=excluded)

    check()


def test_executions_are_as_described(home: Server) -> None:
    for kernel in home.request("GET", "/api/kernels").json():  # as many may run as are allowed
        home.stop_kernel(kernel["id"])
    kernel_id = home.start_kernel("python3")
    base = f"/api/kernels/{kernel_id}/executions"

    def executions() -> Any:
        return home.request("GET", base).json()

    async def run() -> str:
        async with attach(home, kernel_id) as client:
            return (await client.execute("print('x'); 1/0")).msg_id

    try:
        msg_id = asyncio.run(run())
        eventually(lambda: [e["state"] for e in executions()] == ["error"], "it has ended")
        schema = described(home)
        one = schema["/api/kernels/{kernel_id}/executions/{msg_id}"]
        every = schema["/api/kernels/{kernel_id}/executions"]
        names = {"kernel_id": kernel_id, "msg_id": msg_id}
        for operation, given_names, status in (
            (every["GET"], {"kernel_id": kernel_id}, 200),
            (one["GET"], names, 200),
            (one["DELETE"], names, 204),
        ):
            case = operation.Case(path_parameters=given_names, headers=AUTH)
            assert case.call_and_validate().status_code == status
    finally:
        home.stop_kernel(kernel_id)


@pytest.mark.parametrize("path", ENDING)
def test_the_end_of_the_server_is_as_described(new_server: Any, path: str) -> None:
    require("schemathesis")
    from schemathesis.specs.openapi.checks import ignored_auth

    server = new_server()
    body = {"body": {"force": True}} if path == "/api/restart" else {}
    case = described(server)[path]["POST"].Case(headers=AUTH, **body)
    reply = case.call()
    assert reply.status_code == 200, reply.content
    case.validate_response(reply, excluded_checks=[ignored_auth])  # which sends more requests
    assert json.loads(reply.content)["message"]
