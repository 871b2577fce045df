"""The output of an execution, as a model reads it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from kbridge.mcp.transcript import Cut, Image, Part, Transcript, plain_error


def shown(*outputs: Output, start: int = 0, head: int = 1000, tail: int = 1000) -> list[Part]:
    transcript = Transcript(start, head, tail)
    for output in outputs:
        transcript.add(output)
    return transcript.parts()


def out(text: str) -> Stream:
    return Stream("stdout", text)


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ([out("a\n"), Stream("stderr", "b\n")], "a\nb\n"),
        ([out("\x1b[3"), out("1mred\x1b[0m")], "red"),
        ([out("10 %\r20 %\r"), out("30 %\n"), out("done\n")], "30 %\ndone\n"),
        ([out("one\r\ntwo\r\n")], "one\ntwo\n"),
        ([out("no end"), ExecuteResult(1, {"text/plain": "42"})], "no end\n42\n"),
        ([DisplayData({"text/html": "<b>x</b>", "text/plain": "x"})], "x\n"),
        ([DisplayData({"text/html": "<b>x</b>"})], "<b>x</b>\n"),
        ([DisplayData({"application/json": {"ä": 1}})], '{"ä": 1}\n'),
        ([UpdateDisplayData({"a/b": "x"})], "[output of the type a/b is not shown]\n"),
        ([out("old\n"), ClearOutput(wait=False), out("new\n")], "new\n"),
        ([out("old\n"), ClearOutput(wait=True)], "old\n"),
        ([out("old\n"), ClearOutput(wait=True), out("new\n")], "new\n"),
        ([Gap(3, 100, "3 messages")], "[output is missing here: 3 messages]\n"),
    ],
)
def test_text(outputs: list[Output], text: str) -> None:
    assert shown(*outputs) == [text]


def test_an_error_has_its_traceback_without_colours() -> None:
    error = Error("ValueError", "bad", ("\x1b[31mTraceback\x1b[0m", "ValueError: bad"))
    assert plain_error(error) == "Traceback\nValueError: bad"
    assert plain_error(Error("KeyboardInterrupt", "", ())) == "KeyboardInterrupt:"
    assert plain_error(Error("E", "v", ("a frame",))) == "a frame\nE: v"


def test_long_text_is_cut_in_the_middle_and_the_rest_can_be_read() -> None:
    text = "".join(f"line {i}\n" for i in range(1000))
    first, cut, last = shown(out(text), head=100, tail=50)
    assert (first, last) == (text[:100], text[-50:])
    assert cut == Cut(100, len(text) - 150)
    assert shown(out(text), start=100, head=200, tail=0) == [
        Cut(0, 100),
        text[100:300],
        Cut(300, len(text) - 300),
    ]


@given(
    st.text("ab\r\n", max_size=200),
    st.lists(st.integers(1, 20)),
    st.integers(0, 60),
    st.integers(1, 40),
    st.integers(0, 40),
)
def test_windows_do_not_depend_on_the_sizes_of_messages(
    text: str, sizes: list[int], start: int, head: int, tail: int
) -> None:
    pieces = []
    rest = text
    for size in sizes:
        pieces.append(out(rest[:size]))
        rest = rest[size:]
    pieces.append(out(rest))
    parts = shown(*pieces, start=start, head=head, tail=tail)
    assert parts == shown(out(text), start=start, head=head, tail=tail)
    whole = "".join(part for part in shown(out(text)) if isinstance(part, str))
    at = 0
    for part in parts:
        if isinstance(part, Cut):
            assert part.start == at
            at += part.size
        else:
            assert isinstance(part, str)
            assert whole[at : at + len(part)] == part
            at += len(part)
    assert at == len(whole)


def image(data: str, kind: str = "image/png") -> DisplayData:
    return DisplayData({kind: data, "text/plain": "<Figure>"})


def test_images_are_in_order_and_bounded() -> None:
    assert shown(out("a\n"), image("AA\nAA"), out("b\n"), image("BBBB", "image/jpeg")) == [
        "a\n",
        Image("image/png", "AAAA"),
        "b\n",
        Image("image/jpeg", "BBBB"),
    ]
    many = shown(*[image("AAAA")] * 12)
    assert sum(isinstance(part, Image) for part in many) == 10
    assert str(many[-1]).count("is not shown") == 2
    assert shown(image("A" * (7 << 20))) == [
        "[an image of 5,505,024 bytes (image/png) is not shown]\n"
    ]


def test_images_outside_the_window_are_not_shown() -> None:
    outputs = [image("AAAA"), out("x" * 100 + "\n"), image("BBBB")]
    assert Image("image/png", "AAAA") not in shown(*outputs, start=10, head=20, tail=0)
    assert Image("image/png", "BBBB") not in shown(*outputs, start=10, head=20, tail=0)
    assert shown(*outputs, head=10, tail=10)[-1] == Image("image/png", "BBBB")


def test_a_transcript_that_goes_on_names_positions_in_the_whole_text() -> None:
    before = Transcript(0, 10, 10)
    before.add(out("x" * 30))
    after = Transcript(before.position, 10, 10, before.position)
    after.add(out("y" * 30))
    assert after.parts() == [Cut(0, 30), "y" * 10, Cut(40, 10), "y" * 10]


@pytest.mark.parametrize("wait", [False, True])
def test_text_after_cleared_output_is_shown_though_more_was_shown_before(wait: bool) -> None:
    before = Transcript(0, 10, 10)
    before.add(out("x" * 30))
    after = Transcript(before.position, 10, 10, before.position)
    for output in (out("old"), ClearOutput(wait), out("new\n")):
        after.add(output)
    assert after.parts() == ["new\n"]


def test_an_offset_holds_for_the_text_after_cleared_output() -> None:
    assert shown(out("old"), ClearOutput(wait=False), out("0123\n"), start=2) == [
        Cut(0, 2),
        "23\n",
    ]
