"""The lowest of many numbers that only rise."""

from __future__ import annotations

import gc
import weakref

from hypothesis import given
from hypothesis import strategies as st

from kbridge.flow.lowest import Lowest


class Reader:
    """An item with a number; counts how often the number is read."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.reads = 0

    def read(self) -> int:
        self.reads += 1
        return self.number


def test_no_items_have_no_lowest_number() -> None:
    lowest = Lowest(Reader.read)
    assert lowest.lowest() is None
    reader = Reader(3)
    lowest.add(reader)
    lowest.discard(reader)
    assert (lowest.lowest(), len(lowest)) == (None, 0)


def test_the_lowest_number_follows_the_items() -> None:
    first, second = Reader(1), Reader(5)
    lowest = Lowest(Reader.read)
    lowest.add(first)
    lowest.add(second)
    assert (lowest.lowest(), len(lowest)) == (1, 2)
    first.number = 9
    assert lowest.lowest() == 5
    second.number = 7
    assert lowest.lowest() == 7
    lowest.discard(second)
    assert (lowest.lowest(), len(lowest)) == (9, 1)


def test_an_item_whose_number_fell_is_added_again() -> None:
    first, second = Reader(5), Reader(6)
    lowest = Lowest(Reader.read)
    for reader in (first, second):
        lowest.add(reader)
    second.number = 2
    lowest.add(second)
    assert (lowest.lowest(), len(lowest)) == (2, 2)


def test_an_unknown_item_can_be_discarded() -> None:
    reader = Reader(4)
    lowest = Lowest(Reader.read)
    lowest.add(reader)
    lowest.discard(Reader(1))
    assert (lowest.lowest(), len(lowest)) == (4, 1)


def test_only_the_lowest_item_is_read_again() -> None:
    readers = [Reader(number) for number in range(1000)]
    lowest = Lowest(Reader.read)
    for reader in readers:
        lowest.add(reader)
    before = sum(reader.reads for reader in readers)
    assert [lowest.lowest() for _ in range(100)] == [0] * 100
    assert sum(reader.reads for reader in readers) == before + 100


def test_discarded_items_are_freed() -> None:
    """At most a few stay in the heap, where they would keep websockets alive."""
    lowest = Lowest(Reader.read)
    kept = Reader(0)
    lowest.add(kept)
    freed = []
    for number in range(1, 100):
        reader = Reader(number)
        freed.append(weakref.ref(reader))
        lowest.add(reader)
        lowest.discard(reader)
    del reader
    gc.collect()
    assert sum(ref() is not None for ref in freed) <= 4
    assert (lowest.lowest(), len(lowest)) == (0, 1)


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "discard", "rise"]), st.integers(0, 5), st.integers(0, 9))
    )
)
def test_the_lowest_number_agrees_with_min(steps: list[tuple[str, int, int]]) -> None:
    readers = [Reader(0) for _ in range(6)]
    lowest = Lowest(Reader.read)
    there: set[int] = set()
    for verb, index, number in steps:
        reader = readers[index]
        if verb == "add":
            reader.number = number
            lowest.add(reader)
            there.add(index)
        elif verb == "discard":
            lowest.discard(reader)
            there.discard(index)
        else:
            reader.number += number
        expected = min((readers[i].number for i in there), default=None)
        assert (lowest.lowest(), len(lowest)) == (expected, len(there))
