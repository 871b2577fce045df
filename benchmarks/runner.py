"""Run rows for all servers in one run, with alternating rounds (ABC, CBA, ABC)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from benchmarks.measure import BenchmarkError
from benchmarks.page_cache import PageCache
from benchmarks.servers import Server, Variant
from benchmarks.table import Life, Outcome, Row, Settings

Log = Callable[[str], None]


class Runner:
    """Runs rows with the given servers.

    `servers` has the variant of each server, in the order of the first round.

    If a row fails on one server, the failure is recorded, and the row is not repeated on that
    server. The page cache, if there is one, is filled before each round.
    """

    def __init__(
        self,
        servers: Mapping[str, Variant],
        settings: Settings,
        log: Log,
        profile: Path | None = None,
        page_cache: PageCache | None = None,
    ) -> None:
        self.servers = servers
        self.settings = settings
        self.log = log
        self.profile = profile
        self.page_cache = page_cache
        self._homes = itertools.count()

    def _server(self, name: str, row: Row) -> Server:
        home = self.settings.home / f"{next(self._homes)}-{name}"
        profile = self.profile / f"{row.name}-{name}.prof" if self.profile else None
        return Server(name, home, profile, variant=self.servers[name])

    def run(self, row: Row) -> Outcome:
        outcome = Outcome(row)
        rounds = min(self.settings.rounds, row.rounds or self.settings.rounds)
        names = [name for name, variant in self.servers.items() if row.runs_on(name, variant)]
        with ExitStack() as stack:
            shared: dict[str, Server] = {}
            for i in range(rounds):
                if row.floor:
                    outcome.rounds.setdefault("floor", []).append(row.floor(self.settings))
                for name in names if i % 2 == 0 else reversed(names):
                    if name not in outcome.failures:
                        if self.page_cache:
                            self.page_cache.fill()
                        self.log(f"{row.name}: round {i + 1} of {rounds}, {name}")
                        self._round(outcome, name, shared, stack)
        return outcome

    def _round(
        self, outcome: Outcome, name: str, shared: dict[str, Server], stack: ExitStack
    ) -> None:
        row = outcome.row
        try:
            if row.life is Life.ROW:
                if name not in shared:
                    server = self._server(name, row)
                    stack.callback(server.stop)
                    server.start()
                    shared[name] = server
                values = row.measure(shared[name], self.settings)
            else:
                server = self._server(name, row)
                try:
                    if row.life is Life.ROUND:
                        server.start()
                    values = row.measure(server, self.settings)
                finally:
                    server.stop()
        except (BenchmarkError, OSError) as error:
            outcome.failures[name] = f"{type(error).__name__}: {error}"
            self.log(f"{row.name}: {name} FAILED: {error}")
        else:
            outcome.rounds.setdefault(name, []).append(values)
