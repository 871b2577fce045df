"""Lines from stdin, from pipes, files and terminals."""

from __future__ import annotations

import asyncio
import os
import pty
import termios
from pathlib import Path

import pytest

from kbridge.server.cli.line_input import LineInput


async def test_lines_of_a_pipe() -> None:
    read, write = os.pipe()
    prompts: list[str] = []
    lines = LineInput(prompts.append, read)
    asking = asyncio.create_task(lines.ask("a? ", False))
    await asyncio.sleep(0)
    os.write(write, b"one\ntwo\nlast")
    assert await asking == "one"
    assert await lines.ask("b? ", True) == "two"
    os.close(write)
    assert await lines.ask("c? ", False) == "last"
    with pytest.raises(EOFError):
        await lines.ask("d? ", False)
    os.close(read)
    assert prompts == ["a? ", "b? ", "c? ", "d? "]


async def test_lines_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_text("one\n")
    fd = os.open(file, os.O_RDONLY)
    lines = LineInput(lambda prompt: None, fd)
    assert await lines.ask("", False) == "one"
    with pytest.raises(EOFError):
        await lines.ask("", False)
    os.close(fd)


async def test_a_question_that_is_cancelled_leaves_the_line_to_the_next_one() -> None:
    read, write = os.pipe()
    lines = LineInput(lambda prompt: None, read)
    asking = asyncio.create_task(lines.ask("", False))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    os.write(write, b"one\n")
    assert await lines.ask("", False) == "one"
    os.close(read)
    os.close(write)


async def test_a_password_is_not_echoed() -> None:
    person, terminal = pty.openpty()
    echoes: list[bool] = []

    def prompt(text: str) -> None:
        echoes.append(bool(termios.tcgetattr(terminal)[3] & termios.ECHO))
        if text == "? ":
            os.write(person, b"secret\n")

    try:
        asking = asyncio.create_task(LineInput(prompt, terminal).ask("? ", True))
        assert await asking == "secret"
        assert echoes == [True, True], "it is on before and after"
    finally:
        os.close(person)
        os.close(terminal)
