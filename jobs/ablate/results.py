"""What the folders of a sweep hold: whether a trial is complete, its rows of the table, and the scores of its texts."""

from collections.abc import Mapping
from math import prod
from pathlib import Path

import pyarrow as pa
from safetensors import safe_open

from tsdfm.jobs.ablate.plan import Trial
from tsdfm.pipeline.evaluation.effects import ScoredTexts
from tsdfm.pipeline.evaluation.sample_cache import METHOD, RESULTS_FILE, kept_texts
from tsdfm.pipeline.models.folder import WEIGHTS_FILE
from tsdfm.pipeline.storage.atomic import write_atomic
from tsdfm.schemas.ablate import Evaluation, TrialRecord, TrialRow
from tsdfm.schemas.base import InputError, parse_json, to_json
from tsdfm.schemas.evaluate import Results, Row
from tsdfm.schemas.regular import read_regular

TRIAL_FILE = "trial.json"
MOVABLE = {"out", "model"}  # of an evaluation's settings: where things lie
FIGURES = ("judges", "entropy_bits", "entropy_standard_error", "distinct_2", "distinct_4", "self_bleu", "nfe")


def mark_complete(folder: Path, record: TrialRecord) -> None:
    """Write trial.json, the commit of a trial: no such file, not complete."""
    write_atomic(folder / TRIAL_FILE, to_json(record).encode())


def complete(folder: Path, evaluation: Evaluation) -> bool:
    """Whether a folder holds a finished trial (or start) that was evaluated like this."""
    try:
        results = _results(folder)
        read_regular(folder / TRIAL_FILE)
    except (OSError, InputError):
        return False
    wanted = evaluation.config("any", "any", reference=results.settings.reference)
    return results.method == METHOD and results.settings.model_dump(exclude=MOVABLE) == wanted.model_dump(exclude=MOVABLE)


def _results(folder: Path) -> Results:
    file = folder / "evaluation" / RESULTS_FILE
    return parse_json(Results, read_regular(file), str(file))


def trial_rows(trial: Trial, folder: Path) -> list[TrialRow]:
    """The table's rows of a trial, one per step count and temperature, from its folder of `evaluate`."""
    return [_row(row, trial.key, trial.levels, trial.seed) for row in _results(folder).rows]


def start_rows(folder: Path) -> list[TrialRow]:
    """The table's rows of real text, and of the model that the students start from, from a folder of `evaluate`."""
    results = _results(folder)
    named = [*(("real", row) for row in results.reference), *(("start", row) for row in results.rows)]
    return [_row(row, name, {}, None) for name, row in named]


def _row(row: Row, trial: str, levels: dict[str, str], seed: int | None) -> TrialRow:
    return TrialRow(trial=trial, levels=levels, seed=seed, steps=row.steps, temperature=row.temperature,
                    parameters=None if row.steps is None else _parameters(Path(row.model)),
                    **{name: getattr(row, name) for name in FIGURES})


def _parameters(model: Path) -> int:
    """How many a model folder's weights are."""
    with safe_open(str(model / WEIGHTS_FILE), framework="numpy") as weights:
        return sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118 (it is no dict)


def scored_of(trial: Trial, folder: Path) -> list[ScoredTexts]:
    """What the judges said of each text of a trial."""
    results = _results(folder)
    found = []
    for row in results.rows:
        samples, judges = kept_texts(results, row, folder / "evaluation")
        assert row.steps is not None
        assert row.temperature is not None
        found.append(ScoredTexts(trial.levels, trial.seed, row.steps, row.temperature, judges, samples.entropies))
    return found


def times_of(folders: Mapping[str, Path]) -> pa.Table:
    """Wall times of trials, which no rerun repeats: seconds of the last attempt, and of sampling at each step count."""
    lines = []
    for key, folder in folders.items():
        seconds = parse_json(TrialRecord, read_regular(folder / TRIAL_FILE), str(folder / TRIAL_FILE)).seconds
        assert seconds is not None  # only the start's evaluation has none
        facts = {"trial": key, "distill_seconds": seconds.distill, "evaluate_seconds": seconds.evaluate}
        lines += [{**facts, "steps": row.steps, "temperature": row.temperature, "sample_seconds": row.seconds,
                   "tokens_per_second": row.tokens_per_second} for row in _results(folder).rows]
    return pa.Table.from_pylist(lines)
