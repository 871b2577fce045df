"""Kernels that another program started: listed, used, and never ended."""

import asyncio
import json
import os
import uuid

import pytest

from kbridge.errors import Busy, InvalidRequest, KernelError, KernelNotFound, NotSupported
from kbridge.kernels.attached import directory
from kbridge.kernels.attached.attached import AttachedKernel
from kbridge.kernels.attached.connection_file import kernel_id_for, read_connection_file
from kbridge.kernels.attached.manager import AttachedKernelManager
from kbridge.kernels.lifecycle import descriptors
from kbridge.kernels.lifecycle.started import StartedKernel
from kbridge.link.endpoints import Endpoints
from kbridge.wire.message import Channel
from tests.kernels.conftest import pooled
from tests.support.waiting import TIMEOUT

INFO = {
    "shell_port": 1,
    "iopub_port": 2,
    "stdin_port": 3,
    "control_port": 4,
    "hb_port": 5,
    "ip": "127.0.0.1",
    "transport": "tcp",
    "key": "a secret",
    "signature_scheme": "hmac-sha256",
    "kernel_name": "somebodys",
}


def kernel(kernel_id="k", release=None, info=None) -> AttachedKernelManager:
    return AttachedKernelManager(kernel_id, "other", info or INFO, source="a file", release=release)


class Released:
    def __init__(self) -> None:
        self.times = 0

    async def __call__(self) -> None:
        self.times += 1


def shell_port(hubs, kernel_id) -> int:
    return hubs.kernel(kernel_id).info.ports[Channel.SHELL]


async def until(condition) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110 - files set no event
            await asyncio.sleep(0.01)


# One kernel


async def test_an_attached_kernel_has_a_model(make_manager, hubs):
    manager = make_manager()
    kernel_id = manager.attach(kernel())
    (model,) = manager.models()
    assert (model["id"], model["name"], model["connections"]) == (kernel_id, "other", 0)
    assert hubs.kernel(kernel_id).info == Endpoints.from_connection_info(INFO)
    assert manager.get_kernel(kernel_id).get_connection_info() == INFO


async def test_an_attached_kernel_is_unknown_until_it_answers(make_manager, hubs):
    hubs.answering = False
    manager = make_manager()
    kernel_id = manager.attach(kernel())
    assert manager.model(kernel_id)["execution_state"] == "unknown"
    hubs.kernel(kernel_id).process.answer()
    assert await hubs[kernel_id].wait_ready(TIMEOUT)
    hubs.kernel(kernel_id).process.publish("busy")
    assert manager.model(kernel_id)["execution_state"] == "busy"


async def test_shutdown_of_an_attached_kernel_detaches_it(make_manager, hubs):
    manager, released = make_manager(), Released()
    kernel_id = manager.attach(kernel(release=released))
    await manager.shutdown_kernel(kernel_id)
    assert hubs.closed == [kernel_id]
    assert manager.models() == []
    assert released.times == 1
    with pytest.raises(KernelNotFound):
        await manager.shutdown_kernel(kernel_id)


async def test_a_second_detach_waits_for_the_first(make_manager, hubs, monkeypatch, caplog):
    caplog.set_level("INFO")
    manager, released = make_manager(), Released()
    kernel_id = manager.attach(kernel(release=released))
    closing, may_close = asyncio.Event(), asyncio.Event()
    close = hubs.close

    async def close_slowly(kernel_id):
        await close(kernel_id)
        if not closing.is_set():
            closing.set()
            await may_close.wait()

    monkeypatch.setattr(hubs, "close", close_slowly)
    first = asyncio.create_task(manager.shutdown_kernel(kernel_id))
    await closing.wait()
    second = asyncio.create_task(manager.shutdown_kernel(kernel_id))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not second.done()
    assert released.times == 0, "the tunnel is needed until the hub is closed"
    assert kernel_id in manager
    may_close.set()
    await asyncio.gather(first, second)
    assert released.times == 1
    assert caplog.text.count("Kernel detached") == 1
    assert manager.models() == []


@pytest.mark.parametrize("name", ["role", "failed", "refuse_restarts", "kill"])
def test_an_attached_kernel_has_no_members_about_a_process(name):
    assert hasattr(StartedKernel, name)
    assert not hasattr(AttachedKernel, name)


async def test_shutdown_all_leaves_attached_kernels(make_manager, hubs):
    manager, released = make_manager(), Released()
    manager.attach(kernel(release=released))
    await manager.shutdown_all()
    assert released.times == 1
    assert hubs.closed == [], "the next server continues the journal"
    assert manager.models() == []
    await hubs.aclose()


async def test_an_attached_kernel_cannot_be_restarted(make_manager):
    manager = make_manager()
    manager.attach(kernel())
    with pytest.raises(NotSupported, match="started elsewhere"):
        await manager.restart_kernel("k")
    assert NotSupported("x").http_status == 501


async def test_an_attached_kernel_is_interrupted_by_message(make_manager, hubs):
    manager = make_manager()
    manager.attach(kernel())
    await manager.interrupt_kernel("k")
    assert hubs.kernel("k").requests == [("interrupt_request", {}, Channel.CONTROL)]


async def test_an_attached_kernel_that_fails_to_interrupt_raises_its_error(make_manager, hubs):
    hubs.reply = lambda *_: {"status": "error", "ename": "OSError", "evalue": "no thread"}
    manager = make_manager()
    manager.attach(kernel())
    with pytest.raises(KernelError, match="OSError: no thread"):
        await manager.interrupt_kernel("k")


async def test_an_attached_kernel_without_an_interrupt_reply_raises_not_supported(
    make_manager, hubs
):
    hubs.reply = lambda *_: None
    manager = make_manager(interrupt_timeout=0.05)
    manager.attach(kernel())
    with pytest.raises(NotSupported, match="interrupt_request"):
        await manager.interrupt_kernel("k")


async def test_an_attached_kernel_is_neither_culled_nor_counted(make_manager, hubs, fake):
    manager = make_manager(max_kernels=1, cull_idle_timeout=1)
    manager.attach(kernel())
    hubs["k"].activity.last_activity = 0.0
    await manager.cull()
    assert "k" in manager
    assert await manager.start_kernel(fake())


async def test_renaming_the_session_of_an_attached_kernel_does_nothing(make_manager):
    manager = make_manager()
    manager.attach(kernel())
    manager.rename_session("k", "another.ipynb")
    assert manager.model("k")["name"] == "other"


async def test_a_second_kernel_with_the_same_id_is_refused(make_manager, hubs):
    manager = make_manager()
    manager.attach(kernel())
    with pytest.raises(InvalidRequest, match="served already"):
        manager.attach(kernel())
    assert len(hubs.opened) == 1


async def test_no_kernel_is_attached_if_descriptors_are_scarce(make_manager, hubs, monkeypatch):
    manager = make_manager()
    monkeypatch.setattr(descriptors, "free_descriptors", lambda: 10)
    with pytest.raises(Busy, match="too few file descriptors"):
        manager.attach(kernel())
    assert (hubs.opened, manager.models()) == ([], [])


async def test_connection_info_without_ports_is_refused(make_manager, hubs, monkeypatch):
    def fail(*_):
        raise ValueError("the connection info has no shell_port")

    monkeypatch.setattr(hubs, "open", fail)
    manager = make_manager()
    with pytest.raises(InvalidRequest, match=r"a file: .*no shell_port"):
        manager.attach(kernel())
    assert manager.models() == []


# Connection files


def test_a_connection_file_is_read(tmp_path):
    path = tmp_path / "kernel-1.json"
    path.write_text(json.dumps(INFO))
    assert read_connection_file(path) == INFO


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read"),
        ("{", "not contain a JSON object"),
        ("\xff", "not contain a JSON object"),
        ("[]", "not contain a JSON object"),
        (json.dumps(INFO | {"stdin_port": 0}), "no stdin_port"),
    ],
)
def test_invalid_connection_files_are_refused_without_showing_their_content(
    tmp_path, content, complaint
):
    path = tmp_path / "k.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InvalidRequest, match=complaint) as refusal:
        read_connection_file(path)
    assert "secret" not in str(refusal.value)


def test_the_id_of_a_kernel_follows_from_the_name_of_its_file(tmp_path):
    known = str(uuid.uuid4())
    assert kernel_id_for(tmp_path / f"kernel-{known}.json") == known
    made = kernel_id_for(tmp_path / "kernel-4711.json")
    assert made == kernel_id_for(tmp_path / "kernel-4711.json") == str(uuid.UUID(made))
    assert made != kernel_id_for(tmp_path / "kernel-4712.json")


# A directory of connection files


@pytest.fixture
async def watched(make_manager, tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "_LOOK_SECONDS", 0.02)
    folder = tmp_path / "dropped"
    manager = make_manager(attach_dir=str(folder))
    await manager.open()
    return manager, folder


def drop(folder, name, info=INFO):
    folder.mkdir(exist_ok=True)
    (folder / "new").write_text(json.dumps(info))
    return (folder / "new").rename(folder / name)


async def test_kernels_are_attached_and_detached_with_their_files(watched):
    manager, folder = watched
    path = drop(folder, "kernel-1.json")
    await until(lambda: len(manager.models()) == 1)
    assert manager.models()[0]["name"] == "somebodys"
    drop(folder, "kernel-2.json")
    await until(lambda: len(manager.models()) == 2)
    path.unlink()
    await until(lambda: len(manager.models()) == 1)
    assert manager.models()[0]["id"] == kernel_id_for(folder / "kernel-2.json")


async def test_a_changed_file_replaces_the_attached_kernel(watched, hubs):
    manager, folder = watched
    path = drop(folder, "kernel-1.json")
    await until(manager.models)
    drop(folder, "kernel-1.json", INFO | {"shell_port": 6})
    kernel_id = kernel_id_for(path)
    await until(lambda: hubs.get(kernel_id) and shell_port(hubs, kernel_id) == 6)
    assert hubs.closed == [kernel_id]


async def test_an_unusable_file_is_logged_once(watched, caplog):
    manager, folder = watched
    bad = drop(folder, "bad.json", {"key": "a secret"})
    await until(lambda: "bad.json" in caplog.text)
    await manager.attach_directory.aclose()  # this test looks itself, as two looks at once differ
    for _ in range(3):
        await manager.attach_directory.look()
    assert caplog.text.count("bad.json") == 1
    assert "a secret" not in caplog.text
    drop(folder, bad.name)
    await manager.attach_directory.look()
    assert len(manager.models()) == 1


async def test_a_file_without_descriptors_for_it_is_tried_again(watched, caplog, monkeypatch):
    manager, folder = watched
    with monkeypatch.context() as scarce:
        scarce.setattr(descriptors, "free_descriptors", lambda: 10)
        drop(folder, "kernel-1.json")
        await until(lambda: "is attached later: " in caplog.text)
        await manager.attach_directory.aclose()  # this test looks itself
        for _ in range(3):
            await manager.attach_directory.look()
        assert manager.models() == []
        assert caplog.text.count("is attached later: ") == 1
    await manager.attach_directory.look()
    assert len(manager.models()) == 1


async def test_a_detached_kernel_is_attached_again_only_after_its_file_changes(watched):
    manager, folder = watched
    path = drop(folder, "kernel-1.json")
    await until(manager.models)
    await manager.shutdown_kernel(kernel_id_for(path))
    await manager.attach_directory.look()
    assert manager.models() == []
    path.unlink()
    await manager.attach_directory.look()
    drop(folder, path.name)
    await until(manager.models)


@pytest.mark.parametrize("change", ["removed", "replaced"])
async def test_a_kernel_started_under_the_id_of_a_detached_one_outlives_the_file(
    watched, fake, change
):
    manager, folder = watched
    kernel_id = str(uuid.uuid4())
    path = drop(folder, f"kernel-{kernel_id}.json")
    await until(manager.models)
    await manager.attach_directory.aclose()  # the test itself reads the directory
    await manager.shutdown_kernel(kernel_id)
    await manager.start_kernel(fake(), kernel_id=kernel_id)
    started = manager.index.find(kernel_id)
    path.unlink()
    if change == "replaced":
        drop(folder, path.name, INFO | {"key": "another secret"})
    await manager.attach_directory.look()
    assert manager.index.get(kernel_id) is started
    assert await started.is_alive()


async def test_an_error_while_detaching_does_not_prevent_other_kernels_from_being_attached(
    watched, hubs, monkeypatch, caplog
):
    manager, folder = watched
    path = drop(folder, "kernel-1.json")
    await until(manager.models)
    close = hubs.close

    async def fail(kernel_id):
        await close(kernel_id)
        raise RuntimeError("a fault of ours")

    with monkeypatch.context() as broken:
        broken.setattr(hubs, "close", fail)
        path.unlink()
        await until(lambda: manager.models() == [])
    drop(folder, "kernel-2.json")
    await until(manager.models)
    assert manager.models()[0]["id"] == kernel_id_for(folder / "kernel-2.json")
    assert "a fault of ours" in caplog.text


async def test_kernels_that_this_server_started_are_not_attached(make_manager, tmp_path, fake):
    manager = make_manager(attach_dir=str(tmp_path / "runtime"))
    kernel_id = await manager.start_kernel(fake())
    await manager.attach_directory.look()
    assert [m["id"] for m in manager.models()] == [kernel_id]
    await manager.shutdown_kernel(kernel_id)
    await manager.attach_directory.look()
    assert manager.models() == []


async def test_kernels_that_start_or_wait_are_not_attached_from_their_files(
    make_manager, tmp_path, spec, hubs
):
    """The connection files exist before any client knows the kernels."""
    hubs.answering = False
    runtime = tmp_path / "runtime"
    manager = make_manager(attach_dir=str(runtime), pool={"s": 1})
    start = asyncio.create_task(manager.start_kernel(spec("s"), env={}))
    await until(lambda: len(hubs.opened) == 2)
    assert len(list(runtime.glob("*.json"))) == 2
    await manager.attach_directory.look()
    assert manager.models() == []
    for starting in hubs.opened:
        starting.process.answer()
    kernel_id = await start
    await until(lambda: len(pooled(manager, "s")) == 1)
    await manager.attach_directory.look()
    assert [model["id"] for model in manager.models()] == [kernel_id]


async def test_no_kernel_is_attached_after_shutdown(make_manager):
    manager = make_manager()
    await manager.shutdown_all()
    with pytest.raises(Busy):
        manager.attach(kernel())


async def test_a_file_that_fails_does_not_prevent_others_from_being_attached(
    watched, hubs, caplog, monkeypatch
):
    manager, folder = watched
    opened = hubs.open

    def open_(kernel_id, info):
        if info["shell_port"] == 666:
            raise RuntimeError("a fault of ours")
        return opened(kernel_id, info)

    monkeypatch.setattr(hubs, "open", open_)
    drop(folder, "bad.json", INFO | {"shell_port": 666})
    drop(folder, "good.json")
    await until(manager.models)
    assert [m["id"] for m in manager.models()] == [kernel_id_for(folder / "good.json")]
    assert "a fault of ours" in caplog.text


async def test_entries_that_are_not_files_are_ignored(watched):
    manager, folder = watched
    folder.mkdir()
    (folder / "a-loop.json").symlink_to(folder / "a-loop.json")
    os.mkfifo(folder / "b-fifo.json")
    path = drop(folder, "kernel-1.json")
    await until(manager.models)
    await manager.attach_directory.look()
    assert [m["id"] for m in manager.models()] == [kernel_id_for(path)]


async def test_an_unreadable_directory_detaches_no_kernel(watched, monkeypatch, caplog):
    manager, folder = watched
    drop(folder, "kernel-1.json")
    await until(manager.models)
    await manager.attach_directory.aclose()  # this test looks itself

    def fail(self):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(type(folder), "iterdir", fail)
    for _ in range(3):
        await manager.attach_directory.look()
    assert len(manager.models()) == 1
    assert caplog.text.count("cannot be read: ") == 1


def test_a_file_that_is_too_long_is_refused(tmp_path):
    path = tmp_path / "k.json"
    path.write_bytes(b" " * (2 << 20))
    with pytest.raises(InvalidRequest, match="too long"):
        read_connection_file(path)


def test_the_ids_of_the_files_in_a_directory_are_known_before_it_is_watched(tmp_path) -> None:
    named = str(uuid.uuid4())
    (tmp_path / f"kernel-{named}.json").touch()
    (tmp_path / "other.json").touch()
    (tmp_path / "notes.txt").touch()
    assert directory.ids_in(str(tmp_path)) == {named, kernel_id_for(tmp_path / "other.json")}
    assert directory.ids_in(str(tmp_path / "missing")) == set()
