import subprocess
from typing import Any

import pytest

from kbridge.server.cli.app import KbridgeApp
from kbridge.server.cli.command_line import SUBCOMMANDS
from kbridge.server.cli.commands import ListApp
from kbridge.server.cli.completion import SHELLS, CompletionApp, words
from kbridge.server.cli.run import LogsApp
from tests.support.require import require


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    app = CompletionApp()
    app.initialize([shell])
    app.start()
    return capsys.readouterr().out


def complete(bash_script: str, *line: str) -> list[str]:
    """Return what bash offers for the last word of a line."""
    quoted = " ".join(f"'{word}'" for word in line)
    code = (
        f"{bash_script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(line) - 1}; _kbridge;"
        ' printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run([require("bash"), "-c", code], capture_output=True, text=True)
    assert not done.stderr
    return done.stdout.split()


def test_the_options_of_a_command() -> None:
    found = words(LogsApp)
    assert {"--follow", "-f", "--help", "--version"} <= set(found.flags)
    assert {"--server=", "--token="} <= set(found.options)
    assert "--json" in words(ListApp).flags


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["kbridge", "li"], ["list"]),
        (["kbridge", ""], sorted(SUBCOMMANDS)),
        (["kbridge", "completion", ""], sorted(SHELLS)),
        (["kbridge", "list", "--js"], ["--json", "--jsonlist"]),
        (["kbridge", "run", "--ker"], ["--kernel="]),
        (["kbridge", "--port-"], ["--port-retries="]),
        (["kbridge", "--ip=::1", "--metrics-p"], ["--metrics-port="]),
        (["kbridge", "run", "notebook"], []),  # bash completes the names of files then
    ],
)
def test_bash_completes(
    line: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert complete(script("bash", capsys), *line) == expected


@pytest.mark.parametrize("shell", sorted(SHELLS))
def test_every_script_has_all_commands_and_options(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = script(shell, capsys)
    for name in SUBCOMMANDS:
        assert name in text
    for option in words(KbridgeApp).options:
        assert option.strip("-=") in text


@pytest.mark.parametrize("arguments", [[], ["tcsh"], ["bash", "zsh"]])
def test_other_shells_are_errors(arguments: list[str]) -> None:
    app: Any = CompletionApp()
    app.initialize(arguments)
    with pytest.raises(SystemExit, match=r"usage: kbridge completion bash\|fish\|zsh"):
        app.start()
