from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kbridge.connection.audit import AuditCode, AuditedHub, AuditLog, Caller, caller_of
from kbridge.errors import HubClosed, IgnoredMessage, SetupError
from kbridge.hub.settings import HubSettings
from kbridge.link.memory import MemoryClient
from kbridge.server.auth.access_policy import AuthMethod
from kbridge.wire.build import build
from kbridge.wire.dialects import V1
from kbridge.wire.message import Channel, Message
from tests.hub.rig import Rig
from tests.support.waiting import TIMEOUT, eventually

LOG = logging.getLogger("kbridge.audit-test")
CALLER = Caller("a-kernel", "a-session", user="ada", client="192.0.2.1")

Start = Callable[..., AuditLog]


def request(code: Any = "1 + 1", channel: Channel = Channel.SHELL, **content: Any) -> Message:
    content = {"code": code, "silent": False, **content}
    return build(channel, "execute_request", content, session="of-header", date="")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "audit.log"


@pytest.fixture
def start(path: Path) -> Iterator[Start]:
    path.parent.mkdir()
    made: list[AuditLog] = []

    def run(code: AuditCode = AuditCode.HASH, where: Path = path) -> AuditLog:
        made.append(AuditLog(where, code, LOG))
        return made[-1]

    yield run
    for audit in made:
        audit.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_the_client_the_kernel_and_the_hash(start: Start, path: Path) -> None:
    audit, msg = start(), request("print('é')")
    audit.record(CALLER, msg)
    audit.close()
    [line] = lines(path)
    assert line.pop("time").endswith("Z")
    code = "print('é')".encode()
    assert line == {
        "kernel_id": "a-kernel",
        "session": "a-session",
        "msg_id": msg.msg_id,
        "user": "ada",
        "auth": None,
        "client": "192.0.2.1",
        "outcome": "forwarded",
        "code_bytes": len(code),
        "sha256": hashlib.sha256(code).hexdigest(),
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_text_of_the_code_is_written_only_if_that_is_set(start: Start, path: Path) -> None:
    audit = start(AuditCode.TEXT)
    audit.record(CALLER, request("x = 'a\nb'"))
    audit.close()
    assert [line["code"] for line in lines(path)] == ["x = 'a\nb'"]


def test_lines_are_appended_to_an_existing_file(start: Start, path: Path) -> None:
    path.write_text('{"old": 1}\n')
    audit = start()
    audit.record(CALLER, request())
    audit.close()
    assert [len(line) > 1 for line in lines(path)] == [False, True]


@pytest.mark.parametrize("code", [None, 1, ["a"]])
def test_a_request_without_code_has_a_line(code: Any, start: Start, path: Path) -> None:
    audit = start(AuditCode.TEXT)
    audit.record(CALLER, request(code))
    audit.record(CALLER, request("\ud800"))
    audit.close()
    assert [line["sha256"] is None for line in lines(path)] == [True, False]


def test_content_that_is_not_json_has_a_line(start: Start, path: Path) -> None:
    audit = start()
    for content in (b"{", b"[]", b"[" * 100_000):
        audit.record(CALLER, request()._replace(content=content))
    audit.close()
    assert [line["sha256"] for line in lines(path)] == [None] * 3
    assert lines(path)[1]["content_sha256"] == hashlib.sha256(b"[]").hexdigest()


def test_of_a_large_content_only_the_hash_is_written(start: Start, path: Path) -> None:
    """Parsing it would stop the event loop."""
    audit, msg = start(AuditCode.TEXT), request("1", padding="x" * (1 << 20))
    audit.record(CALLER, msg)
    audit.close()
    [line] = lines(path)
    assert line["sha256"] is None
    assert "code" not in line
    assert line["content_bytes"] == len(msg.content)
    assert line["content_sha256"] == hashlib.sha256(msg.content).hexdigest()


@pytest.mark.parametrize("code", AuditCode)
def test_expressions_of_the_user_are_noted(code: AuditCode, start: Start, path: Path) -> None:
    """The kernel evaluates them, also if the code is empty."""
    audit = start(code)
    audit.record(CALLER, request("", user_expressions={"y": "2", "x": "print('é')"}))
    audit.record(CALLER, request("", user_expressions={}))
    audit.close()
    text = r"""{"x":"print('\u00e9')","y":"2"}"""
    found = [line.get("user_expressions_sha256") for line in lines(path)]
    assert found == [hashlib.sha256(text.encode()).hexdigest(), None]
    shown = text if code is AuditCode.TEXT else None
    assert [line.get("user_expressions") for line in lines(path)] == [shown, None]


def test_deep_expressions_do_not_end_the_log(start: Start, path: Path) -> None:
    audit = start()
    for depth in range(100, 2000, 100):
        content = b'{"user_expressions": ' + b"[" * depth + b"]" * depth + b"}"
        audit.record(CALLER, request()._replace(content=content))
    audit.record(CALLER, request())
    audit.close()
    assert len(lines(path)) == 20


def test_without_a_session_in_the_url_that_of_the_header_is_written(
    start: Start, path: Path
) -> None:
    audit = start()
    audit.record(Caller("a-kernel"), request())
    audit.close()
    assert lines(path)[0]["session"] == "of-header"


def test_a_file_that_was_renamed_is_followed_by_a_new_one(start: Start, path: Path) -> None:
    audit = start()
    audit.record(CALLER, request())
    eventually(lambda: path.read_text().count("\n") == 1, "the first line is written")
    path.rename(path.with_suffix(".1"))
    audit.record(CALLER, request())
    audit.close()
    assert len(lines(path)) == len(lines(path.with_suffix(".1"))) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_outage_is_logged_once_and_leaves_a_count(
    start: Start, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOG.name)
    audit, away = start(), path.parent.with_name("away")
    path.parent.rename(away)  # the file can be neither found nor created
    audit.record(CALLER, request())
    eventually(lambda: "cannot be written" in caplog.text, "the outage is logged")
    audit.record(CALLER, request())
    away.rename(path.parent)
    audit.record(CALLER, request())
    audit.close()
    found = lines(path)
    missing = sum(line.get("missing_lines", 0) for line in found)
    assert 1 <= missing <= 2  # the second request may have met either state
    assert missing + sum("msg_id" in line for line in found) == 3
    assert caplog.text.count("cannot be written") == 1
    assert caplog.text.count("is written again") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
def test_a_full_disk_is_logged_once(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    audit = start(where=Path("/dev/full"))
    for _ in range(3):
        audit.record(CALLER, request())
    audit.close()
    assert caplog.text.count("No space left on device") == 1


@pytest.mark.parametrize("end", [0, 1])
def test_lines_of_a_partial_write_are_not_missing(
    end: int, start: Start, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full after two and a half lines, or after three lines without the last end."""
    audit = start()
    write, calls, gate = os.write, [0], threading.Event()

    def limited(fd: int, data: bytes | memoryview) -> int:
        if threading.current_thread().name != "kbridge-audit":
            return write(fd, data)
        calls[0] += 1
        if calls[0] == 1:
            gate.wait(TIMEOUT)
        if calls[0] == 2:
            size = len(bytes(data).split(b"\n")[0]) + 1
            return write(fd, data[: 3 * size - 1 if end else 2 * size + size // 2])
        if calls[0] == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    monkeypatch.setattr("kbridge.connection.audit.os.write", limited)
    audit.record(CALLER, request())
    eventually(lambda: calls[0] == 1, "the thread writes the first line")
    for _ in range(6):
        audit.record(CALLER, request())
    gate.set()
    eventually(lambda: audit.waiting == 0, "the write has failed")
    audit.record(CALLER, request())
    audit.close()
    found = path.read_text().splitlines()
    assert sum('"sha256"' in line for line in found) == 1 + (3 if end else 2) + 1
    notes = [json.loads(line) for line in found if "missing_lines" in line]
    assert [note["missing_lines"] for note in notes] == [3 if end else 4]


def test_a_fifo_without_a_reader_is_an_error(start: Start, path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(SetupError, match="cannot be opened"):
        AuditLog(path, AuditCode.HASH, LOG)


def test_a_fifo_with_a_reader_receives_lines(start: Start, path: Path) -> None:
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    audit = start()
    audit.record(CALLER, request())
    audit.close()
    line = os.read(reader, 4096)
    os.close(reader)
    assert json.loads(line)["kernel_id"] == "a-kernel"


def test_what_waits_for_the_file_is_bounded(start: Start, path: Path) -> None:
    audit = start()
    big = request("x" * (8 << 20))
    for _ in range(200):
        audit.record(CALLER, big)
    audit.record(CALLER, request())
    eventually(lambda: audit.waiting == 0, "the queue is empty")
    audit.record(CALLER, request())
    audit.close()
    found = lines(path)
    written = sum("msg_id" in line for line in found)
    assert written + sum(line.get("missing_lines", 0) for line in found) == 202


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot be opened"):
        AuditLog(tmp_path / "missing" / "audit.log", AuditCode.HASH, LOG)


def test_closing_twice_and_recording_afterwards(start: Start, path: Path) -> None:
    audit = start()
    audit.close()
    audit.close()
    audit.record(CALLER, request())
    assert path.read_text() == ""


@pytest.mark.parametrize(
    ("user", "method", "expected"),
    [
        (None, AuthMethod.COOKIE, (None, "cookie")),
        (None, None, (None, None)),
        ("ada", None, ("ada", None)),
        (SimpleNamespace(username="ada", name="Ada"), None, ("ada", None)),
    ],
)
def test_the_user_of_a_handler(user: Any, method: Any, expected: Any) -> None:
    handler = SimpleNamespace(current_user=user, request=SimpleNamespace(remote_ip="::1"))
    if method is not None:
        handler.auth_method = method
    found = caller_of(handler, "k", "s")
    assert (found.user, found.auth) == expected
    assert found.client == "::1"


class TestAuditedHub:
    @pytest.fixture
    async def opened(self, start: Start) -> Any:
        rigs: list[Rig] = []

        def run(**settings: Any) -> tuple[Rig, AuditedHub, Any, AuditLog]:
            rig = Rig(HubSettings(limit_rate=False, **settings))
            rigs.append(rig)
            audit = start()
            cursor = rig.hub.attach(MemoryClient(), V1, "a-session")
            return rig, AuditedHub(rig.hub, audit, CALLER), cursor, audit

        yield run
        for rig in rigs:
            await rig.hub.aclose()

    async def test_only_requests_to_execute_code_have_lines(self, opened: Any, path: Path) -> None:
        rig, hub, cursor, audit = opened()
        hub.submit(cursor, build(Channel.SHELL, "kernel_info_request", {}, session="s", date=""))
        hub.submit(cursor, request())
        audit.close()
        assert [line["outcome"] for line in lines(path)] == ["forwarded"]
        assert len(rig.hub.executions) == 1

    async def test_a_type_that_is_not_allowed_is_refused(self, opened: Any, path: Path) -> None:
        rig, hub, cursor, audit = opened(allowed_message_types=frozenset({"kernel_info_request"}))
        assert hub.submit(cursor, request()) is None
        audit.close()
        [line] = lines(path)
        assert (line["outcome"], line["reason"]) == ("refused", "not in allowed_message_types")
        assert len(rig.hub.executions) == 0

    async def test_errors_are_refusals(self, opened: Any, path: Path) -> None:
        rig, hub, cursor, audit = opened()
        with pytest.raises(IgnoredMessage):
            hub.submit(cursor, request(channel=Channel.IOPUB))
        await rig.hub.aclose()
        with pytest.raises(HubClosed):
            hub.submit(cursor, request())
        audit.close()
        assert [line["outcome"] for line in lines(path)] == ["refused"] * 2
        assert lines(path)[1]["reason"] == "the kernel is gone"
