"""Count the frames, bytes and lines of a flood at low cost, without storing them.

A `Tally` reads one websocket into one buffer. It parses frame headers, to answer pings, and
searches payloads only for newlines and for the token that ends the flood.
"""

from __future__ import annotations

import selectors
import time
import uuid

from benchmarks.client import CLOSE, PING, PONG, Gone, Websocket, frame_length, masked

# Bytes to keep in front of each read: a part of a token, or the start of a frame.
KEEP = 512
SIZE = 1 << 20
NEWLINE = rb"\n"  # as JSON writes it


def new_token() -> str:
    """Return a text that does not occur in messages by chance."""
    return f"end-{uuid.uuid4().hex}"


class Tally:
    """Counts the data of one websocket since the last `arm`.

    Each read takes up to `room` bytes, at least the 16 KiB of a TLS record: the rest of a record
    would wait where `pump` does not see it.

    Attributes
    ----------
    frames, nbytes, lines : int
        The counts include the read with the token.
    large : int
        Number of frames of at least `size` bytes.
    first_at, last_at : float
        Monotonic seconds of the first read, and of the last one with `enough` bytes.
    """

    def __init__(
        self,
        websocket: Websocket,
        token: str,
        enough: int = 0,
        size: int = 1 << 62,
        room: int = SIZE,
    ) -> None:
        self.websocket = websocket
        self.sock = websocket.sock
        self.frames = self.nbytes = self.lines = self.large = 0
        self._size = size
        self.first_at = self.last_at = 0.0
        self.done = False
        self._token = token.encode()
        self._enough = enough
        self._data = bytearray(KEEP + room)
        self._view = memoryview(self._data)
        self._skip = 0  # missing bytes of the current payload
        self._pending = 0  # bytes before KEEP of an incomplete frame
        unread = websocket.take_unread()
        if unread:
            self._data[KEEP : KEEP + len(unread)] = unread
            self._took(len(unread))

    def arm(self, token: str) -> None:
        """Reset the counts, and count up to another token that was not requested yet.

        A second tally of the same websocket would start inside a frame.
        """
        self.frames = self.nbytes = self.lines = self.large = 0
        self.first_at = self.last_at = 0.0
        self.done = False
        self._token = token.encode()

    def read(self) -> None:
        """Take what one `recv` gives.

        Raises
        ------
        Gone
            If the server closed the websocket.
        """
        n = self.sock.recv_into(self._view[KEEP:])
        if n == 0:
            raise Gone("the server closed the connection")
        self._took(n)

    def _took(self, n: int) -> None:
        now = time.monotonic()
        end = KEEP + n
        self.first_at = self.first_at or now
        if self.nbytes < self._enough or not self._enough:
            self.last_at = now
        self.nbytes += n
        # One byte of the previous read, because an escaped newline has two bytes.
        self.lines += self._data.count(NEWLINE, KEEP - 1, end)
        self.done = self.done or self._data.find(self._token, KEEP - len(self._token), end) >= 0
        self._walk(KEEP - self._pending, end)
        self._view[:KEEP] = bytes(self._view[end - KEEP : end])

    def _walk(self, at: int, end: int) -> None:
        data = self._data
        if self._skip:
            step = min(self._skip, end - at)
            self._skip -= step
            at += step
        while at < end:
            size = frame_length(data, at, end)
            if size is None:
                break
            head, length = size
            after = at + head + length
            opcode = data[at] & 0x0F
            if opcode >= CLOSE:
                if after > end:
                    break
                self._control(opcode, bytes(data[at + head : after]))
            else:
                self.frames += 1
                self.large += length >= self._size
            if after > end:
                self._skip = after - end
                after = end
            at = after
        self._pending = end - at

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            self.sock.sendall(masked(payload, PONG))
        elif opcode == CLOSE:
            raise Gone(f"the server closed the websocket: {payload!r}")


def pump(tallies: list[Tally], timeout: float) -> bool:
    """Read all websockets until each has received its token.

    Returns
    -------
    bool
        Returns False if some have not, and no data arrived for `timeout` seconds.
    """
    with selectors.DefaultSelector() as selector:
        for tally in tallies:
            if not tally.done:
                selector.register(tally.sock, selectors.EVENT_READ, tally)
        while selector.get_map():
            ready = selector.select(timeout)
            if not ready:
                return False
            for key, _ in ready:
                tally = key.data
                tally.read()
                if tally.done:
                    selector.unregister(tally.sock)
    return True
