"""One self-contained web page that tells what a demo measured: figures, plots, texts side by side, and the commands.

Whatever it shows comes from a `Story`, and every text of it is escaped; see `page.py`.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import numpy as np
from matplotlib.figure import Figure

from tsdfm.jobs.demo.findings import NAMES, Curve, Role, Story, caveats, headline
from tsdfm.jobs.shell.page import code, items, note, page, section, table, text
from tsdfm.jobs.shell.plots import axes, plot
from tsdfm.pipeline.evaluation.figures import count, maybe, plus_minus, ppl_interval, share, short_names
from tsdfm.pipeline.evaluation.measures.frontier import COLOURS, frontier_figure
from tsdfm.schemas.evaluate import Row
from tsdfm.schemas.summary import DatasetSummary, SelectionSummary, Spread
from tsdfm.schemas.terms import Arm

FEWEST_POINTS = 3  # of a curve
COLOUR_OF: Mapping[Role, str] = {"teacher": COLOURS[0], "blind": COLOURS[1], "shaped": COLOURS[2]}


def report_page(story: Story) -> str:
    """The page of a story: HTML that needs nothing but itself."""
    sections = [
        section("Results", _table(story, story.own)), _frontier(story), _energies(story.data), _training(story), _texts(story),
        section("What this does not show", items(caveats(story))),
        section("Commands", note("Each step by itself; the same command again keeps what is finished.") + code(story.commands)),
    ]
    data, distilled = story.data, story.distilled
    facts = [f"{count(data.trajectories, 'trajectory')} per arm", count(data.length, "token"),
             f"{count(data.steps, 'step')}, {data.source} source", f"objective {distilled.objective}",
             f"{count(distilled.optim.steps, 'update')} of {distilled.optim.batch_size}"]
    return page("Shaped against blind trajectories", facts, headline(story), sections)


def _name(role: Role, row: Row) -> str:
    return NAMES[role] if row.steps is None else _titled(role, row.steps)


def _titled(role: Role, steps: int) -> str:
    return f"{NAMES[role]}, {count(steps, 'step')}"


def _table(story: Story, rows: Sequence[tuple[Role, Row]]) -> str:
    """The figures of some rows, real text first."""
    judges = short_names(list(rows[0][1].judges))
    swept = any(row.temperature not in (None, story.temperature) for _, row in rows)
    columns = [*(["temperature"] if swept else []), *(f"perplexity ({name})" for name in judges.values()), "entropy, bits",
               "distinct-2", "self-BLEU", "forward passes", "tokens/s"]
    ordered = sorted(rows, key=_order)
    lines = [[_name(role, row), *([maybe(row.temperature, "g")] if swept else []),
              *(ppl_interval(row.judges[name]) for name in judges), plus_minus(row.entropy_bits, row.entropy_standard_error, 3),
              f"{row.distinct_2:.3f}", f"{row.self_bleu:.3f}", maybe(row.nfe, ".1f"), maybe(row.tokens_per_second, ",.0f")]
             for role, row in ordered]
    first, at = rows[0][1], "" if swept else f" Temperature {story.temperature:g}."
    caption = (f"{count(first.samples, 'text')} of {count(first.length, 'token')} a row. Perplexity with its 95 % interval, "
               f"entropy with its standard error; forward passes per text.{at}")
    return table(caption, ["", *columns], lines, [role == "shaped" for role, _ in ordered])


def _order(entry: tuple[Role, Row]) -> tuple[float, ...]:
    role, row = entry
    return list(NAMES).index(role), row.steps or 0, row.temperature or 0.0


def _frontier(story: Story) -> str:
    """Perplexity against entropy over temperatures, with the figures behind it."""
    if story.frontier is None:
        return ""
    swept = [(role, row) for role, row in story.measured if role != "real" and row.steps == story.steps]
    frontier = story.frontier
    shown = plot(
        lambda width: frontier_figure(frontier, width),
        f"Perplexity against unigram entropy of the teacher and both students in {count(story.steps, 'step')} over sampling "
        "temperatures; the figures are in the table below",
        "Lower temperature buys perplexity at the price of entropy, so one model beats another only where its curve lies below "
        "the other's at the same entropy. Lower and further right is better; the star is real text.")
    details = f"<details><summary>The figures of this plot</summary>{_table(story, swept)}</details>"
    return section("Is it only temperature?", shown + details)


def _energies(data: DatasetSummary) -> str:
    """The compass's energy along t: what shaping did to the trajectories."""
    finals = {arm.arm: arm.final_energy for arm in data.arms if arm.final_energy is not None}
    if data.selection is None or not finals:
        return ""
    choices = data.selection
    ends = "; ".join(f"{arm}: {energy.mean:.3f} nats per token" for arm, energy in finals.items())
    pairs = "" if data.pairs is None else (
        f" Paired, shaped minus blind: {data.pairs.mean_difference:+.3f}{_error(data.pairs.standard_error)} nats per token "
        f"over {count(data.pairs.pairs, 'pair')}; shaped is lower in {share(data.pairs.share_lower)} of them.")
    return section("What shaping did to the trajectories", plot(
        lambda width: _energies_figure(data, choices, finals, width),
        f"Energy along t of the blind draw and of the kept candidate; finished texts {ends}",
        "Energy under the compass; lower is more coherent. At each shaped step, on the shaped arm's own states: the candidate "
        f"that blind sampling would have taken, and the one kept of {choices.candidates}. Squares: finished texts of "
        f"each arm with their standard deviation ({ends}).{pairs}"))


def _energies_figure(data: DatasetSummary, choices: SelectionSummary, finals: Mapping[Arm, Spread], width: float) -> Figure:
    drawing, panel = axes(width, "time t of the trajectory", "energy, nats per token")
    scored = [(times, found) for times, found in zip(data.bins, choices.bins, strict=True) if found.scored]
    middles = [(times.t_start + times.t_end) / 2 for times, _ in scored]
    drawn = np.array([found.blind_energy for _, found in scored], dtype=np.float64)
    kept = np.array([found.chosen_energy for _, found in scored], dtype=np.float64)
    panel.plot(middles, drawn, color=COLOUR_OF["blind"], marker=".", label="the blind draw")
    panel.plot(middles, kept, color=COLOUR_OF["shaped"], marker=".", label="the candidate that was kept")
    for arm, energy in finals.items():
        panel.errorbar([1.0], [energy.mean], yerr=[energy.deviation or 0.0], color=COLOUR_OF[arm], marker="s", capsize=4,
                       linestyle="none", label=f"finished texts, {arm} arm")
    panel.legend(frameon=False)
    return drawing


def _error(error: float | None) -> str:
    return "" if error is None else f" ± {error:.3f} (standard error)"


def _training(story: Story) -> str:
    """Both students' losses: as curves, or in a sentence where too few were logged for a curve."""
    if not story.curves:
        return ""
    ends = ", ".join(f"{NAMES[role]} {_ends(curve)}" for role, curve in story.curves.items())
    alike = f"The same objective ({story.distilled.objective}), updates and start for both."
    if max(len(curve) for curve in story.curves.values()) < FEWEST_POINTS:
        return section("Training", note(f"{alike} Too few losses were logged to draw them: {ends} nats per target."))
    return section("Training", plot(
        lambda width: _losses_figure(story.curves, width), f"Training losses: {ends}",
        f"{alike} Each loss is on the student's own trajectories, so compare shapes, not levels: {ends}."))


def _ends(curve: Curve) -> str:
    first, last = curve[0][1], curve[-1][1]
    return f"{first:.3f} to {last:.3f}" if len(curve) > 1 else f"{last:.3f}"


def _losses_figure(curves: Mapping[Role, Curve], width: float) -> Figure:
    drawing, panel = axes(width, "update", "training loss, nats per target")
    for role, curve in curves.items():
        panel.plot([step for step, _ in curve], [loss for _, loss in curve], color=COLOUR_OF[role], marker=".",
                   label=NAMES[role])
    panel.legend(frameon=False)
    return drawing


def _texts(story: Story) -> str:
    """Texts side by side, unedited: the same noise in a row."""
    parts = []
    for index, row in enumerate(zip_longest(*(column.texts for column in story.texts), fillvalue="")):
        cards = "\n".join(
            f'<article class="card"><h4>{text(_titled(column.role, column.steps))}</h4><p>{text(written)}</p></article>'
            for column, written in zip(story.texts, row, strict=True))
        parts.append(f'<h3>Text {index}</h3>\n<div class="texts">\n{cards}\n</div>')
    alike = note(f"The first texts, unedited. Beside each other: the same seed ({story.seed}) and index, so the same noise.")
    return section("Texts side by side", alike + "\n".join(parts)) if parts else ""
