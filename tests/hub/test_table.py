"""The hubs of all kernels: one per kernel, found by id, removed when closed."""

import asyncio
import logging
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from kbridge.errors import HubClosed, KernelNotFound
from kbridge.hub.hub import Hub
from kbridge.hub.settings import HubSettings
from kbridge.hub.table import HubTable
from kbridge.link.holder.client import Holder, is_supported
from kbridge.link.holder.keeper import Keeper
from kbridge.link.memory import MemoryClient, MemoryKernel
from kbridge.storage.disk import Disk
from kbridge.wire.build import build
from kbridge.wire.dialects import V1
from kbridge.wire.message import Channel
from kbridge.wire.signing import Signer
from kbridge.wire.zmq import parse, serialize
from tests.hub.rig import INFO, KEY
from tests.support.waiting import TIMEOUT, until


@pytest.fixture
async def table():
    made = HubTable(HubSettings(journal_limit=12345), link=MemoryKernel)
    yield made
    await made.aclose()


async def test_a_kernel_has_one_hub_with_the_tables_settings(table) -> None:
    hub = table.open("a", INFO)
    assert isinstance(hub, Hub)
    assert hub.kernel_id == "a"
    assert hub.settings.journal_limit == 12345
    assert isinstance(hub._kernel._link.link, MemoryKernel)
    assert table.open("a", {"not": "looked at"}) is hub
    assert table.open("b", INFO) is not hub
    assert len(table) == 2
    assert [h.kernel_id for h in table] == ["a", "b"]


async def test_hubs_are_found_or_not(table) -> None:
    hub = table.open("a", INFO)
    assert table.get("a") is hub
    assert table["a"] is hub
    assert table.get("b") is None
    with pytest.raises(KernelNotFound, match="'b'"):
        table["b"]
    assert len(table) == 1, "asking makes none"


async def test_connections_are_counted_by_kernel(table) -> None:
    hub = table.open("a", INFO)
    table.open("b", INFO)
    attached = [hub.attach(MemoryClient(), V1) for _ in range(3)]
    hub.detach(attached[0])
    assert [table.connections(k) for k in ("a", "b", "c")] == [2, 0, 0]


async def test_closing_one_closes_its_websockets_and_leaves_the_others(table) -> None:
    one, other = table.open("a", INFO), table.open("b", INFO)
    client, bystander = MemoryClient(), MemoryClient()
    one.attach(client, V1)
    other.attach(bystander, V1)
    await table.close("a")
    await table.close("a")
    await table.close("never there")
    assert client.closed_with == (1012, "the kernel was shut down")
    assert not bystander.closed
    assert table.get("a") is None
    with pytest.raises(HubClosed):
        one.attach(MemoryClient(), V1)
    assert table.open("a", INFO) is not one, "a new kernel with the same id gets its own hub"


async def test_closing_all_may_be_done_twice(table) -> None:
    clients = []
    for kernel_id in "abc":
        clients.append(MemoryClient())
        table.open(kernel_id, INFO).attach(clients[-1], V1)
    await table.aclose()
    await table.aclose()
    assert len(table) == 0
    assert all(c.closed for c in clients)


@pytest.mark.parametrize("ends", ["server", "kernel"])
async def test_the_end_waits_for_hubs_that_still_deliver(ends) -> None:
    made: list[MemoryKernel] = []

    def link(*args: Any) -> MemoryKernel:
        made.append(MemoryKernel(*args))
        return made[-1]

    table, client = HubTable(link=link), MemoryClient()
    table.open("a", INFO).attach(client, V1)
    for _ in range(50):
        made[0].arrive(Channel.IOPUB, [])
    first = asyncio.ensure_future(table.aclose() if ends == "server" else table.close("a"))
    await asyncio.sleep(0)
    assert table.get("a") is None
    assert client.closed_with is None
    await table.aclose()
    assert client.closed_with is not None
    await first


class FloodedKernels:
    """Makes links to kernels, each of which has 50 messages that were not read yet."""

    def __init__(self) -> None:
        self.links: list[MemoryKernel] = []

    def __call__(self, *args: Any) -> MemoryKernel:
        link = MemoryKernel(*args)
        for _ in range(50):
            link.arrive(Channel.IOPUB, [])
        self.links.append(link)
        return link


class Kept:
    """Stands for a `Keeper`, and notes its calls."""

    left = ()

    def __init__(self) -> None:
        self.calls: list[str] = []

    def leave(self) -> None:
        self.calls.append("leave")

    def forget(self, kernel_id: str) -> None:
        self.calls.append(f"forget {kernel_id}")

    def close(self) -> None:
        self.calls.append("close")


async def test_a_cancelled_end_closes_everything(tmp_path) -> None:
    kernels, clients, kept = FloodedKernels(), [], Kept()
    table = HubTable(HubSettings(journal_dir=str(tmp_path)), link=kernels)
    await table.open_journal("me")
    for kernel_id in "abc":
        clients.append(MemoryClient())
        table.open(kernel_id, INFO).attach(clients[-1], V1)
        table[kernel_id].announce("starting")  # reads the first messages
        for _ in range(50):
            kernels.links[-1].arrive(Channel.IOPUB, [])
    keeper: Any = kept
    table.keep_connections(keeper)
    ending = asyncio.ensure_future(table.aclose(keep=True))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not any(client.closed for client in clients), "messages are delivered before"
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert all(client.closed for client in clients)
    assert all(link.closed for link in kernels.links)
    assert kept.calls == ["leave", "close"]
    assert table.journal_statistics() == {}
    await table.aclose(keep=True)
    following = await open_table(tmp_path, keep="abc")
    assert all(following.open(kernel_id, INFO).notices.adopted for kernel_id in "abc")
    await following.aclose()


async def test_a_cancelled_end_of_a_kernel_forgets_its_connections() -> None:
    kernels, client, kept = FloodedKernels(), MemoryClient(), Kept()
    table = HubTable(link=kernels)
    table.open("a", INFO).attach(client, V1)
    keeper: Any = kept
    table.keep_connections(keeper)
    ending = asyncio.ensure_future(table.close("a"))
    await asyncio.sleep(0)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert (client.closed, kernels.links[0].closed) == (True, True)
    assert kept.calls == ["forget a"]
    await table.aclose()


async def test_hubs_are_closed_beside_each_other() -> None:
    kernels, clients = FloodedKernels(), []
    table = HubTable(link=kernels)
    for kernel_id in "ab":
        clients.append(MemoryClient())
        table.open(kernel_id, INFO).attach(clients[-1], V1)
    for _ in range(1000):
        kernels.links[0].arrive(Channel.IOPUB, [])
    ending = asyncio.ensure_future(table.aclose())
    while not clients[1].closed:  # noqa: ASYNC110 - each step of the other hub counts
        await asyncio.sleep(0)
    assert not clients[0].closed
    await ending


@pytest.mark.parametrize("attached", [False, True])
async def test_last_messages_are_read_if_somebody_gets_them(attached) -> None:
    kernels = FloodedKernels()
    table = HubTable(link=kernels)
    hub = table.open("a", INFO)
    if attached:
        hub.attach(MemoryClient(), V1)
    await table.close("a")
    refused = hub.statistics()["refused_kernel_messages"]
    assert refused == (50 if attached else 0), "the messages of this test are invalid"


async def test_a_connection_file_without_a_port_makes_no_hub(table) -> None:
    with pytest.raises(ValueError, match="shell_port"):
        table.open("a", {**INFO, "shell_port": 0})
    with pytest.raises(ValueError, match="signature_scheme"):
        table.open("a", {**INFO, "signature_scheme": "none"})
    assert len(table) == 0


async def test_statistics_are_each_hubs(table) -> None:
    table.open("a", INFO)
    statistics = table.statistics()
    assert set(statistics) == {"a"}
    assert statistics["a"]["journal"]["limit"] == 12345


async def test_settings_have_defaults() -> None:
    assert HubTable().settings == HubSettings()


# -- journals on disk -----------------------------------------------------------------------------


def on_disk(directory: Path) -> set[str]:
    """Return the kernels that have files."""
    if not directory.exists():
        return set()
    return {path.name for path in directory.iterdir() if path.is_dir()}


async def open_table(directory: Path, keep: Collection[str] = ()) -> HubTable:
    made = HubTable(HubSettings(journal_dir=str(directory)), link=MemoryKernel)
    await made.open_journal("me", keep)
    return made


async def test_the_files_of_a_kernel_are_removed_with_its_hub(tmp_path) -> None:
    table = await open_table(tmp_path)
    for kernel_id in "ab":
        table.open(kernel_id, INFO).announce("starting")
    await until(lambda: on_disk(tmp_path) == {"a", "b"}, "both have files")
    await table.close("a")
    await until(lambda: on_disk(tmp_path) == {"b"}, "the files of a are removed")
    await table.aclose()
    assert on_disk(tmp_path) == set()


async def test_files_that_are_kept_belong_to_the_next_table(tmp_path) -> None:
    table = await open_table(tmp_path)
    for kernel_id in "ab":
        table.open(kernel_id, INFO).announce("starting")
    await table.aclose(keep=True)
    assert on_disk(tmp_path) == {"a", "b"}
    table = await open_table(tmp_path, keep=["a"])
    assert on_disk(tmp_path) == {"a"}
    assert table.open("a", INFO).journal.next_seq == 1
    await table.close("a")
    assert table.open("a", INFO).journal.next_seq == 0, (
        "another kernel with the same id starts at zero"
    )
    await table.aclose()


async def test_files_of_another_kernel_with_the_same_id_are_not_used(tmp_path) -> None:
    table = await open_table(tmp_path)
    table.open("a", INFO).announce("starting")
    await table.aclose(keep=True)
    table = await open_table(tmp_path, keep=["a"])
    assert table.open("a", {**INFO, "key": "another"}).journal.next_seq == 0
    await table.aclose()


async def test_files_without_the_mark_of_their_kernel_are_not_used(tmp_path) -> None:
    table = await open_table(tmp_path)
    table.open("a", INFO).announce("starting")
    await table.aclose(keep=True)
    (tmp_path / "a" / "state.log").write_bytes(b"")
    table = await open_table(tmp_path, keep=["a"])
    hub = table.open("a", INFO)
    assert (hub.journal.next_seq, hub.notices.adopted) == (0, False)
    await table.aclose()


async def test_only_an_adopted_kernel_that_waits_goes_on_with_files(tmp_path) -> None:
    for adopted, frames in ((True, 1), (False, 0)):
        table = await open_table(tmp_path)
        table.open("a", INFO).announce("starting")
        await table.aclose(keep=True)
        table = await open_table(tmp_path, keep=["a"])
        assert table.open("a", None, adopted=adopted).journal.next_seq == frames
        await table.aclose()


async def test_a_hub_that_cannot_be_made_leaves_no_files(tmp_path) -> None:
    table = await open_table(tmp_path)
    for _ in range(2):
        with pytest.raises(ValueError, match="shell_port"):
            table.open("a", {**INFO, "shell_port": 0})
    hub = table.open("a", INFO)
    assert not hub.notices.adopted
    hub.announce("starting")
    await table.aclose(keep=True)
    table = await open_table(tmp_path, keep=["a"])
    with pytest.raises(ValueError, match="shell_port"):
        table.open("a", {**INFO, "shell_port": 0})
    hub = table.open("a", INFO)
    assert (hub.journal.next_seq, hub.notices.adopted) == (1, True), "the kernel's own files stay"
    await table.aclose()


async def test_files_of_a_kernel_without_a_hub_can_be_removed(tmp_path) -> None:
    table = await open_table(tmp_path)
    table.open("a", INFO).announce("starting")
    await table.aclose(keep=True)
    table = await open_table(tmp_path, keep=["a"])
    await table.close("a")
    await until(lambda: on_disk(tmp_path) == set(), "the files are removed")
    await table.aclose()


async def test_without_a_directory_there_is_no_journal_on_disk() -> None:
    table = HubTable(link=MemoryKernel)
    await table.open_journal()
    table.open("a", INFO)
    await table.open_journal()
    await table.aclose()


async def test_a_journal_is_opened_once_and_before_the_hubs(tmp_path) -> None:
    table = await open_table(tmp_path)
    with pytest.raises(RuntimeError, match="before a hub"):
        await table.open_journal()
    await table.aclose()
    table = HubTable(HubSettings(journal_dir=str(tmp_path)), link=MemoryKernel)
    table.open("a", INFO)
    with pytest.raises(RuntimeError, match="before a hub"):
        await table.open_journal()
    await table.aclose()


async def test_a_kernel_that_comes_again_at_once_has_a_journal_on_disk(tmp_path) -> None:
    table = await open_table(tmp_path)
    table.open("a", INFO).announce("starting")
    await until(lambda: on_disk(tmp_path) == {"a"}, "it has files")
    closing = table.close("a")
    hub = table.open("a", INFO)
    await closing
    assert not hub.notices.adopted
    hub.announce("starting")
    await until(lambda: not hub.journal.unwritten_bytes, "it is written")
    assert hub.journal.durable
    await table.aclose(keep=True)
    table = await open_table(tmp_path, keep=["a"])
    assert table.open("a", INFO).journal.next_seq == 1
    await table.aclose()


async def test_the_end_of_a_kernel_does_not_wait_for_a_disk_that_hangs(
    tmp_path, monkeypatch
) -> None:
    hangs, go = threading.Event(), threading.Event()
    write = Disk.write

    def write_later(disk: Disk, *args: Any) -> Any:
        hangs.set()
        assert go.wait(TIMEOUT)
        return write(disk, *args)

    monkeypatch.setattr(Disk, "write", write_later)
    table = await open_table(tmp_path)
    hub = table.open("a", INFO)
    client = MemoryClient()
    hub.attach(client, V1)
    hub.announce("starting")
    assert await asyncio.to_thread(hangs.wait, 60)
    await table.close("a")
    assert not go.is_set()
    assert client.closed_with == (HubClosed.close_code, "the kernel was shut down")
    assert on_disk(tmp_path) == {"a"}
    go.set()
    await table.aclose(keep=True)  # which waits for the removal
    assert on_disk(tmp_path) == set()


async def test_statistics_of_the_journals(tmp_path) -> None:
    table = await open_table(tmp_path)
    assert table.journal_statistics()["kernels"] == 0
    table.open("a", INFO).announce("starting")
    await until(lambda: table.journal_statistics()["bytes"], "it has files")
    found = table.journal_statistics()
    assert (found["kernels"], found["failing_kernels"]) == (1, 0)
    await table.close("a")
    found = table.journal_statistics()
    assert (found["kernels"], found["bytes"]) == (0, 0)
    await table.aclose()
    assert table.journal_statistics() == {}


async def open_table_without_keeper(directory: Path, unkept: str, *keep: str) -> HubTable:
    table = HubTable(HubSettings(journal_dir=str(directory)), link=MemoryKernel)
    table.keep_connections(None, unkept)
    await table.open_journal("me", keep)
    return table


async def test_the_next_bridge_says_once_why_connections_had_ended(tmp_path, caplog) -> None:
    first = await open_table_without_keeper(tmp_path, "link is pyzmq")
    for kernel_id in "ab":
        hub = first.open(kernel_id, INFO)
        hub.announce("starting")
        assert hub.cut_because is None
    first.accept_no_more()
    assert "missing" not in caplog.text
    await first.aclose(keep=True)
    second = await open_table_without_keeper(tmp_path, "journal_dir is empty", "a", "b")
    hubs = [second.open(kernel_id, INFO, adopted=True) for kernel_id in "ab"]
    assert [hub.cut_because for hub in hubs] == ["link is pyzmq"] * 2, "that of the earlier bridge"
    [text] = [hub.notices.taken_over(b"{}").content for hub in hubs[:1]]
    assert b"because link is pyzmq" in text
    second.accept_no_more()
    [line] = [each for each in caplog.messages if "is missing" in each]
    assert line.endswith("is missing: link is pyzmq. Kernels: a, b")
    await second.aclose(keep=False)


async def test_without_a_note_of_an_earlier_bridge_the_present_cause_counts(
    tmp_path, caplog
) -> None:
    table = await open_table_without_keeper(tmp_path, "journal_dir is empty")
    table.accept_no_more()
    hub = table.open("a", INFO, adopted=True)
    assert hub.cut_because == "journal_dir is empty"
    assert caplog.messages[-1].endswith("is missing: journal_dir is empty. Kernels: a")
    await table.aclose()


@pytest.mark.skipif(not is_supported(), reason="needs Linux")
async def test_a_protocol_whose_connections_end_with_the_bridge_is_noted(tmp_path) -> None:
    made: list[MemoryKernel] = []

    def link(*args: Any) -> MemoryKernel:
        made.append(MemoryKernel(*args))
        return made[-1]

    keeper = Keeper(Holder(tmp_path / "holder", tmp_path, 1, 1.0), logging.getLogger("kbridge"))
    table = HubTable(HubSettings(journal_dir=str(tmp_path / "journal")), link=link)
    table.keep_connections(keeper)
    await table.open_journal("me")
    hub = table.open("a", INFO)
    made[0].connect()
    signer = Signer(KEY)
    probe = parse(*made[0].sent[-1], signer)
    info = {"protocol_version": "4.1", "status": "ok"}
    reply = build(
        probe.channel, "kernel_info_reply", info, session="s", parent_header=probe.header, date=""
    )
    made[0].say(probe.channel, serialize(reply, signer))
    assert not hub.connections_stay
    await table.aclose(keep=True)
    following = await open_table_without_keeper(tmp_path / "journal", "link is pyzmq", "a")
    assert following.open("a", INFO, adopted=True).cut_because == "the kernel uses protocol 4"
    await following.aclose()
