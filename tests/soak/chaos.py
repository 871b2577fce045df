"""Disturb kernels during the soak, and send the REST requests of frontends."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any

import psutil

from tests.soak.findings import Findings
from tests.soak.fleet import Fleet, SoakKernel

__all__ = ["all_requests", "rest", "trouble"]

_MODEL = {"id", "name", "last_activity", "execution_state", "connections"}


async def trouble(fleet: Fleet, findings: Findings, over: asyncio.Event, seed: str) -> None:
    """Restart, interrupt, kill and replace the kernels that are not marked as calm."""
    dice = random.Random(f"{seed}/trouble")
    while not over.is_set():
        await asyncio.sleep(dice.uniform(0.2, 1.5))
        kernel = dice.choice([kernel for kernel in fleet.kernels if not kernel.calm])
        what = dice.choice(("restart", "restart", "interrupt", "interrupt", "kill", "replace"))
        findings.add("trouble", what)
        if what == "kill":
            fleet.look()
            process = kernel.process()
            with suppress(psutil.NoSuchProcess):
                if process is not None:
                    process.kill()
        elif what == "replace":
            await fleet.add(kernel.server.home.name, kernel.spec, calm=False)
            await fleet.remove(kernel)
        else:
            reply = await kernel.server.call("POST", f"/api/kernels/{kernel.kernel_id}/{what}")
            # A kernel cannot be restarted or interrupted while it restarts.
            if reply.status not in {200, 204, 409}:
                findings.fault("trouble", f"{what}: {reply.status} {reply.body[:300]!r}")


async def rest(fleet: Fleet, findings: Findings, over: asyncio.Event, seed: str) -> None:
    """Send the periodic requests of frontends."""
    dice = random.Random(f"{seed}/rest")
    while not over.is_set():
        kernel = dice.choice(fleet.kernels)
        await dice.choice((_models, _status, _specs, _session))(kernel, findings)
        await asyncio.sleep(dice.random() * 0.3)


async def all_requests(kernel: SoakKernel, findings: Findings) -> None:
    """Send each request once."""
    for one in (_models, _status, _specs, _session):
        await one(kernel, findings)
    for what in ("interrupt", "restart"):
        await _ask(kernel, findings, "POST", f"/api/kernels/{kernel.kernel_id}/{what}")


async def _ask(
    kernel: SoakKernel, findings: Findings, method: str, path: str, body: Any = None
) -> Any:
    reply = await kernel.server.call(method, path, body)
    findings.add("REST", "answers")
    if not 200 <= reply.status < 300:
        findings.fault("REST", f"{method} {path}: {reply.status} {reply.body[:300]!r}")
        return None
    return reply.json() if reply.body else None


async def _models(kernel: SoakKernel, findings: Findings) -> None:
    for model in await _ask(kernel, findings, "GET", "/api/kernels") or []:
        if set(model) < _MODEL or model["connections"] < 0:
            findings.fault("REST", f"a model of a kernel: {model}")


async def _status(kernel: SoakKernel, findings: Findings) -> None:
    await _ask(kernel, findings, "GET", "/api/status")


async def _specs(kernel: SoakKernel, findings: Findings) -> None:
    await _ask(kernel, findings, "GET", "/api/kernelspecs")


async def _session(kernel: SoakKernel, findings: Findings) -> None:
    """Open, rename and close a document with its kernel."""
    body = {
        "path": f"soak-{random.randbytes(4).hex()}.ipynb",
        "name": "",
        "type": "notebook",
        "kernel": {"name": "stub"},
    }
    session = await _ask(kernel, findings, "POST", "/api/sessions", body)
    if session is None:
        return
    path = f"/api/sessions/{session['id']}"
    await _ask(kernel, findings, "PATCH", path, {"name": "renamed"})
    await _ask(kernel, findings, "GET", "/api/sessions")
    await _ask(kernel, findings, "DELETE", path)
