"""Plot the ratios: two bars per figure on a logarithmic axis, and a mark at the target.

The upper bar of a pair is for the standalone server; the lower, paler one is for the extension.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report import number
from benchmarks.table import BASE, EXTENSION, OURS, Figure, Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MET, MISSED, FREE = "#2a7f5f", "#c0504d", "#7f9fbf"
INK = "#333333"
PALE = 0.55
THICK = 0.36


def plotted(outcomes: Sequence[Outcome]) -> list[tuple[Outcome, Figure]]:
    """Return the figures that have a ratio, in the order of the table."""
    return [
        (outcome, figure)
        for outcome in outcomes
        for figure in outcome.row.figures
        if any(outcome.ratio(figure, name) is not None for name in (OURS, EXTENSION))
    ]


def draw_bar(axes: Axes, y: float, outcome: Outcome, what: Figure, name: str) -> None:
    """One bar and its values."""
    ratio = outcome.ratio(what, name)
    if ratio is None:
        return
    verdict = outcome.met(what) if name == OURS else outcome.same(what)
    colour = FREE if verdict is None else MET if verdict else MISSED
    axes.barh(
        y,
        max(ratio, 1) - min(ratio, 1),
        left=min(ratio, 1),
        color=colour,
        height=THICK,
        alpha=1 if name == OURS else PALE,
    )
    bar = what.ratio if name == OURS else None
    if bar is not None:
        axes.plot([bar] * 2, [y - THICK / 2 - 0.06, y + THICK / 2 + 0.06], color=INK, linewidth=2)
    base, value = (outcome.median(n, what.key) for n in (BASE, name))
    words = f"  {ratio:.3g}x   {number(base)} \N{RIGHTWARDS ARROW} {number(value, what.unit)}"
    axes.text(max(ratio, bar or 1, 1), y, words, va="center", fontsize=8, color=INK)


def draw(outcomes: Sequence[Outcome], path: Path) -> bool:
    """Write the image; return False, and write no file, if no figure has a ratio."""
    found = plotted(outcomes)
    if not found:
        return False
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    tall = 1.6 + 0.55 * len(found)
    figure, axes = plt.subplots(figsize=(11, tall), layout="constrained")
    for y, (outcome, what) in enumerate(found):
        draw_bar(axes, y - 0.2, outcome, what, OURS)
        draw_bar(axes, y + 0.2, outcome, what, EXTENSION)
    ratios = [
        ratio
        for outcome, what in found
        for name in (OURS, EXTENSION)
        if (ratio := outcome.ratio(what, name)) is not None
    ]
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda x, _position: f"{x:g}x")
    axes.set_xlim(min(0.5, *(ratio / 2 for ratio in ratios)), max(ratios) * 12)
    axes.axvline(1, color=INK, linewidth=0.8)
    labels = [f"{outcome.row.title}: {what.label}" for outcome, what in found]
    axes.set_yticks(range(len(found)), labels, fontsize=8.5)
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_xlabel(f"times better than {BASE} (log scale)")
    title = f"{BASE} \N{RIGHTWARDS ARROW} kbridge, side by side in one run"
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    add_legend(axes, tall)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def add_legend(axes: Axes, tall: float) -> None:
    """Add a legend of the colours and marks below the axis."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    axes.legend(
        handles=[
            Patch(color=MET, label="standalone: target met"),
            Patch(color=MET, alpha=PALE, label="extension: the same"),
            Patch(color=MISSED, label="target missed"),
            Patch(color=MISSED, alpha=PALE, label="less than standalone"),
            Patch(color=FREE, label="no target"),
            Patch(color=FREE, alpha=PALE, label="not compared"),
            Line2D([], [], color=INK, linewidth=2, label="target ratio"),
        ],
        fontsize=8.5,
        loc="upper center",
        bbox_to_anchor=(0.3, -0.8 / tall),
        ncols=4,
        frameon=False,
    )
