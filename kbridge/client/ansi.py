"""Removes the escape sequences of terminals from the text of outputs."""

from __future__ import annotations

from typing import Final

__all__ = ["AnsiFilter"]

_ESCAPE: Final = "\x1b"


class AnsiFilter:
    """Removes escape sequences (ECMA-48) from a text that arrives in parts."""

    def __init__(self) -> None:
        self._state = ""  # "", ESC, [ in a control sequence, ] in a string

    def feed(self, text: str) -> str:
        """Return the text without escape sequences; one may go on in the next part."""
        if not self._state and _ESCAPE not in text:
            return text
        kept = []
        for char in text:
            state = self._state
            if not state:
                if char == _ESCAPE:
                    self._state = _ESCAPE
                else:
                    kept.append(char)
            elif state == _ESCAPE:
                self._state = char if char == "[" else "]" if char in "]P^_X" else ""
                if char in " ()*+-./#%":  # one more character follows
                    self._state = _ESCAPE
            elif state == "[":
                if "@" <= char <= "~":
                    self._state = ""
            elif char == "\x07":
                self._state = ""
            elif char == _ESCAPE:  # the first half of the string terminator
                self._state = _ESCAPE
        return "".join(kept)
