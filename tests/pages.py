"""What the pages are made of: a demo's story and a sweep's rows, with figures that no test computes."""

from collections.abc import Sequence

from tsdfm.jobs.demo.findings import Role, Story, Texts
from tsdfm.pipeline.evaluation.effects import Ratio
from tsdfm.pipeline.evaluation.measures.frontier import frontier_of
from tsdfm.schemas.ablate import Effect, Sweep, TrialRow
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.evaluate import EvaluateConfig, Frontier, JudgeFacts, Perplexity, Results, Row
from tsdfm.schemas.summary import DatasetSummary

EVIL = "</p><script>document.title='owned'</script><img src=x onerror=alert(1)> & __SECTIONS__ \x1b[31m"
# (role, steps, temperature, perplexity, half of its interval, entropy)
MEASURED: list[tuple[Role, int | None, float | None, float, float, float]] = [
    ("real", None, None, 40.5, 2, 5.5), ("teacher", 64, 1.0, 216.25, 9, 5.71), ("teacher", 8, 0.7, 114.5, 5, 5.4),
    ("teacher", 8, 1.0, 315.75, 12, 5.7), ("blind", 8, 0.7, 131.5, 5, 5.3), ("blind", 8, 1.0, 357.5, 14, 5.68),
    ("shaped", 8, 0.7, 75.5, 3, 5.1), ("shaped", 8, 1.0, 122.5, 5, 5.42), ("shaped", 16, 1.0, 103.5, 4, 5.44),
]
LOWER, HIGHER, LEVEL = Ratio(0.34, 0.32, 0.36), Ratio(1.05, 1.02, 1.08), Ratio(0.98, 0.88, 1.03)
RATIOS: dict[tuple[Role, int], Ratio] = {("blind", 8): LOWER, ("teacher", 8): LOWER, ("teacher", 64): LEVEL}
CURVES: dict[Role, list[tuple[int, float]]] = {
    "blind": [(20, 5.125), (40, 5.0), (60, 4.875)], "shaped": [(20, 4.625), (40, 3.5), (60, 3.375)]}
SWEEP = {"name": "tau", "question": "From which time on must the compass choose?",
         "factors": {"data.arm": ["shaped", "blind"], "init_blocks": [6, 4]},
         "evaluate": {"steps": [4, 8], "samples": 64, "temperatures": [0.7, 0.85, 1.0],
                      "evaluator": ["embedded", "smollm2-135m-instruct-q4.gguf"]}}


def row(model: str, steps: int | None, temperature: float | None, perplexity: float, half: float, entropy: float) -> Row:
    real = steps is None
    return Row(
        model=model, fingerprint=model, vocabulary="v", steps=steps, temperature=temperature, samples=37, length=16,
        nfe=None if steps is None else steps - 0.25, seconds=None if real else 2.0, tokens_per_second=None if real else 1234.0,
        entropy_bits=entropy, entropy_standard_error=0.0125, distinct_2=0.4321, distinct_4=0.9, self_bleu=0.1234,
        judges={"embedded": Perplexity(perplexity=perplexity, low=perplexity - half, high=perplexity + half, tokens=999)})


def measured() -> list[tuple[Role, Row]]:
    return [(role, row(role, steps, temperature, value, half, entropy))
            for role, steps, temperature, value, half, entropy in MEASURED]


def frontier(rows: Sequence[tuple[Role, Row]]) -> Frontier:
    swept = [row for role, row in rows if role != "real" and row.steps == 8]
    settings = EvaluateConfig(out="x", model=("teacher", "blind", "shaped"), steps=(8,), frontier=True, temperatures=(0.7, 1.0))
    return frontier_of(Results(
        command="", settings=settings, versions={}, device="cpu", threads=1, rows=swept,
        judges={"embedded": JudgeFacts(fingerprint="f", vocabulary=None)}, reference=[row for role, row in rows if role == "real"]))


def story_of(summary: DatasetSummary) -> Story:
    rows = measured()
    return Story(
        measured=rows, steps=8, temperature=1.0, judge="embedded", frontier=frontier(rows), data=summary, ratios=RATIOS, cooled=LEVEL,
        distilled=DistillConfig.model_validate({"optim": {"steps": 77, "seed": 5}}), curves=CURVES,
        texts=[Texts("teacher", 8, ["a teacher's\ntext", "two"]), Texts("shaped", 8, [EVIL, "another text"])],
        seed=11, parameters=3_450_000, commands=["tsdfm-pipeline generate --out 'A & B'", "tsdfm-pipeline verify '<x>'"])


def sweep_rows(sweep: Sweep) -> list[TrialRow]:
    """Real text, the start, and all trials of SWEEP, with figures that differ."""
    def trial(name: str, levels: dict[str, str], steps: int | None, temperature: float | None, base: float) -> TrialRow:
        warm = temperature or 1.0
        found = {judge: Perplexity(perplexity=value, low=0.95 * value, high=1.06 * value, tokens=999)
                 for judge, value in zip(sweep.evaluate.evaluator, (base * warm**3, 7.5 * base * warm**3), strict=True)}
        return TrialRow(trial=name, levels=levels, seed=0 if levels else None, steps=steps, temperature=temperature, judges=found,
                        entropy_bits=4.4 + warm + 0.0001 * base, entropy_standard_error=0.0125, distinct_2=0.614, distinct_4=0.902,
                        self_bleu=0.137, nfe=steps, parameters=None if steps is None else 3_815_232)

    settings = [(steps, temperature) for steps in sweep.evaluate.steps for temperature in sweep.evaluate.temperatures]
    trials: list[tuple[str, dict[str, str], float]] = [("start", {}, 500.0)] + [
        (f"{40 * index:08x}", {"data.arm": arm, "init_blocks": blocks}, base) for index, (arm, blocks, base) in enumerate(
            [("shaped", "6", 171.0), ("shaped", "4", 203.0), ("blind", "6", 588.0), ("blind", "4", 640.0)], 1)]
    return [trial("real", {}, None, None, 40.0)] + [
        trial(name, levels, steps, temperature, base * 8 / steps) for name, levels, base in trials for steps, temperature in settings]


def sweep_effects(sweep: Sweep) -> list[Effect]:
    measures = {**{f"log perplexity ({name})": 1.2 for name in sweep.evaluate.evaluator}, "entropy": 0.26}
    return [Effect(factor=factor, level=level, against=against, steps=steps, temperature=temperature, measure=measure, difference=size,
                   low=0.9 * size, high=1.1 * size, pairs=2)
            for factor, level, against in (("data.arm", "blind", "shaped"), ("init_blocks", "4", "6"))
            for steps in sweep.evaluate.steps for temperature in sweep.evaluate.temperatures for measure, size in measures.items()]
