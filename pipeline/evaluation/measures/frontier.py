"""The frontier of an evaluation, as data and as a picture: perplexity against entropy over the sampling temperature.

Lower and further right is better. A point beats a curve if it lies below the curve at its own entropy; below real text at less
entropy there is only dullness.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from tsdfm.pipeline.evaluation.figures import count, short_names
from tsdfm.schemas.evaluate import Results, Row
from tsdfm.schemas.frontier import Frontier, FrontierCurve, FrontierPoint, JudgeFrontier

# Okabe & Ito (2008): told apart with any colour vision, each with a marker of its own; 7 x 9 curves before one repeats.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5B5B5B"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">"]
PANELS_A_ROW = 2
PANEL = 5.0  # inches across that a panel needs
ENTRY, LETTER = 0.35, 0.09  # inches across of an entry of the legend: its marker, and each letter
ALL_LABELLED = 3  # up to so many curves every point has its temperature, else the ends of each curve


def perplexity_at_entropy(points: Sequence[tuple[float, float]], entropy: float) -> float | None:
    """The perplexity at which a frontier passes an entropy: log perplexity, linear in entropy between neighbours.

    Args:
        points: (entropy in bits, perplexity) at each temperature, in any order.
        entropy: where to read the curve.

    Returns:
        None outside the range of the points: a frontier is not extrapolated.
    """
    ordered = sorted(points)
    if not ordered or not ordered[0][0] <= entropy <= ordered[-1][0]:
        return None
    entropies, perplexities = zip(*ordered, strict=True)
    return math.exp(float(np.interp(entropy, entropies, np.log(perplexities))))


def frontier_of(results: Results) -> Frontier:
    """The frontier of an evaluation: per judge a curve for every model and step count, and real text."""
    references = {(row.vocabulary, row.length, row.texts): row for row in results.reference}
    groups: dict[tuple[str, int | None], list[Row]] = {}
    for row in sorted(results.rows, key=lambda row: row.temperature or 0.0):
        groups.setdefault((row.model, row.steps), []).append(row)
    order = [(model, steps) for model in results.settings.model for steps in results.settings.steps]
    judges = {}
    for judge in results.judges:
        curves = []
        for model, steps in order:
            rows = groups[model, steps]
            real = references.get((rows[0].vocabulary, rows[0].length, rows[0].texts))
            curves.append(curve_of(model, rows, judge, real))
        judges[judge] = JudgeFrontier(curves=curves, reference=[point_of(row, judge) for row in results.reference])
    return Frontier(judges=judges)


def curve_of(name: str, rows: Sequence[Row], judge: str, real: Row | None) -> FrontierCurve:
    """The curve of one or more rows of a model in one number of steps; `real`: real text, if it was measured."""
    points = [point_of(row, judge) for row in sorted(rows, key=lambda row: row.temperature or 0.0)]
    at = None if real is None else perplexity_at_entropy(
        [(point.entropy_bits, point.perplexity) for point in points], real.entropy_bits)
    return FrontierCurve(model=name, steps=rows[0].steps, points=points, at_reference_entropy=at)


def point_of(row: Row, judge: str) -> FrontierPoint:
    """One row under a judge."""
    found = row.judges[judge]
    return FrontierPoint(temperature=row.temperature, entropy_bits=row.entropy_bits, perplexity=found.perplexity,
                         low=found.low, high=found.high)


def draw_frontier(frontier: Frontier) -> bytes:
    """A PNG of what `frontier_of` gives: one panel per judge."""
    buffer = io.BytesIO()
    frontier_figure(frontier, 1.4 + PANEL * min(PANELS_A_ROW, len(frontier.judges))).savefig(buffer, format="png", dpi=144)
    return buffer.getvalue()


def frontier_figure(frontier: Frontier, width: float) -> Figure:
    """What `frontier_of` gives as a drawing that is `width` inches across: one panel per judge, as many in a row as fit."""
    judges, names = frontier.judges, short_names(list(frontier.judges))
    columns = max(1, min(PANELS_A_ROW, len(judges), int(width / PANEL)))
    rows = -(-len(judges) // columns)
    figure = Figure(figsize=(width, 0.9 + 4.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (judge, data) in zip(panels, judges.items(), strict=False):
        _draw_panel(panel, data)
        panel.set_title(f"judge: {names[judge]}", fontsize="medium")
    for panel in panels[len(judges):]:
        panel.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    entry = ENTRY + LETTER * max(map(len, labels), default=0)
    figure.legend(handles, labels, loc="outside lower center", frameon=False,
                  ncols=max(1, min(int(width / entry), len(labels))))
    return figure


def _draw_panel(panel: Axes, data: JudgeFrontier) -> None:
    curves = data.curves
    names = short_names(list(dict.fromkeys(curve.model for curve in curves)))
    for index, curve in enumerate(curves):
        points, colour = curve.points, COLOURS[index % len(COLOURS)]
        x, y = [point.entropy_bits for point in points], [point.perplexity for point in points]
        panel.vlines(x, [point.low for point in points], [point.high for point in points], color=colour, alpha=0.45)
        panel.plot(x, y, color=colour, marker=MARKERS[index % len(MARKERS)], markersize=6, linewidth=1.6,
                   label=f"{names[curve.model]}, {count(curve.steps or 0, 'step')}")
        shown = points if len(curves) <= ALL_LABELLED else [points[0], points[-1]][: len(points)]
        for point in shown:
            panel.annotate(f"{point.temperature:g}", (point.entropy_bits, point.perplexity), color=colour,
                           xytext=(5, -10), textcoords="offset points", fontsize="medium")
    for index, point in enumerate(data.reference):
        panel.plot(point.entropy_bits, point.perplexity, linestyle="none", marker="*", markersize=15, color="black",
                   label="real held-out text" if index == 0 else None)
    perplexity_axes(panel, "entropy per text, bits (labels: temperature)", "perplexity")


def perplexity_axes(panel: Axes, across: str, up: str) -> None:
    """Name the axes of a plane of perplexity against something: perplexity is logarithmic, with plain numbers."""
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(ScalarFormatter())
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.grid(alpha=0.25)
    panel.set_xlabel(across)
    panel.set_ylabel(up)
