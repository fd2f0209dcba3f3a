"""What does shaping itself buy? `python tests/benchmarks/shaping.py [--source S] [--steps N] [--choice K,TAU,T ...] [--quick]`.

Rollouts of an embedded teacher with several settings of the shaping, judged by models that are not the compass: a causal LM
fitted on the half of the corpus that the compass never saw, and SmolLM2-135M-Instruct in 4 bits on the decoded text. Beside
them the sceptic's alternative, the same teacher with the same clocks and steps, blind, cooled to several temperatures; and real
held-out text. Entropy and distinct-n stand with every perplexity.

Target: shaped rollouts below the blind teacher's curve both at equal entropy and at equal distinct-2 (interpolated between
temperatures, log perplexity linear in either), under every judge. Datasets are kept in DIR, so a second run only judges.
"""

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from claims_work import SPREAD
from measure import machine, report, say, table
from smollm2 import fetch

from tsdfm.jobs.generate.run import generate
from tsdfm.pipeline.dataset.manifest import read_manifest, read_shard, read_vocabulary
from tsdfm.pipeline.evaluation.judge import Judge
from tsdfm.pipeline.evaluation.measures.frontier import perplexity_at_entropy
from tsdfm.pipeline.evaluation.open_judge import open_judge
from tsdfm.pipeline.evaluation.samples import Samples, measure, of_tokens
from tsdfm.pipeline.models.causal import CausalLM
from tsdfm.pipeline.models.folder import embedded, load
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.text.corpus import held_out_stream, windows_of
from tsdfm.schemas.corpus import CorpusConfig
from tsdfm.schemas.generate import GenerateConfig

TEMPERATURES = (1.0, 0.9, 0.8, 0.7, 0.6)  # of blind rollouts
MEASURES = {"entropy_bits": "entropy", "distinct_2": "distinct-2"}  # that two rows may have alike
REAL = "real held-out text"


@dataclass(frozen=True)
class Choice:
    """A setting of the shaping: K candidates from time tau on, at a temperature."""

    candidates: int
    tau: float
    temperature: float

    @property
    def name(self) -> str:
        return f"K = {self.candidates}, tau = {self.tau:g}, T = {self.temperature:g}"


CHOICES = tuple(Choice(*each) for each in (
    (8, 0.0, 1.0), (8, 0.0, 0.9), (8, 0.25, 1.0), (8, 0.25, 0.9), (8, 0.5, 0.9), (8, 0.75, 0.9), (32, 0.25, 1.0), (32, 0.5, 0.9)))


def choice_of(text: str) -> Choice:
    """'K,TAU,T' as a choice. Raises ArgumentTypeError."""
    try:
        candidates, tau, temperature = text.split(",")
        return Choice(int(candidates), float(tau), float(temperature))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give K,TAU,T, for instance 8,0.25,0.9") from None


def rollouts(work: Path, base: dict[str, object], steps: int, clocks: str, choices: tuple[Choice, ...]) -> Iterator[tuple[str, Samples]]:
    """The texts of blind and of shaped rollouts, by the names of the table's rows; all are of the same seed."""
    for temperature in TEMPERATURES:
        rollout = {"steps": steps, "clocks": clocks, "temperature": temperature}
        yield f"blind, T = {temperature:g}", _texts(work, {**base, "arm": "blind", "rollout": rollout})
    for choice in choices:
        rollout = {"steps": steps, "clocks": clocks, "temperature": choice.temperature}
        shaping = {"candidates": choice.candidates, "tau": choice.tau}
        yield choice.name, _texts(work, {**base, "arm": "shaped", "rollout": rollout, "shaping": shaping})


def _texts(work: Path, settings: dict[str, object]) -> Samples:
    """The finished texts of one dataset, made if it is not there."""
    config = GenerateConfig.model_validate(settings)
    rollout, shaping = config.rollout, config.shaping
    out = work / "-".join(map(str, (
        config.source, rollout.clocks, rollout.steps, config.trajectories, config.arm, rollout.temperature, shaping.candidates, shaping.tau)))
    say(f"generate {out}")
    generate(config.model_copy(update={"out": str(out)}))
    store = open_store(str(out))
    manifest = read_manifest(store)
    tokens = [np.stack(read_shard(store, record)["tokens"].to_numpy()) for record in manifest.shards]
    return of_tokens(np.concatenate(tokens).astype(np.int64), read_vocabulary(store, manifest))


def real_text(number: int) -> Samples:
    """Windows of held-out documents, so many (or fewer, if the text ends)."""
    opened = load(embedded("judge"))
    assert isinstance(opened.network, CausalLM)
    stream = held_out_stream(CorpusConfig(), opened.vocabulary)
    return of_tokens(windows_of(stream, opened.network.config.length, number).numpy(), opened.vocabulary)


def figures_of(name: str, samples: Samples, judges: list[Judge]) -> dict[str, object]:
    """Figures of a row, under every judge."""
    say(f"judging {name}")
    found = measure(samples, judges).model_dump(exclude={"nfe", "seconds", "tokens_per_second"})
    judged = found.pop("judges")
    return {"name": name, **found, **judged}


def against_blind(figures: list[dict[str, object]], judges: list[str]) -> dict[str, dict[str, dict[str, float | None]]]:
    """By shaped row, judge and measure: the row's perplexity over that of the blind curve where the measure is the same; None
    where no two temperatures enclose it."""
    blind = [row for row in figures if str(row["name"]).startswith("blind")]
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for row in figures:
        if row in blind or row["name"] == REAL:
            continue
        found[str(row["name"])] = {judge: {measured: _over_curve(row, blind, judge, measured) for measured in MEASURES}
                                   for judge in judges}
    return found


def _over_curve(row: dict[str, object], blind: list[dict[str, object]], judge: str, measured: str) -> float | None:
    curve = [(float(each[measured]), float(each[judge]["perplexity"])) for each in blind]  # type: ignore[arg-type, index]
    there = perplexity_at_entropy(curve, float(row[measured]))  # type: ignore[arg-type]
    return None if there is None else float(row[judge]["perplexity"]) / there  # type: ignore[index]


def main() -> None:
    """Generate, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, default=512, help="trajectories a row")
    parser.add_argument("--steps", type=int, default=8, help="steps N of the rollouts")
    parser.add_argument("--source", choices=["mask", "uniform"], default="mask")
    parser.add_argument("--clocks", help="of the rollouts  [spaced; uniform source: even]")
    parser.add_argument("--choice", type=choice_of, action="append", metavar="K,TAU,T", help="a setting of the shaping; may be repeated")
    parser.add_argument("--quick", action="store_true", help="32 trajectories a row, and no SmolLM2")
    parser.add_argument("--work", type=Path, default=Path("out/benchmark-shaping"), help="where datasets and SmolLM2 are kept")
    parser.add_argument("--json", type=Path, help="write the result here, too")
    arguments = parser.parse_args()
    number = 32 if arguments.quick else arguments.number
    clocks = arguments.clocks or SPREAD[arguments.source]
    torch.set_num_threads(os.cpu_count() or 1)

    judges = [replace(open_judge("embedded", torch.device("cpu")), name="embedded")]
    if not arguments.quick:
        judges.append(replace(open_judge(str(fetch(arguments.work / "smollm2")), torch.device("cpu")), name="SmolLM2"))
    base: dict[str, object] = {"trajectories": number, "source": arguments.source}
    rows = [(REAL, real_text(number)),
            *rollouts(arguments.work, base, arguments.steps, clocks, tuple(arguments.choice or CHOICES))]
    figures = [figures_of(name, samples, judges) for name, samples in rows]
    names = [judge.name for judge in judges]
    ratios = against_blind(figures, names)

    columns = ["row", *(f"{name} ppl (95 %)" for name in names), "entropy (bits)", "distinct-2", "distinct-4",
               *(f"over blind, {name}: at equal {' / '.join(MEASURES.values())}" for name in names)]
    table(f"{arguments.source} source, {clocks} clocks, N = {arguments.steps}, {number} texts a row", columns, [
        [row["name"], *(_ppl(row[name]) for name in names), f"{row['entropy_bits']:.3f} +- {row['entropy_standard_error']:.3f}",
         f"{row['distinct_2']:.3f}", f"{row['distinct_4']:.3f}", *(_ratios(ratios.get(str(row["name"]), {}).get(name)) for name in names)]
        for row in figures])
    report({"machine": machine(torch.get_num_threads()), "rows": figures, "over_blind": ratios}, arguments.json)


def _ppl(entry: object) -> str:
    return f"{entry['perplexity']:.1f} ({entry['low']:.1f}-{entry['high']:.1f})"  # type: ignore[index]


def _ratios(found: dict[str, float | None] | None) -> str:
    return "" if found is None else " / ".join("-" if each is None else f"{each:.2f}" for each in found.values())


if __name__ == "__main__":
    main()
