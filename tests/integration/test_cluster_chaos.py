"""Replicas that are killed and stopped while clients read; see `cluster_chaos`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cluster_chaos import Options, run
from tests.support.require import require

pytestmark = [pytest.mark.kernel, pytest.mark.slow]


@pytest.mark.parametrize(
    ("database", "rounds", "balancer"), [("sqlite", 2, ""), ("postgresql", 4, "haproxy")]
)
async def test_every_line_of_every_client(
    tmp_path: Path, database: str, rounds: int, balancer: str
) -> None:
    require("sqlalchemy")
    found = await run(tmp_path, Options(rounds, database=database, balancer=balancer))
    assert found["returns"] > 0
    assert found["lines"] > 0
