"""Measures the CPU time of a replica that passes websockets on: `python -m benchmarks.relay`.

The relay has this process to itself: another one is the client and the owner of the kernel. A lone
frame is sent when the frame before has arrived, as when somebody types. A stream of frames is sent
as fast as the client reads, as when a cell prints.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import socket
import time

from kbridge.link.relay import Relay
from kbridge.link.transport import SocketTransport
from kbridge.wire import frames

__all__ = ["measure"]

_SIZE = 300  # bytes of a stream message of one line, in the v1 dialect


def _peers(client: int, server: int, count: int, lone: bool) -> None:
    """Send frames from the owner to the client, and end."""
    near = socket.create_connection(("127.0.0.1", client))
    far = socket.create_connection(("127.0.0.1", server))
    frame = frames.frame(b"x" * _SIZE, frames.BINARY)
    if not lone:
        sender = multiprocessing.Process(target=far.sendall, args=(frame * count,))
        sender.start()
        _read(near, len(frame) * count)
        sender.join()
    else:
        for _ in range(count):
            far.sendall(frame)
            _read(near, len(frame))
    far.close()
    near.close()


def _read(sock: socket.socket, count: int) -> None:
    while count and (data := sock.recv(min(count, 1 << 16))):
        count -= len(data)


async def _relay(count: int, lone: bool) -> float:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [listener.getsockname()[1] for listener in listeners]
    peers = multiprocessing.Process(target=_peers, args=(*ports, count, lone))
    peers.start()
    try:
        near, far = [listener.accept()[0] for listener in listeners]
        for sock in (near, far):
            sock.setblocking(False)
        relay = Relay(SocketTransport(near), SocketTransport(far))
        begin = time.process_time()
        relay.start()
        await relay.ended
        return time.process_time() - begin
    finally:
        for listener in listeners:
            listener.close()
        peers.join()


def measure(count: int) -> dict[str, float]:
    """Return the CPU time per frame in microseconds, for lone frames and for a stream."""
    return {
        name: asyncio.run(_relay(count, name == "lone")) / count * 1e6
        for name in ("lone", "stream")
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="frames of each measurement")
    for name, micros in measure(parser.parse_args().count).items():
        print(f"{name} frames: {micros:.2f} us of CPU per frame")


if __name__ == "__main__":
    main()
