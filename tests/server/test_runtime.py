import json
import os
import socket
import stat
from pathlib import Path

from kbridge.server.runtime import RuntimeFile, answers, is_running, running_servers

INFO = {"pid": os.getpid(), "port": 8888, "sock": "", "url": "http://127.0.0.1:8888/"}


def test_a_file_lives_as_long_as_its_server(tmp_path: Path) -> None:
    file = RuntimeFile(tmp_path, INFO)
    file.write()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert running_servers(tmp_path) == [INFO]
    assert is_running(file.path) == INFO, "to look does not end it"
    file.remove()
    file.remove()
    assert list(tmp_path.iterdir()) == []
    assert running_servers(tmp_path) == []


def test_a_dead_servers_file_is_removed_though_its_pid_lives(tmp_path: Path) -> None:
    path = tmp_path / f"kbserver-{os.getpid()}.json"
    path.write_text(json.dumps(INFO))
    assert running_servers(tmp_path) == []
    assert not path.exists()


def test_half_a_file_is_no_server(tmp_path: Path) -> None:
    (tmp_path / "kbserver-1.json").write_text('{"pid"')
    (tmp_path / "kbserver-2.json").write_text("[]")
    assert running_servers(tmp_path) == []


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "jpserver-1.json"
    theirs.write_text("{}")
    assert running_servers(tmp_path) == []
    assert theirs.exists()


def test_a_write_over_an_old_draft(tmp_path: Path) -> None:
    (tmp_path / f"kbserver-{os.getpid()}.part").write_text("old")
    file = RuntimeFile(tmp_path, INFO)
    file.write()
    assert running_servers(tmp_path) == [INFO]
    file.remove()


def test_no_folder_is_no_server(tmp_path: Path) -> None:
    assert running_servers(tmp_path / "nowhere") == []


def test_where_there_are_no_locks_a_server_is_what_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        info = {"hostname": "127.0.0.1", "port": server.getsockname()[1]}
        assert answers(info)
        assert answers(info | {"hostname": "*"})
    assert not answers(info)
