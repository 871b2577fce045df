"""The legacy dialect, beyond the table of cases."""

import json
import mmap

import pytest

from kbridge.errors import KernelMessageError
from kbridge.wire import legacy
from kbridge.wire.message import Channel
from tests.wire.cases import HEADER, MESSAGES, H, legacy_frame, plain, raw
from tests.wire.test_v1 import VIEWS


def test_all_members_except_the_header_are_optional() -> None:
    msg = legacy.decode('{"header": ' + H.decode() + "}")
    assert msg == (Channel.SHELL, H, b"{}", b"{}", b"{}", ())
    assert legacy.decode(legacy_frame(b'{"header": ' + H + b"}")) == msg


@pytest.mark.parametrize("name", ["channel", "parent_header", "metadata", "content", "buffers"])
def test_null_counts_as_absent(name: str) -> None:
    msg = legacy.decode(json.dumps({"header": HEADER, name: None}))
    assert msg == (Channel.SHELL, H, b"{}", b"{}", b"{}", ())


def test_an_empty_list_of_buffers_means_no_buffers() -> None:
    assert legacy.decode('{"buffers": [ ], "header": ' + H.decode() + "}").buffers == ()


def test_the_text_of_each_part_is_unchanged() -> None:
    header = '{"msg_type":"a" ,"msg_id" : "b", "subshell_id":null}'
    content = '{"a":1e2,"a":-Infinity,\r\n "b":"\\u00e9é\\ud800"}'
    text = f'\n{{ "content"\t:\r{content} ,\n"header":{header}, "extra": [[]], "msg_id": 1}}\n '
    msg = legacy.decode(text)
    assert msg == (Channel.SHELL, header.encode(), b"{}", b"{}", content.encode(), ())


def test_keys_may_be_written_with_escapes() -> None:
    msg = legacy.decode('{"h\\u0065ader" : ' + H.decode() + ', "ch\\u0061nnel": "control"}')
    assert msg == (Channel.CONTROL, H, b"{}", b"{}", b"{}", ())


def test_the_last_of_two_equal_keys_counts() -> None:
    msg = legacy.decode(
        '{"header": 1, "channel": "iopub", "channel": "stdin", "header": ' + H.decode() + "}"
    )
    assert (msg.channel, msg.header) == (Channel.STDIN, H)


def test_the_buffers_member_of_a_binary_frame_is_ignored() -> None:
    data = legacy_frame(b'{"buffers": ["x"], "header": ' + H + b"}", b"y")
    assert plain(legacy.decode(data)).buffers == (b"y",)


def test_empty_parts_of_a_kernel_message_become_empty_objects() -> None:
    msg = MESSAGES["bare"]._replace(parent_header=b"", metadata=b"", content=b"")
    assert legacy.decode(legacy.encode(msg)) == MESSAGES["bare"]


@pytest.mark.parametrize("buffers", [(), (b"x",)])
def test_a_message_that_is_not_utf8_cannot_be_encoded(buffers: tuple[bytes, ...]) -> None:
    msg = MESSAGES["bare"]._replace(content=b'{"a": "\xff"}', buffers=buffers)
    with pytest.raises(KernelMessageError, match="UTF-8"):
        legacy.encode(msg)


def test_a_binary_frame_is_limited_to_four_gib() -> None:
    # Address space only; it is never read.
    with mmap.mmap(-1, 2**32) as zeros, memoryview(zeros) as view:
        msg = MESSAGES["bare"]._replace(buffers=(view, b"x"))
        with pytest.raises(KernelMessageError, match="4 GiB"):
            legacy.encode(msg)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views_of_any_shape_are_encoded_as_their_bytes(view: memoryview) -> None:
    msg = MESSAGES["bare"]._replace(buffers=(b"before", view, b"after"))
    assert plain(legacy.decode(legacy.encode(msg))).buffers == (b"before", view.tobytes(), b"after")


def test_a_header_of_protocol_4_is_encoded() -> None:
    header = {"msg_id": "a", "msg_type": "pyout", "username": "u", "session": "s"}
    msg = MESSAGES["bare"]._replace(channel=Channel.IOPUB, header=raw(header))
    read = json.loads(legacy.encode(msg))
    assert (read["header"], read["msg_id"], read["msg_type"]) == (header, "a", "pyout")


@pytest.mark.parametrize("length", [100, 100_000])
def test_any_white_space_may_stand_before_the_object(length: int) -> None:
    content = '{"a": "' + length * "x" + '"}'
    text = 100 * " " + '{"header": ' + H.decode() + f', "content": {content}}}'
    assert legacy.decode(text) == (Channel.SHELL, H, b"{}", b"{}", content.encode(), ())
