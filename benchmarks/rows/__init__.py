"""The rows of the table, in their order; one module per row."""

from __future__ import annotations

from benchmarks.rows import (
    attack,
    away,
    binary,
    cost,
    crowd,
    cuts,
    cycles,
    death,
    fanout,
    flood,
    gigabyte,
    idle,
    message,
    prints,
    restart,
    roundtrip,
    stalled,
    start,
    worst,
)
from benchmarks.table import Row

ROWS: dict[str, Row] = {
    module.ROW.name: module.ROW
    for module in (
        start,
        message,
        fanout,
        roundtrip,
        cost,
        binary,
        idle,
        crowd,
        stalled,
        gigabyte,
        away,
        prints,
        flood,
        cuts,
        death,
        cycles,
        restart,
        attack,
        worst,
    )
}
