"""Servers that use the compiled functions; other tests use those in Python."""

from __future__ import annotations

import pytest

from tests.conftest import ServerFactory
from tests.support.client import attach
from tests.support.require import require
from tests.support.server import PEER
from tests.support.waiting import TIMEOUT

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(PEER, reason="kbridge only"),
    pytest.mark.timeout(3 * TIMEOUT),
]

LINES = 900  # fewer than a PUB drops, however late they are read
CODE = f"""\
import sys
for i in range({LINES}):
    print(i, "žluť", flush=True)
    if i % 300 == 0:
        print("warning", i, file=sys.stderr, flush=True)
        display(i)
1 / 0
"""


@pytest.mark.parametrize("pure", ["", "1"], ids=["compiled", "in Python"])
@pytest.mark.parametrize("link", ["zmtp", "pyzmq"])
async def test_all_output_of_a_cell_arrives_in_order(
    new_server: ServerFactory, link: str, pure: str
) -> None:
    require("kbridge_speedups")
    option = f"--ZMQChannelsWebsocketConnection.link={link}"
    server = new_server("--log-level=INFO", option, env={"KBRIDGE_PURE": pure})
    kernel = server.start_kernel()
    async with attach(server, kernel) as client:
        result = await client.execute(CODE)
        assert result.text() == "".join(f"{i} žluť\n" for i in range(LINES))
        assert result.text("stderr") == "".join(f"warning {i}\n" for i in range(0, LINES, 300))
        assert result.reply["ename"] == "ZeroDivisionError"
    expected = "in Python (as KBRIDGE_PURE says)" if pure else "compiled"
    assert f"the functions of the hot path are {expected}" in server.log.read_text()
