"""The frontier of an evaluation, as data and as a picture: perplexity against entropy over the sampling temperature.

Lower and further right is better. A point beats a curve if it lies below the curve at its own entropy; below real text at less
entropy there is only dullness.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from tsdfm.pipeline.evaluation import perplexity_at_entropy
from tsdfm.schemas.evaluate import Results, Row

# Okabe & Ito (2008): told apart with any colour vision, each with a marker of its own; 7 x 9 curves before one repeats.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5B5B5B"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">"]
PANELS_A_ROW = 2
ALL_LABELLED = 3  # up to so many curves every point has its temperature, else the ends of each curve


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names that fit a table: the last part of a path, where that is no other's."""
    last = {name: Path(name).name or name for name in names}
    short = list(last.values())
    return {name: last[name] if short.count(last[name]) == 1 else name for name in names}


def frontier_of(results: Results) -> dict[str, Any]:
    """The frontier as JSON data: per judge the curves (one per model and step count, by rising temperature) and real text.

    `at_reference_entropy` is a curve's perplexity at the entropy of real text of its vocabulary and length, null where the
    curve doesn't reach it.
    """
    references = {(row.vocabulary, row.length): row for row in results.reference}
    groups: dict[tuple[str, int | None], list[Row]] = {}
    for row in sorted(results.rows, key=lambda row: row.temperature or 0.0):
        groups.setdefault((row.model, row.steps), []).append(row)
    order = [(model, steps) for model in results.settings.model for steps in results.settings.steps]
    judges = {}
    for judge in results.judges:
        curves = []
        for model, steps in order:
            rows = groups[model, steps]
            points = [_point(row, judge) for row in rows]
            real = references.get((rows[0].vocabulary, rows[0].length))
            at = None if real is None else perplexity_at_entropy(
                [(point["entropy_bits"], point["perplexity"]) for point in points], real.entropy_bits)
            curves.append({"model": model, "steps": steps, "points": points, "at_reference_entropy": at})
        judges[judge] = {"curves": curves, "reference": [_point(row, judge) for row in results.reference]}
    return {"judges": judges}


def _point(row: Row, judge: str) -> dict[str, Any]:
    found = row.judges[judge]
    return {"temperature": row.temperature, "entropy_bits": row.entropy_bits, "perplexity": found.perplexity,
            "low": found.low, "high": found.high}


def draw_frontier(frontier: dict[str, Any]) -> bytes:
    """A PNG of what `frontier_of` gives: one panel per judge."""
    judges = frontier["judges"]
    columns = min(PANELS_A_ROW, len(judges))
    rows = -(-len(judges) // columns)
    figure = Figure(figsize=(1.4 + 5.6 * columns, 0.9 + 4.6 * rows), dpi=144, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    names = short_names(list(judges))
    for panel, (judge, data) in zip(panels, judges.items(), strict=False):
        _draw_panel(panel, data)
        panel.set_title(f"judge: {names[judge]}", fontsize=11)
    for panel in panels[len(judges):]:
        panel.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(2 * columns, len(labels)), frameon=False, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_panel(panel: Axes, data: dict[str, Any]) -> None:
    curves = data["curves"]
    names = short_names(list(dict.fromkeys(curve["model"] for curve in curves)))
    for index, curve in enumerate(curves):
        points, colour = curve["points"], COLOURS[index % len(COLOURS)]
        x, y = ([point[field] for point in points] for field in ("entropy_bits", "perplexity"))
        panel.vlines(x, [point["low"] for point in points], [point["high"] for point in points], color=colour, alpha=0.45)
        panel.plot(x, y, color=colour, marker=MARKERS[index % len(MARKERS)], markersize=6, linewidth=1.6,
                   label=f"{names[curve['model']]}, {curve['steps']} step{'s' * (curve['steps'] > 1)}")
        shown = points if len(curves) <= ALL_LABELLED else [points[0], points[-1]][: len(points)]
        for point in shown:
            panel.annotate(f"{point['temperature']:g}", (point["entropy_bits"], point["perplexity"]), color=colour,
                           xytext=(5, -10), textcoords="offset points", fontsize=8)
    for index, point in enumerate(data["reference"]):
        panel.plot(point["entropy_bits"], point["perplexity"], linestyle="none", marker="*", markersize=15, color="black",
                   label="real held-out text" if index == 0 else None)
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(ScalarFormatter())
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.grid(alpha=0.25)
    panel.set_xlabel("unigram entropy per text, bits  (labels: sampling temperature)")
    panel.set_ylabel("perplexity")
