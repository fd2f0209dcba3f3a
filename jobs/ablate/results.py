"""What the folders of a sweep hold: what a trial lacks, its rows of the table, and the scores of its texts."""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from math import prod
from pathlib import Path

import pyarrow as pa
from safetensors import safe_open

from tsdfm.jobs.ablate.plan import Trial
from tsdfm.jobs.shell.console import Stages
from tsdfm.pipeline.evaluation.effects import ScoredTexts
from tsdfm.pipeline.evaluation.measures.corpus_texts import real_texts
from tsdfm.pipeline.evaluation.open_judge import fingerprint_of
from tsdfm.pipeline.evaluation.sample_cache import METHOD, RESULTS_FILE, kept_texts, key_of
from tsdfm.pipeline.models.folder import WEIGHTS_FILE, load_denoiser
from tsdfm.pipeline.storage.atomic import write_atomic
from tsdfm.pipeline.storage.hub.models import HUB
from tsdfm.pipeline.text.corpus import corpus_sha256
from tsdfm.pipeline.training.distill import made_from, record_in
from tsdfm.schemas.ablate import Evaluation, TrialRecord, TrialRow
from tsdfm.schemas.base import InputError, WorkError, differences, parse_json, to_json
from tsdfm.schemas.corpus import CorpusConfig
from tsdfm.schemas.evaluate import Results, Row
from tsdfm.schemas.progress import Progress
from tsdfm.schemas.regular import read_regular

TRIAL_FILE = "trial.json"
MOVABLE = {"out", "model"}  # of an evaluation's settings: where things lie
FIGURES = ("judges", "entropy_bits", "entropy_standard_error", "distinct_2", "distinct_4", "self_bleu", "nfe")


def mark_complete(folder: Path, record: TrialRecord) -> None:
    """Write trial.json, the commit of a trial: no such file, not complete."""
    write_atomic(folder / TRIAL_FILE, to_json(record).encode())


class Now:
    """What a sweep's trials are measured by, and the real text that they learn from, as it lies on this machine now.

    It is looked at when it is first asked for. None: it is not here, or, of the Hub, its name says which it is; then nothing is
    compared.
    """

    def __init__(self, evaluation: Evaluation, start: Path) -> None:
        self.evaluation, self.start = evaluation, start
        self._corpora: dict[CorpusConfig, str | None] = {}

    @cached_property
    def judges(self) -> dict[str, str | None]:
        """The fingerprints of the judges, by name."""
        def found(name: str) -> str | None:
            return None if name.startswith(HUB) else _if_here(lambda _: fingerprint_of(name))

        return {name: found(name) for name in self.evaluation.evaluator}

    @cached_property
    def real(self) -> str | None:
        """The fingerprint of the row of real text beside the start."""
        config = self.evaluation.config(str(self.start), "any", reference=True)
        return _if_here(lambda progress: key_of(real_texts(config, load_denoiser(self.start), progress).identity))

    def corpus(self, config: CorpusConfig) -> str | None:
        """The sha256 of all documents of a corpus."""
        if config not in self._corpora:
            self._corpora[config] = _if_here(lambda progress: corpus_sha256(config, progress))
        return self._corpora[config]


def _if_here(look: Callable[[Progress], str]) -> str | None:
    with Stages() as progress, suppress(InputError, WorkError, OSError):
        return look(progress)
    return None


def lacking(folder: Path, trial: Trial | None, now: Now) -> str | None:
    """What a folder lacks of a finished trial (None: the start) that was made and measured as it would be now; None: nothing.

    Raises InputError if it holds the students of another trial.
    """
    if trial is not None:
        _refuse_another(folder, trial)
    try:
        results = _results(folder)
        _record(folder)
        students = [] if trial is None else [
            record_in(round_folder(folder, number)) for number in range(1, trial.config.rounds + 1)]
    except (OSError, InputError):
        return "is not finished"
    wanted = now.evaluation.config("any", "any", reference=results.settings.reference)
    if results.method != METHOD or results.settings.model_dump(exclude=MOVABLE) != wanted.model_dump(exclude=MOVABLE):
        return "was evaluated in another way than the sweep asks for"
    if any(_differ(now.judges.get(name), facts.fingerprint) for name, facts in results.judges.items()):
        return "was judged by what is no longer the judge of that name"
    if trial is None and any(_differ(now.real, row.fingerprint) for row in results.reference):
        return "has figures of real text that is no longer that of the corpus"
    if any(each.corpus is not None and _differ(now.corpus(each.config.real.corpus), each.corpus.sha256) for each in students):
        return "has learnt from real text that is no longer that of the corpus"
    return None


def _differ(now: str | None, then: str) -> bool:
    return now is not None and now != then


def _refuse_another(folder: Path, trial: Trial) -> None:
    """Raises InputError if a trial's folder holds the students of another: by their records, wherever it was moved to."""
    try:
        made = made_from(record_in(round_folder(folder, 1)))
    except (OSError, InputError):
        return
    try:
        config = _record(folder).config
    except (OSError, InputError):
        config = None
    found = json.loads(json.dumps({**made, "rounds": (config or trial.config).rounds}))
    differing = differences(found, trial.identity)
    if differing:
        raise InputError(f"{folder}: holds the students of another trial, by their records; give it the name that it had, or "
                         "remove it: " + "; ".join(differing))


def refuse_mixed(folders: Iterable[Path]) -> None:
    """Raises WorkError if a judge was not the same in all of these, where this machine can't tell which is meant."""
    known: dict[str, tuple[str, Path]] = {}
    for folder in folders:
        for name, facts in _results(folder).judges.items():
            fingerprint, first = known.setdefault(name, (facts.fingerprint, folder))
            if fingerprint != facts.fingerprint:
                raise WorkError(f"{name}: {first} and {folder} were judged by two judges of that name, which don't compare; "
                                "put the one that is meant where this machine finds it, too, and run again")


def round_folder(folder: Path, number: int) -> Path:
    """Where the student of a trial's round lies."""
    return folder / f"round-{number}"


def _record(folder: Path) -> TrialRecord:
    return parse_json(TrialRecord, read_regular(folder / TRIAL_FILE), str(folder / TRIAL_FILE))


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
        seconds = _record(folder).seconds
        assert seconds is not None  # only the start's evaluation has none
        facts = {"trial": key, "distill_seconds": seconds.distill, "evaluate_seconds": seconds.evaluate}
        lines += [{**facts, "steps": row.steps, "temperature": row.temperature, "sample_seconds": row.seconds,
                   "tokens_per_second": row.tokens_per_second} for row in _results(folder).rows]
    return pa.Table.from_pylist(lines)
