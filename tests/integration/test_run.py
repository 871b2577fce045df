"""`kbridge run` and `kbridge logs`, as a user types them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests.support.server import TOKEN, Server
from tests.support.waiting import TIMEOUT, eventually

pytestmark = pytest.mark.kernel
ENDLESS = "print('begun', flush=True)\nwhile True: pass"


@pytest.fixture
def ours(server: Server) -> Iterator[set[str]]:
    """The ids of the kernels that ran before; those of the test are shut down."""
    before = kernels(server)
    yield before
    for kernel_id in kernels(server) - before:
        server.stop_kernel(kernel_id)


def kernels(server: Server) -> set[str]:
    return {model["id"] for model in server.request("GET", "/api/kernels").json()}


def command(server: Server, *args: str) -> tuple[list[str], dict[str, str]]:
    env = {**os.environ, "KBRIDGE_URL": server.url, "KBRIDGE_TOKEN": TOKEN}
    return [sys.executable, "-m", "kbridge", *args], env


def kbridge(server: Server, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    argv, env = command(server, *args)
    return subprocess.run(
        argv, env=env, input=stdin, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )


def program(folder: Path, code: str) -> str:
    path = folder / "program.py"
    path.write_text(code)
    return str(path)


def notebook(folder: Path, *sources: str, tags: tuple[str, ...] = ()) -> str:
    cells = [new_code_cell(source, metadata={"tags": list(tags)}) for source in sources]
    path = folder / "notebook.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return str(path)


def test_a_program(server: Server, ours: set[str], tmp_path: Path) -> None:
    code = (
        "import sys\nprint('\\x1b[31mhello\\x1b[0m', input('Name: '))\nsys.stderr.write('e')\n6*7"
    )
    done = kbridge(server, "run", program(tmp_path, code), stdin="Ada\n")
    assert (done.stdout, done.stderr) == ("Name: hello Ada\n42\n", "e")
    assert done.returncode == 0
    assert kernels(server) == ours, "its kernel was shut down"


def test_an_error_is_on_stderr_and_in_the_exit_code(
    server: Server, kernel: str, tmp_path: Path
) -> None:
    done = kbridge(server, "run", program(tmp_path, "1 / 0"), "--existing", kernel)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "ZeroDivisionError" in done.stderr
    assert "\x1b" not in done.stderr


def test_a_kernel_that_runs_keeps_its_variables(
    server: Server, kernel: str, tmp_path: Path
) -> None:
    for code, expected in (("kept = 7", ""), ("print(kept)", "7\n")):
        done = kbridge(server, "run", program(tmp_path, code), "--existing", kernel)
        assert (done.returncode, done.stdout) == (0, expected)
    assert kernel in kernels(server)


def test_an_interrupt(server: Server, own_kernel: str, tmp_path: Path) -> None:
    argv, env = command(server, "run", program(tmp_path, ENDLESS), "--existing", own_kernel)
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"begun\n"
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 130
    assert b"KeyboardInterrupt" in err


def test_a_second_interrupt_leaves(server: Server, own_kernel: str, tmp_path: Path) -> None:
    stubborn = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print('begun', flush=True)
while True: time.sleep(0.1)
"""
    argv, env = command(server, "run", program(tmp_path, stubborn), "--existing", own_kernel)
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == b"begun\n"
        running.send_signal(signal.SIGINT)
        assert b"Ctrl-C again" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=TIMEOUT)
    assert running.returncode == 130


def test_a_detached_program_is_shown_later(server: Server, ours: set[str], tmp_path: Path) -> None:
    go = tmp_path / "go"
    code = f"""
import pathlib, time
print('begun', flush=True)
while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)
print('end')
1 / 0
"""
    done = kbridge(server, "run", program(tmp_path, code), "--detach")
    assert done.returncode == 0
    msg_id = done.stdout.strip()
    assert f"kbridge logs {msg_id} -f" in done.stderr
    eventually(lambda: kbridge(server, "logs", msg_id).stdout == "begun\n", "it has begun")
    go.touch()
    whole = kbridge(server, "logs", msg_id, "-f")
    assert whole.stdout == "begun\nend\n"
    assert "ZeroDivisionError" in whole.stderr
    assert whole.returncode == 1


def test_a_notebook(server: Server, ours: set[str], tmp_path: Path) -> None:
    target = tmp_path / "target.ipynb"
    path = notebook(tmp_path, "a = 1; print('one')", "a + 1", "1 / 0", "print('never')")
    done = kbridge(server, "run", path, "--output", str(target), "--kernel", "python3")
    assert done.returncode == 1
    assert done.stdout == "one\n2\n"
    written: Any = nbformat.read(target, as_version=4)
    kinds = [[output.output_type for output in cell.outputs] for cell in written.cells]
    assert kinds == [["stream"], ["execute_result"], ["error"], []]
    assert [cell.execution_count for cell in written.cells] == [1, 2, 3, None]


def test_errors_in_a_notebook_may_be_allowed(server: Server, kernel: str, tmp_path: Path) -> None:
    path = notebook(tmp_path, "1 / 0", "print('on')")
    done = kbridge(server, "run", path, "--existing", kernel, "--allow-errors")
    assert (done.returncode, done.stdout) == (1, "on\n")
    path = notebook(tmp_path, "1 / 0", "print('on')", tags=("raises-exception",))
    done = kbridge(server, "run", path, "--existing", kernel)
    assert done.stdout == "on\n"


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["run"], "usage"),
        (["logs"], "usage"),
        (["run", "nothing.py"], "No such file"),
        (["run", "a.py", "--existing", "another"], "another"),
        (["run", "a.py", "--kernel", "another"], "another"),
        (["run", "a.py", "--kernel", "a", "--existing", "b"], "give one"),
        (["run", "a.py", "--output", "b.ipynb"], "for notebooks"),
        (["run", "a.ipynb", "--detach"], "for programs"),
        (["logs", "another"], "no kernel"),
        (["run", "a.py", "--server", "http://127.0.0.1:1/"], "cannot reach"),
    ],
)
def test_mistakes(server: Server, tmp_path: Path, args: list[str], reason: str) -> None:
    program(tmp_path, "1")
    args = [str(tmp_path / "program.py") if arg == "a.py" else arg for arg in args]
    done = kbridge(server, *args)
    assert reason in done.stderr
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_without_a_server_the_error_says_how_to_get_one(tmp_path: Path) -> None:
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("KBRIDGE_")},
        "JUPYTER_RUNTIME_DIR": str(tmp_path),
    }
    argv = [sys.executable, "-m", "kbridge", "run", program(tmp_path, "1")]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 2
    assert "no kbridge server of this user runs" in done.stderr
    assert "--server" in done.stderr
