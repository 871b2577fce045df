"""`python -m tests.soak`: run the soak; exit with 1 if it found faults."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
from pathlib import Path

from tests.soak.client_profiles import PROFILES
from tests.soak.report import table
from tests.soak.run import Settings, soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="how long (default: 5, at most 60)"
    )
    parser.add_argument("--seed", default="", help="repeats the dice of an earlier run")
    parser.add_argument("--only", default="", help="names of kinds of clients, with commas")
    parser.add_argument("--without", default="", help="hostile, trouble or both")
    parser.add_argument("--keep", type=Path, help="a directory for the servers' files and logs")
    given = parser.parse_args()
    seed = given.seed or secrets.token_hex(4)
    profiles = tuple(t for t in PROFILES if not given.only or t.name in given.only.split(","))
    settings = Settings(
        seconds=60 * min(given.minutes, 60.0),
        seed=seed,
        profiles=profiles,
        hostile="hostile" not in given.without,
        trouble="trouble" not in given.without,
        echo=True,
    )
    print(f"seed {seed}: --seed {seed} repeats it", flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        home = given.keep or Path(temporary)
        outcome = asyncio.run(soak(settings, home))
    print(table(outcome))
    count = outcome.findings.count
    print(f"{count} findings; seed {seed}" if count else "Nothing lost, nothing left over.")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
