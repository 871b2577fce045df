"""`python -m benchmarks [ROW ...]`: measure, print, and plot into docs/.

Without names, all rows run. A partial or quick run writes files only if `--output` says so:
docs/benchmarks.json and docs/benchmarks.png come from full runs of all servers.

The commit of `benchmarks.baseline.BASELINE` is measured in the same run, in the rows that have
targets relative to it.
"""

from __future__ import annotations

import resource
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import readme
from benchmarks.measure import BenchmarkError
from benchmarks.options import NO_BASELINE, is_partial, parser, servers
from benchmarks.page_cache import PageCache, write_cost
from benchmarks.plot import draw
from benchmarks.report import as_json, table, variants_table
from benchmarks.rows import ROWS
from benchmarks.runner import Runner
from benchmarks.servers import NAMES
from benchmarks.table import Settings

DOCS = Path(__file__).resolve().parent.parent / "docs"


def raise_descriptor_limit() -> None:
    """Raise the limit of file descriptors: this process has one end of thousands of websockets."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns 1 if a row could not be measured. A missed bar is a result, not an error."""
    made = parser(__doc__)
    options = made.parse_args(argv)
    wanted = [*options.rows, *filter(None, options.more_rows.split(","))]
    if unknown := [name for name in wanted if name not in ROWS]:
        made.error(f"no such row: {', '.join(unknown)} (there are {', '.join(ROWS)})")
    rows = [row for name, row in ROWS.items() if not wanted or name in wanted]
    try:
        measured, baseline = servers(options, rows)
    except BenchmarkError as error:
        made.error(f"--baseline: {error} (`{NO_BASELINE}` measures no baseline)")
    raise_descriptor_limit()
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # stops servers
    begin = time.monotonic()

    def log(text: str) -> None:
        print(f"[{time.monotonic() - begin:6.1f} s] {text}", file=sys.stderr, flush=True)

    if options.profile:
        options.profile = options.profile.resolve()
        options.profile.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="kbridge-bench-"))
        settings = Settings(
            home=Path(home),
            quick=options.quick,
            rounds=1 if options.quick else options.rounds,
            count=options.count,
            kernel=options.kernel,
        )
        page_cache = None
        if options.fill_page_cache:
            try:
                page_cache = stack.enter_context(PageCache(settings.home, log))
            except BenchmarkError as error:
                made.error(f"--fill-page-cache: {error}")
        runner = Runner(measured, settings, log, options.profile, page_cache)
        if page_cache:
            page_cache.fill()
        before = write_cost(settings.home)
        outcomes = [runner.run(row) for row in rows]
        after = write_cost(settings.home)
    print(table(outcomes))
    if beside := [name for name in measured if name not in NAMES]:
        print(f"\nbaseline: {baseline or 'none'}\n{variants_table(outcomes, beside)}")
    print(
        f"\nWriting to a new file: {before:.3g} ms of CPU per MB before the rows, {after:.3g} after"
    )
    output = options.output or (None if is_partial(options, rows) else DOCS)
    if output:
        output.mkdir(parents=True, exist_ok=True)
        (output / "benchmarks.json").write_text(
            as_json(
                outcomes, quick=options.quick, filled=options.fill_page_cache, baseline=baseline
            )
        )
        drawn = draw(outcomes, output / "benchmarks.png")
        if output == DOCS:
            readme.main()
        print(f"\nwritten: {output / 'benchmarks.json'}{' and .png' if drawn else ''}")
    return 1 if any(outcome.failures for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
