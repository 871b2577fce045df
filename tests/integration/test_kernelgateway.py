"""`jupyter kernelgateway` with the command lines of other programs."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from kbridge.server.cli.kernelgateway import install_alias
from tests.support.client import dial
from tests.support.server import free_port
from tests.support.waiting import TIMEOUT

JUPYTER = [sys.executable, "-m", "jupyter", "kernelgateway"]
Start = Callable[..., "Gateway"]


class Gateway:
    """A server that `jupyter kernelgateway` started; wait until it logs its address."""

    def __init__(self, args: list[str], env: dict[str, str], home: Path) -> None:
        self.process = subprocess.Popen(
            args, env=env, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        self.said = ""
        for line in self.process.stderr:
            self.said += line
            if "is available at" in line:
                self.port = int(line.split(":")[-1])
                return
        raise AssertionError(f"it did not start: {self.said}")

    def request(self, method: str, path: str, token: str = "") -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        headers = {"Authorization": f"token {token}"} if token else {}
        try:
            connection.request(method, path, headers=headers)
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the gateway's command in an environment where it is an alias of kbridge."""
    programs = tmp_path / "bin"
    programs.mkdir()
    install_alias(programs)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "KG_"))}
    for name in ("CONFIG", "RUNTIME", "DATA"):
        env[f"JUPYTER_{name}_DIR"] = str(tmp_path / name.lower())
    env["PATH"] = f"{programs}:{env['PATH']}"
    running: list[Gateway] = []

    def start(*args: str, **more: str) -> Gateway:
        running.append(Gateway([*JUPYTER, *args], env | more, tmp_path))
        return running[-1]

    yield start
    for gateway in running:
        if gateway.process.poll() is None:
            gateway.stop(signal.SIGKILL)


def autogen(port: int) -> list[str]:
    """Return the options of AutoGen's LocalJupyterServer."""
    logging_config = {
        "handlers": {
            "file": {
                "class": "logging.handlers.RotatingFileHandler",
                "level": "INFO",
                "maxBytes": 1048576,
                "backupCount": 3,
                "filename": "jupyter_gateway.log",
            }
        },
        "loggers": {"KernelGatewayApp": {"level": "INFO", "handlers": ["file", "console"]}},
    }
    return [
        *("--KernelGatewayApp.ip", "127.0.0.1"),
        *("--KernelGatewayApp.port", str(port)),
        *("--KernelGatewayApp.auth_token", "from-autogen"),
        *("--JupyterApp.answer_yes", "true"),
        *("--JupyterApp.logging_config", json.dumps(logging_config)),
        *("--JupyterWebsocketPersonality.list_kernels", "true"),
    ]


def test_the_command_of_autogen_is_supported(start: Start, tmp_path: Path) -> None:
    port = free_port()
    gateway = start(*autogen(port))
    assert gateway.port == port
    assert gateway.request("GET", "/api/kernels")[0] == 403
    assert gateway.request("GET", "/api/kernels", "from-autogen") == (200, b"[]")
    assert "from-autogen" not in gateway.said
    assert "is available at" in (tmp_path / "jupyter_gateway.log").read_text()
    assert gateway.stop(signal.SIGINT) == 0


def test_the_docker_command_of_autogen_is_supported(start: Start) -> None:
    gateway = start(
        "--KernelGatewayApp.ip=0.0.0.0",
        f"--KernelGatewayApp.port={free_port()}",
        "--KernelGatewayApp.auth_token=from-autogen",
        "--JupyterApp.answer_yes=true",
        "--JupyterWebsocketPersonality.list_kernels=true",
    )
    assert gateway.request("GET", "/api/kernelspecs", "from-autogen")[0] == 200
    assert gateway.stop(signal.SIGTERM) == 0


@pytest.mark.kernel
async def test_the_command_of_smolagents_is_supported(start: Start) -> None:
    """The token is in the environment; every request has it in the URL."""
    gateway = start(
        "--KernelGatewayApp.ip=0.0.0.0",
        f"--KernelGatewayApp.port={free_port()}",
        KG_AUTH_TOKEN="from-smolagents",
    )
    token = "?token=from-smolagents"
    assert gateway.request("GET", f"/api/kernelspecs{token}")[0] == 200
    status, body = gateway.request("POST", f"/api/kernels{token}")
    assert status == 201, body
    kernel_id = json.loads(body)["id"]
    url = f"ws://127.0.0.1:{gateway.port}/api/kernels/{kernel_id}/channels{token}"
    async with dial(url, "legacy") as client:
        assert (await client.execute("print(6 * 7)")).text() == "42\n"
    assert gateway.request("DELETE", f"/api/kernels/{kernel_id}{token}")[0] == 204
    assert gateway.stop(signal.SIGTERM) == 0


def test_without_a_token_a_random_one_is_generated(start: Start) -> None:
    gateway = start(f"--KernelGatewayApp.port={free_port()}")
    assert "no token is set" in gateway.said
    assert gateway.request("GET", "/api/kernelspecs")[0] == 403
    gateway.stop(signal.SIGTERM)


def test_the_token_can_be_disabled_and_kernels_are_not_listed(start: Start) -> None:
    gateway = start(f"--port={free_port()}", "--KernelGatewayApp.auth_token=")
    assert gateway.request("GET", "/api/kernelspecs")[0] == 200
    assert gateway.request("GET", "/api/kernels")[0] == 403
    gateway.stop(signal.SIGTERM)


def test_the_config_file_of_the_gateway_is_read(start: Start, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "jupyter_kernel_gateway_config.py").write_text(
        "c.KernelGatewayApp.auth_token = 'from-a-file'\n"
        "c.KernelGatewayApp.base_url = '/gw'\n"
        "c.KernelGatewayApp.certfile = None\n"
        "c.JupyterWebsocketPersonality.list_kernels = True\n"
    )
    gateway = start(f"--KernelGatewayApp.port={free_port()}", "--KernelGatewayApp.base_url=/cli")
    assert gateway.request("GET", "/cli/api/kernels", "from-a-file")[0] == 200
    gateway.stop(signal.SIGTERM)
