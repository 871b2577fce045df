"""SQLite files as several servers use them; `test_cluster_store.py` has the rows."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing

import pytest
from sqlalchemy import text

from kbridge.errors import RegistryError
from kbridge.kernels.registry import cluster_registry
from kbridge.kernels.registry import engine as engines
from kbridge.kernels.registry.cluster_registry import ClusterRegistry
from kbridge.kernels.registry.models import Replica
from kbridge.kernels.registry.registry import Registry

ROWS = text("SELECT count(*) FROM kbridge_clusters")
ADD = text("INSERT INTO kbridge_clusters VALUES (hex(randomblob(8)), 'secret', 0)")
# Ends without closing the connection, as a program that is killed.
KILLED = """
import os, sys
from sqlalchemy import text
from kbridge.kernels.registry.registry import Registry

registry = Registry(sys.argv[1])
registry.shared = True
with registry.transaction("written to") as connection:
    connection.execute(text(sys.argv[2]))
    connection.commit()
    os._exit(0)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runtime" / "registry.sqlite"


@pytest.fixture
def open_registry(path):
    made = []

    def connect(*, shared=True):
        registry = Registry(str(path))
        registry.shared = shared
        registry.prepare()
        made.append(registry)
        return registry

    yield connect
    for registry in made:
        registry.close()


@pytest.fixture
def local(monkeypatch):
    """The file is on a local disk."""
    monkeypatch.setattr(engines, "shares_memory", lambda _: True)


def add(registry):
    with registry.transaction("written to") as connection:
        connection.execute(ADD)


def count(registry):
    with registry.transaction("read") as connection:
        return connection.execute(ROWS).scalar_one()


def has_log(path):
    """Return True if a file is used with a write-ahead log (section 1.3.3 of SQLite's format)."""
    return path.read_bytes()[18:20] == b"\2\2"


@pytest.mark.usefixtures("local")
def test_servers_that_share_a_file_use_a_log(open_registry, path):
    add(open_registry())
    assert has_log(path)


@pytest.mark.usefixtures("local")
def test_a_single_server_does_not(open_registry, path):
    add(open_registry(shared=False))
    assert not has_log(path)


@pytest.mark.usefixtures("local")
def test_readers_do_not_wait_for_a_writer(open_registry):
    a, b = open_registry(), open_registry()
    add(a)
    assert count(b) == 1
    with a.transaction("written to") as connection:
        connection.execute(ADD)
        assert count(b) == 1
    assert count(b) == 2


@pytest.mark.usefixtures("local")
def test_only_the_owner_can_read_the_files_of_the_log(open_registry, path):
    registry = open_registry()
    old = os.umask(0)
    try:
        with registry.transaction("written to") as connection:
            connection.execute(ADD)
            modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in path.parent.iterdir()}
        names = (path.name, f"{path.name}-wal", f"{path.name}-shm")
        assert modes == dict.fromkeys(names, 0o600)
    finally:
        os.umask(old)


@pytest.mark.usefixtures("local")
def test_a_copy_of_the_file_alone_is_complete_and_can_replace_it(open_registry, path):
    a, b = open_registry(), open_registry()
    add(a)
    copy = path.with_suffix(".copy")
    shutil.copy2(path, copy)
    add(b)
    assert sorted(path.parent.iterdir()) == sorted([path, copy]), "no log is left"
    copy.replace(path)
    assert (count(a), count(b)) == (1, 1)


@pytest.mark.usefixtures("local")
def test_older_programs_read_the_file(open_registry, path):
    registry = open_registry()
    add(registry)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute(str(ROWS)).fetchone() == (1,)
    assert count(open_registry(shared=False)) == 1


def test_nothing_is_lost_with_a_server_that_is_killed(open_registry, path):
    open_registry()
    subprocess.run([sys.executable, "-c", KILLED, str(path), str(ADD)], check=True)
    assert count(open_registry()) == 1


def test_there_is_no_log_where_programs_share_no_memory(open_registry, path, monkeypatch):
    monkeypatch.setattr(engines, "shares_memory", lambda _: True)
    add(open_registry())
    assert has_log(path)
    monkeypatch.setattr(engines, "shares_memory", lambda _: False)
    for shared in (True, False):
        registry = open_registry(shared=shared)
        add(registry)
        assert not has_log(path)
    assert count(registry) == 3


def test_a_cluster_is_warned_of_a_network_file_system(path, monkeypatch):
    replica = Replica("a", "c", "http://a:8888", "here", 7, "start", "1.0")
    monkeypatch.setattr(cluster_registry, "file_system_of", lambda _: "nfs4")
    for local, said in ((True, False), (False, True)):
        monkeypatch.setattr(cluster_registry, "shares_memory", lambda _, local=local: local)
        warning = ClusterRegistry(str(path), replica).warning
        assert ("nfs4" in warning and "registry_url" in warning) == said
    other = ClusterRegistry("nosuch://h/d", replica)
    assert not other.warning
    with pytest.raises(RegistryError, match=r"KbridgeApp\.registry_url") as unusable:
        other.store.view()
    assert "none" not in str(unusable.value)


def test_a_file_that_is_gone_is_not_made_for_all_to_read(open_registry, path):
    registry = open_registry()
    add(registry)
    path.unlink()
    with pytest.raises(RegistryError, match="cannot be opened") as gone:
        count(registry)
    assert "registry-url=none" in str(gone.value)
    assert not path.exists()
    registry.prepare()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
