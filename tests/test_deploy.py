"""The files of examples/deploy: their programs accept them, and the pages agree with them.

tests/integration/test_proxies.py runs the proxies, tests/integration/test_unit.py the commands of
the unit, and tests/integration/test_provisioners.py the parts of examples/deploy/kubernetes that
run without a cluster.
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
CLUSTER = DEPLOY / "kubernetes"  # two replicas, and kernels in Pods
CLUSTER_PARTS = {
    f"{file.stem} {part['kind']} {part['metadata']['name']}": part
    for file in sorted(CLUSTER.glob("*.yml"))
    for part in yaml.safe_load_all(file.read_text())
}
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


@pytest.mark.parametrize("file", [DEPLOY / "kubernetes.yml", *CLUSTER.glob("*.y*ml")], ids=str)
def test_no_key_of_a_manifest_is_given_twice(file: Path) -> None:
    """PyYAML takes the last one, `kubectl apply` refuses the file."""

    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key) for key, _ in node.value]  # type: ignore[no-untyped-call]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: {keys}"
        return dict(loader.construct_mapping(node, deep=True))

    Strict.add_constructor("tag:yaml.org,2002:map", mapping)
    assert list(yaml.load_all(file.read_text(), Strict))


def part(name: str) -> dict[str, Any]:
    """Return an object of the cluster by its file, kind and name."""
    return dict(CLUSTER_PARTS[name])


def replica() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the Pod and the container of the replicas of the cluster."""
    pod = part("kbridge Deployment kbridge")["spec"]["template"]["spec"]
    [found] = pod["containers"]
    return dict(pod), dict(found)


def variables() -> dict[str, str]:
    return {item["name"]: item["value"] for item in replica()[1]["env"] if "value" in item}


def test_the_cluster_is_complete() -> None:
    names = yaml.safe_load((CLUSTER / "kustomization.yaml").read_text())["resources"]
    assert {*names, "postgresql.yml"} == {file.name for file in CLUSTER.glob("*.yml")}
    namespaces = {
        found["metadata"]["name"]
        for found in CLUSTER_PARTS.values()
        if found["kind"] == "Namespace"
    }
    for name, found in CLUSTER_PARTS.items():
        if found["kind"] != "Namespace":
            assert found["metadata"]["namespace"] in namespaces, name


def test_each_selector_finds_a_pod() -> None:
    pods = [
        found["spec"]["template"]
        for found in CLUSTER_PARTS.values()
        if found["kind"] in {"Deployment", "StatefulSet"}
    ]
    apps = {pod["metadata"]["labels"]["app"]: pod["spec"]["containers"][0] for pod in pods}
    for name, found in CLUSTER_PARTS.items():
        selector = found.get("spec", {}).get("selector") or {}
        labels = selector.get("matchLabels", selector)
        if labels:
            assert labels["app"] in apps, name
        if found["kind"] == "Service":
            ports = {port["name"] for port in apps[labels["app"]]["ports"]}
            assert {port["targetPort"] for port in found["spec"]["ports"]} <= ports, name
    ingress = part("ingress Ingress kbridge")["spec"]["rules"][0]["http"]["paths"][0]
    service = ingress["backend"]["service"]
    ports = part(f"haproxy Service {service['name']}")["spec"]["ports"]
    assert service["port"]["name"] in {port["name"] for port in ports}


@pytest.mark.parametrize(
    "name", [n for n, p in CLUSTER_PARTS.items() if p["kind"] in {"Deployment", "StatefulSet"}]
)
def test_pods_of_the_cluster_are_restricted(name: str) -> None:
    """The namespace refuses others."""
    namespace = part("namespaces Namespace kbridge")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pod = part(name)["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for found in pod["containers"]:
        assert found["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


def test_the_options_of_a_replica_are_accepted() -> None:
    from kbridge.server.cli.app import KbridgeApp

    words = [word.replace("$(POD_IP)", "10.1.2.3") for word in replica()[1]["args"]]
    app = KbridgeApp()
    app.parse_command_line(words)
    assert (app.cluster, app.advertise_url) == ("kbridge", "http://10.1.2.3:8888")
    assert app.trust_xheaders
    assert app.config.KernelSpecManager.ensure_native_kernel.get_value(None) == "False"


def test_a_replica_has_the_time_that_its_end_takes() -> None:
    pod, found = replica()
    [drain] = [float(w.partition("=")[2]) for w in found["args"] if w.startswith("--drain-seconds")]
    pause = found["lifecycle"]["preStop"]["sleep"]["seconds"]
    longest = 17  # of `leave_all`, for kernels that cannot be given
    assert pod["terminationGracePeriodSeconds"] >= pause + drain + longest + 10


def test_the_network_policies_let_the_parts_work() -> None:
    first, last = (int(port) for port in variables()["GP_PORT_RANGE"].split(".."))
    assert last - first >= 1000, "the smallest range that gateway_provisioners takes"
    kernel_ports = {"port": first, "endPort": last}
    kernels = part("network NetworkPolicy kernels")["spec"]
    server = part("network NetworkPolicy kbridge")["spec"]
    assert kernels["ingress"][0]["ports"] == [kernel_ports]
    assert [kernel_ports] in [rule["ports"] for rule in server["egress"]]
    response = [{"port": int(variables()["GP_RESPONSE_PORT"])}]
    assert response in [rule["ports"] for rule in server["ingress"]]
    assert response in [rule.get("ports") for rule in kernels["egress"]]
    ports = {port["name"]: port["containerPort"] for port in replica()[1]["ports"]}
    assert response == [{"port": ports["response"]}]
    # No other Pod, and no metadata service of a cloud.
    [internet] = [rule for rule in kernels["egress"] if "ipBlock" in rule["to"][0]]
    assert {"10.0.0.0/8", "169.254.0.0/16"} <= set(internet["to"][0]["ipBlock"]["except"])
    assert variables()["GP_NAMESPACE"] == part("kbridge Role kernels")["metadata"]["namespace"]


def test_the_page_makes_the_secrets_of_the_cluster() -> None:
    page = (DOCS / "kubernetes.md").read_text()
    used = re.findall(r"secretKeyRef: \{name: (\S+), key: (\S+)\}", _text_of_cluster())
    assert len(set(used)) == 3
    for name, key in set(used):
        assert re.search(rf"create secret generic {name}\b[^$]*(\$\([^)]*\)[^$]*)*{key}=", page), (
            key
        )


def _text_of_cluster() -> str:
    return "".join(file.read_text() for file in sorted(CLUSTER.glob("*.yml")))


def test_haproxy_accepts_the_configuration_of_the_cluster(tmp_path: Path) -> None:
    program = require("haproxy")
    config = tmp_path / "haproxy.cfg"
    config.write_text(part("haproxy ConfigMap haproxy")["data"]["haproxy.cfg"])
    done = subprocess.run([program, "-c", "-f", config], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[WARNING]" not in done.stderr


def test_haproxy_in_the_cluster_has_the_rules_that_are_tested() -> None:
    """Those of haproxy-replicas.cfg, which a test runs, but for the base URL."""
    ours = {
        line.strip()
        for line in part("haproxy ConfigMap haproxy")["data"]["haproxy.cfg"].splitlines()
    }
    tested = (DEPLOY / "haproxy-replicas.cfg").read_text().replace("/kernels/", "/", 1)
    for line in (
        "use_backend kernels if { path_reg ^/api/kernels/[^/]+ }",
        "hash-type consistent",
        "http-check expect status 200",
        "option allbackups",
        "option redispatch 1",
        "timeout tunnel 1h",
        "balance roundrobin",
    ):
        assert line in ours
        assert line in tested.replace("^/kernels/", "^/"), line
    # The path is one part shorter.
    assert "balance hash path,field(4,/)" in ours
    assert "balance hash path,field(5,/)" in tested


def test_nginx_accepts_the_hash_of_the_page(tmp_path: Path) -> None:
    """The `map` for an ingress controller with nginx: that of nginx-replicas.conf."""
    [snippet] = [b for b in code_blocks(DOCS / "kubernetes.md", "nginx") if "map $uri" in b]
    tested = (DEPLOY / "nginx-replicas.conf").read_text().replace("^/kernels/", "^/")
    assert snippet.strip() in tested
    program = require("nginx")
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"pid {tmp_path}/pid; error_log stderr; events {{}}\nhttp {{ access_log off;\n{snippet}\n"
        "server { listen 127.0.0.1:1; location / { return 200 $kbridge_key; } } }"
    )
    done = subprocess.run([program, "-t", "-c", config], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def container() -> dict[str, Any]:
    [deployment] = [part for part in MANIFEST if part["kind"] == "Deployment"]
    assert deployment["spec"]["replicas"] == 1
    pod = deployment["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= 60
    [found] = pod["containers"]
    return dict(found)


@pytest.mark.parametrize(
    "part",
    [*MANIFEST, *CLUSTER_PARTS.values()],
    ids=[*(part["kind"] for part in MANIFEST), *CLUSTER_PARTS],
)
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
    for path in (*DEPLOY.glob("*.*"), *CLUSTER.iterdir()):
        assert f"(../examples/deploy/{path.relative_to(DEPLOY)})" in pages, path.name


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
