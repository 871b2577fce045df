"""One kernel in a Tornado application of your own: `python embed.py [PORT] [TOKEN]`.

Prints the URL of a websocket that any Jupyter client can speak to. Who may come in is for the
application to say; this one wants a token, and Tornado refuses pages of foreign origins.
"""

import asyncio
import hmac
import secrets
import signal
import sys

from jupyter_client.manager import AsyncKernelManager
from tornado.web import Application, HTTPError
from tornado.websocket import WebSocketHandler

from kbridge import HubTable
from kbridge.connection import ZMQChannelsWebsocketConnection


class Channels(WebSocketHandler):
    def initialize(self, kernel: AsyncKernelManager, token: str) -> None:
        self.token = token
        self.connection = ZMQChannelsWebsocketConnection(parent=kernel, websocket_handler=self)

    def prepare(self) -> None:
        if not hmac.compare_digest(
            self.get_query_argument("token", "").encode(), self.token.encode()
        ):
            raise HTTPError(403)

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return self.connection.select_subprotocol(subprotocols)

    def open(self) -> None:
        self.connection.connect()

    def on_message(self, message: str | bytes):
        return self.connection.handle_incoming_message(message)

    def on_close(self) -> None:
        self.connection.disconnect()


async def main(port: str = "8899", token: str = secrets.token_hex(16)) -> None:
    ended = asyncio.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(sign, ended.set)
    kernel = AsyncKernelManager(kernel_name="python3")
    await kernel.start_kernel()
    hubs = HubTable()  # one hub a kernel; the connections find it in the application's settings
    app = Application([("/channels", Channels, {"kernel": kernel, "token": token})], hubs=hubs)
    server = app.listen(int(port), "127.0.0.1")
    print(f"ws://127.0.0.1:{port}/channels?token={token}", flush=True)
    await ended.wait()
    server.stop()
    await hubs.aclose()
    await kernel.shutdown_kernel(now=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
