"""The legacy dialect, beyond the table of cases."""

import json
import mmap

import pytest

from kbridge.errors import KernelMessageError
from kbridge.wire import legacy
from kbridge.wire.message import Channel
from tests.wire.cases import HEADER, MESSAGES, H, legacy_frame, plain, raw
from tests.wire.test_v1 import VIEWS


def test_a_header_is_enough() -> None:
    msg = legacy.decode('{"header": ' + H.decode() + "}")
    assert msg == (Channel.SHELL, H, b"{}", b"{}", b"{}", ())
    assert legacy.decode(legacy_frame(b'{"header": ' + H + b"}")) == msg


@pytest.mark.parametrize("name", ["channel", "parent_header", "metadata", "content", "buffers"])
def test_null_is_as_good_as_absent(name: str) -> None:
    msg = legacy.decode(json.dumps({"header": HEADER, name: None}))
    assert msg == (Channel.SHELL, H, b"{}", b"{}", b"{}", ())


def test_an_empty_list_of_buffers_is_none() -> None:
    assert legacy.decode('{"buffers": [ ], "header": ' + H.decode() + "}").buffers == ()


def test_parts_pass_as_the_text_they_are() -> None:
    header = '{"msg_type":"a" ,"msg_id" : "b", "subshell_id":null}'
    content = '{"a":1e2,"a":-Infinity,\r\n "b":"\\u00e9é\\ud800"}'
    text = f'\n{{ "content"\t:\r{content} ,\n"header":{header}, "extra": [[]], "msg_id": 1}}\n '
    msg = legacy.decode(text)
    assert msg == (Channel.SHELL, header.encode(), b"{}", b"{}", content.encode(), ())


def test_keys_may_be_written_with_escapes() -> None:
    msg = legacy.decode('{"h\\u0065ader" : ' + H.decode() + ', "ch\\u0061nnel": "control"}')
    assert msg == (Channel.CONTROL, H, b"{}", b"{}", b"{}", ())


def test_of_two_equal_keys_the_last_counts() -> None:
    msg = legacy.decode(
        '{"header": 1, "channel": "iopub", "channel": "stdin", "header": ' + H.decode() + "}"
    )
    assert (msg.channel, msg.header) == (Channel.STDIN, H)


def test_buffers_named_in_binary_json_do_not_count() -> None:
    data = legacy_frame(b'{"buffers": ["x"], "header": ' + H + b"}", b"y")
    assert plain(legacy.decode(data)).buffers == (b"y",)


def test_parts_that_a_kernel_left_empty_are_empty_objects() -> None:
    msg = MESSAGES["bare"]._replace(parent_header=b"", metadata=b"", content=b"")
    assert legacy.decode(legacy.encode(msg)) == MESSAGES["bare"]


@pytest.mark.parametrize("buffers", [(), (b"x",)])
def test_what_is_not_utf8_has_no_form(buffers: tuple[bytes, ...]) -> None:
    msg = MESSAGES["bare"]._replace(content=b'{"a": "\xff"}', buffers=buffers)
    with pytest.raises(KernelMessageError, match="UTF-8"):
        legacy.encode(msg)


def test_four_gib_is_the_end_of_a_binary_frame() -> None:
    # Address space only; it is never read.
    with mmap.mmap(-1, 2**32) as zeros, memoryview(zeros) as view:
        msg = MESSAGES["bare"]._replace(buffers=(view, b"x"))
        with pytest.raises(KernelMessageError, match="4 GiB"):
            legacy.encode(msg)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_any_view_is_its_bytes(view: memoryview) -> None:
    msg = MESSAGES["bare"]._replace(buffers=(b"before", view, b"after"))
    assert plain(legacy.decode(legacy.encode(msg))).buffers == (b"before", view.tobytes(), b"after")


def test_a_header_of_protocol_4_passes() -> None:
    header = {"msg_id": "a", "msg_type": "pyout", "username": "u", "session": "s"}
    msg = MESSAGES["bare"]._replace(channel=Channel.IOPUB, header=raw(header))
    read = json.loads(legacy.encode(msg))
    assert (read["header"], read["msg_id"], read["msg_type"]) == (header, "a", "pyout")


@pytest.mark.parametrize("length", [100, 100_000])
def test_any_white_space_may_stand_before_the_object(length: int) -> None:
    content = '{"a": "' + length * "x" + '"}'
    text = 100 * " " + '{"header": ' + H.decode() + f', "content": {content}}}'
    assert legacy.decode(text) == (Channel.SHELL, H, b"{}", b"{}", content.encode(), ())
