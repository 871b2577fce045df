"""The ratios as a picture: one bar a figure on a log axis, and a mark at the ratio to reach."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import number
from benchmarks.table import BASE, OURS, Figure, Outcome

MET, MISSED, FREE = "#2a7f5f", "#c0504d", "#7f9fbf"
INK = "#333333"


def plotted(outcomes: Sequence[Outcome]) -> list[tuple[Outcome, Figure, float]]:
    """The figures that have a ratio, in the order of the table."""
    return [
        (outcome, figure, ratio)
        for outcome in outcomes
        for figure in outcome.row.figures
        if (ratio := outcome.ratio(figure)) is not None
    ]


def draw(outcomes: Sequence[Outcome], path: Path) -> bool:
    """Write the picture; False (and no file) if nothing has a ratio."""
    found = plotted(outcomes)
    if not found:
        return False
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure, axes = plt.subplots(figsize=(11, 1.6 + 0.42 * len(found)), layout="constrained")
    lowest = min(0.5, *(ratio / 2 for *_, ratio in found))
    highest = max(ratio for *_, ratio in found) * 12
    for y, (outcome, what, ratio) in enumerate(found):
        met = outcome.met(what)
        colour = FREE if met is None else MET if met else MISSED
        axes.barh(y, max(ratio, 1) - min(ratio, 1), left=min(ratio, 1), color=colour, height=0.62)
        if what.ratio is not None:
            axes.plot([what.ratio] * 2, [y - 0.42, y + 0.42], color=INK, linewidth=2)
        base, ours = (outcome.median(name, what.key) for name in (BASE, OURS))
        words = f"  {ratio:.3g}x   {number(base)} \N{RIGHTWARDS ARROW} {number(ours, what.unit)}"
        axes.text(max(ratio, what.ratio or 1, 1), y, words, va="center", fontsize=8.5, color=INK)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda x, _position: f"{x:g}x")
    axes.set_xlim(lowest, highest)
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_yticks(
        range(len(found)),
        [f"{outcome.row.title}: {what.label}" for outcome, what, _ in found],
        fontsize=8.5,
    )
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_xlabel(f"times better than {BASE} (log scale)")
    axes.set_title(f"{BASE} \N{RIGHTWARDS ARROW} {OURS}, side by side in one run", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        handles=[
            Patch(color=MET, label="bar met"),
            Patch(color=MISSED, label="bar missed"),
            Patch(color=FREE, label="no bar"),
            Line2D([], [], color=INK, linewidth=2, label="ratio to reach"),
        ],
        fontsize=8.5,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.9 / (1.6 + 0.42 * len(found))),
        ncols=4,
        frameon=False,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True
