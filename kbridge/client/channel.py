"""The websocket of one session: connects, connects again, and gives what it receives in order.

`KernelSession` decides what is sent again and where a new connection begins. This module does the
I/O:

- one task reads (`events`), any number write (`send`); a write waits while the connection is lost;
- a caller that does not call `events` stops the reading: `websockets` then holds `_QUEUE` messages
  and no more, the buffers of TCP fill, and the server keeps the rest in its journal;
- a connection that brings no byte between a ping and the time of the next one is taken for dead,
  except while this client itself does not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any, Final
from urllib.parse import quote, urlencode

from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidStatus,
    WebSocketException,
)
from websockets.typing import Subprotocol

from kbridge.client.rest import USER_AGENT, Rest
from kbridge.client.session import (
    Event,
    KernelSession,
    Replaced,
    closed,
    error_of_status,
    reason_of,
)
from kbridge.errors import (
    BridgeError,
    Busy,
    FrameError,
    KbridgeError,
    KernelMessageError,
    NetworkError,
)
from kbridge.wire import v1
from kbridge.wire.dialects import V1
from kbridge.wire.message import Message

__all__ = ["Channel"]

_QUEUE: Final = 8  # messages that `websockets` reads ahead
_OPEN_TIMEOUT_S: Final = 60.0
_CLOSE_TIMEOUT_S: Final = 1.0  # the answer is behind all output that was not read
_FIRST_DELAY_S: Final = 0.1
_MAX_DELAY_S: Final = 5.0
# Statuses of proxies and of servers that start or stop: worth another attempt.
_PASSING: Final = frozenset({500, 502, 503, 504})


class _Connection(ClientConnection):
    """Counts the bytes that have arrived, because one message may take minutes."""

    nbytes = 0

    def data_received(self, data: bytes) -> None:
        self.nbytes += len(data)
        super().data_received(data)


class Channel:
    """The websocket of one session on one kernel.

    Parameters
    ----------
    rest : Rest
        The server.
    kernel_id : str
        The kernel.
    session : KernelSession
        The session. Only this object passes messages to it.
    patience : float
        Seconds without a connection after which everything fails with a `NetworkError`.
    ping_interval : float
        Seconds between pings, and seconds for an answer.
    """

    def __init__(
        self,
        rest: Rest,
        kernel_id: str,
        session: KernelSession,
        patience: float,
        ping_interval: float,
    ) -> None:
        self._rest = rest
        self._kernel_id = kernel_id
        self._session = session
        self._patience = patience
        self._ping_interval = ping_interval
        self._delay = 0.0  # before the next attempt to connect; 0 after a message
        self._ws: _Connection | None = None
        self._connected = asyncio.Event()
        self._writing = asyncio.Lock()
        self._reading = False
        self._keeping: asyncio.Task[None] | None = None
        self._replaced = False  # True until requests were sent to a new process of the kernel
        self._error: KbridgeError | None = None

    async def open(self) -> None:
        """Connect for the first time.

        Raises
        ------
        KbridgeError
            If the server cannot be reached, or refuses.
        """
        await self._connect()
        self._keeping = asyncio.create_task(self._keep())
        self._connected.set()

    async def aclose(self) -> None:
        """Close the websocket; a second call has no effect."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        self.fail(NetworkError("the client was closed"))
        if self._ws is not None:
            await self._ws.close()

    async def send(self, message: Message) -> None:
        """Send a message, as soon as there is a connection and the server reads.

        A message that is lost with its connection is sent again if that is safe.

        Raises
        ------
        KbridgeError
            If there will not be another connection.
        """
        _, payload = V1.payload(message)
        async with self._writing:
            await self._connected.wait()
            if self._error is not None:
                raise self._error
            assert self._ws is not None
            self._session.sending(message.msg_id)
            with contextlib.suppress(ConnectionClosed):
                await self._ws.send(payload)

    async def events(self) -> list[Event]:
        """Wait for the next message; return its events, which may be none.

        Connects again when the connection has ended.

        Raises
        ------
        KbridgeError
            If everything has ended.
        """
        if self._replaced:
            return await self._after_replacement()
        assert self._ws is not None
        self._reading = True
        try:
            frame = await self._ws.recv()
        except ConnectionClosed as end:
            return await self._after(end)
        finally:
            self._reading = False
        self._delay = 0.0
        if isinstance(frame, str):
            raise self.fail(KernelMessageError("the server sent text in a binary dialect"))
        try:
            message = v1.split(frame)
        except FrameError as error:
            raise self.fail(KernelMessageError(f"the server sent: {error}")) from None
        events = self._session.receive(message)
        if events and isinstance(events[-1], Replaced):
            self._replaced = True  # the next call asks, because asking may take long, or fail
            return events[:-1]
        return events

    # Connections.

    async def _after_replacement(self) -> list[Event]:
        """Send requests to the new process of the kernel; return the ends of executions."""
        assert self._ws is not None
        try:
            async with asyncio.timeout(self._patience):
                while True:
                    with contextlib.suppress(NetworkError, BridgeError):
                        events, lost = await self._reconcile(reconnected=False)
                        break
                    await self._pause()
        except TimeoutError:
            raise self.fail(self._away()) from None
        self._replaced = False
        with contextlib.suppress(ConnectionClosed):
            for message in lost:
                await self._ws.send(V1.payload(message)[1])
        return events

    async def _after(self, end: ConnectionClosed) -> list[Event]:
        """Connect again, and send lost messages."""
        self._connected.clear()
        code, reason = (end.rcvd.code, end.rcvd.reason) if end.rcvd is not None else (None, "")
        if (final := closed(code, reason)) is not None:
            raise self.fail(final)
        try:
            async with asyncio.timeout(self._patience):
                while True:
                    await self._connect_again()
                    assert self._ws is not None
                    try:
                        events, lost = await self._reconcile(reconnected=True)
                        for message in lost:
                            await self._ws.send(V1.payload(message)[1])
                    except (ConnectionClosed, NetworkError, BridgeError):
                        continue
                    self._connected.set()
                    return events
        except TimeoutError:
            raise self.fail(self._away()) from None
        except KbridgeError as refusal:
            raise self.fail(refusal) from None

    async def _connect_again(self) -> None:
        while True:
            await self._pause()
            with contextlib.suppress(NetworkError, Busy):
                return await self._connect()

    async def _pause(self) -> None:
        delay = self._delay
        self._delay = min(max(_FIRST_DELAY_S, 2 * delay), _MAX_DELAY_S)
        await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311  # not a secret

    def _away(self) -> NetworkError:
        return NetworkError(f"no connection to {self._rest.address.url} for {self._patience:.0f} s")

    async def _reconcile(self, *, reconnected: bool) -> tuple[list[Event], list[Message]]:
        states: dict[str, str] | None = {}
        if self._session.unconfirmed():
            found = await self._rest.executions(
                self._kernel_id, session_id=self._session.session_id
            )
            states = None if found is None else {str(e["id"]): str(e["state"]) for e in found}
        return self._session.reconcile(states, reconnected=reconnected)

    async def _connect(self) -> None:
        """Open a websocket.

        Raises
        ------
        NetworkError, Busy
            If another attempt may succeed.
        KbridgeError
            Otherwise.
        """
        address = self._rest.address
        path = f"api/kernels/{quote(self._kernel_id, safe='')}/channels"
        url = address.websocket(f"{path}?{urlencode(self._session.query())}")
        options: dict[str, Any] = {
            "subprotocols": [Subprotocol(v1.SUBPROTOCOL)],
            "additional_headers": address.headers,
            "user_agent_header": USER_AGENT,
            "create_connection": _Connection,
            "compression": None,
            "max_size": None,
            "max_queue": _QUEUE,
            "open_timeout": _OPEN_TIMEOUT_S,
            "ping_interval": None,
            "close_timeout": _CLOSE_TIMEOUT_S,
            "ssl": address.tls,
        }
        opening = (
            unix_connect(address.sock, url, **options)
            if address.sock
            else connect(url, proxy=None, **options)
        )
        try:
            ws = await opening
        except InvalidStatus as refusal:
            status = refusal.response.status_code
            if status in _PASSING:
                raise Busy(f"the server answered {status}") from None
            reason = reason_of(bytes(refusal.response.body or b""), f"HTTP status {status}")
            raise error_of_status(status, reason) from None
        except (InvalidHandshake, WebSocketException) as error:
            raise NetworkError(f"{address.url}: {error}") from None
        except OSError as error:  # TimeoutError is one, too
            raise NetworkError(f"cannot reach {address.url}: {error}") from None
        assert isinstance(ws, _Connection)
        if ws.subprotocol != v1.SUBPROTOCOL:
            await ws.close()
            raise NetworkError(f"{address.url} does not speak {v1.SUBPROTOCOL}")
        self._ws = ws

    def fail(self, error: KbridgeError) -> KbridgeError:
        """Note the error with which everything ends, and wake the senders."""
        if self._error is None:
            self._error = error
        self._connected.set()
        return self._error

    async def _keep(self) -> None:
        """Abort connections that have died without a sign."""
        while True:
            await asyncio.sleep(self._ping_interval)
            await self._connected.wait()
            ws = self._ws
            if ws is None or not self._reading:
                continue
            before = ws.nbytes
            with contextlib.suppress(ConnectionClosed, TimeoutError):
                async with asyncio.timeout(self._ping_interval):
                    await (await ws.ping())
            if self._reading and ws.nbytes == before:
                ws.transport.abort()
