"""`kbridge mcp`: the server that it uses, and mistakes on its command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbridge.server.cli import commands
from kbridge.server.cli.mcp import McpApp

NOBODY = "--server=http://127.0.0.1:1"
SECRET = "a-secret-token"


@pytest.fixture(autouse=True)
def application(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A new instance for each test, without the config files of the user.

    The loggers of traitlets are those of an instance as long as there is one.
    """
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.delenv("KBRIDGE_URL", raising=False)
    yield
    McpApp.clear_instance()


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ([NOBODY, f"--token={SECRET}"], "cannot reach"),
        ([NOBODY, "--token-file={}/token"], "cannot reach"),
        ([f"--server=http://x:{SECRET}@127.0.0.1:1"], "cannot reach"),
        ([NOBODY, "--token-file={}/empty"], "is empty"),
        ([NOBODY, "--token-file={}/none"], "No such file"),
        (["an-argument"], "usage: kbridge mcp"),
    ],
)
def test_mistakes_are_told_in_a_line_without_the_token(
    args: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "token").write_text(f"{SECRET}\n")
    with pytest.raises(SystemExit) as end:
        commands.run(McpApp, [arg.format(tmp_path) for arg in args])
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert reason in line
    assert SECRET not in line


def test_the_package_of_the_extra_is_named_if_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(SystemExit):
        commands.run(McpApp, [NOBODY])
    assert "pip install '.[mcp]' in a clone" in capsys.readouterr().err
