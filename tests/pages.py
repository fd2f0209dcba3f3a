"""What the pages are made of: a demo's story and a sweep's rows, with figures that no test computes."""

from collections.abc import Sequence

from tsdfm.jobs.demo.findings import Still, Story, Texts, Which
from tsdfm.pipeline.evaluation.effects import Ratio
from tsdfm.pipeline.evaluation.measures.frontier import curve_of, point_of
from tsdfm.schemas.ablate import Effect, Sweep, TrialRow
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.evaluate import Perplexity, Row
from tsdfm.schemas.frontier import Frontier, JudgeFrontier
from tsdfm.schemas.reports import DemoRole
from tsdfm.schemas.summary import DatasetSummary
from tsdfm.schemas.terms import Arm
from tsdfm.schemas.training_record import HeldOutFacts

EVIL = "</p><script>document.title='owned'</script><img src=x onerror=alert(1)> & __SECTIONS__ \x1b[31m"
# (role, steps, temperature, perplexity, half of its interval, entropy)
MEASURED: list[tuple[DemoRole, int | None, float | None, float, float, float]] = [
    ("real", None, None, 40.5, 2, 5.5), ("teacher", 1024, 0.8, 118.25, 9, 5.55), ("teacher", 1024, 1.0, 216.25, 9, 5.71),
    ("teacher", 8, 0.8, 114.5, 5, 5.4), ("teacher", 8, 1.0, 315.75, 12, 5.7), ("spaced", 8, 0.8, 97.5, 5, 5.41),
    ("spaced", 8, 1.0, 231.25, 8, 5.69), ("rollouts", 8, 0.8, 62.75, 3, 5.43), ("blind", 8, 0.8, 131.5, 5, 5.3),
    ("blind", 8, 1.0, 357.5, 14, 5.68), ("shaped", 8, 0.8, 75.5, 3, 5.1), ("shaped", 8, 1.0, 122.5, 5, 5.42),
]
TEMPERATURES: dict[DemoRole, float] = {"teacher": 0.8, "spaced": 0.8, "rollouts": 0.8, "blind": 1.0, "shaped": 1.0}
LOWER, HIGHER, LEVEL = Ratio(0.34, 0.32, 0.36), Ratio(1.05, 1.02, 1.08), Ratio(0.98, 0.88, 1.03)
EQUAL: dict[tuple[DemoRole, Which], Ratio | None] = {
    ("spaced", ("teacher", 8)): LOWER, ("spaced", ("teacher", 1024)): LEVEL, ("rollouts", ("spaced", 8)): LOWER,
    ("rollouts", ("teacher", 1024)): None, ("shaped", ("spaced", 8)): HIGHER, ("shaped", ("blind", 8)): LEVEL,
    ("shaped", ("teacher", 8)): LOWER, ("shaped", ("teacher", 1024)): LEVEL}
CURVES: dict[Arm, list[tuple[int, float]]] = {
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
        entropy_bits=entropy, entropy_standard_error=0.0125, distinct_2=0.4321, distinct_4=0.9, self_bleu=0.1234, memorised=0.0172,
        in_trajectories=0.0275,
        judges={"embedded": Perplexity(perplexity=perplexity, low=perplexity - half, high=perplexity + half, tokens=999)})


def measured() -> list[tuple[DemoRole, Row]]:
    return [(role, row(role, steps, temperature, value, half, entropy))
            for role, steps, temperature, value, half, entropy in MEASURED]


def frontier(rows: Sequence[tuple[DemoRole, Row]]) -> Frontier:
    curves: dict[str, list[Row]] = {}
    for role, each in rows:
        if role != "real":
            curves.setdefault(f"{role} {each.steps}", []).append(each)
    real = [each for role, each in rows if role == "real"]
    return Frontier(judges={"embedded": JudgeFrontier(
        curves=[curve_of(name, each, "embedded", None) for name, each in curves.items()],
        reference=[point_of(each, "embedded") for each in real])})


def story_of(summary: DatasetSummary) -> Story:
    rows = measured()
    return Story(
        measured=rows, steps=8, slow=1024, temperatures=TEMPERATURES, judge="embedded", equal=EQUAL, warm=LOWER, frontier=frontier(rows),
        data=summary, distilled=DistillConfig.model_validate({"optim": {"steps": 77, "seed": 5}, "data": {"held_out": 0.05}}), learnt=HeldOutFacts(trajectories=4, updates=77, loss=2.5, share=0.034, cooled=0.05),
        updates={"blind": 60, "shaped": 77}, curves=CURVES,
        texts=[Texts("teacher", 8, ["a teacher's\ntext", "two"]), Texts("shaped", 8, [EVIL, "another text"])],
        stills=[Still(0, [("_", True, False), ("_", True, False)]), Still(1, [(EVIL, False, True), ("_", True, False)])],
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
