"""Students of several training seeds against a teacher's curve: `python tests/benchmarks/students.py RESULTS --group NAME=MODEL,... [--curve OTHER]`.

RESULTS is `results.json` of `tsdfm-pipeline evaluate --frontier`. Of each group of its models (a group is one way to train, its models
the training seeds) this prints the perplexity over that of the model that the evaluation set all against, when as diverse: the geometric mean over
seeds and temperatures, with the least and the greatest. With --curve the curve is that of the first model of OTHER, `results.json` of another
evaluation under a judge of the same weights, say of a teacher with other clocks or steps. Nothing is sampled.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from measure import report, table

from tsdfm.pipeline.evaluation.measures.frontier import perplexity_at_entropy
from tsdfm.schemas.evaluate import Results, Row

MEASURES = ("entropy_bits", "distinct_2")


def read(path: Path) -> Results:
    """Results of an evaluation."""
    return Results.model_validate_json(path.read_bytes())


def ratios(results: Results, curve: Sequence[Row], judge: str, models: Sequence[str], least: float) -> dict[str, list[float]]:
    """By measure of diversity: perplexities of the models' rows at temperatures from `least` on over a curve's, where it reaches."""
    rows = [row for row in results.rows if row.model in models and row.temperature is not None and row.temperature >= least]
    found: dict[str, list[float]] = {}
    for measure in MEASURES:
        points = [(float(getattr(row, measure)), row.judges[judge].perplexity) for row in curve]
        there = [(row, perplexity_at_entropy(points, float(getattr(row, measure)))) for row in rows]
        found[measure] = [row.judges[judge].perplexity / other for row, other in there if other is not None]
    return found


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """The geometric mean of ratios, the least and the greatest; None of none."""
    if not values:
        return None
    mean = math.exp(sum(map(math.log, values)) / len(values))
    return {"mean": mean, "least": min(values), "greatest": max(values), "rows": len(values)}


def main() -> None:
    """Read, compare, print."""
    parser = argparse.ArgumentParser(description="Students of several training seeds against a teacher's curve.")
    parser.add_argument("results", type=Path, metavar="RESULTS", help="results.json of evaluate --frontier")
    parser.add_argument("--group", action="append", required=True, metavar="NAME=MODEL,...", help="models of one way to train; may be repeated")
    parser.add_argument("--curve", type=Path, metavar="OTHER", help="results.json whose first model's curve is taken instead")
    parser.add_argument("--least", type=float, default=0.8, help="the least temperature of the groups' rows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the JSON object to FILE")
    options = parser.parse_args()
    results = read(options.results)
    other = read(options.curve) if options.curve else results
    for each in (results, other):
        if len(each.settings.steps) > 1:
            parser.error("evaluations of one step count each are compared")
    if any(other.judges.get(name) != facts for name, facts in results.judges.items()):
        parser.error("both evaluations must have the same judges")
    against = other.settings.model[0] if options.curve else other.settings.against or other.settings.model[0]
    curve = [row for row in other.rows if row.model == against]
    groups = {name: models.split(",") for name, _, models in (each.partition("=") for each in options.group)}
    found = {judge: {name: {measure: spread(values) for measure, values in ratios(results, curve, judge, models, options.least).items()}
                     for name, models in groups.items()} for judge in results.judges}
    for judge, by_group in found.items():
        table(f"perplexity over that of {against} when as diverse, judge {Path(judge).name}", ("", "at equal entropy", "at equal distinct-2"), [
            (name, *(_shown(each[measure]) for measure in MEASURES)) for name, each in by_group.items()])
    report({"against": against, "judges": found}, options.json)


def _shown(found: dict[str, float] | None) -> str:
    return "-" if found is None else f"{found['mean']:.2f} ({found['least']:.2f}-{found['greatest']:.2f}), {found['rows']} rows"


if __name__ == "__main__":
    main()
