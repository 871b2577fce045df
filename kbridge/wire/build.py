"""Build messages that the bridge itself sends: status messages, notices, requests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from kbridge.wire.message import Buffer, Channel, Message

__all__ = ["PROTOCOL_VERSION", "build"]

PROTOCOL_VERSION = "5.4"


def build(
    channel: Channel,
    msg_type: str,
    content: Mapping[str, Any],
    *,
    session: str,
    date: str,
    parent_header: bytes = b"{}",
    username: str = "kbridge",
    msg_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    buffers: Sequence[Buffer] = (),
) -> Message:
    """Build a message (jupyter_client docs, "Messaging in Jupyter", general message format).

    Parameters
    ----------
    channel : Channel
        The channel that the message is sent on, or appears to come from.
    msg_type : str
        The message type, such as ``status`` or ``kernel_info_request``.
    content : mapping
        The content that the message type requires; encoded as JSON.
    session : str
        The id of the session that sends the message.
    date : str
        The current time in ISO 8601 with a time zone. The caller passes it, because this package
        has no clock.
    parent_header : bytes
        The header of the message that this one answers, unchanged.
    username : str
        The name of the sender.
    msg_id : str, optional
        The id of the message. By default a random one.
    metadata : mapping, optional
        The metadata. By default empty.
    buffers : sequence of bytes or memoryview
        Binary buffers of the message.

    Raises
    ------
    TypeError, ValueError
        If content or metadata cannot be encoded as JSON, which is a bug of the caller.
    """
    header = {
        "msg_id": msg_id or str(uuid4()),
        "msg_type": msg_type,
        "username": username,
        "session": session,
        "date": date,
        "version": PROTOCOL_VERSION,
    }
    return Message(
        channel,
        _json(header),
        parent_header,
        _json(metadata or {}),
        _json(content),
        tuple(buffers),
    )


def _json(value: Mapping[str, Any]) -> bytes:
    # ASCII output can express lone surrogates, which UTF-8 cannot.
    return json.dumps(value, allow_nan=False).encode()
