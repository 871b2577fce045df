"""The figures in README.md, made from docs/benchmarks.json: `python -m benchmarks.readme`.

A full run does it by itself; a test holds the one to the other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.report import likeness, number, with_ratio
from benchmarks.table import BASE, EXTENSION, OURS

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- benchmarks -->\n", "<!-- end of benchmarks -->\n"


def markdown(measured: dict[str, Any]) -> str:
    """The table of all figures that have a bar, and of those with a ratio."""
    machine = measured["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        (
            f"{measured['date']}, {machine['cores']} cores of an {machine['cpu']},"
            f" Python {machine['python']}, {versions}. In parentheses: how many times better than"
            " jupyter_server. A floor is a bare ZeroMQ client in Python, which receives and does"
            " nothing else. What is to be reached is the standalone server's; the extension is to"
            " do the same, which it does where its median is within 5 % or the ranges of the rounds"
            " overlap. A dash: not measured."
        ),
        "",
        (
            "| | jupyter_server | extension | standalone | floor | extension / standalone"
            " | to reach | reached |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in measured["rows"].values():
        for figure in row["figures"].values():
            if not figure["bar"] and figure["ratio"] is None:
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
                f" | {figure['bar']} | {met} |"
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
