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
    defaults,
    descriptors,
    fanout,
    first,
    flood,
    gigabyte,
    idle,
    message,
    pages,
    prints,
    replay,
    restart,
    roundtrip,
    stalled,
    start,
    tls,
    unix,
    viewers,
    worst,
)
from benchmarks.table import Row

ROWS: dict[str, Row] = {
    module.ROW.name: module.ROW
    for module in (
        start,
        first,
        message,
        defaults,
        fanout,
        viewers,
        roundtrip,
        unix,
        tls,
        cost,
        binary,
        idle,
        descriptors,
        pages,
        crowd,
        stalled,
        gigabyte,
        away,
        replay,
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
