"""The functions of the hot path: compiled ones where kbridge-speedups is installed.

That distribution is optional. Its functions handle the usual messages, and leave the others to the
functions in Python, with the same results. `KBRIDGE_PURE=1` in the environment turns them off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

from kbridge.wire import compiled, texts, v1
from kbridge.wire.message import Buffer, Channel, Message, RawMessage, scan_in_python
from kbridge.wire.signing import Signer
from kbridge.wire.zmtp import encoder

__all__ = [
    "Functions",
    "Split",
    "choose",
    "decode",
    "encode",
    "encode_frame",
    "encode_texts",
    "read_message",
    "read_texts",
    "split",
    "used",
]

Split: TypeAlias = Callable[[bytes, int, int, int, int, list[RawMessage]], int]
"""`split(data, start, part_limit, parts_limit, most, messages)` appends the whole messages from
`start` on, at most `most` of them, and returns the place after them. It stops before a command, a
fault, a message above a limit, an unusual one, and one that is not whole."""


class Functions(NamedTuple):
    """One implementation of the hot path.

    Attributes
    ----------
    read_message, read_texts : callable
        See `kbridge.wire.texts`.
    decode, encode_frame, encode_texts : callable
        See `kbridge.wire.v1`.
    scan : callable
        See `kbridge.wire.message.scan`.
    encode : callable
        See `kbridge.wire.zmtp.encoder.encode`.
    split : callable or None
        Splits ZMTP frames; None to leave that to the loop of `kbridge.wire.zmtp.decoder`.
    """

    read_message: Callable[[Channel, RawMessage, Signer], texts.Typed]
    read_texts: Callable[[list[RawMessage], int, Signer], texts.Run]
    decode: Callable[[str | bytes], Message]
    encode_frame: Callable[[Message], bytes]
    encode_texts: Callable[[list[Message]], list[bytes]]
    scan: Callable[[bytes, str], str]
    encode: Callable[[Sequence[Buffer]], bytes]
    split: Split | None


_PYTHON: Final = Functions(
    texts.read_message,
    texts.read_texts,
    v1.decode,
    v1.encode_frame,
    v1.encode_texts,
    scan_in_python,
    encoder.encode,
    None,
)


def choose(*, pure: bool) -> tuple[Functions, str]:
    """Return the functions to use, and a text for the log that says which and why.

    Parameters
    ----------
    pure : bool
        True for the functions in Python in any case.
    """
    module, how = compiled.load(pure=pure)
    return _PYTHON if module is None else _compiled(module), how


def _compiled(module: Any) -> Functions:
    """Return functions that handle all messages, the usual ones with those of the module."""
    # A partial object has no frame of Python.
    return Functions(
        partial(module.read_message, Message, texts.read_message),
        partial(module.read_texts, Message, texts.read_texts, Channel.IOPUB),
        partial(module.decode, Message, v1.CHANNELS, v1.decode),
        partial(module.encode_frame, v1.NAMES, v1.encode_frame),
        partial(module.encode_texts, v1.NAMES, v1.encode_frame),
        partial(module.scan, scan_in_python),
        partial(module.encode, encoder.encode),
        module.split,
    )


read_message, read_texts, decode, encode_frame, encode_texts, _, encode, split = (
    _PYTHON if compiled.module is None else _compiled(compiled.module)
)
used = compiled.used
