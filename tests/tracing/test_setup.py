"""OpenTelemetry's environment variables decide where spans go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kbridge.errors import SetupError
from kbridge.tracing.setup import Tracing
from tests.conftest import ServerFactory
from tests.support.client import attach, dial
from tests.support.jupyter_server import jupyter_server
from tests.support.server import TOKEN


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variables of the user."""
    for name in ("TRACES_EXPORTER", "EXPORTER_OTLP_PROTOCOL", "SERVICE_NAME"):
        monkeypatch.delenv(f"OTEL_{name}", raising=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
)
def test_an_exporter_that_there_is_not(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SetupError, match=value):
        Tracing()


def test_spans_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "a-name")
    tracing = Tracing()
    tracing.spans.tracer.start_span("a-span").end()
    tracing.close()
    span = json.loads(capsys.readouterr().out)
    assert span["name"] == "a-span"
    assert span["resource"]["attributes"]["service.name"] == "a-name"


@pytest.mark.kernel
async def test_a_server_sends_a_trace_of_each_execution(new_server: ServerFactory) -> None:
    server = new_server("--KbridgeApp.tracing=True", env={"OTEL_TRACES_EXPORTER": "console"})
    kernel_id = server.start_kernel()
    url = f"ws://127.0.0.1:{server.port}/api/kernels/{kernel_id}/channels?token={TOKEN}"
    async with dial(url, "v1") as client:
        assert (await client.execute("print(6 * 7)")).text() == "42\n"
    assert server.stop() == 0
    printed = server.log.read_text()
    assert '"name": "execute_request"' in printed
    assert '"name": "first output"' in printed
    assert "6 * 7" not in printed


@pytest.mark.kernel
async def test_jupyter_server_sends_a_trace_of_each_execution(tmp_path: Path) -> None:
    env = {"OTEL_TRACES_EXPORTER": "console"}
    server = jupyter_server(tmp_path, "--KbridgeExtension.tracing=True", env=env)
    try:
        server.start()
        kernel_id = (await server.call("POST", "/api/kernels", {"name": "python3"})).json()["id"]
        async with attach(server, kernel_id) as client:
            assert (await client.execute("print(6 * 7)")).text() == "42\n"
        server.end()
    finally:
        server.kill()
    printed = server.log.read_text()
    for name in ("execute_request", "wait", "queue", "run", "first output"):
        assert f'"name": "{name}"' in printed
    assert "6 * 7" not in printed
