"""Run the connection tests of jupyter_client and ipykernel with `kbridge.connect`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.peer_connect import EXCEPTED, IN_PLACE, SELECTED, page, run
from tests.support.sdist import suite_of

PAGE = Path(__file__).parents[2] / "docs" / "peer-suite-connect.md"
# The versions that the lists were made with; older ones have no CurveZMQ.
SINCE = {"jupyter_client": (8, 10), "ipykernel": (7, 4)}


@pytest.fixture(params=sorted(SELECTED))
def peer(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def suite(peer: str, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return suite_of(peer, SINCE[peer], request, tmp_path)


@pytest.mark.kernel
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_peers_own_tests_pass_with_ours_in_place(peer: str, suite: Path) -> None:
    outcome = run(peer, suite)
    assert outcome.in_place == IN_PLACE
    assert EXCEPTED[peer].keys() <= outcome.collected, "an entry names an unknown test"
    assert outcome.outcomes.keys() == outcome.collected - EXCEPTED[peer].keys(), outcome.output
    failed = [f"{t} {how}" for t, how in outcome.outcomes.items() if how.startswith("failed")]
    assert not failed, "\n\n".join(failed)
    for part in SELECTED[peer]:
        ends = {how for test, how in outcome.outcomes.items() if test.startswith(part)}
        assert "passed" in ends, part


def test_each_test_that_is_left_out_has_its_reason() -> None:
    assert EXCEPTED.keys() == SELECTED.keys()
    assert all(len(why) > 20 for tests in EXCEPTED.values() for why in tests.values())


def test_the_page_has_the_lists_of_the_code() -> None:
    assert page() in PAGE.read_text(encoding="utf-8")
