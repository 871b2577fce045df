"""The command as a user types it."""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kbridge import __version__
from tests.support.waiting import TIMEOUT, eventually

COMMAND = [sys.executable, "-m", "kbridge"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    found = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "KG_"))}
    for name in ("CONFIG", "RUNTIME", "DATA"):
        found[f"JUPYTER_{name}_DIR"] = str(tmp_path / name.lower())
    return found


@pytest.fixture
def run(env: dict[str, str], tmp_path: Path) -> Run:
    def run(*args: str, **more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*COMMAND, *args],
            env=env | more,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )

    return run


LISTENING = """
import gc, json, os, signal, sys
from kbridge.server.cli.app import KbridgeApp
from kbridge.server.main import main
def listening(self, url):
    found = {"modules": [*sys.modules], "collects": gc.isenabled(), "kept": gc.get_freeze_count()}
    print(json.dumps(found), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
KbridgeApp.listening = listening
gc.disable()
main(sys.argv[1:])
assert gc.isenabled()
"""
# Modules for the first kernel, for other commands, and for optional features.
LATE = (
    *("kbridge.hub.hub", "kbridge.hub.broadcast.delivery", "kbridge.hub.kernel.connection"),
    *("kbridge.link.zmtp.link", "kbridge.link.pyzmq.link", "kbridge.link.holder.process"),
    *("kbridge.kernels.registry.store", "sqlalchemy", "psutil", "IPython", "ipykernel"),
    *("kbridge.client", "kbridge.mcp", "kbridge.tunnel", "kbridge.tracing", "kbridge.jupyter"),
    *("jupyter_server", "mcp", "opentelemetry", "kbridge.server.json_log", "jupyterhub", "aiohttp"),
    "kbridge.slurm",
    *("kbridge.server.reference", "kbridge.server.cli.commands", "kbridge.server.cli.attach"),
)


def test_a_server_listens_before_it_imports_what_the_first_requests_do_not_need(
    env: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LISTENING, "--port=0"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert not done.returncode, done.stderr
    found = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert "kbridge.server.server" in found["modules"]
    assert sorted(set(LATE) & set(found["modules"])) == []
    assert found["collects"]
    assert found["kept"] > 10_000, "collections visit what the start has imported"


class Process:
    """A server in a separate process; `url` is what it printed."""

    def __init__(self, *args: str, env: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [*COMMAND, *args], env=env, stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        assert self.process.stdout is not None
        self.said = ""
        for line in self.process.stdout:
            self.said += line
            if "://" in line:
                self.url = line.strip()
                return
        self.wait()
        raise AssertionError(f"it did not start: {self.said}{log.read_text()}")

    @property
    def port(self) -> int:
        found = re.search(r":(\d+)/", self.url)
        assert found
        return int(found[1])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        assert self.process.stdout is not None
        self.said += self.process.stdout.read()
        self.process.stdout.close()
        return self.process.wait(TIMEOUT)


@pytest.fixture
def serve(env: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def serve(*args: str, **more: str) -> Process:
        log = tmp_path / f"log-{len(started)}"
        port = () if any(arg.startswith("--port=") for arg in args) else ("--port=0",)
        started.append(Process(*port, *args, env=env | more, log=log))
        return started[-1]

    yield serve
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.wait()


def get(url: str, **options: Any) -> Any:
    with urllib.request.urlopen(url, timeout=TIMEOUT, **options) as reply:
        return json.load(reply)


def test_help_shows_examples_and_commands(run: Run) -> None:
    for flag in ("--help", "-h"):
        done = run(flag)
        assert done.returncode == 0
        for part in ("kbridge --pool python3=2", "kbridge stop 8888", "--token", "KG_AUTH_TOKEN"):
            assert part in done.stdout
        assert "Failed" not in done.stdout + done.stderr
    everything = run("--help-all")
    assert "--BridgeKernelManager.cull_idle_timeout" in everything.stdout
    assert "--KbridgeApp.trust_xheaders" in everything.stdout


def test_help_shows_no_false_defaults(run: Run) -> None:
    """Of a setting whose default is made at the start, traitlets would show an empty one."""
    entries = re.split(r"^(?=--)", run("--help").stdout, flags=re.MULTILINE)
    help_of = {entry.split("=")[0].strip(): entry for entry in entries}
    for option in ("--token", "--root-dir", "--registry-url", "--log-level"):
        assert "Default:" not in help_of[option], option
    assert "Default: 8888" in help_of["--port"]


@pytest.mark.parametrize("args", [("--help",), ("list", "--help"), ("stop", "--help")])
def test_help_to_a_closed_pipe_is_not_an_error(env: dict[str, str], args: tuple[str, ...]) -> None:
    """As in `kbridge --help | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([*COMMAND, *args], env=env, stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert done.returncode == 1
    assert done.stderr == b""


def test_version(run: Run) -> None:
    assert run("--version").stdout.strip() == __version__


def test_generate_config_makes_a_file_that_loads(
    run: Run, serve: Callable[..., Process], tmp_path: Path
) -> None:
    assert run("--generate-config").returncode == 0
    config = tmp_path / "config" / "kbridge_config.py"
    text = config.read_text()
    assert "# c.KbridgeApp.port = 8888" in text
    assert "# c.BridgeKernelManager.max_kernels = None" in text
    config.write_text(text.replace("# c.KbridgeApp.base_url = '/'", "c.KbridgeApp.base_url='/b'"))
    assert "/b/?token=" in serve().url


@pytest.mark.parametrize(
    ("args", "environ", "says"),
    [
        (("--port=abc",), {}, "port"),
        (("nonsense",), {}, "does not accept the argument 'nonsense'"),
        (("--certfile=nowhere.pem",), {}, "no file nowhere.pem"),
        (("--ip=203.0.113.1",), {}, "cannot listen on 203.0.113.1"),
        (("--pool", "missing=1"), {}, "missing"),
        (("--pool", "python3=many"), {}, "pool"),
        (("--transport=pigeon",), {}, "transport"),
        (("--root-dir=nowhere",), {}, "nowhere"),
        ((), {"KG_PORT": "abc"}, "KG_PORT"),
        ((), {"JUPYTER_TOKEN_FILE": "nowhere"}, "JUPYTER_TOKEN_FILE"),
        ((), {"KG_API": "notebook-http"}, "no notebook-http mode (KG_API"),
        ((), {"KG_PRESPAWN_COUNT": "3", "KG_MAX_KERNELS": "2"}, "prespawn_count (3)"),
        (("--tokn=x",), {}, "no option --tokn (did you mean --token?)"),
        (("--no-such-flag",), {}, "no option --no-such-flag"),
        (("--KbridgeApp.tokn=x",), {}, "(did you mean KbridgeApp.token?)"),
        (("--KbrigeApp.token=x",), {}, "(did you mean KbridgeApp.*?)"),
        (("--KbridgeApp.max_kernels=1",), {}, "(did you mean BridgeKernelManager.max_kernels?)"),
        (("--KernelGatewayApp.auth_tokn=x",), {}, "(did you mean KernelGatewayApp.auth_token?)"),
        (("--Session.kee=x",), {}, "there is no setting Session.kee"),
        (("--config=nowhere.py",), {}, "there is no config file nowhere.py"),
        (("--config", "nowhere"), {}, "there is no config file nowhere"),
        (("attach", "--shs=host", "x"), {}, "no option --shs (did you mean --ssh?)"),
        (("stop", "--StopApp.timout=1"), {}, "(did you mean StopApp.timeout?)"),
        (("kernelgateway", "--api=notebook-http"), {}, "no notebook-http mode"),
    ],
)
def test_mistakes_are_told_in_a_line(
    run: Run, args: tuple[str, ...], environ: dict[str, str], says: str
) -> None:
    listens = args[:1] not in (("stop",), ("attach",))
    named = any(arg.startswith("--port") for arg in args) or "KG_PORT" in environ
    port = ("--port=0",) if listens and not named else ()  # the default port may be in use
    done = run(*args, *port, **environ)
    assert done.returncode not in (0, None)
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("c.KbridgeApp.token = 'x'\nimport nosuchmodule\n", "line 2: ModuleNotFoundError"),
        ("c.KbridgeApp.port = (\n", "SyntaxError"),
        ("c.KbridgeApp.tokn = 'x'\n", "(did you mean KbridgeApp.token?)"),
        ("c.KbrigeApp.token = 'x'\n", "there are no settings KbrigeApp.*"),
        ("c.token = 'x'\n", "there is no setting token (did you mean KbridgeApp.token?)"),
        ("c.KernelGatewayApp.auth_tokn = 'x'\n", "(did you mean KernelGatewayApp.auth_token?)"),
        ("c.BridgeKernelManager.max_kernels = 'many'\n", "max_kernels"),
    ],
)
@pytest.mark.parametrize("named", [True, False], ids=["named", "found"])
def test_mistakes_in_a_config_file_end_the_start(
    run: Run, tmp_path: Path, text: str, says: str, named: bool
) -> None:
    path = tmp_path / "config" / "kbridge_config.py"
    path.parent.mkdir()
    path.write_text(text)
    done = run("--port=0", *([f"--config={path}"] if named else []))
    assert done.returncode not in (0, None)
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_json_config_file_with_a_mistake(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"KbridgeApp": ')
    done = run("--port=0", f"--config={path}")
    assert done.returncode not in (0, None)
    assert "config file mine.json: JSONDecodeError" in done.stderr


def test_show_config_json_shows_the_settings(run: Run) -> None:
    done = run("--show-config-json", "--KbridgeApp.base_url=/shown")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"KbridgeApp": {"base_url": "/shown"}})


def test_sections_of_other_programs_in_the_shared_config_file(
    serve: Callable[..., Process], tmp_path: Path
) -> None:
    """All Jupyter programs read jupyter_config.py."""
    path = tmp_path / "config" / "jupyter_config.py"
    path.parent.mkdir()
    path.write_text(
        "c.LabApp.collaborative = True\n"
        "c.MappingKernelManager.kernel_manager_class = 'others.Manager'\n"
        "c.AsyncMappingKernelManager.others = 1\n"
        "c.MappingKernelManager.cull_interval = 7\n"
        "c.KbridgeApp.base_url = '/shared'\n"
    )
    assert "/shared/" in serve().url


def test_sections_of_classes_that_are_made_later(
    serve: Callable[..., Process], tmp_path: Path
) -> None:
    server = serve("--KernelManager.shutdown_wait_time=3", "--AttachApp.ssh=x", "--Session.key=k")
    assert "recogni" not in server.log.read_text()


def test_a_start_loads_no_kernel(serve: Callable[..., Process]) -> None:
    """jupyter_client imports ipykernel, and with it IPython, to read ipykernel's kernelspec.

    A server that listens loads them in advance; the warning is logged when it listens.
    """
    server = serve("--token=", PYTHONPROFILEIMPORTTIME="1")
    start, warning, _ = server.log.read_text().partition("authentication is off")
    assert warning
    loaded = re.findall(r"^import time:.*\| +(\S+)$", start, flags=re.MULTILINE)
    assert "kbridge.server.server" in loaded
    assert not [name for name in loaded if name.partition(".")[0] in ("IPython", "ipykernel")]


def test_a_server_from_start_to_stop(run: Run, serve: Callable[..., Process]) -> None:
    server = serve("--debug")
    token = server.url.partition("?token=")[2]
    assert len(token) == 48
    assert get(server.url.replace("/?", "/api/kernels?")) == []
    with pytest.raises(urllib.error.HTTPError, match="403"):
        get(server.url.replace("/?", "/api/kernels?")[:-1])
    [listed] = [json.loads(line) for line in run("list", "--json").stdout.splitlines()]
    assert (listed["port"], listed["token"]) == (server.port, token)
    assert listed["pid"] == server.process.pid
    assert json.loads(run("list", "--jsonlist").stdout) == [listed]
    assert server.url in run("list").stdout
    assert run("stop", "1").returncode == 1
    assert str(server.port) in run("stop", "1").stderr
    done = run("stop", str(server.port))
    assert (done.returncode, done.stdout) == (0, f"stopped {server.port}\n")
    assert server.wait() == 0
    assert run("list").stdout == "Currently running servers:\n"
    log = server.log.read_text()
    assert "GET /api/kernels?token=[secret]" in log
    assert "SIGTERM" not in log, "the shutdown was requested over HTTP"
    assert token[:-1] not in log
    assert server.said.count(token) == 1


def test_jupyter_server_list_ignores_kbridge(env: dict[str, str], serve: Any) -> None:
    serve()
    command = [sys.executable, "-m", "jupyter_server", "list"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it(serve: Callable[..., Process], tmp_path: Path, number: Any) -> None:
    server = serve()
    assert server.stop(number) == 0
    assert number.name in server.log.read_text()
    left = [path.name for path in (tmp_path / "runtime").iterdir()]
    assert left == ["kbridge-registry.sqlite"], "with port 0 no token is stored"


def test_a_port_in_use_is_an_error(serve: Callable[..., Process]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = serve(f"--port={port}")
        assert port < server.port <= port + 50
        assert f"port {port} is in use" in server.log.read_text()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def cookie_of(url: str) -> str:
    """Log in as a browser that opens the address with the token, and return its cookie."""
    with urllib.request.urlopen(url, timeout=TIMEOUT) as reply:
        return str(reply.headers["Set-Cookie"]).partition(";")[0]


def kernels_with(url: str, **headers: str) -> Any:
    base = url.partition("?")[0]
    return get(urllib.request.Request(f"{base}api/kernels", headers=headers))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_clients_keep_their_token_and_cookie_after_a_restart(
    serve: Callable[..., Process], number: Any
) -> None:
    """Without stored secrets, every page would lose its login at a restart."""
    port = f"--port={free_port()}"
    first = serve(port)
    cookie = cookie_of(first.url)
    first.stop(number)
    second = serve(port)
    assert second.url == first.url
    assert "?token=" in second.url
    assert kernels_with(second.url, Cookie=cookie) == []
    assert second.url.partition("?token=")[2] not in second.log.read_text()


@pytest.mark.parametrize(
    ("args", "more"), [(("--token=given",), {}), ((), {"JUPYTER_TOKEN": "given"})]
)
def test_a_configured_token_has_precedence_over_the_stored_one(
    serve: Callable[..., Process], args: tuple[str, ...], more: dict[str, str]
) -> None:
    port = f"--port={free_port()}"
    first = serve(port)
    kept, cookie = first.url, cookie_of(first.url)
    first.stop()
    second = serve(port, *args, **more)
    assert "token" not in second.url
    assert kernels_with(second.url, Authorization="token given") == []
    for proof in (
        {"Authorization": f"token {kept.partition('=')[2]}"},
        {"Cookie": cookie},  # the cookie is for the earlier token
    ):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            kernels_with(second.url, **proof)
    own = cookie_of(f"{second.url}?token=given")
    second.stop()
    third = serve(port, *args, **more)
    assert kernels_with(third.url, Cookie=own) == [], "the cookie secret is stored anyway"
    third.stop()
    assert serve(port).url == kept, "the token is stored for a start without one"


def test_simultaneous_servers_have_different_tokens(serve: Callable[..., Process]) -> None:
    port = f"--port={free_port()}"
    first, second = serve(port), serve(port)
    assert first.port != second.port
    tokens = {server.url.partition("=")[2] for server in (first, second)}
    assert len(tokens) == 2


def test_a_unix_socket_keeps_its_token(
    run: Run, serve: Callable[..., Process], tmp_path: Path
) -> None:
    first = serve(f"--sock={tmp_path / 's'}")
    first.stop()
    assert serve(f"--sock={tmp_path / 's'}").url == first.url


def test_the_gateways_variables(serve: Callable[..., Process]) -> None:
    server = serve(KG_AUTH_TOKEN="of-the-gateway", KG_BASE_URL="/kg", KG_LIST_KERNELS="False")
    assert server.url.endswith("/kg/")
    assert "version" in get(f"{server.url}api")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        get(f"{server.url}api/kernels?token=of-the-gateway")
    assert get(f"{server.url}api/status?token=of-the-gateway")["kernels"] == 0
    assert "of-the-gateway" not in server.said + server.log.read_text()


def certificate(tmp_path: Path) -> tuple[str, str]:
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", key, "-out", cert),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


def test_tls(run: Run, serve: Callable[..., Process], tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    server = serve(f"--certfile={cert}", f"--keyfile={key}")
    assert server.url.startswith("https://127.0.0.1:")
    context = ssl.create_default_context(cafile=cert)
    assert get(server.url.replace("/?", "/api/kernels?"), context=context) == []
    assert run("stop", str(server.port)).returncode == 0
    assert server.wait() == 0
    assert "requests the shutdown of the server" in server.log.read_text(), (
        "the certificate is the server's own"
    )


def test_a_unix_socket(run: Run, serve: Callable[..., Process], tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = serve(f"--sock={path}")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT)
        client.connect(str(path))
        client.sendall(b"GET /api HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    again = run(f"--sock={path}")
    assert again.returncode == 1
    assert "another server listens" in again.stderr
    assert run("stop", str(path)).returncode == 0
    assert server.wait() == 0
    assert not path.exists()


@pytest.mark.parametrize("how", ["plain", "base url", "tls", "client certificates", "socket"])
def test_health(run: Run, serve: Callable[..., Process], tmp_path: Path, how: str) -> None:
    """It follows the options of the server."""
    options: tuple[str, ...] = ()
    if how == "base url":
        options = ("--base-url=/a/b",)
    elif how == "socket":
        options = (f"--sock={tmp_path / 's'}",)
    elif how != "plain":
        cert, key = certificate(tmp_path)
        options = (f"--certfile={cert}", f"--keyfile={key}")
        options += (f"--client-ca={cert}",) * (how == "client certificates")
    server = serve(*options)
    done = run("health", f"--HealthApp.timeout={TIMEOUT:g}")
    assert (done.returncode, done.stdout) == (0, "1 server: ok\n"), done.stderr
    server.process.send_signal(signal.SIGSTOP)
    try:
        done = run("health", "--HealthApp.timeout=0.5")
        assert done.returncode == 1
        assert "timed out" in done.stderr
    finally:
        server.process.send_signal(signal.SIGCONT)


def test_health_tells_why_a_server_is_not_ready(
    run: Run, serve: Callable[..., Process], tmp_path: Path
) -> None:
    journal = tmp_path / "a-directory" / "that-is-a-file"
    journal.parent.write_text("")
    serve(f"--ZMQChannelsWebsocketConnection.journal_dir={journal}")
    patient = ("health", f"--HealthApp.timeout={TIMEOUT:g}")
    assert run(*patient).returncode == 0
    done = run(*patient, "--ready")
    assert done.returncode == 1
    assert "disk: the directory of the journals cannot be written" in done.stderr
    journal.parent.unlink()
    journal.mkdir(parents=True)
    done = eventually(lambda: (d := run(*patient, "--ready")).returncode == 0 and d, "it is ready")
    assert done.stdout == "1 server: ok\n"


def test_health_without_a_server(run: Run, serve: Callable[..., Process]) -> None:
    done = run("health")
    assert done.returncode == 1
    assert "no kbridge server runs" in done.stderr
    serve()
    done = run("health", "1")
    assert done.returncode == 1
    assert "no kbridge server runs on 1" in done.stderr
