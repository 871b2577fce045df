"""Fixtures for tests with real servers, kernels and browsers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before a module reads it, and for servers: kbridge-speedups is used only by tests that ask for it.
if os.environ.get("KBRIDGE_TEST_SPEEDUPS") != "compiled":
    os.environ["KBRIDGE_PURE"] = "1"

from kbridge.kernels.registry.registry import Registry
from kbridge.link import choice
from kbridge.wire.speedups import Functions
from tests.support.dialects import CODECS
from tests.support.postgresql import PostgreSQL, postgresql
from tests.support.require import require
from tests.support.server import LINK, PEER, Server
from tests.support.signals import reset_ignored_signals
from tests.support.twins import TWINS, used

reset_ignored_signals()
if LINK:  # before a module reads it
    choice.DEFAULT = choice.LinkKind(LINK)  # type: ignore[misc]
# No test fails because the machine is busy.
settings.register_profile("kbridge", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kbridge")

ServerFactory = Callable[..., Server]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A shared server; tests must not change its state or cause errors in its log."""
    require("ipykernel")
    running = Server(tmp_path_factory.mktemp("server")).start()
    try:
        yield running
        running.stop()
        if not PEER:
            running.assert_clean_log()
    finally:
        running.kill()


@pytest.fixture
def new_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerFactory]:
    """Start servers for one test: `new_server(*args, env=..., command=...)`."""
    require("ipykernel")
    running: list[Server] = []

    def start(*args: str, **options: object) -> Server:
        home: Path = tmp_path_factory.mktemp("server")
        running.append(Server(home, *args, **options))  # type: ignore[arg-type]
        return running[-1].start()

    try:
        yield start
    finally:
        for one in running:
            one.kill()


@pytest.fixture(scope="module")
def kernel(server: Server) -> Iterator[str]:
    """The id of an ipykernel that the tests of one module share."""
    kernel_id = server.start_kernel()
    yield kernel_id
    server.stop_kernel(kernel_id)


@pytest.fixture
def own_kernel(server: Server) -> Iterator[str]:
    """The id of an ipykernel for one test, which may break it."""
    kernel_id = server.start_kernel()
    yield kernel_id
    server.stop_kernel(kernel_id)


@pytest.fixture(params=sorted(CODECS))
def dialect(request: pytest.FixtureRequest) -> str:
    """Each of the websocket dialects in turn."""
    return str(request.param)


@pytest.fixture(scope="module", params=TWINS)
def twin(request: pytest.FixtureRequest) -> Iterator[Functions]:
    """Each implementation of the hot path in turn; hubs and decoders use it."""
    with used(request.param) as functions:
        yield functions


@pytest.fixture(scope="session")
def database_server() -> Iterator[PostgreSQL]:
    """A PostgreSQL server; tests that stop it start it again."""
    with postgresql() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'database' / 'registry.sqlite'}"
    running: PostgreSQL = request.getfixturevalue("database_server")
    return running.new_database()


@pytest.fixture
def connect(database_url: str) -> Iterator[Callable[[], Registry]]:
    """Open the database once more, as another server does."""
    made: list[Registry] = []

    def open_registry() -> Registry:
        registry = Registry(database_url)
        registry.prepare()
        made.append(registry)
        return registry

    yield open_registry
    for registry in made:
        registry.close()
