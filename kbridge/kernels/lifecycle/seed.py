"""The seed notebook: its code cells run in every new kernel of its kernelspec.

As in the kernel gateway (`KG_SEED_URI`), an error in a cell is an error of the kernel's start, and
a restarted kernel does not run the notebook again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from kbridge.errors import BridgeError, KernelError, KernelStartError
from kbridge.wire.message import json_object

if TYPE_CHECKING:
    from kbridge.hub.hub import Hub

__all__ = ["Seed", "load_seed", "run_seed"]

_FETCH_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Seed:
    """Code to run, and the name of its kernelspec; an empty name fits all kernelspecs."""

    kernel_name: str
    cells: tuple[str, ...]

    def fits(self, kernel_name: str) -> bool:
        """Return True if kernels of that kernelspec run the code."""
        return self.kernel_name in ("", kernel_name)


async def load_seed(uri: str) -> Seed:
    """Read a notebook.

    Parameters
    ----------
    uri : str
        A path, a file URL, or an http(s) URL.

    Raises
    ------
    BridgeError
        If it cannot be read, or is not a notebook.
    """
    parts = urlsplit(uri)
    remote = parts.scheme in ("http", "https")
    # Without user, password and query: they may hold secrets, and errors are shown.
    name = f"{parts.scheme}://{parts.hostname}{parts.path}" if remote else uri
    try:
        if remote:
            text = await _fetch(uri)
        else:
            path = Path(unquote(parts.path) if parts.scheme == "file" else uri)
            text = await asyncio.to_thread(path.read_text, encoding="utf-8")
        return await asyncio.to_thread(_parse, text)
    except Exception as error:  # nbformat and tornado raise many kinds
        reason = f"The seed notebook {name} cannot be read: {type(error).__name__}: {error}"
        raise BridgeError(reason) from error


async def _fetch(uri: str) -> str:
    from tornado.httpclient import AsyncHTTPClient

    client = AsyncHTTPClient(force_instance=True)
    try:
        reply = await client.fetch(uri, request_timeout=_FETCH_TIMEOUT)
    finally:
        client.close()
    return reply.body.decode("utf-8")


def _parse(text: str) -> Seed:
    import nbformat

    notebook = nbformat.reads(text, as_version=4)  # type: ignore[no-untyped-call]
    kernelspec: dict[str, Any] = notebook.metadata.get("kernelspec", {})
    cells = (cell.source for cell in notebook.cells if cell.cell_type == "code")
    return Seed(kernelspec.get("name", ""), tuple(source for source in cells if source.strip()))


async def run_seed(hub: Hub, seed: Seed, timeout: float) -> None:
    """Run the cells in order, each within `timeout` seconds.

    Raises
    ------
    KernelStartError
        If a cell fails or takes too long; the reason names the cell.
    """
    for number, code in enumerate(seed.cells, 1):
        content = {
            "code": code,
            "silent": False,
            "store_history": False,  # the user's first cell is In [1]
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": True,
        }
        where = f"Code cell {number} of the seed notebook"
        try:
            reply = await hub.request("execute_request", content, timeout=timeout)
        except TimeoutError:
            raise KernelStartError(f"{where} did not end within {timeout:g} s") from None
        except KernelError as error:
            raise KernelStartError(f"{where} was not answered: {error}") from error
        result = json_object(reply.content, "execute_reply")
        if result.get("status") != "ok":
            error_name, value = result.get("ename", "aborted"), result.get("evalue", "")
            raise KernelStartError(f"{where} failed: {error_name}: {value}")
