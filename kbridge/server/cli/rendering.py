"""Show the outputs of an execution on a terminal, or in a file or pipe."""

from __future__ import annotations

import base64
import os
import sys
import tempfile
from collections.abc import Mapping
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final, TextIO

from kbridge.client import (
    DisplayData,
    Error,
    ExecuteResult,
    Gap,
    Output,
    Stream,
    UpdateDisplayData,
)
from kbridge.client.ansi import AnsiFilter

__all__ = ["Graphics", "Renderer", "graphics_of"]

_IMAGES: Final = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/svg+xml": "svg",
    "application/pdf": "pdf",
}
_KITTY_CHUNK: Final = 4096  # the protocol's limit for one escape sequence


class Graphics(Enum):
    """The ways in which a terminal shows images."""

    NONE = auto()
    KITTY = auto()
    ITERM = auto()


def graphics_of(environment: Mapping[str, str]) -> Graphics:
    """Return the protocol for images that the terminal says it has."""
    program = environment.get("TERM_PROGRAM", "")
    if environment.get("TERM") == "xterm-kitty" or "KITTY_WINDOW_ID" in environment:
        return Graphics.KITTY
    if environment.get("TERM") == "xterm-ghostty" or program == "ghostty":
        return Graphics.KITTY
    if program in ("iTerm.app", "WezTerm"):
        return Graphics.ITERM
    return Graphics.NONE


class Renderer:
    """Writes outputs to stdout and stderr.

    Parameters
    ----------
    out, err : TextIO
        The streams. Escape sequences reach a terminal only.
    environment : mapping
        The environment variables that describe the terminal.
    """

    def __init__(
        self,
        out: TextIO | None = None,
        err: TextIO | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        plain = bool(environment.get("NO_COLOR"))
        self._filters = {
            stream: AnsiFilter()
            for stream in (self._out, self._err)
            if plain or not stream.isatty()
        }
        self._graphics = graphics_of(environment) if self._out.isatty() else Graphics.NONE
        self._folder: Path | None = None
        self._images = 0

    def show(self, output: Output) -> None:
        """Write one output."""
        match output:
            case Stream(name, text):
                self._write(self._err if name == "stderr" else self._out, text)
            case ExecuteResult() | DisplayData() | UpdateDisplayData():
                self._bundle(output.data)
            case Error():
                self.error(output)
            case Gap():
                self._write(self._err, f"[{output.text}]\n")

    def error(self, error: Error) -> None:
        """Write a traceback to stderr."""
        lines = error.traceback or (f"{error.ename}: {error.evalue}",)
        self._write(self._err, "\n".join(lines) + "\n")

    def note(self, text: str) -> None:
        """Write a line of this program to stderr."""
        self._write(self._err, f"{text}\n")

    def prompt(self, text: str) -> None:
        """Write the prompt of a question."""
        self._write(self._out, text)

    def _write(self, stream: TextIO, text: str) -> None:
        ansi = self._filters.get(stream)
        stream.write(text if ansi is None else ansi.feed(text))
        stream.flush()

    def _bundle(self, data: Mapping[str, Any]) -> None:
        for kind, suffix in _IMAGES.items():
            if isinstance(content := data.get(kind), str):
                self._image(kind, suffix, content)
                return
        for kind in ("text/plain", "text/markdown", "text/latex", "text/html"):
            if isinstance(content := data.get(kind), str):
                self._write(self._out, f"{content}\n")
                return
        self._write(self._out, f"[output of type {', '.join(data) or 'unknown'}]\n")

    def _image(self, kind: str, suffix: str, content: str) -> None:
        try:
            raw = content.encode() if suffix == "svg" else base64.b64decode(content)
        except ValueError:
            self._write(self._out, f"[an image of type {kind} that is not valid]\n")
            return
        if self._graphics is Graphics.KITTY and kind == "image/png":
            self._out.write(_kitty(base64.b64encode(raw).decode()) + "\n")
        elif self._graphics is Graphics.ITERM and suffix not in ("svg", "pdf"):
            encoded = base64.b64encode(raw).decode()
            self._out.write(f"\x1b]1337;File=inline=1;size={len(raw)}:{encoded}\x07\n")
        else:
            self._out.write(f"[image: {self._save(raw, suffix)}]\n")
        self._out.flush()

    def _save(self, raw: bytes, suffix: str) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="kbridge-images-"))
        self._images += 1
        path = self._folder / f"{self._images}.{suffix}"
        path.write_bytes(raw)
        return path


def _kitty(encoded: str) -> str:
    """Return the escape sequences of kitty's protocol for a PNG file."""
    chunks = [encoded[i : i + _KITTY_CHUNK] for i in range(0, len(encoded), _KITTY_CHUNK)] or [""]
    parts = []
    for number, chunk in enumerate(chunks):
        first = "a=T,f=100," if number == 0 else ""
        more = int(number < len(chunks) - 1)
        parts.append(f"\x1b_G{first}m={more};{chunk}\x1b\\")
    return "".join(parts)
