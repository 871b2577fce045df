"""Random bytes of a hostile client, from a seed; shared by HTTP and websocket tests.

A case is determined by its seed and number, so that a failed case can be repeated:
`KBRIDGE_FUZZ_SEED=...` runs the same cases,  `KBRIDGE_FUZZ_SECONDS=600` others for so long.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = [
    "NUMBERS",
    "SECONDS",
    "SEED",
    "WORDS",
    "Case",
    "Target",
    "any_json",
    "any_pieces",
    "cases",
    "spoil",
]

SECONDS = float(os.environ.get("KBRIDGE_FUZZ_SECONDS", "0"))
SEED = os.environ.get("KBRIDGE_FUZZ_SEED") or (str(time.time_ns()) if SECONDS else "kbridge")

# Wrong values for lengths and counts.
NUMBERS = [
    *(0, 1, 6, 7, 125, 126, 65535, 65536),
    *(2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1),
]
WORDS = [
    *("", "\0", "%00", "%ff%fe", "..", "%2e%2e%2f", "/", "\\", "é", "🎉", "\u2028"),
    *("null", "NaN", "-1", "1e999", "0", "18446744073709551616", "9" * 5000),
    *("start", "' or 1=1 --", "{}", "[", "a" * 300),
]


@dataclass(frozen=True, slots=True)
class Case:
    """The data of one connection; each piece is a separate write."""

    name: str
    pieces: tuple[bytes, ...]
    dialect: str = ""

    def __str__(self) -> str:
        shown = b"".join(self.pieces)
        return f"{self.name} (KBRIDGE_FUZZ_SEED={SEED}): {shown[:1500]!r}"


@dataclass(frozen=True, slots=True)
class Target:
    """A kernel that may break, on a server that must keep working."""

    kernel: str
    port: int


def cases(
    make: Callable[[random.Random, Target], Case], target: Target, count: int
) -> Iterator[Case]:
    """Yield a number of cases, or as many as the time limit allows."""
    end = time.monotonic() + SECONDS
    number = 0
    while time.monotonic() < end if SECONDS else number < count:
        name = f"{make.__name__} {number}"
        made = make(random.Random(f"{SEED}/{name}"), target)
        yield Case(name, made.pieces, made.dialect)
        number += 1


def spoil(rng: random.Random, data: bytes, times: int) -> bytes:
    """Remove, duplicate and insert pieces, and flip bits."""
    spoilt = bytearray(data)
    for _ in range(times):
        at = rng.randrange(len(spoilt) + 1)
        end = min(len(spoilt), at + rng.randrange(12))
        match rng.randrange(4):
            case 0:
                del spoilt[at:end]
            case 1:
                spoilt[at:at] = spoilt[at:end]
            case 2 if at < len(spoilt):
                spoilt[at] ^= 1 << rng.randrange(8)
            case _:
                spoilt[at:end] = rng.choice([rng.randbytes(rng.randrange(9)), b"\r\n", b"\0", b'"'])
    return bytes(spoilt)


def any_pieces(rng: random.Random, data: bytes) -> tuple[bytes, ...]:
    """Split data as the network may do."""
    if rng.random() < 0.6 or len(data) < 2:
        return (data,)
    cuts = sorted(rng.randrange(len(data)) for _ in range(rng.randrange(1, 5)))
    return tuple(data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b)


def any_json(rng: random.Random, depth: int = 3) -> Any:
    match rng.randrange(8 if depth else 5):
        case 0:
            return rng.choice([None, True, False])
        case 1:
            return rng.choice([*NUMBERS, -1, 0.5, 1e308])
        case 2 | 3 | 4:
            return rng.choice(WORDS)
        case 5:
            return [any_json(rng, depth - 1) for _ in range(rng.randrange(4))]
        case _:
            names = [*("name", "path", "env", "kernel", "type", "id", "token"), *WORDS[:9]]
            return {rng.choice(names): any_json(rng, depth - 1) for _ in range(rng.randrange(5))}
