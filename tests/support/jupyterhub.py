"""A real JupyterHub on 127.0.0.1 with its proxy, with kbridge as its service."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.support.require import require
from tests.support.server import Reply, free_port
from tests.support.waiting import TIMEOUT, eventually

__all__ = ["ADMIN", "PASSWORD", "Hub", "jupyterhub"]

ADMIN = "root-of-the-hub"
PASSWORD = "the same for everybody"
_START = 4 * TIMEOUT  # JupyterHub imports much
_CONFIG = """
import sys
c = get_config()
c.JupyterHub.bind_url = "http://127.0.0.1:{port}"
c.JupyterHub.hub_bind_url = "http://127.0.0.1:{hub_port}"
c.ConfigurableHTTPProxy.command = [{proxy!r}]
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{proxy_port}"
c.JupyterHub.log_level = "DEBUG"
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = {password!r}
c.Authenticator.allow_all = True
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = {homes!r} + "/{{username}}"
c.Spawner.cmd = [sys.executable, "-m", "jupyterhub.singleuser"]
c.Spawner.args = ["--allow-root"]
c.Spawner.http_timeout = c.Spawner.start_timeout = {start}
c.LocalProcessSpawner.interrupt_timeout = c.LocalProcessSpawner.term_timeout = 2
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 0}}  # requests do not wait for servers
c.Spawner.env_keep = ["PATH", "LANG", "LC_ALL", "VIRTUAL_ENV", "JUPYTER_PLATFORM_DIRS"]
c.Spawner.environment = {{
    # Of one user, the kernels are in the gateway.
    "JUPYTER_GATEWAY_URL": lambda spawner: {gateway!r} if spawner.user.name == "carol" else "",
    "JUPYTER_GATEWAY_AUTH_TOKEN": lambda spawner: spawner.api_token,
}}
c.JupyterHub.custom_scopes = {{"custom:kbridge:admin": {{"description": "all kernels"}}}}
c.JupyterHub.services = [
    {{
        "name": "kbridge",
        "url": "http://127.0.0.1:{service_port}",
        "command": [sys.executable, "-m", "kbridge", *{options!r}],
        "environment": {environment!r},
        "oauth_client_allowed_scopes": ["custom:kbridge:admin"],
    }},
    {{"name": "tests", "api_token": {token!r}}},
]
access = "access:services!service=kbridge"
c.JupyterHub.load_roles = [
    {{"name": "user", "scopes": ["self", access]}},
    {{"name": "server", "scopes": ["users:activity!user", "access:servers!server", access]}},
    {{"name": "kbridge-admins", "scopes": ["custom:kbridge:admin"], "users": [{admin!r}]}},
    {{"name": "kbridge", "scopes": ["users:activity"], "services": ["kbridge"]}},
    {{"name": "tests", "services": ["tests"], "scopes": [
        "admin:users", "tokens", "admin:servers", "access:servers", access]}},
]
"""


class Hub:
    """JupyterHub, from its start to its exit.

    Parameters
    ----------
    home : Path
        An empty directory for all files.
    *options : str
        Options of kbridge.

    Attributes
    ----------
    url : str
        The public address, of the proxy.
    log : Path
        The output of JupyterHub, its proxy and kbridge.
    """

    def __init__(self, home: Path, *options: str) -> None:
        self.home = home
        self.log = home / "hub.log"
        self._port, self._service_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.service_url = f"http://127.0.0.1:{self._service_port}/services/kbridge"
        self._token = secrets.token_hex(16)
        self._tokens: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        directories = {
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "JUPYTER_DATA_DIR": str(home / "data"),
            "JUPYTER_CONFIG_DIR": str(home / "config"),
            "IPYTHONDIR": str(home / "ipython"),
            "PYTHONUNBUFFERED": "1",
        }
        (home / "jupyterhub_config.py").write_text(
            _CONFIG.format(
                port=self._port,
                hub_port=free_port(),
                proxy_port=free_port(),
                service_port=self._service_port,
                proxy=require("configurable-http-proxy"),
                password=PASSWORD,
                start=int(_START),
                homes=str(home / "homes"),
                gateway=self.service_url,
                options=list(options),
                environment=directories,
                token=self._token,
                admin=ADMIN,
            )
        )

    def start(self) -> Hub:
        (self.home / "homes").mkdir(exist_ok=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "KG_"))}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "-f", "jupyterhub_config.py"],
                cwd=self.home,
                env={**kept, "JUPYTER_PLATFORM_DIRS": "1", "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        eventually(self._serves, f"JupyterHub serves; see {self.log}", _START)
        return self

    def _serves(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()[-3000:]
        try:
            return self.request("GET", "/services/kbridge/api").status == 200
        except OSError:
            return False

    def stop(self) -> None:
        """End JupyterHub as an operator does; it ends its proxy, its service and the servers."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(_START)
        self._process = None

    def request(
        self,
        method: str,
        path: str,
        *,
        token: str = "",
        headers: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> Reply:
        """Send a request to the proxy."""
        sent = {"Authorization": f"token {token}"} if token else {}
        connection = HTTPConnection("127.0.0.1", self._port, timeout=_START)
        try:
            connection.request(
                method,
                path,
                body=None if body is None else json.dumps(body),
                headers={**sent, **(headers or {})},
            )
            reply = connection.getresponse()
            return Reply(reply.status, reply.headers, reply.read())
        finally:
            connection.close()

    def api(self, method: str, path: str, body: Any = None) -> Reply:
        """Send a request to the API of JupyterHub, as an operator."""
        return self.request(method, f"/hub/api/{path}", token=self._token, body=body)

    def service(self, method: str, path: str, *, user: str, body: Any = None) -> Reply:
        """Send a request to kbridge, with a token of a user."""
        return self.request(method, f"/services/kbridge/{path}", token=self.token(user), body=body)

    def token(self, user: str, *scopes: str) -> str:
        """Return a token of a user, by default with everything that the user may do."""
        if not scopes and user in self._tokens:
            return self._tokens[user]
        self.api("POST", f"users/{user}")
        body = {"scopes": list(scopes)} if scopes else {}
        reply = self.api("POST", f"users/{user}/tokens", body)
        assert reply.status == 201, reply
        made = str(reply.json()["token"])
        if not scopes:
            self._tokens[user] = made
        return made

    def withdraw(self, user: str, token: str) -> None:
        """Delete a token of a user."""
        [found] = [
            each["id"]
            for each in self.api("GET", f"users/{user}/tokens").json()["api_tokens"]
            if each["id"] == self._id_of(user, token)
        ]
        assert self.api("DELETE", f"users/{user}/tokens/{found}").status == 204

    def _id_of(self, user: str, token: str) -> str:
        return str(self.request("GET", "/hub/api/user", token=token).json()["token_id"])


@contextmanager
def jupyterhub(home: Path, *options: str) -> Iterator[Hub]:
    """Run JupyterHub with kbridge as its service."""
    require("jupyterhub")
    hub = Hub(home, *options)
    try:
        yield hub.start()
    finally:
        hub.stop()
