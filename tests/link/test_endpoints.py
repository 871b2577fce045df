"""The limits of messages from a kernel. See tests/wire/test_connection_info.py for the parser."""

from __future__ import annotations

import dataclasses

import pytest

from kbridge.link import Endpoints
from kbridge.link.endpoints import MESSAGE_LIMIT
from kbridge.wire import Channel

INFO = {f"{channel}_port": 1000 + i for i, channel in enumerate(Channel)}
MIB = 1 << 20


def test_connection_info_is_parsed() -> None:
    endpoints = Endpoints.from_connection_info({**INFO, "key": "secret"})
    assert isinstance(endpoints, Endpoints)
    assert endpoints.url(Channel.IOPUB) == "tcp://127.0.0.1:1001"
    assert endpoints.key == b"secret"
    assert endpoints.message_limit == MESSAGE_LIMIT


def test_errors_of_connection_info_are_also_value_errors() -> None:
    with pytest.raises(ValueError, match="no shell_port"):
        Endpoints.from_connection_info({})


@pytest.mark.parametrize(
    ("channel", "limit"),
    [
        (Channel.IOPUB, 1024 * MIB),
        (Channel.SHELL, 64 * MIB),
        (Channel.CONTROL, 64 * MIB),
        (Channel.STDIN, MIB),
    ],
)
def test_each_channel_has_its_share_of_the_limit(channel: Channel, limit: int) -> None:
    endpoints = Endpoints("tcp", "127.0.0.1", {}, message_limit=1024 * MIB)
    assert endpoints.limit(channel) == limit
    assert dataclasses.replace(endpoints, message_limit=1).limit(channel) == 1
