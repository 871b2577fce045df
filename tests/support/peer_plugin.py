"""A pytest plugin for the test suite of jupyter_server, which replaces its connection class.

It is copied beside the unpacked suite and loaded there in a separate process, so it imports only
installed modules.

Wherever jupyter_server says `ZMQChannelsWebsocketConnection` (the default of
`ServerApp.kernel_websocket_connection_class` is such a place, and the tests that make one by hand)
it gets the class that `--connection-class` names. A gateway client keeps its own class.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupyter_server.serverapp
import jupyter_server.services.kernels.connection.base as base
import jupyter_server.services.kernels.connection.channels as channels
import pytest

CLASS = "ZMQChannelsWebsocketConnection"
FUNCTIONS = (
    "serialize_binary_message",
    "deserialize_binary_message",
    "serialize_msg_to_ws_v1",
    "deserialize_msg_from_ws_v1",
)
MADE = "connections made"


class Report:
    """The outcome of each test, in the process that controls the workers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.collected: set[str] = set()
        self.outcomes: dict[str, str] = {}
        self.made: dict[str, int] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            earlier = self.outcomes.get(report.nodeid, "").removeprefix("passed")
            failure = f"failed in {report.when}:\n{report.longreprtext}\n"
            self.outcomes[report.nodeid] = earlier + failure
        elif report.skipped:
            self.outcomes[report.nodeid] = f"skipped: {report.longrepr}"
        elif report.when == "call":
            self.outcomes[report.nodeid] = "passed"
        if report.when == "teardown":
            self.made[report.nodeid] = dict(report.user_properties).get(MADE, 0)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        self.collected.update(getattr(node, "workeroutput", {}).get("collected", ()))

    def pytest_sessionfinish(self) -> None:
        found = {
            "collected": sorted(self.collected),
            "outcomes": self.outcomes,
            "made": self.made,
        }
        self.path.write_text(json.dumps(found), encoding="utf-8")


REPORT = pytest.StashKey[Report]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--connection-class", help="what to put in, as module:name")
    parser.addoption("--functions-from", help="a module whose (de)serializers to put in as well")
    parser.addoption("--leave-out", action="append", default=[], help="a test's exact id")
    parser.addoption(
        "--wait-for-kernel",
        action="append",
        default=[],
        help="the id, without parameters, of a test in which websockets open late",
    )
    parser.addoption("--report-to", type=Path, help="where to write what became of each test")


def pytest_configure(config: pytest.Config) -> None:
    # The marker of a plugin that repeats failed tests; here they run once.
    config.addinivalue_line("markers", "flaky: may fail at the first try")
    # The warning of Tornado 6.6 about the requests of these tests.
    config.addinivalue_line("filterwarnings", "ignore:.*HTTPServerRequest:DeprecationWarning")
    connection = pkgutil.resolve_name(config.getoption("--connection-class"))
    setattr(jupyter_server.serverapp, CLASS, connection)
    setattr(channels, CLASS, connection)
    if config.getoption("--functions-from"):
        module = pkgutil.resolve_name(config.getoption("--functions-from"))
        for name in FUNCTIONS:
            setattr(base, name, getattr(module, name))
    if not hasattr(config, "workerinput"):
        config.stash[REPORT] = Report(config.getoption("--report-to"))
        config.pluginmanager.register(config.stash[REPORT])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    collected = [item.nodeid for item in items]
    left_out = set(config.getoption("--leave-out"))
    items[:] = [item for item in items if item.nodeid not in left_out]
    if hasattr(config, "workeroutput"):
        config.workeroutput["collected"] = collected
    elif REPORT in config.stash:
        config.stash[REPORT].collected.update(collected)


@pytest.fixture(autouse=True)
def wait_for_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.nodeid.partition("[")[0] not in request.config.getoption("--wait-for-kernel"):
        return
    connection = getattr(channels, CLASS)
    original = connection.prepare

    async def prepare(self: Any) -> None:
        await original(self)
        await self.request_kernel_info()

    monkeypatch.setattr(connection, "prepare", prepare)


@pytest.fixture(autouse=True)
def count_connections(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    connection = getattr(channels, CLASS)
    made: list[type] = []
    original = connection.__init__

    def counted(self: object, *args: Any, **kwargs: Any) -> None:
        made.append(type(self))
        original(self, *args, **kwargs)

    monkeypatch.setattr(connection, "__init__", counted)
    yield
    request.node.user_properties.append((MADE, made.count(connection)))
