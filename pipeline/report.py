"""One self-contained web page that tells what a demo measured: figures, plots, texts side by side, and the commands.

`report.html` is the page. Whatever it shows comes from a `Story`, and every text of it is escaped; the page has no script, its
plots are inline, and its content security policy lets it load nothing.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from itertools import zip_longest

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tsdfm.pipeline.plots import COLOURS, draw_frontier, short_names
from tsdfm.pipeline.story import NAMES, Role, Story, caveats, headline, interval
from tsdfm.schemas.evaluate import Row
from tsdfm.schemas.summary import DatasetSummary

DPI = 144
COLOUR_OF: Mapping[Role, str] = {"teacher": COLOURS[0], "blind": COLOURS[1], "shaped": COLOURS[2]}
# Texts may hold anything; control characters become their pictures. Line breaks pass.
_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if code != 10}
_CONTROLS |= dict.fromkeys(range(0x7F, 0xA0), "\ufffd")


def report_page(story: Story) -> str:
    """The page of a story: HTML that needs nothing but itself."""
    sections = [
        _section("Results", _table(story, story.own)), _frontier(story), _energies(story.data), _training(story), _texts(story),
        _section("What this does not show", f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in caveats(story))}</ul>"),
        _section("Commands", f'<p class="note">Each step by itself; the same command again keeps what is finished.</p>'
                             f'<pre class="card"><code>{_text(chr(10).join(story.commands))}</code></pre>'),
    ]
    data, distilled = story.data, story.distilled
    facts = [f"{data.trajectories} trajectories per arm", f"{data.length} tokens", f"{data.steps} steps, {data.source} source",
             f"objective {distilled.objective}", f"{distilled.optim.steps} updates of {distilled.optim.batch_size}"]
    parts = {"FACTS": _text(" · ".join(facts)), "HEADLINE": "\n".join(f"<p>{_text(line)}</p>" for line in headline(story)),
             "SECTIONS": "\n".join(section for section in sections if section)}
    page = files("tsdfm.pipeline").joinpath("report.html").read_text(encoding="utf-8")
    return re.sub(r"__([A-Z]+)__", lambda place: parts[place[1]], page)  # one pass: nothing put in is ever replaced


def _text(text: str) -> str:
    """Text as HTML."""
    return escape(text.translate(_CONTROLS))


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{_text(title)}</h2>\n{content}\n</section>"


def _name(role: Role, row: Row) -> str:
    return NAMES[role] if row.steps is None else _titled(role, row.steps)


def _titled(role: Role, steps: int) -> str:
    return f"{NAMES[role]}, {steps} step{'s' * (steps > 1)}"


def _table(story: Story, rows: Sequence[tuple[Role, Row]]) -> str:
    """The figures of some rows, real text first."""
    judges = short_names(list(rows[0][1].judges))
    swept = any(row.temperature not in (None, story.temperature) for _, row in rows)
    columns = [*(["temperature"] if swept else []), *(f"perplexity ({name})" for name in judges.values()), "entropy, bits",
               "distinct-2", "self-BLEU", "forward passes", "tokens/s"]
    head = "".join(f'<th scope="col">{_text(column)}</th>' for column in ("", *columns))
    body = []
    for role, row in sorted(rows, key=_order):
        cells = [*([_maybe(row.temperature, "g")] if swept else []), *(interval(row.judges[name]) for name in judges),
                 f"{row.entropy_bits:.3f} ± {row.entropy_standard_error:.3f}", f"{row.distinct_2:.3f}", f"{row.self_bleu:.3f}",
                 _maybe(row.nfe, ".1f"), _maybe(row.tokens_per_second, ",.0f")]
        marked = ' class="shaped"' if role == "shaped" else ""
        body.append(f'<tr{marked}><th scope="row">{_text(_name(role, row))}</th>'
                    + "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>")
    first, at = rows[0][1], "" if swept else f" Temperature {story.temperature:g}."
    caption = (f"{first.samples} texts of {first.length} tokens a row. Perplexity with its 95 % interval, entropy with its "
               f"standard error; forward passes per text.{at}")
    return (f'<div class="card scroll" role="region" aria-label="Table of figures" tabindex="0"><table>'
            f"<caption><span>{_text(caption)}</span></caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(body)
            + "\n</tbody></table></div>")


def _order(entry: tuple[Role, Row]) -> tuple[float, ...]:
    role, row = entry
    return list(NAMES).index(role), row.steps or 0, row.temperature or 0.0


def _maybe(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _figure(png: bytes, shown: str, caption: str) -> str:
    data = base64.b64encode(png).decode()
    return (f'<figure class="card"><img src="data:image/png;base64,{data}" alt="{_text(shown)}">'
            f"<figcaption>{_text(caption)}</figcaption></figure>")


def _frontier(story: Story) -> str:
    """Perplexity against entropy over temperatures, with the figures behind it."""
    if story.frontier is None:
        return ""
    swept = [(role, row) for role, row in story.measured if role != "real" and row.steps == story.steps]
    figure = _figure(
        draw_frontier(dict(story.frontier)),
        f"Perplexity against unigram entropy of the teacher and both students in {story.steps} steps over sampling "
        "temperatures; the figures are in the table below",
        "Lower temperature buys perplexity at the price of entropy, so one model beats another only where its curve lies below "
        "the other's at the same entropy. Lower and further right is better; the star is real text.")
    details = f"<details><summary>The figures of this plot</summary>{_table(story, swept)}</details>"
    return _section("Is it only temperature?", figure + details)


def _energies(data: DatasetSummary) -> str:
    """The compass's energy along t: what shaping did to the trajectories."""
    finals = {arm.arm: arm.final_energy for arm in data.arms if arm.final_energy is not None}
    if data.selection is None or not finals:
        return ""
    figure, axes = _axes("time t of the trajectory", "energy, nats per token")
    scored = [(times, choices) for times, choices in zip(data.bins, data.selection.bins, strict=True) if choices.scored]
    middles = [(times.t_start + times.t_end) / 2 for times, _ in scored]
    drawn = np.array([choices.blind_energy for _, choices in scored], dtype=np.float64)
    kept = np.array([choices.chosen_energy for _, choices in scored], dtype=np.float64)
    axes.plot(middles, drawn, color=COLOUR_OF["blind"], marker=".", label="the blind draw")
    axes.plot(middles, kept, color=COLOUR_OF["shaped"], marker=".", label="the candidate that was kept")
    for arm, energy in finals.items():
        axes.errorbar([1.0], [energy.mean], yerr=[energy.deviation or 0.0], color=COLOUR_OF[arm], marker="s", capsize=4,
                      linestyle="none", label=f"finished texts, {arm} arm")
    axes.legend(frameon=False)
    ends = "; ".join(f"{arm}: {energy.mean:.3f} nats per token" for arm, energy in finals.items())
    pairs = "" if data.pairs is None else (
        f" Paired, shaped minus blind: {data.pairs.mean_difference:+.3f}{_error(data.pairs.standard_error)} nats per token "
        f"over {data.pairs.pairs} pairs; shaped is lower in {100 * data.pairs.share_lower:.1f} % of them.")
    return _section("What shaping did to the trajectories", _figure(
        _png(figure), f"Energy along t of the blind draw and of the kept candidate; finished texts {ends}",
        "Energy under the compass; lower is more coherent. At each shaped step, on the shaped arm's own states: the candidate "
        f"that blind sampling would have taken, and the one kept of {data.selection.candidates}. Squares: finished texts of "
        f"each arm with their standard deviation ({ends}).{pairs}"))


def _error(error: float | None) -> str:
    return "" if error is None else f" ± {error:.3f} (standard error)"


def _training(story: Story) -> str:
    """Both students' losses."""
    if not story.curves:
        return ""
    figure, axes = _axes("update", "training loss, nats per target")
    for role, curve in story.curves.items():
        axes.plot([step for step, _ in curve], [loss for _, loss in curve], color=COLOUR_OF[role], marker=".",
                  label=NAMES[role])
    axes.legend(frameon=False)
    ends = ", ".join(f"{NAMES[role]} {curve[0][1]:.3f} to {curve[-1][1]:.3f}" for role, curve in story.curves.items())
    return _section("Training", _figure(
        _png(figure), f"Training losses: {ends}",
        f"The same objective ({story.distilled.objective}), updates and start for both. Each loss is on the student's own "
        f"trajectories, so compare shapes, not levels: {ends}."))


def _texts(story: Story) -> str:
    """Texts side by side, unedited: the same noise in a row."""
    parts = []
    for index, row in enumerate(zip_longest(*(column.texts for column in story.texts), fillvalue="")):
        cards = "\n".join(
            f'<article class="card"><h4>{_text(_titled(column.role, column.steps))}</h4><p>{_text(text)}</p></article>'
            for column, text in zip(story.texts, row, strict=True))
        parts.append(f'<h3>Text {index}</h3>\n<div class="texts">\n{cards}\n</div>')
    note = (f'<p class="note">The first texts, unedited. Beside each other: the same seed ({story.seed}) and index, so the '
            "same noise.</p>")
    return _section("Texts side by side", note + "\n".join(parts)) if parts else ""


def _axes(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.0, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.25)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
