"""Does shaping work on real input? `python tests/benchmarks/shaping.py [--quick] [--work DIR] [--json FILE]`.

Paired rollouts of the embedded teacher, shaped and blind, judged by models that are not the compass: a causal LM fitted on the
half of the corpus that the compass never saw, and SmolLM2-135M-Instruct in 4 bits on the decoded text. Beside them the
sceptic's alternative, the blind teacher cooled to several temperatures, and real held-out text. Entropy and distinct-n stand
with every perplexity.

Targets: the shaped arm's perplexity at most a third of the blind arm's under every judge, and below that of the cooled
teacher at equal entropy (interpolated between temperatures, log perplexity against entropy).
Datasets are kept in DIR, so a second run only judges.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
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

TEMPERATURES = (0.9, 0.8, 0.7, 0.6)
TARGET_RATIO = 1 / 3


def rollouts(work: Path, source: str, pairs: int, steps: int) -> dict[str, Samples]:
    """Blind and shaped arms, paired, and the blind arm cooled to each temperature, by the names of the table's rows."""
    base = {"trajectories": pairs, "source": source, "shard_size": 64}
    paired = {**base, "arm": "both", "rollout": {"steps": steps}}
    rows = _arms(work / f"{source}-paired-{pairs}-{steps}", paired)
    for temperature in TEMPERATURES:
        cooled = {**base, "arm": "blind", "rollout": {"steps": steps, "temperature": temperature}}
        name = f"{source}-blind-{temperature}-{pairs}-{steps}"
        rows[f"blind, temperature {temperature}"] = _arms(work / name, cooled)["blind"]
    return rows


def _arms(out: Path, config: dict[str, object]) -> dict[str, Samples]:
    say(f"generate {out}")
    generate(GenerateConfig.model_validate({**config, "out": str(out)}))
    store = open_store(str(out))
    manifest = read_manifest(store)
    vocabulary = read_vocabulary(store, manifest)
    tables = (read_shard(store, record).select(["arm", "tokens"]) for record in manifest.shards)
    rows = [row for shard in tables for row in shard.to_pylist()]
    return {arm: of_tokens(np.array([r["tokens"] for r in rows if r["arm"] == arm], dtype=np.int64), vocabulary)
            for arm in sorted(manifest.identity.arms)}


def real_text(pairs: int) -> Samples:
    """Windows of held-out documents, as many as there are pairs (or fewer, if the text ends)."""
    opened = load(embedded("judge"))
    assert isinstance(opened.network, CausalLM)
    stream = held_out_stream(CorpusConfig(), opened.vocabulary)
    return of_tokens(windows_of(stream, opened.network.config.length, pairs).numpy(), opened.vocabulary)


def figures_of(rows: dict[str, Samples], judges: list[Judge]) -> list[dict[str, object]]:
    """Figures of every row, under every judge."""
    figures = []
    for name, samples in rows.items():
        say(f"judging {name}")
        found = measure(samples, judges).model_dump(exclude={"nfe", "seconds", "tokens_per_second"})
        judged = found.pop("judges")
        figures.append({"name": name, **found, **judged})
    return figures


def at_equal_entropy(figures: list[dict[str, object]], judge: str) -> float | None:
    """The cooled teacher's perplexity at the shaped arm's entropy; None if no two temperatures enclose it."""
    by_name = {str(f["name"]): f for f in figures}
    curve = [(float(f["entropy_bits"]), float(f[judge]["perplexity"]))  # type: ignore[arg-type, index]
             for name, f in by_name.items() if name.startswith("blind")]
    return perplexity_at_entropy(curve, float(by_name["shaped"]["entropy_bits"]))  # type: ignore[arg-type]


def conclude(figures: list[dict[str, object]], judges: list[str]) -> dict[str, object]:
    """Shaped against blind, and against the cooled teacher at equal entropy, under each judge."""
    by_name = {str(f["name"]): f for f in figures}
    result: dict[str, object] = {}
    for judge in judges:
        shaped, blind = (float(by_name[arm][judge]["perplexity"]) for arm in ("shaped", "blind"))  # type: ignore[index]
        cooled = at_equal_entropy(figures, judge)
        result[judge] = {
            "shaped_over_blind": shaped / blind, "target": TARGET_RATIO, "met": shaped / blind <= TARGET_RATIO,
            "cooled_at_equal_entropy": cooled, "below_cooled": None if cooled is None else shaped < cooled,
        }
    return result


def main() -> None:
    """Generate, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=512, help="paired trajectories")
    parser.add_argument("--steps", type=int, default=64, help="steps N of the rollouts")
    parser.add_argument("--source", choices=["mask", "uniform"], default="mask")
    parser.add_argument("--quick", action="store_true", help="32 pairs, and no SmolLM2")
    parser.add_argument("--work", type=Path, default=Path("out/benchmark-shaping"), help="where datasets and SmolLM2 are kept")
    parser.add_argument("--json", type=Path, help="write the result here, too")
    arguments = parser.parse_args()
    pairs = 32 if arguments.quick else arguments.pairs
    torch.set_num_threads(os.cpu_count() or 1)

    rows = {"real held-out text": real_text(pairs), **rollouts(arguments.work, arguments.source, pairs, arguments.steps)}
    judges = [replace(open_judge("embedded", torch.device("cpu")), name="judge")]
    if not arguments.quick:
        smollm2 = open_judge(str(fetch(arguments.work / "smollm2")), torch.device("cpu"))
        judges.append(replace(smollm2, name="smollm2"))
    figures = figures_of(rows, judges)
    conclusion = conclude(figures, [judge.name for judge in judges])

    columns = ["row", "n", *(f"{name} ppl (95 %)" for name in conclusion), "entropy (bits)", "distinct-2", "distinct-4"]
    table(f"{arguments.source} source, N = {arguments.steps}", columns, [
        [f["name"], f["samples"], *(_ppl(f[name]) for name in conclusion),
         f"{f['entropy_bits']:.3f} +- {f['entropy_standard_error']:.3f}", f["distinct_2"], f["distinct_4"]] for f in figures])
    for name, found in conclusion.items():
        say(f"{name}: {found}")
    report({"machine": machine(torch.get_num_threads()), "rows": figures, "conclusion": conclusion}, arguments.json)


def _ppl(entry: object) -> str:
    return f"{entry['perplexity']:.1f} ({entry['low']:.1f}-{entry['high']:.1f})"  # type: ignore[index]


if __name__ == "__main__":
    main()
