"""Escape sequences of terminals are removed from text that arrives in parts."""

from __future__ import annotations

from kbridge.client.ansi import AnsiFilter

COLOURED = "\x1b[1;31mred\x1b[0m \x1b]8;;http://a\x1b\\link\x1b]8;;\x07 \x1b(Bplain\r"


def test_escape_sequences_are_removed_wherever_the_text_is_split() -> None:
    for at in range(len(COLOURED) + 1):
        ansi = AnsiFilter()
        assert ansi.feed(COLOURED[:at]) + ansi.feed(COLOURED[at:]) == "red link plain\r"


def test_other_text_stays_as_it_is() -> None:
    assert AnsiFilter().feed("a[1m]\tb\r\n") == "a[1m]\tb\r\n"
