"""Messages that the bridge itself says: status of a restart, notices, its own requests."""

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
    """Make a message (jupyter_client docs, "Messaging in Jupyter", general message format).

    Parameters
    ----------
    channel : Channel
        Where it is to go, or where it is to seem to come from.
    msg_type : str
        Such as ``status`` or ``kernel_info_request``.
    content : mapping
        What that type asks for; written as JSON.
    session : str
        Who speaks: the id of the bridge's session with this kernel.
    date : str
        Now, in ISO 8601 with a time zone: this floor has no clock.
    parent_header : bytes
        The header of the message that this one answers, as it came.
    username : str
        Who speaks, by name.
    msg_id : str, optional
        A random one if not given.
    metadata : mapping, optional
        Empty if not given.
    buffers : sequence of bytes or memoryview
        Raw bytes to go with it.

    Raises
    ------
    TypeError, ValueError
        If content or metadata have no form in JSON: a fault of ours.
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
    # ASCII: a lone surrogate then has a form too.
    return json.dumps(value, allow_nan=False).encode()
