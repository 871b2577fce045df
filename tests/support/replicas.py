"""Replicas of a cluster: server processes with one database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.server import Server, kill_all
from tests.support.waiting import eventually

__all__ = ["kernel_at", "model_at", "replicas"]


@contextmanager
def replicas(
    home: Path,
    *options: str,
    count: int = 2,
    database: str = "",
    env: Mapping[str, str] | None = None,
) -> Iterator[list[Server]]:
    """Run some replicas; by default with an SQLite database."""
    database = database or f"sqlite:///{home / 'cluster.sqlite'}"
    home.mkdir(parents=True, exist_ok=True)
    made = [
        Server(
            home / f"replica-{n}", "--cluster=lab", f"--registry-url={database}", *options, env=env
        )
        for n in range(count)
    ]
    try:
        for server in made:
            server.home.mkdir()
            server.start()
        yield made
    finally:
        kill_all(*made)


def kernel_at(server: Server, base: str = "") -> str:
    """Start a kernel at a replica."""
    reply = server.request("POST", f"{base}/api/kernels")
    assert reply.status == 201, reply
    return str(reply.json()["id"])


def model_at(server: Server, kernel_id: str, state: str = "idle") -> dict[str, Any]:
    """Wait until a replica says that a kernel has this state; return the model."""

    def model() -> dict[str, Any] | None:
        reply = server.request("GET", f"/api/kernels/{kernel_id}")
        assert reply.status == 200, reply
        found: dict[str, Any] = reply.json()
        return found if found["execution_state"] == state else None

    found = eventually(model, f"the kernel is {state}")
    assert found is not None
    return found
