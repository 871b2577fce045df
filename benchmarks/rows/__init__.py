"""The rows, in the order in which they run and are printed; one module each."""

from __future__ import annotations

from benchmarks.rows import (
    attack,
    binary,
    crowd,
    cuts,
    cycles,
    death,
    fanout,
    idle,
    message,
    restart,
    roundtrip,
    stalled,
    start,
)
from benchmarks.table import Row

ROWS: dict[str, Row] = {
    module.ROW.name: module.ROW
    for module in (
        start,
        message,
        fanout,
        roundtrip,
        binary,
        idle,
        crowd,
        stalled,
        cuts,
        death,
        cycles,
        restart,
        attack,
    )
}
