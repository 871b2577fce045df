"""`kbridge mcp`: kernels for language models, over the Model Context Protocol."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final

from traitlets import Unicode

from kbridge.client import connect
from kbridge.errors import InvalidRequest, KbridgeError
from kbridge.server.cli.commands import _Command

__all__ = ["McpApp"]

_NOT_RUN: Final = 2
_TERMINATED: Final = 128 + signal.SIGTERM


class McpApp(_Command):
    """Serves the Model Context Protocol on stdin and stdout."""

    name = "kbridge-mcp"
    description = """Give a language model the kernels of a server: the Model Context Protocol on
    stdin and stdout.

    A program such as Claude Code or an editor starts this command. It uses the server that --server
    or KBRIDGE_URL names, or the server of this user that runs. If there is none, it starts one,
    which ends with this command, together with its kernels. Needs the package mcp:
    `pip install '.[mcp]'` in a clone of kbridge.
    """
    examples = """\
kbridge mcp                                         # the server of this user, or a new one
kbridge mcp --server https://host/ --token-file ~/.kbridge-token
claude mcp add jupyter -- kbridge mcp               # in Claude Code
"""
    aliases = {  # noqa: RUF012  # the interface of traitlets
        **_Command.aliases,
        "server": "McpApp.server",
        "token": "McpApp.token",
        "token-file": "McpApp.token_file",
    }

    server = Unicode(
        "",
        help="""The URL of the server. By default KBRIDGE_URL, or the server of this user that
        runs, or a new one.""",
    ).tag(config=True)
    token = Unicode(
        "",
        help="""The token of the server. By default KBRIDGE_TOKEN, or the token of the server of
        this user with that URL. Other users of the machine can read command lines: token_file is
        safer.""",
    ).tag(config=True)
    token_file = Unicode("", help="The path of a file with the token.").tag(config=True)

    def start(self) -> None:
        """Serve until stdin ends."""
        super().start()
        if self.extra_args:
            self._fail("usage: kbridge mcp; see kbridge mcp --help")
        try:
            import mcp  # noqa: F401
        except ImportError:
            self._fail("kbridge mcp needs the package mcp: pip install '.[mcp]' in a clone")
        try:
            asyncio.run(self._serve_until_signal())
        except KbridgeError as error:
            self._fail(f"kbridge mcp: {error.reason}")
        except OSError as error:
            self._fail(f"kbridge mcp: {error}")

    def _fail(self, reason: str) -> None:
        sys.stderr.write(f"{reason}\n")
        sys.exit(_NOT_RUN)

    async def _serve_until_signal(self) -> None:
        _cancel_on_sigterm()
        try:
            await self._serve()
        except asyncio.CancelledError:
            os._exit(_TERMINATED)  # a thread reads stdin, and would go on until its end

    async def _serve(self) -> None:
        from kbridge.mcp.local_server import local_server
        from kbridge.mcp.tools import make_server

        async with AsyncExitStack() as stack:
            url, token = self.server, self.token or self._token_of_file()
            if not (url or os.environ.get("KBRIDGE_URL") or self.servers()):
                url, token = await stack.enter_async_context(local_server())
            server = await stack.enter_async_context(connect(url, token))
            served, kernels = make_server(server)
            stack.push_async_callback(kernels.aclose)
            # If this task is cancelled, that one is not: its thread cannot be stopped.
            serving = asyncio.create_task(_serve_stdio(served))
            await asyncio.wait([serving])
            _ignore_sigterm()  # clients send it if the end takes some seconds
            serving.result()

    def _token_of_file(self) -> str:
        if not self.token_file:
            return ""
        token = Path(self.token_file).expanduser().read_text(encoding="utf-8").strip()
        if not token:
            raise InvalidRequest(f"{self.token_file} is empty")
        return token


async def _serve_stdio(served: Any) -> None:
    try:
        await served.run_stdio_async()
    except* BrokenPipeError:
        pass  # the client has ended while a tool ran


def _cancel_on_sigterm() -> None:
    """Cancel the current task at the first SIGTERM."""
    task = asyncio.current_task()
    assert task is not None

    def end() -> None:
        _ignore_sigterm()
        task.cancel()

    with suppress(NotImplementedError):  # Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)


def _ignore_sigterm() -> None:
    with suppress(NotImplementedError):  # Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)
