"""Kernels that wait in the queue of a scheduler, from their start to their end."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import KernelManager

from kbridge.errors import (
    InvalidRequest,
    KernelError,
    KernelLimitReached,
    KernelNotFound,
    KernelStartError,
)
from kbridge.hub import Hub
from kbridge.kernels.lifecycle import descriptors, job_wait
from kbridge.kernels.lifecycle.queued import JobEnd
from kbridge.wire.build import build
from kbridge.wire.dialects import V1
from kbridge.wire.message import Channel, Message
from tests.hub.rig import Peer, received
from tests.kernels.scripted_queue import ScriptedProvisioner
from tests.support.waiting import TIMEOUT


async def until(condition) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110 - clients and jobs set no event
            await asyncio.sleep(0.005)


def provisioner() -> ScriptedProvisioner:
    return ScriptedProvisioner.created[-1]


class Client:
    """A websocket of a kernel, and what it was sent."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.peer = Peer()
        self.cursor = hub.attach(self.peer, V1, "a session")
        self.peer.hear = lambda payload: hub.on_pong(self.cursor, payload)
        self.peer.answer()

    def send(self, msg_type: str, msg_id: str, content: Any = None) -> None:
        msg = build(
            *(Channel.SHELL, msg_type, content or {"code": "1"}),
            session="a session",
            date="2026-01-02T03:04:05.000000Z",
            msg_id=msg_id,
        )
        self.hub.submit(self.cursor, msg)

    def messages(self, msg_type: str) -> list[Message]:
        return [m for m in received(self.peer) if m.msg_type == msg_type]

    @property
    def statuses(self) -> list[tuple[str, str]]:
        """State and reason of each status of the whole kernel."""
        found = []
        for msg in self.messages("status"):
            content = json.loads(bytes(msg.content))
            if bytes(msg.parent_header) == b"{}":
                found.append((content["execution_state"], content.get("reason", "")))
        return found

    def reply_to(self, msg_id: str) -> dict[str, Any] | None:
        for msg in self.messages("execute_reply"):
            if msg.parent_id == msg_id:
                return dict(json.loads(bytes(msg.content)))
        return None

    def output_of(self, msg_id: str) -> str:
        texts = [m for m in self.messages("stream") if m.parent_id == msg_id]
        return "".join(json.loads(bytes(m.content))["text"] for m in texts)


@pytest.fixture
async def waiting(make_manager, queued, hubs):
    """A manager, and a kernel of it that waits."""
    manager = make_manager(queue_grace=0.0)
    kernel_id = await manager.start_kernel(queued())
    return manager, kernel_id


async def test_a_start_succeeds_while_the_kernel_waits(waiting, hubs, caplog):
    manager, kernel_id = waiting
    model = manager.model(kernel_id)
    assert model["execution_state"] == "starting"
    assert model["reason"] == "job 1 waits: Submitted"
    assert not hubs.kernel(kernel_id).processes, "nothing to connect to"
    assert manager.states() == [(kernel_id, "queued", "starting")]


async def test_a_kernel_that_runs_within_the_grace_is_returned_ready(make_manager, queued, hubs):
    manager = make_manager(queue_grace=TIMEOUT)
    start = asyncio.create_task(manager.start_kernel(queued()))
    await until(lambda: ScriptedProvisioner.created and provisioner().job)
    provisioner().run()
    kernel_id = await start
    assert hubs[kernel_id].ready
    assert manager.model(kernel_id)["execution_state"] == "idle"
    assert "reason" not in manager.model(kernel_id)


async def test_requests_wait_for_the_kernel(waiting, hubs):
    manager, kernel_id = waiting
    client = Client(hubs[kernel_id])
    client.send("execute_request", "a")
    provisioner().run(6000)
    await until(lambda: client.reply_to("a"))
    assert client.reply_to("a") == {"status": "ok"}
    assert hubs.kernel(kernel_id).info.ports[Channel.SHELL] == 6000
    assert manager.model(kernel_id)["execution_state"] == "idle"
    assert "reason" not in manager.model(kernel_id)


async def test_each_reason_is_told_and_logged_once(waiting, hubs, caplog):
    caplog.set_level(logging.INFO)
    manager, kernel_id = waiting
    client = Client(hubs[kernel_id])
    assert client.statuses == [("starting", "job 1 waits: Submitted")], "also to a late client"
    for reason in ("Priority", "Priority", "Resources"):
        provisioner().wait_because(reason)
    assert client.statuses[1:] == [
        ("starting", "job 1 waits: Priority"),
        ("starting", "job 1 waits: Resources"),
    ]
    assert caplog.text.count("job 1 waits: Priority") == 1
    assert manager.model(kernel_id)["reason"] == "job 1 waits: Resources"


async def test_a_refused_job_is_an_error_of_the_start(make_manager, queued):
    manager = make_manager()
    ScriptedProvisioner.refusal = "invalid partition"
    with pytest.raises(KernelStartError, match="invalid partition"):
        await manager.start_kernel(queued())
    assert not manager.models()


async def test_a_job_that_ends_within_the_grace_is_an_error_of_the_start(make_manager, queued):
    manager = make_manager(queue_grace=TIMEOUT)
    start = asyncio.create_task(manager.start_kernel(queued()))
    await until(lambda: ScriptedProvisioner.created and provisioner().job)
    provisioner().end("job 1 ended: no such account")
    with pytest.raises(KernelStartError, match="no such account"):
        await start
    assert not manager.models()


async def test_a_job_that_ends_in_the_queue_leaves_a_dead_kernel_with_the_reason(waiting, hubs):
    manager, kernel_id = waiting
    client = Client(hubs[kernel_id])
    client.send("execute_request", "a")
    provisioner().end("job 1 ended: CANCELLED", JobEnd.CANCELLED)
    await until(lambda: manager.model(kernel_id)["execution_state"] == "dead")
    assert manager.model(kernel_id)["reason"] == "job 1 ended: CANCELLED"
    assert client.statuses[-1] == ("dead", "job 1 ended: CANCELLED")
    assert "job 1 ended: CANCELLED" in client.output_of("a")
    assert client.reply_to("a") == {"status": "aborted", "execution_count": None}


async def test_a_dead_kernel_can_be_restarted_with_another_job(waiting, hubs):
    manager, kernel_id = waiting
    provisioner().end("job 1 ended: CANCELLED", JobEnd.CANCELLED)
    await until(lambda: manager.model(kernel_id)["execution_state"] == "dead")
    await manager.restart_kernel(kernel_id)
    assert manager.model(kernel_id)["reason"] == "job 2 waits: Submitted"
    provisioner().run()
    await until(lambda: manager.model(kernel_id)["execution_state"] == "idle")


async def test_a_restart_of_a_kernel_that_waits_keeps_its_place(waiting, hubs):
    manager, kernel_id = waiting
    client = Client(hubs[kernel_id])
    client.send("execute_request", "a")
    await manager.restart_kernel(kernel_id)
    assert len(ScriptedProvisioner.jobs) == 1
    assert not provisioner().current.end
    assert manager.model(kernel_id)["execution_state"] == "starting"
    assert client.statuses[-1] == ("starting", "job 1 waits: Submitted")
    client.send("execute_request", "b")
    provisioner().run()
    await until(lambda: client.reply_to("b"))
    assert client.reply_to("a") is None, "a restart forgets requests"


async def test_a_restart_of_a_kernel_that_runs_submits_another_job(waiting, hubs):
    manager, kernel_id = waiting
    provisioner().run(6000)
    await until(lambda: hubs[kernel_id].ready)
    client = Client(hubs[kernel_id])
    await manager.restart_kernel(kernel_id)
    assert ScriptedProvisioner.jobs[1].end == "ended by the server"
    assert client.statuses[-2:] == [("starting", ""), ("starting", "job 2 waits: Submitted")]
    client.send("execute_request", "a")
    provisioner().run(7000)
    await until(lambda: client.reply_to("a"))
    assert hubs.kernel(kernel_id).info.ports[Channel.SHELL] == 7000


async def test_an_interrupt_aborts_the_requests_that_wait(waiting, hubs):
    manager, kernel_id = waiting
    client = Client(hubs[kernel_id])
    client.send("execute_request", "a")
    client.send("complete_request", "c")
    await manager.interrupt_kernel(kernel_id)
    assert client.reply_to("a") == {"status": "aborted", "execution_count": None}
    assert not provisioner().current.signals
    provisioner().run()
    await until(lambda: client.messages("complete_reply"))
    assert [kind for kind, *_ in hubs.kernel(kernel_id).requests] == ["complete_request"]


async def test_a_kernel_that_is_shut_down_while_it_waits_leaves_the_queue(waiting):
    manager, kernel_id = waiting
    await manager.shutdown_kernel(kernel_id)
    assert provisioner().current.end == "ended by the server"
    with pytest.raises(KernelNotFound):
        manager.model(kernel_id)


async def test_a_kernel_that_waits_counts_as_a_kernel_and_holds_no_start(
    make_manager, queued, fake
):
    manager = make_manager(queue_grace=0.0, max_kernels=2, max_concurrent_starts=1)
    await manager.start_kernel(queued())
    await manager.start_kernel(fake())
    assert manager.count_starting() == 0
    with pytest.raises(KernelLimitReached):
        await manager.start_kernel("fake")


async def test_the_time_in_the_queue_is_not_idle_time(make_manager, queued, hubs, monkeypatch):
    manager = make_manager(queue_grace=0.0, cull_idle_timeout=60)
    kernel_id = await manager.start_kernel(queued())
    hubs[kernel_id].activity.last_activity -= 1000.0
    await manager.cull()
    assert kernel_id in manager
    provisioner().run()
    await until(lambda: hubs[kernel_id].ready)
    await manager.cull()
    assert kernel_id in manager


async def test_a_start_that_waits_is_no_measure_of_starts(waiting, make_manager):
    manager, _ = waiting
    assert not manager.starts.durations


@pytest.mark.parametrize("kind", [k for k in JobEnd if k is not JobEnd.CRASH])
async def test_the_end_of_a_job_is_final_and_its_reason_is_shown(waiting, hubs, caplog, kind):
    manager, kernel_id = waiting
    hubs.reply = lambda *_: None
    kernel = hubs.kernel(kernel_id)
    provisioner().run()
    await until(lambda: hubs[kernel_id].ready)
    kernel.reply = lambda *_: None  # the cell goes on
    client = Client(hubs[kernel_id])
    client.send("execute_request", "a")
    await until(lambda: kernel.requests)
    header = bytes(
        build(
            *(Channel.SHELL, "execute_request", {}),
            session="a session",
            date="2026-01-02T03:04:05.000000Z",
            msg_id="a",
        ).header
    )
    kernel.process.publish("busy", header)
    await until(lambda: hubs[kernel_id].executions.running)
    provisioner().end("job 1 ended: TIMEOUT", kind)
    await until(lambda: manager.model(kernel_id)["execution_state"] == "dead")
    assert manager.model(kernel_id)["reason"] == "job 1 ended: TIMEOUT"
    assert client.statuses[-1] == ("dead", "job 1 ended: TIMEOUT")
    assert "job 1 ended: TIMEOUT" in client.output_of("a")
    assert "job 1 ended: TIMEOUT" in caplog.text
    assert len(ScriptedProvisioner.jobs) == 1


async def test_a_kernel_that_crashed_is_submitted_again(waiting, hubs):
    manager, kernel_id = waiting
    provisioner().run()
    await until(lambda: hubs[kernel_id].ready)
    client = Client(hubs[kernel_id])
    provisioner().end("job 1 ended: FAILED", JobEnd.CRASH)
    await until(lambda: 2 in ScriptedProvisioner.jobs)
    await until(lambda: manager.model(kernel_id).get("reason") == "job 2 waits: Submitted")
    assert client.statuses[-2:] == [
        ("restarting", "job 1 ended: FAILED"),
        ("starting", "job 2 waits: Submitted"),
    ]
    provisioner().run()
    await until(lambda: manager.model(kernel_id)["execution_state"] == "idle")


async def test_resubmit_after_chooses_the_ends_that_are_not_final(make_manager, queued, hubs):
    manager = make_manager(queue_grace=0.0, resubmit_after=["preemption"])
    kernel_id = await manager.start_kernel(queued())
    for number, kind in ((2, JobEnd.PREEMPTION), (3, JobEnd.PREEMPTION)):
        provisioner().run()
        await until(lambda: manager.model(kernel_id)["execution_state"] == "idle")
        provisioner().end("ended", kind)
        await until(lambda number=number: number in ScriptedProvisioner.jobs)
    provisioner().run()
    await until(lambda: manager.model(kernel_id)["execution_state"] == "idle")
    provisioner().end("ended", JobEnd.CRASH)
    await until(lambda: manager.model(kernel_id)["execution_state"] == "dead")


@pytest.fixture
def seed(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("seeded = 1")])
    nbformat.write(notebook, tmp_path / "seed.ipynb")
    return str(tmp_path / "seed.ipynb")


async def test_the_seed_runs_before_the_requests_that_waited(make_manager, queued, hubs, seed):
    manager = make_manager(queue_grace=0.0, seed_uri=seed)
    kernel_id = await manager.start_kernel(queued())
    client = Client(hubs[kernel_id])
    client.send("execute_request", "a", {"code": "a cell"})
    provisioner().run()
    await until(lambda: client.reply_to("a"))
    requests = hubs.kernel(kernel_id).requests
    assert [content["code"] for _, content, _ in requests] == ["seeded = 1", "a cell"]
    await until(lambda: manager.model(kernel_id)["execution_state"] == "idle")


async def test_a_restart_while_the_seed_runs_begins_again(make_manager, queued, hubs, seed):
    hubs.reply = lambda *_: None  # the seed goes on
    manager = make_manager(queue_grace=0.0, seed_uri=seed)
    kernel_id = await manager.start_kernel(queued())
    provisioner().run()
    kernel = hubs.kernel(kernel_id)
    await until(lambda: kernel.requests)
    assert manager.model(kernel_id)["execution_state"] != "dead"
    await manager.interrupt_kernel(kernel_id)
    assert provisioner().current.signals, "the seed is interrupted like any code"
    kernel.reply = lambda *_: {"status": "ok"}
    await manager.restart_kernel(kernel_id)
    assert ScriptedProvisioner.jobs[1].end
    provisioner().run(6000)
    client = Client(hubs[kernel_id])
    client.send("execute_request", "a", {"code": "a cell"})
    await until(lambda: client.reply_to("a"))
    assert [content["code"] for _, content, _ in kernel.requests] == [
        *("seeded = 1", "seeded = 1", "a cell")
    ]


async def test_a_restart_when_the_kernel_leaves_the_queue_replaces_it(waiting, hubs, monkeypatch):
    manager, kernel_id = waiting
    ask = ScriptedProvisioner.poll

    async def poll(self):
        self.run(6000)  # while the restart asks whether the job waits
        await asyncio.sleep(0.01)
        return await ask(self)

    monkeypatch.setattr(ScriptedProvisioner, "poll", poll)
    await manager.restart_kernel(kernel_id)
    monkeypatch.setattr(ScriptedProvisioner, "poll", ask)
    if provisioner().waiting:
        provisioner().run(7000)
    client = Client(hubs[kernel_id])
    client.send("execute_request", "a")
    await until(lambda: client.reply_to("a"))
    assert manager.model(kernel_id)["execution_state"] == "idle"


class SchedulerIsDownError(Exception):
    pass


@pytest.fixture
def down(monkeypatch):
    """Let the scheduler answer no request, until `undo`."""

    async def fail(self, *_: Any, **__: Any) -> None:
        raise SchedulerIsDownError("the scheduler does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(ScriptedProvisioner, "kill", fail)
        patch.setattr(ScriptedProvisioner, "send_signal", fail)
        yield patch


@pytest.mark.parametrize("now", [False, True])
async def test_a_server_that_ends_asks_the_scheduler_for_a_few_jobs_at_a_time(
    make_manager, queued, monkeypatch, now
):
    manager = make_manager(queue_grace=0.0)
    name, end = queued(), ScriptedProvisioner.kill
    for _ in range(12):
        await manager.start_kernel(name)
    asked = most = 0

    async def kill(self, restart=False):
        nonlocal asked, most
        asked += 1
        most = max(most, asked)
        await asyncio.sleep(0)
        asked -= 1
        await end(self)

    monkeypatch.setattr(ScriptedProvisioner, "kill", kill)
    await manager.shutdown_all(now=now)
    assert all(job.end for job in ScriptedProvisioner.jobs.values())
    assert 1 < most <= 8


async def test_a_kernel_whose_job_cannot_be_ended_stays(waiting, hubs, down):
    manager, kernel_id = waiting
    with pytest.raises(KernelError, match="does not answer"):
        await manager.shutdown_kernel(kernel_id)
    assert manager.model(kernel_id)["reason"] == "job 1 waits: Submitted"
    down.undo()
    provisioner().run()
    await until(lambda: manager.model(kernel_id)["execution_state"] == "idle")
    await manager.shutdown_kernel(kernel_id)
    assert provisioner().current.end


async def test_a_kernel_that_cannot_be_interrupted_can_be_shut_down(waiting, hubs, down):
    manager, kernel_id = waiting
    provisioner().run()
    await until(lambda: manager.model(kernel_id)["execution_state"] == "idle")
    ends = []
    down.setattr(ScriptedProvisioner, "shutdown_requested", None)

    async def requested(self, restart=False):
        ends.append(restart)
        self.end("ended by the server")

    down.setattr(ScriptedProvisioner, "shutdown_requested", requested)
    await manager.shutdown_kernel(kernel_id)
    assert ends == [False]


async def test_a_kernel_that_is_not_reached_is_dead_although_its_job_cannot_be_ended(waiting, down):
    manager, kernel_id = waiting
    provisioner().run_as({"transport": "tcp", "ip": "127.0.0.1", "shell_port": "none"})
    await until(lambda: manager.model(kernel_id)["execution_state"] == "dead")
    down.undo()


async def test_a_kernel_without_descriptors_is_connected_to_later(waiting, hubs, monkeypatch):
    manager, kernel_id = waiting
    monkeypatch.setattr(job_wait, "_AGAIN", 0.01)
    monkeypatch.setattr(descriptors, "free_descriptors", lambda **_: 0)
    provisioner().run()
    await until(lambda: not provisioner().waiting)
    await asyncio.sleep(0.03)
    assert not hubs.kernel(kernel_id).processes
    monkeypatch.undo()
    await until(lambda: manager.model(kernel_id)["execution_state"] == "idle")


async def test_a_request_that_the_provisioner_refuses_is_a_mistake_of_the_client(
    make_manager, queued, monkeypatch
):
    async def refuse(self, **kwargs: Any) -> None:
        raise InvalidRequest("KERNEL_SLURM_TIME is not allowed")

    monkeypatch.setattr(ScriptedProvisioner, "pre_launch", refuse)
    with pytest.raises(InvalidRequest, match="not allowed"):
        await make_manager().start_kernel(queued())


async def test_a_seed_that_fails_ends_the_job(make_manager, queued, hubs, seed):
    hubs.reply = lambda *_: {"status": "error", "ename": "NameError", "evalue": "a"}
    manager = make_manager(queue_grace=0.0, seed_uri=seed)
    kernel_id = await manager.start_kernel(queued())
    provisioner().run()
    await until(lambda: manager.model(kernel_id)["execution_state"] == "dead")
    assert "cell 1 of the seed notebook failed: NameError" in manager.model(kernel_id)["reason"]
    assert provisioner().current.end == "ended by the server"


async def test_connection_info_that_cannot_be_used_ends_the_job(waiting):
    manager, kernel_id = waiting
    provisioner().run_as({"transport": "tcp", "ip": "127.0.0.1", "shell_port": "none"})
    await until(lambda: manager.model(kernel_id)["execution_state"] == "dead")
    assert provisioner().current.end == "ended by the server"


async def test_all_ends_of_the_server_end_kernels_that_wait(waiting):
    manager, _ = waiting
    await manager.shutdown_all()
    assert provisioner().current.end == "ended by the server"


@pytest.mark.parametrize(
    ("traits", "policy"),
    [({}, "auto"), ({"transport_encryption": "off"}, "disabled")],
    ids=["default", "off"],
)
async def test_a_kernel_on_another_machine_is_encrypted_where_possible(
    make_manager, queued, traits, policy
):
    manager = make_manager(queue_grace=0.0, **traits)
    kernel_id = await manager.start_kernel(queued())
    kernel = manager.get_kernel(kernel_id)
    if kernel.has_trait("transport_encryption"):
        assert kernel.transport_encryption == policy


async def test_a_kernel_on_this_machine_is_not_encrypted_by_default(
    make_manager, queued, monkeypatch
):
    monkeypatch.setattr(ScriptedProvisioner, "remote", False)
    manager = make_manager(queue_grace=0.0)
    kernel_id = await manager.start_kernel(queued())
    kernel = manager.get_kernel(kernel_id)
    if kernel.has_trait("transport_encryption"):
        assert kernel.transport_encryption == "disabled"


@pytest.mark.skipif(
    "transport_encryption" not in KernelManager.class_trait_names(),
    reason="jupyter_client before 8.10 has no CurveZMQ",
)
async def test_required_encryption_ends_a_job_whose_kernel_has_no_keys(make_manager, queued):
    manager = make_manager(queue_grace=0.0, transport_encryption="required")
    name = queued(metadata={"supported_encryption": ["curve"]})
    kernel_id = await manager.start_kernel(name)
    provisioner().run()
    await until(lambda: manager.model(kernel_id)["execution_state"] == "dead")
    assert "transport_encryption=required" in manager.model(kernel_id)["reason"]
    assert provisioner().current.end == "ended by the server"
