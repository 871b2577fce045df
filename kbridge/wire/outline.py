"""Find the members of a large JSON object, in steps and without building values.

`json` builds the complete value to find its end, and cannot be interrupted: a megabyte of small
numbers takes 50 ms. This module counts brackets and skips strings. The caller may interrupt it
after each step, so that other clients have their turn.

Invariants:

- a step takes about a millisecond for any text;
- a result is the text between a colon and the comma or bracket that ends the value. The module does
  not check that this text is JSON; the caller does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Generator
from typing import Final, TypeAlias

from kbridge.errors import InvalidMessage

__all__ = ["MAX_MEMBERS", "outline"]

Steps: TypeAlias = Generator[None, None, int]
"""Yields after each step; returns the index after the skipped element."""

MAX_MEMBERS: Final = 1000
"""Maximum number of members of an object; each member takes time in the interpreter."""

_MAX_DEPTH: Final = 10_000  # nested brackets; JSON parsers do not accept more
_WINDOW: Final = 1 << 14  # maximum number of characters that one match may read
_STEP: Final = 1 << 16  # characters per step
_TOKEN_COST: Final = 32  # cost of one match, in characters

_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_FLAT = rf'[^"{{}}\[\]]*+(?:{_STRING}[^"{{}}\[\]]*+)*+'  # no brackets outside strings
_LEAF = rf"(?:\{{{_FLAT}\}}|\[{_FLAT}\])"  # an object or array without nested ones
_skip_flat = re.compile(rf"{_FLAT}(?:{_LEAF}{_FLAT})*+", re.DOTALL).match
_skip_text = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL).match
_skip_scalar = re.compile(r"[^\s,{}\[\]\":]++").match
_skip_space = re.compile(r"[ \t\n\r]*+").match


def outline(
    text: str, wanted: Collection[str]
) -> Generator[None, None, dict[str, tuple[int, int]]]:
    """Find the members of a JSON object; a generator that yields between steps.

    Parameters
    ----------
    text : str
        The JSON object; white space around it is allowed.
    wanted : collection of str
        The keys to report. Keys with escapes do not match.

    Returns
    -------
    dict of str to (int, int)
        Start and end of each value. Of duplicate keys, the last one counts.

    Raises
    ------
    InvalidMessage
        If there are more members than `MAX_MEMBERS`.
    RecursionError
        If values are nested deeper than JSON parsers accept.
    ValueError
        If the text is not an object, or its keys, colons or commas are wrong.
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
            if members > MAX_MEMBERS:
                raise InvalidMessage(f"the message has more than {MAX_MEMBERS:,} members")
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
        """Skip the object or array whose opening bracket is at `at`."""
        text, size, depth = self._text, len(self._text), 0
        while True:
            if at >= size:
                raise ValueError("an object or array does not end")
            char = text[at]
            if char in "{[":
                depth += 1
                at += 1
                if depth > _MAX_DEPTH:
                    raise RecursionError
            elif char in "}]":
                depth -= 1
                at += 1
                if not depth:
                    return at
            elif char == '"':  # a string that is longer than the window
                at = yield from self._string(at + 1)
            flat = _skip_flat(text, at, min(at + _WINDOW, size))
            assert flat is not None  # the pattern also matches an empty text
            if self._spend(flat.end() - at):
                yield
            at = flat.end()

    def _string(self, at: int) -> Steps:
        """Skip the rest of the string at `at`."""
        text, size = self._text, len(self._text)
        while True:
            plain = _skip_text(text, at, min(at + _WINDOW, size))
            assert plain is not None  # the pattern also matches an empty text
            if self._spend((plain.end() - at) // 4):
                yield
            at = plain.end()
            if text.startswith('"', at):
                return at + 1
            if at >= size - 1:
                raise ValueError("a string does not end")

    def _spend(self, chars: int) -> bool:
        """Count work; return True at the end of a step."""
        self._spent += chars + _TOKEN_COST
        if self._spent < _STEP:
            return False
        self._spent = 0
        return True

    def _expect(self, char: str, at: int) -> int:
        if not self._text.startswith(char, at):
            raise ValueError(f"{char} expected")
        return at + 1

    def _space(self, at: int) -> int:
        found = _skip_space(self._text, at, at + _WINDOW)
        assert found is not None  # the pattern also matches an empty text
        return (
            found.end()
        )  # more white space than the window is an error of the caller's next check
