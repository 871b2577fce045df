"""The effect of `pip install kbridge[jupyter]`, and a Jupyter Server that runs with it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbridge import __version__
from tests.support.client import attach
from tests.support.jupyter_server import jupyter_server
from tests.support.require import require
from tests.support.server import Server, gone
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
SWITCH = "etc/jupyter/jupyter_server_config.d/kbridge-extension.json"
# An installation without the extra, as far as `import` can tell.
WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "jupyter_server":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """Run a command that must succeed; return its output without colours."""
    done = subprocess.run(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}"
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)


def one_connection(server: Server, kernel_id: str, count: int) -> None:
    def connections() -> bool:
        return bool(
            server.request("GET", f"/api/kernels/{kernel_id}").json()["connections"] == count
        )

    eventually(connections, f"{count} connections")


# -- a Jupyter Server from its start to its end ---------------------------------------------


@pytest.fixture
def jupyter(tmp_path: Path) -> Iterator[Server]:
    require("jupyter_server", "ipykernel")
    running = jupyter_server(tmp_path)
    try:
        yield running.start()
    finally:
        running.kill()


@pytest.mark.kernel
async def test_the_extension_serves_kernels_until_sigterm(jupyter: Server) -> None:
    kernel = jupyter.start_kernel()
    assert f"kernel websockets go over kbridge {__version__}" in jupyter.tail()
    async with attach(jupyter, kernel, "v1") as new:
        done = await new.execute("print('new'); 6 * 7")
        assert done.text() == "new\n"
        assert done.of("execute_result")[0]["content"]["data"] == {"text/plain": "42"}
        one_connection(jupyter, kernel, 1)
        async with attach(jupyter, kernel, "legacy") as old:
            done = await old.execute("print('old')")
            assert done.text() == "old\n"
            assert (await new.finish(done.msg_id, reply=False)).text() == "old\n"
            one_connection(jupyter, kernel, 2)
        one_connection(jupyter, kernel, 1)
    one_connection(jupyter, kernel, 0)
    assert jupyter.request("GET", f"/api/kernels/{kernel}").json()["execution_state"] == "idle"
    started = jupyter.children()
    assert started
    assert jupyter.stop() == 0
    assert all(gone(pid) for pid in started), "a kernel has outlived its server"
    jupyter.assert_clean_log()
    no_loose_ends(jupyter)


@pytest.mark.kernel
async def test_sigterm_with_a_websocket_open_and_a_cell_running(jupyter: Server) -> None:
    kernel = jupyter.start_kernel()
    async with attach(jupyter, kernel) as ws:
        await ws.start("print('on', flush=True)\nimport time\nwhile True: time.sleep(0.1)")
        await ws.until(lambda m: m["content"].get("text", "").startswith("on"))
        started = jupyter.children()
        assert jupyter.stop() == 0
    assert all(gone(pid) for pid in started), "a kernel has outlived its server"
    no_loose_ends(jupyter)  # ipykernel itself logs a traceback


def no_loose_ends(server: Server) -> None:
    text = server.log.read_text()
    for fault in ("was destroyed", "never awaited", "never retrieved", "Exception ignored"):
        assert fault not in text, text[-4000:]


# -- the wheel, and an environment into which it was installed ------------------------------


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    require("pip")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", f"--wheel-dir={tmp_path}", ROOT)
    (built,) = tmp_path.glob("kbridge-*.whl")
    return built


@pytest.fixture
def environment(tmp_path: Path, wheel: Path) -> Path:
    """Create a virtual environment with the wheel, and the packages of this environment."""
    where = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", where)
    python = where / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # Another directory on the path; .pth files in it, such as that of kbridge, have no effect.
    (Path(site) / "tests.pth").write_text(sysconfig.get_path("purelib"))
    # Without an index: the packages of the extra must be installed.
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", f"--python={python}")
    run(*pip, "install", "--no-index", "--no-warn-script-location", f"{wheel}[jupyter]")
    found = run(python, "-I", "-c", "import kbridge; print(kbridge.__file__)").strip()
    assert Path(found).is_relative_to(where), f"{found} is not the wheel's"
    return where


@pytest.mark.slow
@pytest.mark.kernel
@pytest.mark.timeout(1200)
async def test_installing_the_package_enables_the_extension(
    tmp_path: Path, wheel: Path, environment: Path
) -> None:
    require("jupyter_server", "ipykernel")
    (shipped,) = [n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(SWITCH)]
    with zipfile.ZipFile(wheel) as archive:
        switch = json.loads(archive.read(shipped))
    assert switch == {"ServerApp": {"jpserver_extensions": {"kbridge": True}}}
    assert json.loads((environment / SWITCH).read_text()) == switch

    (tmp_path / "home").mkdir()
    python = environment / "bin" / "python"
    env = {k: v for k, v in os.environ.items() if not k.startswith("JUPYTER")}
    env |= {"HOME": str(tmp_path / "home"), "JUPYTER_PLATFORM_DIRS": "1"}

    def extension(*what: str) -> str:
        return run(python, "-I", "-m", "jupyter_server", "extension", *what, env=env)

    said = extension("list")
    assert re.search(r"^\s+kbridge enabled$", said, re.MULTILINE), said
    assert re.search(rf"^\s+kbridge {re.escape(__version__)} OK$", said, re.MULTILINE), said
    extension("disable", "kbridge")
    for _ in ("as it was", "installed again"):
        said = extension("list")
        assert re.search(r"^\s+kbridge disabled$", said, re.MULTILINE), said
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", f"--python={python}")
        run(*pip, "install", "--no-index", "--no-deps", "--force-reinstall", wheel)
        assert json.loads((environment / SWITCH).read_text()) == switch
    extension("enable", "kbridge")
    await works_in(tmp_path / "home", python)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_installing_the_package_installs_the_jupyterlab_extension(
    tmp_path: Path, environment: Path
) -> None:
    require("jupyterlab", "labextension")
    python = environment / "bin" / "python"
    env = {k: v for k, v in os.environ.items() if not k.startswith("JUPYTER")}
    env |= {"HOME": str(tmp_path), "JUPYTER_PLATFORM_DIRS": "1"}
    command = "import sys; from jupyterlab.labextensions import main; sys.exit(main())"
    said = run(python, "-I", "-c", command, "list", env=env)
    assert str(environment / "share" / "jupyter" / "labextensions") in said
    assert re.search(r"@kbridge/jupyterlab v\S+ enabled OK \(python, kbridge\)", said), said


async def works_in(home: Path, python: Path) -> None:
    """Start a Jupyter Server of an environment, without options about kbridge."""
    command = [str(python), "-I", "-m", "jupyter_server"]
    quiet = ("--ip=127.0.0.1", "--no-browser", "--allow-root")
    server = Server(home, *quiet, f"--ServerApp.root_dir={home}", command=command)
    try:
        server.start()
        assert f"kernel websockets go over kbridge {__version__}" in server.tail()
        async with attach(server, server.start_kernel()) as ws:
            assert (await ws.execute("print('installed')")).text() == "installed\n"
        assert server.stop() == 0
    finally:
        server.kill()


# -- an environment whose Jupyter Server is too old -----------------------------------------


def as_old_jupyter_server(where: Path) -> dict[str, str]:
    """Return environment variables that make jupyter_server report an old version."""
    old = where / "old"
    old.mkdir()
    (old / "sitecustomize.py").write_text(
        "import jupyter_server; jupyter_server.__version__ = '2.13.0'"
    )
    return {"PYTHONPATH": f"{old}{os.pathsep}{ROOT}"}


@pytest.mark.kernel
async def test_an_old_jupyter_server_is_unchanged_and_logs_the_reason(tmp_path: Path) -> None:
    require("jupyter_server", "ipykernel")
    env = as_old_jupyter_server(tmp_path)
    (tmp_path / "home").mkdir()
    server = jupyter_server(tmp_path / "home", env=env)
    try:
        server.start()
        log = server.log.read_text()
        assert "kbridge | off: it needs Jupyter Server 2.14 or newer, and this is 2.13.0" in log
        assert "kernel websockets go over kbridge" not in log
        async with attach(server, server.start_kernel()) as ws:
            assert (await ws.execute("print('as before')")).text() == "as before\n"
        server.assert_clean_log()
    finally:
        server.kill()


def test_the_class_is_refused_by_an_old_jupyter_server(tmp_path: Path) -> None:
    require("jupyter_server")
    env = as_old_jupyter_server(tmp_path)
    code = "from kbridge.jupyter import ZMQChannelsWebsocketConnection"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("ImportError: "), done.stderr
    assert "needs Jupyter Server 2.14 or newer" in done.stderr


@pytest.mark.parametrize(
    ("version", "works"),
    [
        ("1.24.0", False),
        ("2.0.0", False),
        ("2.13.0", False),
        ("2.14.0", True),
        ("2.14.0.dev0", True),
        ("2.21.1", True),
        ("3.0.0a1", True),
        ("unknown", True),
    ],
)
def test_the_supported_versions_of_jupyter_server(version: str, works: bool) -> None:
    require("jupyter_server")
    from kbridge.jupyter.supported import reason_against

    assert (reason_against(version) == "") is works


def test_the_oldest_version_equals_that_of_the_extra() -> None:
    require("jupyter_server")
    from kbridge.jupyter.supported import MINIMUM

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = f"jupyter_server>={'.'.join(map(str, MINIMUM))}"
    assert project["optional-dependencies"]["jupyter"] == [needed]


# -- an environment without the extra -------------------------------------------------------


@pytest.fixture
def without(tmp_path: Path) -> dict[str, str]:
    """Return environment variables that hide jupyter_server."""
    blocker = tmp_path / "blocker"
    blocker.mkdir()
    (blocker / "sitecustomize.py").write_text(WITHOUT)
    return {"PYTHONPATH": f"{blocker}{os.pathsep}{ROOT}"}


def test_without_jupyter_server_the_import_says_what_to_install(without: dict[str, str]) -> None:
    code = "import kbridge.jupyter"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **without}, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "pip install '.[jupyter]' in a clone of kbridge" in last


def test_without_jupyter_server_the_version_is_known(without: dict[str, str]) -> None:
    said = run(sys.executable, "-m", "kbridge", "--version", env={**os.environ, **without})
    assert said.strip() == __version__


@pytest.mark.kernel
async def test_without_jupyter_server_the_standalone_server_works(
    tmp_path: Path, without: dict[str, str]
) -> None:
    require("ipykernel")
    home = tmp_path / "home"
    home.mkdir()
    server = Server(home, env=without, command=[sys.executable, "-m", "kbridge", "--ip=127.0.0.1"])
    try:
        server.start()
        assert server.request("GET", "/api").status == 200
        async with attach(server, server.start_kernel()) as ws:
            code = "import importlib.util as u\ntry: u.find_spec('jupyter_server')\n"
            told = (await ws.execute(code + "except ImportError: print('absent')")).text()
            assert told == "absent\n", "no module was checked"
        assert server.stop() == 0
        server.assert_clean_log()
    finally:
        server.kill()
