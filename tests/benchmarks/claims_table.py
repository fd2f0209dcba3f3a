"""The claims in words: the section of the README beside this file, and its figure."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from claims_verdicts import AXES, LONG, MARGIN, REDUCTION, SHARE, SPEED, TIE, Figures, by_size, judges_of, mean, pick

README = Path(__file__).with_name("README.md")
FIGURE = Path(__file__).with_name("results") / "claims.png"
BEGIN, END = "<!-- claims: written by `make claims` -->", "<!-- end of claims -->"
JUDGES = {
    "small": "a causal language model of 2 blocks, 64 wide, fitted for {judge_updates} updates on the half of the corpus that the "
             "compass never saw",
    "embedded": "the judge that ships with the package, 4 blocks, 192 wide, fitted on the same half",
    "SmolLM2": "short for SmolLM2-135M-Instruct in 4 bits (Q4_1), which shares neither weights nor vocabulary with anything here",
}
ON = {"entropy_bits": "entropy", "distinct_2": "distinct-2"}
CURVES = (LONG, "teacher, independent clocks", "teacher", "blind", "shaped", "contrast", "more", "large", "online", "rounds")
COPIED = {"memorised": "memorised", "in_trajectories": "in trajectories"}  # shares of 8-grams
ORDER = ("real", "teacher", "blind", "shaped", "contrast", "more", "large", "online", "rounds")


def names(settings: Mapping[str, Any]) -> dict[str, str]:
    """How each subject is called."""
    return {"real": "real held-out text", "teacher": "teacher", "blind": "student, blind", "shaped": "**student, shaped**",
            "contrast": "**student, shaped by `nce`**",
            "more": f"student, blind, {settings['more']} times the trajectories and updates",
            "large": "student, blind, about 5 times the parameters", "online": "student, online scheme, as many core-seconds",
            "rounds": "student, rounds that halve the steps"}


def markdown(result: Mapping[str, Any]) -> str:
    """The section of the README: question, criteria, answer, tables, judges, verdicts, figure."""
    figures, settings, conclusion = result["rows"], result["settings"], result["conclusion"]
    readers = "\n".join(f"- *{name}*: {JUDGES[name].format_map(settings)}." for name in judges_of(figures))
    seeds = len(settings["seeds"])
    return f"""{BEGIN}
**What was asked.** Is a student that writes in {settings['steps']} steps, distilled from shaped trajectories, better than its own teacher in
{max(settings['teacher_steps']):,} steps? And is it better, or only duller? Dull, repetitive text has a low perplexity, too, so diversity counts as much, by two
measures: entropy and distinct-2. *Clocks* say which positions are written together: *independent* ones by chance, *spaced* ones (mask
source) and *even* ones (uniform source) evenly over the text, which is a matter of the sampler, and of no training.

- **(i)** At temperature 1 the perplexity of the student (geometric mean over training seeds) is at least {REDUCTION * 100:.0f} % below its own teacher's
  at {max(settings['teacher_steps']):,} steps, under every judge, and its entropy (the least of all seeds) is at least {SHARE * 100:.0f} % of real text's.
- **(ii)** At equal entropy and at equal distinct-2, each sampled at the temperature that gives it, and at no less than {SHARE * 100:.0f} % of real
  text's: the student is at least {MARGIN * 100:.0f} % below its teacher at {max(settings['teacher_steps']):,} steps (independent clocks) *and* below that teacher in as few steps with
  the same clocks, under every judge, with every training seed. Within {TIE * 100:.0f} % both ways is called a tie.
- **(iii)** A step of the student costs what its teacher's costs, so that {settings['steps']} steps are at least {SPEED:.0f} times faster than {max(settings['teacher_steps']):,} by wall
  clock, every step computed. (Our own sampler skips steps without a jump, which is exact and helps the teacher; given beside it.)

**The answer.**

{chr(10).join(_answer(found) for found in conclusion)}

{_learnt(result.get("learnt", ()))}**At equal diversity.** Perplexity where a curve over temperatures passes {SHARE * 100:.0f} % of real text's entropy / of its distinct-2; where there are
several training seeds the geometric mean. `-`: the curve does not reach there.

{_lines(_equal(conclusion, settings, judges_of(figures)))}

**Judges**, by rising size; none had a part in making the texts:

{readers}

**At temperature 1.** {settings['samples']} texts per row; {settings['trajectories']:,} trajectories a source, clocks and arm ({settings['steps']} steps, temperature
{settings['temperature']:g}, K = {settings['candidates']}, tau = {settings['tau']:g}, argmin), objective `{settings['objective']}`, {settings['updates']} updates of {settings['batch_size']}, {seeds} training seed{'s' if seeds > 1 else ''}.{_of_contrast(figures, settings)} Perplexity with its 95 % bootstrap
interval over texts, or, where there are several training seeds, their geometric mean with least and greatest; *memorised*: share of 8-grams
that stand in the training text{_beside_trajectories(figures)}; MAUVE under the largest judge, with its interval, or least and greatest.

{_lines(_rows(figures, settings))}

{chr(10).join(line for found in conclusion for line in _said(found))}

![Perplexity against entropy and distinct-2 over sampling temperatures](results/{FIGURE.name})
{END}"""


def _beside_trajectories(figures: Figures) -> str:
    there = any(row.get("in_trajectories") is not None for row in figures)
    return "; *in trajectories*: in those that a student learnt from" if there else ""


def _of_contrast(figures: Figures, settings: Mapping[str, Any]) -> str:
    if not any(row["who"] == "contrast" for row in figures):
        return ""
    return (" Beside the usual compass (`ar`, a causal language model) stands `nce`, a network that was trained to tell real text from the "
            f"teacher's ({settings['nce_updates']} updates): it chooses from tau = 0, and its students learn by `tilt` with "
            f"{settings['nce_event_weight']:g} of `event`.")


def _learnt(learnt: Sequence[Mapping[str, Any]]) -> str:
    """What shaped students carry of the compass's preference, by source and compass, beside their teacher alone."""
    said = []
    for found in learnt:
        shares, cooled = ([100 * each[name] for each in found["by_seed"]] for name in ("share", "cooled"))
        said.append(f"{found['source']} source, `{found['compass']}`: {min(shares):.0f} to {max(shares):.0f} %, the teacher alone, sampled "
                    f"cooler, {min(cooled):.0f} to {max(cooled):.0f} %")
    if not said:
        return ""
    return ("**Why.** What a student has learnt of the compass's choices can be read off trajectories that it did not learn from: of the preference "
            f"among the candidates shaped students carry: {'; '.join(said)}. Only what exceeds the latter is of the compass, and not of dullness.\n\n")


def _lines(table: Sequence[Sequence[str]]) -> str:
    header, *rows = table
    return "\n".join(["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *("| " + " | ".join(row) + " |" for row in rows)])


def _equal(conclusion: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], judges: Sequence[str]) -> list[list[str]]:
    table = [["source", "model", "clocks", "steps", *judges]]
    called = names(settings)
    for found in conclusion:
        own, few = found["clocks"], str(found["steps"])
        shown = {LONG: ("teacher", "independent", f"{found['longest']:,}"), "teacher": ("teacher", own, few),
                 "teacher, independent clocks": ("teacher", "independent", few)}
        for name in sorted(found["perplexities"], key=CURVES.index):
            by_judge = found["perplexities"][name]
            cells = [" / ".join(_number(by_judge[judge][axis]["floor"]) for axis in AXES) for judge in judges]
            row = [found["source"], *shown.get(name, (called.get(name, name), own, few)), *cells]
            if row not in table:  # what the students of both compasses are compared with
                table.append(row)
    return table


def _number(values: Sequence[float | None]) -> str:
    """The geometric mean of what several seeds reached."""
    there = [value for value in values if value is not None]
    return f"{mean(there):.1f}" if there and len(there) == len(values) else "-"


def _rows(figures: Figures, settings: Mapping[str, Any]) -> list[list[str]]:
    judges, called = judges_of(figures), names(settings)
    copied = [name for name in COPIED if any(row.get(name) is not None for row in figures)]
    table = [["source", "model", "clocks", "steps", *(f"{judge} ppl" for judge in judges), "entropy", "distinct-2", "self-BLEU",
              *(COPIED[name] for name in copied), "MAUVE", "NFE"]]
    keys = sorted({(row["source"], ORDER.index(row["who"]), row["clocks"] or "", row["steps"] or 0) for row in figures})
    for source, who, clocks, steps in keys:
        rows = [row for row in pick(figures, source=source, who=ORDER[who], clocks=clocks or None, steps=steps or None)
                if row["temperature"] in (None, 1.0)]
        if rows:
            table.append([source, called[ORDER[who]], clocks, f"{steps:,}" if steps else "", *_cells(rows, judges, copied)])
    return table


def _cells(rows: Figures, judges: Sequence[str], copied: Sequence[str]) -> list[str]:
    def average(name: str, digits: int) -> str:
        values = [row[name] for row in rows if row.get(name) is not None]
        return f"{sum(values) / len(values):.{digits}f}" if values else ""

    mauve = [row["judges"][judges[-1]].get("mauve") for row in rows]
    cells = [_interval([row["judges"][judge] for row in rows], "perplexity", 1) for judge in judges]
    return [*cells, average("entropy_bits", 3), average("distinct_2", 3), average("self_bleu", 3),
            *(average(name, 4) for name in copied), "" if None in mauve else _interval(mauve, "value", 2), average("nfe", 1)]


def _interval(found: Sequence[Any], name: str, digits: int) -> str:
    values = [each[name] for each in found]
    if len(found) == 1:
        return f"{values[0]:.{digits}f} ({found[0]['low']:.{digits}f}-{found[0]['high']:.{digits}f})"
    return f"{mean(values):.{digits}f} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


def beside(ratios: Iterable[Mapping[str, Any]]) -> str:
    """What ratios of perplexities say: '24 to 35 % below', '4 % below to 4 % above', 'at 1.6 to 2.1 times the perplexity of'."""
    values = [each["ratio"] for each in ratios]
    least, most = min(values), max(values)
    if least > 1.5:
        return f"at {least:.1f} to {most:.1f} times the perplexity of"
    if most < 1:
        return f"{100 * (1 - most):.0f} to {100 * (1 - least):.0f} % below"
    if least > 1:
        return f"{100 * (least - 1):.0f} to {100 * (most - 1):.0f} % above"
    return f"{100 * (1 - least):.0f} % below to {100 * (most - 1):.0f} % above"


def _met(yes: bool) -> str:
    return "met" if yes else "not met"


def second(found: Mapping[str, Any]) -> str:
    """(ii) as a whole."""
    parts = [found["second"]["long"], found["second"]["same"]]
    if "not measured" in parts:
        return "not measured"
    return _met(parts == ["met", "met"] and all(each["not_worse"] for each in found["mauve"].values()))


def _head(found: Mapping[str, Any]) -> str:
    """Whose verdicts these are."""
    by = {"ar": "", "nce": ", shaped by `nce`"}[found["compass"]]
    return f"{found['source']} source, {found['clocks']} clocks{by}"


def _answer(found: Mapping[str, Any]) -> str:
    """The students of one source and clocks in plain words: first what a sceptic asks."""
    few, long, ratios = found["steps"], found["longest"], found["ratios"]
    head = _head(found)
    said = [f"- **{head}: at equal diversity (ii) {second(found)}, at temperature 1 (i) "
            f"{_met(found['first']['met'])}, speed (iii) {_met(found['speed']['met'])}.**"]
    if ratios["teacher"]:
        said.append(f"Is it the student, or only its clocks and a cooler temperature? At equal diversity the shaped student is {beside(ratios['teacher'])} "
                    f"its own teacher in {few} steps with the same clocks ({found['second']['same']}).")
    else:
        said.append(f"At no less than {SHARE * 100:.0f} % of real text's diversity the curves of the student and of its teacher in {few} steps don't meet.")
    if ratios[LONG]:
        said.append(f"It is {beside(ratios[LONG])} that teacher in {long:,} steps ({found['second']['long']}).")
    if ratios["blind"]:
        apart = {None: "seeds not compared", True: "seeds apart", False: "seeds overlap"}[found["second"]["apart"]]
        said.append(f"It is {beside(ratios['blind'])} the blind student of as many trajectories and updates ({apart}).")
    first = found["first"]
    said.append(f"At temperature 1 it is {_by_judge(first)} that teacher in {long:,} steps, where {REDUCTION * 100:.0f} % below was asked under each; "
                f"with {first['entropy']:.3f} bits of entropy against the teacher's {first['teacher_entropy']:.3f}.")
    return " ".join(said)


def _by_judge(first: Mapping[str, Any]) -> str:
    below = {name: 100 * first["judges"][name]["reduction"] for name in by_size(first["judges"])}
    return ", ".join(f"{abs(value):.0f} % {'below' if value >= 0 else 'above'} ({name})" for name, value in below.items())


def _said(found: Mapping[str, Any]) -> list[str]:
    """The verdicts with their numbers."""
    head, first, speed = _head(found), found["first"], found["speed"]
    lines = [f"- **{head}, (i) {_met(first['met'])}**: {_by_judge(first)} the teacher, against the {REDUCTION * 100:.0f} % asked; entropy {first['entropy']:.3f} "
             f"bits (the least of all training seeds), asked {first['floor']:.3f}."]
    titles = {LONG: f"the teacher in {found['longest']:,} steps", "teacher": f"the teacher in {found['steps']} steps, same clocks",
              "teacher, independent clocks": f"the teacher in {found['steps']} steps, independent clocks", "blind": "the blind student",
              "more": "the blind student of more trajectories and updates", "large": "the larger blind student",
              "online": "the student of the online scheme", "rounds": "the student of rounds"}
    for name in sorted(found["ratios"], key=CURVES.index):
        ratios = found["ratios"][name]
        if ratios:
            by_axis = "; ".join(f"at equal {ON[axis]} {beside(each)}" for axis in AXES if (each := [r for r in ratios if r["axis"] == axis]))
            lines.append(f"- {head}, (ii), beside {titles[name]}: {by_axis}.")
        else:
            lines.append(f"- {head}, (ii), beside {titles[name]}: the curves don't meet at {SHARE * 100:.0f} % of real text's diversity or more.")
    for judge in by_size(found["mauve"]):
        each = found["mauve"][judge]
        lines.append(f"- {head}, MAUVE under {judge} where entropy is nearest {SHARE * 100:.0f} % of real text's: student {each['student']['value']:.2f} "
                     f"({each['student']['low']:.2f}-{each['student']['high']:.2f}), teacher in {found['longest']:,} steps {each['teacher']['value']:.2f}: "
                     f"{'not worse' if each['not_worse'] else 'worse'}.")
    lines.append(f"- {head}, (iii) {_met(speed['met'])}: {speed['every_step_ratio']:.0f} times faster where every step is computed, "
                 f"{speed['skipping_ratio']:.1f} times with our sampler, which skips steps without a jump.")
    return lines


def draw(figures: Figures, file: Path) -> None:
    """Perplexity against entropy, and against distinct-2, over sampling temperatures: two rows per source, a column per judge."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    sources, judges = sorted({row["source"] for row in figures}), judges_of(figures)
    colours = {"teacher": "#555555", "shaped": "#0072B2", "contrast": "#7E2F8E", "blind": "#D55E00", "more": "#E69F00", "large": "#009E73", "online": "#CC79A7",
               "rounds": "#56B4E9"}
    panels = [(source, axis) for source in sources for axis in AXES]
    canvas, axes = plt.subplots(len(panels), len(judges), figsize=(4.6 * len(judges), 3.6 * len(panels)), squeeze=False)
    for (source, axis), across in zip(panels, axes, strict=True):
        own = pick(figures, source=source)
        real = pick(own, who="real")[0]
        for judge, panel in zip(judges, across, strict=True):
            for who, clocks, steps, seed in sorted({(r["who"], r["clocks"], r["steps"], r["seed"]) for r in own if r["who"] in colours}, key=str):
                rows = sorted(pick(own, who=who, clocks=clocks, steps=steps, seed=seed), key=lambda row: row[axis])
                if len(rows) > 1 and seed in (None, 0):
                    panel.plot([row[axis] for row in rows], [row["judges"][judge]["perplexity"] for row in rows], color=colours[who],
                               linestyle={8: "-", 64: "--"}.get(steps, ":"), marker="o" if clocks == "independent" else "s",
                               markersize=4, label=f"{who}, {steps:,} steps, {clocks}")
            panel.plot(real[axis], real["judges"][judge]["perplexity"], "*", color="black", markersize=11, label="real text")
            panel.axvline(SHARE * real[axis], color="#BBBBBB", linewidth=0.8)
            panel.set(yscale="log", title=f"{source} source, judge: {judge}", xlabel=ON[axis] + (" (bits)" if axis == AXES[0] else ""),
                      ylabel="perplexity")
    axes[0][0].legend(fontsize=6)
    canvas.tight_layout()
    canvas.savefig(file, dpi=90)
    plt.close(canvas)


def publish(text: str, figure: Path, result: Mapping[str, Any]) -> None:
    """Put the section between its marks in the README, the figure and all numbers into results/."""
    page = README.read_text()
    before, _, rest = page.partition(BEGIN)
    README.write_text(before + text + rest.partition(END)[2])
    shutil.copyfile(figure, FIGURE)
    FIGURE.with_suffix(".json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
