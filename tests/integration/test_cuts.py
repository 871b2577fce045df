"""Connections cut at random points: no message is missing; with `since`, none is duplicate."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

import pytest

from tests.conftest import ServerFactory
from tests.support.cutter import Cutter
from tests.support.dialects import CODECS
from tests.support.server import Server

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

MESSAGES = 60_000
CUTS = 200
STUB = Path(__file__).parents[2] / "benchmarks" / "kernel.py"


@pytest.fixture
def server(new_server: ServerFactory, tmp_path: Path) -> Server:
    """A server with a kernel that sends numbered lines at full speed."""
    spec = tmp_path / "kernels" / "stub" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, str(STUB), "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "stub", "language": "json"}))
    return new_server(
        "--ZMQChannelsWebsocketConnection.iopub_data_rate_limit=0",
        env={"JUPYTER_PATH": str(tmp_path)},
    )


@pytest.mark.parametrize("says_since", [False, True], ids=["session_id", "since"])
async def test_nothing_is_lost_when_the_connection_is_cut(
    server: Server, dialect: str, says_since: bool
) -> None:
    seed = int(os.environ.get("KBRIDGE_SEED", random.randrange(1 << 32)))
    print(f"KBRIDGE_SEED={seed}")
    chance = random.Random(seed)
    kernel_id = server.start_kernel("stub")
    client = Cutter(server.port, kernel_id, CODECS[dialect], says_since=says_since, chance=chance)
    try:
        await client.connect()
        client.execute(json.dumps({"flood": MESSAGES, "size": 60}))
        while client.cuts < CUTS:
            await client.read(chance.randint(0, MESSAGES // CUTS // 2))
            assert not client.done, f"over after {client.cuts} cuts"
            client.cut()
            await client.connect()
        await client.read(MESSAGES)
    finally:
        client.close()
        server.stop_kernel(kernel_id)
    expected = 0
    for numbers in client.numbers:
        if not numbers:
            continue
        first = numbers[0]
        assert first <= expected, f"{first - expected} lines missing before {first}"
        assert numbers == list(range(first, first + len(numbers))), "out of order"
        if says_since:
            assert first == expected, f"{expected - first} lines came twice"
        expected = first + len(numbers)
    assert expected == MESSAGES
    assert client.other == [], f"no message was lost, but the check failed: {client.other}"
    assert client.replies == client.idles == 1 if says_since else client.done
    server.assert_clean_log()
