"""The dialects of websocket clients, as a table: nobody compares subprotocols by name.

A dialect is chosen once, when the websocket opens, and is all that the rest of the bridge knows of
the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from kbridge.wire import frames, legacy, v1
from kbridge.wire.message import Message

__all__ = ["LEGACY", "V1", "Dialect", "select"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one kind of client writes and reads messages.

    Attributes
    ----------
    name : str
        For logs and metrics.
    subprotocol : str or None
        What the handshake answers; None: no subprotocol.
    decode : callable
        A frame to a message; raises the `FrameError` family. Text frames come as str.
    decode_in_steps : callable
        The same, as a generator that yields where others may have their turn: for large frames.
    payload : callable
        A message to the opcode and the payload of its frame. The legacy dialect raises
        `KernelMessageError` for a message that it has no form for.
    """

    name: str
    subprotocol: str | None
    decode: Callable[[str | bytes], Message]
    decode_in_steps: Callable[[str | bytes], Generator[None, None, Message]]
    payload: Callable[[Message], tuple[int, bytes]]


def _v1_payload(msg: Message) -> tuple[int, bytes]:
    return frames.BINARY, v1.encode(msg)


def _legacy_payload(msg: Message) -> tuple[int, bytes]:
    if msg.buffers:
        return frames.BINARY, legacy.encode_binary(msg)
    return frames.TEXT, legacy.encode_json(msg)


def _v1_decode_at_once(data: str | bytes) -> Generator[None, None, Message]:
    """Decode without a break: no part of the frame is read but its header."""
    yield from ()
    return v1.decode(data)


V1 = Dialect("v1", v1.SUBPROTOCOL, v1.decode, _v1_decode_at_once, _v1_payload)
LEGACY = Dialect("legacy", None, legacy.decode, legacy.decode_in_steps, _legacy_payload)

_BY_SUBPROTOCOL = {V1.subprotocol: V1}


def select(offered: Sequence[str], preferred: str | None) -> Dialect:
    """Choose the dialect of a websocket that is being opened.

    Parameters
    ----------
    offered : sequence of str
        The subprotocols that the client offers.
    preferred : str or None
        The setting `kernel_ws_protocol`: None for the newest that both sides speak, an empty
        string for the legacy dialect, else the subprotocol to use where it is offered.

    Notes
    -----
    A browser that offered subprotocols and was given none closes the connection; JupyterLab then
    opens another without any.
    """
    wanted = v1.SUBPROTOCOL if preferred is None else preferred
    return _BY_SUBPROTOCOL.get(wanted, LEGACY) if wanted in offered else LEGACY
