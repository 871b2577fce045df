"""Write the tables in README.md, docs/performance.md and docs/jupyter.md from docs/benchmarks.json.

`python -m benchmarks.readme` writes the pages.

A full run of the benchmarks does this too. A test compares the pages with the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.report import aim_verdict, likeness, number, with_ratio
from benchmarks.table import BASE, EXTENSION, OURS, REFERENCE

ROOT = Path(__file__).parent.parent
# Rows and figures of the short table.
SHORT = (
    ("message", "cpu"),
    ("fanout", "cpu"),
    ("roundtrip", "p50"),
    ("binary", "rate"),
    ("idle", "rss"),
    ("idle", "descriptors"),
    ("stalled", "growth"),
    ("flood", "missing"),
    ("cuts", "missing"),
    ("cycles", "rate"),
    ("restart", "lost"),
)
BEGIN, END = "<!-- benchmarks -->\n", "<!-- end of benchmarks -->\n"


def markdown(measured: dict[str, Any]) -> str:
    """Return the table of all figures with a target or a ratio."""
    machine = measured["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    has_baseline = bool(measured.get("baseline"))
    told = (
        f" The baseline is the standalone server of {measured['baseline']}; targets relative to it"
        " are in parentheses."
        if has_baseline
        else ""
    )
    lines = [
        (
            f"{measured['date']}, {machine['cores']} cores of an {machine['cpu']},"
            f" Python {machine['python']}, {versions}. In parentheses: how many times better than"
            " jupyter_server. The floor is a bare ZeroMQ client in Python, which only receives."
            " Targets are for the standalone server. The extension should be as good: it is the"
            ' same if its median is within 5 % or the ranges of the rounds overlap. "-": not'
            f" measured.{told}"
        ),
        "",
        (
            "| | jupyter_server | extension | standalone | floor | extension / standalone"
            f" | target | met |{' baseline | standalone / baseline |' if has_baseline else ''}"
        ),
        f"|---|---|---|---|---|---|---|---|{'---|---|' if has_baseline else ''}",
    ]
    for row in measured["rows"].values():
        for figure in row["figures"].values():
            if not figure["bar"] and figure["ratio"] is None and not figure.get("aim"):
                continue
            unit = figure["unit"]
            base, floor = (number(figure[name], unit) for name in (BASE, "floor"))
            extension = with_ratio(figure.get(EXTENSION), unit, figure.get("ratio_extension"))
            standalone = with_ratio(figure[OURS], unit, figure["ratio"])
            like = likeness(
                figure.get("extension_to_standalone"), figure.get("same"), bad="**less**"
            )
            met = {True: "yes", False: "**no**", None: ""}[figure["met"]]
            what = f"{row['title']}: {figure['label']}"
            lines.append(
                f"| {what} | {base} | {extension} | {standalone} | {floor} | {like}"
                f" | {figure['bar']} | {met} |{_to_baseline(figure) if has_baseline else ''}"
            )
    return "\n".join(lines) + "\n"


def _to_baseline(figure: dict[str, Any]) -> str:
    """Return the two cells that compare a figure with the baseline."""
    if figure[REFERENCE] is None:
        return " - | |"
    share = figure["share_of_baseline"]
    verdict = aim_verdict(share, figure["aim"], figure["aim_met"], bad="**no**")
    return f" {number(figure[REFERENCE], figure['unit'])} | {verdict} |"


def ten_rows(measured: dict[str, Any]) -> str:
    """Return the table for the README: the short one without its least important row."""
    return short(measured, tuple(row for row in SHORT if row != ("idle", "descriptors")))


def short(measured: dict[str, Any], rows: tuple[tuple[str, str], ...] = SHORT) -> str:
    """Return the table of the main figures for users of Jupyter Server, without targets."""
    machine = measured["machine"]
    lines = [
        f"{measured['date']}, {machine['cores']} cores. In parentheses: how many times better.",
        "",
        "| | Jupyter Server | with the extension | standalone server |",
        "|---|---|---|---|",
    ]
    for name, key in rows:
        row = measured["rows"].get(name)
        if row is None or key not in row["figures"]:
            continue
        figure = row["figures"][key]
        unit = figure["unit"]
        lines.append(
            f"| {row['title']}: {figure['label']} | {number(figure[BASE], unit)}"
            f" | {with_ratio(figure.get(EXTENSION), unit, figure.get('ratio_extension'))}"
            f" | {with_ratio(figure[OURS], unit, figure['ratio'])} |"
        )
    return "\n".join(lines) + "\n"


def insert(
    page: str, measured: dict[str, Any], table: Callable[[dict[str, Any]], str] = markdown
) -> str:
    """Return a page with a new table."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, "the page has no place for a table"
    assert end, "the table has no end"
    return f"{before}{BEGIN}{table(measured)}{END}{after}"


PAGES = {"README.md": ten_rows, "docs/performance.md": markdown, "docs/jupyter.md": short}


def main() -> None:
    """Write the pages."""
    measured = json.loads((ROOT / "docs" / "benchmarks.json").read_text())
    for name, table in PAGES.items():
        path = ROOT / name
        path.write_text(insert(path.read_text(), measured, table))


if __name__ == "__main__":
    main()
