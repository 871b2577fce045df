"""Finding the members of large JSON objects without parsing."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.errors import InvalidMessage
from kbridge.wire import outline as module
from kbridge.wire.outline import MAX_MEMBERS, outline


def run(text: str, wanted=("a", "b", "")) -> tuple[dict[str, str], int]:
    """Return the members and the number of steps."""
    steps = outline(text, wanted)
    count = 0
    while True:
        count += 1
        try:
            next(steps)
        except StopIteration as end:
            return {key: text[slice(*place)] for key, place in end.value.items()}, count


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text()
    | st.text('"\\{}[],:\n \ud800'),
    lambda each: (
        st.lists(each, max_size=4) | st.dictionaries(st.text(max_size=3), each, max_size=4)
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "c", "", '"', "\\"]), VALUES, max_size=5),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.integers(2, 40),
)
def test_outline_finds_the_members_that_the_parser_reads(
    members, indent, ascii_only, window
) -> None:
    text = json.dumps(members, indent=indent, ensure_ascii=ascii_only)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WINDOW", max(window, 30))  # white space is not cut
        found, _ = run(f" {text}\n")
    wanted = {key: value for key, value in members.items() if key in ("a", "b", "")}
    assert {key: repr(json.loads(part)) for key, part in found.items()} == {
        key: repr(value) for key, value in wanted.items()
    }


@given(st.text('{}[]":,\\ a1', max_size=25))
def test_any_text_that_the_parser_accepts_is_accepted(text) -> None:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    try:
        found, _ = run(text, ("a",))
    except ValueError:
        assert not isinstance(value, dict)
        return
    if isinstance(value, dict):
        assert {key: json.loads(part) for key, part in found.items()} == {
            key: each for key, each in value.items() if key == "a"
        }


def test_the_last_member_of_a_key_counts_as_in_python() -> None:
    assert run('{"a": 1, "b": [2], "a": {"c": 3}}')[0] == {"a": '{"c": 3}', "b": "[2]"}


REFUSED = """
    [] 1 { {"a" {"a": {"a":} {"a":1,} {"a":1 {"a":" {"a":"\\ {"a"1} {"a":[1} {"a":[[1] {"a":1}x
    {a:1} {"a":1"b":2} {"a":{"b":"} {,} {"a":1}}
"""


@pytest.mark.parametrize("text", ["", *REFUSED.split()])
def test_text_that_is_not_an_object_is_refused(text) -> None:
    with pytest.raises(ValueError, match=r"expected|does not end|is missing|after the"):
        run(text)


def test_too_many_members_and_too_deep_nesting_are_refused() -> None:
    members = ",".join(f'"{i}":0' for i in range(MAX_MEMBERS))
    assert run(f"{{{members}}}")[0] == {}
    with pytest.raises(InvalidMessage, match="more than"):
        run(f'{{{members},"more":0}}')
    with pytest.raises(RecursionError):
        run('{"a":' + "[" * 11_000 + "]" * 11_000 + "}")
    deep = "[" * 9_000 + "]" * 9_000
    assert run(f'{{"a":{deep}}}')[0] == {"a": deep}


SIZE = 1 << 19
SHAPES = {
    "one string": '"' + "x" * SIZE + '"',
    "one string of escapes": '"' + "\\n" * (SIZE // 2) + '"',
    "numbers": "[" + "1," * (SIZE // 2) + "1]",
    "keys": "{" + '"a":1,' * (SIZE // 6) + '"a":1}',
    "empty strings": "[" + '"",' * (SIZE // 3) + '""]',
    "empty lists": "[" + "[]," * (SIZE // 3) + "[]]",
    "lists in lists": "[" + "[[[]]]," * (SIZE // 7) + "[]]",
    "a string that does not end": '"' + "x" * SIZE,
    "quotes": "[" + '"\\"",' * (SIZE // 5) + '""]',
    "brackets that do not close": "[{" * 4_000 + "0," * (SIZE // 2),
}


@pytest.mark.parametrize("shape", ["numbers", "keys", "empty strings", "empty lists"])
def test_steps_are_equally_long_wherever_they_are_in_the_text(shape) -> None:
    """For text with few tokens, a step has about 64 Ki characters."""
    _, count = run('{"a": ' + SHAPES[shape] + "}")
    assert SIZE >> 16 <= count <= 2 * (SIZE >> 16)


@pytest.mark.timing
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_read_in_short_steps_and_costs_grow_with_the_length(shape) -> None:
    """Each step reads a fraction, and twice the text takes about twice the time."""

    def cost(value: str) -> float:
        times = []
        for _ in range(3):
            begin = time.process_time()
            steps = 1
            walk = outline('{"a": ' + value + "}", ("a",))
            try:
                for _step in walk:
                    steps += 1
            except ValueError:
                pass
            times.append(time.process_time() - begin)
            assert steps >= 1 + (len(value) >> 18)
        return min(times)

    value = SHAPES[shape]
    half = value[: len(value) // 2]
    assert cost(value) < 4 * cost(half) + 0.005
