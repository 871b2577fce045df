"""`/healthz` and `/readyz` on a real server."""

from __future__ import annotations

import json
import logging
from typing import Any

from kbridge.server.readiness import OK


class Answer:
    """Checks with fixed results."""

    def __init__(self, **checks: str) -> None:
        self.checks = checks

    async def check(self) -> dict[str, str]:
        return self.checks


async def test_health_needs_no_token_and_says_nothing_else(running: Any) -> None:
    reply = await running.ask("GET", "/healthz", token=None)
    assert (reply.code, json.loads(reply.body)) == (200, {"status": "ok"})
    head = await running.ask("HEAD", "/healthz", token=None)
    assert (head.code, head.body) == (200, b"")


async def test_readiness_says_what_is_wrong(running: Any) -> None:
    assert (await running.ask("GET", "/readyz", token=None)).code == 404
    running.services.readiness = Answer(kernels=OK, disk=OK)
    reply = await running.ask("GET", "/readyz", token=None)
    assert reply.code == 200
    assert json.loads(reply.body) == {"ready": True, "checks": {"kernels": OK, "disk": OK}}
    running.services.readiness = Answer(kernels=OK, disk="full")
    reply = await running.ask("GET", "/readyz", token=None)
    assert reply.code == 503
    assert json.loads(reply.body) == {"ready": False, "checks": {"kernels": OK, "disk": "full"}}
    assert (await running.ask("HEAD", "/readyz", token=None)).code == 503


async def test_polling_a_server_that_is_not_ready_does_not_fill_the_log(
    running: Any, caplog: Any
) -> None:
    running.services.readiness = Answer(kernels=OK, disk="full")
    caplog.set_level(logging.INFO, "tornado.access")
    assert (await running.ask("GET", "/readyz", token=None)).code == 503
    assert caplog.records == []
    running.services.readiness = None
    assert (await running.ask("GET", "/readyz", token=None)).code == 404
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_they_are_no_activity(running: Any) -> None:
    running.services.readiness = Answer(kernels=OK)
    before = running.services.activity.last_request
    for path in ("/healthz", "/readyz"):
        await running.ask("GET", path)
    assert running.services.activity.last_request == before


async def test_a_server_that_ends_answers_503(running: Any) -> None:
    running.services.readiness = Answer(kernels=OK)
    running.services.closing = True
    assert (await running.ask("GET", "/readyz", token=None)).code == 503
