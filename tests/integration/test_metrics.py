"""The metrics of kbridge on `/metrics` of a real Jupyter Server."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.client import attach
from tests.support.jupyter_server import jupyter_server
from tests.support.server import Server

pytestmark = pytest.mark.kernel


async def read(server: Server) -> dict[tuple[str, ...], float]:
    """Return the samples by name and the values of their labels, sorted."""
    reply = await server.call("GET", "/metrics")
    assert reply.status == 200
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
    }


@pytest.mark.parametrize("per_kernel", [False, True])
async def test_jupyter_server_shows_them(tmp_path: Path, per_kernel: bool) -> None:
    server = jupyter_server(tmp_path, f"--KbridgeExtension.metrics_per_kernel={per_kernel}")
    try:
        server.start()
        kernel_id = (await server.call("POST", "/api/kernels", {"name": "python3"})).json()["id"]
        before = await read(server)
        async with attach(server, kernel_id) as client:
            assert (await client.execute("print(6 * 7)")).text() == "42\n"
            after = await read(server)
        refused = server.request("GET", "/metrics", token=None)
        server.end()
    finally:
        server.kill()
    assert any(key[0] == "kbridge_build_info" for key in before), "before the first websocket"
    assert after["kbridge_websockets",] == 1
    assert after["kbridge_websockets_opened_total",] == 1
    assert after["kbridge_kernels", "idle", "python3"] == 1
    assert after["kbridge_kernel_messages_total", "shell", "to_kernel"] >= 1
    assert after["kbridge_kernel_messages_total", "from_kernel", "iopub"] >= 4
    assert after["kbridge_kernel_bytes_total", "from_kernel", "iopub"] > 42
    assert any(key[0] == "http_request_duration_seconds_count" for key in after), "the server's own"
    assert any(kernel_id in key for key in after) is per_kernel
    assert refused.status in {302, 403}
    assert b"kbridge_" not in refused.body
