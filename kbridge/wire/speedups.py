"""The functions of the hot path: compiled ones where kbridge-speedups is installed.

That distribution is optional. Its functions handle the usual messages, and leave the others to the
functions in Python, with the same results. `KBRIDGE_PURE=1` in the environment turns them off.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, NamedTuple, TypeAlias

from kbridge.errors import KernelMessageError
from kbridge.wire import texts, v1
from kbridge.wire.message import Channel, Message, RawMessage
from kbridge.wire.signing import Signer

__all__ = ["Functions", "Split", "choose", "encode_texts", "read_texts", "split", "used"]

_API: Final = 1  # of the versions of kbridge-speedups that fit

Split: TypeAlias = Callable[[bytes, int, int, int, int, list[RawMessage]], int]
"""`split(data, start, part_limit, parts_limit, most, messages)` appends the whole messages from
`start` on, at most `most` of them, and returns the place after them. It stops before a command, a
fault, a message above a limit, an unusual one, and one that is not whole."""


class Functions(NamedTuple):
    """One implementation of the hot path.

    Attributes
    ----------
    read_texts : callable
        See `kbridge.wire.texts.read_texts`.
    encode_texts : callable
        See `kbridge.wire.v1.encode_texts`.
    split : callable or None
        Splits ZMTP frames; None to leave that to the loop of `kbridge.wire.zmtp.decoder`.
    """

    read_texts: Callable[[list[RawMessage], int, Signer], texts.Run]
    encode_texts: Callable[[list[Message]], list[bytes]]
    split: Split | None


_PYTHON: Final = Functions(texts.read_texts, v1.encode_texts, None)


def choose(*, pure: bool) -> tuple[Functions, str]:
    """Return the functions to use, and a text for the log that says which and why.

    Parameters
    ----------
    pure : bool
        True for the functions in Python in any case.
    """
    if pure:
        return _PYTHON, "in Python (as KBRIDGE_PURE says)"
    try:
        module = import_module("kbridge_speedups")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "kbridge_speedups":
            return _PYTHON, "in Python (kbridge-speedups is not installed)"
        return _PYTHON, f"in Python: kbridge_speedups cannot be imported: {error}"
    if module.API != _API:
        return _PYTHON, f"in Python (kbridge_speedups has API {module.API}, not {_API})"
    return _compiled(module), "compiled"


def _compiled(module: Any) -> Functions:
    """Return functions that handle all messages, the usual ones with those of the module."""
    read_usual, encode_usual = module.read_texts, module.encode_texts
    iopub, encode_frame = Channel.IOPUB, v1.encode_frame

    def read_texts(batch: list[RawMessage], start: int, signer: Signer) -> texts.Run:
        run, keys = read_usual(Message, iopub, batch, start, signer.inner, signer.outer)
        if not run:
            return texts.read_texts(batch, start, signer)
        start += len(run)
        if start >= len(batch):
            return run, keys, None
        try:
            more, more_keys, after = texts.read_texts([batch[start]], 0, signer)
        except KernelMessageError:
            return run, keys, None
        if more and more[0].parent_header != run[0].parent_header:
            return run, keys, (more[0], "stream", more_keys[0])
        return run + more, keys + more_keys, after

    def encode_texts(messages: list[Message]) -> list[bytes]:
        frames: list[bytes] = encode_usual(iopub, encode_frame, messages)
        return frames

    return Functions(read_texts, encode_texts, module.split)


(read_texts, encode_texts, split), used = choose(
    pure=os.environ.get("KBRIDGE_PURE", "") not in {"", "0"}
)
