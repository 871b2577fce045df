from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cluster.rig import ReplicaRig, replicas
from tests.hub.conftest import pings
from tests.kernels.conftest import fake, fleet, hubs, make_manager, queued, spec

__all__ = ["both", "fake", "fleet", "hubs", "make_manager", "pings", "queued", "spec"]


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[tuple[ReplicaRig, ReplicaRig]]:
    """Two replicas."""
    async with replicas(tmp_path) as pair:
        yield pair
