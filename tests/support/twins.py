"""The two implementations of the hot path: in Python, and compiled in kbridge-speedups."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kbridge.hub.broadcast import broadcaster
from kbridge.hub.kernel import connection
from kbridge.link.zmtp import writing
from kbridge.wire.speedups import Functions, choose
from kbridge.wire.zmtp import decoder
from tests.support.require import require

__all__ = ["TWINS", "functions", "used"]

TWINS = ("Python", "C")


def functions(twin: str) -> Functions:
    """Return the functions of an implementation; skip or fail the test if it is not installed."""
    if twin == "C":
        require("kbridge_speedups")
    found, _ = choose(pure=twin == "Python")
    assert (found.split is None) is (twin == "Python"), "kbridge_speedups is not the present one"
    return found


@contextmanager
def used(twin: str) -> Iterator[Functions]:
    """Let the modules of the hot path use an implementation."""
    found = functions(twin)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "read_texts", found.read_texts)
        patch.setattr(connection, "read_message", found.read_message)
        patch.setattr(connection, "encode_frame", found.encode_frame)
        patch.setattr(broadcaster, "encode_frame", found.encode_frame)
        patch.setattr(broadcaster, "encode_texts", found.encode_texts)
        patch.setattr(writing, "encode", found.encode)
        patch.setattr(decoder, "split", found.split)
        yield found
