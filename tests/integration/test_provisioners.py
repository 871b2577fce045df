"""The provisioners of gateway_provisioners, with kbridge as their server.

Kubernetes is a stand-in (tests/support/kubernetes_api.py); its client, the launcher, the template
of Pods and the kernel are real, and so are the options, the Role and the commands of
examples/deploy/kubernetes. Docker and YARN are only missed here: see docs/provisioners.md.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.support.client import SLEEP, attach
from tests.support.kubernetes_api import KubernetesApi
from tests.support.require import require
from tests.support.server import TOKEN, Server, free_port, kill_all
from tests.support.waiting import TIMEOUT, eventually
from tests.test_dockerfile import read

pytestmark = pytest.mark.kernel

EXAMPLE = Path(__file__).parents[2] / "examples" / "deploy" / "kubernetes"
NAME = "kubernetes_python"
WATCH = "--BridgeKernelManager.watch_interval"
BIN = Path(sys.executable).parent


def objects(file: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((EXAMPLE / file).read_text()))


def the(kind: str, file: str = "kbridge.yml") -> dict[str, Any]:
    [found] = [part for part in objects(file) if part["kind"] == kind]
    return found


def options() -> list[str]:
    """Return the options of the Deployment, except for those of its network and its cluster."""
    [container] = the("Deployment")["spec"]["template"]["spec"]["containers"]
    left_out = ("--port", "--cluster", "--advertise-url", "--drain-seconds", WATCH)
    return [word for word in container["args"] if not word.startswith(left_out)]


def commands(dockerfile: str, **values: str) -> list[list[str]]:
    """Return the commands of the RUN instruction of an image, with its ARGs replaced."""
    [run] = [i.value for i in read(EXAMPLE / dockerfile) if i.name == "RUN"]
    for name, value in values.items():
        run = run.replace("${" + name + "}", value)
    return [shlex.split(part) for part in run.split("&&")]


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernelspec, installed by the command of the image, and the launchers of the kernels."""
    require("gateway_provisioners", "kubernetes", "ipykernel", "bash")
    home = tmp_path_factory.mktemp("specs")
    [install] = [
        words
        for words in commands("server.Dockerfile", KERNEL="registry.example.org/kernel")
        if words[0] == "jupyter-k8s-spec"
    ]
    prefix = f"--prefix={home}"
    words = [prefix if word.startswith("--prefix") else word for word in install]
    subprocess.run([BIN / words[0], *words[1:]], check=True, timeout=TIMEOUT)
    spec = home / "share" / "jupyter" / "kernels" / NAME
    shutil.copy(EXAMPLE / "kernel-pod.yaml.j2", spec / "scripts")
    bootstrap = "from gateway_provisioners.cli import image_bootstrapapp as app\n"
    bootstrap += f"app.BOOTSTRAP_DIR = {str(home)!r}\napp.ImageBootstrapInstaller.launch_instance()"
    subprocess.run([sys.executable, "-c", bootstrap], check=True, timeout=TIMEOUT)
    return home


@pytest.fixture(scope="module")
def cluster(specs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesApi]:
    home = tmp_path_factory.mktemp("cluster")
    role = the("Role")
    command = ["bash", str(specs / "bootstrap-kernel.sh")]
    with KubernetesApi(home, role["metadata"]["namespace"], role["rules"], command) as made:
        yield made


@pytest.fixture(scope="module")
def new(
    specs: Path, cluster: KubernetesApi, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """Make servers with the options and the environment of the Deployment, without its network."""
    [container] = the("Deployment")["spec"]["template"]["spec"]["containers"]
    given = {item["name"]: item.get("value", "") for item in container["env"]}
    made: list[Server] = []

    def new(*more: str) -> Server:
        env = {
            **{name: value for name, value in given.items() if name.startswith("GP_")},
            "GP_RESPONSE_IP": "127.0.0.1",
            "GP_RESPONSE_PORT": str(free_port()),
            "GP_USE_INCLUSTER_CONFIG": "false",
            "KUBECONFIG": str(cluster.kubeconfig),
            "JUPYTER_PATH": str(specs / "share" / "jupyter"),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "KERNEL_USERNAME": "anna",
        }
        home = tmp_path_factory.mktemp("server")
        server = Server(home, *options(), f"{WATCH}=0.2", *more, env=env, port=free_port())
        server.environment.pop("PYTEST_CURRENT_TEST", None)  # gateway_provisioners looks for it
        made.append(server)
        return server

    yield new
    kill_all(*made)


@pytest.fixture(scope="module")
def shared(new: Any) -> Server:
    """One server for several tests, which leave no kernel."""
    server: Server = new().start()
    return server


@pytest.fixture(autouse=True)
def calls_are_allowed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail if Kubernetes had to refuse a call that is not the subject of the test."""
    yield
    if "cluster" in request.fixturenames:
        # A Pod may be deleted twice.
        refused = request.getfixturevalue("cluster").refused
        assert [call for call in refused if not call.startswith("404")] == []


def started(server: Server, **body: Any) -> str:
    """Start a kernel of the default kernelspec."""
    reply = server.request("POST", "/api/kernels", body)
    assert reply.status == 201, f"{reply.status} {reply.body!r}\n{server.tail()}"
    return str(reply.json()["id"])


async def run(server: Server, kernel_id: str, code: str, dialect: str = "v1") -> str:
    async with attach(server, kernel_id, dialect) as ws:
        return (await ws.execute(code)).text()


def pod_of(cluster: KubernetesApi, kernel_id: str) -> str:
    """Return the name of the only Pod of a kernel."""
    [name] = [name for name in cluster.pods if name.endswith(kernel_id)]
    return name


def is_restricted(pod: dict[str, Any]) -> bool:
    """Return True if the standard `restricted` of Kubernetes allows a Pod."""
    spec = pod["spec"]
    inside, outside = spec["containers"][0]["securityContext"], spec["securityContext"]
    kinds = {next(iter(volume.keys() - {"name"})) for volume in spec.get("volumes", [])}
    return (
        len(spec["containers"]) == 1
        and outside["runAsNonRoot"]
        and outside["seccompProfile"] == {"type": "RuntimeDefault"}
        and inside == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        and not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        and kinds <= {"configMap", "emptyDir", "projected", "secret", "persistentVolumeClaim"}
    )


async def test_a_kernel_in_a_pod(shared, cluster):
    before = len(cluster.created)
    kernel_id = started(shared)
    name = pod_of(cluster, kernel_id)
    for dialect in ("v1", "legacy"):
        assert await run(shared, kernel_id, "print(6 * 7)", dialect) == "42\n"
    assert shared.request("GET", f"/api/kernels/{kernel_id}").json()["name"] == NAME
    assert is_restricted(cluster.pods[name])
    encrypted = "import ipykernel.kernelapp as k; print(k.IPKernelApp.instance().curve_publickey)"
    assert len(await run(shared, kernel_id, encrypted)) > 40

    env = cluster.environment(name)
    assert env["KERNEL_USERNAME"] == "anna"
    assert not {"JUPYTER_TOKEN", "KBRIDGE_REGISTRY_URL", "KBRIDGE_COOKIE_SECRET"} & env.keys()
    assert TOKEN not in env.values()

    async with attach(shared, kernel_id) as ws:
        msg_id = await ws.start(SLEEP)
        await ws.until_text("asleep")
        reply = await shared.call("POST", f"/api/kernels/{kernel_id}/interrupt")
        assert reply.status == 204, reply
        assert (await ws.finish(msg_id)).reply["ename"] == "KeyboardInterrupt"

    await run(shared, kernel_id, "x = 1")
    assert shared.request("POST", f"/api/kernels/{kernel_id}/restart").status == 200
    assert await run(shared, kernel_id, "print('x' in globals())") == "False\n"
    assert len(cluster.created) == before + 2

    # As when its node is drained.
    await run(shared, kernel_id, "x = 1")
    cluster.evict(pod_of(cluster, kernel_id))
    eventually(lambda: len(cluster.created) == before + 3, "the kernel is restarted")
    assert await run(shared, kernel_id, "print('x' in globals())") == "False\n"

    shared.stop_kernel(kernel_id)
    assert cluster.pods == {}


def test_a_request_changes_only_the_resources_of_a_pod(shared, cluster):
    evil = 'anna\\"\\n  labels: {app: kbridge}\\nspec:\\n  hostNetwork: true #'
    env = {
        "KERNEL_USERNAME": f'"{evil}"',
        "KERNEL_VOLUMES": "[{hostPath: {path: /}, name: root}]",
        "KERNEL_SERVICE_ACCOUNT_NAME": "kbridge",
        "KERNEL_IMAGE": "evil.example.org/image",
        "KERNEL_UID": "4711",
        "KERNEL_CPUS_LIMIT": "1",
        "KERNEL_MEMORY_LIMIT": "1Gi",
    }
    kernel_id = started(shared, env=env)
    pod = cluster.created[-1]
    assert pod["metadata"]["annotations"]["kernel-username"] == yaml.safe_load(f'"{evil}"')
    assert pod["metadata"]["labels"]["app"] == "kbridge-kernel"
    assert is_restricted(pod)
    assert "serviceAccountName" not in pod["spec"]
    assert pod["spec"]["securityContext"]["runAsUser"] == 1000
    [container] = pod["spec"]["containers"]
    assert container["image"] == "registry.example.org/kernel"
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "1Gi"}
    shared.stop_kernel(kernel_id)


def _launches(server: Server) -> int:
    """Return the number of launchers that run."""
    found = psutil.process_iter(["ppid", "cmdline"])  # without the command of a zombie
    ours = [p.info["cmdline"] for p in found if p.info["ppid"] == server.process.pid]
    return sum("launch_kubernetes.py" in " ".join(command or []) for command in ours)


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"KERNEL_NAMESPACE": "kube-system"}, "403"),
        ({"KERNEL_POD_NAME": "a" * 300}, "422"),
    ],
)
def test_kubernetes_refuses_a_pod(shared, cluster, env, reason):
    reply = shared.request("POST", "/api/kernels", {"env": {"KERNEL_USERNAME": "anna", **env}})
    assert reply.status == 500
    message = reply.json()["message"]
    assert f"{NAME} could not be started by its provisioner kubernetes-provisioner" in message
    assert reason in message, "the answer of Kubernetes"
    assert shared.request("GET", "/api/kernels").json() == []
    # The launcher may still be about to ask.
    eventually(lambda: any(f"{reason} " in call for call in cluster.refused), "it was refused")
    eventually(lambda: _launches(shared) == 0, "the launcher ends")
    cluster.refused.clear()


def test_kernels_in_the_container_of_the_server_are_not_started(shared):
    assert shared.request("POST", "/api/kernels", {"name": "python3"}).status == 404


async def test_a_server_that_is_killed_finds_the_pod_again(new, cluster):
    server = new().start()
    kernel_id = started(server)
    name = pod_of(cluster, kernel_id)
    await run(server, kernel_id, "x = 1")
    server.process.kill()
    server.process.wait(TIMEOUT)
    server.start()
    assert await run(server, kernel_id, "print(x)") == "1\n"
    assert list(cluster.pods) == [name]
    server.stop_kernel(kernel_id)
    assert cluster.pods == {}
    server.assert_clean_log()


async def test_replicas_pass_a_pod_on(new, cluster, tmp_path):
    database = f"--registry-url=sqlite:///{tmp_path / 'cluster.sqlite'}"
    first, second = (new("--cluster=lab", database, "--drain-seconds=0.1") for _ in range(2))
    first.start()
    second.start()
    kernel_id = started(first)
    name = pod_of(cluster, kernel_id)
    await run(second, kernel_id, "x = 1")
    created = len(cluster.created)

    first.stop()  # as Kubernetes does in a rolling update
    assert await run(second, kernel_id, "print(x)") == "1\n"
    assert list(cluster.pods) == [name]

    first.start()
    assert await run(first, kernel_id, "print(x)") == "1\n"
    second.process.kill()
    second.process.wait(TIMEOUT)

    def served() -> bool:
        return first.request("GET", f"/api/kernels/{kernel_id}").status == 200

    eventually(served, "the other replica serves the kernel")
    assert await run(first, kernel_id, "print(x)") == "1\n"
    assert (list(cluster.pods), len(cluster.created)) == ([name], created)
    # The new owner asks Kubernetes, so it may also replace and delete the Pod.
    assert first.request("POST", f"/api/kernels/{kernel_id}/restart").status == 200
    assert await run(first, kernel_id, "print('x' in globals())") == "False\n"
    first.stop_kernel(kernel_id)
    assert cluster.pods == {}


MISSING = {
    "kubernetes-provisioner": "Service host/port is not set",
    "docker-provisioner": "Error while fetching server API version",
    "docker-swarm-provisioner": "Error while fetching server API version",
    "yarn-provisioner": "No active RMs found",
}


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a kernelspec for each provisioner, on a machine without their systems."""
    require("gateway_provisioners", "kubernetes", "docker", "yarn_api_client", "ipykernel")
    home = tmp_path_factory.mktemp("lonely")
    for name in [*MISSING, "not-installed"]:
        config = {"yarn_endpoint": "http://127.0.0.1:9/ws/v1/cluster"} if "yarn" in name else {}
        provisioner = {"provisioner_name": name, "config": config}
        spec = {
            "argv": [sys.executable],
            "display_name": name,
            "language": "python",
            "metadata": {"kernel_provisioner": provisioner},
        }
        folder = home / "data" / "kernels" / name
        folder.mkdir(parents=True)
        (folder / "kernel.json").write_text(json.dumps(spec))
    env = {
        "GP_RESPONSE_IP": "127.0.0.1",
        "GP_RESPONSE_PORT": str(free_port()),
        "DOCKER_HOST": f"unix://{home}/no-docker.sock",
        "KERNEL_USERNAME": "anna",
    }
    server = Server(home, env=env)
    server.environment.pop("PYTEST_CURRENT_TEST", None)
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.mark.parametrize("name", MISSING)
def test_a_system_that_is_missing(lonely, name):
    reply = lonely.request("POST", "/api/kernels", {"name": name})
    assert reply.status == 500
    expected = f"could not be started by its provisioner {name}: {MISSING[name]}"
    assert expected in reply.json()["message"]


def test_a_provisioner_that_is_missing(lonely):
    reply = lonely.request("POST", "/api/kernels", {"name": "not-installed"})
    assert reply.status == 404
    assert "needs the provisioner 'not-installed'" in reply.json()["message"]
