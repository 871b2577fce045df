"""Reads messages of kernels: runs of stream messages, which are most, in one call per run."""

from __future__ import annotations

from typing import Final, TypeAlias

from kbridge.errors import KernelMessageError
from kbridge.wire.headers import type_and_key
from kbridge.wire.message import Channel, Message, RawMessage
from kbridge.wire.signing import Signer
from kbridge.wire.zmq import parse

__all__ = ["Run", "Typed", "read_message", "read_texts"]

_IOPUB: Final = Channel.IOPUB

Typed: TypeAlias = tuple[Message, str, int]
"""A message, its type and its `message_key`."""

Run: TypeAlias = tuple[list[Message], list[int], Typed | None]


def read_message(channel: Channel, frames: RawMessage, signer: Signer) -> Typed:
    """Verify and parse one message; return it with its type and its key.

    Raises
    ------
    KernelMessageError
        If the message is not valid.
    """
    msg = parse(channel, frames, signer)
    return msg, *type_and_key(msg.header)


def read_texts(batch: list[RawMessage], start: int, signer: Signer) -> Run:
    """Verify and parse a run of stream messages on iopub that have the same parent header.

    Parameters
    ----------
    batch : list of RawMessage
        The messages that have arrived.
    start : int
        The place of the first message to read.
    signer : Signer
        Verifies the signatures.

    Returns
    -------
    texts : list of Message
        The stream messages of the run, perhaps none; then there is a message after it.
    keys : list of int
        The `message_key` of each.
    after : (Message, str, int) or None
        The message after the run, its type and its key. None at the end of the batch, and if that
        message is left for the next call: it is not valid, or unusual.

    Raises
    ------
    KernelMessageError
        If the message at `start` is not valid.
    """
    texts: list[Message] = []
    keys: list[int] = []
    parent = None
    for at in range(start, len(batch)):
        try:
            msg = parse(_IOPUB, batch[at], signer)
        except KernelMessageError:
            if texts:
                break
            raise
        msg_type, key = type_and_key(msg.header)
        if msg_type != "stream":
            return texts, keys, (msg, msg_type, key)
        if msg.parent_header != parent:
            if texts:
                return texts, keys, (msg, msg_type, key)
            parent = msg.parent_header
        texts.append(msg)
        keys.append(key)
    return texts, keys, None
