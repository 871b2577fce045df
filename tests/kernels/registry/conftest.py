"""Registries in each kind of database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.postgresql import PostgreSQL, postgresql


@pytest.fixture(scope="session")
def database_server() -> Iterator[PostgreSQL]:
    with postgresql() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'database' / 'registry.sqlite'}"
    server: PostgreSQL = request.getfixturevalue("database_server")
    return server.new_database()


@pytest.fixture
def connect(database_url: str) -> Iterator[Callable[[], object]]:
    from kbridge.kernels.registry.registry import Registry

    made: list[Registry] = []

    def open_registry() -> Registry:
        """Open the database once more, as another server does."""
        registry = Registry(database_url)
        registry.prepare()
        made.append(registry)
        return registry

    yield open_registry
    for registry in made:
        registry.close()
