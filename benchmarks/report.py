"""Format the results: a table for people, JSON for programs."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.table import BASE, EXTENSION, OURS, REFERENCE, Figure, Outcome

WIDTHS = (43, 14, 20, 20, 10, 15, 26)
LAST = len(WIDTHS) - 1


def number(value: float | None, unit: str = "") -> str:
    """Format a value with three digits and its unit."""
    if value is None:
        return "-"
    if value == int(value) and abs(value) < 1e9:
        text = f"{int(value):,}"
    elif abs(value) >= 100:
        text = f"{value:,.0f}"
    elif abs(value) >= 0.01:
        text = f"{value:.3g}"
    else:
        text = f"{value:.1g}"
    return f"{text} {unit}" if unit else text


def bar_text(figure: Figure) -> str:
    """Return the target of a figure as text."""
    limit = ""
    if figure.limit is not None:
        sign = ">=" if figure.more_is_better else "<="
        limit = f"{sign} {number(figure.limit, figure.unit)}"
    if figure.ratio is None:
        return limit
    ratio = f">= {number(figure.ratio)}x"
    return f"{ratio}; budget {limit}" if limit else ratio


def verdict(outcome: Outcome, figure: Figure) -> str:
    """Return the target and whether it is met; empty if there is no target."""
    if not (bar := bar_text(figure)):
        return ""
    met = outcome.met(figure)
    return f"{'not run' if met is None else 'yes' if met else 'NO'} ({bar})"


def with_ratio(value: float | None, unit: str, ratio: float | None) -> str:
    """Return a value, and in parentheses its ratio to that of another server."""
    text = number(value, unit)
    return text if ratio is None else f"{text} ({number(ratio)}x)"


def likeness(ratio: float | None, same: bool | None, bad: str = "LESS") -> str:
    """Compare the extension with the standalone server: the ratio and a verdict."""
    words = [] if ratio is None else [f"{number(ratio)}x"]
    words += [] if same is None else ["same" if same else bad]
    return ", ".join(words)


def line(cells: Sequence[str]) -> str:
    first, *others = (
        cell.ljust(width) if i in {0, LAST} else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, WIDTHS, strict=True))
    )
    return " ".join([first, *others]).rstrip()


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the table of medians, ratios and the targets of the standalone server."""
    lines = [line(("", BASE, EXTENSION, "standalone", "floor", "ext./standal.", "  target met"))]
    for outcome in outcomes:
        rounds = max((len(r) for r in outcome.rounds.values()), default=0)
        lines += ["", f"{outcome.row.title} ({outcome.row.name}, median of {rounds})"]
        for figure in outcome.row.figures:
            base, floor = (outcome.median(n, figure.key) for n in (BASE, "floor"))
            cells = (
                f"  {figure.label}",
                number(base, figure.unit),
                *(
                    with_ratio(outcome.median(n, figure.key), figure.unit, outcome.ratio(figure, n))
                    for n in (EXTENSION, OURS)
                ),
                number(floor) if floor is not None else "",
                likeness(outcome.to_standalone(figure), outcome.same(figure)),
                "  " + verdict(outcome, figure),
            )
            lines.append(line(cells))
        lines += [f"  {name} FAILED: {why}" for name, why in outcome.failures.items()]
    return "\n".join(lines)


def aim_text(figure: Figure) -> str:
    """Return the target of a figure relative to the baseline as text; empty if there is none."""
    if figure.aim is None:
        return ""
    return f"{'>=' if figure.more_is_better else '<='} {number(figure.aim)}x"


def aim_verdict(share: float | None, aim: str, met: bool | None, bad: str = "NO") -> str:
    """Return a value divided by that of the baseline, the target, and whether it is met."""
    if share is None:
        return f"not run ({aim})" if aim else ""
    text = f"{number(share)}x"
    return f"{text}, {'yes' if met else bad} ({aim})" if aim else text


def variants_table(outcomes: Sequence[Outcome], names: Sequence[str]) -> str:
    """Return the table of the standalone server and its variants, with the range of the rounds.

    Parameters
    ----------
    outcomes : sequence of Outcome
        The rows. Figures that no variant has are left out, unless they have a target.
    names : sequence of str
        The names of the variants, the baseline included.
    """
    columns = [OURS, *names]
    head = ["", "standalone", *names]
    lines = [_cells([*head, "standalone / baseline (aim)"])]
    for outcome in outcomes:
        for figure in outcome.row.figures:
            missing = all(outcome.median(name, figure.key) is None for name in names)
            if missing and figure.aim is None:
                continue
            aim = aim_verdict(outcome.share(figure), aim_text(figure), outcome.aim_met(figure))
            values = [_with_range(outcome, name, figure) for name in columns]
            lines.append(_cells([f"{outcome.row.name}: {figure.label}", *values, aim]))
    return "\n".join(lines)


def _cells(cells: Sequence[str]) -> str:
    first, *values, last = cells
    return " ".join([f"{first:43}", *(f"{value:>32}" for value in values), f"  {last}"]).rstrip()


def _with_range(outcome: Outcome, name: str, figure: Figure) -> str:
    """Return the median, its range, and in parentheses how many times better than the baseline."""
    values = [r[figure.key] for r in outcome.rounds.get(name, []) if figure.key in r]
    if not values:
        return "-"
    median = with_ratio(
        outcome.median(name, figure.key),
        figure.unit,
        None if name == REFERENCE or figure.info else outcome.to_baseline(figure, name),
    )
    return f"{median} [{number(min(values))}, {number(max(values))}]"


def machine() -> dict[str, Any]:
    """Return a description of the machine and the packages."""
    models = [
        text.partition(":")[2].strip()
        for text in Path("/proc/cpuinfo").read_text().splitlines()
        if text.startswith("model name")
    ]
    packages = ("jupyter_server", "kbridge", "tornado", "pyzmq", "ipykernel")
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "packages": {name: metadata.version(name) for name in packages},
    }


def as_json(
    outcomes: Sequence[Outcome], *, quick: bool, filled: bool = False, baseline: str = ""
) -> str:
    """Return all results, with the values of each round.

    `filled` is true if the page cache was filled before each round; `baseline` names the baseline.
    """
    rows = {
        outcome.row.name: {
            "title": outcome.row.title,
            "figures": {
                figure.key: {
                    "label": figure.label,
                    "unit": figure.unit,
                    **{n: outcome.median(n, figure.key) for n in (BASE, EXTENSION, OURS, "floor")},
                    REFERENCE: outcome.median(REFERENCE, figure.key),
                    "ratio": outcome.ratio(figure),
                    "ratio_extension": outcome.ratio(figure, EXTENSION),
                    "ratio_baseline": outcome.to_baseline(figure),
                    "share_of_baseline": outcome.share(figure),
                    "aim": aim_text(figure),
                    "aim_met": outcome.aim_met(figure),
                    "extension_to_standalone": outcome.to_standalone(figure),
                    "same": outcome.same(figure),
                    "bar": bar_text(figure),
                    "met": outcome.met(figure),
                }
                for figure in outcome.row.figures
            },
            "rounds": outcome.rounds,
            "failures": outcome.failures,
        }
        for outcome in outcomes
    }
    today = dt.datetime.now(dt.UTC).date().isoformat()
    whole = {"date": today, "quick": quick, "page_cache_filled": filled, "baseline": baseline}
    whole |= {"machine": machine(), "rows": rows}
    return json.dumps(whole, indent=1) + "\n"
