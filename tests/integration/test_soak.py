"""A short soak; `make soak` runs it for minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.report import table
from tests.soak.run import Settings, soak
from tests.support.require import require


@pytest.mark.kernel
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_short_soak_finds_no_fault(tmp_path: Path) -> None:
    require("ipykernel")
    told: list[str] = []
    settings = Settings(seconds=7, seed="the short form", progress=told.append, every=2)
    outcome = await soak(settings, tmp_path)
    assert not outcome.findings.count, table(outcome)
    tally = outcome.findings.tally
    for profile in settings.profiles:
        assert tally[profile.name, "messages"], f"{profile.name}: heard nothing"
        assert not profile.deaths or tally[profile.name, "deaths"], f"{profile.name}: never died"
    assert {kind for kind, _ in tally} >= {"hostile", "trouble", "REST"}
    assert set(outcome.after) == {"roomy", "narrow"}
    assert told
