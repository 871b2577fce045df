"""Tests of the Dockerfile without Docker: it is parsed, and its commands are run."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[1]
BUILD, RUNTIME = 0, 1


class Instruction:
    def __init__(self, stage: int, name: str, value: str) -> None:
        self.stage, self.name, self.value = stage, name, value

    @property
    def exec_form(self) -> list[str]:
        """Return the words of a JSON array, which runs without a shell."""
        found = json.loads(self.value)
        assert isinstance(found, list)
        assert all(isinstance(word, str) for word in found)
        return found


def read(path: Path) -> list[Instruction]:
    parser = DockerfileParser(fileobj=BytesIO(path.read_bytes()), env_replace=False)
    stage, found = -1, []
    for entry in parser.structure:
        name = entry["instruction"]
        if name == "COMMENT":
            continue
        stage += name == "FROM"
        found.append(Instruction(stage, name, entry["value"]))
    return found


INSTRUCTIONS = read(ROOT / "Dockerfile")


def only(name: str, stage: int = RUNTIME) -> Instruction:
    found = [i for i in INSTRUCTIONS if i.name == name and i.stage == stage]
    assert len(found) == 1, f"{name} stands {len(found)} times in stage {stage}"
    return found[0]


def command() -> list[str]:
    return only("ENTRYPOINT").exec_form + only("CMD").exec_form


def health_command() -> list[str]:
    value = only("HEALTHCHECK").value
    return Instruction(RUNTIME, "CMD", value[value.index("CMD ") + 4 :]).exec_form


def test_there_are_a_build_stage_and_a_runtime_stage() -> None:
    froms = [i.value for i in INSTRUCTIONS if i.name == "FROM"]
    assert [f.split()[-2:] for f in froms] == [["AS", "build"], ["AS", "runtime"]]
    assert [f.split()[0] for f in froms] == ["${BASE}"] * 2, "the environment needs its python"


def test_the_runtime_stage_copies_only_the_environment() -> None:
    *options, source, target = only("COPY").value.split()
    assert "--from=build" in options
    assert source == target, "a virtual environment cannot be moved"


def test_the_user_of_the_image_can_install_packages() -> None:
    """pip writes to the environment, which belongs to the user."""
    uid = only("USER").value
    assert f"--chown={uid}:{uid}" in only("COPY").value.split()


def test_the_python_of_the_base_image_is_supported() -> None:
    arg = next(i for i in INSTRUCTIONS if i.name == "ARG").value  # the first
    match = re.fullmatch(r"BASE=python:(3\.\d+)\.\d+-slim-\w+@sha256:[0-9a-f]{64}", arg)
    assert match, "the base image is pinned by its digest"
    version = match[1]
    assert f'"Programming Language :: Python :: {version}"' in (ROOT / "pyproject.toml").read_text()


def test_the_server_does_not_run_as_root() -> None:
    uid = int(only("USER").value)
    assert uid > 0
    made = only("RUN").value
    assert f"--uid {uid} " in made
    after = [i.name for i in INSTRUCTIONS if i.stage == RUNTIME]
    assert after.index("USER") > after.index("RUN"), "no package is installed as that user"


def test_sigterm_reaches_the_server() -> None:
    """The exec form runs no shell, and the init process forwards signals."""
    assert command()[:3] == ["tini", "--", "kbridge"]
    assert re.search(r"install\b.*\btini\b", only("RUN").value)


def test_the_server_listens_on_the_exposed_port() -> None:
    port = only("EXPOSE").value
    assert "--ip=0.0.0.0" in command()
    assert f"--port={port}" in command()


def test_the_health_check_follows_the_options() -> None:
    """The check reads port, scheme and base URL of the server from the runtime file."""
    assert health_command() == ["kbridge", "health"]


def test_the_build_context_has_only_the_copied_files() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    copies = [i.value.split()[:-1] for i in INSTRUCTIONS if i.name == "COPY" and i.stage == BUILD]
    copied = {name for names in copies for name in names}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def get_api(port: int, host: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/api", headers={"Host": host})
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    finally:
        connection.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_build_steps_make_an_environment_that_serves(tmp_path: Path) -> None:
    """Run the unchanged commands of the build stage in temporary directories, then the CMD."""
    source = tmp_path / "src"
    source.mkdir()
    for copy in (i.value.split() for i in INSTRUCTIONS if i.name == "COPY" and i.stage == BUILD):
        *names, target = copy
        for name in names:
            subprocess.run(["cp", "-r", ROOT / name, source / target], check=True)
    base = tmp_path / "base"
    subprocess.run([sys.executable, "-m", "venv", base], check=True)
    moved = {p: str(tmp_path / p[1:]) for p in ("/opt/kbridge", "/wheels")}
    env = {
        "PATH": f"{base / 'bin'}:/usr/bin:/bin",
        "HOME": str(tmp_path / "home"),
        **{k: v for k, v in os.environ.items() if k.startswith("PIP_") or k.endswith("_CERT")},
        **{k: v for k, v in os.environ.items() if k.lower().endswith("_proxy")},
    }
    for step in (i.value for i in INSTRUCTIONS if i.name == "RUN" and i.stage == BUILD):
        run = step
        for path, place in moved.items():
            run = run.replace(path, place)
        done = subprocess.run(
            ["sh", "-c", run], cwd=source, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    path = f"{moved['/opt/kbridge']}/bin:/usr/bin:/bin"
    env = {"PATH": path, "HOME": env["HOME"], "JUPYTER_TOKEN": "sesame"}
    kbridge = Path(moved["/opt/kbridge"], "bin", "kbridge")
    version = subprocess.run([kbridge, "--version"], env=env, capture_output=True, text=True)
    assert version.returncode == 0, version.stderr
    assert re.fullmatch(r"\d+\.\d+\S*", version.stdout.strip())

    port = free_port()
    exposed = only("EXPOSE").value
    words = [word.replace(exposed, str(port)) for word in command()[2:]]
    with subprocess.Popen(
        [kbridge, *words[1:]],
        env=env,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        try:
            wait_for_listener(server, port)
            # The container's port is published under the host's own name and port.
            assert get_api(port, f"localhost:{port}")[0] == 200
            check = [str(kbridge), *health_command()[1:]]
            healthy = subprocess.run(check, env=env, capture_output=True, text=True)
            assert healthy.returncode == 0, healthy.stderr
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=30) == 0
            unhealthy = subprocess.run(check, env=env, capture_output=True, text=True)
            assert unhealthy.returncode == 1
        finally:
            server.kill()
    if os.geteuid() == 0 and others_can_reach(Path(sys.executable).resolve()):
        install_as_the_user(tmp_path, moved)


def others_can_reach(path: Path) -> bool:
    """False for an interpreter in root's home, which no other user can start."""
    return all(parent.stat().st_mode & 0o001 for parent in path.parents)


def install_as_the_user(tmp_path: Path, moved: dict[str, str]) -> None:
    """`%pip install` in the image: as its user, who owns what COPY says."""
    uid = int(only("USER").value)
    environment = Path(moved["/opt/kbridge"])
    if f"--chown={uid}:{uid}" in only("COPY").value.split():
        subprocess.run(["chown", "-R", f"{uid}:{uid}", environment], check=True)
    home = tmp_path / "home-of-the-user"
    home.mkdir()
    os.chown(home, uid, uid)
    for parent in tmp_path.parents:  # pytest's directories are their owner's alone
        if parent.stat().st_uid == 0 and parent != parent.parent:
            parent.chmod(parent.stat().st_mode | 0o011)
    tmp_path.chmod(0o755)
    done = subprocess.run(
        [
            *(environment / "bin" / "python", "-m", "pip", "install", "--no-index", "--no-deps"),
            *("--force-reinstall", f"--find-links={moved['/wheels']}", "traitlets"),
        ],
        env={"PATH": "/usr/bin:/bin", "HOME": str(home)},
        cwd=home,
        user=uid,
        group=uid,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(environment.glob("lib/python*/site-packages/traitlets/__init__.py"))


def wait_for_listener(server: subprocess.Popen[str], port: int) -> None:
    """Until it says where it listens; the end of its output is the failure."""
    assert server.stdout is not None
    said = []
    for line in server.stdout:
        said.append(line)
        if f":{port}" in line:
            return
    pytest.fail("".join(said))
