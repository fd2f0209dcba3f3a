"""Plots in a page: SVG that takes its ink and its colours from the page, so that it reads on light and on dark.

A plot is drawn twice, for a desk and for a phone, and the page shows the one that fits: a drawing that is merely scaled down
has letters that nobody can read.
"""

import hashlib
import io
import re
from collections.abc import Callable

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tsdfm.jobs.shell.page import text
from tsdfm.pipeline.evaluation.measures.frontier import COLOURS

WIDE, NARROW = 10.4, 4.4  # inches of 72 units; a unit is about a pixel
LETTERS = {WIDE: 12.0, NARROW: 12.0}  # units high
ROW = 4.9  # inches that a panel needs: what is narrower has its panels below each other
Sketch = Callable[[float], Figure]  # a drawing of that many inches across


def plot(sketch: Sketch, shown: str, caption: str) -> str:
    """A plot with what it shows, for those who can't see it, and its caption: HTML."""
    both = (("wide", WIDE), ("narrow", NARROW))
    drawings = "".join(f'<div class="{name}">{_svg(sketch, width)}</div>' for name, width in both)
    return (f'<figure class="card plot"><div role="img" aria-label="{text(shown)}">{drawings}</div>'
            f"<figcaption>{text(caption)}</figcaption></figure>")


def axes(width: float, across: str, up: str) -> tuple[Figure, Axes]:
    """An empty drawing of one panel, its axes named."""
    drawing = Figure(figsize=(width, 4.3 if width >= ROW else 3.7), layout="constrained")
    panel = drawing.subplots()
    panel.set_xlabel(across)
    panel.set_ylabel(up)
    panel.grid(alpha=0.25)
    return drawing, panel


def _svg(sketch: Sketch, width: float) -> str:
    """A drawing as an `svg` element: text is text, black is the page's ink, and COLOURS are the page's series 0, 1, ..."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "page", "font.size": LETTERS[width],
                         "axes.labelsize": "medium", "legend.fontsize": "medium", "axes.spines.top": False,
                         "axes.spines.right": False, "savefig.transparent": True}):
        sketch(width).savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    found = buffer.getvalue()
    svg = found[found.index("<svg"):].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r"<svg \1>", svg, count=1)
    svg = svg.replace("#000000", "currentColor").replace("#b0b0b0", "var(--soft)")  # ink, and the lines of a grid
    for index, colour in enumerate(COLOURS):
        svg = svg.replace(colour.lower(), f"var(--series-{index})")
    named = set(re.findall(r"(?:href=\"|url\()#([\w.-]+)", svg))
    svg = re.sub(r" id=\"([^\"]*)\"", lambda name: name[0] if name[1] in named else "", svg)
    mark = "p" + hashlib.sha256(svg.encode()).hexdigest()[:8]  # a name may stand in a page once only
    return re.sub(r"(\bid=\"|href=\"#|url\(#)", rf"\g<1>{mark}-", svg)
