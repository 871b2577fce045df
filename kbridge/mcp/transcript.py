"""The output of an execution as a language model reads it: plain text and images, bounded. Pure.

The text of an execution is one string: the text of all its outputs, without escape sequences, and
without the text that carriage returns or cleared outputs replace. A transcript keeps a window of
this text, and its end; it says where text is missing between them.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from kbridge.client import (
    ClearOutput,
    DisplayData,
    Error,
    ExecuteResult,
    Gap,
    Output,
    Stream,
    UpdateDisplayData,
)
from kbridge.client.ansi import AnsiFilter

__all__ = ["Cut", "Image", "Part", "Transcript", "plain_error"]

_IMAGES: Final = ("image/png", "image/jpeg", "image/gif", "image/webp")
_TEXTS: Final = ("text/plain", "text/markdown", "text/latex", "text/html", "image/svg+xml")
_LONGEST_LINE: Final = 4096  # a longer one is passed on: it is not a progress bar
_MOST_IMAGES: Final = 10
_MOST_IMAGE_CHARS: Final = 6 << 20


@dataclass(frozen=True, slots=True)
class Image:
    """An image, in base64."""

    mime_type: str
    data: str


@dataclass(frozen=True, slots=True)
class Cut:
    """Text that is missing here: it begins at a position in the text of the execution."""

    start: int
    size: int


Part: TypeAlias = str | Image | Cut


class _End:
    """The last characters of a text, and the images among them.

    Parameters
    ----------
    limit : int
        The number of characters.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: deque[str | Image] = deque()
        self.size = 0

    def add_text(self, text: str) -> None:
        self._parts.append(text)
        self.size += len(text)
        while (surplus := self.size - self._limit) > 0:
            first = self._parts.popleft()
            if isinstance(first, str):
                kept = first[surplus:]
                self.size -= len(first) - len(kept)
                if kept:
                    self._parts.appendleft(kept)

    def add_image(self, image: Image) -> None:
        if self._limit:
            self._parts.append(image)

    def parts(self) -> Iterable[str | Image]:
        return self._parts


class Transcript:
    """The output of an execution, as far as it is shown.

    Parameters
    ----------
    start : int
        The position of the first character that is kept.
    head, tail : int
        The number of characters that are kept from there, and of those at the end.
    position : int
        The position of the first character that will be added.
    """

    def __init__(self, start: int, head: int, tail: int, position: int = 0) -> None:
        self._start = start
        self._skipped = start - position
        self._head_limit = head
        self._tail_limit = tail
        self._escapes = AnsiFilter()
        self._restart(position)

    def _restart(self, position: int) -> None:
        self._position = position
        self._head: list[str | Image] = []
        self._tail = _End(self._tail_limit)
        self._line = ""  # the last line, which a carriage return may replace
        self._clear = False
        self._images = 0
        self._image_chars = 0

    def _start_again(self) -> None:
        """Drop cleared output; the text after it is new, also where others were shown before."""
        self._start = self._skipped
        self._restart(0)

    @property
    def position(self) -> int:
        """The position after the last character."""
        return self._position + len(self._line)

    def add(self, output: Output) -> str:
        """Add an output; return its text, for those who want to see it as it arrives."""
        if isinstance(output, ClearOutput):
            self._clear = True
            if not output.wait:
                self._start_again()
            return ""
        if self._clear:
            self._start_again()
        match output:
            case Stream():
                text = self._escapes.feed(output.text)
                self._stream(text)
                return text
            case Error():
                return self._block(plain_error(output))
            case Gap():
                return self._block(f"[output is missing here: {output.text}]")
            case DisplayData() | UpdateDisplayData() | ExecuteResult():
                return self._bundle(output.data)

    def parts(self) -> list[Part]:
        """Return the text and the images, in order, and cuts where text is not shown."""
        self._flush()
        found: list[Part] = []
        tail_from = self._position - self._tail.size
        shown_to = min(self._start + self._head_limit, tail_from)
        if self._start > 0:
            found.append(Cut(0, min(self._start, self._position)))
        found += self._head
        if shown_to < tail_from:
            found.append(Cut(shown_to, tail_from - shown_to))
        found += self._tail.parts()
        return _joined(found)

    # Adding text.

    def _stream(self, text: str) -> None:
        text = self._line + text
        before, newline, self._line = text.rpartition("\n")
        if newline:
            if "\r" in before:
                before = "\n".join(_replaced(line) for line in before.split("\n"))
            self._emit(before + "\n")
        if "\r" in self._line:
            pending = self._line.endswith("\r")
            self._line = _replaced(self._line) + "\r" * pending
        if len(self._line) > _LONGEST_LINE:
            self._flush()

    def _block(self, text: str) -> str:
        """Add a text that begins and ends with a line."""
        self._stream(f"{self._separator()}{text.rstrip()}\n")
        return f"{text}\n"

    def _separator(self) -> str:
        return "\n" if self._line and not self._line.endswith("\n") else ""

    def _flush(self) -> None:
        line, self._line = _replaced(self._line), ""
        self._emit(line)

    def _emit(self, text: str) -> None:
        at = self._position
        self._position += len(text)
        text = text[max(0, self._start - at) :]
        at = max(at, self._start)
        room = max(0, self._start + self._head_limit - at)
        if room and text:
            self._head.append(text[:room])
        if rest := text[room:]:
            self._tail.add_text(rest)

    def _bundle(self, data: Mapping[str, Any]) -> str:
        for kind in _IMAGES:
            if isinstance(content := data.get(kind), str):
                return self._image(Image(kind, "".join(content.split())))
        for kind in _TEXTS:
            if isinstance(content := data.get(kind), str):
                return self._block(AnsiFilter().feed(content))
        if "application/json" in data:
            return self._block(json.dumps(data["application/json"], ensure_ascii=False))
        return self._block(f"[output of the type {', '.join(data) or 'unknown'} is not shown]")

    def _image(self, image: Image) -> str:
        self._images += 1
        self._image_chars += len(image.data)
        if self._images > _MOST_IMAGES or self._image_chars > _MOST_IMAGE_CHARS:
            size = len(image.data) * 3 // 4
            return self._block(f"[an image of {size:,} bytes ({image.mime_type}) is not shown]")
        self._flush()
        if self._start <= self._position < self._start + self._head_limit:
            self._head.append(image)
        elif self._position >= self._start:
            self._tail.add_image(image)
        return ""


def plain_error(error: Error) -> str:
    """Return the traceback of an error without escape sequences, ending with its name and value."""
    text = AnsiFilter().feed("\n".join(error.traceback)).rstrip()
    last = f"{error.ename}: {error.evalue}".rstrip()
    return text if text.endswith(last) else f"{text}\n{last}".lstrip("\n")


def _replaced(line: str) -> str:
    """Return what a terminal shows of a line with carriage returns."""
    return line.rstrip("\r").rpartition("\r")[2]


def _joined(parts: Iterable[Part]) -> list[Part]:
    """Join the texts that follow each other."""
    found: list[Part] = []
    for part in parts:
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return found
