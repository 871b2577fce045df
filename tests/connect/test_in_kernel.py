"""Functions for code that runs in a kernel."""

import ast
import inspect
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ipykernel import connect as peer
from traitlets.config import Application

from kbridge.connect import (
    connect_qtconsole,
    get_connection_file,
    get_connection_info,
    write_connection_file,
)
from tests.support.waiting import TIMEOUT

GIVEN: dict[str, Any] = {
    "ip": "127.0.0.1",
    "shell_port": 1,
    "iopub_port": 2,
    "stdin_port": 3,
    "hb_port": 4,
    "control_port": 5,
    "key": b"a key",
}


class App:
    """The attributes of the application of ipykernel that are used."""

    def __init__(self, path: Path) -> None:
        self.connection_file = path.name
        self.connection_dir = str(path.parent)


@pytest.fixture
def connection_file(tmp_path: Path) -> Path:
    path = tmp_path / "runtime" / "kernel-1.json"
    path.parent.mkdir()
    write_connection_file(str(path), **GIVEN)
    return path


@pytest.fixture
def inside(connection_file: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    """Pretend that a kernel runs in this process."""
    app = App(connection_file)

    class IPKernelApp:
        initialized = staticmethod(lambda: True)
        instance = staticmethod(lambda: app)

    module = ModuleType("ipykernel.kernelapp")
    module.IPKernelApp = IPKernelApp  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", module)
    return app


@pytest.fixture
def qtconsole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a console that prints its arguments, and whether it has its own session."""
    package = tmp_path / "packages" / "qtconsole"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "qtconsoleapp.py").write_text(
        "import json, os, sys\n"
        "def main():\n"
        "    print(json.dumps({'argv': sys.argv[1:], 'leads': os.getsid(0) == os.getpid()}))\n"
        "    sys.stderr.write('no display')\n"
    )
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))


@pytest.mark.parametrize("name", ["get_connection_file", "get_connection_info"])
def test_the_signatures_are_those_of_ipykernel(name: str) -> None:
    def parameters(function: Any) -> list[tuple[str, Any]]:
        return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]

    import kbridge.connect

    assert parameters(getattr(kbridge.connect, name)) == parameters(getattr(peer, name))


# -- outside ------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [get_connection_file, get_connection_info, connect_qtconsole])
@pytest.mark.parametrize("there", ["no ipykernel", "ipykernel", "another application"])
def test_the_error_outside_a_kernel(
    function: Any, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ipykernel.kernelapp

    # Other tests may have made an application.
    monkeypatch.setattr(Application, "_instance", None)
    if there == "no ipykernel":
        monkeypatch.delitem(sys.modules, "ipykernel.kernelapp")
    elif there == "another application":
        monkeypatch.setattr(Application, "_instance", Application())
        assert ipykernel.kernelapp.IPKernelApp.initialized()
    with pytest.raises(RuntimeError, match=r"does not run in an IPython kernel.*name a connection"):
        function()


def test_an_application_or_a_file_can_be_named(connection_file: Path) -> None:
    assert get_connection_file(App(connection_file)) == str(connection_file)
    assert get_connection_info(str(connection_file)) == connection_file.read_text()


def test_a_file_is_found_by_a_part_of_its_name(
    connection_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(connection_file.parent))
    assert get_connection_info("nel-1") == connection_file.read_text()
    with pytest.raises(OSError, match="Could not find 'kernel-2'"):
        get_connection_info("kernel-2")


def test_a_file_that_was_removed_is_named(connection_file: Path) -> None:
    app = App(connection_file)
    connection_file.unlink()
    with pytest.raises(OSError, match=r"kernel-1\.json does not exist"):
        get_connection_file(app)


# -- inside -------------------------------------------------------------------------------------


def test_in_a_kernel_its_own_file_is_the_default(inside: App, connection_file: Path) -> None:
    assert get_connection_file() == str(connection_file)
    assert get_connection_info() == connection_file.read_text()
    assert isinstance(get_connection_info(unpack=True), dict)


def test_unpacked_content_has_the_key_as_bytes(connection_file: Path) -> None:
    info = get_connection_info(str(connection_file), unpack=True)
    assert isinstance(info, dict)
    assert {name: info[name] for name in GIVEN} == GIVEN
    assert info == peer.get_connection_info(str(connection_file), unpack=True)


def test_unpacked_content_without_a_key_has_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "k.json").write_text("{}")
    assert get_connection_info(str(tmp_path / "k.json"), unpack=True) == {"key": b""}


def test_the_content_of_an_invalid_file_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "k.json"
    path.write_text('{"key": "the-key"')
    assert get_connection_info(str(path)) == path.read_text()
    with pytest.raises(ValueError, match=r"k\.json is not a connection file") as caught:
        get_connection_info(str(path), unpack=True)
    assert "the-key" not in repr(caught.value)


@pytest.mark.kernel
def test_a_real_kernel_finds_its_own_file(tmp_path: Path) -> None:
    from jupyter_client.manager import KernelManager

    manager = KernelManager(connection_file=str(tmp_path / "kernel-r.json"))
    manager.start_kernel(env=dict(os.environ))
    client = manager.blocking_client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=TIMEOUT)
        code = (
            "from kbridge.connect import get_connection_file, get_connection_info\n"
            "found = [get_connection_file(), get_connection_info(unpack=True)['shell_port']]"
        )
        asked = {"found": "found"}
        # Waiting for a kernel may leave other replies in the queue.
        whole = client.execute(code, user_expressions=asked, reply=True, timeout=TIMEOUT)
        reply = whole["content"]
        assert reply["status"] == "ok", reply
        found = reply["user_expressions"]["found"]["data"]["text/plain"]
        assert ast.literal_eval(found) == [manager.connection_file, manager.shell_port]
    finally:
        client.stop_channels()
        client.context.destroy(linger=0)
        client.context.destroy(linger=0)
        manager.shutdown_kernel(now=True)


# -- the Qt console -----------------------------------------------------------------------------


def test_the_error_without_qtconsole_says_what_to_install(inside: App, monkeypatch: Any) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install qtconsole") as caught:
        connect_qtconsole()
    assert caught.value.name == "qtconsole"


def test_a_console_is_started_on_this_kernel(
    inside: App, connection_file: Path, qtconsole: None
) -> None:
    with connect_qtconsole(argv=["--debug"]) as console:
        out, err = console.communicate(timeout=TIMEOUT)
    assert json.loads(out) == {
        "argv": ["--existing", str(connection_file), "--debug"],
        "leads": True,
    }
    assert err == b"no display"
    assert console.returncode == 0


def test_a_console_is_started_on_a_kernel_that_is_named(
    connection_file: Path, qtconsole: None
) -> None:
    options: dict[str, Any] = {"style": "monokai", "no_banner": True, "gui": None, "debug": False}
    with connect_qtconsole(str(connection_file), ["-x"], font_size=12, **options) as console:
        out, _ = console.communicate(timeout=TIMEOUT)
    assert json.loads(out)["argv"] == [
        *("--existing", str(connection_file)),
        *("--font-size=12", "--style=monokai", "--no-banner", "-x"),
    ]
