"""Tests of the tools that other tests use."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from _pytest.outcomes import Failed, Skipped

import kbridge
from tests.support.dialects import CODECS
from tests.support.postgresql import PostgreSQL
from tests.support.require import require
from tests.support.server import Server, gone
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[1]
MESSAGE = {
    "channel": "shell",
    "header": {"msg_id": "1", "msg_type": "comm_msg", "session": "s", "version": "5.3"},
    "parent_header": {},
    "metadata": {"ü": 1},
    "content": {"text": "世界"},
    "buffers": [],
}


def test_a_missing_program_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(Failed, match="no_such_module is missing: pip install no_such_module"):
        require("json", "no_such_module")


def test_a_missing_program_skips_outside_of_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Skipped, match="node is missing: install Node"):
        require("node")


def test_an_installed_program_is_found() -> None:
    assert require("json") == "json"


def test_an_event_that_never_happens_fails_with_its_name() -> None:
    with pytest.raises(AssertionError, match="still not: the moon is full"):
        eventually(lambda: False, "the moon is full", timeout=0)


@pytest.mark.parametrize("buffers", [[], [b"\x00\xff", b"", b"12"]])
@pytest.mark.parametrize("dialect", sorted(CODECS))
def test_decoding_undoes_encoding(dialect: str, buffers: list[bytes]) -> None:
    codec = CODECS[dialect]
    usual = {"msg_id": "1", "msg_type": "comm_msg"} if dialect == "legacy" else {}
    msg = {**MESSAGE, **usual, "buffers": buffers}
    assert codec.decode(codec.encode(msg)) == msg


def test_jupyter_server_reads_v1_frames() -> None:
    require("jupyter_server")
    from jupyter_server.services.kernels.connection.base import deserialize_msg_from_ws_v1

    msg = {**MESSAGE, "buffers": [b"\x00\xff"]}
    channel, parts = deserialize_msg_from_ws_v1(CODECS["v1"].encode(msg))
    assert channel == "shell"
    assert [json.loads(p) for p in parts[:4]] == [
        MESSAGE[name] for name in ("header", "parent_header", "metadata", "content")
    ]
    assert parts[4:] == [b"\x00\xff"]


def test_jupyter_server_reads_legacy_frames() -> None:
    require("jupyter_server")
    from jupyter_server.services.kernels.connection.base import deserialize_binary_message

    frame = CODECS["legacy"].encode({**MESSAGE, "buffers": [b"\x00\xff", b"1"]})
    read = deserialize_binary_message(frame)
    assert read["content"] == MESSAGE["content"]
    assert [bytes(b) for b in read["buffers"]] == [b"\x00\xff", b"1"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no shell that ignores signals")
def test_ignored_signals_are_reset() -> None:
    tell = (
        "import signal; from tests.support.signals import reset_ignored_signals as reset\n"
        "print(reset(), signal.getsignal(signal.SIGINT) is signal.default_int_handler, reset())"
    )
    ignoring = ["/bin/sh", "-c", 'trap "" INT HUP; exec "$@"', "sh"]
    done = subprocess.run(
        [*ignoring, sys.executable, "-c", tell], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['SIGINT', 'SIGHUP'] True []"


@pytest.mark.parametrize(
    ("file", "error", "clean"),
    [
        ("/usr/lib/ipykernel/iostream.py", "RuntimeError: Event loop is closed", True),
        (f"{Path(kbridge.__file__).parent}/hub/hub.py", "RuntimeError: closed", False),
        # A kernel that is interrupted while Python still loads ipykernel_launcher.
        ("/usr/lib/python3/pathlib.py", "KeyboardInterrupt", True),
        ("/usr/lib/python3/pathlib.py", "RuntimeError: closed", False),
        (f"{Path(kbridge.__file__).parent}/hub/hub.py", "KeyboardInterrupt", False),
    ],
)
def test_errors_of_a_kernel_in_the_log_are_not_the_servers(
    tmp_path: Path, file: str, error: str, clean: bool
) -> None:
    server = Server(tmp_path)
    server.log.write_text(
        f'[I] kernel started\nTraceback (most recent call last):\n  File "{file}", line 1\n'
        f"{error}\n[I] kernel ended\n"
    )
    with nullcontext() if clean else pytest.raises(AssertionError, match=error):
        server.assert_clean_log()


@pytest.mark.slow
def test_postgresql_ends_with_the_process_that_started_it(database_server: PostgreSQL) -> None:
    """Another server, of a process that lives, goes on."""
    start = (
        "import signal; from tests.support.postgresql import PostgreSQL; server = PostgreSQL();"
        " server.start(); print(server.pid, server.home, flush=True); signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", start], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        pid, home = process.stdout.readline().split()
        assert not gone(int(pid))
        process.kill()
    eventually(lambda: gone(int(pid)), "PostgreSQL has ended")
    eventually(lambda: not Path(home).exists(), "its files are removed")
    assert not gone(database_server.pid)
