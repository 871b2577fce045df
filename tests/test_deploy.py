"""The files of examples/deploy: their programs accept them, and the pages agree with them.

tests/integration/test_proxies.py runs the proxies, and tests/integration/test_unit.py the commands
of the unit.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.require import require
from tests.test_docs import ROOT, code_blocks

DEPLOY = ROOT / "examples" / "deploy"
DOCS = ROOT / "docs"
MANIFEST = list(yaml.safe_load_all((DEPLOY / "kubernetes.yml").read_text()))
COMPOSE = yaml.safe_load((DEPLOY / "compose.yml").read_text())


def units() -> dict[str, str]:
    """Return the text of each unit: the example, and those on pages."""
    [for_one_user] = code_blocks(DOCS / "systemd.md", "ini")
    return {"kbridge": (DEPLOY / "kbridge.service").read_text(), "user": for_one_user}


@pytest.mark.parametrize("name", ["kbridge", "user"])
def test_systemd_accepts_the_unit(name: str, tmp_path: Path) -> None:
    program = require("systemd-analyze")
    text, number = re.subn(r"(?<==)\S+/bin/kbridge", sys.executable, units()[name])
    assert number == 2, "the program of ExecStart and ExecReload, which must exist"
    unit = tmp_path / f"{name}.service"
    unit.write_text(text)
    done = subprocess.run([program, "verify", unit], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_is_restricted() -> None:
    """Its exposure, as systemd rates it: 10 is that of a unit without restrictions."""
    program = require("systemd-analyze")
    unit = DEPLOY / "kbridge.service"
    done = subprocess.run(
        [program, "security", "--offline=true", "--threshold=40", unit],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_the_page_explains_lines_of_the_unit() -> None:
    unit = units()["kbridge"]
    page = (DOCS / "systemd.md").read_text()
    table = page.partition("## The lines of the unit")[2].partition("## ")[0]
    for row in re.findall(r"^\| (.*?) \|", table, flags=re.MULTILINE)[2:]:
        for line in re.findall(r"`(.*?)`", row):
            assert (line in unit) is not row.startswith("no "), line


def test_kernels_of_the_unit_can_write_temporary_files() -> None:
    """`ProtectSystem=strict` alone makes these directories read-only."""
    unit = units()["kbridge"]
    assert "ProtectSystem=strict" in unit
    assert re.findall(r"^ReadWritePaths=(.*)$", unit, re.MULTILINE) == ["/tmp /var/tmp"]


def test_haproxy_does_not_run_as_root() -> None:
    text = (DEPLOY / "haproxy.cfg").read_text()
    for line in ("user haproxy", "group haproxy"):
        assert f"\n    {line}\n" in text.partition("\ndefaults\n")[0], line


def test_git_ignores_the_token_that_the_page_creates() -> None:
    """It is one `git add` away from being published otherwise."""
    assert ">token" in (DOCS / "docker.md").read_text()
    assert "/examples/deploy/token" in (ROOT / ".gitignore").read_text().splitlines()


def test_compose_has_one_server_with_a_token() -> None:
    service = COMPOSE["services"]["kbridge"]
    assert (DEPLOY / service["build"] / "Dockerfile").is_file()
    [secret] = service["secrets"]
    assert service["environment"]["JUPYTER_TOKEN_FILE"] == f"/run/secrets/{secret}"
    assert secret in COMPOSE["secrets"]
    assert {volume.split(":")[0] for volume in service["volumes"]} == set(COMPOSE["volumes"])
    [port] = service["ports"]
    assert port.startswith("127.0.0.1:")
    assert f"--port={port.split(':')[2]}" in service["command"]


def compose_commands() -> list[list[str]]:
    """Return the commands of Docker Compose that are installed."""
    found = []
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version"], capture_output=True)
            found += [command] if done.returncode == 0 else []
    return found


def test_docker_compose_accepts_the_file(tmp_path: Path) -> None:
    commands = compose_commands()
    if not commands:
        pytest.skip("Docker Compose is missing: install docker-compose")
    home = tmp_path / "examples" / "deploy"
    home.mkdir(parents=True)
    (home / "token").write_text("secret")
    shutil.copy(DEPLOY / "compose.yml", home)
    for command in commands:
        done = subprocess.run([*command, "config"], cwd=home, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def container() -> dict[str, Any]:
    [deployment] = [part for part in MANIFEST if part["kind"] == "Deployment"]
    assert deployment["spec"]["replicas"] == 1
    pod = deployment["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= 60
    [found] = pod["containers"]
    return dict(found)


@pytest.mark.parametrize("part", MANIFEST, ids=lambda part: part["kind"])
def test_the_manifest_has_the_schema_of_kubernetes(part: dict[str, Any]) -> None:
    require("kubernetes_validate")
    import kubernetes_validate

    kubernetes_validate.validate(part, kubernetes_validate.latest_version(), strict=True)


def test_the_probes_ask_what_the_server_answers() -> None:
    from kbridge.server.api.routes import ROUTES

    patterns = [pattern for pattern, _ in ROUTES]
    probes = {name: container()[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}
    paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    for path in paths.values():
        assert any(re.fullmatch(pattern, path) for pattern in patterns), path
    [port] = container()["ports"]
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {port["name"]}
    assert f"--port={port['containerPort']}" in container()["args"]


@pytest.mark.parametrize("owner", ["compose", "kubernetes"])
def test_the_options_of_containers_are_accepted(owner: str) -> None:
    from kbridge.server.cli.app import KbridgeApp

    words = COMPOSE["services"]["kbridge"]["command"] if owner == "compose" else container()["args"]
    app = KbridgeApp()
    app.parse_command_line(words)
    assert (app.port, app.port_retries, app.registry_url) == (8888, 0, "none")


def test_the_lines_on_the_page_of_proxies_are_in_the_files() -> None:
    [shown] = code_blocks(DOCS / "proxy.md", "nginx")
    there = {line.strip() for line in (DEPLOY / "nginx.conf").read_text().splitlines()}
    for line in shown.splitlines():
        assert any(known.startswith(line) for known in there), line


def test_every_file_has_a_page() -> None:
    pages = "".join(path.read_text() for path in DOCS.glob("*.md"))
    for path in DEPLOY.iterdir():
        assert f"(../examples/deploy/{path.name})" in pages, path.name


def test_proxies_pass_on_one_path_to_one_port() -> None:
    """Also where no proxy is installed."""
    rules = yaml.safe_load((DEPLOY / "traefik-kbridge.yml").read_text())
    static = yaml.safe_load((DEPLOY / "traefik.yml").read_text())
    router = rules["http"]["routers"]["kbridge"]
    assert set(router["entryPoints"]) <= set(static["entryPoints"])
    assert set(router["middlewares"]) <= set(rules["http"]["middlewares"])
    assert router["service"] in rules["http"]["services"]
    for name in ("nginx.conf", "haproxy.cfg", "traefik-kbridge.yml"):
        text = (DEPLOY / name).read_text()
        assert "/kernels/" in text
        assert "127.0.0.1:8888" in text
