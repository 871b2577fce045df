"""The manager over hubs with links in memory; most tests over fake processes, too."""

import asyncio
import gc
import itertools
import re
import signal
import stat
import time
import types
import uuid
import weakref
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import psutil
import pytest
import zmq
from nbformat.v4 import new_code_cell, new_notebook
from traitlets import TraitError

from kbridge.errors import (
    BridgeError,
    Busy,
    InvalidRequest,
    KernelError,
    KernelLimitReached,
    KernelNotFound,
    KernelspecNotFound,
    KernelStartError,
)
from kbridge.kernels import manager as manager_module
from kbridge.kernels.lifecycle import culling
from kbridge.kernels.lifecycle.lease import Lease
from kbridge.kernels.lifecycle.started import StartedKernel
from kbridge.kernels.registry.registry import Registry
from kbridge.kernels.registry.writer import RegistryWriter
from kbridge.wire.message import Channel
from tests.kernels.conftest import FakeProvisioner, pooled
from tests.support.waiting import TIMEOUT

IMPORT_ERROR = "import time; time.sleep(0.1); import no_such_module"
STUBBORN = (
    "import signal, time\n"
    "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('stubborn', flush=True)\n"
    "time.sleep(600)"
)


def process_of(manager, kernel_id) -> psutil.Process:
    return psutil.Process(manager.get_kernel(kernel_id).provisioner.pid)


def assert_gone(process: psutil.Process) -> None:
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


async def until(condition):
    """Wait for an effect of another process, or of a task of the manager."""
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110 - processes and pools set no event of ours
            await asyncio.sleep(0.01)


# Start, model, shutdown


async def test_a_restart_uses_the_innermost_directory_that_exists(
    make_manager, fake, fleet, tmp_path
):
    manager = make_manager()
    outer = tmp_path / "root" / "outer"
    (outer / "inner").mkdir(parents=True)
    kernel_id = await manager.start_kernel(fake(), path="outer/inner/nb.ipynb")
    assert fleet[0].cwd == str(outer / "inner")
    (outer / "inner").rename(outer / "renamed")
    await manager.restart_kernel(kernel_id)
    assert fleet[0].cwd == str(outer)
    outer.rename(tmp_path / "root" / "gone")
    await manager.restart_kernel(kernel_id)
    assert fleet[0].cwd == str(tmp_path / "root")
    (outer / "inner").mkdir(parents=True)
    await manager.restart_kernel(kernel_id)
    assert fleet[0].cwd == str(outer / "inner"), "it is remembered"


async def test_a_changed_default_kernel_name_applies_to_the_next_start(make_manager, fake):
    manager = make_manager(default_kernel_name=fake())
    manager.default_kernel_name = fake("other")
    assert manager.model(await manager.start_kernel())["name"] == "other"


async def test_nothing_of_a_kernel_that_was_shut_down_stays(make_manager, fake):
    manager = make_manager()
    kernel_id = await manager.start_kernel(fake())
    left = weakref.ref(manager.index.find(kernel_id))
    await manager.shutdown_kernel(kernel_id)
    await asyncio.sleep(0)
    gc.collect()
    assert left() is None


async def test_a_kernel_is_in_the_models_from_start_to_shutdown(make_manager, fake, hubs):
    manager = make_manager()
    kernel_id = await manager.start_kernel(fake())
    assert str(uuid.UUID(kernel_id)) == kernel_id
    model = manager.model(kernel_id)
    assert (model["id"], model["name"]) == (kernel_id, "fake")
    assert (model["execution_state"], model["connections"]) == ("idle", 0)
    assert set(model) == {"id", "name", "last_activity", "execution_state", "connections"}
    assert manager.models() == [model]
    assert kernel_id in manager
    assert hubs.kernel(kernel_id).info.ports[Channel.SHELL] == 5000
    await manager.shutdown_kernel(kernel_id)
    assert hubs.closed == [kernel_id]
    assert manager.models() == []
    for call in (manager.shutdown_kernel, manager.restart_kernel, manager.interrupt_kernel):
        with pytest.raises(KernelNotFound):
            await call(kernel_id)
    for look in (manager.model, manager.get_kernel):
        with pytest.raises(KernelNotFound):
            look(kernel_id)


@pytest.mark.parametrize("microsecond", [0, 5, 999_999])
async def test_last_activity_always_has_microseconds(make_manager, fake, hubs, microsecond):
    manager = make_manager()
    kernel_id = await manager.start_kernel(fake())
    at = datetime(2026, 1, 2, 3, 4, 5, microsecond, tzinfo=UTC)
    hubs[kernel_id].activity.last_activity = at.timestamp()
    text = manager.model(kernel_id)["last_activity"]
    assert re.fullmatch(r"2026-01-02T03:04:05\.\d{6}Z", text)


async def test_connections_is_the_number_of_attached_websockets(make_manager, fake, hubs):
    manager = make_manager()
    kernel_id = await manager.start_kernel(fake())
    for _ in range(2):
        hubs.kernel(kernel_id).connect_client()
    assert manager.model(kernel_id)["connections"] == 2


async def test_the_id_of_a_kernel_in_use_returns_it(make_manager, fake, fleet):
    manager = make_manager()
    fake()
    kernel_id = str(uuid.uuid4())
    assert await manager.start_kernel("fake", kernel_id=kernel_id) == kernel_id
    assert await manager.start_kernel("fake", kernel_id=kernel_id) == kernel_id
    assert len(fleet) == 1


@pytest.mark.parametrize("kernel_id", ["", "x", "../../../etc/a-b-c-d", "a-b-c-d-" + "e" * 99, 5])
async def test_a_kernel_id_that_is_not_a_uuid_is_refused(make_manager, fake, kernel_id):
    with pytest.raises(InvalidRequest, match="uuid"):
        await make_manager().start_kernel(fake(), kernel_id=kernel_id)


async def test_a_second_start_with_the_same_id_is_refused(make_manager, fake, hubs):
    manager = make_manager(start_grace=0.05)
    hubs.answering = False
    fake()
    kernel_id = str(uuid.uuid4())
    starts = [manager.start_kernel("fake", kernel_id=kernel_id) for _ in range(2)]
    first, second = await asyncio.gather(*starts, return_exceptions=True)
    assert first == kernel_id
    assert isinstance(second, InvalidRequest)


# Kernelspecs


async def test_an_unknown_kernelspec_is_refused(make_manager, spec):
    manager = make_manager()
    for name in ("none", "../x", "a/b"):
        with pytest.raises(KernelspecNotFound, match="kernelspec"):
            await manager.start_kernel(name)
    with pytest.raises(InvalidRequest):
        await manager.start_kernel(5)


async def test_a_kernel_json_that_cannot_be_read_is_an_error_of_the_start(
    make_manager, spec, tmp_path
):
    spec("odd")
    (tmp_path / "specs" / "odd" / "kernel.json").write_text("{")
    with pytest.raises(KernelStartError, match="cannot be read"):
        await make_manager().start_kernel("odd")


async def test_default_kernel_name_and_force_kernel_name_choose_the_kernelspec(make_manager, fake):
    fake("a")
    fake("b")
    manager = make_manager(default_kernel_name="a")
    assert manager.model(await manager.start_kernel())["name"] == "a"
    manager = make_manager(default_kernel_name="a", force_kernel_name="b")
    assert manager.model(await manager.start_kernel("a"))["name"] == "b"


async def test_an_unknown_provisioner_counts_as_an_unknown_kernelspec(make_manager, spec):
    spec("p", metadata={"kernel_provisioner": {"provisioner_name": "none"}})
    with pytest.raises(KernelspecNotFound):
        await make_manager().start_kernel("p")


async def test_a_kernel_class_that_is_not_ours_is_refused(make_manager, fake):
    manager = make_manager(kernel_manager_class="jupyter_client.manager.AsyncKernelManager")
    with pytest.raises(TraitError, match="BridgeKernel"):
        await manager.start_kernel(fake())


async def test_a_root_dir_that_is_not_a_directory_is_refused(make_manager, tmp_path):
    with pytest.raises(TraitError, match="not a directory"):
        make_manager(root_dir=str(tmp_path / "none"))


# Environment, directory, transport


async def test_a_kernel_gets_the_requested_environment_and_directory(
    make_manager, fake, fleet, monkeypatch
):
    monkeypatch.setenv("KG_AUTH_TOKEN", "secret")
    monkeypatch.setenv("MINE", "1")
    monkeypatch.setenv("LC_TIME", "C")
    manager = make_manager(allowed_envs=["ASKED"], inherited_envs=["MINE"])
    fake(env={"SPEC": "${KERNEL_A}!"})
    root = manager.root_dir
    await manager.start_kernel("fake")
    assert fleet[0].env["MINE"] == "1"
    assert "KG_AUTH_TOKEN" not in fleet[0].env
    assert fleet[0].cwd == root
    env = {"KERNEL_A": "a", "ASKED": "b", "OTHER": "c", "KERNEL_B": 5}
    await manager.start_kernel("fake", env=env, path="x/y.ipynb", session_name="y")
    got = dict(fleet[1].env)
    assert got.pop("PATH")
    got = {
        name: v for name, v in got.items() if name not in ("LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE")
    }
    assert got == {
        "LC_TIME": "C",
        "KERNEL_A": "a",
        "ASKED": "b",
        "MINE": "1",
        "KERNEL_GATEWAY": "1",
        "JPY_SESSION_NAME": "y",
        "SPEC": "a!",
    }


async def test_kernels_do_not_inherit_the_passwords_of_the_registry_and_of_traces(
    make_manager, fake, fleet, hubs, monkeypatch
):
    class Writer(RegistryWriter):
        secret_variables = Registry("postgresql+psycopg://me@h/k").secret_variables

    secrets = (*("PGPASSWORD", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"),)
    for name in secrets:
        monkeypatch.setenv(name, "secret")
    await make_manager().start_kernel(fake())
    hubs.trace_executions(types.SimpleNamespace(kernel=lambda _: None))
    await make_manager(writer=Writer()).start_kernel("fake")
    assert [[name in each.env for name in secrets] for each in fleet] == [[True] * 3, [False] * 3]


async def test_a_new_session_name_applies_from_the_next_restart(make_manager, fake, fleet):
    manager = make_manager()
    kernel_id = await manager.start_kernel(fake(), session_name="old")
    manager.rename_session(kernel_id, "new")
    assert fleet[0].env["JPY_SESSION_NAME"] == "old"
    await manager.restart_kernel(kernel_id)
    assert fleet[0].env["JPY_SESSION_NAME"] == "new"


async def test_connection_file_and_log_are_readable_by_their_owner_only(make_manager, spec):
    manager = make_manager()
    kernel_id = await manager.start_kernel(spec("s"))
    kernel = manager.get_kernel(kernel_id)
    for path in (kernel.output.path, kernel.output.path.with_suffix(".json")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert kernel.output.path.name == f"kernel-{kernel_id}.log"
    await manager.shutdown_kernel(kernel_id)
    assert not kernel.output.path.exists()


@pytest.mark.parametrize(("traits", "transport"), [({}, "tcp"), ({"transport": "ipc"}, "ipc")])
async def test_transport_decides_between_tcp_and_unix_sockets(
    make_manager, spec, hubs, traits, transport, tmp_path_factory
):
    manager = make_manager(**traits)
    manager.connection_dir = str(tmp_path_factory.mktemp("r"))
    kernel_id = await manager.start_kernel(spec("s"))
    assert hubs.kernel(kernel_id).info.transport == transport
    # The kernel's umask determines who may use its sockets; this directory, who can reach them.
    directory = tmp_path_factory.getbasetemp() / manager.connection_dir
    private = directory / f"kernel-{kernel_id}-ipc"
    assert private.exists() is (transport == "ipc")
    if private.exists():
        assert hubs.kernel(kernel_id).info.ip == str(private / "s")
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        await manager.restart_kernel(kernel_id)
        assert private.exists()
    await manager.shutdown_kernel(kernel_id)
    assert list(directory.iterdir()) == []


async def test_the_runtime_directory_is_not_writable_by_others(hubs, tmp_path, monkeypatch):
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(0o777)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(directory))
    manager = manager_module.BridgeKernelManager(hubs=hubs)
    assert manager.connection_dir == str(directory)
    assert stat.S_IMODE(directory.stat().st_mode) & 0o022 == 0


async def test_kernel_ip_is_the_address_of_kernels(make_manager, spec, hubs):
    manager = make_manager(kernel_ip="0.0.0.0")
    kernel_id = await manager.start_kernel(spec("s"))
    assert hubs.kernel(kernel_id).info.ip == "0.0.0.0"


async def test_an_ipc_path_that_is_too_long_is_an_error_of_the_start(make_manager, spec, tmp_path):
    manager = make_manager(transport="ipc")
    manager.connection_dir = str(tmp_path / ("d" * 100))
    with pytest.raises(KernelStartError, match="set JUPYTER_RUNTIME_DIR"):
        await manager.start_kernel(spec("s"))


# Kernels that do not start


@pytest.mark.parametrize(
    ("code", "reason", "last"),
    [
        ('import sys; sys.exit("boom")', "exit code 1", "boom"),
        (IMPORT_ERROR, "exit code 1", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL", ""),
        ("pass", "exit code 0", ""),
    ],
)
async def test_the_error_of_a_failed_start_has_the_exit_code_and_the_log(
    make_manager, spec, hubs, code, reason, last
):
    hubs.answering = False
    manager = make_manager()
    with pytest.raises(KernelStartError, match=reason) as caught:
        await manager.start_kernel(spec("bad", code))
    assert caught.value.log_tail.endswith(last)
    assert len(caught.value.log_tail.splitlines()) <= 20
    assert manager.models() == []
    [log] = manager.kept_logs
    assert log.path.exists()
    await manager.shutdown_all()
    assert not log.path.exists(), "the reply contained its end"


async def test_a_missing_program_is_an_error_of_the_start(make_manager, spec):
    manager = make_manager()
    with pytest.raises(KernelStartError, match="No such file"):
        await manager.start_kernel(spec("bad", argv=["/no/such/program", "{connection_file}"]))
    assert manager.models() == []


async def test_a_slow_kernel_is_returned_as_starting(make_manager, fake, hubs):
    hubs.answering = False
    manager = make_manager(start_grace=0.05)
    kernel_id = await manager.start_kernel(fake())
    assert manager.model(kernel_id)["execution_state"] == "starting"


async def test_a_cancelled_start_leaves_no_process(make_manager, spec, hubs):
    hubs.answering = False
    manager = make_manager(max_kernels=1)
    start = asyncio.ensure_future(manager.start_kernel(spec("s")))
    await until(lambda: hubs.opened)
    (kernel,) = manager.index.known
    process = psutil.Process(kernel.manager.provisioner.pid)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert_gone(process)
    assert not manager.index.known
    hubs.answering = True
    assert await manager.start_kernel("s"), "the cancelled start takes no place"


# The limit


async def test_max_kernels_holds_for_concurrent_starts(make_manager, fake):
    manager = make_manager(max_kernels=2)
    fake()
    starts = [manager.start_kernel("fake") for _ in range(5)]
    results = await asyncio.gather(*starts, return_exceptions=True)
    assert sum(isinstance(r, KernelLimitReached) for r in results) == 3
    kernel_id = manager.models()[0]["id"]
    await manager.shutdown_kernel(kernel_id)
    await manager.start_kernel("fake")


async def test_a_failed_start_does_not_count_toward_max_kernels(make_manager, spec, fake, hubs):
    manager = make_manager(max_kernels=1)
    with pytest.raises(KernelStartError):
        await manager.start_kernel(spec("bad", argv=["/no/such/program"]))
    await manager.start_kernel(fake())


# Restart


async def test_restart_ends_the_process_and_then_connects_the_hub_to_the_next(
    make_manager, fake, fleet, hubs, monkeypatch
):
    manager = make_manager()
    kernel_id = await manager.start_kernel(fake())
    kernel = hubs.kernel(kernel_id)
    kernel.connect_client()
    fleet[0].shell_port = 6000
    codes = []
    restarting = kernel.hub.restarting

    async def note(**how):
        codes.append(fleet[0].code)
        await restarting(**how)

    monkeypatch.setattr(kernel.hub, "restarting", note)
    await manager.restart_kernel(kernel_id)
    assert kernel.statuses == ["starting"]
    assert codes == [0], "the old process has ended by then"
    assert [process.closed for process in kernel.processes] == [True, False]
    assert kernel.info.ports[Channel.SHELL] == 6000
    assert fleet[0].launches == 2
    assert hubs.closed == []


async def test_a_restart_replaces_the_process(make_manager, spec):
    manager = make_manager()
    kernel_id = await manager.start_kernel(spec("s"))
    old = process_of(manager, kernel_id)
    await manager.restart_kernel(kernel_id)
    assert_gone(old)
    assert process_of(manager, kernel_id).pid != old.pid


async def test_an_unread_shutdown_request_does_not_reach_the_next_process(
    make_manager, spec, monkeypatch
):
    """A kernel that SIGINT ends before the request has not read the request."""
    manager = make_manager()
    kernel_id = await manager.start_kernel(spec("s"))
    closed = []
    close = zmq.Socket.close

    def note(sock, linger=None):
        closed.append((sock.closed, linger))
        close(sock, linger)

    monkeypatch.setattr(zmq.Socket, "close", note)
    await manager.restart_kernel(kernel_id)
    assert closed == [(False, 0)]


async def test_a_running_kernel_has_no_socket_for_shutdown_requests(
    make_manager, spec, monkeypatch
):
    made = []
    make = zmq.Context.socket

    def note(context, socket_type, **kwargs):
        made.append(socket_type)
        return make(context, socket_type, **kwargs)

    monkeypatch.setattr(zmq.Context, "socket", note)
    manager = make_manager()
    kernel_id = await manager.start_kernel(spec("s"))
    assert made == []
    await manager.restart_kernel(kernel_id)
    assert made == [zmq.DEALER], "for the request to the first process"
    await manager.shutdown_kernel(kernel_id)
    assert made == [zmq.DEALER, zmq.DEALER]


async def test_a_kernel_that_fails_to_restart_is_dead_and_can_be_restarted(
    make_manager, spec, hubs, tmp_path
):
    flag = tmp_path / "flag"
    code = f"import os, sys, time\nif os.path.exists({str(flag)!r}): sys.exit('no more')\n"
    manager = make_manager(max_kernels=1)
    kernel_id = await manager.start_kernel(spec("s", code + "time.sleep(600)"))
    kernel = hubs.kernel(kernel_id)
    kernel.connect_client()
    flag.touch()
    hubs.answering = False
    with pytest.raises(KernelStartError, match="no more"):
        await manager.restart_kernel(kernel_id, now=True)
    assert kernel.statuses[-1] == "dead"
    assert manager.model(kernel_id)["execution_state"] == "dead"
    flag.unlink()
    hubs.answering = True
    await manager.restart_kernel(kernel_id)
    assert manager.model(kernel_id)["execution_state"] == "idle"


async def test_a_restart_during_shutdown_starts_no_process(make_manager, fake, fleet):
    manager = make_manager()
    kernel_id = await manager.start_kernel(fake())
    results = await asyncio.gather(
        manager.shutdown_kernel(kernel_id),
        manager.restart_kernel(kernel_id),
        manager.shutdown_kernel(kernel_id),
        return_exceptions=True,
    )
    assert [type(r) for r in results] == [type(None), KernelNotFound, type(None)]
    assert fleet[0].launches == 1


# The lease of a replica, and kernels that it loses


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lease():
    """A lease that a test lets end with `lease.end`, and renews with `lease.renewed(0.0)`."""
    made = Lease(0.03, Clock())
    made.renewed(0.0)
    yield made
    made.renewed(0.0)


async def pass_on(manager, kernel_id) -> None:
    """Release a kernel that was lost, and remove the file that its next owner would use."""
    Path(manager.get_kernel(kernel_id).connection_file).unlink()  # noqa: ASYNC240
    await manager.transfer.release(kernel_id)
    await manager.hubs.close(kernel_id)


async def test_a_kernel_that_is_lost_during_its_restart_is_not_started_again(
    make_manager, fake, fleet, hubs, lease, monkeypatch
):
    """Another replica has taken it over while its old process ended."""
    manager = make_manager(lease=lease)
    kernel_id = await manager.start_kernel(fake())
    kernel = manager.index.get(kernel_id)

    async def stop(**how):
        manager.transfer.lose(kernel_id)

    monkeypatch.setattr(kernel.manager, "stop", stop)
    with pytest.raises(Busy, match="another server"):
        await manager.restart_kernel(kernel_id)
    assert fleet[0].launches == 1
    assert hubs.kernel(kernel_id).hub.activity.execution_state != "dead"
    await pass_on(manager, kernel_id)


async def test_a_kernel_whose_lease_ends_during_its_restart_is_started_after_the_next_renewal(
    make_manager, fake, fleet, hubs, lease, monkeypatch
):
    manager = make_manager(lease=lease)
    kernel_id = await manager.start_kernel(fake())
    memory = hubs.kernel(kernel_id)
    memory.connect_client()
    kernel = manager.index.get(kernel_id)
    stop = kernel.manager.stop

    async def late(**how):
        await stop(**how)
        lease.end()

    with monkeypatch.context() as patch:
        patch.setattr(kernel.manager, "stop", late)
        with pytest.raises(Busy, match="lost its lease"):
            await manager.restart_kernel(kernel_id)
    assert fleet[0].launches == 1
    lease.renewed(0.0)
    await memory.replaced()
    assert fleet[0].launches == 2
    assert memory.statuses.count("restarting") + memory.statuses.count("starting") == 1
    assert not kernel.failed


@pytest.mark.parametrize("lost", [True, False])
async def test_a_kernel_is_looked_up_again_after_a_wait_for_the_lease(
    make_manager, fake, fleet, hubs, lease, lost
):
    manager = make_manager(lease=lease)
    kernel_id = await manager.start_kernel(fake())
    lease.end()
    request = asyncio.create_task(manager.interrupt_kernel(kernel_id))
    await asyncio.sleep(0)
    if lost:
        manager.transfer.lose(kernel_id)
    lease.renewed(0.0)
    if lost:
        with pytest.raises(Busy, match="does not serve"):
            await request
        await pass_on(manager, kernel_id)
    else:
        await request
    assert fleet[0].signals == ([] if lost else [signal.SIGINT])


async def test_no_process_starts_if_the_lease_ends_while_the_kernel_is_recorded(
    make_manager, fake, fleet, lease, monkeypatch
):
    manager = make_manager(lease=lease)

    async def settled():
        lease.end()
        return True

    with monkeypatch.context() as patch:
        patch.setattr(manager.writer, "settled", settled)
        with pytest.raises(Busy, match="lost its lease"):
            await manager.start_kernel(fake())
    assert not fleet
    assert not manager.index.known


async def test_a_kernel_is_not_ended_if_the_lease_ends_before_that(
    make_manager, fake, fleet, hubs, lease
):
    """The request waits for a restart, for example."""
    manager = make_manager(lease=lease)
    kernel_id = await manager.start_kernel(fake())
    kernel = manager.index.get(kernel_id)
    async with kernel.process.lock:
        request = asyncio.create_task(manager.shutdown_kernel(kernel_id))
        await asyncio.sleep(0)
        lease.end()
    with pytest.raises(Busy, match="lost its lease"):
        await request
    assert fleet[0].code is None
    lease.renewed(0.0)
    fleet[0].code = 1
    await hubs.kernel(kernel_id).replaced()
    assert fleet[0].launches == 2, "it is watched as before"


async def test_a_kernel_that_is_lost_while_its_process_starts_leaves_none(
    make_manager, fake, fleet, lease, monkeypatch
):
    manager = make_manager(lease=lease)
    fake()
    launch = FakeProvisioner.launch_kernel

    async def lose(provisioner, cmd, **kwargs):
        info = await launch(provisioner, cmd, **kwargs)
        [kernel] = manager.index.known
        manager.transfer.lose(kernel.kernel_id)
        return info

    monkeypatch.setattr(FakeProvisioner, "launch_kernel", lose)
    with pytest.raises(Busy, match="another server"):
        await manager.start_kernel("fake")
    assert fleet[0].code == -9


# Autorestart


async def test_a_kernel_that_dies_is_restarted(make_manager, fake, fleet, hubs):
    manager = make_manager()
    kernel_id = await manager.start_kernel(fake())
    kernel = hubs.kernel(kernel_id)
    kernel.connect_client()
    fleet[0].code = 1
    await kernel.replaced()
    assert kernel.statuses == ["restarting"]
    assert fleet[0].launches == 2
    assert manager.model(kernel_id)["id"] == kernel_id


async def test_a_kernel_that_reached_the_restart_limit_is_dead(
    make_manager, fake, fleet, hubs, monkeypatch
):
    manager = make_manager(restart_limit=2, max_kernels=1)
    kernel_id = await manager.start_kernel(fake())
    kernel = hubs.kernel(kernel_id)
    kernel.connect_client()
    log = manager.get_kernel(kernel_id).output.path
    for restarts in (1, 2):
        fleet[0].code = 1
        await kernel.replaced(restarts)
    fleet[0].code = 1
    await kernel.told("dead")
    assert kernel.statuses == ["restarting", "dead"], "each is told once"
    assert manager.model(kernel_id)["execution_state"] == "dead"
    await manager.start_kernel("fake")  # the dead kernel does not count
    await manager.shutdown_kernel(kernel_id)
    assert log.exists(), "its output may contain the reason"


async def test_a_kernel_without_autorestart_is_dead_after_its_end(make_manager, fake, fleet, hubs):
    manager = make_manager()
    manager.config.BridgeKernel.autorestart = False
    kernel_id = await manager.start_kernel(fake())
    kernel = hubs.kernel(kernel_id)
    kernel.connect_client()
    fleet[0].code = 1
    await kernel.told("dead")
    assert fleet[0].launches == 1


async def test_a_killed_process_is_replaced(make_manager, spec, hubs):
    manager = make_manager()
    kernel_id = await manager.start_kernel(spec("s"))
    old = process_of(manager, kernel_id)
    old.kill()
    await hubs.kernel(kernel_id).replaced()
    assert process_of(manager, kernel_id).pid != old.pid


# Interrupt


async def test_interrupt_mode_signal_sends_sigint_and_no_request(make_manager, fake, fleet, hubs):
    manager = make_manager()
    kernel_id = await manager.start_kernel(fake())
    await manager.interrupt_kernel(kernel_id)
    assert fleet[0].signals == [signal.SIGINT]
    assert hubs.kernel(kernel_id).requests == []


async def test_interrupt_mode_message_sends_a_request_and_no_signal(
    make_manager, fake, fleet, hubs
):
    manager = make_manager()
    kernel_id = await manager.start_kernel(fake(interrupt_mode="message"))
    await manager.interrupt_kernel(kernel_id)
    assert hubs.kernel(kernel_id).requests == [("interrupt_request", {}, Channel.CONTROL)]
    assert fleet[0].signals == []


@pytest.mark.parametrize("silent", [None, {}, {"status": "ok"}, {"status": "aborted"}, []])
async def test_a_kernel_need_not_reply_to_an_interrupt(make_manager, fake, hubs, silent):
    manager = make_manager(interrupt_timeout=3600)
    kernel_id = await manager.start_kernel(fake(interrupt_mode="message"))
    kernel = hubs.kernel(kernel_id)
    kernel.reply = lambda *_: silent
    async with asyncio.timeout(TIMEOUT):  # far less than `interrupt_timeout`
        await manager.interrupt_kernel(kernel_id)
    assert kernel.requests == [("interrupt_request", {}, Channel.CONTROL)]


async def test_an_error_in_the_interrupt_reply_is_raised(make_manager, fake, hubs):
    manager = make_manager()
    kernel_id = await manager.start_kernel(fake(interrupt_mode="message"))
    fault = {"status": "error", "ename": "OSError", "evalue": "no \x1b[31mthread", "traceback": []}
    hubs.kernel(kernel_id).reply = lambda *_: fault
    with pytest.raises(KernelError, match=r"failed to interrupt.*OSError: no \\x1b") as caught:
        await manager.interrupt_kernel(kernel_id)
    assert caught.value.http_status == 500


# Pool


async def waiting(manager, name, count):
    await until(lambda: len(pooled(manager, name)) >= count)


async def test_a_start_takes_a_kernel_from_the_pool(make_manager, fake, fleet, hubs):
    manager = make_manager(pool={"fake": 1}, max_kernels=1)
    fake()
    await manager.open()
    await waiting(manager, "fake", 1)
    assert manager.models() == []
    [pool_kernel] = hubs.opened
    pool_kernel.hub.activity.last_activity = 1.0
    kernel_id = await manager.start_kernel("fake", session_name="nb")
    assert hubs.kernel(kernel_id) is pool_kernel
    assert pool_kernel.hub.activity.last_activity > 1_700_000_000
    await waiting(manager, "fake", 1)
    assert len(fleet) == 2
    with pytest.raises(KernelLimitReached):
        await manager.start_kernel("fake")
    await manager.restart_kernel(kernel_id)
    assert fleet[0].env["JPY_SESSION_NAME"] == "nb"


@pytest.mark.parametrize("wish", [{"env": {}}, {"env": {"KERNEL_A": "1"}}, {"path": "sub/x"}])
async def test_a_request_that_a_pooled_kernel_cannot_meet_starts_another(
    make_manager, fake, fleet, tmp_path, wish
):
    (tmp_path / "root" / "sub").mkdir()
    manager = make_manager(pool={"fake": 1})
    fake()
    await manager.open()
    await waiting(manager, "fake", 1)
    await manager.start_kernel("fake", **wish)
    assert len(pooled(manager, "fake")) == 1
    assert len(fleet) == 2


async def test_a_user_gets_no_pooled_kernel_of_a_provisioner_that_may_run_it_as_the_user(
    make_manager, fake, fleet
):
    manager = make_manager(pool={fake(): 1})
    await manager.open()
    await waiting(manager, "fake", 1)
    await manager.start_kernel("fake", user="alice")
    assert [each.env.get("KERNEL_USERNAME") for each in fleet] == [None, "alice"]
    assert len(pooled(manager, "fake")) == 1


async def test_a_user_gets_a_pooled_kernel_that_the_server_has_started_itself(make_manager, spec):
    manager = make_manager(pool={spec("s"): 1})
    await manager.open()
    await waiting(manager, "s", 1)
    [kernel] = pooled(manager, "s")
    assert await manager.start_kernel("s", user="alice") == kernel.kernel_id
    assert manager.model(kernel.kernel_id)["user"] == "alice"


async def test_prespawn_count_fills_a_pool_of_the_default_kernelspec(make_manager, fake):
    manager = make_manager(prespawn_count=2, default_kernel_name=fake())
    await manager.open()
    await waiting(manager, "fake", 2)


async def test_a_pool_of_an_unknown_kernelspec_fails_open(make_manager, fake):
    with pytest.raises(KernelspecNotFound):
        await make_manager(pool={"none": 1}).open()


# Culling


class Clocks:
    """The two clocks that a manager reads."""

    def __init__(self) -> None:
        self.now, self.wall = time.monotonic(), time.time()

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.wall

    def pass_(self, seconds: float) -> None:
        self.now, self.wall = self.now + seconds, self.wall + seconds


@pytest.fixture
def clocks(monkeypatch):
    made = Clocks()
    monkeypatch.setattr(culling, "time", made)
    return made


async def test_culling_ends_idle_kernels_and_keeps_those_that_opted_out(
    make_manager, fake, hubs, clocks
):
    manager = make_manager(cull_idle_timeout=60)
    old = await manager.start_kernel(fake())
    new = await manager.start_kernel("fake")
    spared = await manager.start_kernel(fake("kept", metadata={"kbridge": {"cull": False}}))
    clocks.pass_(61)
    hubs[new].activity.last_activity = clocks.wall
    await manager.cull()
    assert {model["id"] for model in manager.models()} == {new, spared}
    assert old not in manager


async def test_a_busy_kernel_that_would_be_culled_is_probed(make_manager, fake, hubs, clocks):
    manager = make_manager(cull_idle_timeout=60)
    kernel_id = await manager.start_kernel(fake())
    process = hubs.kernel(kernel_id).process
    process.publish("busy")
    process.answering = False
    sent = len(process.sent)
    await manager.cull()
    assert len(process.sent) == sent
    clocks.pass_(90)
    await manager.cull()
    assert len(process.sent) > sent, "a probe"
    assert kernel_id in manager


async def test_a_change_of_the_wall_clock_neither_culls_nor_keeps_a_kernel(
    make_manager, fake, hubs, clocks
):
    manager = make_manager(cull_idle_timeout=60)
    kernel_id = await manager.start_kernel(fake())
    clocks.pass_(30)
    for hours in (5, -10, 20):
        clocks.wall += hours * 3600
        await manager.cull()
        assert kernel_id in manager
    clocks.pass_(31)
    await manager.cull()
    assert kernel_id not in manager


# Seed


@pytest.fixture
def seed(tmp_path):
    notebook = new_notebook(
        cells=[new_code_cell("a = 1")],
        metadata={"kernelspec": {"name": "fake", "display_name": "x"}},
    )
    nbformat.write(notebook, tmp_path / "seed.ipynb")
    return str(tmp_path / "seed.ipynb")


async def test_only_new_kernels_of_the_kernelspec_of_the_seed_are_seeded(
    make_manager, fake, hubs, seed
):
    manager = make_manager(seed_uri=seed)
    kernel_id = await manager.start_kernel(fake())
    other = await manager.start_kernel(fake("other"))
    await manager.restart_kernel(kernel_id)
    requests = hubs.kernel(kernel_id).requests
    assert [content["code"] for _, content, _ in requests] == ["a = 1"]
    assert hubs.kernel(other).requests == []


async def test_a_seed_that_fails_fails_the_start(make_manager, fake, hubs, seed):
    hubs.reply = lambda *_: {"status": "error", "ename": "NameError", "evalue": "a"}
    manager = make_manager(seed_uri=seed)
    with pytest.raises(KernelStartError, match="cell 1 of the seed notebook failed: NameError: a"):
        await manager.start_kernel(fake())
    assert manager.models() == []


async def test_a_seed_that_cannot_be_read_fails_open(make_manager, fake, tmp_path):
    manager = make_manager(seed_uri=str(tmp_path / "none.ipynb"))
    fake()
    with pytest.raises(BridgeError, match="seed notebook"):
        await manager.open()


# The end


async def test_shutdown_all_ends_used_and_pooled_kernels(make_manager, spec, fake, hubs):
    manager = make_manager(pool={"s": 1})
    spec("s")
    await manager.open()
    await waiting(manager, "s", 1)
    for _ in range(2):
        await manager.start_kernel("s", env={})
    processes = [psutil.Process(k.manager.provisioner.pid) for k in manager.index.known]
    assert len(processes) == 3
    await manager.shutdown_all()
    await manager.shutdown_all()
    for process in processes:
        assert_gone(process)
    with pytest.raises(Busy):
        await manager.start_kernel("s")


async def test_shutdown_all_ends_kernels_that_are_starting(make_manager, spec, hubs):
    hubs.answering = False
    manager = make_manager(pool={"s": 1})
    spec("s")
    starts = [asyncio.ensure_future(manager.start_kernel("s", env={})) for _ in range(2)]
    await until(lambda: len(hubs.opened) == 3)
    processes = [psutil.Process(k.manager.provisioner.pid) for k in manager.index.known]
    await manager.shutdown_all()
    for process in processes:
        assert_gone(process)
    for error in await asyncio.gather(*starts, return_exceptions=True):
        assert isinstance(error, KernelStartError | Busy)


async def test_a_kernel_that_cannot_be_ended_does_not_keep_others_from_ending(
    make_manager, fake, monkeypatch, caplog
):
    fake()
    manager = make_manager(pool={"fake": 2})
    await manager.open()
    await waiting(manager, "fake", 2)
    discard, calls, ended = StartedKernel.discard, itertools.count(), []

    async def the_first_fails(kernel, **how):
        call = next(calls)
        await discard(kernel, **how)
        if call == 0:
            raise KernelError("the cluster does not answer")
        for _ in range(20):  # this kernel is culled later than the first
            await asyncio.sleep(0)
        ended.append(kernel)

    monkeypatch.setattr(StartedKernel, "discard", the_first_fails)
    await manager.shutdown_all()
    assert len(ended) == 1
    assert "the cluster does not answer" in caplog.text


async def test_kernels_that_do_not_end_in_time_are_killed(make_manager, spec, monkeypatch):
    monkeypatch.setattr("kbridge.kernels.shutdown._SHUTDOWN_TIMEOUT", 0.2)
    manager = make_manager()
    kernel_id = await manager.start_kernel(spec("stubborn", STUBBORN))
    await until(lambda: "stubborn" in manager.get_kernel(kernel_id).output.tail())
    process = process_of(manager, kernel_id)
    await manager.shutdown_all()
    assert_gone(process)


async def test_a_cancelled_shutdown_can_be_finished_with_now(make_manager, spec):
    manager = make_manager()
    kernel_id = await manager.start_kernel(spec("stubborn", STUBBORN))
    await until(lambda: "stubborn" in manager.get_kernel(kernel_id).output.tail())
    process = process_of(manager, kernel_id)
    asked = asyncio.ensure_future(manager.shutdown_all())
    await until(lambda: manager.get_kernel(kernel_id).shutting_down)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert process.is_running()
    await manager.shutdown_all(now=True)
    assert_gone(process)
    assert manager.models() == []


async def test_a_cancelled_shutdown_leaves_no_process(make_manager, spec):
    manager = make_manager()
    kernel_id = await manager.start_kernel(spec("stubborn", STUBBORN))
    await until(lambda: "stubborn" in manager.get_kernel(kernel_id).output.tail())
    process = process_of(manager, kernel_id)
    asked = asyncio.ensure_future(manager.shutdown_kernel(kernel_id))
    await until(lambda: manager.get_kernel(kernel_id).shutting_down)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
    assert manager.models() == []


async def test_a_shutdown_that_is_cancelled_removes_the_kernel_from_the_registry(
    make_manager, fake, hubs
):
    class Noting(RegistryWriter):
        dropped = ()

        def drop_kernel(self, kernel_id):
            self.dropped = (*self.dropped, kernel_id)

    writer = Noting()
    manager = make_manager(writer=writer)
    kernel_id = await manager.start_kernel(fake())
    hubs.kernel(kernel_id).connect_client()
    for _ in range(1000):
        hubs.kernel(kernel_id).process.arrive(Channel.IOPUB, [])
    asked = asyncio.create_task(manager.shutdown_kernel(kernel_id))
    while hubs.get(kernel_id) is not None:  # noqa: ASYNC110 - to cancel before the last message
        await asyncio.sleep(0)
    assert not hubs.opened[0].process.closed, "last messages are delivered"
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert hubs.opened[0].process.closed
    assert writer.dropped == (kernel_id,)


async def test_a_shutdown_that_is_cancelled_before_its_turn_ends_nothing(make_manager, fake):
    manager = make_manager()
    kernel_id = await manager.start_kernel(fake())
    kernel = manager.index.find(kernel_id)
    async with kernel.process.lock:  # as during a restart
        asked = asyncio.create_task(manager.shutdown_kernel(kernel_id))
        await until(lambda: kernel.process.closing)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    assert manager.index.get(kernel_id) is kernel
    await manager.shutdown_kernel(kernel_id)
    assert manager.models() == []


async def test_the_context_is_closed_with_the_manager(make_manager, fake):
    """Not by the garbage collector, which may report it as a leak."""
    manager = make_manager()
    await manager.start_kernel(fake())
    assert not manager.context.closed
    await manager.shutdown_all()
    assert manager.context.closed


async def test_open_starts_nothing_once_the_server_is_closing(make_manager, fake, fleet):
    manager = make_manager(pool={fake(): 1})
    await manager.shutdown_all()
    with pytest.raises(Busy):
        await manager.open()
    assert fleet == []


async def test_open_that_finishes_after_shutdown_starts_nothing(
    make_manager, fake, fleet, monkeypatch
):
    manager = make_manager(pool={fake(): 1})
    loading, may_load = asyncio.Event(), asyncio.Event()

    async def load_slowly():
        loading.set()
        await may_load.wait()

    monkeypatch.setattr(manager._factory, "load_seed", load_slowly)
    start = asyncio.create_task(manager.start_kernel("fake"))
    await loading.wait()
    await manager.shutdown_all()
    may_load.set()
    with pytest.raises(Busy):
        await start
    for _ in range(20):
        await asyncio.sleep(0)
    assert fleet == []
    assert manager._culler._task is None


async def test_no_kernel_is_restarted_during_shutdown(make_manager, fake, fleet, hubs):
    manager = make_manager()
    ids = [await manager.start_kernel(fake(f"f{i}")) for i in range(3)]
    kernels = [hubs.kernel(kernel_id) for kernel_id in ids]
    for provisioner in fleet:
        provisioner.code = 1
    await manager.shutdown_all()
    assert all(provisioner.launches == 1 for provisioner in fleet)
    assert all(len(kernel.processes) == 1 for kernel in kernels)


def test_each_setting_is_documented(make_manager):
    for name, trait in make_manager().traits(config=True).items():
        assert trait.help, name
