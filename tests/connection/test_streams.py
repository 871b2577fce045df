"""The channels of a websocket's connection, which have the methods of ZeroMQ streams."""

import pytest

from kbridge.connection.streams import HubChannel
from kbridge.errors import KernelMessageError
from kbridge.hub.settings import HubSettings
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message
from kbridge.wire.signing import Signer
from kbridge.wire.zmq import serialize
from tests.hub.rig import Rig


@pytest.fixture
async def rig():
    made = Rig(HubSettings())
    yield made
    await made.hub.aclose()


def request(channel: Channel = Channel.SHELL) -> Message:
    return build(channel, "execute_request", {"code": "1"}, session="s", date="now")


def test_each_channel_has_its_name(rig) -> None:
    for channel in Channel:
        assert HubChannel(rig.hub, channel, list).channel == str(channel)


def test_parts_are_sent_as_a_message_whatever_their_signature_is(rig) -> None:
    sent: list[Message] = []
    channel = HubChannel(rig.hub, Channel.CONTROL, sent.append)
    msg = request(Channel.CONTROL)
    channel.send_multipart(serialize(msg, Signer(b"another key"), [b"ident"]), 0, copy=False)
    assert sent == [msg]


def test_parts_that_are_not_a_message_are_refused(rig) -> None:
    channel = HubChannel(rig.hub, Channel.SHELL, list)
    with pytest.raises(KernelMessageError):
        channel.send_multipart([b"no", b"delimiter"])


def test_a_closed_channel_sends_nothing_and_leaves_the_hub_open(rig) -> None:
    sent: list[Message] = []
    channel = HubChannel(rig.hub, Channel.SHELL, sent.append)
    assert not channel.closed()
    channel.close(linger=0)
    assert channel.closed()
    channel.send_multipart(serialize(request(), Signer(b"")))
    assert sent == []
    assert not rig.hub.closed
