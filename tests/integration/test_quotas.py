"""The kernels of each user are counted at two replicas together, with real kernels."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.require import require
from tests.support.server import TOKEN, Server, kill_all

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
LIMIT = 2
ALICE, BOB = "token-alice", "token-bob"


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[list[Server]]:
    """Two replicas with users."""
    require("ipykernel")
    made = []
    for name in ("one", "two"):
        home = tmp_path / name
        home.mkdir()
        made.append(
            Server(
                home,
                "--cluster=lab",
                f"--registry-url=sqlite:///{tmp_path / 'lab.sqlite'}",
                f"--max-kernels-per-user={LIMIT}",
                env={"PYTHONPATH": str(ROOT)},
                command=[sys.executable, "-m", "tests.support.users", "--ip=127.0.0.1"],
            )
        )
    try:
        yield [server.start() for server in made]
    finally:
        kill_all(*made)


def start(server: Server, token: str) -> tuple[int, str]:
    """Start a kernel; return the status, and the id or the message."""
    reply = server.request("POST", "/api/kernels", {}, token=token)
    return reply.status, reply.json()["id" if reply.status == 201 else "message"]


def test_users_have_as_many_kernels_as_allowed_at_all_replicas(replicas: list[Server]) -> None:
    asked = [server for server in replicas for _ in range(LIMIT)]
    with ThreadPoolExecutor(len(asked)) as threads:
        ends = list(threads.map(start, asked, [ALICE] * len(asked)))
    started = [body for status, body in ends if status == 201]
    assert len(started) == LIMIT, ends
    assert {end for end in ends if end[0] != 201} == {
        (403, "alice has 2 kernel(s), and max_kernels_per_user allows no more: shut one down")
    }
    for server in replicas:  # others, and the operator, are not concerned
        for token in (BOB, TOKEN):
            status, body = start(server, token)
            assert status == 201, body
    for server in replicas:
        models = server.request("GET", "/api/kernels", token=ALICE).json()
        assert {model["id"] for model in models} == set(started)

    # The kernel that one replica has ended may be replaced at the other one at once.
    gone, kept = started
    assert replicas[0].request("DELETE", f"/api/kernels/{gone}", token=ALICE).status == 204
    status, body = start(replicas[1], ALICE)
    assert status == 201, body
    assert start(replicas[0], ALICE)[0] == 403
    path = f"/api/kernels/{kept}/restart"
    assert replicas[1].request("POST", path, token=ALICE).status == 200
