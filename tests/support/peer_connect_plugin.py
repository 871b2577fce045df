"""A pytest plugin for the test suites of jupyter_client and ipykernel, which puts kbridge's
`connect` under them.

It is copied beside the unpacked suite and loaded there first, so it imports only installed modules.

jupyter_client is imported twice: once for `kbridge.connect`, which builds on parts of it; and again
after kbridge's names are in its `connect` module, so that its clients and kernel managers, and
ipykernel, use kbridge's classes and functions.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

import kbridge.connect as ours

OF_JUPYTER_CLIENT = (
    "ConnectionFileMixin",
    "LocalPortCache",
    "channel_socket_types",
    "find_connection_file",
    "port_names",
    "tunnel_to_kernel",
    "write_connection_file",
)
OF_IPYKERNEL = (
    "connect_qtconsole",
    "get_connection_file",
    "get_connection_info",
    "write_connection_file",
)
# Modules that `kbridge.connect` has imported already, or that have no names of `connect`.
KEPT = {
    f"jupyter_client.{name}"
    for name in (
        "_version",
        "adapter",
        "connect",
        "jsonutil",
        "localinterfaces",
        "session",
        "utils",
    )
}


def put_in() -> None:
    theirs = import_module("jupyter_client.connect")
    for name in OF_JUPYTER_CLIENT:
        assert hasattr(theirs, name), name
        setattr(theirs, name, getattr(ours, name))
    for name in list(sys.modules):
        if name.partition(".")[0] == "jupyter_client" and name not in KEPT:
            del sys.modules[name]
    package = import_module("jupyter_client")
    package.connect = theirs  # an import would set it, but the module is imported already
    kernels = import_module("ipykernel.connect")
    for name in OF_IPYKERNEL:
        assert hasattr(kernels, name), name
        setattr(kernels, name, getattr(ours, name))


put_in()


def in_place() -> dict[str, str]:
    """Return the modules of the functions that the tests use."""
    client = import_module("jupyter_client")
    app = import_module("ipykernel.kernelapp").IPKernelApp
    provisioner = import_module("jupyter_client.provisioning.local_provisioner")
    return {
        "kernel manager": next(
            c.__module__ for c in client.KernelManager.__mro__ if "write_connection_file" in vars(c)
        ),
        "client": next(c.__module__ for c in client.KernelClient.__mro__ if "_make_url" in vars(c)),
        "kernel": next(c.__module__ for c in app.__mro__ if "ports" in vars(c)),
        "ports": provisioner.LocalPortCache.__module__,
        "writing": client.write_connection_file.__module__,
        "finding": client.find_connection_file.__module__,
        "inside": import_module("ipykernel.connect").get_connection_info.__module__,
    }


class Report:
    """The outcome of each test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.collected: list[str] = []
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.outcomes[report.nodeid] = f"failed in {report.when}:\n{report.longreprtext}\n"
        elif report.skipped:
            self.outcomes[report.nodeid] = f"skipped: {report.longrepr}"
        elif report.when == "call":
            self.outcomes[report.nodeid] = "passed"

    def pytest_sessionfinish(self) -> None:
        found = {
            "collected": self.collected,
            "outcomes": self.outcomes,
            "in_place": in_place(),
        }
        self.path.write_text(json.dumps(found), encoding="utf-8")


REPORT = pytest.StashKey[Report]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--leave-out", action="append", default=[], help="a test's exact id")
    parser.addoption("--report-to", type=Path, help="where to write what became of each test")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = Report(config.getoption("--report-to"))
    config.pluginmanager.register(config.stash[REPORT])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[REPORT].collected += [item.nodeid for item in items]
    left_out = set(config.getoption("--leave-out"))
    items[:] = [item for item in items if item.nodeid not in left_out]
