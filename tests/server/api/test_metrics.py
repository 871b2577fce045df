"""`/metrics` on a real server: access and formats."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kbridge.hub.table import HubTable
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.kernels.registry.writer import RegistryWriter
from kbridge.link.memory import MemoryKernel
from kbridge.server.metrics import ServerMetrics

METRICS_TOKEN = "a-token-of-the-metrics"


@pytest.fixture
async def running(start: Any) -> Any:
    hubs = HubTable(link=MemoryKernel)
    made = await start(hubs=hubs)
    kernels = BridgeKernelManager(hubs=hubs, writer=RegistryWriter(), max_kernels=5)
    made.services.metrics = ServerMetrics(hubs, kernels)
    made.services.metrics_token = METRICS_TOKEN
    return made


async def test_the_formats(running: Any) -> None:
    reply = await running.ask("GET", "/metrics")
    assert reply.code == 200
    assert reply.headers["Content-Type"].startswith("text/plain; version=")
    names = {family.name for family in text_string_to_metric_families(reply.body.decode())}
    assert {"kbridge_websockets_opened", "kbridge_kernels_limit", "kbridge_build_info"} <= names
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    reply = await running.ask("GET", "/metrics", headers=accept)
    assert reply.headers["Content-Type"].startswith("application/openmetrics-text")
    assert reply.body.endswith(b"# EOF\n")
    head = await running.ask("HEAD", "/metrics")
    assert (head.code, head.body) == (200, b"")


async def test_reading_them_is_not_activity(running: Any) -> None:
    before = running.services.activity.last_request
    await running.ask("GET", "/metrics")
    assert running.services.activity.last_request == before


async def test_either_token_opens_them(running: Any, token: str) -> None:
    for value in (token, METRICS_TOKEN):
        for headers in ({"Authorization": f"Bearer {value}"}, {"Authorization": f"token {value}"}):
            reply = await running.ask("GET", "/metrics", token=None, headers=headers)
            assert reply.code == 200
        assert (await running.ask("GET", f"/metrics?token={value}", token=None)).code == 200


async def test_other_tokens_do_not(running: Any, error_of: Any) -> None:
    for wrong in (None, "", "wrong", METRICS_TOKEN[:-1], METRICS_TOKEN + "x"):
        reply = await running.ask("GET", "/metrics", token=wrong)
        assert error_of(reply) == (403, "Forbidden", "a valid token is needed")


async def test_the_token_of_the_metrics_opens_nothing_else(running: Any) -> None:
    for path in ("/api/status", "/api/kernels", "/api/kernelspecs", "/readme"):
        assert (await running.ask("GET", path, token=METRICS_TOKEN)).code == 403
    assert (await running.ask("POST", "/api/kernels", token=METRICS_TOKEN)).code == 403


async def test_an_empty_token_of_the_metrics_opens_nothing(running: Any) -> None:
    running.services.metrics_token = ""
    for path in ("/metrics", "/metrics?token="):
        reply = await running.ask("GET", path, token=None, headers={"Authorization": "Bearer "})
        assert reply.code == 403


async def test_without_authentication_everybody_may_read_them(start: Any) -> None:
    running = await start(policy={"token": ""}, hubs=HubTable(link=MemoryKernel))
    reply = await running.ask("GET", "/metrics", token=None)
    assert reply.code == 404, "this server has none"
