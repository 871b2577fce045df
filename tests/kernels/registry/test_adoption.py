"""Adopted kernels: real processes and files, links in memory, one manager after another."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import types
from dataclasses import replace
from pathlib import Path

import nbformat
import psutil
import pytest
from jupyter_client.provisioning.factory import KernelProvisionerFactory

from kbridge.errors import Busy, InvalidRequest, KbridgeError, KernelNotFound
from kbridge.kernels import shutdown
from kbridge.kernels.kernel import BridgeKernel
from kbridge.kernels.lifecycle import descriptors
from kbridge.kernels.lifecycle.processes import AdoptedProcess, ProcessState, start_id
from kbridge.kernels.lifecycle.queued import JobEnd
from kbridge.kernels.registry import adoption
from kbridge.kernels.registry.models import Owner, decode, encode
from kbridge.kernels.registry.registry import Registry
from kbridge.kernels.registry.writer import RegistryWriter
from kbridge.kernels.sessions import Sessions
from kbridge.wire.message import Channel
from tests.kernels import conftest
from tests.kernels.conftest import FakeProvisioner
from tests.kernels.scripted_queue import ScriptedProvisioner
from tests.support.waiting import TIMEOUT

TELLING = (
    "import json, os, pathlib, sys, time\n"
    "pathlib.Path(sys.argv[1]).with_suffix('.env').write_text(json.dumps(dict(os.environ)))\n"
    "time.sleep(600)"
)
# ruff: noqa: ASYNC220, ASYNC240 - files of a test are near, and so are processes

# Dead owners; only the newest one counts as alive.
OWNERS = [Owner("127.0.0.1:8888/", "here", 2**22 + i, f"life {i}") for i in range(9)]


async def until(condition):
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110 - processes and files set no event of ours
            await asyncio.sleep(0.01)


@pytest.fixture
async def lives(make_manager, hubs, tmp_path):
    """Managers that follow each other on one registry; the one before has crashed."""
    path = tmp_path / "registry.sqlite"
    made = []

    class Lives:
        def make(self, **traits):
            ledger = RegistryWriter(Registry(str(path)), OWNERS[len(made)], retry=0.01)
            manager = make_manager(writer=ledger, **traits)
            made.append((manager, ledger))
            return manager

        async def next(self, **traits):
            if made:
                await self.crash()
            manager = self.make(**traits)
            manager.sessions = Sessions(manager, made[-1][1])
            manager.sessions.adopt(await manager.adopt())
            return manager

        async def crash(self):
            """Simulate a crash, as far as one process can: nothing is cleaned up."""
            manager, ledger = made[-1]
            await ledger.settled()
            content = path.read_bytes()
            await manager.leave_all()
            await hubs.aclose()
            await ledger.aclose()
            path.write_bytes(content)

        def records(self):
            registry = Registry(str(path))
            claim = registry.claim(OWNERS[-1], lambda *_: ProcessState.GONE)
            registry.close()
            return {record.kernel_id: record for record in claim.kernels}

        def rewrite(self, *records):
            registry = Registry(str(path))
            rows = {("kernel", record.kernel_id): record for record in records}
            registry.write(OWNERS[0], rows)
            registry.close()

    lives = Lives()
    yield lives
    for manager, ledger in made:
        await manager.shutdown_all(now=True)
        await ledger.aclose()
    assert lives.records() == {}


def pooled(manager) -> int:
    """Return how many kernels of the kernelspec `s` nobody uses yet."""
    return len(conftest.pooled(manager, "s"))


async def settled(manager) -> None:
    """Wait until the registry holds what it should."""
    await manager.writer.settled()


def process_of(manager, kernel_id):
    return psutil.Process(manager.get_kernel(kernel_id).process.pid)


def ended(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def environ(manager, kernel_id):
    file = Path(manager.get_kernel(kernel_id).connection_file).with_suffix(".env")

    def read():
        return json.loads(file.read_text()) if file.exists() and file.read_text() else {}

    return read, file


async def test_a_running_kernel_is_adopted(lives, spec, hubs):
    first = await lives.next()
    kernel_id = await first.start_kernel(spec("s"))
    info, identities = hubs.kernel(kernel_id).info, hubs[kernel_id].identities
    process = process_of(first, kernel_id)
    log = first.get_kernel(kernel_id).output.path
    second = await lives.next()
    hub, adopted = hubs[kernel_id], hubs.kernel(kernel_id)
    assert adopted.info == info
    assert adopted.process.former == identities, "replies to the previous bridge"
    assert hub.identities[:-1] == identities
    assert hub.identities[-1] not in identities, "its own identity"
    kernel = second.get_kernel(kernel_id)
    assert isinstance(kernel.process, AdoptedProcess)
    assert kernel.process.pid == process.pid
    assert (kernel.kernel_name, kernel.output.path) == ("s", log)
    assert await kernel.is_alive()
    await second.shutdown_kernel(kernel_id)
    assert ended(process)
    assert not log.exists()
    with pytest.raises(KernelNotFound):
        second.get_kernel(kernel_id)


async def test_an_adopted_kernel_is_restarted_and_interrupted(lives, spec, hubs):
    first = await lives.next()
    # If SIGINT is ignored in the tests, it is also ignored in the processes that they start.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); print('up', flush=True);"
        " signal.pause()"
    )
    kernel_id = await first.start_kernel(spec("s", code))
    process = process_of(first, kernel_id)
    second = await lives.next()
    kernel = hubs.kernel(kernel_id)
    kernel.connect_client()
    await second.restart_kernel(kernel_id)
    assert ended(process)
    again = process_of(second, kernel_id)
    assert again.pid != process.pid
    assert kernel.statuses == ["starting"]
    assert len(kernel.processes) == 2
    third = await lives.next()
    assert process_of(third, kernel_id).pid == again.pid
    await until(lambda: third.get_kernel(kernel_id).output.tail().count("up") == 2)
    await third.interrupt_kernel(kernel_id)
    await until(lambda: ended(again))
    await hubs.kernel(kernel_id).replaced()


async def test_an_adopted_kernel_that_dies_is_restarted(lives, spec, hubs, caplog):
    first = await lives.next()
    kernel_id = await first.start_kernel(spec("s"))
    process = process_of(first, kernel_id)
    second = await lives.next(watch_interval=3600.0)
    hubs.kernel(kernel_id).connect_client()
    process.kill()
    await hubs.kernel(kernel_id).told("restarting")
    await hubs.kernel(kernel_id).replaced()
    assert process_of(second, kernel_id).pid != process.pid
    assert "Kernel s ended; restarting" in caplog.text, "nobody knows how"


async def test_a_restarted_kernel_keeps_its_environment_and_directory_after_adoption(
    lives, spec, monkeypatch
):
    monkeypatch.setenv("OF_THE_SERVER", "1")
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    first = await lives.next()
    spec("s", TELLING)
    (Path(first.root_dir) / "sub").mkdir()
    inherits = await first.start_kernel("s", path="sub", session_name="a")
    own = await first.start_kernel("s", env={"KERNEL_A": "a"})
    monkeypatch.setenv("OF_THE_SERVER", "2")
    second = await lives.next()
    for kernel_id, expected in ((inherits, "2"), (own, None)):
        read, file = environ(second, kernel_id)
        await until(read)
        assert "JPY_PARENT_PID" not in read(), "the kernel would end with another process"
        file.unlink()
        await second.restart_kernel(kernel_id)
        await until(read)
        assert read().get("OF_THE_SERVER") == expected
    assert read()["KERNEL_A"] == "a"
    assert environ(second, inherits)[0]()["JPY_SESSION_NAME"] == "a"
    assert process_of(second, inherits).cwd() == str(Path(second.root_dir) / "sub")


async def test_an_adopted_kernel_restarts_without_its_kernelspec_file(lives, spec, tmp_path):
    first = await lives.next()
    kernel_id = await first.start_kernel(spec("s"))
    (tmp_path / "specs" / "s" / "kernel.json").unlink()
    second = await lives.next()
    await second.restart_kernel(kernel_id)
    assert second.model(kernel_id)["name"] == "s"


async def test_a_kernel_that_ended_while_no_server_ran_is_logged_once(lives, spec, caplog):
    first = await lives.next()
    spec("s")
    lost, kept = [await first.start_kernel("s") for _ in range(2)]
    await first.sessions.create({"path": "p", "type": "notebook", "kernel": {"id": lost}})
    kernel = first.get_kernel(lost)
    await lives.crash()
    os.kill(lives.records()[lost].pid, signal.SIGKILL)
    second = await lives.next()
    assert [model["id"] for model in second.models()] == [kept]
    assert second.sessions.list() == []
    assert caplog.text.count(f"Kernel {lost} (s) ended while no server ran") == 1
    assert str(kernel.output.path) in caplog.text
    assert kernel.output.path.exists()
    assert not Path(kernel.connection_file).exists()
    third = await lives.next()
    assert [model["id"] for model in third.models()] == [kept]
    assert caplog.text.count(f"Kernel {lost} (s) ended while no server ran") == 1


async def test_another_process_with_the_recorded_pid_is_not_adopted(lives, spec):
    first = await lives.next()
    kernel_id = await first.start_kernel(spec("s"))
    process = process_of(first, kernel_id)
    await lives.crash()
    lives.rewrite(replace(lives.records()[kernel_id], pid=os.getpid()))
    try:
        second = await lives.next()
        # It is still found by its command line.
        assert process_of(second, kernel_id).pid == process.pid
        process.kill()
        await until(lambda: ended(process))
    finally:
        process.kill()


async def test_a_kernel_without_descriptors_for_it_is_adopted_by_the_next_server(
    lives, spec, hubs, caplog, monkeypatch
):
    first = await lives.next()
    kernel_id = await first.start_kernel(spec("s"))
    with monkeypatch.context() as scarce:
        scarce.setattr(descriptors, "free_descriptors", lambda: 10)
        second = await lives.next()
        assert second.models() == []
        assert "too few file descriptors" in caplog.text
    third = await lives.next()
    assert [model["id"] for model in third.models()] == [kernel_id]


async def test_a_kernel_in_another_pid_namespace_is_left_in_the_registry(lives, spec, caplog):
    first = await lives.next()
    kernel_id = await first.start_kernel(spec("s"))
    kernel, process = first.get_kernel(kernel_id), process_of(first, kernel_id)
    await lives.crash()
    record = lives.records()[kernel_id]
    boot, _, start = record.start_id.split("/")
    hidden = replace(record, pid=2**22 - 1, start_id=f"{boot}/4026539999/{start}")
    lives.rewrite(hidden)
    try:
        second = await lives.next()
        assert second.models() == []
        assert "another container or pid namespace" in caplog.text
        assert Path(kernel.connection_file).exists()
        assert lives.records() == {kernel_id: hidden}
        assert not ended(process)
        lives.rewrite(record)
        third = await lives.next()
        assert [model["id"] for model in third.models()] == [kernel_id]
    finally:
        process.kill()


async def test_a_process_that_was_not_recorded_is_found_by_its_command_line(lives, spec, hubs):
    """The bridge died between the start of a new process and its record."""
    first = await lives.next()
    kernel_id = await first.start_kernel(spec("s"))
    file = Path(first.get_kernel(kernel_id).connection_file)
    old = process_of(first, kernel_id)
    await lives.crash()
    record = lives.records()[kernel_id]
    command = old.cmdline()
    old.kill()
    await until(lambda: ended(old))
    file.write_text(json.dumps({**json.loads(file.read_text()), "shell_port": 4711}))
    new = subprocess.Popen(command, start_new_session=True)
    try:
        await until(lambda: psutil.Process(new.pid).cmdline() == command)
        lives.rewrite(record)
        second = await lives.next()
        assert second.get_kernel(kernel_id).process.pid == new.pid
        assert hubs.kernel(kernel_id).info.ports[Channel.SHELL] == 4711
        await second.shutdown_kernel(kernel_id, now=True)
    finally:
        new.kill()
        new.wait()


@pytest.mark.parametrize("pid_recorded", [True, False])
async def test_a_kernel_that_was_starting_is_ended_by_the_next_server(
    lives, spec, hubs, pid_recorded
):
    hubs.answering = False
    first = await lives.next()
    start = asyncio.ensure_future(first.start_kernel(spec("s")))
    await until(lambda: hubs.opened)
    [kernel] = first.index.known
    process = psutil.Process(kernel.manager.process.pid)
    await until(lambda: [r.pid for r in lives_records(first)] == [process.pid])
    record = lives_records(first)[0]
    assert record.role == "starting"
    # Simulate the death of the bridge: the process of the kernel and its row remain.
    first.writer._closing.set()
    await hubs.close(kernel.kernel_id)
    kernel.abandon()
    start.cancel()
    await asyncio.gather(start, return_exceptions=True)
    hubs.answering = True
    await lives.crash()
    if not pid_recorded:  # the server died between the start of the process and its record
        details = encode(decode(record.details) | {"identities": []})
        record = replace(record, pid=0, start_id="", details=details)
    lives.rewrite(record)
    second = await lives.next()
    assert second.models() == []
    await until(lambda: ended(process))


def lives_records(manager):
    return [row for key, row in manager.writer._rows.items() if key[0] == "kernel"]


async def test_a_kernel_is_recorded_before_its_process_starts(lives, spec):
    manager = await lives.next()
    with_no_process = []
    put = manager.writer.put_kernel
    manager.writer.put_kernel = lambda record: (
        with_no_process.append(not record.pid),
        put(record),
    )
    await manager.start_kernel(spec("s"))
    assert with_no_process[:2] == [True, False]


async def test_the_end_of_a_kernel_is_recorded_once_its_shutdown_returns(lives, spec):
    manager = await lives.next()
    kernel_id = await manager.start_kernel(spec("s"))
    await manager.shutdown_kernel(kernel_id)
    assert manager.writer.unwritten == 0
    assert lives.records() == {}


async def test_pooled_kernels_wait_in_the_pool_of_the_next_server(lives, spec):
    spec("s")
    first = await lives.next(pool={"s": 2})
    await first.open()
    await until(lambda: pooled(first) == 2)
    await settled(first)
    await lives.crash()
    before = {record.pid for record in lives.records().values()}
    assert {r.role for r in lives.records().values()} == {"pooled"}
    lives.rewrite(*lives.records().values())
    second = await lives.next(pool={"s": 1})
    assert second.models() == []
    await second.open()
    assert pooled(second) == 1
    kernel_id = await second.start_kernel("s")
    assert process_of(second, kernel_id).pid in before
    [surplus] = before - {process_of(second, kernel_id).pid}
    await until(lambda: not start_id(surplus))


async def test_readopted_kernels_of_a_pool_that_never_opens_are_ended(lives, spec):
    spec("s")
    first = await lives.next(pool={"s": 1})
    await first.open()
    await until(lambda: pooled(first) == 1)
    await settled(first)
    second = await lives.next(pool={"s": 1})
    [kernel] = second.index.known
    await second.shutdown_all()
    assert not await kernel.is_alive()
    assert not second.index.known
    with pytest.raises(Busy):
        await second.open()


@pytest.mark.parametrize("changed", ["root_dir", "seed_uri", "kernelspec"])
async def test_pooled_kernels_with_another_fingerprint_are_ended(
    lives, spec, hubs, tmp_path, changed
):
    spec("s")
    first = await lives.next(pool={"s": 1})
    await first.open()
    await until(lambda: pooled(first) == 1)
    await lives.crash()
    [old] = [record.pid for record in lives.records().values()]
    lives.rewrite(*lives.records().values())
    traits = {}
    if changed == "root_dir":
        traits["root_dir"] = str(tmp_path)
    elif changed == "seed_uri":
        cell = {"cell_type": "code", "source": "1", "metadata": {}, "outputs": []}
        notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
        (tmp_path / "seed.ipynb").write_text(json.dumps(notebook))
        traits["seed_uri"] = str(tmp_path / "seed.ipynb")
    else:
        shutil.rmtree(tmp_path / "specs" / "s")
        spec("s", env={"NEW": "1"})
    second = await lives.next(pool={"s": 1}, **traits)
    await second.open()
    await until(lambda: not start_id(old))
    await until(lambda: pooled(second) == 1)
    assert process_of(second, await second.start_kernel("s")).pid != old


async def test_a_dead_kernel_has_no_row_until_it_is_restarted(lives, spec, hubs, caplog):
    first = await lives.next(restart_limit=0)
    kernel_id = await first.start_kernel(spec("s"))
    hubs.kernel(kernel_id).connect_client()
    process_of(first, kernel_id).kill()
    await hubs.kernel(kernel_id).told("dead")
    await settled(first)
    assert lives_records(first) == []
    await first.restart_kernel(kernel_id)
    assert [record.kernel_id for record in lives_records(first)] == [kernel_id]


async def test_leave_all_leaves_used_and_pooled_kernels_to_the_next_server(lives, spec, hubs):
    spec("s")
    first = await lives.next(pool={"s": 1})
    await first.open()
    kernel_id = await first.start_kernel("s")
    await until(lambda: pooled(first) == 1)
    hubs.answering = False
    start = asyncio.ensure_future(first.start_kernel("s", env={}))
    await until(lambda: len(first.index.known) == 3 and len(hubs.opened) == 3)
    assert first.count_staying() == 2
    await first.leave_all()
    assert isinstance((await asyncio.gather(start, return_exceptions=True))[0], Exception)
    hubs.answering = True
    second = await lives.next(pool={"s": 1})
    await second.open()
    assert [model["id"] for model in second.models()] == [kernel_id]
    assert pooled(second) == 1


async def test_a_cancelled_leave_all_keeps_connection_files(lives, spec):
    first = await lives.next()
    kernel_id = await first.start_kernel(spec("s"))
    kernel = first.get_kernel(kernel_id)
    file = Path(kernel.connection_file)
    async with first.index.find(kernel_id).process.lock:  # as during a restart that hangs
        letting_go = asyncio.ensure_future(first.leave_all())
        await until(lambda: not first.models())
        letting_go.cancel()
        await asyncio.wait({letting_go})
    kernel.cleanup_connection_file()  # jupyter_client does this when the object is deleted
    assert file.exists()
    second = await lives.next()
    assert [model["id"] for model in second.models()] == [kernel_id]


async def test_a_shutdown_that_waits_while_a_kernel_is_left_removes_nothing(
    lives, spec, monkeypatch
):
    monkeypatch.setattr(shutdown, "_SHUTDOWN_TIMEOUT", 0.05)
    first = await lives.next()
    kernel_id = await first.start_kernel(spec("s"))
    kernel, log = first.index.find(kernel_id), first.get_kernel(kernel_id).output.path
    async with kernel.process.lock:  # as during a restart that hangs
        asked = asyncio.create_task(first.shutdown_kernel(kernel_id))
        await until(lambda: kernel.process.closing)
        await first.leave_all()
    await asked
    assert log.exists()
    assert [record.kernel_id for record in lives_records(first)] == [kernel_id]
    second = await lives.next()
    assert [model["id"] for model in second.models()] == [kernel_id]


async def test_a_restart_that_waits_while_a_kernel_is_left_starts_no_process(
    lives, spec, monkeypatch
):
    monkeypatch.setattr(shutdown, "_SHUTDOWN_TIMEOUT", 0.05)
    first = await lives.next()
    kernel_id = await first.start_kernel(spec("s"))
    kernel, process = first.index.find(kernel_id), process_of(first, kernel_id)
    async with kernel.process.lock:  # as during an earlier restart that hangs
        asked = asyncio.create_task(first.restart_kernel(kernel_id))
        await asyncio.sleep(0)  # the shutdown waits for the lock
        await first.leave_all()
    with contextlib.suppress(KbridgeError):
        await asked
    assert process.is_running()
    second = await lives.next()
    assert process_of(second, kernel_id) == process


async def test_kernels_that_are_adopted_at_once_share_the_process_table(lives, spec, monkeypatch):
    """It is read in a thread."""
    read, commands = [], adoption.commands

    def note():
        read.append(threading.current_thread() is threading.main_thread())
        return commands()

    monkeypatch.setattr(adoption, "commands", note)
    first = await lives.next()
    spec("s")
    processes = [process_of(first, await first.start_kernel("s")) for _ in range(2)]
    await lives.crash()
    for process in processes:
        process.kill()
    await until(lambda: all(ended(process) for process in processes))
    rows = list(lives.records().values())
    second = await lives.next()
    assert read == [False]
    adopter = second._adopter
    assert await adopter.adopt(rows) == []
    assert read == [False] * 2, "the processes may have changed since"
    taken = await asyncio.gather(*(adopter.take_over(row) for row in rows))
    assert [kernel.kernel_id for kernel in taken] == [row.kernel_id for row in rows]
    assert read == [False] * 3
    for kernel in taken:
        await kernel.discard(keep_log=False)


async def test_the_process_table_is_read_again_for_a_call_during_a_read(monkeypatch):
    """The first read may lack a process that has begun since."""
    begun, go_on, read = asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    def slowly():
        read.append(len(read))
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(TIMEOUT)
        return {read[-1]: []}

    monkeypatch.setattr(adoption, "commands", slowly)
    table = adoption.ProcessTable()
    calls = [asyncio.ensure_future(table.read())]
    async with asyncio.timeout(TIMEOUT):
        await begun.wait()
    calls += [asyncio.ensure_future(table.read()) for _ in range(3)]
    await asyncio.sleep(0)  # they have asked
    go_on.set()
    assert await asyncio.gather(*calls) == [{0: []}, {1: []}, {1: []}, {1: []}]


async def test_an_adoption_that_is_cancelled_is_finished(lives, spec, monkeypatch):
    """A signal during the start, and then another one."""
    first = await lives.next()
    kernel_id = await first.start_kernel(spec("s"))
    process = process_of(first, kernel_id)
    await lives.crash()
    begun, go = asyncio.Event(), asyncio.Event()
    adopt = BridgeKernel.adopt

    async def slowly(*args):
        begun.set()
        await go.wait()
        return await adopt(*args)

    monkeypatch.setattr(BridgeKernel, "adopt", slowly)
    second = lives.make()
    adopting = asyncio.ensure_future(second.adopt())
    await begun.wait()
    ending = asyncio.ensure_future(second.shutdown_all())
    await asyncio.sleep(0)
    for task in (adopting, ending):
        task.cancel()
    await asyncio.wait({adopting, ending})
    go.set()
    await second.shutdown_all(now=True)
    await until(lambda: ended(process))
    assert lives_records(second) == []


# Provisioners of others


class Cluster(FakeProvisioner):
    """A provisioner whose processes run elsewhere and outlive every manager."""

    running: dict = {}  # noqa: RUF012 - of the class: that is the cluster
    down = False

    async def launch_kernel(self, cmd, **kwargs):
        info = await super().launch_kernel(cmd, **kwargs)
        self.running[self.kernel_id] = True
        self.connection_info = info
        return info

    async def get_provisioner_info(self):
        return {**await super().get_provisioner_info(), "job": 5, "blob": b"\xff"}

    async def load_provisioner_info(self, info):
        await super().load_provisioner_info(info)
        if Cluster.down:
            raise OSError("the cluster does not answer")
        assert (info["job"], info["blob"]) == (5, b"\xff")
        self.launches, self.signals, self.code = 1, [], None

    async def poll(self):
        return self.code if self.running.get(self.kernel_id) else 1

    async def kill(self, restart=False):
        self.running.pop(self.kernel_id, None)
        await super().kill(restart)

    async def shutdown_requested(self, restart=False):
        await self.kill()


@pytest.fixture
def cluster(fake, monkeypatch):
    found = types.SimpleNamespace(load=lambda: Cluster)
    monkeypatch.setitem(KernelProvisionerFactory.provisioners, "fake", found)
    monkeypatch.setattr(Cluster, "running", {})
    monkeypatch.setattr(Cluster, "down", False)
    return fake("far")


async def test_a_kernel_on_a_cluster_is_adopted(lives, cluster, hubs):
    first = await lives.next()
    kernel_id = await first.start_kernel(cluster)
    info = hubs.kernel(kernel_id).info
    second = await lives.next()
    assert hubs.kernel(kernel_id).info == info
    assert await second.get_kernel(kernel_id).is_alive()
    await second.interrupt_kernel(kernel_id)
    assert second.get_kernel(kernel_id).provisioner.signals == [signal.SIGINT]
    await second.shutdown_kernel(kernel_id)
    assert Cluster.running == {}


async def test_the_import_of_a_provisioner_may_take_longer_than_its_answer(
    lives, cluster, monkeypatch
):
    first = await lives.next()
    kernel_id = await first.start_kernel(cluster)
    await lives.crash()
    timeouts = []
    loaded = threading.Event()

    def load():
        assert threading.current_thread() is threading.main_thread() or not timeouts
        loaded.set()
        return Cluster

    def timeout(seconds):
        assert loaded.is_set(), "the import comes before"
        timeouts.append(seconds)
        return asyncio.timeout(TIMEOUT)

    monkeypatch.setitem(
        KernelProvisionerFactory.provisioners, "fake", types.SimpleNamespace(load=load)
    )
    monkeypatch.setattr(
        adoption, "asyncio", types.SimpleNamespace(**{**vars(asyncio), "timeout": timeout})
    )
    second = await lives.next()
    assert [model["id"] for model in second.models()] == [kernel_id]
    assert timeouts


async def test_a_kernel_that_ended_on_its_cluster_is_not_adopted(lives, cluster, caplog):
    first = await lives.next()
    kernel_id = await first.start_kernel(cluster)
    await lives.crash()
    Cluster.running.clear()
    second = await lives.next()
    assert second.models() == []
    assert f"Kernel {kernel_id} (far) ended while no server ran" in caplog.text


async def test_a_kernel_whose_cluster_does_not_answer_is_looked_for_at_the_next_start(
    lives, cluster, caplog
):
    first = await lives.next()
    kernel_id = await first.start_kernel(cluster)
    await lives.crash()
    Cluster.down = True
    second = await lives.next()
    assert second.models() == []
    assert f"Kernel {kernel_id} (far) is not served" in caplog.text
    assert "the cluster does not answer" in caplog.text
    Cluster.down = False
    third = await lives.next()
    assert [model["id"] for model in third.models()] == [kernel_id]


async def test_no_other_kernel_gets_the_id_of_one_that_does_not_answer(lives, cluster):
    first = await lives.next()
    kernel_id = await first.start_kernel(cluster, user="alice")
    await lives.crash()
    Cluster.down = True
    second = await lives.next()
    with pytest.raises(InvalidRequest, match="in the registry"):
        await second.start_kernel(cluster, kernel_id=kernel_id, user="bob")
    assert second.models() == []
    [row] = lives_records(second)
    assert (row.kernel_id, row.user) == (kernel_id, "alice")
    Cluster.down = False
    third = await lives.next()
    assert third.model(kernel_id)["user"] == "alice"


async def test_provisioner_data_that_cannot_be_recorded_is_logged(
    lives, cluster, caplog, monkeypatch
):
    async def tell(self):
        return {"job": object()}

    monkeypatch.setattr(Cluster, "get_provisioner_info", tell)
    manager = await lives.next()
    kernel_id = await manager.start_kernel(cluster)
    assert manager.model(kernel_id)["execution_state"] == "idle"
    assert f"Kernel {kernel_id} will not be found at the next start" in caplog.text


async def test_a_kernel_with_an_unreadable_row_is_not_served_and_not_ended(lives, spec, caplog):
    first = await lives.next()
    kernel_id = await first.start_kernel(spec("s"))
    process = process_of(first, kernel_id)
    await lives.crash()
    [record] = lives.records().values()
    lives.rewrite(replace(record, details=encode({"nothing": 1})))
    second = await lives.next()
    assert second.models() == []
    assert f"Kernel {kernel_id} (s) is not served" in caplog.text
    await lives.crash()
    lives.rewrite(record)
    third = await lives.next()
    assert process_of(third, kernel_id).pid == process.pid


async def test_the_row_of_a_kernel_describes_its_process_and_its_hub(lives, spec, hubs):
    manager = await lives.next()
    kernel_id = await manager.start_kernel(spec("s"), env={"KERNEL_A": "a"})
    [record] = lives_records(manager)
    assert (record.kernel_id, record.kernel_name, record.role) == (kernel_id, "s", "used")
    assert record.start_id == start_id(record.pid) != ""
    details = decode(record.details)
    connection = details["connection"]
    assert connection["key"] == manager.get_kernel(kernel_id).session.key
    assert details["identities"] == hubs[kernel_id].identities != []
    assert details["launch"]["arguments"]["cwd"] == manager.root_dir
    assert details["launch"]["env"]["KERNEL_A"] == "a"
    assert details["kernelspec"]["argv"][0] == sys.executable
    assert details["provisioner"]["pid"] == record.pid


async def queued_kernel(lives, queued, **traits):
    """Return a manager, and the id of a kernel of it that waits in a queue."""
    manager = await lives.next(queue_grace=0.0, **traits)
    return manager, await manager.start_kernel(queued())


async def test_the_job_is_recorded_before_the_kernel_runs(lives, queued):
    _, kernel_id = await queued_kernel(lives, queued)
    details = decode(lives.records()[kernel_id].details)
    assert details["provisioner"]["job"] == 1
    assert details["waiting"]
    assert "connection" not in details


async def test_the_wait_for_a_job_goes_on_in_the_next_server(lives, queued, hubs):
    _, kernel_id = await queued_kernel(lives, queued)
    second = await lives.next()
    assert [kernel.adopted for kernel in hubs.opened] == [False, True]
    assert len(ScriptedProvisioner.jobs) == 1
    assert not ScriptedProvisioner.jobs[1].end
    assert second.model(kernel_id)["execution_state"] == "starting"
    assert second.model(kernel_id)["reason"] == "job 1 waits: Submitted"
    ScriptedProvisioner.created[-1].run(6000)
    await until(lambda: second.model(kernel_id)["execution_state"] == "idle")
    assert hubs.kernel(kernel_id).info.ports[Channel.SHELL] == 6000
    await settled(second)
    details = decode(lives.records()[kernel_id].details)
    assert details["connection"]["shell_port"] == 6000
    assert "waiting" not in details


async def test_a_job_that_ran_while_no_server_did_is_connected_to(lives, queued, hubs):
    _, kernel_id = await queued_kernel(lives, queued)
    await lives.crash()
    ScriptedProvisioner.created[-1].run(6000)
    second = lives.make()
    second.sessions = Sessions(second, second.writer)
    await second.adopt()
    await until(lambda: second.model(kernel_id)["execution_state"] == "idle")
    assert hubs.kernel(kernel_id).info.ports[Channel.SHELL] == 6000


async def test_a_kernel_that_left_the_queue_is_adopted_like_others(lives, queued, hubs):
    first, kernel_id = await queued_kernel(lives, queued)
    ScriptedProvisioner.created[-1].run(6000)
    await until(lambda: first.model(kernel_id)["execution_state"] == "idle")
    second = await lives.next()
    assert hubs.kernel(kernel_id).info.ports[Channel.SHELL] == 6000
    await until(lambda: second.model(kernel_id)["execution_state"] == "idle")
    await second.restart_kernel(kernel_id)
    assert second.model(kernel_id)["reason"] == "job 2 waits: Submitted"


async def test_a_kernel_that_waited_is_seeded_by_the_next_server(lives, queued, hubs, tmp_path):
    cells = [nbformat.v4.new_code_cell("seeded = 1")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "seed.ipynb")
    _, kernel_id = await queued_kernel(lives, queued, seed_uri=str(tmp_path / "seed.ipynb"))
    second = await lives.next()
    ScriptedProvisioner.created[-1].run()
    await until(lambda: second.model(kernel_id)["execution_state"] == "idle")
    await until(lambda: hubs.kernel(kernel_id).requests)
    assert hubs.kernel(kernel_id).requests[0][1]["code"] == "seeded = 1"
    await until(lambda: "seed" not in decode(lives.records()[kernel_id].details))


async def test_an_adopted_kernel_is_restarted_with_the_encryption_of_the_settings(lives, queued):
    first, kernel_id = await queued_kernel(lives, queued)
    ScriptedProvisioner.created[-1].run()
    await until(lambda: first.model(kernel_id)["execution_state"] == "idle")
    second = await lives.next(transport_encryption="off")
    await second.restart_kernel(kernel_id)
    kernel = second.get_kernel(kernel_id)
    if kernel.has_trait("transport_encryption"):
        assert kernel.transport_encryption == "disabled"


@pytest.mark.parametrize("ran", [False, True], ids=["waited", "ran"])
async def test_a_job_that_ended_while_no_server_ran_is_shown_with_its_reason(
    lives, queued, hubs, ran
):
    first, kernel_id = await queued_kernel(lives, queued)
    if ran:
        ScriptedProvisioner.created[-1].run()
        await until(lambda: first.model(kernel_id)["execution_state"] == "idle")
    await lives.crash()
    ScriptedProvisioner.created[-1].end("job 1 ended: TIMEOUT", JobEnd.TIME_LIMIT)
    second = lives.make()
    second.sessions = Sessions(second, second.writer)
    await second.adopt()
    await until(lambda: second.model(kernel_id)["execution_state"] == "dead")
    assert second.model(kernel_id)["reason"] == "job 1 ended: TIMEOUT"
    await until(lambda: kernel_id not in lives.records())


async def test_a_kernel_that_waits_is_left_when_the_server_ends(lives, queued):
    manager, _ = await queued_kernel(lives, queued)
    assert manager.count_staying() == 1
    await manager.leave_all()
    assert not ScriptedProvisioner.jobs[1].end
    second = await lives.next()
    assert len(second.models()) == 1


async def test_a_job_of_a_start_that_no_client_heard_of_is_ended(lives, queued):
    first = await lives.next(queue_grace=TIMEOUT)
    start = asyncio.create_task(first.start_kernel(queued()))
    await until(lambda: any(decode(row.details)["provisioner"] for row in lives.records().values()))
    [record] = lives.records().values()
    start.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await start
    ScriptedProvisioner.jobs[1].end = ""
    await settled(first)
    lives.rewrite(record)
    second = lives.make()
    second.sessions = Sessions(second, second.writer)
    await second.adopt()
    assert ScriptedProvisioner.jobs[1].end == "ended by the server"
    assert not second.models()
