"""Runs code with smolagents' DockerExecutor: `python smolagents_docker.py PORT`; prints JSON.

The Dockerfile is on stdin. Instead of an image and a container, its CMD is run on this machine.
"""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import docker
from smolagents.default_tools import FinalAnswerTool
from smolagents.monitoring import AgentLogger, LogLevel
from smolagents.remote_executors import DockerExecutor
from smolagents.utils import AgentError


class Container:
    """A process with the command of the image, on the port that would be published."""

    short_id = "a-container"
    status = "running"

    def __init__(self, command: list[str], ports: dict, environment: dict) -> None:
        host, port = ports["8888/tcp"]
        command = [arg.replace("8888", str(port)).replace("0.0.0.0", host) for arg in command]
        assert command.pop(0) == "kbridge"
        self.process = subprocess.Popen(
            [os.environ["KBRIDGE_PYTHON"], "-m", "kbridge", *command],
            env={**os.environ, **environment},
            stdout=sys.stderr,
        )

    def reload(self) -> None:
        pass

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    remove = reload


class Docker:
    """The parts of a Docker client that the executor uses."""

    def __init__(self) -> None:
        self.images = self.containers = self
        self.command: list[str] = []

    def build(self, fileobj, tag: str) -> tuple[object, list]:
        [line] = [line for line in fileobj.read().decode().splitlines() if line.startswith("CMD ")]
        self.command = json.loads(line.removeprefix("CMD "))
        return SimpleNamespace(), []

    def run(self, image: str, ports: dict, environment: dict, detach: bool) -> Container:
        return Container(self.command, ports, environment)


docker.from_env = Docker
executor = DockerExecutor(
    [],
    AgentLogger(level=LogLevel.OFF),
    port=int(sys.argv[1]),
    dockerfile_content=sys.stdin.read(),
)
try:
    executor.installed_packages = ["numpy", "PIL"]  # which it would install for the tool
    executor.send_tools({"final_answer": FinalAnswerTool()})
    executor.send_variables({"x": 6})
    printed = executor("print('hello')\nx * 7")
    final = executor("final_answer(x + 1)")
    # Last: it does not wait for the end of code that fails, and kernels skip code that is sent
    # before that end.
    try:
        executor("1 / 0")
    except AgentError as error:
        failure = str(error)
    print(
        json.dumps(
            {
                "logs": printed.logs,
                "output": printed.output,
                "failure": failure,
                "final": [final.output, final.is_final_answer],
            }
        )
    )
finally:
    executor.cleanup()
