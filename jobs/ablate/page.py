"""The page of a sweep: what each factor does, perplexity against entropy of every trial, and the whole table."""

import math
from collections.abc import Sequence
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tsdfm.jobs.ablate.table import cells, effect_cells, equal_entropy_grid, headings
from tsdfm.jobs.shell.page import code, items, page, section, table
from tsdfm.jobs.shell.plots import plot
from tsdfm.pipeline.evaluation.figures import count, short_names
from tsdfm.pipeline.evaluation.measures.frontier import COLOURS, MARKERS, perplexity_axes
from tsdfm.schemas.ablate import Effect, Sweep, TrialRow

PANEL, LEGEND, NAMES, EFFECTS = 5.0, 3.4, 1.6, 2.6  # inches across: a panel, an entry of its legend, names, effects
LETTERS_AN_INCH = 10
TOLD_STEPS = 8  # the step count that is told of in words, or the largest below it


def ablation_page(sweep: Sweep, rows: Sequence[TrialRow], effects: Sequence[Effect]) -> str:
    """The page, HTML that needs nothing but itself; `rows` and `effects` are those of the table."""
    factors, told = sweep.varied, told_effects(sweep, effects)
    trials = len({row.trial for row in rows} - {"start", "real"})
    facts = [count(trials, "trial"), count(len(sweep.seeds), "training seed"),
             f"{count(sweep.evaluate.samples, 'text')} a row"]
    what = ("Perplexity with its 95 % bootstrap interval over texts, entropy with its standard error, NFE: forward passes per "
            "text. 'start' is the model that the students start from.")
    shown = [section("Perplexity and entropy", _plane(sweep, rows) + _compared(sweep, rows))]
    if effects:
        shown.append(section("Effect of each factor", _effects(effects)))
    shown += [section("All figures", table(what, headings(rows, factors), [cells(row, factors) for row in rows])),
              section("What this does not show", items(caveats(sweep)))]
    if sweep.datasets:
        made = [f"# {name}\n{command}" for name, command in sweep.datasets.items()]
        shown.append(section("Datasets", code(made)))
    lines = [sweep.question or f"Sweep over {', '.join(factors)}.", *told]
    return page(sweep.name, facts, lines, shown)


def told_effects(sweep: Sweep, effects: Sequence[Effect]) -> list[str]:
    """The effects at the told step count and the highest temperature in sentences, the largest first."""
    steps = _told_steps(sweep)
    chosen = [each for each in effects if each.steps == steps and each.temperature == max(sweep.evaluate.temperatures)]
    entropy = {(each.factor, each.level): each for each in chosen if each.measure == "entropy"}
    sentences = []
    for each in sorted((each for each in chosen if each.measure != "entropy"), key=lambda each: -abs(each.difference)):
        beside = entropy[each.factor, each.level]
        low, ratio, high = (math.exp(value) for value in (each.low, each.difference, each.high))
        sentences.append(
            f"{each.factor} {each.level} against {each.against}, {count(steps, 'step')}: perplexity "
            f"{each.measure.removeprefix('log perplexity ')} times {ratio:.3f} ({low:.3f} to {high:.3f}), entropy "
            f"{beside.difference:+.3f} bits ({beside.low:+.3f} to {beside.high:+.3f}).")
    return sentences


def _told_steps(sweep: Sweep) -> int:
    return max((n for n in sweep.evaluate.steps if n <= TOLD_STEPS), default=min(sweep.evaluate.steps))


def _compared(sweep: Sweep, rows: Sequence[TrialRow]) -> str:
    """All trials at one entropy, where the curves share one."""
    steps = _told_steps(sweep)
    compared = equal_entropy_grid(rows, sweep.varied, steps)
    if compared is None:
        return ""
    entropy, (heading, *lines) = compared
    return table(f"At equal entropy, {entropy:.3f} bits, {count(steps, 'step')}: perplexity, interpolated between "
                 "temperatures, without intervals.", heading, lines)


def caveats(sweep: Sweep) -> list[str]:
    """What the figures don't show."""
    several = f"{len(sweep.seeds)} training seeds: the intervals count them in, but so few tell too little of their spread."
    seeds = several if len(sweep.seeds) > 1 else (
        "One training seed: the intervals say nothing of how much another training would differ.")
    return [
        "An effect is a level's difference from the factor's first level, averaged over trials that agree in all else. Its "
        f"interval is a 95 % bootstrap interval over texts, drawn alike for all trials, and over training seeds. {seeds}",
        "Effects are averages: where factors interact, read the table.",
        "Perplexity is comparable under one judge only, and rewards dull text: a level beats another where its points "
        "lie lower at the same entropy.",
    ]


def _plane(sweep: Sweep, rows: Sequence[TrialRow]) -> str:
    """Per judge: a curve per trial, over temperatures at the largest step count, or over step counts at one temperature."""
    swept, most = len(sweep.evaluate.temperatures) > 1, max(sweep.evaluate.steps)
    curves: dict[tuple[str, int | None], list[TrialRow]] = {}
    for row in rows:
        if row.trial != "real" and (row.steps == most or not swept):
            curves.setdefault((row.trial, row.seed), []).append(row)
    along = f"sampling temperature, {count(most, 'step')}" if swept else "number of steps"
    return plot(lambda width: _plane_figure(rows, list(curves.values()), width, swept=swept),
                "Perplexity against unigram entropy of all trials; the figures are in the table below",
                f"A curve per trial; along it: {along}. Lower and further right is better; the star is real text. "
                "Bars: 95 % intervals over texts.")


def _plane_figure(rows: Sequence[TrialRow], curves: Sequence[Sequence[TrialRow]], width: float, *, swept: bool) -> Figure:
    judges = short_names(list(rows[0].judges))
    columns = max(1, min(len(judges), int(width / PANEL)))
    lines = -(-len(judges) // columns)
    entries = max(1, int(width / LEGEND))  # of the legend, in a row
    height = 0.6 + 4.4 * lines + 0.26 * -(-len(curves) // entries)
    drawing = Figure(figsize=(width, height), layout="constrained")
    panels = drawing.subplots(lines, columns, squeeze=False).ravel()
    for panel, (judge, name) in zip(panels, judges.items(), strict=False):
        for index, curve in enumerate(curves):
            _draw_curve(panel, curve, judge, index, swept=swept)
        _draw_real(panel, rows, judge)
        perplexity_axes(panel, "unigram entropy per text, bits", f"perplexity ({name})")
    for panel in panels[len(judges):]:
        panel.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=entries, frameon=False)
    return drawing


def _draw_curve(panel: Axes, curve: Sequence[TrialRow], judge: str, index: int, *, swept: bool) -> None:
    first = curve[0]
    colour = "black" if first.trial == "start" else COLOURS[index % len(COLOURS)]
    label = "start" if first.trial == "start" else ", ".join(first.levels.values()) + f" (seed {first.seed})"
    x, found = [row.entropy_bits for row in curve], [row.judges[judge] for row in curve]
    panel.vlines(x, [each.low for each in found], [each.high for each in found], color=colour, alpha=0.45)
    panel.plot(x, [each.perplexity for each in found], color=colour, marker=MARKERS[index % len(MARKERS)], markersize=5,
               linewidth=1.4, label=label)
    for row, each in {0: (curve[0], found[0]), 1: (curve[-1], found[-1])}.values():
        panel.annotate(f"{row.temperature if swept else row.steps:g}", (row.entropy_bits, each.perplexity), color=colour,
                       xytext=(5, -9), textcoords="offset points", fontsize="medium")


def _draw_real(panel: Axes, rows: Sequence[TrialRow], judge: str) -> None:
    for row in rows:
        if row.trial == "real":
            panel.plot(row.entropy_bits, row.judges[judge].perplexity, linestyle="none", marker="*", markersize=14,
                       color="black", label="real held-out text")


def _effects(effects: Sequence[Effect]) -> str:
    """Per measure: every level against the first of its factor, with intervals, a colour per step count."""
    highest = max(each.temperature for each in effects)
    drawn = [each for each in effects if each.temperature == highest]
    shown = plot(lambda width: _effects_figure(drawn, width), "Effects of all factors with intervals; the figures are below",
                 "Difference from the factor's first level, averaged over the other factors and seeds, with 95 % intervals; "
                 f"temperature {highest:g}.")
    head = ["factor", "level", "against", "n", "T", "measure", "difference (95 % interval)", "pairs"]
    figures = table("All effects.", head, [effect_cells(each) for each in effects])
    return f"{shown}<details><summary>The figures of this plot, and at other temperatures</summary>{figures}</details>"


def _effects_figure(effects: Sequence[Effect], width: float) -> Figure:
    """A panel per measure, beside each other where they fit."""
    measures = sorted({each.measure for each in effects})
    names = list(dict.fromkeys(_name(each) for each in effects))
    columns = max(1, min(len(measures), int((width - NAMES) / EFFECTS)))
    lines = -(-len(measures) // columns)
    drawing = Figure(figsize=(width, 0.6 + lines * (0.9 + 0.55 * len(names))), layout="constrained")
    panels = drawing.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for panel, measure in zip(panels, measures, strict=False):
        _draw_effects(panel, [each for each in effects if each.measure == measure], names)
        unit = "bits" if measure == "entropy" else "nats"
        panel.set_xlabel(fill(f"{measure}, {unit}", int(LETTERS_AN_INCH * (width - NAMES) / columns)))
        panel.set_yticks(range(len(names)), names)
    for panel in panels[len(measures):]:
        panel.set_visible(False)
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=max(1, int(width / 1.2)), frameon=False)
    return drawing


def _draw_effects(panel: Axes, effects: Sequence[Effect], names: Sequence[str]) -> None:
    """The effects on one measure, a line of the panel per name."""
    steps = sorted({each.steps for each in effects})
    for index, n in enumerate(steps):
        those = [each for each in effects if each.steps == n]
        centre = [each.difference for each in those]
        bars = [[each.difference - each.low for each in those], [each.high - each.difference for each in those]]
        shift = 0.6 * ((index + 0.5) / len(steps) - 0.5)
        panel.errorbar(centre, [names.index(_name(each)) + shift for each in those], linestyle="none", capsize=3, xerr=bars,
                       color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)], label=count(n, "step"))
    panel.axvline(0, color="black", linewidth=0.8)
    panel.margins(y=0.15)
    panel.grid(axis="x", alpha=0.25)


def _name(effect: Effect) -> str:
    return f"{effect.factor}:\n{effect.level} against {effect.against}"
