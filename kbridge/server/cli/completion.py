"""`kbridge completion`: prints what a shell needs to complete commands and options."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from traitlets import import_item
from traitlets.config import Application

from kbridge.server.cli.command_line import SUBCOMMANDS
from kbridge.server.cli.commands import _Command, say

__all__ = ["SHELLS", "CompletionApp", "Words", "words"]


@dataclass(frozen=True, slots=True)
class Words:
    """The words that follow one command.

    Attributes
    ----------
    flags : tuple of str
        Options without a value.
    options : tuple of str
        Options with a value, each with the `=` at its end.
    """

    flags: tuple[str, ...]
    options: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Every option."""
        return tuple(sorted((*self.flags, *self.options)))


def words(app: type[Application]) -> Words:
    """Return the options of a command."""

    def names(table: Iterable[Any]) -> list[str]:
        found = [name for key in table for name in (key if isinstance(key, tuple) else (key,))]
        return [f"--{name}" if len(name) > 1 else f"-{name}" for name in found]

    flags = {*names(app.flags), "--help", "--help-all", "--version"}
    options = {f"{name}=" for name in names(app.aliases)}
    return Words(tuple(sorted(flags)), tuple(sorted(options)))


def _commands() -> dict[str, tuple[str, Words]]:
    """Return the description and the words of each command."""
    return {name: (about, words(import_item(path))) for name, (path, about) in SUBCOMMANDS.items()}


def bash(top: Words) -> str:
    """Return the script for bash."""
    commands = _commands()
    cases = "\n".join(
        f'        {name}) words="{" ".join(found.all)}" ;;' for name, (_, found) in commands.items()
    )
    return f"""\
# Completion of kbridge in bash.
_kbridge() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} words
    COMPREPLY=()
    if [[ $COMP_CWORD -eq 1 && $current != -* ]]; then
        COMPREPLY=($(compgen -W "{" ".join(commands)}" -- "$current"))
        return
    fi
    if [[ ${{COMP_WORDS[1]}} == completion && $COMP_CWORD -eq 2 && $current != -* ]]; then
        COMPREPLY=($(compgen -W "{" ".join(SHELLS)}" -- "$current"))
        return
    fi
    [[ $current == -* ]] || return  # the names of files
    case ${{COMP_WORDS[1]}} in
{cases}
        *) words="{" ".join(top.all)}" ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    [[ ${{#COMPREPLY[@]}} -eq 1 && $COMPREPLY == *= ]] && compopt -o nospace 2>/dev/null
    return 0
}}
complete -o default -F _kbridge kbridge
"""


def zsh(top: Words) -> str:
    """Return the script for zsh."""
    commands = _commands()
    listed = "\n".join(f"        '{name}:{_plain(about)}'" for name, (about, _) in commands.items())
    cases = "\n".join(
        f"        {name}) options=({' '.join(found.all)}) ;;"
        for name, (_, found) in commands.items()
    )
    return f"""\
#compdef kbridge
# Completion of kbridge in zsh.
_kbridge() {{
    local -a commands options
    commands=(
{listed}
    )
    if (( CURRENT == 2 )) && [[ $words[2] != -* ]]; then
        _describe command commands
        return
    fi
    if (( CURRENT == 3 )) && [[ $words[2] == completion && $words[3] != -* ]]; then
        compadd -- {" ".join(SHELLS)}
        return
    fi
    if [[ $words[CURRENT] != -* ]]; then
        _files
        return
    fi
    case $words[2] in
{cases}
        *) options=({" ".join(top.all)}) ;;
    esac
    compadd -S '' -- ${{(M)options:#*=}}
    compadd -- ${{options:#*=}}
}}
if [[ $funcstack[1] == _kbridge ]]; then
    _kbridge "$@"
else
    compdef _kbridge kbridge
fi
"""


def fish(top: Words) -> str:
    """Return the script for fish."""
    commands = _commands()
    seen = " ".join(commands)
    lines = ["# Completion of kbridge in fish."]
    none = f"not __fish_seen_subcommand_from {seen}"
    for name, (about, _) in commands.items():
        lines.append(f"complete -c kbridge -n '{none}' -f -a {name} -d '{_plain(about)}'")
    shells = " ".join(SHELLS)
    lines.append(
        f"complete -c kbridge -n '__fish_seen_subcommand_from completion' -f -a '{shells}'"
    )
    for condition, found in (
        (none, top),
        *((f"__fish_seen_subcommand_from {name}", w) for name, (_, w) in commands.items()),
    ):
        for word in found.all:
            kind = "-s" if word.startswith("-") and not word.startswith("--") else "-l"
            value = " -r" if word.endswith("=") else ""
            lines.append(f"complete -c kbridge -n '{condition}' {kind} {word.strip('-=')}{value}")
    return "\n".join(lines) + "\n"


def _plain(about: str) -> str:
    """Return a description without characters that mean something to a shell."""
    return about.rstrip(".").translate(str.maketrans(":'`", "   "))


SHELLS: Final[dict[str, Callable[[Words], str]]] = {"bash": bash, "fish": fish, "zsh": zsh}
"""The script of each shell."""


class CompletionApp(_Command):
    """Prints the completion for a shell."""

    name = "kbridge-completion"
    description = """Print the completion of commands and options for bash, fish or zsh.

    Write it to a file where the shell looks for completions, again after an upgrade.
    """
    examples = (
        "kbridge completion bash > ~/.local/share/bash-completion/completions/kbridge\n"
        "kbridge completion fish > ~/.config/fish/completions/kbridge.fish\n"
        "kbridge completion zsh > ~/.zfunc/_kbridge    # a directory in $fpath"
    )

    def start(self) -> None:
        """Print the script."""
        super().start()
        if len(self.extra_args) != 1 or self.extra_args[0] not in SHELLS:
            sys.exit(f"usage: kbridge completion {'|'.join(SHELLS)}")
        from kbridge.server.cli.app import KbridgeApp

        say(SHELLS[self.extra_args[0]](words(KbridgeApp)).rstrip())
