"""Replicas that are killed and stopped while clients read; see `cluster_chaos`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cluster_chaos import Options, run
from tests.support.require import require

pytestmark = [pytest.mark.kernel, pytest.mark.slow]


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_every_line_of_every_client(tmp_path: Path, database: str) -> None:
    require("sqlalchemy")
    found = await run(tmp_path, Options(database=database))
    assert found["returns"] > 0
    assert found["lines"] > 0
