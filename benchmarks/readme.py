"""The figures in README.md, made from docs/benchmarks.json: `python -m benchmarks.readme`.

A full run does it by itself; a test holds the one to the other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.report import number
from benchmarks.table import BASE, OURS

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- benchmarks -->\n", "<!-- end of benchmarks -->\n"


def markdown(measured: dict[str, Any]) -> str:
    """The table of all figures that have a bar, and of those in which both servers stand."""
    machine = measured["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        (
            f"{measured['date']}, {machine['cores']} cores of an {machine['cpu']},"
            f" Python {machine['python']}, {versions}. A floor is a bare ZeroMQ client in Python,"
            " which receives and does nothing else."
        ),
        "",
        "| | jupyter_server | kbridge | floor | ratio | to reach | reached |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in measured["rows"].values():
        for figure in row["figures"].values():
            if not figure["bar"] and figure["ratio"] is None:
                continue
            base, ours, floor = (
                number(figure[name], figure["unit"]) for name in (BASE, OURS, "floor")
            )
            ratio = "" if figure["ratio"] is None else f"{number(figure['ratio'])}x"
            met = {True: "yes", False: "**no**", None: ""}[figure["met"]]
            what = f"{row['title']}: {figure['label']}"
            lines.append(
                f"| {what} | {base} | {ours} | {floor} | {ratio} | {figure['bar']} | {met} |"
            )
    return "\n".join(lines) + "\n"


def insert(readme: str, measured: dict[str, Any]) -> str:
    """README.md with its table made anew."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{markdown(measured)}{END}{after}"


def main() -> None:
    """Write README.md."""
    path = ROOT / "README.md"
    measured = json.loads((ROOT / "docs" / "benchmarks.json").read_text())
    path.write_text(insert(path.read_text(), measured))


if __name__ == "__main__":
    main()
