"""From the results of `evaluate` to the claims' rows, curves and verdicts: arithmetic alone, no words."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from claims_work import BY, SPREAD, Compass, Evaluation, Settings

from tsdfm.pipeline.evaluation.measures.frontier import perplexity_at_entropy

REDUCTION, SHARE, SPEED = 0.32, 0.97, 100.0
MARGIN, TIE = 0.10, 0.05  # at equal entropy: asked for, and called level
AXES = ("entropy_bits", "distinct_2")
LONG = "teacher at most steps"
KEPT = ("steps", "temperature", "samples", "nfe", "entropy_bits", "entropy_standard_error", "distinct_2", "distinct_4", "self_bleu",
        "memorised", "in_trajectories")
Figures = list[dict[str, Any]]


def judge_name(evaluator: str) -> str:
    """How a judge is called."""
    if evaluator == "embedded":
        return "embedded"
    return "SmolLM2" if evaluator.endswith(".gguf") else "small"


def judges_of(figures: Figures) -> list[str]:
    """The judges, by rising size."""
    return by_size(figures[0]["judges"])


def by_size(judges: Iterable[str]) -> list[str]:
    """Names of judges, by rising size."""
    return sorted(judges, key=["small", "embedded", "SmolLM2"].index)


def collect(evaluations: Sequence[Evaluation], results: Mapping[str, Mapping[str, Any]]) -> Figures:
    """One flat list of rows: source, who, clocks, seed, and what was measured; real text once a source."""
    figures: Figures = []
    for each in evaluations:
        subjects = {subject.model: subject for subject in each.subjects}
        result, source = results[each.name], each.subjects[0].source
        if not pick(figures, source=source, who="real"):
            figures += [{**_figures(row), "source": source, "who": "real", "clocks": None, "seed": None} for row in result["reference"]]
        for row in result["rows"]:
            subject = subjects[row["model"]]
            figures.append({**_figures(row), "source": source, "who": subject.who, "clocks": subject.clocks, "seed": subject.seed})
    return figures


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    distances = row.get("distances", {})
    judges = {judge_name(name): {**{key: found[key] for key in ("perplexity", "low", "high")}, **_distances(distances.get(name))}
              for name, found in row["judges"].items()}
    return {**{name: row.get(name) for name in KEPT}, "judges": judges}


def _distances(found: Mapping[str, Any] | None) -> dict[str, Any]:
    if found is None:
        return {}
    return {name: {key: found[name][key] for key in ("value", "low", "high")} for name in ("mauve", "frechet")}


def pick(figures: Figures, **wanted: object) -> Figures:
    """The rows whose fields have these values."""
    return [row for row in figures if all(row[name] == value for name, value in wanted.items())]


def mean(values: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def read(rows: Figures, axis: str, place: float, judge: str) -> float | None:
    """The perplexity at which a curve over temperatures passes `place` on an axis; None where it doesn't reach it."""
    return perplexity_at_entropy([(row[axis], row["judges"][judge]["perplexity"]) for row in rows], place)


def conclude(figures: Figures, settings: Settings | Mapping[str, Any], speeds: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """The verdicts on the students of each source, clocks and compass, spread clocks first."""
    steps = settings["steps"] if isinstance(settings, Mapping) else settings.steps
    return [_verdicts(figures, source, clocks, steps, speeds[source], compass)
            for source in speeds for clocks in (SPREAD[source], "independent") for compass, who in BY.items()
            if pick(figures, source=source, who=who, clocks=clocks)]


def _verdicts(figures: Figures, source: str, clocks: str, steps: int, speed: Mapping[str, float], compass: Compass) -> dict[str, Any]:
    real = pick(figures, source=source, who="real")[0]
    own = pick(figures, source=source)
    students = pick(own, who=BY[compass], clocks=clocks, steps=steps)
    seeds = sorted({row["seed"] for row in students})
    longest = max(row["steps"] for row in pick(own, who="teacher"))
    others = {LONG: pick(own, who="teacher", clocks="independent", steps=longest),
              "teacher": pick(own, who="teacher", clocks=clocks, steps=steps)}
    if clocks != "independent":
        others["teacher, independent clocks"] = pick(own, who="teacher", clocks="independent", steps=steps)
        others |= {who: rows for who in ("more", "large", "online", "rounds") if (rows := pick(own, who=who, steps=steps))}
    blind = {seed: pick(own, who="blind", clocks=clocks, steps=steps, seed=seed) for seed in seeds}
    found: dict[str, Any] = {"source": source, "clocks": clocks, "compass": compass, "longest": longest, "steps": steps,
                             "places": {axis: _places(axis, real, [students, *others.values()]) for axis in AXES},
                             "first": _first(real, students, others[LONG]), "ratios": {}, "perplexities": {}}
    for name in (*others, "blind"):
        by_seed = {seed: blind[seed] if name == "blind" else others[name] for seed in seeds}
        found["ratios"][name] = list(_ratios(students, by_seed, real, found["places"]))
    curves = {**others, BY[compass]: students, "blind": pick(own, who="blind", clocks=clocks, steps=steps)}
    for name, rows in curves.items():
        found["perplexities"][name] = {judge: {axis: _by_place(rows, axis, found["places"][axis], judge) for axis in AXES}
                                       for judge in by_size(real["judges"])}
    found["mauve"] = _mauve(students, others[LONG], found["places"]["entropy_bits"]["floor"])
    found["second"] = {"long": level(found["ratios"][LONG]), "same": level(found["ratios"]["teacher"]),
                       "blind": level(found["ratios"]["blind"]), "apart": _apart(students, blind, real, found["places"])}
    found["speed"] = {**speed, "met": speed["every_step_ratio"] >= SPEED}
    return found


def _first(real: Mapping[str, Any], students: Figures, long: Figures) -> dict[str, Any]:
    """(i): at temperature 1, the geometric mean over training seeds against the teacher's most steps."""
    plain, teacher = pick(students, temperature=1.0), pick(long, temperature=1.0)[0]
    floor, entropy = SHARE * real["entropy_bits"], min(row["entropy_bits"] for row in plain)
    judges = {}
    for judge in by_size(real["judges"]):
        each, base = [row["judges"][judge]["perplexity"] for row in plain], teacher["judges"][judge]["perplexity"]
        judges[judge] = {"student": mean(each), "worst": max(each), "teacher": base, "reduction": 1 - mean(each) / base}
    return {"judges": judges, "entropy": entropy, "floor": floor, "teacher_entropy": teacher["entropy_bits"],
            "met": entropy >= floor and all(found["reduction"] >= REDUCTION for found in judges.values())}


def _places(axis: str, real: Mapping[str, Any], curves: Sequence[Figures]) -> dict[str, float]:
    """Where curves are compared: at 97 % and at all of real text's, and in the middle of what all curves share, if anything."""
    low, high = (choose(end(row[axis] for row in rows) for rows in curves) for choose, end in ((max, min), (min, max)))
    return {"floor": SHARE * real[axis], "real": real[axis], **({"shared": (low + high) / 2} if low < high else {})}


def _ratios(students: Figures, others: Mapping[int, Figures], real: Mapping[str, Any], places: Mapping[str, Any],
            ) -> Iterator[dict[str, Any]]:
    """Perplexity of each seed's student over another's, wherever both curves reach, at no less than the floor."""
    for seed, rows in others.items():
        mine = pick(students, seed=seed)
        for axis in AXES:
            for place, where in places[axis].items():
                for judge in by_size(real["judges"]):
                    pair = read(mine, axis, where, judge), read(rows, axis, where, judge)
                    if where >= places[axis]["floor"] and pair[0] is not None and pair[1] is not None:
                        yield {"seed": seed, "axis": axis, "place": place, "judge": judge, "ratio": pair[0] / pair[1]}


def _by_place(rows: Figures, axis: str, places: Mapping[str, float], judge: str) -> dict[str, list[float | None]]:
    """The perplexities of every seed's curve at each place."""
    seeds = sorted({row["seed"] for row in rows}, key=lambda seed: -1 if seed is None else seed)
    return {place: [read(pick(rows, seed=seed), axis, where, judge) for seed in seeds] for place, where in places.items()}


def level(ratios: Sequence[Mapping[str, Any]]) -> str:
    """What ratios say: 'met' (all below by the margin), 'a tie', 'not met', or 'not measured'."""
    values = [each["ratio"] for each in ratios]
    if not values:
        return "not measured"
    if max(values) <= 1 - MARGIN:
        return "met"
    return "a tie" if min(values) >= 1 - TIE and max(values) <= 1 + TIE else "not met"


def _apart(students: Figures, blind: Mapping[int, Figures], real: Mapping[str, Any], places: Mapping[str, Any]) -> bool | None:
    """Whether at every place the worst shaped seed is below the best blind one; None: one seed, or nowhere measured."""
    found = []
    for axis in AXES:
        for where in places[axis].values():
            for judge in by_size(real["judges"]):
                mine = [read(pick(students, seed=seed), axis, where, judge) for seed in blind]
                theirs = [read(rows, axis, where, judge) for rows in blind.values()]
                if where >= places[axis]["floor"] and all(mine) and all(theirs):
                    found.append(max(filter(None, mine)) < min(filter(None, theirs)))
    return all(found) if found and len(blind) > 1 else None


def _mauve(students: Figures, long: Figures, floor: float) -> dict[str, Any]:
    """MAUVE by judge where entropy is nearest the floor, of the first seed's student and of the teacher's most steps."""
    ends = [min(rows, key=lambda row: abs(row["entropy_bits"] - floor))
            for rows in (pick(students, seed=students[0]["seed"]), long)]
    found = {}
    for judge in by_size(ends[0]["judges"]):
        pair = [row["judges"][judge].get("mauve") for row in ends]
        if None not in pair:
            found[judge] = {"student": pair[0], "teacher": pair[1], "not_worse": pair[0]["high"] >= pair[1]["value"]}
    return found
