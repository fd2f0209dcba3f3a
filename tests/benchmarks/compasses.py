"""Which compass shapes best? `python tests/benchmarks/compasses.py [--ar NAME] [--nce FOLDER] [--contrast FOLDER] [--grid G] [--json FILE]`.

Rollouts of a mask teacher in 8 steps with spaced clocks and in 64 with independent ones, of which a compass keeps the best of K = 8
whole candidates at every step, or from t = 0.25 on, or at every position its own best: `ar` (a causal language model), `nce` and `contrast`
(folders of `fit-compass` of these kinds), and the sum of the energies of `ar` and `nce` as they stand, through the protocol by which anybody's compass is taken.
Asked of each: its perplexity over that of the blind teacher in the same steps and with the same clocks, cooled until its texts have the
same entropy, or the same distinct-2; and its CPU time over that of the blind teacher. The judge shares neither weights nor text with a compass. One seed.

Texts are kept in DIR, so what was cut goes on, and a second run only judges.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from measure import machine, report, say, table
from torch import Tensor

from tsdfm.pipeline.evaluation.effects import JudgedTexts, Ratio, ratio_at_equal_entropy
from tsdfm.pipeline.evaluation.judge import Judge
from tsdfm.pipeline.evaluation.measures.frontier import perplexity_at_entropy
from tsdfm.pipeline.evaluation.open_judge import open_judge
from tsdfm.pipeline.evaluation.samples import Samples, likelihood, measure, of_tokens
from tsdfm.pipeline.flow.compass import Compass, TokenCompass, TokenSets
from tsdfm.pipeline.flow.opening import open_compass
from tsdfm.pipeline.flow.rollout import roll_out
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import ModelFolder, load_model
from tsdfm.pipeline.storage.atomic import write_atomic
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig

CPU = torch.device("cpu")
CANDIDATES = 8
BATCH = 32
COOLED = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # temperatures of the blind teacher, its curve
SPACED, INDEPENDENT = {"steps": 8, "clocks": "spaced"}, {"steps": 64, "clocks": "independent"}


@dataclass(frozen=True)
class Grid:
    """What is rolled out, how a compass chooses, and at which temperatures."""

    rollout: dict[str, object]
    shaping: dict[str, object]
    temperatures: tuple[float, ...] = (1.0, 0.9)

    def takes(self, compass: Compass) -> bool:
        """Whether a compass can choose so."""
        return self.shaping.get("level") != "token" or isinstance(compass, TokenCompass)


GRIDS = {
    "8 spaced": Grid(SPACED, {}), "8 spaced from t = 0.25": Grid(SPACED, {"tau": 0.25}),
    "8 spaced by token": Grid(SPACED, {"level": "token"}, (1.0, 0.9, 0.8)), "64": Grid(INDEPENDENT, {})}


class Sum:
    """The sum of two compasses' energies, nats per token each."""

    needs_completion, proposal_weight = True, 1.0

    def __init__(self, one: Compass, other: Compass) -> None:
        self.parts = (one, other)

    def energy(self, states: Tensor, t: Tensor, completion: Tensor | None) -> Tensor:
        """See `Compass.energy`."""
        one, other = (part.energy(states, t, completion if part.needs_completion else None) for part in self.parts)
        return one + other


@dataclass(frozen=True)
class Row:
    """Texts of the teacher on a grid, at a temperature, shaped by a compass or ('blind') by none, and the CPU time of each."""

    grid: str
    compass: str
    temperature: float
    samples: Samples
    cpu_seconds: float


class Bench:
    """Makes rows, each once.

    `names`: compass -> name or folder. `texts`: of every row.
    """

    def __init__(self, teacher: str, names: Mapping[str, str], texts: int, work: Path) -> None:
        self.teacher: ModelFolder[Denoiser] = load_model(teacher)
        self.names, self.texts, self.work = names, texts, work

    @cached_property
    def compasses(self) -> dict[str, tuple[Compass, str]]:
        """Each compass, and by what its texts are known."""
        found = {}
        for name, where in self.names.items():
            compass, facts = open_compass(where, self.teacher, self.teacher.network.config.length, CPU)
            assert compass is not None
            assert facts is not None
            found[name] = (compass, facts.fingerprint[:12])
        if {"ar", "nce"} <= found.keys():
            (one, first), (other, second) = found["ar"], found["nce"]
            found["ar + nce"] = (Sum(one, other), f"{first}+{second}")
        return found

    def row(self, grid: str, compass: str, temperature: float) -> Row:
        """Texts 0..n-1 of one row: those that are kept, or made now."""
        model, known = (None, "blind") if compass == "blind" else self.compasses[compass]
        file = self.work / f"{self.teacher.fingerprint[:12]}-{grid.replace(' ', '-')}-{known}-{temperature:g}-{self.texts}.json"
        if not file.is_file():
            say(f"{grid}: {compass}, temperature {temperature:g} ...")
            settings = GRIDS[grid]
            rollout = RolloutConfig.model_validate({"temperature": temperature, **settings.rollout})
            shaping = ShapingConfig.model_validate({"candidates": CANDIDATES, **settings.shaping})
            made = roll(self.teacher.network, model, rollout, shaping, self.texts)
            self.work.mkdir(parents=True, exist_ok=True)
            write_atomic(file, json.dumps(made).encode())
        kept = json.loads(file.read_bytes())
        samples = of_tokens(np.array(kept["tokens"], dtype=np.int64), self.teacher.vocabulary)
        return Row(grid, compass, temperature, samples, kept["cpu_seconds"] / self.texts)


def roll(teacher: Denoiser, compass: Compass | None, rollout: RolloutConfig, shaping: ShapingConfig, texts: int) -> dict[str, object]:
    """Tokens [texts, L] of trajectories 0..texts-1, and the CPU seconds of all. Final energies are left out of both arms."""
    roll_out(teacher, None, rollout, ShapingConfig(candidates=1), range(2), "blind")  # pages the weights in
    scored = _Quiet(compass) if compass is not None else None
    began, tokens = time.process_time(), []
    for start in range(0, texts, BATCH):
        ids = range(start, min(texts, start + BATCH))
        logs = roll_out(teacher, scored, rollout, shaping, ids, "blind" if scored is None else "shaped")
        tokens += [log.tokens.tolist() for log in logs]
    return {"tokens": tokens, "cpu_seconds": time.process_time() - began}


class _Quiet:
    """A compass that is not asked for the energies of finished texts, of which a rollout with a compass takes one each."""

    def __init__(self, compass: Compass) -> None:
        self.compass = compass
        self.needs_completion, self.proposal_weight = compass.needs_completion, compass.proposal_weight

    def energy(self, states: Tensor, t: Tensor, completion: Tensor | None) -> Tensor:
        """See `Compass.energy`; of a set of one candidate 0."""
        return torch.zeros(states.shape[:2]) if states.shape[1] == 1 else self.compass.energy(states, t, completion)

    def token_energy(self, states: Tensor, t: Tensor, completion: Tensor | None, sets: TokenSets) -> Tensor:
        """See `TokenCompass.token_energy`."""
        assert isinstance(self.compass, TokenCompass)
        return self.compass.token_energy(states, t, completion, sets)


def compare(bench: Bench, grid: str, judge: Judge, *, quick: bool) -> dict[str, object]:
    """The blind curve of a grid, and every compass against it; `quick`: at few temperatures."""
    temperatures, cooled = ((1.0,), (1.0, 0.7)) if quick else (GRIDS[grid].temperatures, COOLED)

    def judged(row: Row) -> JudgedTexts:
        return JudgedTexts(likelihood(row.samples, judge), row.samples.entropies)

    curve = [bench.row(grid, "blind", each) for each in cooled]
    blind = [judged(row) for row in curve]
    cost = {row.temperature: row.cpu_seconds for row in curve}
    rows, found = [_figures(row, judge, cost, None) for row in curve], list[dict[str, object]]()
    by_distinct = [(float(str(row["distinct_2"])), float(str(row["perplexity"]))) for row in rows]
    for name in [name for name, (compass, _) in bench.compasses.items() if GRIDS[grid].takes(compass)]:
        for temperature in temperatures:
            row = bench.row(grid, name, temperature)
            found.append(_figures(row, judge, cost, ratio_at_equal_entropy(judged(row), blind), by_distinct))
    columns = ("", "temperature", "ppl", "entropy, bits", "distinct-2", "at equal entropy", "at equal distinct-2", "CPU ms a text",
               "CPU / blind")
    table(f"{grid} steps, {bench.texts} texts, K = {CANDIDATES}", columns, [
        (each["compass"], each["temperature"], each["perplexity"], f"{each['entropy_bits']:.3f}", each["distinct_2"],
         _shown(each["over_cooled_blind"]), each["over_cooled_blind_at_distinct_2"] or "-", 1000 * float(str(each["cpu_seconds"])),
         each["cpu_over_blind"]) for each in [*rows, *found]])
    return {"blind": rows, "shaped": found}


def _figures(
    row: Row, judge: Judge, cost: Mapping[float, float], ratio: Ratio | None, blind: Sequence[tuple[float, float]] = ()
) -> dict[str, object]:
    """What is told of a row; `ratio`: at equal entropy; `blind`: distinct-2 and perplexity of the curve that it stands against."""
    found = measure(row.samples, [judge])
    assert found.distinct_2 is not None
    perplexity, there = found.judges[judge.name].perplexity, perplexity_at_entropy(blind, found.distinct_2)
    return {
        "compass": row.compass, "temperature": row.temperature, "perplexity": perplexity,
        "entropy_bits": found.entropy_bits, "distinct_2": found.distinct_2, "cpu_seconds": row.cpu_seconds,
        "cpu_over_blind": row.cpu_seconds / cost[row.temperature] if row.temperature in cost else None,
        "over_cooled_blind": None if ratio is None else {"ratio": ratio.value, "low": ratio.low, "high": ratio.high},
        "over_cooled_blind_at_distinct_2": None if there is None else perplexity / there}


def _shown(ratio: object) -> str:
    return "-" if not isinstance(ratio, dict) else f"{ratio['ratio']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"


def auc_of(folder: str) -> list[dict[str, float]]:
    """What `fit-compass` measured of an `nce` compass, by time."""
    found: list[dict[str, float]] = json.loads((Path(folder) / "training.json").read_text())["held_out_auc"]
    return found


def main() -> None:
    """Roll out, judge, print."""
    parser = argparse.ArgumentParser(description="Which compass shapes best?")
    parser.add_argument("--nce", metavar="FOLDER", help="an nce compass of the teacher; left out: ar alone")
    parser.add_argument("--contrast", metavar="FOLDER", help="a contrast compass of the teacher")
    parser.add_argument("--teacher", default="embedded", help="of the mask source")
    parser.add_argument("--ar", default="embedded", help="a causal language model of its vocabulary")
    parser.add_argument("--judge", default="embedded", help="another, of the other half of the corpus")
    parser.add_argument("--texts", type=int, default=128, help="texts of every row")
    parser.add_argument("--grid", choices=[*GRIDS, "all"], default="all", help="steps, clocks, and from when a compass chooses")
    parser.add_argument("--quick", action="store_true", help="16 texts at temperature 1: not to be quoted")
    parser.add_argument("--work", type=Path, default=Path("out/benchmark-compasses"), help="where texts are kept")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the JSON object to FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = {"ar": options.ar} | {kind: given for kind in ("nce", "contrast") if (given := getattr(options, kind))}
    bench = Bench(options.teacher, names, 16 if options.quick else options.texts, options.work)
    judge = open_judge(options.judge, CPU, [bench.teacher.vocabulary])
    grids = list(GRIDS) if options.grid == "all" else [options.grid]
    found = {grid: compare(bench, grid, judge, quick=options.quick) for grid in grids}
    report({"machine": machine(1), "texts": bench.texts, "teacher": bench.teacher.fingerprint, "grids": found,
            "auc": auc_of(options.nce) if options.nce else None}, options.json)


if __name__ == "__main__":
    main()
