"""Print the results."""

from __future__ import annotations

from tests.soak.resource_usage import ALLOWED
from tests.soak.run import Outcome

__all__ = ["table"]

_CLIENTS = (
    "visits",
    "connections",
    "deaths",
    "requests",
    "requests given up",
    "messages",
    "lines",
    "twice",
    "missing",
    "marked",
)


def table(outcome: Outcome) -> str:
    """Return the counters, the resources before and after, and the faults."""
    tally = outcome.findings.tally
    kinds = sorted({kind for kind, what in tally if what == "visits"})
    rows = [("clients", *_CLIENTS)]
    rows += [(kind, *(f"{tally[kind, what]:,}" for what in _CLIENTS)) for kind in kinds]
    parts = [_columns(rows)]
    for kind in ("hostile", "trouble", "REST"):
        found = sorted((what, count) for (k, what), count in tally.items() if k == kind)
        if found:
            parts.append(f"{kind}: " + ", ".join(f"{what} {count:,}" for what, count in found))
    held = [("server", "what", "before", "after", "allowed above")]
    for name, after in outcome.after.items():
        before = outcome.before[name]
        held += [
            (name, what, f"{before.numbers[what]:,}", f"{after.numbers[what]:,}", f"{allowed:,}")
            for what, allowed in ALLOWED.items()
        ]
    parts.append(_columns(held))
    parts.append("\n".join(outcome.findings.faults))
    return "\n\n".join(part for part in parts if part)


def _columns(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
