"""A kernel in a Tornado application: `python embed.py [PORT] [TOKEN]`.

Prints the URL of a websocket that any Jupyter client can connect to. The application decides who
may connect: this one requires a token, and Tornado refuses pages of other origins.
"""

import asyncio
import hmac
import secrets
import signal
import sys

from jupyter_client.manager import AsyncKernelManager
from tornado.web import Application

from kbridge import HubTable
from kbridge.tornado import ChannelsHandler


class Channels(ChannelsHandler):
    def authorize(self) -> bool:
        token = self.get_query_argument("token", "")
        return hmac.compare_digest(token.encode(), self.settings["token"].encode())


def make_app(kernel: AsyncKernelManager, hubs: HubTable, token: str) -> Application:
    routes = [("/channels", Channels, {"get_kernel": lambda: kernel})]
    return Application(routes, hubs=hubs, token=token)


async def main(port: str = "8899", token: str = secrets.token_hex(16)) -> None:
    stopped = asyncio.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(sign, stopped.set)
    kernel = AsyncKernelManager(kernel_name="python3")
    await kernel.start_kernel()
    hubs = HubTable()  # holds the sockets and the output of each kernel, shared by its websockets
    server = make_app(kernel, hubs, token).listen(int(port), "127.0.0.1")
    print(f"ws://127.0.0.1:{port}/channels?token={token}", flush=True)
    await stopped.wait()
    server.stop()
    await hubs.aclose()
    await kernel.shutdown_kernel(now=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
