import json
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from jupyter_client.session import Session
from jupyter_server.services.kernels.connection.base import deserialize_msg_from_ws_v1

from benchmarks import __main__ as command
from benchmarks import (
    baseline,
    client,
    measure,
    options,
    page_cache,
    readme,
    registry,
    relay,
    replayer,
    report,
)
from benchmarks.address import Transport
from benchmarks.floor import bare
from benchmarks.load import busy_cores
from benchmarks.measure import BenchmarkError
from benchmarks.page_cache import PageCache
from benchmarks.plot import draw
from benchmarks.rows import (
    ROWS,
    binary,
    cost,
    flood,
    gigabyte,
    message,
    replay,
    stalled,
    viewers,
    worst,
)
from benchmarks.runner import Runner
from benchmarks.servers import (
    BASE,
    EXTENSION,
    HIGH_LIMITS,
    NAMES,
    OURS,
    REFERENCE,
    Server,
    Variant,
)
from benchmarks.table import Figure, Life, Outcome, Row, Settings, Values
from benchmarks.tally import Tally, pump
from kbridge.errors import InvalidMessage
from kbridge.wire import legacy, v1
from kbridge.wire.reader import PARTIAL, FrameReader

ROOT = Path(__file__).parent.parent
TOKEN = "end-0123456789abcdef"


class FakeWebsocket:
    """One end of a socket pair, used instead of a websocket."""

    def __init__(self, sock: socket.socket, unread: bytes = b"") -> None:
        self.sock = sock
        self.unread = unread

    def take_unread(self) -> bytes:
        return self.unread


def server_frame(payload: bytes, opcode: int = client.BINARY) -> bytes:
    length = len(payload)
    if length < 126:
        return struct.pack("!BB", 0x80 | opcode, length) + payload
    if length < 1 << 16:
        return struct.pack("!BBH", 0x80 | opcode, 126, length) + payload
    return struct.pack("!BBQ", 0x80 | opcode, 127, length) + payload


FLOOD = b"".join(
    [
        server_frame(rb"#00000000 a\n"),
        server_frame(b"ack", client.PING),
        server_frame(rb"#00000001 " + b"x" * 300 + rb"\n"),
        server_frame(b"", client.PING),
        server_frame(rb"#00000002 \n#00000003 \n"),
        server_frame(TOKEN.encode()),
    ]
)


def tally_of(unread: bytes, rest: bytes) -> tuple[Tally, bytes]:
    """Return a tally that received a flood in two pieces, and its replies."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        tally = Tally(cast("client.Websocket", FakeWebsocket(ours, unread)), TOKEN)
        if rest:
            theirs.sendall(rest)
            assert pump([tally], timeout=10)
        ours.close()
        return tally, theirs.recv(1000)


def test_tally_counts_the_same_however_the_stream_is_divided() -> None:
    for cut in range(len(FLOOD) + 1):
        tally, answers = tally_of(FLOOD[:cut], FLOOD[cut:])
        assert (tally.lines, tally.frames, tally.nbytes) == (4, 4, len(FLOOD)), cut
        assert tally.done, cut
        pongs = client.masked(b"ack", client.PONG) + client.masked(b"", client.PONG)
        assert answers == pongs, cut


def test_tally_continues_within_a_frame() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        cut = server_frame(TOKEN.encode()) + server_frame(b"ack", client.PING)
        theirs.sendall(FLOOD + cut[:-2])
        tally = Tally(cast("client.Websocket", FakeWebsocket(ours)), TOKEN)
        assert pump([tally], timeout=10)
        theirs.recv(1000)
        tally.arm("end-of-the-second")
        theirs.sendall(cut[-2:] + server_frame(rb"#00000000 \n" + b"end-of-the-second"))
        assert pump([tally], timeout=10)
        assert (tally.lines, tally.frames) == (1, 1)
        assert theirs.recv(1000) == client.masked(b"ack", client.PONG)


def test_tally_skips_long_payloads() -> None:
    long = server_frame(bytes(70_000)) * 3
    tally, _ = tally_of(b"", long + server_frame(TOKEN.encode()))
    assert (tally.frames, tally.lines) == (4, 0)


def test_tally_counts_large_frames_separately() -> None:
    sizes = (69_999, 70_000, 70_001)
    unread = b"".join(server_frame(bytes(size)) for size in sizes) + server_frame(TOKEN.encode())
    tally = Tally(
        cast("client.Websocket", FakeWebsocket(socket.socket(), unread)), TOKEN, 0, 70_000
    )
    tally.sock.close()
    assert (tally.frames, tally.large) == (4, 2)


def test_tally_reports_a_close() -> None:
    with pytest.raises(client.Gone):
        tally_of(server_frame(b"\x03\xe8", client.CLOSE), b"")


def test_pump_reports_a_missing_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(FLOOD[:40])
        tally = Tally(cast("client.Websocket", FakeWebsocket(ours)), TOKEN)
        assert not pump([tally], timeout=0.01)


def test_jupyter_server_reads_the_v1_frames() -> None:
    header = {"msg_id": "ä", "msg_type": "execute_request"}
    parts = [json.dumps(part).encode() for part in (header, {"msg_id": "p"}, {}, {"code": "ü"})]
    frame = client.encode("shell", *parts)
    assert deserialize_msg_from_ws_v1(frame) == ("shell", parts)
    assert client.decode(frame) == ("shell", "execute_request", "p", {"code": "ü"})


def test_the_stub_kernel_signs_and_sends_the_requested_output(tmp_path: Path) -> None:
    with bare(tmp_path) as kernel:
        session = Session(key=kernel.key)
        try:
            command = {"flood": 3, "size": 100, "end": TOKEN, "batch": 2, "interval": 0.001}
            kernel.execute(command)
            heard: list[dict[str, Any]] = []
            while not heard or heard[-1]["content"].get("execution_state") != "idle":
                _, parts = session.feed_identities(kernel.iopub.recv_multipart())
                heard.append(session.deserialize(parts))
        finally:
            session.digest_history.clear()
    assert [m["msg_type"] for m in heard] == ["status", "execute_input", *["stream"] * 4, "status"]
    texts = [m["content"]["text"] for m in heard[2:-1]]
    assert [text[:10] for text in texts[:3]] == ["#00000000 ", "#00000001 ", "#00000002 "]
    assert {len(text) for text in texts[:3]} == {100}
    assert texts[3] == TOKEN


def test_proc_readers_report_values_of_this_process() -> None:
    pid = os.getpid()
    before = measure.cpu_seconds(pid)
    while measure.cpu_seconds(pid) == before:
        pass
    held, files = measure.descriptors(pid), measure.open_files(pid)
    with (ROOT / "pyproject.toml").open(), socket.socket():
        assert measure.descriptors(pid) == held + 2
        assert measure.open_files(pid) == files + 1
    assert measure.rss(pid) > 1 << 20
    assert pid in measure.children(os.getppid())


@pytest.mark.parametrize(
    ("figure", "base", "ours", "ratio", "met"),
    [
        (Figure("x", "", "us", ratio=8), 100.0, 10.0, 10.0, True),
        (Figure("x", "", "us", ratio=8), 100.0, 20.0, 5.0, False),
        (Figure("x", "", "us", ratio=8, limit=12), 400.0, 20.0, 20.0, True),
        (Figure("x", "", "MB/s", more_is_better=True, ratio=1.4), 100.0, 150.0, 1.5, True),
        (Figure("x", "", "1/s", more_is_better=True, limit=9), 1.0, 8.0, 8.0, False),
        (Figure("x", "", "", limit=0, info=True), 1000.0, 0.0, None, True),
        (Figure("x", "", "s"), 1.0, 0.5, 2.0, None),
    ],
)
def test_targets_are_compared_with_the_figures(
    figure: Figure, base: float, ours: float, ratio: float | None, met: bool | None
) -> None:
    outcome = made_up(figure, base, ours)
    assert outcome.ratio(figure) == ratio
    assert outcome.met(figure) is met


def made_up(figure: Figure, base: float, ours: float) -> Outcome:
    row = Row("made-up", "Made up", (figure,), lambda _server, _settings: {})
    # The median of the rounds counts, so an outlier on either side does not.
    rounds: dict[str, list[Values]] = {
        "jupyter_server": [{"x": 1e9}, {"x": base}, {"x": -1.0}],
        "extension": [{"x": ours * 1.25}, {"x": 1e9}, {"x": -1.0}],
        "kbridge": [{"x": ours}, {"x": 1e9}, {"x": -1.0}],
    }
    return Outcome(row, rounds)


COST = Figure("x", "CPU", "us")
RATE = Figure("x", "rate", "1/s", more_is_better=True)


@pytest.mark.parametrize(
    ("figure", "extension", "standalone", "same"),
    [
        (COST, [10.4], [10.0], True),  # within the noise
        (COST, [20.0], [10.0], None),  # single rounds do not show the noise
        (COST, [14.0, 16.0], [10.0, 15.0], True),
        (COST, [16.0, 18.0], [10.0, 15.0], False),
        (COST, [1.0, 2.0], [10.0, 15.0], True),
        (RATE, [8.0, 9.0], [10.0, 15.0], False),
        (RATE, [8.0, 11.0], [10.0, 15.0], True),
        (RATE, [], [10.0, 15.0], None),
        (Figure("x", "", "", limit=0, info=True), [0, 0], [0, 0], True),
        (Figure("x", "", "", limit=0, info=True), [2, 1], [0, 0], False),
        (Figure("x", "", "", info=True), [2, 1], [0, 0], None),
    ],
)
def test_the_extension_is_compared_with_the_standalone_server(
    figure: Figure, extension: list[float], standalone: list[float], same: bool | None
) -> None:
    rounds = {"extension": extension, "kbridge": standalone}
    values: dict[str, list[Values]] = {n: [{"x": x} for x in xs] for n, xs in rounds.items()}
    row = Row("made-up", "Made up", (figure,), lambda _server, _settings: {})
    assert Outcome(row, values).same(figure) is same
    unlike = Row("made-up", "Made up", (figure,), lambda _server, _settings: {}, alike=False)
    assert Outcome(unlike, values).same(figure) is None


def test_report_and_picture_are_written(tmp_path: Path) -> None:
    figure = Figure("x", "CPU a message", "us", ratio=8)
    outcomes = [made_up(figure, 100.0, 10.0), made_up(figure, 100.0, 20.0)]
    outcomes[1].failures["kbridge"] = "BenchmarkError: it went"
    outcomes[1].rounds["extension"] = [{"x": 70.0}, {"x": 80.0}]
    outcomes[1].rounds["kbridge"] = [{"x": 20.0}, {"x": 20.0}]
    text = report.table(outcomes)
    assert "10 us (10x)" in text
    assert "12.5 us (8x)" in text
    assert "0.8x, same" in text
    assert "0.267x, LESS" in text
    assert "NO (>= 8x)" in text
    assert "kbridge FAILED: BenchmarkError: it went" in text
    written = json.loads(report.as_json(outcomes, quick=True, filled=True))
    assert written["rows"]["made-up"]["figures"]["x"]
    assert (written["quick"], written["page_cache_filled"]) == (True, True)
    assert draw(outcomes, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert not draw([Outcome(outcomes[0].row)], tmp_path / "none.png")


def test_the_table_of_the_readme_has_extension_and_standalone_server() -> None:
    outcome = made_up(Figure("x", "CPU a message", "us", ratio=8), 100.0, 10.0)
    outcome.rounds["extension"] = [{"x": 40.0}, {"x": 50.0}]
    outcome.rounds["kbridge"] = [{"x": 10.0}, {"x": 10.0}]
    text = readme.markdown(json.loads(report.as_json([outcome], quick=False)))
    assert text.endswith(
        "| Made up: CPU a message | 100 us | 45 us (2.22x) | 10 us (10x) | - | 0.222x, **less**"
        " | >= 8x | yes |\n"
    )


def test_the_first_two_servers_differ_only_in_the_extension(tmp_path: Path) -> None:
    plain, extended, standalone = (Server(name, tmp_path) for name in NAMES)
    for server in (plain, extended, standalone):
        server.token = TOKEN
    [(off, on)] = [
        pair for pair in zip(plain.argv(), extended.argv(), strict=True) if len({*pair}) > 1
    ]
    assert off == on.replace("kbridge=True", "kbridge=False")
    assert plain.environment() == extended.environment() == standalone.environment()


def test_plain_jupyter_server_does_not_import_kbridge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The interpreter writes every import to the server's log.
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    server = Server("jupyter_server", tmp_path)
    server.start()
    server.stop()
    imported = re.findall(r"^import time:.*\| +(\S+)$", server.log_text(), flags=re.MULTILINE)
    assert "jupyter_server.serverapp" in imported
    assert not [name for name in imported if name.startswith("kbridge")]


def test_a_twin_differs_in_its_options_and_shares_no_file(tmp_path: Path) -> None:
    for name in NAMES:
        server = Server(name, tmp_path / name, tmp_path / "row.prof")
        one, two = server.twin(()), server.twin(["--option=1"])
        assert set(HIGH_LIMITS) <= set(server.argv())
        assert not set(HIGH_LIMITS) & {*one.argv(), *two.argv()}
        assert "--option=1" in two.argv()
        assert len({server.home, one.home, two.home}) == 3
        assert len({server.profile, one.profile, two.profile}) == 3


def test_a_variant_is_the_standalone_server_of_another_tree_and_with_other_options(
    tmp_path: Path,
) -> None:
    variant = Variant(tmp_path / "tree", ("--option=1",))
    ours, other = Server(OURS, tmp_path), Server("other", tmp_path, variant=variant)
    for server in (ours, other, other.twin(())):
        assert server.standalone
        assert server.argv()[1:3] == ["-m", "kbridge"]
    assert "--option=1" not in ours.argv()
    assert "--option=1" in other.argv()
    assert "--option=1" in other.twin(()).argv()
    here, there = ours.environment(), other.environment()
    assert there.pop("PYTHONPATH") == str(tmp_path / "tree")
    here.pop("PYTHONPATH", None)  # the tests may run with one
    assert here == there


def values_of(server: Server, _settings: Settings) -> Values:
    """Return a value that is twice as high for the baseline."""
    return {"x": 20.0 if server.name == REFERENCE else 10.0}


def test_variants_run_in_the_rows_of_the_standalone_server(tmp_path: Path) -> None:
    measured: list[str] = []

    def measure_row(server: Server, settings: Settings) -> Values:
        measured.append(server.name)
        return values_of(server, settings)

    row = Row("made-up", "Made up", (COST,), measure_row, life=Life.OWN, servers=(OURS,))
    servers = {name: Variant() for name in (*NAMES, REFERENCE, "other")}
    outcome = Runner(servers, Settings(tmp_path, rounds=2), print).run(row)
    assert measured == [OURS, REFERENCE, "other", "other", REFERENCE, OURS]
    assert outcome.to_baseline(COST) == outcome.to_baseline(COST, "other") == 2
    assert outcome.to_baseline(RATE) == 0.5
    assert outcome.share(COST) == outcome.share(RATE) == 0.5


def test_the_default_baseline_runs_in_rows_that_are_compared_with_it(tmp_path: Path) -> None:
    servers = {OURS: Variant(), REFERENCE: Variant(selected=True)}
    runner = Runner(servers, Settings(tmp_path, rounds=1), print)
    for compared in (True, False):
        row = Row("x", "X", (COST,), values_of, life=Life.OWN, compared=compared)
        assert (REFERENCE in runner.run(row).rounds) is compared


def test_every_row_with_a_target_relative_to_the_baseline_is_compared_with_it() -> None:
    aims = {name for name, row in ROWS.items() if any(figure.aim for figure in row.figures)}
    assert aims
    assert aims <= {name for name, row in ROWS.items() if row.compared}


def beside_baseline(figure: Figure, base: float, ours: float) -> Outcome:
    row = Row("made-up", "Made up", (figure,), values_of)
    return Outcome(row, {REFERENCE: [{"x": base}], OURS: [{"x": ours}], "other": [{"x": base}]})


@pytest.mark.parametrize(
    ("figure", "base", "ours", "share", "met", "text"),
    [
        (Figure("x", "", "us", aim=0.65), 20.0, 13.0, 0.65, True, "0.65x, yes (<= 0.65x)"),
        (Figure("x", "", "us", aim=0.65), 20.0, 14.0, 0.7, False, "0.7x, NO (<= 0.65x)"),
        (
            Figure("x", "", "1/s", more_is_better=True, aim=1.5),
            10,
            20,
            2,
            True,
            "2x, yes (>= 1.5x)",
        ),
        (Figure("x", "", "1/s", more_is_better=True, aim=1.5), 10, 14, 1.4, False, "1.4x, NO"),
        (Figure("x", "", "us", aim=0.65), 0.0, 14.0, None, None, "not run (<= 0.65x)"),
        (Figure("x", "", "us"), 20.0, 10.0, 0.5, None, "(2x) [10, 10]"),
    ],
)
def test_aims_are_compared_with_the_baseline(
    figure: Figure, base: float, ours: float, share: float | None, met: bool | None, text: str
) -> None:
    outcome = beside_baseline(figure, base, ours)
    assert outcome.share(figure) == share
    assert outcome.aim_met(figure) is met
    assert outcome.share(figure, "other") in {1, None}
    assert text in report.variants_table([outcome], [REFERENCE, "other"])


def test_without_a_baseline_nothing_is_compared_with_it() -> None:
    outcome = made_up(COST, 100.0, 10.0)
    assert outcome.to_baseline(COST) is None
    assert report.variants_table([outcome], [REFERENCE]).count("\n") == 0
    aimed = beside_baseline(Figure("x", "CPU", "us", aim=0.5), 10.0, 10.0)
    del aimed.rounds[REFERENCE], aimed.rounds["other"]  # both failed
    assert report.variants_table([aimed], [REFERENCE]).endswith("not run (<= 0.5x)")


def test_the_table_of_the_readme_has_the_baseline_if_it_was_measured() -> None:
    figures = (Figure("x", "CPU", "us", aim=0.6), Figure("y", "rate", "1/s", ratio=2))
    row = Row("made-up", "Made up", figures, values_of)
    outcome = Outcome(row, {REFERENCE: [{"x": 20.0}], OURS: [{"x": 14.0, "y": 3.0}]})
    measured = json.loads(report.as_json([outcome], quick=False, baseline="abc1234"))
    text = readme.markdown(measured)
    assert "standalone server of abc1234" in text
    first, second = text.splitlines()[-2:]
    assert first.endswith("| 14 us | - |  |  |  | 20 us | 0.7x, **no** (<= 0.6x) |")
    assert second.endswith("| >= 2x |  | - | |")
    assert len({line.count("|") for line in text.splitlines()[2:]}) == 1
    measured["baseline"] = ""
    assert "baseline" not in readme.markdown(measured)


def selected(*argv: str) -> tuple[dict[str, Variant], str]:
    parsed = options.parser("").parse_args(argv)
    return options.servers(parsed, list(ROWS.values()))


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of every commit."""
    (tmp_path / "kbridge").mkdir()
    (tmp_path / "kbridge" / "__init__.py").touch()
    monkeypatch.setattr(baseline, "checkout", lambda _commit="": tmp_path)
    return tmp_path


def test_the_default_servers_are_the_three_and_the_baseline(tree: Path) -> None:
    plain = dict.fromkeys(NAMES, Variant())
    assert selected() == (plain | {REFERENCE: Variant(tree, selected=True)}, "f8846b6")
    assert selected("--baseline=none") == (plain, "")
    assert selected("--only=kbridge") == ({OURS: Variant()}, "")
    attack = options.servers(options.parser("").parse_args([]), [ROWS["attack"]])
    assert attack == (plain, "")


def test_a_baseline_from_the_command_line_is_measured_in_all_rows(tree: Path) -> None:
    for how in ("abc1234", str(tree)):
        found, told = selected(f"--baseline={how}", "--only=kbridge")
        assert found == {OURS: Variant(), REFERENCE: Variant(tree)}
        assert told == Path(how).name
    found, told = selected("--baseline-option=--a=1", "--baseline-option=--b=2")
    assert found[REFERENCE] == Variant(options=("--a=1", "--b=2"))
    assert told == "this checkout with --a=1 --b=2"
    found, told = selected("--baseline=abc1234", "--baseline-option=--a=1")
    assert found[REFERENCE] == Variant(tree, ("--a=1",))
    assert told == "abc1234 --a=1"
    with pytest.raises(BenchmarkError, match="does not have the package kbridge"):
        selected(f"--baseline={tree / 'kbridge'}")


def test_both_links_are_measured_in_one_run(tree: Path) -> None:
    link = "--ZMQChannelsWebsocketConnection.link"
    found, _ = selected(f"--option={link}=zmtp", f"--variant=old={link}=pyzmq", "--variant=old=--x")
    assert found[BASE] == Variant()
    assert found[OURS] == found[EXTENSION] == Variant(options=(f"{link}=zmtp",))
    assert found[REFERENCE] == Variant(tree, selected=True)
    assert found["old"] == Variant(options=(f"{link}=pyzmq", "--x"))


@pytest.mark.parametrize(
    "text", ["pyzmq", "=--x", "a b=--x", "old=x", "kbridge=--x", "baseline=-x"]
)
def test_a_variant_needs_a_name_and_an_option(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options.parser("").parse_args([f"--variant={text}"])
    assert "argument --variant" in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["--quick", "--only=kbridge", "--count=1", "--option=--x"])
def test_a_partial_run_is_not_written_into_the_documentation(argument: str) -> None:
    rows = list(ROWS.values())
    parse = options.parser("").parse_args
    assert options.is_partial(parse([argument]), rows)
    assert options.is_partial(parse([]), rows[:-1])
    assert not options.is_partial(parse(["--variant=old=--x"]), rows)


def git(place: Path, *words: str) -> str:
    """Run Git without the configuration of the user."""
    who = ("-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", "-C", place, *who, *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A clone with two commits, whose packages say 1 and 2."""
    place = tmp_path / "repository"
    (place / "kbridge").mkdir(parents=True)
    git(place, "init", "--quiet", "--initial-branch=main")
    for i in (1, 2):
        (place / "kbridge" / "__init__.py").touch()
        (place / "kbridge" / "__main__.py").write_text(f"print({i})\n")
        (place / "other.py").write_text("")
        git(place, "add", ".")
        git(place, "commit", "--quiet", "--message", f"Say {i}")
    return place


def test_the_baseline_is_extracted_once_and_runs_instead_of_the_current_code(
    repository: Path, tmp_path: Path
) -> None:
    commit = git(repository, "rev-parse", "HEAD^")
    cache = tmp_path / "cache"
    tree = baseline.checkout(commit, repository, cache)
    assert tree == cache / commit
    assert [path.name for path in tree.iterdir()] == ["kbridge"]
    server = Server(REFERENCE, tmp_path, variant=Variant(tree))
    done = subprocess.run(
        server.argv(),
        env=server.environment(),
        cwd=tmp_path,
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == b"1\n"
    marker = tree / "kept"
    marker.touch()
    assert baseline.checkout(commit[:12], repository, cache) == tree
    assert marker.exists()
    assert [path.name for path in cache.iterdir()] == [commit]  # no remains


def test_a_clone_without_the_baseline_says_what_helps(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"does not have commit f8846b6\w+$"):
        baseline.checkout(repository=repository, cache=tmp_path)
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth=1", repository.as_uri(), str(shallow))
    with pytest.raises(BenchmarkError, match="git fetch --unshallow"):
        baseline.checkout(git(repository, "rev-parse", "HEAD^"), shallow, tmp_path)
    with pytest.raises(BenchmarkError, match="is not a clone"):
        baseline.checkout(repository=tmp_path, cache=tmp_path)


def test_each_feature_is_measured_with_its_own_setting() -> None:
    off, everything = (set(cost.SETTINGS[name]) for name in (cost.OFF, cost.ALL))
    assert not off & everything
    alone = {name: set(cost.SETTINGS[name]) for name in cost.WORDS if name != cost.ALL}
    assert all(options != off for options in alone.values())
    gone = [off - options for options in alone.values()]
    assert sum(map(len, gone)) == len(off) == len(set.union(*gone))  # each turns off another part
    assert set.union(*(options - off for options in alone.values())) == everything


def test_spread_is_half_of_the_interquartile_range() -> None:
    assert cost.spread([1.0]) == 0.0
    assert cost.spread([1.0, 1.1, 1.2, 1.3, 99.0]) == pytest.approx(0.1)


def test_received_messages_of_a_flood_are_numbered() -> None:
    heard = flood.Heard([0, 1, 3, 3, 2, 7], frames=4, notices=1, seconds=1.0, took=0.5)
    assert heard.missing(5) == 1
    assert heard.disorder() == 2


def test_free_memory_is_reported() -> None:
    assert 0 < measure.memory("MemFree") <= measure.memory("MemTotal") < 1 << 50
    with pytest.raises(BenchmarkError, match="does not have Nothing"):
        measure.memory("Nothing")


class Memory:
    """A machine with 1,000 MiB of memory, of which each reading shows 10 MiB less free."""

    def __init__(self, free: int) -> None:
        self.free = free << 20

    def __call__(self, field: str) -> int:
        if field == "MemTotal":
            return 1_000 << 20
        assert field == "MemFree"
        self.free -= 10 << 20
        return self.free


def test_the_page_cache_is_filled_until_little_memory_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, lines = Memory(100), list[str]()
    monkeypatch.setattr(page_cache, "memory", machine)
    with PageCache(tmp_path, lines.append) as cache:
        (path,) = tmp_path.iterdir()
        assert cache.fill() == 5 * (4 << 20)
        assert machine.free <= cache.enough
        assert path.stat().st_blocks == 0  # it uses no disk
        assert cache.fill() == 0
        machine.free = 100 << 20
        assert cache.fill() > 0  # a process has ended
    assert not list(tmp_path.iterdir())
    assert len(lines) == 2
    assert "read 20 MiB" in lines[0]


def test_filling_the_page_cache_ends_although_memory_stays_free(tmp_path: Path) -> None:
    with PageCache(tmp_path, print, most=32 << 20) as cache:
        cache.enough = 0
        assert cache.fill() == 32 << 20
        for _ in range(9):  # the file grows
            assert cache.fill() == 4 << 20


def test_writing_to_a_file_has_a_cost_and_leaves_no_file(tmp_path: Path) -> None:
    assert 0 < page_cache.write_cost(tmp_path) < 1e4
    assert not list(tmp_path.iterdir())


def test_the_file_that_fills_the_page_cache_is_removed_after_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with PageCache(tmp_path, print):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not list(tmp_path.iterdir())


def test_the_page_cache_is_filled_before_each_round(tmp_path: Path) -> None:
    events: list[str] = []

    class Recorded(PageCache):
        def fill(self) -> int:
            events.append("fill")
            return 0

    def measure_row(server: Server, _settings: Settings) -> Values:
        events.append(server.name)
        return {"x": 1.0}

    row = Row("made-up", "Made up", (COST,), measure_row, life=Life.OWN, servers=(OURS,))
    settings = Settings(tmp_path, rounds=2)
    servers = {name: Variant() for name in NAMES}
    Runner(servers, settings, print, page_cache=Recorded(tmp_path, print)).run(row)
    assert events == ["fill", OURS, "fill", OURS]


def test_other_systems_than_linux_explain_that_the_page_cache_is_not_filled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SystemExit) as ended:
        command.main(["--only", OURS, "--fill-page-cache", "message"])
    assert ended.value.code == 2
    assert "on Linux only" in capsys.readouterr().err


@pytest.mark.kernel
def test_variants_are_measured_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(cost.SETTINGS) - {cost.OFF, cost.ALL}:
        monkeypatch.delitem(cost.SETTINGS, name)
        monkeypatch.delitem(cost.WORDS, name)
    values = cost.measure(Server(OURS, tmp_path), Settings(tmp_path, quick=True, count=400))
    assert all(values[f"{load}_{cost.ALL}"] > 0 for load in cost.LOADS)
    assert values["frames"] > 0
    logs = [(tmp_path / f"twin-{i}" / "server.log").read_text() for i in range(2)]
    assert ["signing is disabled" in log for log in logs] == [True, False]


@pytest.mark.kernel
def test_a_stalled_client_costs_a_limited_server_at_most_one_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(OURS, tmp_path) as server:
        free = gigabyte.past_a_stalled_viewer(server, 3, 20)
        monkeypatch.setattr(gigabyte, "CAP", -1.0)
        capped = gigabyte.past_a_stalled_viewer(server, 3, 20)
    assert (free.messages, free.missing) == (60, 0)
    assert (capped.messages, capped.missing) == (20, 0)


@pytest.mark.kernel
def test_a_row_with_losses_has_no_throughput(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = client.Websocket.execute

    def lose_one(websocket: client.Websocket, code: Any, **more: Any) -> str:
        lossy = {key: code[key] - 1 for key in ("count", "flood") if key in code}
        return execute(websocket, {**code, **lossy}, **more)

    monkeypatch.setattr(client.Websocket, "execute", lose_one)
    with Server(OURS, tmp_path, options=()) as server, server.kernel() as kernel_id:
        lossy = binary.burst(server, kernel_id, {})
        assert (lossy.arrived, lossy.missing) == (binary.BURST - 1, 1)
        assert "rate" not in binary.summary(lossy, lossy)
        assert "rate" in binary.summary(lossy._replace(missing=0), lossy)
        with pytest.raises(BenchmarkError, match="of 100 lines"):
            message.flood(server, kernel_id, 100, 2)
        assert stalled.flood(server, 100, {}).rate is None
        lost = flood.timed(flood.flooded(server, 100), 100, "_fast")
    assert lost == {"missing_fast": 1}


def test_the_cost_of_lossy_bursts_is_that_of_the_outputs_that_arrived() -> None:
    passed = binary.Passed(seconds=2.0, cpu=0.3, arrived=150, missing=50)
    values = binary.summary(passed, passed._replace(missing=0))
    assert values["cpu"] == pytest.approx(2.0)
    assert (values["missing"], values["missing_paced"]) == (50, 0)
    whole = passed._replace(arrived=200, missing=0)
    assert binary.summary(whole, passed)["rate"] == pytest.approx(100.0)


@pytest.mark.kernel
@pytest.mark.parametrize("transport", [Transport.UNIX, Transport.TLS])
@pytest.mark.parametrize("name", [EXTENSION, OURS])
def test_rows_run_over_other_transports(
    transport: Transport, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("t")  # the path of a unix socket must be short
    with Server(name, home, transport=transport) as server, server.kernel() as kernel_id:
        with client.Websocket.open(server, kernel_id) as websocket:
            unix = websocket.sock.family is socket.AF_UNIX
            assert unix is (transport is Transport.UNIX)
            assert isinstance(websocket.sock, ssl.SSLSocket) is not unix
            assert websocket.ready().kernel_pid() in measure.children(server.pid)
        values = message.flood(server, kernel_id, 500, 2)
    assert values["cpu"] > 0


@pytest.mark.kernel
def test_all_lines_of_a_replay_are_counted(tmp_path: Path) -> None:
    with Server(OURS, tmp_path) as server, server.kernel() as kernel_id:
        end = replay.fill(server, kernel_id, 300)
        assert replayer.replay(server, kernel_id, end) == 300
        with replay.replays(server, kernel_id, end) as lines:
            pass
        assert lines
        assert set(lines) == {300}
        with pytest.raises(BenchmarkError, match="the replay ended with status -9"):
            replay_until_killed(server, kernel_id, end)
        with pytest.raises(BenchmarkError, match="the replay failed"):
            replay_until_killed(server, "no-such-kernel", end)


def replay_until_killed(server: Server, kernel_id: str, end: str) -> None:
    """Kill the client that replays."""
    with replay.replays(server, kernel_id, end):
        for pid in measure.children(os.getpid()):
            if b"benchmarks.replayer" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.kernel
def test_a_cell_of_many_viewers_counts_the_lines_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(OURS, tmp_path, options=()) as server, server.kernel() as kernel_id:
        with viewers.stalled_client(server, kernel_id):
            assert viewers.cost(server, kernel_id, 5, 2) > 0
        with client.Websocket.open(server, kernel_id) as websocket:
            websocket.ready()
            tally = Tally(websocket, "", room=viewers.ROOM)
            viewers.run_cell([tally])
            assert tally.lines == viewers.LINES
            execute = websocket.execute
            fewer = {"flood": viewers.LINES - 1}
            monkeypatch.setattr(websocket, "execute", lambda code: execute({**code, **fewer}))
            with pytest.raises(BenchmarkError, match="1 lines are missing at 1 clients"):
                viewers.run_cell([tally])


@pytest.mark.kernel
def test_random_message_ids_change_nothing_else(tmp_path: Path) -> None:
    with bare(tmp_path) as kernel:
        for ids in ("counted", "random"):
            kernel.execute({"flood": 3, "size": 50, "ids": ids, "end": TOKEN})
            found: list[list[bytes]] = []
            while not found or TOKEN.encode() not in found[-1][6]:
                found.append(kernel.iopub.recv_multipart())
            streams = [parts for parts in found if b'"stream"' in parts[3]][:3]
            numbers = [json.loads(parts[3])["msg_id"].rpartition("_")[2] for parts in streams]
            assert [n.isdecimal() for n in numbers] == [ids == "counted"] * 3
            texts = [json.loads(parts[6])["text"] for parts in streams]
            assert [text[:10] for text in texts] == ["#00000000 ", "#00000001 ", "#00000002 "]
            for parts in streams:
                session = Session(key=kernel.key)
                session.digest_history.clear()
                session.deserialize(session.feed_identities(parts)[1])


def test_busy_processes_end_with_the_block() -> None:
    with busy_cores(2):
        mine = {pid for pid in measure.children(os.getpid()) if is_busy(pid)}
        assert len(mine) == 2
    assert not mine & set(measure.children(os.getpid()))


def is_busy(pid: int) -> bool:
    return b"getppid" in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.kernel
def test_a_flood_is_received_to_its_end(tmp_path: Path) -> None:
    with Server(OURS, tmp_path, options=()) as server:
        heard = flood.flooded(server, 5_000)
    assert heard.missing(5_000) == heard.disorder() == heard.notices == 0
    assert heard.frames < 5_000  # joined: more than the limit


class Impostor(Server):
    """A server that is named as the extension but started as the plain server."""

    def argv(self) -> list[str]:
        return [word.replace("kbridge=True", "kbridge=False") for word in super().argv()]


def test_an_extension_that_was_not_loaded_is_not_measured(tmp_path: Path) -> None:
    server = Impostor(EXTENSION, tmp_path)
    with pytest.raises(BenchmarkError, match="runs without the kbridge extension"):
        server.start()
    server.stop()


@pytest.mark.parametrize("name", worst.SHAPES)
def test_the_worst_frames_are_messages_of_the_stated_size(name: str) -> None:
    size = 1 << 17
    frame = worst.SHAPES[name][1](size)
    assert 0.5 * size < len(frame) < 2.5 * size
    reader = FrameReader(1 << 20)
    reader.feed(frame)
    events = [event for event in iter(reader.next, None) if event is not PARTIAL]
    assert len(events) == 1
    ((_, payload),) = events
    decode = v1.decode if name.startswith("v1") else legacy.decode
    if name in {"members", "offsets", "v1_offsets", "fragments"}:
        with pytest.raises(InvalidMessage, match=r"members|parts|header"):
            decode(payload)
    else:
        assert decode(payload).msg_type == "worst_request"


def test_every_row_of_the_budget_has_a_module() -> None:
    modules = {path.stem for path in (ROOT / "benchmarks" / "rows").glob("[a-z]*.py")}
    assert set(ROWS) == modules


@pytest.mark.slow
@pytest.mark.kernel
@pytest.mark.timeout(330)
def test_a_short_run_measures_all_servers(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "benchmarks", "--quick", "--output", str(tmp_path)]
    argv += ["--baseline", str(ROOT)]  # a clone may lack the default one
    done = subprocess.run(
        [*argv, "start", "message"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "benchmarks.json").read_text())["rows"]
    assert rows["message"]["figures"]["cpu"]["ratio"] > 0
    assert rows["message"]["figures"]["cpu"]["share_of_baseline"] > 0
    assert rows["message"]["figures"]["cpu"]["extension_to_standalone"] > 0
    assert rows["start"]["figures"]["seconds"]["ratio_extension"] > 0
    assert (tmp_path / "benchmarks.png").stat().st_size > 10_000


@pytest.mark.kernel
def test_a_terminated_run_leaves_no_server() -> None:
    argv = [sys.executable, "-m", "benchmarks", "--only=kbridge", "--rounds=100", "message"]
    with subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "message: round 1" in process.stderr.readline()
        while not (kernels := grandchildren(process.pid)):
            assert process.poll() is None
        process.terminate()
        assert process.wait() == 128 + signal.SIGTERM
    assert not [pid for pid in kernels if Path(f"/proc/{pid}").exists()]


def grandchildren(pid: int) -> list[int]:
    """Return the ids of the servers and kernels of a run that has started a kernel."""
    for server in measure.children(pid):
        if kernels := measure.children(server):
            return [server, *kernels]
    return []


@pytest.mark.parametrize("page", readme.PAGES)
def test_the_pages_show_the_measured_figures(page: str) -> None:
    text = (readme.ROOT / page).read_text()
    measured = json.loads((readme.ROOT / "docs" / "benchmarks.json").read_text())
    assert text == readme.insert(text, measured, readme.PAGES[page]), "python -m benchmarks.readme"


def test_the_short_table_has_only_existing_rows() -> None:
    measured = json.loads((readme.ROOT / "docs" / "benchmarks.json").read_text())
    for row, figure in readme.SHORT:
        assert figure in measured["rows"][row]["figures"]


def test_the_cost_of_a_relay_is_measured_per_frame() -> None:
    found = relay.measure(200)
    assert sorted(found) == ["lone", "stream"]
    assert all(micros > 0 for micros in found.values())


def test_the_turns_of_replicas_at_a_database_are_counted(tmp_path: Path) -> None:
    found = registry.measure(f"sqlite:///{tmp_path / 'registry.sqlite'}", 1, 2, 0.1)
    assert found["rate"] > 0
    assert found["renewal"] > 0
    assert found["write"] > 0
