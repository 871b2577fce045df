"""The state log against a dict, with lines that were not written completely."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_hexdigest

from kbridge.storage.state_log import StateChanges, StateLog, parse

VALUES = st.none() | st.integers() | st.text(max_size=5) | st.lists(st.booleans(), max_size=2)
KEYS = st.sampled_from("abcd")
STEPS = st.lists(
    st.tuples(KEYS, VALUES)
    | st.sampled_from(["write", "fail"])
    | st.tuples(st.just("finish"), KEYS, st.integers(0, 2))
    | st.tuples(st.just("encode"), st.none(), st.none() | st.integers(0, 2)),
    max_size=30,
)


def written(content: bytes, changes: StateChanges) -> bytes:
    before = content if changes.whole is None else changes.whole
    return before + changes.values + changes.removals


@given(STEPS, st.dictionaries(st.sampled_from("ae"), st.integers()))
def test_the_file_has_what_a_dict_has(steps: list[Any], found: dict[str, object]) -> None:
    log = StateLog(found)
    expected = dict(found)
    content = b"a torn line that an earlier process left"
    for step in steps:
        if step == "write":
            content = written(content, log.take())
            assert parse(content) == expected
        elif step == "fail":
            changes = log.take()
            log.failed(changes)
            content += changes.values[: len(changes.values) // 2]
        elif step[0] == "finish":
            log.finished.append(step[1])
            log.encode_finished(step[2])
        elif step[0] == "encode":
            log.encode(step[2])
        else:
            key, value = step
            log.set(key, value)
            if value is None:
                expected.pop(key, None)
            else:
                expected[key] = value
        assert log.records == expected
    content = written(content, log.take())
    assert parse(content) == expected
    assert not log.pending


def test_values_keep_the_order_in_which_their_keys_were_set_first() -> None:
    log = StateLog(None)
    for key in "abc":
        log.set(key, 1)
    content = written(b"", log.take())
    log.set("a", 2)
    log.set("b", None)
    content = written(content, log.take())
    log.set("b", 3)
    assert [*log.records] == ["a", "c", "b"]
    assert [*parse(written(content, log.take()))] == ["a", "c", "b"]
    log.set("a", None)
    log.set("a", 4)  # in one write: set again, so that it is the last
    assert [*log.records] == ["c", "b", "a"]
    assert [*parse(written(content, log.take()))] == ["c", "b", "a"]


def test_a_function_is_called_once_for_each_write() -> None:
    log = StateLog(None)
    calls: list[str] = []

    def value(name: str) -> str:
        calls.append(name)
        return json.dumps(name)

    for name in ("first", "second", "third"):
        log.set("a", lambda name=name: value(name))
    assert parse(log.take().values) == {"a": "third"}
    log.set("a", lambda: value("fourth"))
    assert log.records == {"a": "fourth"}
    assert parse(log.take().values) == {"a": "fourth"}
    assert calls == ["third", "fourth"]


def test_values_go_before_the_frames_and_removals_after_them() -> None:
    log = StateLog(None)
    log.set("old", 1)
    log.take()
    log.set("old", None)
    log.set("new", 2)
    changes = log.take()
    assert changes.whole is None
    assert parse(changes.values) == {"new": 2}
    assert b'"old"' in changes.removals
    assert parse(changes.values + changes.removals) == {"new": 2}


def test_a_failed_removal_is_repeated_and_a_new_value_wins() -> None:
    log = StateLog(None)
    log.set("a", 1)
    log.set("b", 1)
    log.take()
    log.set("a", None)
    log.set("b", None)
    changes = log.take()
    log.set("b", 2)
    log.failed(changes)
    changes = log.take()
    assert changes.whole is not None
    assert parse(changes.whole) == {"a": 1, "b": 2}  # until the frames are written
    assert parse(written(b"", changes)) == {"b": 2}


def test_a_line_cut_at_any_byte_ends_the_log() -> None:
    log = StateLog(None)
    log.set("a", "x" * 20)
    first = log.take().values
    log.set("b", [1, 2])
    both = first + log.take().values
    for end in range(len(both)):
        assert parse(both[:end]) == ({"a": "x" * 20} if end >= len(first) else {})
    assert parse(both[:-1] + b"?") == {"a": "x" * 20}


def test_a_large_log_is_rewritten_and_stays_small() -> None:
    log = StateLog(None)
    content = b""
    rewritten = 0
    for i in range(3000):
        log.set(f"place/{i % 10}", "x" * 2000)
        changes = log.take()
        rewritten += changes.whole is not None
        content = written(content, changes)
        assert len(content) < 1_200_000
    assert 3 <= rewritten <= 8
    assert len(parse(content)) == 10


@pytest.mark.parametrize("entry", [{"x": 1}, {"v": 1}, {"k": 1, "v": 2}, {"k": None}, [], "k", 1])
def test_a_line_of_another_version_is_ignored(entry: object) -> None:
    log = StateLog(None)
    log.set("a", 1)
    first = log.take().values
    log.set("b", 2)
    text = json.dumps(entry).encode()
    line = b"%s %s\n" % (xxh3_64_hexdigest(text).encode(), text)
    assert parse(first + line + log.take().values) == {"a": 1, "b": 2}


def test_of_several_values_between_two_writes_only_the_last_is_written() -> None:
    log = StateLog(None)
    log.set("a", 1)
    log.set("b", 1)
    log.set("a", 2)
    assert log.records == {"a": 2, "b": 1}
    changes = log.take()
    assert changes.values.count(b"\n") == 2
    assert parse(changes.values) == {"a": 2, "b": 1}


def test_lines_are_made_in_parts_and_each_once() -> None:
    log = StateLog(None)
    calls: list[str] = []

    def value(key: str) -> str:
        calls.append(key)
        return json.dumps(key)

    for key in "abcdef":
        log.set(key, lambda key=key: value(key))
    log.finished += "dbx"
    log.encode_finished(1)
    assert (calls, log.finished) == (["d"], ["b", "x"])
    log.encode_finished(5)
    assert (calls, log.finished) == (["d", "b"], [])
    assert not log.encode(2)
    assert calls == ["d", "b", "a", "c"]
    log.finished.append("e")
    assert log.encode(2)
    assert log.encode(2)
    assert not log.finished, "its line is there"
    changes = log.take()
    assert calls == ["d", "b", "a", "c", "e", "f"]
    assert [*parse(changes.values)] == [*"abcdef"], "in the order in which they were set"
    log.set("b", lambda: value("new"))
    log.set("a", lambda: value("newer"))
    log.finished.append("a")
    log.encode_finished(1)
    assert [*parse(log.take().values).items()] == [("b", "new"), ("a", "newer")]


def test_a_value_that_cannot_be_written_stays() -> None:
    log = StateLog(None)
    log.set("a", 1)
    log.set("b", object())
    for _ in range(2):
        with pytest.raises(TypeError):
            log.take()
    log.set("b", 2)
    assert parse(log.take().values) == {"a": 1, "b": 2}
