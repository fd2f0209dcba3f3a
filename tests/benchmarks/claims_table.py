"""From the results of `evaluate` to the claims' rows, verdicts, figure, and the section of the README beside this file."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tsdfm.pipeline.evaluation.measures.frontier import perplexity_at_entropy

README = Path(__file__).with_name("README.md")
FIGURE = Path(__file__).with_name("results") / "claims.png"
BEGIN, END = "<!-- claims: written by `make claims` -->", "<!-- end of claims -->"
REDUCTION, ENTROPY_SHARE, SPEED = 0.32, 0.97, 100.0
TIE = 0.05  # curves are of one training seed and without intervals: at equal entropy a smaller difference says nothing
JUDGES = {
    "small": "a causal language model of 2 blocks, 64 wide, fitted for {judge_updates} updates on the half of the corpus that the "
             "compass never saw",
    "embedded": "the judge that ships with the package, 4 blocks, 192 wide, fitted on the same half",
    "SmolLM2": "short for SmolLM2-135M-Instruct in 4 bits (Q4_1), which shares neither weights nor vocabulary with anything here",
}

Figures = list[dict[str, Any]]


def judge_name(evaluator: str) -> str:
    """How a judge is called in the table."""
    if evaluator == "embedded":
        return "embedded"
    return "SmolLM2" if evaluator.endswith(".gguf") else "small"


def judges_of(record: Mapping[str, Any]) -> list[str]:
    """The judges of a row or verdict, by rising size."""
    return sorted(record["judges"], key=["small", "embedded", "SmolLM2"].index)


def collect(results: Mapping[str, Mapping[str, Any]], seeds: Sequence[int], sources: Sequence[str]) -> Figures:
    """One flat list of rows: source, who ('real', 'teacher', 'shaped', 'blind'), seed, and what was measured."""
    figures: Figures = []
    for name, result in results.items():
        source = next(s for s in sources if name.startswith(s))
        for row in result["rows"]:
            model = row["model"].rstrip("/").rpartition("/")[2]
            who, seed = ("teacher", None) if model.startswith("embedded") else (model.split("-")[2], int(model.split("-")[3]))
            figures.append({**_figures(row), "source": source, "who": who, "seed": seed})
        figures += [{**_figures(row), "source": source, "who": "real", "seed": None} for row in result["reference"]]
    return figures


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("steps", "temperature", "samples", "nfe", "entropy_bits", "entropy_standard_error", "distinct_2", "distinct_4",
            "self_bleu")
    return {**{name: row[name] for name in kept}, "judges": {judge_name(j): v for j, v in row["judges"].items()}}


def pick(figures: Figures, **wanted: object) -> Figures:
    """The rows whose fields have these values."""
    return [row for row in figures if all(row[name] == value for name, value in wanted.items())]


def conclude(figures: Figures, speeds: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Each target, by source and judge: what was measured, and whether it is met."""
    return {source: {**_claims(figures, source), "speed": {**speeds[source], "met": speeds[source]["every_step_ratio"] >= SPEED}}
            for source in speeds}


def _claims(figures: Figures, source: str) -> dict[str, Any]:
    real = pick(figures, source=source, who="real")[0]
    floor = ENTROPY_SHARE * real["entropy_bits"]
    teacher = pick(figures, source=source, who="teacher", temperature=1.0)
    long = max(teacher, key=lambda row: row["steps"])
    arms = {arm: pick(figures, source=source, who=arm, steps=8, temperature=1.0) for arm in ("shaped", "blind")}
    entropy = min(row["entropy_bits"] for row in arms["shaped"])
    found: dict[str, Any] = {"entropy_floor": floor, "student_entropy": entropy, "entropy_met": entropy >= floor, "judges": {}}
    for judge in real["judges"]:
        shaped, blind = ([row["judges"][judge] for row in arms[arm]] for arm in ("shaped", "blind"))
        mean = math.exp(sum(math.log(each["perplexity"]) for each in shaped) / len(shaped))
        worst = max(each["perplexity"] for each in shaped)
        reduction = 1 - mean / long["judges"][judge]["perplexity"]
        apart = max(each["high"] for each in shaped) < min(each["low"] for each in blind)
        found["judges"][judge] = {
            "student": mean, "student_worst_seed": worst, "teacher_long": long["judges"][judge]["perplexity"],
            "reduction": reduction, "reduction_met": reduction >= REDUCTION, "apart_from_blind": apart,
            "frontier": _frontier(figures, source, judge, floor, real["entropy_bits"]),
        }
    return found


def _frontier(figures: Figures, source: str, judge: str, floor: float, real: float) -> dict[str, Any]:
    """Perplexity of every curve at 97 % and 100 % of real text's entropy, and in the middle of the range that all curves share.

    None: the curve doesn't reach there.
    """
    names = sorted({f"{row['who']}-{row['steps']}" for row in pick(figures, source=source) if row["who"] != "real"})
    curves = {name: points for name in names if len(points := points_of(figures, source, name, judge)) > 1}
    shared = (max(min(points)[0] for points in curves.values()) + min(max(points)[0] for points in curves.values())) / 2
    return {place: {"entropy": entropy, **{name: perplexity_at_entropy(points, entropy) for name, points in curves.items()}}
            for place, entropy in (("at_97", floor), ("at_100", real), ("shared", shared))}


def points_of(figures: Figures, source: str, curve: str, judge: str) -> list[tuple[float, float]]:
    """(entropy, perplexity) of one curve over temperatures, by rising temperature; the first training seed only."""
    who, _, steps = curve.partition("-")
    rows = [row for row in pick(figures, source=source, who=who, steps=int(steps)) if row["seed"] in (None, 0)]
    return [(row["entropy_bits"], row["judges"][judge]["perplexity"]) for row in sorted(rows, key=lambda r: r["temperature"])]


def draw(figures: Figures, file: Path) -> None:
    """Perplexity against entropy over sampling temperatures: a row per source, a column per judge."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    sources = sorted({row["source"] for row in figures})
    judges = judges_of(figures[0])
    styles = {"teacher": ("#555555", "o"), "shaped": ("#0072b2", "s"), "blind": ("#d55e00", "^")}
    lines = {8: "-", 64: "--", 1024: ":"}
    canvas, axes = plt.subplots(len(sources), len(judges), figsize=(4.4 * len(judges), 3.6 * len(sources)), squeeze=False)
    for source, across in zip(sources, axes, strict=True):
        real = pick(figures, source=source, who="real")[0]
        for judge, axis in zip(judges, across, strict=True):
            for who, (colour, marker) in styles.items():
                for steps, line in lines.items():
                    rows = pick(figures, source=source, who=who, steps=steps)
                    points = points_of(figures, source, f"{who}-{steps}", judge) if rows else []
                    if len(points) > 1:
                        name = f"{who}, {steps} steps" if who == "teacher" else f"student from {who}, {steps} steps"
                        axis.plot(*zip(*points, strict=True), line, color=colour, marker=marker, markersize=4, label=name)
            axis.plot(real["entropy_bits"], real["judges"][judge]["perplexity"], "*", color="black", markersize=11, label="real text")
            axis.set(yscale="log", title=f"{source} source, judge: {judge}", xlabel="unigram entropy (bits)", ylabel="perplexity")
            axis.axvline(ENTROPY_SHARE * real["entropy_bits"], color="#bbbbbb", linewidth=0.8)
    axes[0][0].legend(fontsize=7)
    canvas.tight_layout()
    canvas.savefig(file, dpi=110)
    plt.close(canvas)


def markdown(result: Mapping[str, Any]) -> str:
    """The section of the README: question, criteria, answer, judges, rows, verdicts, figure."""
    figures, settings = result["rows"], result["settings"]
    judges = judges_of(figures[0])
    header = ["source", "model", "steps", *(f"{judge} ppl" for judge in judges), "entropy", "distinct-2", "self-BLEU", "NFE"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for source in sorted({row["source"] for row in figures}):
        for who in ("real", "teacher", "blind", "shaped"):
            steps = sorted({row["steps"] for row in pick(figures, source=source, who=who)}, key=lambda n: n or 0)
            for n in steps:
                rows = [r for r in pick(figures, source=source, who=who, steps=n) if r["temperature"] in (None, 1.0)]
                lines.append("| " + " | ".join(_cells(source, who, n, rows, judges)) + " |")
    answers = "\n".join(_answer(figures, source, found) for source, found in result["conclusion"].items())
    readers = "\n".join(f"- *{name}*: {JUDGES[name].format_map(settings)}." for name in judges)
    verdicts = "\n".join(line for source, found in result["conclusion"].items() for line in _verdicts(source, found))
    return f"""{BEGIN}
**What was asked.** Is a student that writes in 8 steps, distilled from shaped trajectories, better than its own teacher in 1,024
steps? And is it better, or only duller? Dull, repetitive text has a low perplexity, too, so entropy counts as much. Three criteria:

- **(i)** At temperature 1 the perplexity of the 8-step student (geometric mean over training seeds) is at least {REDUCTION * 100:.0f} % below its own
  teacher's at 1,024 steps, under every judge; its entropy (the least of all seeds) is at least {ENTROPY_SHARE * 100:.0f} % of real text's; and its 95 %
  intervals lie below those of a student from blind trajectories, under every judge.
- **(ii)** At equal entropy, student and teacher each sampled at the temperature that gives it, and at no less than {ENTROPY_SHARE * 100:.0f} % of real
  text's: the student is below its teacher in the same 8 steps. (The further hope: below its teacher in 1,024.) A margin was not
  fixed beforehand; as these curves are of one training seed and have no intervals, less than {TIE * 100:.0f} % is called a tie, and
  met means below by more than that under every judge.
- **(iii)** A step of the student costs what its teacher's costs, so that 8 steps are at least {SPEED:.0f} times faster than 1,024 by wall
  clock, every step computed. (Our own sampler skips steps without a jump, which is exact and helps the teacher; given beside it.)

**The answer.**

{answers}

**Judges**, by rising size; none had a part in making the texts:

{readers}

In the table entropies are means over training seeds. {settings['samples']} texts per row at temperature 1; {settings['trajectories']} trajectories a source and arm (N = {settings['rollout_steps']},
K = {settings['candidates']}, argmin), objective `{settings['objective']}`, {settings['updates']} updates of {settings['batch_size']}. Perplexity with its 95 % bootstrap
interval over texts, or, where there are {len(settings['seeds'])} training seeds, their geometric mean with least and greatest.

{chr(10).join(lines)}

The lines (ii) give the perplexity of the student from shaped / from blind trajectories at 8 steps / the teacher at 8 / at 1,024
steps; `-` where a curve does not reach that entropy.

{verdicts}

![Perplexity against entropy over sampling temperatures](results/{FIGURE.name})
{END}"""


def _ratios(found: Mapping[str, Any], teacher: str) -> list[float]:
    """Perplexity of the 8-step student over a teacher's, wherever both curves reach, at no less than the floor of entropy."""
    places = [place for judge in found["judges"].values() for place in judge["frontier"].values()
              if place["entropy"] >= found["entropy_floor"]]
    return [place["shaped-8"] / place[teacher] for place in places if place.get("shaped-8") and place.get(teacher)]


def _at_equal_entropy(ratios: Sequence[float]) -> str:
    """(ii): 'met', 'a tie' or 'not met'."""
    if not ratios:
        return "not measured"
    if max(ratios) < 1 - TIE:
        return "met"
    return "a tie" if min(ratios) >= 1 - TIE and max(ratios) <= 1 + TIE else "not met"


def _beside(ratios: Sequence[float]) -> str:
    """What ratios of perplexities say: '24 to 35 % below', '4 % below to 4 % above', 'at 1.6 to 2.1 times the perplexity of'."""
    least, most = min(ratios), max(ratios)
    if least > 1.5:
        return f"at {least:.1f} to {most:.1f} times the perplexity of"
    if most < 1:
        return f"{100 * (1 - most):.0f} to {100 * (1 - least):.0f} % below"
    if least > 1:
        return f"{100 * (least - 1):.0f} to {100 * (most - 1):.0f} % above"
    return f"{100 * (1 - least):.0f} % below to {100 * (most - 1):.0f} % above"


def _first_met(found: Mapping[str, Any]) -> bool:
    return found["entropy_met"] and all(j["reduction_met"] and j["apart_from_blind"] for j in found["judges"].values())


def _met(yes: bool) -> str:
    return "met" if yes else "not met"


def _lowered(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{100 * found['judges'][name]['reduction']:.0f} % ({name})" for name in judges_of(found))


def _answer(figures: Figures, source: str, found: Mapping[str, Any]) -> str:
    """One source in plain words: first what a sceptic asks, equal entropy."""
    teacher = max(pick(figures, source=source, who="teacher", temperature=1.0), key=lambda row: row["steps"])
    students = pick(figures, source=source, who="shaped", steps=8, temperature=1.0)
    entropy = sum(row["entropy_bits"] for row in students) / len(students)
    same, long, blind = (_ratios(found, curve) for curve in ("teacher-8", "teacher-1024", "blind-8"))
    second, third = _at_equal_entropy(same), _met(found["speed"]["met"])
    said = [f"- **{source} source: at equal entropy (ii) {second}, at temperature 1 (i) {_met(_first_met(found))}, speed (iii) {third}.**"]
    if same:
        better = {"met": "better than", "a tie": "only level with"}.get(second, "no better than")
        said.append(f"Would a cooler teacher do as well? At equal entropy the student in 8 steps is {better} its teacher in 8: {_beside(same)}.")
    if long:
        said.append(f"It is {_beside(long)} that teacher in 1,024 steps: the further hope is {_at_equal_entropy(long)}.")
    if blind:
        said.append(f"It is {_beside(blind)} a student from blind trajectories cooled likewise.")
    if any(judge["frontier"]["at_100"].get("shaped-8") is None for judge in found["judges"].values()):
        said.append("At no temperature tried does it reach the entropy of real text.")
    said.append(
        f"At temperature 1 it is below its teacher in 1,024 steps by {_lowered(found)}, where {REDUCTION * 100:.0f} % was asked under each; but it "
        f"is duller there, with {entropy:.3f} bits of entropy ({found['student_entropy']:.3f} with the dullest training seed) against "
        f"{teacher['entropy_bits']:.3f}.")
    return " ".join(said)


def _cells(source: str, who: str, steps: int | None, rows: Figures, judges: Sequence[str]) -> list[str]:
    def mean(name: str) -> float:
        return float(sum(row[name] for row in rows) / len(rows))

    name = {"real": "real held-out text", "teacher": "teacher"}.get(who, f"student from {who}")
    cells = [source, f"**{name}**" if who == "shaped" and steps == 8 else name, str(steps or "")]
    for judge in judges:
        each = [row["judges"][judge] for row in rows]
        if len(each) == 1:
            cells.append(f"{each[0]['perplexity']:.1f} ({each[0]['low']:.1f}-{each[0]['high']:.1f})")
        else:
            values = [e["perplexity"] for e in each]
            middle = math.exp(sum(map(math.log, values)) / len(values))
            cells.append(f"{middle:.1f} [{min(values):.1f}-{max(values):.1f}]")
    nfe = "" if rows[0]["nfe"] is None else f"{mean('nfe'):.1f}"
    return [*cells, f"{mean('entropy_bits'):.3f}", f"{mean('distinct_2'):.3f}", f"{mean('self_bleu'):.3f}", nfe]


def _verdicts(source: str, found: Mapping[str, Any]) -> list[str]:
    judges = {name: found["judges"][name] for name in judges_of(found)}
    apart = all(j["apart_from_blind"] for j in judges.values())
    worst = ", ".join(f"{100 * (1 - j['student_worst_seed'] / j['teacher_long']):.1f} % ({name})" for name, j in judges.items())
    lines = [
        f"- **{source}, (i) {_met(_first_met(found))}**: the 8-step student is below its teacher at 1,024 steps by {_lowered(found)}, against the "
        f"{REDUCTION * 100:.0f} % asked (its worst training seed by {worst}); its "
        f"entropy {found['student_entropy']:.3f} bits (the least of all training seeds) against a floor of {found['entropy_floor']:.3f}; shaped and blind intervals "
        f"{'are apart' if apart else 'overlap'} under {'every judge' if apart else 'some judge'}."]
    for place, where in (("at_97", "97 % of real text's entropy"), ("at_100", "100 % of it"), ("shared", "what all curves reach")):
        said = []
        for name, judge in judges.items():
            curve = judge["frontier"][place]
            values = [curve.get(which) for which in ("shaped-8", "blind-8", "teacher-8", "teacher-1024")]
            said.append(f"{name}: " + " / ".join("-" if v is None else f"{v:.0f}" for v in values))
        bits = next(iter(judges.values()))["frontier"][place]["entropy"]
        lines.append(f"- {source}, (ii) at {bits:.3f} bits ({where}), each at the temperature that gives that entropy: {'; '.join(said)}.")
    speed = found["speed"]
    lines.append(f"- {source}, (iii) {_met(speed['met'])}: 8 steps are {speed['every_step_ratio']:.0f} times faster than 1,024 "
                 f"where every step is computed, {speed['skipping_ratio']:.1f} times with our sampler, which skips steps without a jump.")
    return lines


def publish(text: str, figure: Path, result: Mapping[str, Any]) -> None:
    """Put the section between its marks in the README, the figure and all numbers into results/."""
    page = README.read_text()
    before, _, rest = page.partition(BEGIN)
    README.write_text(before + text + rest.partition(END)[2])
    shutil.copyfile(figure, FIGURE)
    FIGURE.with_suffix(".json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
