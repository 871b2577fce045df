"""A stand-in for the API server of Kubernetes: the calls of gateway_provisioners, for Pods.

The client, the launcher and the kernel are the real ones. A Pod is a process on this machine, with
the address 127.0.0.1: there is no image, no node and no network of Pods. Objects are checked
against the schemas of Kubernetes, and calls against the rules of a Role.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate

from tests.support.waiting import TIMEOUT

__all__ = ["KubernetesApi"]

_LONGEST_NAME = 253  # the schemas do not contain it
_VERBS = {"GET": "list", "POST": "create", "DELETE": "delete"}


class _Pod:
    def __init__(self, body: dict[str, Any], command: Sequence[str], log: Path) -> None:
        self.body = body
        (container,) = body["spec"]["containers"]
        env = {item["name"]: item["value"] for item in container["env"]}
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                env=env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def model(self) -> dict[str, Any]:
        code = self.process.poll()
        phase = "Running" if code is None else "Failed" if code else "Succeeded"
        status = {"phase": phase, "podIP": "127.0.0.1", "hostIP": "127.0.0.1"}
        return {**self.body, "status": status}

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(TIMEOUT)


class KubernetesApi:
    """The server; a context in which it runs.

    Parameters
    ----------
    home : Path
        An empty directory for all files.
    namespace : str
        The only namespace.
    rules : list of dict
        The rules of the Role of the client in that namespace.
    command : list of str
        The command of the only image.

    Attributes
    ----------
    created : list of dict
        The Pods that were created, as the client sent them.
    refused : list of str
        The calls that were refused, and why.
    kubeconfig : Path
        The configuration of clients.
    """

    def __init__(
        self,
        home: Path,
        namespace: str,
        rules: Sequence[Mapping[str, Any]],
        command: Sequence[str],
    ) -> None:
        self._home = home
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self._verbs = {
            verb for rule in rules if rule["resources"] == ["pods"] for verb in rule["verbs"]
        }
        self._command = command
        self._pods: dict[str, _Pod] = {}
        self._lock = threading.Lock()
        self.created: list[dict[str, Any]] = []
        self.refused: list[str] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"null")
                status, found = api.answer(self.command, self.path, body)
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_args: Any) -> None:
                pass

        for method in ("POST", "DELETE", "PATCH", "PUT"):
            setattr(Handler, f"do_{method}", Handler.do_GET)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.kubeconfig = home / "kubeconfig"

    def __enter__(self) -> Self:
        url = f"http://127.0.0.1:{self._server.server_port}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": url}}],
            "users": [{"name": "test", "user": {"token": "test"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }
        self.kubeconfig.write_text(json.dumps(config))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(TIMEOUT)
        for pod in self._pods.values():
            pod.kill()

    @property
    def pods(self) -> dict[str, dict[str, Any]]:
        """The Pods that exist, by name."""
        with self._lock:
            return {name: pod.model() for name, pod in self._pods.items()}

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of the container of a Pod."""
        (container,) = self.pods[name]["spec"]["containers"]
        return {item["name"]: item["value"] for item in container["env"]}

    def evict(self, name: str) -> None:
        """Delete a Pod as a node that is drained does: its container ends at once."""
        with self._lock:
            self._pods.pop(name).kill()

    def tail(self) -> str:
        """Return the end of the output of all containers."""
        logs = sorted(self._home.glob("*.log"))
        return "\n".join(log.read_text(errors="replace")[-2000:] for log in logs)

    def answer(self, method: str, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        """Return the status and the object with which a call is answered."""
        with self._lock:
            return self._call(method, path, body)

    def _call(self, method: str, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        parts = urlsplit(path)
        verb = _VERBS.get(method, method.lower())
        if not parts.path.startswith(self._path) or verb not in self._verbs:
            return self._refuse(403, "Forbidden", f"{method} {path}")
        name = parts.path.removeprefix(self._path).strip("/")
        if verb == "create":
            return self._create(body)
        if verb == "delete":
            pod = self._pods.pop(name, None)
            if pod is None:
                return self._refuse(404, "NotFound", name)
            pod.kill()
            return 200, pod.model()
        wanted = dict(
            term.split("=") for term in parse_qs(parts.query)["labelSelector"][0].split(",")
        )
        found = [
            pod.model()
            for pod in self._pods.values()
            if wanted.items() <= pod.body["metadata"]["labels"].items()
        ]
        return 200, {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": found}

    def _create(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.created.append(body)
        try:
            version = kubernetes_validate.latest_version()
            kubernetes_validate.validate(body, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            return self._refuse(422, "Invalid", str(error))
        name = body["metadata"]["name"]
        if len(name) > _LONGEST_NAME:
            return self._refuse(422, "Invalid", f"metadata.name has {len(name)} characters")
        if name in self._pods:
            return self._refuse(409, "AlreadyExists", name)
        pod = self._pods[name] = _Pod(body, self._command, self._home / f"{name}.log")
        return 201, pod.model()

    def _refuse(self, code: int, reason: str, message: str) -> tuple[int, dict[str, Any]]:
        self.refused.append(f"{code} {message}")
        return code, {
            "apiVersion": "v1",
            "kind": "Status",
            "status": "Failure",
            "code": code,
            "reason": reason,
            "message": message,
        }
