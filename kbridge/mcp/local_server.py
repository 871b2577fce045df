"""A server for one `kbridge mcp`, if none is named and none runs; it ends with that process."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from kbridge.errors import BridgeError
from kbridge.mcp.folder import private_folder

__all__ = ["local_server"]

_START_S: Final = 120.0
_END_S: Final = 30.0
_POLL_S: Final = 0.05
_LOG_LINES: Final = 5
# Linux ends the server when the process that started it is killed.
_PROGRAM: Final = """
import os, signal, sys
parent = int(sys.argv.pop(1))
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)
from kbridge.server.main import main
main()
"""


@asynccontextmanager
async def local_server() -> AsyncIterator[tuple[str, str]]:
    """Start a server on a private unix socket; give its URL and its token, and end it afterwards.

    Other programs do not find it: its runtime files are in a private directory.

    Raises
    ------
    BridgeError
        If it does not start.
    """
    with private_folder() as (folder, inherited):
        token, sock, log = secrets.token_hex(24), folder / "kbridge.sock", folder / "log"
        environment = {
            **{
                name: value for name, value in os.environ.items() if not name.startswith("KBRIDGE_")
            },
            "JUPYTER_TOKEN": token,
            "JUPYTER_RUNTIME_DIR": str(folder),
        }
        arguments = [f"--sock={sock}", "--shutdown-kernels-on-exit=true"]
        process = await _start(arguments, environment, log, inherited)
        try:
            await _listening(process, folder, log)
            yield f"http+unix://{quote(str(sock), safe='')}/", token
        finally:
            await _end(process)


async def _start(
    arguments: list[str], environment: dict[str, str], log: Path, inherited: tuple[int, ...]
) -> asyncio.subprocess.Process:
    with log.open("wb") as file:  # nothing else runs yet
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _PROGRAM, str(os.getpid()), *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            pass_fds=inherited,
        )


async def _listening(process: asyncio.subprocess.Process, folder: Path, log: Path) -> None:
    """Wait until the server has written its runtime file, which it does once it listens."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_START_S):
            while process.returncode is None:
                if _is_listening(folder):
                    return
                await asyncio.sleep(_POLL_S)
    raise BridgeError(f"the local server did not start: {_last_lines(log)}")


def _is_listening(folder: Path) -> bool:
    for path in folder.glob("kbserver-*.json"):
        with suppress(OSError, ValueError):
            return bool(json.loads(path.read_text()).get("url"))
    return False


def _last_lines(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the server, and its kernels with it."""
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_END_S):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
