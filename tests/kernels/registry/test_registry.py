"""The registry on real SQLite files, and their possible errors."""

import os
import re
import sqlite3
import stat
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from kbridge.errors import RegistryError
from kbridge.kernels.lifecycle.processes import ProcessState
from kbridge.kernels.registry.models import KernelRow, Owner, SessionRow, decode, encode
from kbridge.kernels.registry.registry import Registry, secrets_of
from kbridge.kernels.registry.writer import RegistryWriter

HERE = Owner("127.0.0.1:8888/", "here", 100, "first")
NEXT = Owner("127.0.0.1:8888/", "here", 200, "second")
ELSEWHERE = Owner("127.0.0.1:9999/", "here", 300, "third")
FAR = Owner("127.0.0.1:8888/", "far", 100, "first")
# Keeps a file locked until its stdin is closed.
LOCKER = (
    "import sqlite3, sys\n"
    "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
    "connection.execute('BEGIN EXCLUSIVE')\n"
    "print('locked', flush=True)\n"
    "sys.stdin.read()\n"
)
# Writes rows to a registry until its disk is full: here, until no file may grow.
FILLER = """
import resource, sys
from kbridge.errors import RegistryError
from kbridge.kernels.registry.models import KernelRow, Owner
from kbridge.kernels.registry.registry import Registry

registry, owner = Registry(sys.argv[1]), Owner("a", "h", 1, "b")
def write(name, size):
    record = KernelRow(name, "python3", "used", 1, "b", "/log", "x" * size)
    registry.write(owner, {("kernel", name): record})
write("first", 10)
resource.setrlimit(resource.RLIMIT_FSIZE, (registry.path.stat().st_size, resource.RLIM_INFINITY))
try:
    write("second", 100_000)
except RegistryError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
write("third", 100_000)
"""
LOADED = "import sys; sys.exit('sqlalchemy' in sys.modules)"


def nobody_lives(pid, born):
    return ProcessState.GONE


def everybody_lives(pid, born):
    return ProcessState.RUNNING


def kernel(name="k", **fields):
    usual = {
        "kernel_name": "python3",
        "role": "used",
        "pid": 7,
        "start_id": "b",
        "log_path": "/l",
        "details": encode({"connection": {"key": b"\x00secret"}}),
    }
    return KernelRow(kernel_id=name, **{**usual, **fields})


def session(name="s", kernel_id="k"):
    return SessionRow(name, kernel_id, "a/b.ipynb", None, "notebook")


def put(registry, owner, *records):
    rows = {
        ("kernel", r.kernel_id) if isinstance(r, KernelRow) else ("session", r.session_id): r
        for r in records
    }
    registry.write(owner, rows)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runtime" / "registry.sqlite"


@pytest.fixture
def registry(path):
    made = Registry(str(path))
    made.prepare()
    yield made
    made.close()


def test_what_was_written_is_claimed(registry):
    put(registry, HERE, kernel(), kernel("other", role="pooled"), session())
    claim = registry.claim(NEXT, nobody_lives)
    assert {k.kernel_id: k for k in claim.kernels} == {
        "k": kernel(),
        "other": kernel("other", role="pooled"),
    }
    assert claim.sessions == [session()]
    assert decode(claim.kernels[0].details)["connection"]["key"] == b"\x00secret"


def test_what_is_claimed_belongs_to_who_claimed_it(registry):
    put(registry, HERE, kernel())
    assert registry.claim(NEXT, nobody_lives).kernels
    third = Owner(NEXT.address, NEXT.hostname, 300, "third")

    def one_lives(pid, born):
        lives = (pid, born) == (NEXT.pid, NEXT.start_id)
        return ProcessState.RUNNING if lives else ProcessState.GONE

    found = registry.claim(third, one_lives)
    assert not found.kernels


def test_rows_of_a_server_that_lives_are_left_alone(registry):
    put(registry, HERE, kernel(), session())
    claim = registry.claim(NEXT, everybody_lives)
    assert (claim.kernels, claim.sessions, claim.elsewhere) == ([], [], {})
    assert registry.claim(NEXT, nobody_lives).kernels


def test_rows_of_other_addresses_are_counted_and_left_alone(registry):
    put(registry, ELSEWHERE, kernel("a"), kernel("b"))
    put(registry, FAR, kernel("c"))
    claim = registry.claim(NEXT, nobody_lives)
    assert (claim.kernels, claim.elsewhere) == ([], {ELSEWHERE.address: 2})
    assert len(registry.claim(ELSEWHERE, nobody_lives).kernels) == 2
    assert len(registry.claim(FAR, nobody_lives).kernels) == 1


def test_of_two_that_start_at_once_one_gets_a_kernel(registry, path):
    put(registry, HERE, *(kernel(f"k{i}") for i in range(20)))
    other = Registry(str(path))
    found = []

    def meanwhile(pid, born):
        if not found:  # the other server continues when this transaction has ended
            found.append(born)
        return ProcessState.GONE if born == HERE.start_id else ProcessState.RUNNING

    mine = registry.claim(NEXT, meanwhile).kernels
    theirs = other.claim(Owner(NEXT.address, NEXT.hostname, 300, "third"), meanwhile).kernels
    other.close()
    assert (len(mine), len(theirs)) == (20, 0)


def test_rows_are_replaced_and_taken_out(registry):
    put(registry, HERE, kernel(), kernel("gone"), session(), session("gone"))
    registry.write(
        HERE,
        {
            ("kernel", "k"): kernel(pid=8),
            ("kernel", "gone"): None,
            ("session", "gone"): None,
            ("session", "never was"): None,
        },
    )
    claim = registry.claim(NEXT, nobody_lives)
    assert claim.kernels == [kernel(pid=8)]
    assert claim.sessions == [session()]


def test_hundreds_of_rows(registry):
    put(registry, HERE, *(kernel(f"k{i}") for i in range(1000)))
    registry.write(HERE, {("kernel", f"k{i}"): None for i in range(999)})
    assert [k.kernel_id for k in registry.claim(NEXT, nobody_lives).kernels] == ["k999"]


def test_files_are_their_owners_alone(registry, path):
    old = os.umask(0)
    try:
        put(registry, HERE, kernel())
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM kbridge_kernels")
            files = sorted(path.parent.iterdir())
            assert [stat.S_IMODE(f.stat().st_mode) for f in files] == [0o600, 0o600], files
            connection.execute("ROLLBACK")
    finally:
        os.umask(old)


def test_a_file_that_others_could_read_is_closed_to_them(path):
    path.parent.mkdir()
    path.touch()
    path.chmod(0o644)
    Registry(str(path)).prepare()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_symbolic_link_is_not_followed(path, tmp_path):
    path.parent.mkdir()
    path.symlink_to(tmp_path / "somewhere")
    with pytest.raises(RegistryError):
        Registry(str(path)).prepare()


def test_a_file_without_rows_loads_nothing(registry, path):
    program = (
        "import sys\n"
        "from kbridge.kernels.registry.models import Owner\n"
        "from kbridge.kernels.registry.registry import Registry\n"
        "registry = Registry(sys.argv[1]); registry.prepare()\n"
        "assert not registry.claim(Owner('a', 'h', 1, 'b'), None).kernels\n" + LOADED
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program, str(path)], check=True)
        put(registry, HERE, kernel())
        registry.write(HERE, {("kernel", "k"): None})


# Errors of the file


@pytest.mark.parametrize(
    "content", [b"this is no database at all" * 100, b"SQLite format 3\0" * 99]
)
def test_a_damaged_file(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    registry = Registry(str(path))
    registry.prepare()
    with pytest.raises(RegistryError, match="damaged") as caught:
        registry.claim(NEXT, nobody_lives)
    assert str(path) in str(caught.value)
    assert "--registry-url=none" in str(caught.value)


def test_a_file_that_was_cut_short(registry, path):
    put(registry, HERE, *(kernel(f"k{i}", details="x" * 2000) for i in range(20)))
    registry.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(RegistryError, match=f"{path} cannot be read: it is damaged"):
        registry.claim(NEXT, nobody_lives)


def test_another_version(registry, path):
    put(registry, HERE, kernel())
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE kbridge_schema SET version = 99")
    newer = Registry(str(path))
    with pytest.raises(RegistryError, match="of version 99, and this kbridge knows 5") as refused:
        newer.claim(NEXT, nobody_lives)
    assert str(path) in str(refused.value)
    assert "--registry-url=none" in str(refused.value)
    newer.close()


def test_rows_of_a_server_that_cannot_be_seen_are_left_alone(registry):
    put(registry, HERE, kernel("a"), kernel("b"), session())
    claim = registry.claim(NEXT, lambda *_: ProcessState.HIDDEN)
    assert (claim.kernels, claim.sessions, claim.hidden) == ([], [], 2)
    assert len(registry.claim(NEXT, nobody_lives).kernels) == 2


def test_a_locked_file(registry, path):
    put(registry, HERE, kernel())
    command = [sys.executable, "-c", LOCKER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as locker:
        assert locker.stdout.readline() == "locked\n"
        with pytest.raises(RegistryError, match="another program keeps it locked") as caught:
            registry.claim(NEXT, nobody_lives)
        assert str(path) in str(caught.value)
        with pytest.raises(RegistryError, match="cannot be written to: another program"):
            put(registry, HERE, kernel("other"))
        locker.stdin.close()
    put(registry, HERE, kernel("other"))
    assert len(registry.claim(NEXT, nobody_lives).kernels) == 2


def test_a_place_where_no_file_can_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RegistryError, match="cannot be opened"):
        Registry(str(tmp_path / "file" / "registry.sqlite")).prepare()
    with pytest.raises(RegistryError, match="cannot be opened: Is a directory"):
        Registry(str(tmp_path)).prepare()


def test_a_directory_that_may_not_be_written_to():
    program = (
        "import os, sys\n"
        "from kbridge.kernels.registry.registry import Registry\n"
        "if os.geteuid() == 0: os.seteuid(65534)  # root may do anything\n"
        "Registry(sys.argv[1]).prepare()\n"
    )
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o555)
        path = Path(directory, "registry.sqlite")
        command = [sys.executable, "-c", program, str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert f"The registry {path} cannot be opened: Permission denied" in done.stderr
        # SQLite also writes files beside the database.
        path.touch()
        os.chown(path, 65534 if os.geteuid() == 0 else -1, -1)
        done = subprocess.run(command, capture_output=True, text=True)
        assert f"its directory {directory} may not be written to" in done.stderr
        Path(directory).chmod(0o755)


@pytest.mark.skipif(sys.platform != "linux", reason="limits on files differ elsewhere")
def test_a_disk_that_is_full(path):
    path.parent.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FILLER, str(path)], capture_output=True, text=True, check=True
    )
    assert f"The registry {path} cannot be written to: " in done.stdout
    assert re.search("there is no room left on its disk|or has no room left", done.stdout)
    assert "xxxx" not in done.stdout, "rows that could not be written are discarded"
    with closing(Registry(str(path))) as registry:
        claim = registry.claim(Owner("a", "h", 2, "c"), nobody_lives)
    assert [k.kernel_id for k in claim.kernels] == ["first", "third"]


def test_a_file_that_vanishes(registry, path):
    put(registry, HERE, kernel())
    path.unlink()
    with pytest.raises(RegistryError, match="has been removed"):
        put(registry, HERE, kernel("other"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    put(registry, HERE, kernel(), kernel("other"))
    assert len(registry.claim(NEXT, nobody_lives).kernels) == 2


# URLs


def test_urls_of_files(path):
    for url in (f"sqlite:///{path}", f"sqlite+pysqlite:///{path}", f"sqlite:///{path}?timeout=1"):
        registry = Registry(url)
        assert registry.path == path
        assert registry.name == str(path)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_registry_in_memory_is_none(url):
    with pytest.raises(RegistryError, match="memory"):
        Registry(url).prepare()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql+pg8000://me:top%40secret@db.example:1/k", "Python module pg8000 is missing"),
        ("nosuch://me:top%40secret@db.example/k", "nosuch"),
        ("postgresql+pg8000://me:top%40secret@db.example:port/k", "cannot be read"),
        ("post gres://me:top%40secret@db.example", "not a URL|no URL|that is"),
    ],
)
def test_other_databases_without_their_password(url, words):
    registry = Registry(url)
    registry.prepare()
    with pytest.raises(RegistryError, match=words) as caught:
        registry.claim(NEXT, nobody_lives)
    assert "db.example" in str(caught.value)
    for secret in ("top%40secret", "top@secret"):
        assert secret not in str(caught.value) + repr(caught.value.__cause__)


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("postgresql://me@h/k", {"PGPASSWORD"}),
        ("postgresql+psycopg://h/k", {"PGPASSWORD"}),
        ("sqlite:////var/lib/postgres/k", set()),
        ("/var/lib/postgres/k", set()),
    ],
)
def test_the_variable_of_a_password_is_known(url, names):
    registry = Registry(url)
    assert registry.secret_variables == names
    registry.close()
    assert RegistryWriter(registry).secret_variables == names
    assert RegistryWriter().secret_variables == set()


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        ("postgresql://me:s3cret@h/k", {"s3cret"}),
        ("postgresql+psycopg://me:a:b@c@h/k", {"a:b@c"}),
        ("postgresql://me:a%40b@h/k", {"a%40b", "a@b"}),
        ("postgresql://me:wh?t@h/k", {"wh?t"}),
        ("postgresql://me@h/k?sslmode=require&password=a%2Fb+c", {"a%2Fb+c", "a/b+c", "a/b c"}),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Dx", {"PWD%3Dx", "PWD=x"}),
        ("postgresql://me@h/k", set()),
        ("sqlite:////tmp/a:b@c", set()),
        ("/tmp/a:b@c", set()),
        ("none", set()),
    ],
)
def test_passwords_in_urls(url, secrets):
    assert secrets_of(url) == secrets


def test_a_password_among_the_parameters_is_not_told():
    url = "postgresql+pg8000://me:s3cret@h:port/k?password=h1dden"
    with pytest.raises(RegistryError) as caught:
        Registry(url).claim(NEXT, nobody_lives)
    assert str(caught.value).startswith("The registry postgresql+pg8000://me:***@h:port/k cannot")
    assert not {"s3cret", "h1dden"} & set(re.findall(r"\w+", str(caught.value)))


@pytest.mark.parametrize("url", ["~no-such-user/k.sqlite", "sqlite:///~no-such-user/k.sqlite"])
def test_a_home_that_nobody_has(url):
    with pytest.raises(RegistryError, match=r"~no-such-user/k\.sqlite"):
        Registry(url)


def test_no_record_shows_a_key():
    assert "secret" not in repr(kernel())


@pytest.mark.parametrize("text", ["[]", "nothing", "5"])
def test_details_that_are_none(text):
    with pytest.raises(ValueError, match=r".*"):
        decode(text)


def test_details_that_json_does_not_know():
    with pytest.raises(TypeError, match="object is not JSON"):
        encode({"a": object()})
