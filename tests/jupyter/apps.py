"""Jupyter Servers of the test's own process, with the extension as the wheel installs it."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

from jupyter_server.serverapp import ServerApp
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port

SHIPPED = (
    Path(__file__).parents[2]
    / "jupyter-config"
    / "jupyter_server_config.d"
    / "kbridge-extension.json"
)


class Jupyter:
    """Makes Jupyter Servers in directories of the test, one after the other.

    Attributes
    ----------
    config_file : Path
        The user's jupyter_server_config.py.
    switch : Path
        The file that enables the extension, as the wheel installs it.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.config_file = home / "config" / "jupyter_server_config.py"
        self.switch = home / "config" / "jupyter_server_config.d" / SHIPPED.name
        self.switch.parent.mkdir(parents=True)
        shutil.copy(SHIPPED, self.switch)
        self._log = io.StringIO()
        self._apps: list[ServerApp] = []
        self._listening: list[HTTPServer] = []

    def start(self, *argv: str, config: str = "", **kwargs: Any) -> ServerApp:
        """Initialize a server; `kwargs` are the arguments of a program that embeds it."""
        if config:
            self.config_file.write_text(f"c = get_config()\n{config}\n")
        app = ServerApp(
            open_browser=False,
            allow_root=True,
            root_dir=str(self.home),
            logging_config={"handlers": {"console": {"stream": self._log}}},
            **kwargs,
        )
        self._apps.append(app)
        # Do not change the signal handlers and limits of the test run.
        app.init_signal = app.init_resources = lambda: None
        app.initialize(argv=list(argv), new_httpserver=False)
        return app

    @property
    def log(self) -> str:
        return self._log.getvalue()

    def ours(self) -> list[str]:
        """Return the lines that the extension logged."""
        lines = [line.partition("kbridge | ")[2] for line in self.log.splitlines()]
        return [line for line in lines if line and not line.startswith("extension was")]

    def complaints(self) -> list[str]:
        return [line for line in self.log.splitlines() if line[:3] in {"[W ", "[E ", "[C "}]

    def serve(self, app: ServerApp) -> str:
        """Answer requests to a server that was started; return its URL."""
        sock, port = bind_unused_port()
        self._listening.append(HTTPServer(app.web_app))
        self._listening[-1].add_socket(sock)
        return f"http://127.0.0.1:{port}{app.base_url}"

    async def aclose(self) -> None:
        for server in self._listening:
            server.stop()
            await server.close_all_connections()
        for app in self._apps:
            await app._cleanup()
