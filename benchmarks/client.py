"""A fast websocket client: a blocking socket and the v1 subprotocol, without a library.

It shares no code with kbridge, so that a bug cannot hide in both. Its User-Agent is that of a
browser, because only browsers are paced. It offers no compression, sets TCP_NODELAY, answers pings
as browsers do, and masks with zeros.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
import uuid
from typing import Any, NamedTuple, Self

from benchmarks.measure import BenchmarkError
from benchmarks.servers import Server

SUBPROTOCOL = "v1.kernel.websocket.jupyter.org"
DATE = "2026-01-01T00:00:00.000000Z"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class Gone(BenchmarkError):
    """The server closed the websocket."""


class Received(NamedTuple):
    """One received message."""

    channel: str
    msg_type: str
    parent_id: str
    content: dict[str, Any]


def encode(channel: str, *parts: bytes) -> bytes:
    """Encode a v1 message: the number of offsets, the offsets, the channel and the parts."""
    pieces = [channel.encode(), *parts]
    count = len(pieces) + 1
    offsets = [8 * (count + 1)]
    for piece in pieces:
        offsets.append(offsets[-1] + len(piece))
    return struct.pack(f"<{count + 1}Q", count, *offsets) + b"".join(pieces)


def decode(payload: bytes) -> Received:
    """Return the parts of a v1 message that the benchmarks use."""
    (count,) = struct.unpack_from("<Q", payload)
    offsets = struct.unpack_from(f"<{count}Q", payload, 8)
    channel, header, parent, _, content = (payload[offsets[i] : offsets[i + 1]] for i in range(5))
    return Received(
        channel.decode(),
        json.loads(header)["msg_type"],
        json.loads(parent or b"{}").get("msg_id", ""),
        json.loads(content),
    )


def masked(payload: bytes, opcode: int) -> bytes:
    """Encode a client's frame (RFC 6455, section 5.2), masked with a key of zeros."""
    length = len(payload)
    if length < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | length)
    elif length < 1 << 16:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, length)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, length)
    return head + bytes(4) + payload


def frame_length(data: bytes | bytearray, at: int, end: int) -> tuple[int, int] | None:
    """Return the lengths of header and payload of a server's frame; None if it is incomplete."""
    if end - at < 2:
        return None
    short = data[at + 1]
    if short < 126:
        return 2, short
    width = 2 if short == 126 else 8
    if end - at < 2 + width:
        return None
    return 2 + width, int.from_bytes(data[at + 2 : at + 2 + width], "big")


class Websocket:
    """One websocket to a kernel.

    The constructor sends the upgrade request and does not wait for the answer, so that many
    websockets can be opened at the same time; `finish` waits. `open` does both.
    """

    def __init__(
        self,
        server: Server,
        kernel_id: str,
        session_id: str = "",
        query: str = "",
        receive_buffer: int = 0,
        offers_v1: bool = True,
        agent: str = "Mozilla/5.0",
    ) -> None:
        self.session_id = session_id or uuid.uuid4().hex
        self._data = bytearray()
        self._sent = 0
        self._offers_v1 = offers_v1
        offer = f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n" if offers_v1 else ""
        self._nonce = os.urandom(4).hex()
        self.sock = server.address.connect(30, receive_buffer)
        self.sock.sendall(
            (
                f"GET /api/kernels/{kernel_id}/channels?session_id={self.session_id}{query} "
                "HTTP/1.1\r\n"
                f"Host: localhost\r\nUser-Agent: {agent}\r\n"
                f"Authorization: token {server.token}\r\n"
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
                f"{offer}\r\n"
            ).encode()
        )

    def finish(self) -> Websocket:
        """Wait for the answer to the upgrade request.

        Raises
        ------
        BenchmarkError
            If the status is not 101, or the v1 subprotocol was offered but not selected.
        """
        while (end := self._data.find(b"\r\n\r\n")) < 0:
            self._read_some()
        head = self._data[:end].decode("latin-1")
        del self._data[: end + 4]
        if " 101 " not in head or (SUBPROTOCOL in head) is not self._offers_v1:
            raise BenchmarkError(f"no websocket: {head}")
        return self

    @classmethod
    def open(cls, server: Server, kernel_id: str, **options: Any) -> Websocket:
        """Connect and wait until the websocket is open."""
        return cls(server, kernel_id, **options).finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Send a close frame and close the socket; may be called twice."""
        if self.sock.fileno() >= 0:
            with contextlib.suppress(OSError):  # the server may have closed it before
                self.sock.sendall(masked(b"\x03\xe8", CLOSE))
            self.sock.close()

    def cut(self) -> None:
        """Break the connection with a reset, as a network does."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def take_unread(self) -> bytes:
        """Return the unprocessed bytes; the caller then reads from the socket."""
        data = bytes(self._data)
        self._data.clear()
        return data

    def _read_some(self) -> None:
        chunk = self.sock.recv(1 << 18)
        if not chunk:
            raise Gone("the server closed the connection")
        self._data += chunk

    def payload(self, timeout: float = 30.0) -> bytes:
        """Return the payload of the next data frame.

        Raises
        ------
        TimeoutError
            If no frame arrived within `timeout` seconds.
        Gone
            If the server closed the websocket.
        """
        deadline = time.monotonic() + timeout
        while True:
            size = frame_length(self._data, 0, len(self._data))
            if size is None or sum(size) > len(self._data):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"no frame in {timeout} s")
                self.sock.settimeout(left)
                self._read_some()
                continue
            head, length = size
            opcode = self._data[0] & 0x0F
            payload = bytes(self._data[head : head + length])
            del self._data[: head + length]
            if opcode in {TEXT, BINARY}:
                return payload
            if opcode == PING:
                self.sock.sendall(masked(payload, PONG))
            elif opcode == CLOSE:
                raise Gone(f"the server closed the websocket: {payload!r}")

    def send(self, msg_type: str, content: dict[str, Any], channel: str = "shell") -> str:
        """Send a request; return its msg_id."""
        self._sent += 1
        msg_id = f"{self.session_id}_{self._nonce}_{self._sent}"
        header = {
            "msg_id": msg_id,
            "msg_type": msg_type,
            "session": self.session_id,
            "username": "bench",
            "date": DATE,
            "version": "5.3",
        }
        parts = (json.dumps(header).encode(), b"{}", b"{}", json.dumps(content).encode())
        self.sock.sendall(masked(encode(channel, *parts), BINARY))
        return msg_id

    def execute(self, code: str | dict[str, Any], **more: Any) -> str:
        """Send an execute_request (a dict is a command for the stub kernel); return its msg_id."""
        text = code if isinstance(code, str) else json.dumps(code)
        content = {
            "code": text,
            "silent": False,
            "store_history": False,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": False,
            **more,
        }
        return self.send("execute_request", content)

    def wait_done(self, msg_id: str, timeout: float = 30.0) -> list[Received]:
        """Read until the reply and the idle of a request have arrived; return its messages."""
        deadline = time.monotonic() + timeout
        found: list[Received] = []
        missing = {"reply", "idle"}
        while missing:
            message = decode(self.payload(max(0.001, deadline - time.monotonic())))
            if message.parent_id == msg_id:
                found.append(message)
                if message.msg_type.endswith("_reply"):
                    missing.discard("reply")
                elif message.content.get("execution_state") == "idle":
                    missing.discard("idle")
        return found

    def ready(self, timeout: float = 60.0) -> Websocket:
        """Wait until the kernel answers through this websocket, output included."""
        self.wait_done(self.send("kernel_info_request", {}), timeout)
        return self

    def kernel_pid(self) -> int:
        """The process id of the stub at the other end."""
        for message in self.wait_done(self.execute({"pid": True})):
            if message.msg_type == "stream":
                return int(message.content["text"].removeprefix("pid="))
        raise BenchmarkError("the stub did not tell its process id")
