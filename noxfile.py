"""Run the tests with every supported Python that is installed: `nox`.

`nox --session tests-3.12 -- tests/wire` narrows it. Interpreters that are missing are skipped,
except in CI. The sessions use `constraints.txt`, as `make test` does.
"""

from __future__ import annotations

import os

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = bool(os.environ.get("CI"))
nox.options.sessions = ["tests"]

PYTHONS = ["3.11", "3.12", "3.13"]
# The browser tests do the same with every Python, and take half of the time.
DEFAULTS = ["-n", "2", "-m", "not browser and not slow"]


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests; arguments after `--` replace the default selection."""
    session.install("--constraint", "constraints.txt", "--editable", ".[test]")
    session.install("./speedups")
    session.run("python", "-m", "pytest", *(session.posargs or DEFAULTS))


@nox.session(python=False)
def check(session: nox.Session) -> None:
    """Format, lint, types and layers, as `make check` does."""
    session.run("make", "check", external=True)
