"""Jupyter Server with kbridge's class in the process of the tests, so that they see its objects."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_server.serverapp import ServerApp
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from traitlets.config import Config

from kbridge.connection.channels import HUBS
from kbridge.hub.hub import Hub
from kbridge.hub.table import HubTable
from kbridge.jupyter import ZMQChannelsWebsocketConnection
from kbridge.jupyter.hubs import JupyterHubs
from tests.jupyter.rig import until
from tests.support.server import TOKEN, Server

# Kernelspecs besides ipykernel's python3: one whose kernel ends at once, and one that cannot start.
_SPECS = {
    "broken": [sys.executable, "-c", "raise SystemExit(3)", "{connection_file}"],
    "missing": ["/nonexistent/kernel", "{connection_file}"],
}


class Inside(Server):
    """A server with the interface of `Server`, but in this process."""

    def __init__(self, home: Path, app: ServerApp, port: int) -> None:
        super().__init__(home)
        self.app = app
        self.port = port

    @property
    def kernels(self) -> Any:
        """Jupyter Server's manager of kernels."""
        return self.app.kernel_manager

    @property
    def settings(self) -> dict[str, Any]:
        return self.app.web_app.settings

    @property
    def hubs(self) -> HubTable:
        hubs = self.settings[HUBS]
        assert isinstance(hubs, JupyterHubs)
        return hubs.table

    def hub(self, kernel_id: str) -> Hub:
        return self.hubs[kernel_id]

    async def new_kernel(self, name: str = "python3") -> str:
        reply = await self.call("POST", "/api/kernels", {"name": name})
        assert reply.status == 201, reply.body
        return str(reply.json()["id"])

    async def until_answers(self, kernel_id: str) -> None:
        """Wait until a kernel answers, whichever of its processes that is.

        jupyter_client chooses free ports and closes them again, so that another process may take
        one before the kernel binds it, the more often the slower the machine is. That kernel ends
        at once, and is restarted on other ports.
        """
        kernel = self.kernels.get_kernel(kernel_id)

        async def answers() -> bool:
            client = kernel.client()
            client.start_channels()
            try:
                await client.wait_for_ready(timeout=5)
            except RuntimeError:  # this process has ended, or is slow
                return False
            finally:
                client.stop_channels()
            return True

        await until(answers, "the kernel answers")

    async def model(self, kernel_id: str) -> dict[str, Any]:
        """Return the kernel's model from the REST API."""
        reply = await self.call("GET", f"/api/kernels/{kernel_id}")
        assert reply.status == 200, reply.body
        return dict(reply.json())

    async def says(self, kernel_id: str, **values: Any) -> None:
        """Wait until the model of a kernel has these values."""
        model: dict[str, Any] = {}

        async def said() -> bool:
            nonlocal model
            model = await self.model(kernel_id)
            return all(model[name] == value for name, value in values.items())

        await until(said, lambda: f"{values} of {model}")

    def pid(self, kernel_id: str) -> int:
        return int(self.kernels.get_kernel(kernel_id).provisioner.pid)

    @contextmanager
    def handlers(self) -> Iterator[list[Any]]:
        """Yield the handlers of the open websockets."""
        yield [c.websocket_handler for c in ZMQChannelsWebsocketConnection._open_sockets]

    @asynccontextmanager
    async def set(self, **traits: Any) -> AsyncIterator[None]:
        """Change settings of the manager for the duration of the block; hubs are created again."""
        before = {name: getattr(self.kernels, name) for name in traits}
        for values in (traits, before):
            if HUBS in self.settings:
                await self.settings.pop(HUBS).aclose()
            for name, value in values.items():
                setattr(self.kernels, name, value)
            if values is traits:
                yield


def environment(patch: pytest.MonkeyPatch, home: Path) -> None:
    """Use one directory for all files of Jupyter."""
    for name in ("RUNTIME", "DATA", "CONFIG"):
        patch.setenv(f"JUPYTER_{name}_DIR", str(home / name.lower()))
    patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    patch.setenv("IPYTHONDIR", str(home / "ipython"))
    for name, argv in _SPECS.items():
        spec = home / "data" / "kernels" / name / "kernel.json"
        spec.parent.mkdir(parents=True)
        spec.write_text(json.dumps({"argv": argv, "display_name": name, "language": "python"}))


@asynccontextmanager
async def running(home: Path, config: dict[str, Any] | None = None) -> AsyncIterator[Inside]:
    """Run Jupyter Server in this event loop."""
    (home / "root").mkdir()
    whole = Config(config or {})
    whole.IdentityProvider.token = TOKEN
    app = ServerApp(
        config=whole,
        root_dir=str(home / "root"),
        allow_root=True,
        open_browser=False,
        kernel_websocket_connection_class=ZMQChannelsWebsocketConnection,
    )
    app.init_signal = lambda: None  # type: ignore[method-assign]
    app.initialize(argv=[], find_extensions=False, new_httpserver=False)
    app.log.propagate = True
    app.log.handlers = []
    app.log.setLevel(logging.INFO)
    sockets = bind_sockets(0, "127.0.0.1")
    http = HTTPServer(app.web_app)
    http.add_sockets(sockets)
    try:
        yield Inside(home, app, sockets[0].getsockname()[1])
    finally:
        http.stop()
        await app._cleanup()
        await http.close_all_connections()
        app.kernel_manager.context.destroy(linger=0)
