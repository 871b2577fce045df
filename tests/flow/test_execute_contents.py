"""Fields of execute messages; a large content is not parsed."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.flow.execute_contents import (
    cell_of,
    code_size,
    count_of,
    error_of,
    lines_in,
    status_of,
)

LARGE = 1 << 20


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize("compact", [False, True])
def test_no_text_of_an_error_makes_the_log_grow(compact: bool) -> None:
    separators = (",", ":") if compact else None
    trap = 'no, "evalue": "this"'
    long = {"traceback": [trap], "ename": trap, "evalue": "v" * LARGE}
    content = json.dumps(long, separators=separators).encode()
    assert error_of(content) == {"ename": trap, "evalue": "", "traceback": []}
    long = {"evalue": "\u00e9\n" * 100, "ename": "E" * 5000, "traceback": ["x" * LARGE]}
    content = json.dumps(long, separators=separators).encode()
    assert error_of(content) == {"ename": "", "evalue": "\u00e9\n" * 100, "traceback": []}


def test_parts_of_an_error_that_have_other_types_are_left_out() -> None:
    deep: list[Any] = []
    for _ in range(900):
        deep = [deep]
    for wrong in (deep, [deep], "text", {"a": 1}, None):
        content = as_json({"ename": "E", "evalue": "v", "traceback": wrong})
        assert error_of(content) == {"ename": "E", "evalue": "v"}
    assert error_of(as_json({"ename": 1, "evalue": ["v"], "traceback": ["t", 1]})) == {}
    whole = {"ename": "E", "evalue": "v", "traceback": ["t", "u"]}
    assert error_of(as_json(whole)) == whole


def test_the_count_of_a_large_content_is_found_without_parsing_it() -> None:
    code = 'x = {"execution_count": 3}\n' * 10_000
    for content in (
        {"code": code, "execution_count": 7},
        {"execution_count": 7, "code": code},
    ):
        for separators in ((",", ":"), (", ", ": ")):
            text = json.dumps(content, separators=separators).encode()
            assert count_of(text, "execute_input") == 7
    data = {"application/json": {"execution_count": 3}, "text/plain": code}
    result = json.dumps({"data": data, "execution_count": 7}).encode()
    assert count_of(result, "execute_result") is None, "the count of execute_input is kept"
    assert count_of(b'{"code": "%b"}' % (b"x" * LARGE), "execute_input") is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"status": "ok", "execution_count": 3}, ("ok", 3)),
        ({"execution_count": 3, "status": "ok"}, ("ok", 3)),
        ({"status": "aborted"}, ("aborted", None)),
        ({"status": "error", "execution_count": "3"}, ("error", None)),
        ({"status": None}, ("", None)),
        ([], ("", None)),
        ({"status": "error", "execution_count": 3, "payload": ["x" * LARGE]}, ("error", None)),
    ],
)
def test_status_and_count_of_a_reply(content: Any, expected: tuple[str, int | None]) -> None:
    assert (status_of(as_json(content)), count_of(as_json(content), "execute_reply")) == expected


def test_content_that_is_not_json_has_no_fields() -> None:
    for content in (b"", b"{", b"[" * 100_000, b"\xff"):
        assert (status_of(content), count_of(content, "execute_reply")) == ("", None)
        assert code_size(content) in (0, len(content))


@given(st.text())
def test_the_size_of_code_is_that_of_its_utf8(code: str) -> None:
    assert code_size(as_json({"code": code})) == len(code.encode("utf-8", "surrogatepass"))


def test_the_size_of_large_code_is_that_of_its_json() -> None:
    content = as_json({"code": "x" * LARGE})
    assert LARGE < code_size(content) < LARGE + 100
    assert code_size(b'{"code": 3}') == 0


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (as_json({"cellId": "a-cell", "deletedCells": []}), "a-cell"),
        (as_json({"cellId": "a-cell", "more": "x" * 60_000}), "a-cell"),
        (as_json({"other": {"cellId": "nested"}}), None),
        (as_json({"cellId": 3}), None),
        (as_json({"cellId": ""}), None),
        (as_json({"cellId": "x" * 2000}), None),
        (as_json({"cellId": "a-cell", "more": "x" * LARGE}), None),
        (as_json({"cellId": "a-cell", "other": {"more": "x" * LARGE}}), None),
        (b'{"cellId": ', None),
        (b"{}", None),
    ],
)
def test_the_cell_of_a_request(metadata: bytes, expected: str | None) -> None:
    assert cell_of(metadata) == expected


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\\"))))
def test_lines_are_counted(texts: list[str]) -> None:
    contents = [as_json({"name": "stdout", "text": text}) for text in texts]
    assert lines_in(contents) == sum(text.count("\n") for text in texts)


def test_lines_of_a_large_text_are_estimated() -> None:
    text = ("x" * 99 + "\n") * 20_000
    content = as_json({"name": "stdout", "text": text})
    assert lines_in([content]) == pytest.approx(20_000, rel=0.01)
    assert lines_in([content, content]) == pytest.approx(40_000, rel=0.01)


SPACE = st.text(" \t\n\r\x0b\ufeff", max_size=2)
OBJECTS = st.dictionaries(
    st.sampled_from(["code", "status", "execution_count", "silent", "\u00e9"]),
    st.none() | st.booleans() | st.integers() | st.text() | st.just({"code": "nested"}),
)


@given(
    SPACE,
    OBJECTS | st.lists(OBJECTS, max_size=2) | st.text(),
    SPACE,
    st.none() | st.integers(0, 30),
    st.sampled_from(["", "}", "x", ", 1"]),
)
def test_the_fields_are_those_that_a_parser_finds(
    before: str, value: Any, after: str, cut: int | None, rest: str
) -> None:
    text = (before + json.dumps(value) + rest + after)[:cut]
    content = text.encode("utf-8", "surrogatepass")
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    found = found if isinstance(found, dict) else {}
    code, count, status = (found.get(name) for name in ("code", "execution_count", "status"))
    size = len(code.encode("utf-8", "surrogatepass")) if isinstance(code, str) else 0
    assert code_size(content) == size
    assert count_of(content, "execute_reply") == (count if isinstance(count, int) else None)
    assert type(count_of(content, "execute_reply")) is not bool
    if not text.startswith('{"status": "ok",'):  # that is believed without the rest
        assert status_of(content) == (status if isinstance(status, str) else "")
