"""The multipart messages of kernels, on all ZeroMQ sockets except the heartbeat.

``[*identities, b"<IDS|MSG>", signature, header, parent_header, metadata, content, *buffers]``
(jupyter_client docs, "Messaging in Jupyter", the wire protocol). On iopub, the identity is a topic.
The signature covers the four JSON parts, not the buffers.

This module does not parse JSON. A kernel that signs its messages is trusted to write JSON. The
module checks the delimiter, the number of frames and the signature, so that frames of another
sender are not accepted.
"""

from __future__ import annotations

from collections.abc import Sequence

from kbridge.errors import InvalidSignature, KernelMessageError
from kbridge.wire.message import Buffer, Channel, Message
from kbridge.wire.signing import Signer

__all__ = ["DELIMITER", "message", "parse", "serialize", "split"]

DELIMITER = b"<IDS|MSG>"

# Bypasses the constructor of the NamedTuple, which takes twice the time.
_new = tuple.__new__


def split(frames: Sequence[Buffer]) -> tuple[Sequence[Buffer], Buffer, Sequence[Buffer]]:
    """Split the frames at the delimiter.

    Returns
    -------
    idents : sequence
        The frames before the delimiter.
    signature : bytes or memoryview
        The frame after it.
    rest : sequence
        The four JSON parts, and the buffers.

    Raises
    ------
    KernelMessageError
        If there is no delimiter, or there are fewer than five frames after it.
    """
    if DELIMITER not in frames:
        raise _fault(frames)
    at = frames.index(DELIMITER)
    rest = frames[at + 2 :]
    if len(rest) < 4:
        raise _fault(frames)
    return frames[:at], frames[at + 1], rest


def parse(channel: Channel, frames: Sequence[Buffer], signer: Signer) -> Message:
    """Verify the frames of one message and return its parts.

    Buffers are not copied.

    Raises
    ------
    KernelMessageError
        If the frames are not a message.
    InvalidSignature
        If the message is not signed with the kernel's key.
    """
    buffers: tuple[Buffer, ...] = ()
    at = len(frames) - 6  # in the usual message: without buffers, after a topic or first
    if (at == 0 or (at == 1 and frames[0] != DELIMITER)) and frames[at] == DELIMITER:
        signature, parts = frames[at + 1], frames[at + 2 :]
    else:
        signature, parts, buffers = _found(frames)
    header, parent, metadata, content = parts
    if not signer.verify(signature, parts):
        raise InvalidSignature(f"a message on {channel.value} with an invalid signature")
    return _new(
        Message,
        (
            channel,
            header if type(header) is bytes else bytes(header),
            parent if type(parent) is bytes else bytes(parent),
            metadata if type(metadata) is bytes else bytes(metadata),
            content if type(content) is bytes else bytes(content),
            buffers,
        ),
    )


def _found(frames: Sequence[Buffer]) -> tuple[Buffer, Sequence[Buffer], tuple[Buffer, ...]]:
    """Return signature, parts and buffers; raise KernelMessageError if the frames have none."""
    try:
        at = frames.index(DELIMITER)
        signature, *parts = frames[at + 1 : at + 6]
    except ValueError:
        raise _fault(frames) from None
    if len(parts) < 4:
        raise _fault(frames)
    return signature, parts, tuple(frames[at + 6 :])


def message(channel: Channel, parts: Sequence[Buffer]) -> Message:
    """Return the message with these parts, without verifying a signature.

    Buffers are not copied.
    """
    header, parent, metadata, content, *buffers = parts
    return Message(
        channel, bytes(header), bytes(parent), bytes(metadata), bytes(content), tuple(buffers)
    )


def _fault(frames: Sequence[Buffer]) -> KernelMessageError:
    if DELIMITER in frames:
        return KernelMessageError("a multipart message with too few parts after <IDS|MSG>")
    return KernelMessageError("a multipart message without <IDS|MSG>")


def serialize(msg: Message, signer: Signer, idents: Sequence[bytes] = ()) -> list[Buffer]:
    """Sign a message and return the frames to send."""
    parts = msg[1:5]
    return [*idents, DELIMITER, signer.sign(parts), *parts, *msg.buffers]
