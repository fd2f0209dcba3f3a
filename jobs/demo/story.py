"""Bring together what the stages of a demo made: rows, comparisons, texts, and one trajectory in the making."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tsdfm.jobs.demo.findings import NAMES, Still, Story, Texts, Which
from tsdfm.jobs.demo.plan import ARMS, INDEPENDENT, SEED, SLOW, SLOW_STEPS, SPACED, STEPS, TEACHER, TEMPERATURE, Plan, commands
from tsdfm.jobs.demo.students import curves_of, record_of
from tsdfm.pipeline.dataset.frames import Pieces, frames
from tsdfm.pipeline.dataset.manifest import digest
from tsdfm.pipeline.dataset.opened import Dataset, open_dataset
from tsdfm.pipeline.dataset.summary import summarise
from tsdfm.pipeline.evaluation.effects import JudgedTexts, Ratio, perplexity_ratio, ratio_at_equal_entropy
from tsdfm.pipeline.evaluation.measures.frontier import curve_of, point_of
from tsdfm.pipeline.evaluation.open_judge import open_judge
from tsdfm.pipeline.evaluation.sample_cache import METHOD, SampleCache, identity_of_scores, kept_texts, of_method
from tsdfm.pipeline.evaluation.samples import Samples, likelihood, of_tokens
from tsdfm.pipeline.evaluation.samples import summarise as measures_of
from tsdfm.pipeline.models.folder import embedded, load_denoiser
from tsdfm.schemas.evaluate import Results, Row
from tsdfm.schemas.frontier import Frontier, JudgeFrontier
from tsdfm.schemas.reports import DemoRole

SHOWN = 4  # texts side by side
TEMPERATURES: Mapping[DemoRole, float] = {  # students have learnt what the teacher writes at TEMPERATURE, and so write it at 1
    "teacher": TEMPERATURE, "spaced": TEMPERATURE, "rollouts": TEMPERATURE, "blind": 1.0, "shaped": 1.0}
# Whose own texts are compared, at equal entropy, with whose.
COMPARED: Mapping[DemoRole, Sequence[Which]] = {
    "spaced": [("teacher", STEPS), ("teacher", SLOW_STEPS)],
    "rollouts": [("spaced", STEPS), ("teacher", SLOW_STEPS)],
    "shaped": [("spaced", STEPS), ("blind", STEPS), ("teacher", STEPS), ("teacher", SLOW_STEPS)],
}
SIDE_BY_SIDE: Sequence[Which] = [("teacher", SLOW_STEPS), ("teacher", STEPS), ("spaced", STEPS), ("rollouts", STEPS),
                                 ("blind", STEPS), ("shaped", STEPS)]


@dataclass(frozen=True)
class Measured:
    """A row, whose it is, its texts, and what the judge that compares models said of each."""

    role: DemoRole
    row: Row
    texts: Sequence[str]
    judged: JudgedTexts


def story_of(stages: Plan, results: Mapping[str, Results]) -> Story:
    """All that the report tells. Raises InputError or WorkError where something is not there any more."""
    dataset, judge = open_dataset(str(stages.data.out)), stages.evaluations[SPACED].evaluator[0]
    found = [*_measured(stages, results), _rollouts(stages, dataset, judge)]
    real: list[tuple[DemoRole, Row]] = [("real", row) for row in results[SPACED].reference]
    by_curve: dict[Which, list[Measured]] = {}
    for each in found:
        by_curve.setdefault((each.role, each.row.steps or 0), []).append(each)
    teacher, record = load_denoiser(embedded("teacher-mask")).network, record_of(stages.student("shaped"))
    students = {arm: there for arm in ARMS if (there := record_of(stages.student(arm))) is not None}
    return Story(
        measured=[*real, *((each.role, each.row) for each in found)], steps=STEPS, slow=SLOW_STEPS, temperatures=TEMPERATURES,
        judge=judge, equal=_at_equal_entropy(by_curve), warm=_at_one(by_curve), frontier=_frontier(by_curve, real, judge),
        data=summarise(dataset.store), distilled=stages.students["shaped"],
        learnt=None if record is None else record.held_out,
        updates={arm: each.updates for arm, each in students.items()}, curves=curves_of(stages),
        texts=[Texts(*which, texts=_own(by_curve[which]).texts[:SHOWN]) for which in SIDE_BY_SIDE],
        stills=_stills(dataset), seed=SEED, parameters=sum(each.numel() for each in teacher.parameters()),
        commands=commands(stages))


def _measured(stages: Plan, results: Mapping[str, Results]) -> list[Measured]:
    """The rows of all evaluations."""
    students: dict[str, DemoRole] = {str(stages.student(arm)): arm for arm in ARMS}
    roles: dict[str, dict[str, DemoRole]] = {
        SLOW: {TEACHER: "teacher"}, INDEPENDENT: {TEACHER: "teacher"}, SPACED: {TEACHER: "spaced", **students}}
    found = []
    for name, each in results.items():
        for row in each.rows:
            samples, judges = kept_texts(each, row, Path(str(each.settings.out)))
            judged = JudgedTexts(judges[each.settings.evaluator[0]], samples.entropies)
            found.append(Measured(roles[name][row.model], row, samples.texts, judged))
    return found


def _rollouts(stages: Plan, dataset: Dataset, judge: str) -> Measured:
    """The texts of the first shaped trajectories, as many as a row of the evaluation has, if there are so many."""
    rollout, asked = dataset.manifest.identity.rollout, stages.evaluations[SPACED]
    count = min(asked.samples, dataset.manifest.identity.trajectories)
    identity: dict[str, Any] = {
        "dataset": digest(dataset.manifest.identity), "arm": "shaped", "samples": count, **of_method(METHOD)}
    cache, opened = SampleCache(stages.rollouts), open_judge(judge, torch.device("cpu"), [dataset.vocabulary])
    labels = {"model": "shaped trajectories", "steps": rollout.steps, "temperature": rollout.temperature, "seed": rollout.seed}
    samples = cache.samples(identity, labels, lambda: _finished(dataset, count))
    found = cache.likelihood(identity_of_scores(identity, opened.fingerprint, METHOD), lambda: likelihood(samples, opened))
    row = Row(**dict(measures_of(samples, {judge: found})), model="shaped trajectories", fingerprint=identity["dataset"],
              vocabulary=samples.vocabulary, steps=rollout.steps, temperature=rollout.temperature)
    return Measured("rollouts", row, samples.texts, JudgedTexts(found, samples.entropies))


def _finished(dataset: Dataset, count: int) -> Samples:
    """The finished texts of the first shaped trajectories."""
    rows = (row for row, _ in zip(dataset.rows("shaped"), range(count), strict=False))
    return of_tokens(np.stack([row.tokens for row in rows]).astype(np.int64), dataset.vocabulary)


def _own(rows: Sequence[Measured]) -> Measured:
    """Of the rows of a curve the one at the role's own temperature."""
    return next(each for each in rows if each.row.temperature == TEMPERATURES[each.role])


def _at_equal_entropy(by_curve: Mapping[Which, Sequence[Measured]]) -> dict[tuple[DemoRole, Which], Ratio | None]:
    return {(role, which): ratio_at_equal_entropy(_own(by_curve[role, STEPS]).judged, [each.judged for each in by_curve[which]])
            for role, others in COMPARED.items() for which in others}


def _at_one(by_curve: Mapping[Which, Sequence[Measured]]) -> Ratio | None:
    """The student from shaped beside its teacher in many steps, both at temperature 1; None: not both were measured."""
    at_one = [[each.judged for each in by_curve[which] if each.row.temperature == 1.0]
              for which in (("shaped", STEPS), ("teacher", SLOW_STEPS))]
    return perplexity_ratio(at_one[0][0], at_one[1][0]) if all(at_one) else None


def _frontier(by_curve: Mapping[Which, Sequence[Measured]], real: Sequence[tuple[DemoRole, Row]], judge: str) -> Frontier:
    """Perplexity against entropy of all curves, and real text."""
    reference = [row for _, row in real]
    curves = [curve_of(NAMES[which[0]], [each.row for each in by_curve[which]], judge, reference[0] if reference else None)
              for which in SIDE_BY_SIDE]
    return Frontier(judges={judge: JudgeFrontier(curves=curves, reference=[point_of(row, judge) for row in reference])})


def _stills(dataset: Dataset) -> list[Still]:
    """The first shaped trajectory: its start, and the text after every jump."""
    row, grid = dataset.row(0, "shaped"), dataset.manifest.identity.grid
    start = row.source(grid.mask_id).tolist()
    empty = Still(0, [(piece, token == grid.mask_id, False)
                      for piece, token in zip(Pieces(dataset.vocabulary).of(start), start, strict=True)])
    return [empty, *(Still(each.step + 1, [(piece, masked, place in each.changed) for place, (piece, masked)
                                           in enumerate(zip(each.pieces, each.masked, strict=True))])
                     for each in frames(row, dataset.vocabulary, grid))]
