"""The table of websocket dialects.

A dialect is chosen once, when the websocket opens. Other modules use the `Dialect` object and never
compare the names of subprotocols.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from kbridge.wire import frames, legacy, speedups, v1
from kbridge.wire.message import Message

__all__ = ["LEGACY", "V1", "Dialect", "select"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """The encoding of messages for one kind of client.

    Attributes
    ----------
    name : str
        The name in logs and metrics.
    subprotocol : str or None
        The subprotocol that the handshake confirms; None for no subprotocol.
    decode : callable
        Converts a frame to a message; raises subclasses of `FrameError`. Text frames are passed as
        str.
    decode_in_steps : callable
        The same as a generator, which yields regularly so that other clients have their turn. For
        large frames.
    payload : callable
        Converts a message to the opcode and the payload of its frame. The legacy dialect raises
        `KernelMessageError` for a message that it cannot express.
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
    """Decode in one step: only the header is parsed, which is short."""
    yield from ()
    return speedups.decode(data)


V1 = Dialect("v1", v1.SUBPROTOCOL, speedups.decode, _v1_decode_at_once, _v1_payload)
LEGACY = Dialect("legacy", None, legacy.decode, legacy.decode_in_steps, _legacy_payload)

_BY_SUBPROTOCOL = {V1.subprotocol: V1}


def select(offered: Sequence[str], preferred: str | None) -> Dialect:
    """Choose the dialect of a new websocket.

    Parameters
    ----------
    offered : sequence of str
        The subprotocols that the client offers.
    preferred : str or None
        The setting `kernel_ws_protocol`: None for the newest dialect that both sides support, an
        empty string for the legacy dialect, otherwise the subprotocol to use if the client offers
        it.

    Notes
    -----
    A browser that offers subprotocols closes the connection if the server confirms none;
    JupyterLab then opens another websocket without subprotocols.
    """
    wanted = v1.SUBPROTOCOL if preferred is None else preferred
    return _BY_SUBPROTOCOL.get(wanted, LEGACY) if wanted in offered else LEGACY
