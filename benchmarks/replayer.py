"""`python -m benchmarks.replayer HOME PORT TOKEN KERNEL END`: a client that asks for all output of
a kernel again and again, until it is terminated.

It prints the number of lines after each replay. It runs with the lowest priority, because it stands
for a browser on another machine.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.client import Websocket
from benchmarks.servers import OURS, Server
from benchmarks.tally import Tally, pump


def replay(server: Server, kernel_id: str, end: str) -> int:
    """Read the output of a kernel up to the token `end`; return the number of its lines."""
    with Websocket.open(server, kernel_id, query="&since=start") as websocket:
        tally = Tally(websocket, end)
        return tally.lines if pump([tally], timeout=20) else -1


def main(home: str, port: str, token: str, kernel_id: str, end: str) -> None:
    os.nice(19)
    server = Server(OURS, Path(home))  # only its address is used
    server.address.port = int(port)
    server.token = token
    while True:
        print(replay(server, kernel_id, end), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
