"""Replicas that fail while clients read: every line of every client is counted.

    python -m tests.support.cluster_chaos --rounds=20 --replicas=3 --kernels=20 --clients=200 \\
        --rate=20 --absence=20 --outage=60 --database=postgresql --balancer=haproxy

runs longer than the test does, in a directory that it makes, with HAProxy between the clients and
the replicas.

The faults take turns: the network between a replica and the database is interrupted, without the
end of any connection; the database crashes; a replica is killed; a replica is stopped and goes on.
With SQLite, there are the last two only.

Each kernel writes numbered lines, in one cell that a client sends before the first fault. One half
of the clients names its last message when it connects again (`since`), and must receive each line
once. The other half has a session only: it may receive lines twice, but must miss none.

Beside each of these kernels there is an idle one, whose process is killed while its replica is
stopped: the cluster must restart it once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import AsyncExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import psutil
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from kbridge.kernels.registry.registry import Registry
from tests.support.client import KernelClient, attach
from tests.support.network import Network, network_to
from tests.support.postgresql import PostgreSQL, postgresql
from tests.support.require import require
from tests.support.server import Server, free_port, kill_all
from tests.support.waiting import TIMEOUT, until

__all__ = ["Options", "run"]

_KERNEL = Path(__file__).parent / "scripted_kernel.py"
_CELL = """
import time
line = 0
while not os.path.exists({end!r}):
    k.stream(f"{{line}}\\n", parent)
    line += 1
    if line % 10 == 0:
        time.sleep({pause})
k.stream(f"end {{line}}\\n", parent)
k.say("status", {{"execution_state": "idle"}}, parent)
"""
_KILL, _PARTITION, _STOP, _CRASH = "kill", "partition", "stop", "crash"
_FAULTS: Final = {
    "sqlite": (_KILL, _STOP),
    "postgresql": (_PARTITION, _CRASH, _KILL, _STOP),
}
_HAPROXY: Final = """
defaults
    mode http
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    timeout tunnel 1h
    retries 2
    option redispatch 1
frontend clients
    bind 127.0.0.1:{port}
    default_backend replicas
backend replicas
    balance hash path,field(4,/)
    hash-type consistent
    option httpchk GET /readyz
    http-check expect status 200
    default-server check inter 1s fall 2 rise 1
"""
_MORE = 50  # lines of each kernel after a fault, before the next one
_RESTARTED = "The process of kernel {} ended: restart"


@dataclass(frozen=True)
class Options:
    """The size of a run."""

    rounds: int = 2  # faults
    kernels: int = 2
    clients: int = 8
    rate: int = 200  # lines of each kernel per second
    replicas: int = 2
    lease: float = 3.0
    database: str = "sqlite"
    balancer: str = ""
    outage: float = 4.5  # seconds without the database; more than a lease
    absence: float = 0.0  # seconds that a replica is absent, after the others have its kernels
    seed: int = 0


@contextmanager
def _haproxy(home: Path, ports: list[int]) -> Iterator[int]:
    """Run HAProxy in front of replicas until the end of the context; return its port."""
    home.mkdir()
    port = free_port()
    lines = [f"    server r{n} 127.0.0.1:{port}\n" for n, port in enumerate(ports)]
    config = home / "haproxy.cfg"
    config.write_text(_HAPROXY.format(port=port) + "".join(lines))
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [require("haproxy"), "-db", "-f", config], stdout=log, stderr=log
        )
    try:
        yield port
    finally:
        process.terminate()
        process.wait(TIMEOUT)


class Lab:
    """The replicas and their database."""

    def __init__(self, home: Path, options: Options, stack: AsyncExitStack) -> None:
        self.home = home
        self.options = options
        self.random = random.Random(options.seed)
        self.end = home / "end"  # the cells end once this file exists
        self.postgresql: PostgreSQL | None = None
        if options.database == "postgresql":
            self.postgresql = stack.enter_context(postgresql())
            self.url = self.postgresql.new_database()
        else:
            self.url = f"sqlite:///{home / 'registry.sqlite'}"
        self.registry = Registry(self.url)
        stack.callback(self.registry.close)
        self.servers: list[Server] = []
        self.ended: list[Server] = []
        self._networks: dict[Server, Network] = {}
        self._stack = stack
        stack.callback(self.kill)
        self.ports = [free_port() for _ in range(options.replicas)]
        self._balancer: Server | None = None  # HAProxy looks like a server to clients
        if options.balancer:
            self._balancer = Server(home)
            self._balancer.port = stack.enter_context(_haproxy(home / "haproxy", self.ports))

    @property
    def fronts(self) -> list[Server]:
        """The servers that clients may use."""
        return [self._balancer] if self._balancer else list(self.servers)

    async def start(self, port: int) -> None:
        """Start another replica."""
        url, network = self.url, None
        if self.postgresql is not None:
            network = await self._stack.enter_async_context(network_to(self.postgresql.port))
            url = url.replace(f":{self.postgresql.port}/", f":{network.port}/")
        server = self._server(url, port)
        if network is not None:
            self._networks[server] = network
        self.servers.append(server)
        await asyncio.to_thread(server.start)

    def _server(self, url: str, port: int) -> Server:
        home = self.home / f"replica-{len(self.servers) + len(self.ended)}"
        spec = home / "data" / "kernels" / "scripted" / "kernel.json"
        spec.parent.mkdir(parents=True)
        argv = [sys.executable, str(_KERNEL), "{connection_file}"]
        spec.write_text(json.dumps({"argv": argv, "display_name": "s", "language": "python"}))
        return Server(
            home,
            "--cluster=lab",
            f"--registry-url={url}",
            f"--lease-seconds={self.options.lease}",
            "--drain-seconds=0",
            "--BridgeKernelManager.default_kernel_name=scripted",
            port=port,
        )

    def kill(self) -> None:
        """End all processes, also after an error."""
        kill_all(*self.servers, *self.ended)

    def count(self, words: str) -> int:
        """Return how often the replicas, also the ended ones, have logged some words."""
        servers = (*self.servers, *self.ended)
        return sum(server.log.read_text(errors="replace").count(words) for server in servers)

    def rows(self) -> dict[str, tuple[int, int]]:
        """Return the pids of the owner and of the process of each kernel, as in the database."""
        from sqlalchemy import select

        from kbridge.kernels.registry.schema import KERNELS, REPLICAS

        query = select(KERNELS.c.kernel_id, REPLICAS.c.pid, KERNELS.c.pid).outerjoin(
            REPLICAS, KERNELS.c.replica_id == REPLICAS.c.replica_id
        )
        with self.registry.transaction("read") as connection:
            found = connection.execute(query).all()
        return {kernel_id: (owner or 0, pid) for kernel_id, owner, pid in found}

    def places(self) -> dict[str, str]:
        """Return the acknowledged places in the database, by the JSON of the session's id."""
        from sqlalchemy import select

        from kbridge.kernels.registry.schema import PLACES

        query = select(PLACES.c.session_id, PLACES.c.msg_id)
        with self.registry.transaction("read") as connection:
            return {row.session_id: row.msg_id for row in connection.execute(query)}

    def processes(self) -> list[int]:
        """Return the pids of all running kernels."""
        servers = (*self.servers, *self.ended)
        return sorted(process.pid for server in servers for process, _ in server.started())

    def owned(self, server: Server) -> set[str]:
        """Return the ids of the kernels that a replica owns."""
        return {name for name, (owner, _) in self.rows().items() if owner == server.process.pid}

    # -- faults -------------------------------------------------------------------------------

    async def followed(self, sessions: Collection[str]) -> None:
        """Wait until each kernel has a follower, with all that its clients have not acknowledged.

        A place that has changed once may be from the time before.
        """
        count = len(self.rows())
        await until(
            lambda: sum(map(_followed_kernels, self.servers)) == count, "all kernels are followed"
        )
        for _ in range(2):
            before = self.places()
            await until(
                lambda b=before: all(self.places().get(s) != b.get(s) for s in sessions),  # type: ignore[misc]
                "the places of all clients are written",
            )

    async def fault(self, kind: str, idle: set[str]) -> set[str]:
        """Cause a fault, and wait until it is over.

        Returns
        -------
        set of str
            The idle kernels whose processes were killed.
        """
        if kind == _CRASH:
            return await self._crash()
        server = self.random.choice([server for server in self.servers if self.owned(server)])
        owned = self.owned(server)
        if kind == _STOP:
            process = server.process
            return await self._absent(
                server,
                owned,
                idle,
                lambda: self._stop(process),
                lambda: process.send_signal(signal.SIGCONT),
            )
        if kind == _PARTITION:
            network = self._networks[server]
            return await self._absent(server, owned, idle, network.swallow, network.restore)
        self.servers.remove(server)
        self.ended.append(server)
        server.process.kill()
        await asyncio.to_thread(server.process.wait, TIMEOUT)
        await self._moved(server, owned)
        await self.start(server.port)
        return set()

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        """Stop a replica, but not within a transaction: it would keep an SQLite file locked."""
        process.send_signal(signal.SIGSTOP)
        while self.postgresql is None and not self._is_writable():
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGSTOP)

    def _is_writable(self) -> bool:
        with closing(sqlite3.connect(self.home / "registry.sqlite", timeout=1.0)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
        return True

    async def _absent(
        self,
        server: Server,
        owned: set[str],
        idle: set[str],
        begin: Callable[[], None],
        end: Callable[[], Awaitable[None] | None],
    ) -> set[str]:
        """Keep a replica from renewing its lease until the others have its kernels."""
        lost = "Kernel {} is served by another replica now"
        before = {name: self.count(lost.format(name)) for name in owned}
        victims = owned & idle
        takes = {name: self.count(f"Kernel taken over: {name}") for name in victims}
        begin()
        try:
            await self._moved(server, owned)
            # Both replicas watch the process; the one that was absent must leave it alone.
            for name in victims:
                words, count = f"Kernel taken over: {name}", takes[name]
                await until(lambda w=words, c=count: self.count(w) > c, words)  # type: ignore[misc]
                psutil.Process(self.rows()[name][1]).kill()
            await asyncio.sleep(self.options.absence)
        finally:
            if (waiting := end()) is not None:
                await waiting
        for name, count in before.items():
            words = lost.format(name)
            await until(lambda w=words, c=count: self.count(w) > c, words)  # type: ignore[misc]
        return victims

    async def _crash(self) -> set[str]:
        """Crash the database for longer than a lease; no kernel moves, and all go on."""
        assert self.postgresql is not None
        before = self.rows()
        await asyncio.to_thread(self.postgresql.stop, crash=True)
        await asyncio.sleep(self.options.outage)
        await asyncio.to_thread(self.postgresql.start)
        for server in self.servers:
            await until(lambda s=server: _is_ready(s), f"{server.url} is ready")  # type: ignore[misc]
        assert self.rows() == before
        return set()

    async def _moved(self, server: Server, kernels: set[str]) -> None:
        await until(lambda: not kernels & self.owned(server), "the kernels were taken over")


@dataclass
class Reader:
    """A client that comes back, wherever its kernel is served."""

    lab: Lab
    kernel_id: str
    session: str
    exact: bool
    lines: list[int] = field(default_factory=list)
    end: int = -1
    notices: list[str] = field(default_factory=list)
    connected: int = 0
    replies: list[tuple[str, str]] = field(default_factory=list)  # ids and statuses
    ws: KernelClient | None = None
    last: str = ""
    _partial: str = ""

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            for server in self.lab.fronts:
                try:
                    await self._read(server)
                except (InvalidHandshake, ConnectionClosed, OSError, TimeoutError):
                    self.ws = None
                    self._partial = ""
            await asyncio.sleep(0.05)

    async def _read(self, server: Server) -> None:
        since = self.last if self.exact else ""
        options: dict[str, Any] = {"ping_interval": 1, "ping_timeout": 2, "open_timeout": 2}
        async with attach(
            server, self.kernel_id, session=self.session, since=since, **options
        ) as ws:
            self.ws = ws
            self.connected += 1
            while True:
                self._take(ws.codec.decode(await ws.ws.recv()))

    def _take(self, msg: dict[str, Any]) -> None:
        if msg["channel"] == "iopub":
            self.last = msg["header"]["msg_id"]
        content, kind = msg["content"], msg["header"]["msg_type"]
        if kind == "execute_reply":
            self.replies.append((msg["header"]["msg_id"], content["status"]))
        elif kind == "stream" and content["name"] == "stdout":
            *whole, self._partial = (self._partial + content["text"]).split("\n")
            for line in whole:
                if line.startswith("end "):
                    self.end = int(line.removeprefix("end "))
                else:
                    self.lines.append(int(line))
        elif kind == "stream":
            self.notices.append(content["text"])

    def check(self) -> None:
        """Check that no line is missing, and no line came twice if the client named its last."""
        assert self.notices == [], (self.session, self.notices)
        missing = sorted(set(range(self.end)) - set(self.lines))
        assert missing == [], (self.session, len(missing), missing[:5])
        if self.exact:
            pairs = zip(self.lines, self.lines[1:], strict=False)
            again = [(one, other) for one, other in pairs if other != one + 1]
            assert again == [], (self.session, again[:5])


async def run(home: Path, options: Options) -> dict[str, Any]:
    """Run the faults; return figures.

    Raises
    ------
    AssertionError
        If a line of a client is missing, or was received twice by a client that names its last
        message; if a kernel was restarted without a reason, or twice; if a kernel stays at the end.
    """
    async with AsyncExitStack() as stack:
        lab = await asyncio.to_thread(Lab, home, options, stack)
        for port in lab.ports:
            await lab.start(port)
        kernels, idle = [
            [
                await asyncio.to_thread(server.start_kernel, "scripted")
                for server, _ in zip(cycle(lab.servers), range(options.kernels), strict=False)
            ]
            for _ in range(2)
        ]
        for kernel_id in (*kernels, *idle):
            words = f"Following kernel {kernel_id}"
            await until(lambda w=words: lab.count(w) > 0, words)  # type: ignore[misc]
        found = await _read_all(lab, kernels, set(idle))
        await _end(lab)
        return found


async def _read_all(lab: Lab, kernels: list[str], idle: set[str]) -> dict[str, Any]:
    options = lab.options
    before = lab.rows()
    readers = [
        Reader(lab, kernels[i % len(kernels)], f"r-{i}", exact=i // len(kernels) % 2 == 0)
        for i in range(options.clients)
    ]
    tasks = [asyncio.create_task(reader.run()) for reader in readers]
    restarts = dict.fromkeys(before, 0)
    try:
        await until(lambda: all(reader.ws for reader in readers), "all clients are connected")
        for reader in readers[: len(kernels)]:
            assert reader.ws is not None
            code = _CELL.format(end=str(lab.end), pause=10 / options.rate)
            await reader.ws.send("execute_request", {"code": code})
        await _more(readers)
        sessions = [json.dumps(reader.session) for reader in readers]
        for kind in islice(cycle(_FAULTS[options.database]), options.rounds):
            await lab.followed(sessions)
            for name in await lab.fault(kind, idle):
                restarts[name] += 1
                words = _RESTARTED.format(name)
                await until(lambda w=words: lab.count(w) > 0, words)  # type: ignore[misc]
            await _more(readers)
        lab.end.touch()
        await until(lambda: all(reader.end >= 0 for reader in readers), "all cells have ended")
        await until(lambda: all(r.replies for r in readers[: len(kernels)]), "there is a reply")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for reader in readers:
        reader.check()
    for reader in readers[: len(kernels)]:
        # A client that names a message before the reply, when it comes back, gets the reply again.
        assert {status for _, status in reader.replies} == {"ok"}, reader.replies
        assert len({msg_id for msg_id, _ in reader.replies}) == 1, (
            reader.connected,
            reader.replies,
        )
    after = lab.rows()
    assert after.keys() == before.keys()
    assert {name: lab.count(_RESTARTED.format(name)) for name in before} == restarts
    assert {name for name in after if after[name][1] != before[name][1]} == {
        name for name, count in restarts.items() if count
    }
    assert lab.processes() == sorted(pid for _, pid in after.values())
    assert {owner for owner, _ in after.values()} <= {s.process.pid for s in lab.servers}
    return {
        "lines": sum(reader.end for reader in readers[: len(kernels)]),
        "returns": sum(reader.connected - 1 for reader in readers),
        "restarts": sum(restarts.values()),
    }


def _followed_kernels(server: Server) -> int:
    text = server.request("GET", "/metrics").body.decode()
    [number] = re.findall(r"^kbridge_followed_kernels (\d+)", text, re.MULTILINE)
    return int(number)


def _is_ready(server: Server) -> bool:
    return server.request("GET", "/readyz").status == 200


async def _more(readers: list[Reader]) -> None:
    """Wait until each client has received more lines."""
    wanted = [reader.lines[-1] + _MORE if reader.lines else _MORE for reader in readers]
    await until(
        lambda: all(
            reader.lines and reader.lines[-1] >= line
            for reader, line in zip(readers, wanted, strict=True)
        ),
        "all clients receive lines",
    )


async def _end(lab: Lab) -> None:
    """End the replicas, one after the other: the last one ends the kernels."""
    for server in lab.servers:
        server.assert_clean_log()
        assert await asyncio.to_thread(server.stop) == 0
    assert lab.processes() == [], "no kernel is left behind"
    assert lab.rows() == {}


def main() -> None:
    """Run with options of the command line, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in vars(Options()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--home", help="a directory for all files, which stay there")
    given = vars(parser.parse_args())
    home = given.pop("home")
    with tempfile.TemporaryDirectory() if home is None else nullcontext(home) as path:
        print(json.dumps(asyncio.run(run(Path(path), Options(**given)))))


if __name__ == "__main__":
    main()
