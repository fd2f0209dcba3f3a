"""One self-contained web page that tells what a demo measured: figures, plots, texts side by side, and the commands.

Whatever it shows comes from a `Story`, and every text of it is escaped; see `page.py` of the shell.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest

import numpy as np
from matplotlib.figure import Figure

from tsdfm.jobs.demo.findings import NAMES, Story, caveats, headline, question, sceptic
from tsdfm.jobs.shell.page import code, items, link, note, page, section, table, text
from tsdfm.jobs.shell.plots import axes, plot
from tsdfm.pipeline.evaluation.figures import NONE, count, maybe, plus_minus, ppl, ppl_interval, share, short_names
from tsdfm.pipeline.evaluation.measures.frontier import COLOURS, frontier_figure, perplexity_at_entropy
from tsdfm.schemas.evaluate import Row
from tsdfm.schemas.reports import DemoRole
from tsdfm.schemas.summary import DatasetSummary, SelectionSummary, Spread
from tsdfm.schemas.terms import Arm

FEWEST_POINTS = 3  # of a curve
COLOUR_OF: Mapping[Arm, str] = {"blind": COLOURS[1], "shaped": COLOURS[2]}
PLAYER_FILE = "trajectories.html"  # beside the page
Cell = Callable[[DemoRole, Row], str]  # of a column of a table


def report_page(story: Story) -> str:
    """The page of a story: HTML that needs nothing but itself."""
    sections = [
        _sceptic(story), section("All figures", _own_table(story)), _texts(story), _forming(story), _energies(story.data),
        _training(story), section("What this does not show", items(caveats(story))),
        section("Commands", note("Each step by itself; the same command again keeps what is finished.") + code(story.commands)),
    ]
    data, distilled = story.data, story.distilled
    facts = [f"{count(data.trajectories, 'trajectory')} per arm", count(data.length, "token"),
             f"{count(data.steps, 'step')}, {data.source} source", f"objective {distilled.objective}",
             f"up to {count(distilled.optim.steps, 'update')} of {distilled.optim.batch_size}"]
    return page(f"{count(story.steps, 'step')} against {story.slow:,}", facts, headline(story), sections, question(story))


def _name(story: Story, role: DemoRole, row: Row) -> str:
    return NAMES[role] if row.steps is None else story.name((role, row.steps))


def _own_table(story: Story) -> str:
    """Real text, and every model at its own temperature; also what it would have at the diversity of the shaped student."""
    mine = story.row("shaped", story.steps)
    if mine is None:
        return _table(story, story.own, {}, "")
    columns: dict[str, Cell] = {
        f"perplexity where entropy is {mine.entropy_bits:.2f}": partial(_where, story, "entropy_bits", mine.entropy_bits),
        f"perplexity where distinct-2 is {mine.distinct_2:.3f}": partial(_where, story, "distinct_2", mine.distinct_2)}
    return _table(story, story.own, columns, (
        " At equal entropy and at equal distinct-2: what each would have at the temperature that makes its texts as diverse as "
        "those of the student from shaped; '-' where the temperatures sampled don't reach that."))


def _table(story: Story, rows: Sequence[tuple[DemoRole, Row]], more: Mapping[str, Cell], told: str) -> str:
    """The figures of some rows, real text first, and `more` columns."""
    judges, first = short_names(list(rows[0][1].judges)), rows[0][1]
    columns = ["temperature", *(f"perplexity ({name})" for name in judges.values()), "entropy, bits", "distinct-2", *more,
               "forward passes"]
    ordered = sorted(rows, key=_order)
    lines = [[_name(story, role, row), maybe(row.temperature, "g"), *(ppl_interval(row.judges[name]) for name in judges),
              plus_minus(row.entropy_bits, row.entropy_standard_error, 3), f"{row.distinct_2:.3f}",
              *(cell(role, row) for cell in more.values()), maybe(row.nfe, ".1f")] for role, row in ordered]
    caption = (f"{count(first.samples, 'text')} of {count(first.length, 'token')} a row. Perplexity with its 95 % interval, "
               f"entropy with its standard error; forward passes per text.{told}")
    return table(caption, ["", *columns], lines, [role == "shaped" for role, _ in ordered])


def _where(story: Story, measure: str, value: float, role: DemoRole, row: Row) -> str:
    """The perplexity of a row's model at the temperature that gives a measure of diversity this value."""
    points = [(float(getattr(each, measure)), story.perplexity(each).perplexity)
              for found, each in story.measured if found == role and each.steps == row.steps]
    found = perplexity_at_entropy(points, value) if len(points) > 1 else None
    return NONE if found is None else ppl(found)


def _order(entry: tuple[DemoRole, Row]) -> tuple[float, ...]:
    role, row = entry
    return list(NAMES).index(role), -(row.steps or 0), row.temperature or 0.0


def _sceptic(story: Story) -> str:
    """Perplexity against entropy over temperatures, with the figures behind it, and what it says in words."""
    said = "".join(note(line) for line in sceptic(story))
    if story.frontier is None:
        return section("Would a lower temperature do?", said) if said else ""
    swept = [(role, row) for role, row in story.measured if role != "real"]
    frontier = story.frontier
    shown = plot(
        lambda width: frontier_figure(frontier, width),
        "Perplexity against unigram entropy of the teacher on either clocks, of both students, and of the shaped trajectories, "
        "over sampling temperatures; the figures are in the table below",
        "Lower temperature buys perplexity at the price of entropy, so one model beats another only where its curve lies below "
        "the other's at the same entropy. Lower and further right is better; the star is real text.")
    figures = _table(story, swept, {}, "")
    details = f"<details><summary>The figures of this plot</summary>{figures}</details>"
    return section("Would a lower temperature do?", said + shown + details)


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
    return section("What the compass chose", plot(
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
    ends = ", ".join(f"{NAMES[arm]} {_ends(curve)}" for arm, curve in story.curves.items())
    alike = (f"The same objective ({story.distilled.objective}), updates and start for both, each on its own arm, so the two "
             "losses are not of the same texts.")
    if max(len(curve) for curve in story.curves.values()) < FEWEST_POINTS:
        return section("Training", note(f"{alike} Too few losses were logged to draw them: {ends} nats."))
    return section("Training", plot(
        lambda width: _losses_figure(story, width), f"Held-out loss over the updates: {ends} nats",
        f"Loss on the trajectories that were held out, nats ({ends}). {alike}"))


def _ends(curve: Sequence[tuple[int, float]]) -> str:
    """The first and the last loss of a curve that may hold one alone."""
    first, last = curve[0], curve[-1]
    return f"{first[1]:.3f}" if len(curve) == 1 else f"{first[1]:.3f} to {last[1]:.3f}"


def _losses_figure(story: Story, width: float) -> Figure:
    drawing, panel = axes(width, "update", "held-out loss, nats")
    for arm, curve in story.curves.items():
        panel.plot([step for step, _ in curve], [loss for _, loss in curve], color=COLOUR_OF[arm], marker=".",
                   label=NAMES[arm])
    panel.legend(frameon=False)
    return drawing


def _texts(story: Story) -> str:
    """Texts side by side, unedited: models' of the same noise in a row."""
    parts = []
    for index, row in enumerate(zip_longest(*(column.texts for column in story.texts), fillvalue="")):
        cards = "\n".join(
            f'<article class="card"><h4>{text(story.name((column.role, column.steps)))}</h4><p>{text(written)}</p></article>'
            for column, written in zip(story.texts, row, strict=True))
        parts.append(f'<h3>Text {index}</h3>\n<div class="texts">\n{cards}\n</div>')
    real = f" The models have learnt from {story.corpus}." if story.corpus else ""
    alike = note("The first texts, unedited, each model's at its own temperature of the table above. Beside each other: the "
                 f"same seed ({story.seed}) and index, so the same noise (trajectories: their own).{real}")
    return section("Texts side by side", alike + "\n".join(parts)) if parts else ""


def _forming(story: Story) -> str:
    """One shaped trajectory, jump by jump, and where more of them play."""
    if not story.stills:
        return ""
    lines = []
    for still in story.stills:
        words = "".join(f"<{'mark' if new else 'i'}>{text(piece)}</{'mark' if new else 'i'}>" if new or hidden else text(piece)
                        for piece, hidden, new in still.pieces)
        lines.append(f"<li><b>{still.step}</b><p>{words}</p></li>")
    told = note(f"The first shaped trajectory, before its first jump and after each of its {story.data.steps}; what the jump "
                "has just written is marked.")
    player = link(PLAYER_FILE, "The player: more trajectories, blind and shaped, jump by jump, with candidates and energies")
    return section("A text forming", told + f'<ol class="card stills">{"".join(lines)}</ol>' + player)
