"""jupyter_client's and ipykernel's own tests of connections, with `kbridge.connect` under them."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.peer_connect import EXCEPTED, IN_PLACE, SELECTED, fetch, page, run
from tests.support.peer_suite import NoSuite, unpack
from tests.support.require import require

PAGE = Path(__file__).parents[2] / "docs" / "peer-suite-connect.md"
# What the lists were made with; older ones have no CurveZMQ.
SINCE = {"jupyter_client": (8, 10), "ipykernel": (7, 4)}


@pytest.fixture(params=sorted(SELECTED))
def peer(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def suite(peer: str, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    require("pip", "ipykernel", "pytest_jupyter")
    if tuple(map(int, version(peer).split(".")[:2])) < SINCE[peer]:
        missing(f"the lists are of {peer} {'.'.join(map(str, SINCE[peer]))} or newer")
    cache = getattr(request.config, "cache", None)  # none with -p no:cacheprovider
    try:
        archive = fetch(peer, cache.mkdir("peer-suite") if cache else tmp_path)
    except NoSuite as error:
        missing(f"{peer}'s source distribution is missing: {error}")
    return unpack(archive, tmp_path)


def missing(reason: str) -> NoReturn:
    if os.environ.get("CI", "").lower() not in {"", "0", "false"}:
        pytest.fail(f"in CI no part may be missing, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.mark.kernel
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_peers_own_tests_pass_with_ours_in_place(peer: str, suite: Path) -> None:
    outcome = run(peer, suite)
    assert outcome.in_place == IN_PLACE
    assert EXCEPTED[peer].keys() <= outcome.collected, "an entry names no test that there is"
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
