"""A PUB of libzmq that sends in a thread, while a test holds up its event loop.

It waits instead of dropping messages: so it can send more than the buffers of the operating system
hold only if somebody reads, and a test needs no time limits.
"""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import zmq

from kbridge.link.endpoints import Endpoints
from kbridge.wire.message import Channel
from tests.link.kernel_side import body
from tests.support.waiting import TIMEOUT

__all__ = ["Publisher", "number"]

_PADDING = b"p" * 900


def number(parts: list[bytes]) -> int:
    """Return the number of a message of `Publisher`."""
    return int(parts[-1])


class Publisher:
    """The iopub port of a kernel; the other ports do not exist.

    Parameters
    ----------
    folder : Path or None
        The place of unix sockets; None for TCP.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._orders: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._folder = folder
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        address = self._done.get(timeout=TIMEOUT)
        port = 2 if folder else int(address.rpartition(":")[2])
        ports = {channel: port if channel is Channel.IOPUB else 1 for channel in Channel}
        self.endpoints = (
            Endpoints("ipc", str(folder / "k"), ports, b"key")
            if folder
            else Endpoints("tcp", "127.0.0.1", ports, b"key")
        )

    def until_subscribed(self) -> None:
        """Wait, and hold up this thread, until there is one subscription more."""
        self._order(-1, "subscribed")

    def until_ended(self) -> None:
        """Wait, and hold up this thread, until a subscriber has gone."""
        self._order(-2, "ended")

    def send(self, count: int) -> None:
        """Send numbered messages, and hold up this thread until all are sent but 1,000."""
        self._order(count, "sent")

    def end(self) -> None:
        """Send all messages, end the connection, and hold up this thread until that is done."""
        self._order(0, "closed")
        self._thread.join(TIMEOUT)

    def _order(self, order: int, answer: str) -> None:
        self._orders.put(order)
        assert self._done.get(timeout=TIMEOUT) == answer

    def _run(self) -> None:
        context = zmq.Context()
        pub = context.socket(zmq.XPUB)
        pub.setsockopt(zmq.XPUB_NODROP, 1)
        pub.sndtimeo = pub.rcvtimeo = int(TIMEOUT * 1000)
        pub.bind(f"ipc://{self._folder / 'k'}-2" if self._folder else "tcp://127.0.0.1:*")
        self._done.put(pub.getsockopt_string(zmq.LAST_ENDPOINT))
        sent = 0
        while order := self._orders.get():
            if order < 0:
                assert pub.recv() == (b"\1" if order == -1 else b"\0")
                self._done.put("subscribed" if order == -1 else "ended")
                continue
            for n in range(sent, sent + order):
                pub.send_multipart([b"topic", *body(0), _PADDING, b"%d" % n])
            sent += order
            self._done.put("sent")
        pub.close(linger=int(TIMEOUT * 1000))
        context.term()
        self._done.put("closed")
