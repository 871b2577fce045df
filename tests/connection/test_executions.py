"""Queries for executions, and the replies to them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from kbridge.connection.executions import (
    STATES,
    ExecutionFilter,
    find_execution,
    forget_execution,
    list_executions,
    parse_filter,
)
from kbridge.errors import Conflict, InvalidRequest, NotFound
from kbridge.hub.hub import Hub
from kbridge.hub.table import HubTable
from tests.hub.rig import INFO, KEY
from tests.support.execution_script import ExecutionScript
from tests.support.memory import MemoryKernels

CASES: list[tuple[dict[str, list[bytes]], ExecutionFilter]] = [
    ({}, ExecutionFilter()),
    ({"state": [b"running,waiting"]}, ExecutionFilter(frozenset({"running", "waiting"}))),
    ({"state": [b"done", b" error , aborted"]}, ExecutionFilter(frozenset(STATES[2:]))),
    ({"state": [b""], "session_id": [b""], "cell_id": [b""]}, ExecutionFilter()),
    ({"session_id": [b"s"], "cell_id": ["é,&".encode()]}, ExecutionFilter(frozenset(), "s", "é,&")),
    ({"limit": [b"1"]}, ExecutionFilter(limit=1)),
    ({"limit": [b"999999999"]}, ExecutionFilter(limit=999_999_999)),
    ({"limit": [b""]}, ExecutionFilter()),
    ({"token": [b"a", b"b"], "1700000000": [b""]}, ExecutionFilter()),
]


@pytest.mark.parametrize(("arguments", "wanted"), CASES)
def test_queries_are_parsed(arguments: dict[str, list[bytes]], wanted: ExecutionFilter) -> None:
    assert parse_filter(arguments) == wanted


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"state": [b"busy"]}, "'busy' is not a state; states are waiting, running, done"),
        ({"state": [b"done,\xff\n"]}, r"'\ufffd' is not a state"),
        ({"state": [b"x" * 9999]}, f"'{'x' * 40}' is not a state"),
        ({"limit": [b"0"]}, "limit is not a positive number"),
        ({"limit": [b"-1"]}, "limit is not a positive number"),
        ({"limit": [b"1.5"]}, "limit is not a positive number"),
        ({"limit": ["²".encode()]}, "limit is not a positive number"),
        ({"limit": [b"9" * 1000]}, "limit is not a positive number"),
        ({"limit": [b"9" * 10]}, "limit is not a positive number"),
        ({"limit": [b"1", b"2"]}, "limit is given more than once"),
        ({"session_id": [b"a", b"a"]}, "session_id is given more than once"),
        ({"session_id": [b"\xff"]}, "session_id is not UTF-8"),
        ({"cell_id": [b"x" * 1025]}, "cell_id has more than 1024 bytes"),
    ],
)
def test_invalid_queries_are_refused_with_the_reason(
    arguments: dict[str, list[bytes]], says: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_filter(arguments)
    assert refused.value.reason.startswith(says)


@pytest.fixture
async def script() -> AsyncIterator[ExecutionScript]:
    """A hub with one execution that has ended, one that runs, and two that wait."""
    links = MemoryKernels()
    table = HubTable(link=links)
    script = ExecutionScript(table.open("a-kernel", INFO), links.latest, KEY)
    script.submit("first", cell="c1")
    script.submit("second", cell="c2", session="another-page")
    script.submit("third", cell="c1")
    script.submit("fourth")
    script.finish("first")
    script.begin("second")
    yield script
    await table.aclose()


@pytest.fixture
def hub(script: ExecutionScript) -> Hub:
    return script.hub


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ({}, ["first", "second", "third", "fourth"]),
        ({"limit": [b"2"]}, ["third", "fourth"]),
        ({"state": [b"waiting"]}, ["third", "fourth"]),
        ({"state": [b"waiting,running"], "limit": [b"9"]}, ["second", "third", "fourth"]),
        ({"state": [b"aborted"]}, []),
        ({"session_id": [b"another-page"]}, ["second"]),
        ({"cell_id": [b"c1"]}, ["first", "third"]),
        ({"cell_id": [b"c1"], "limit": [b"1"]}, ["third"]),
        ({"cell_id": [b"c1"], "state": [b"done"]}, ["first"]),
        ({"cell_id": [b"no such cell"]}, []),
    ],
)
async def test_the_list_has_the_matching_executions_newest_last(
    hub: Hub, query: dict[str, list[bytes]], ids: list[str]
) -> None:
    found = json.loads(await list_executions(hub, parse_filter(query)))
    assert [execution["id"] for execution in found] == ids


async def test_one_execution_is_described_as_in_the_list(hub: Hub) -> None:
    running = ExecutionFilter(states=frozenset({"running"}))
    [listed] = json.loads(await list_executions(hub, running))
    assert find_execution(hub, "second") == listed
    assert (listed["id"], listed["session_id"], listed["cell_id"], listed["state"]) == (
        "second",
        "another-page",
        "c2",
        "running",
    )


async def test_the_record_of_an_execution_that_has_ended_can_be_deleted(hub: Hub) -> None:
    forget_execution(hub, "first")
    with pytest.raises(NotFound):
        find_execution(hub, "first")
    with pytest.raises(NotFound):
        forget_execution(hub, "first")
    with pytest.raises(Conflict):
        forget_execution(hub, "third")  # it waits
    found = json.loads(await list_executions(hub, ExecutionFilter()))
    assert [execution["id"] for execution in found] == ["second", "third", "fourth"]


async def test_a_long_list_is_written_in_many_turns(script: ExecutionScript) -> None:
    """The event loop serves other clients in between."""
    for number in range(500):
        script.submit(f"e{number}", session="s")
    turns = 0
    listing = asyncio.ensure_future(list_executions(script.hub, ExecutionFilter(session_id="s")))
    while not listing.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 10
    found = json.loads(listing.result())
    assert [execution["id"] for execution in found] == [f"e{n}" for n in range(500)]


async def test_a_kernel_without_a_hub_has_no_executions() -> None:
    assert await list_executions(None, ExecutionFilter()) == "[]"
    for call in (find_execution, forget_execution):
        with pytest.raises(NotFound, match="no execution has the id 'x'"):
            call(None, "x")
