"""Fixtures: a hub on links in memory."""

from collections.abc import Callable
from typing import Any

import pytest

from kbridge.hub.broadcast import delivery
from kbridge.hub.settings import HubSettings
from tests.hub.rig import Rig


@pytest.fixture(autouse=True)
def pings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ping with each write, as if it came long after the last: the clock of a rig stands still.

    A test with the mark `rare_pings` has the usual interval.
    """
    if request.node.get_closest_marker("rare_pings") is None:
        monkeypatch.setattr(delivery, "PING_INTERVAL", 0.0)


@pytest.fixture
async def make_rig():
    rigs: list[Rig] = []

    def make(**settings: Any) -> Rig:
        rigs.append(Rig(HubSettings(**{"limit_rate": False, **settings})))
        return rigs[-1]

    yield make
    for rig in rigs:
        await rig.hub.aclose()


@pytest.fixture
async def rig(make_rig: Callable[..., Rig]) -> Rig:
    made = make_rig()
    made.prove()
    return made
