"""Outputs on terminals, and in files and pipes."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest

from kbridge.client import DisplayData, Error, ExecuteResult, Gap, Output, Stream
from kbridge.server.cli.rendering import Graphics, Renderer, graphics_of

PNG = b"\x89PNG" + bytes(9000)
ENCODED = base64.b64encode(PNG).decode()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(*outputs: Output, terminal: bool = False, **environment: str) -> tuple[str, str]:
    kind = Terminal if terminal else io.StringIO
    out, err = kind(), kind()
    renderer = Renderer(out, err, environment)
    for output in outputs:
        renderer.show(output)
    return out.getvalue(), err.getvalue()


def test_colours_stay_on_a_terminal_only() -> None:
    text = Stream("stdout", "\x1b[31mred\x1b[0m\r50 %")
    assert shown(text, terminal=True) == (text.text, "")
    assert shown(text) == ("red\r50 %", "")
    assert shown(text, terminal=True, NO_COLOR="1") == ("red\r50 %", "")


def test_streams_and_errors_go_to_their_places() -> None:
    error = Error("E", "v", ("first", "\x1b[31msecond\x1b[0m"))
    outputs = [Stream("stdout", "a"), Stream("stderr", "b\n"), error, Gap(1, 2, "missing")]
    assert shown(*outputs) == ("a", "b\nfirst\nsecond\n[missing]\n")
    assert shown(Error("E", "v", ())) == ("", "E: v\n")


def test_values_are_shown_as_text() -> None:
    data = {"text/html": "<b>", "text/plain": "42"}
    assert shown(ExecuteResult(1, data))[0] == "42\n"
    assert shown(DisplayData({"text/latex": "$x$"}))[0] == "$x$\n"
    assert shown(DisplayData({"application/json": {}}))[0] == "[output of type application/json]\n"
    assert shown(DisplayData({}))[0] == "[output of type unknown]\n"


@pytest.mark.parametrize(
    ("kind", "content", "suffix", "expected"),
    [
        ("image/png", ENCODED, ".png", PNG),
        ("image/svg+xml", "<svg/>", ".svg", b"<svg/>"),
    ],
)
def test_images_are_files_without_a_protocol(
    kind: str, content: str, suffix: str, expected: bytes
) -> None:
    [line] = shown(DisplayData({kind: content, "text/plain": "x"}), terminal=True)[0].splitlines()
    path = Path(line.removeprefix("[image: ").removesuffix("]"))
    assert path.suffix == suffix
    assert path.read_bytes() == expected
    path.unlink()
    path.parent.rmdir()


def test_an_image_that_is_not_valid_is_named() -> None:
    assert "not valid" in shown(DisplayData({"image/png": "a"}))[0]


def test_images_in_the_protocol_of_kitty() -> None:
    out, _ = shown(DisplayData({"image/png": ENCODED}), terminal=True, TERM="xterm-kitty")
    parts = [part for part in out.rstrip("\n").split("\x1b_G") if part]
    assert all(part.endswith("\x1b\\") for part in parts)
    heads, chunks = zip(*(part[:-2].split(";") for part in parts), strict=True)
    assert "".join(chunks) == ENCODED
    assert heads == ("a=T,f=100,m=1", "m=1", "m=0")


def test_images_in_the_protocol_of_iterm() -> None:
    image = DisplayData({"image/png": ENCODED})
    out, _ = shown(image, terminal=True, TERM_PROGRAM="iTerm.app")
    assert out == f"\x1b]1337;File=inline=1;size={len(PNG)}:{ENCODED}\x07\n"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm-256color"}, Graphics.NONE),
        ({"KITTY_WINDOW_ID": "1"}, Graphics.KITTY),
        ({"TERM_PROGRAM": "ghostty"}, Graphics.KITTY),
        ({"TERM_PROGRAM": "WezTerm"}, Graphics.ITERM),
        ({}, Graphics.NONE),
    ],
)
def test_the_terminal_says_what_it_can_show(
    environment: dict[str, str], expected: Graphics
) -> None:
    assert graphics_of(environment) is expected
