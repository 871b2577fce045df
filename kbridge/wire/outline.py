"""Where the members of a large JSON object stand, found in steps and without building values.

`json` builds the whole of a value to find its end, and nothing interrupts it: 50 ms for a megabyte
of small numbers. Here brackets are counted and strings are skipped, which a caller may interrupt
after each step to let others have their turn.

Laws of this module:

- a step costs about a millisecond, whatever the text is;
- what is found are texts between a colon and the comma or bracket that ends a value. Whether such a
  text is JSON is not checked: its reader does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Generator
from typing import Final, TypeAlias

__all__ = ["MOST_MEMBERS", "TooManyMembers", "outline"]

Steps: TypeAlias = Generator[None, None, int]
"""Yields after each step; returns where the next thing begins."""

MOST_MEMBERS: Final = 1000
"""Members that an object may have: each costs a step of the interpreter."""

_DEEPEST: Final = 10_000  # brackets within brackets: no parser of JSON takes more
_WINDOW: Final = 1 << 14  # characters that one call of a pattern may read
_STEP: Final = 1 << 16  # characters of a step
_TOKEN_COST: Final = 32  # characters that may be read in the time that a call takes

_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_FLAT = rf'[^"{{}}\[\]]*+(?:{_STRING}[^"{{}}\[\]]*+)*+'  # no brackets but in strings
_LEAF = rf"(?:\{{{_FLAT}\}}|\[{_FLAT}\])"  # an object or array that holds no other
_skip_flat = re.compile(rf"{_FLAT}(?:{_LEAF}{_FLAT})*+", re.DOTALL).match
_skip_text = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL).match
_skip_scalar = re.compile(r"[^\s,{}\[\]\":]++").match
_skip_space = re.compile(r"[ \t\n\r]*+").match


class TooManyMembers(ValueError):
    """The object has more members than `MOST_MEMBERS`."""


def outline(
    text: str, wanted: Collection[str]
) -> Generator[None, None, dict[str, tuple[int, int]]]:
    """Find the members of the JSON object that `text` is; a generator that yields between steps.

    Parameters
    ----------
    text : str
        The object, perhaps with space around it.
    wanted : collection of str
        The keys to report. Keys that are spelled with escapes are other keys.

    Returns
    -------
    dict of str to (int, int)
        Start and end of each value; of the last one where a key comes twice.

    Raises
    ------
    TooManyMembers
        If there are more members than `MOST_MEMBERS`.
    RecursionError
        If values are nested deeper than any parser of JSON goes.
    ValueError
        If the text is not an object with keys, colons and commas in their places.
    """
    return (yield from _Outline(text).run(wanted))


class _Outline:
    def __init__(self, text: str) -> None:
        self._text = text
        self._spent = 0

    def run(self, wanted: Collection[str]) -> Generator[None, None, dict[str, tuple[int, int]]]:
        text = self._text
        found: dict[str, tuple[int, int]] = {}
        at = self._space(self._expect("{", self._space(0)))
        more = not text.startswith("}", at)
        members = 0
        while more:
            members += 1
            if members > MOST_MEMBERS:
                raise TooManyMembers
            key = at = self._expect('"', at)
            at = yield from self._string(at)
            key_end = at - 1
            start = self._space(self._expect(":", self._space(at)))
            end = yield from self._value(start)
            if key_end - key <= _WINDOW and text[key:key_end] in wanted:
                found[text[key:key_end]] = (start, end)
            at = self._space(end)
            more = text.startswith(",", at)
            if more:
                at = self._space(at + 1)
        at = self._expect("}", at)
        if self._space(at) != len(text):
            raise ValueError("text after the object")
        return found

    def _value(self, at: int) -> Steps:
        text = self._text
        if text.startswith('"', at):
            return (yield from self._string(at + 1))
        if text.startswith(("{", "["), at):
            return (yield from self._container(at))
        scalar = _skip_scalar(text, at, at + _WINDOW)
        if scalar is None:
            raise ValueError("a value is missing")
        return scalar.end()

    def _container(self, at: int) -> Steps:
        """Skip an object or array; `at` is that of its bracket."""
        text, size, depth = self._text, len(self._text), 0
        while True:
            if at >= size:
                raise ValueError("an object or array does not end")
            char = text[at]
            if char in "{[":
                depth += 1
                at += 1
                if depth > _DEEPEST:
                    raise RecursionError
            elif char in "}]":
                depth -= 1
                at += 1
                if not depth:
                    return at
            elif char == '"':  # longer than a window
                at = yield from self._string(at + 1)
            flat = _skip_flat(text, at, min(at + _WINDOW, size))
            assert flat is not None  # the pattern matches nothing, too
            if self._spend(flat.end() - at):
                yield
            at = flat.end()

    def _string(self, at: int) -> Steps:
        """Skip the rest of a string."""
        text, size = self._text, len(self._text)
        while True:
            plain = _skip_text(text, at, min(at + _WINDOW, size))
            assert plain is not None  # the pattern matches nothing, too
            if self._spend((plain.end() - at) // 4):
                yield
            at = plain.end()
            if text.startswith('"', at):
                return at + 1
            if at >= size - 1:
                raise ValueError("a string does not end")

    def _spend(self, chars: int) -> bool:
        """Count work; True if it is time for others."""
        self._spent += chars + _TOKEN_COST
        if self._spent < _STEP:
            return False
        self._spent = 0
        return True

    def _expect(self, char: str, at: int) -> int:
        if not self._text.startswith(char, at):
            raise ValueError(f"no {char} where it must be")
        return at + 1

    def _space(self, at: int) -> int:
        found = _skip_space(self._text, at, at + _WINDOW)
        assert found is not None  # the pattern matches nothing, too
        return found.end()  # of more space than a window, the rest is where something else must be
