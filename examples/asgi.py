"""A Starlette application that serves the kernels of a kbridge server below /kernels/.

    kbridge --sock kbridge.sock --base-url=/kernels/
    KBRIDGE_SOCK=kbridge.sock uvicorn asgi:app --ws websockets-sansio

Needs `pip install starlette uvicorn httpx`. In FastAPI, `app.router.routes.extend(ROUTES)` adds the
routes; docs/asgi.md has more.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

SOCK = os.environ.get("KBRIDGE_SOCK", "kbridge.sock")
# They are about one connection (RFC 9110, section 7.6.1).
HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
# Headers of a websocket's request that kbridge reads.
FOR_KBRIDGE = ("authorization", "cookie", "user-agent")

client = httpx.AsyncClient(
    transport=httpx.AsyncHTTPTransport(uds=SOCK),
    timeout=httpx.Timeout(300.0, connect=10.0),  # a kernel may need a minute to start
)


async def forward(request: Request) -> Response:
    """Pass a request and its reply on; neither is kept in memory as a whole."""
    headers = [(k, v) for k, v in request.headers.raw if k.decode().lower() not in HOP_BY_HOP]
    url = httpx.URL(f"http://{request.headers['host']}{target(request)}")
    has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
    content = request.stream() if has_body else None
    try:
        reply = await client.send(
            client.build_request(request.method, url, headers=headers, content=content), stream=True
        )
    except httpx.ConnectError:
        return PlainTextResponse("kbridge does not run", 502)
    response = StreamingResponse(
        reply.aiter_raw(), reply.status_code, background=BackgroundTask(reply.aclose)
    )
    response.raw_headers = [
        (k.lower(), v) for k, v in reply.headers.raw if k.decode().lower() not in HOP_BY_HOP
    ]
    return response


async def channels(websocket: WebSocket) -> None:
    """Pass the messages of a websocket on, in both directions."""
    headers = websocket.headers
    dialling = unix_connect(
        SOCK,
        uri=f"ws://{headers['host']}{target(websocket)}",
        additional_headers=[(k, headers[k]) for k in FOR_KBRIDGE if k in headers],
        origin=Origin(headers["origin"]) if "origin" in headers else None,
        subprotocols=[Subprotocol(name) for name in websocket.scope["subprotocols"]] or None,
        user_agent_header=None,
        compression=None,
        max_size=None,
        ping_interval=None,  # kbridge pings
    )
    try:
        upstream = await dialling
    except InvalidStatus as refused:
        reply = refused.response
        await websocket.send_denial_response(Response(bytes(reply.body or b""), reply.status_code))
        return
    except OSError:
        await websocket.send_denial_response(PlainTextResponse("kbridge does not run", 502))
        return
    async with upstream:
        await websocket.accept(upstream.subprotocol)
        sending = asyncio.create_task(to_kbridge(websocket, upstream))
        try:
            await to_client(websocket, upstream)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


async def to_kbridge(websocket: WebSocket, upstream: ClientConnection) -> None:
    """Pass the messages of the client on, until it leaves."""
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            await upstream.close()
            return
        data = message.get("bytes")
        await upstream.send(message["text"] if data is None else data)


async def to_client(websocket: WebSocket, upstream: ClientConnection) -> None:
    """Pass the messages of kbridge on. A client that does not read stops this loop."""
    try:
        while True:
            data = await upstream.recv()
            await (
                websocket.send_text(data) if isinstance(data, str) else websocket.send_bytes(data)
            )
    except ConnectionClosed as end:
        if end.rcvd is not None:  # otherwise the client has left
            try:
                await websocket.close(end.rcvd.code, end.rcvd.reason)
            except (RuntimeError, WebSocketDisconnect):  # it leaves at this moment
                return
    except WebSocketDisconnect:
        return


def target(connection: Request | WebSocket) -> str:
    """Return the path with the query, as the client has sent it."""
    path: str = connection.scope["raw_path"].decode()
    query: str = connection.scope["query_string"].decode()
    return f"{path}?{query}" if query else path


@asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[None]:
    """Close the connections to kbridge at the end."""
    async with client:
        yield


METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
ROUTES: list[BaseRoute] = [
    Route("/kernels/{path:path}", forward, methods=METHODS),
    WebSocketRoute("/kernels/api/kernels/{kernel_id}/channels", channels),
]
app = Starlette(routes=ROUTES, lifespan=lifespan)
