"""`tsdfm-pipeline ablate`: a sweep of `distill` and `evaluate` over frozen trajectories, scheduled by Ray Tune.

    DIR/sweep.json                what was asked
    DIR/trials/KEY/round-1 ...    the students; training state stands beside them until they are done
    DIR/trials/KEY/evaluation     samples, scores and results, as `evaluate` keeps them; trial.json, written last
    DIR/start/KEY                 the evaluation of the model that the students start from, and of real text
    DIR/table.* effects.csv times.csv report.html

Tune only schedules. A trial's folder, named by a digest of all that its student depends on, is the source of truth: a rerun
skips the trials that are complete, goes on with those that are not from their own training state, and builds the table from
the folders, whatever became of Tune's files. So a sweep may also grow: trials of other factors stand beside these.
"""

import os
import shlex
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from tsdfm.jobs.ablate.page import ablation_page
from tsdfm.jobs.ablate.plan import DIGEST, Trial, plan
from tsdfm.jobs.ablate.results import complete, mark_complete, scored_of, start_rows, times_of, trial_rows
from tsdfm.jobs.ablate.table import csv_bytes, effects_table, markdown, parquet_bytes, table_of
from tsdfm.jobs.evaluate.command import evaluated
from tsdfm.jobs.shell.cluster import anchored, cluster, cores_here
from tsdfm.jobs.shell.console import say, say_corpus, ticker
from tsdfm.jobs.shell.interrupts import Interrupted, interruptible, resume_command
from tsdfm.jobs.shell.training_group import Desk
from tsdfm.pipeline.evaluation.effects import effects
from tsdfm.pipeline.evaluation.figures import count
from tsdfm.pipeline.models.folder import TRAINING_FILE, state_folder
from tsdfm.pipeline.storage.store import LocalStore, Store
from tsdfm.pipeline.training.data_parallel import Place
from tsdfm.pipeline.training.distill import train_at
from tsdfm.pipeline.training.trainer import HEADER_FILE, STATE_FILE
from tsdfm.schemas.ablate import Effect, Evaluation, Sweep, TrialRecord, TrialRow, TrialSeconds
from tsdfm.schemas.base import InputError, WorkError, first_line
from tsdfm.schemas.paths import redacted
from tsdfm.schemas.reports import AblateReport

SWEEP_FILE = "sweep.json"
RESTARTS = 2  # of a trial whose process dies; it goes on from its own training state
POLL_SECONDS = 0.5
START = "start"


@dataclass(frozen=True)
class Work:
    """What a worker needs to run one piece of a sweep: a trial, or START."""

    trials: dict[str, Trial]
    evaluation: Evaluation
    out: Path

    def folder(self, key: str) -> Path:
        """Where a trial lies, or the evaluation of the start."""
        return self.out / START / self.first.start_fingerprint[:DIGEST] if key == START else self.out / "trials" / key

    @property
    def first(self) -> Trial:
        """The first trial, whose start is evaluated."""
        return next(iter(self.trials.values()))

    def is_done(self, key: str) -> bool:
        """Whether the trial (or START) named `key` is complete, evaluated as this sweep asks."""
        return complete(self.folder(key), self.evaluation)


def ablate(sweep: Sweep, data: Sequence[str], out: Path) -> AblateReport:
    """Run what a sweep lacks, and write its table. Returns the report that `--json` prints.

    Raises InputError (nothing was changed), WorkError (some trials failed; the table holds the others), or Interrupted.
    """
    out = out.absolute()
    trials = {trial.key: trial for trial in plan(sweep, data)}
    check_out(out)
    work, store, started = Work(trials, anchored_evaluation(sweep.evaluate), out), LocalStore(out), time.monotonic()
    with store.owned():
        store.write(SWEEP_FILE, redacted(sweep.model_dump_json(indent=2) + "\n").encode())
        todo = [key for key in [START, *trials] if not work.is_done(key)]
        if START in todo:
            say_corpus(work.evaluation.corpus)
        say(f"{sweep.name}: {count(len(trials), 'trial')}, {len(set(trials) - set(todo))} of them complete")
        faults = _run(work, todo, workers_of(sweep, trials)) if todo else {}
        done = [trial for trial in trials.values() if work.is_done(trial.key)]
        if START in faults or not done:
            raise WorkError(f"{len(faults)} of {count(len(todo), 'piece')} of work failed, the first: "
                            f"{next(iter(faults.values()))}; the same command tries again")
        folders = {trial.key: work.folder(trial.key) for trial in done}
        rows = [*start_rows(work.folder(START)), *(row for trial in done for row in trial_rows(trial, folders[trial.key]))]
        scored = [each for trial in done for each in scored_of(trial, folders[trial.key])]
        found = effects(scored, {factor: done[0].levels[factor] for factor in sweep.varied})
        _write(store, sweep, rows, found)
        store.write("times.csv", csv_bytes(times_of(folders)))
    if faults:
        raise WorkError(f"{len(faults)} of {count(len(trials), 'trial')} failed, the first: {next(iter(faults.values()))}; "
                        f"{out}/table.md holds the others, the same command tries again")
    return AblateReport(
        out=str(out), trials=len(trials), made=len(set(trials) & set(todo)), kept=len(set(trials) - set(todo)),
        seconds=round(time.monotonic() - started, 2), rows=rows, effects=found)


def check_out(out: Path) -> None:
    """Refuse a folder that holds something else than a sweep. Raises InputError."""
    if out.exists() and not (out / SWEEP_FILE).is_file() and any(name != ".lock" for name in LocalStore(out).names()):
        raise InputError(f"{out}: holds files and no sweep; give an empty --out, or that of a sweep")


def anchored_evaluation(evaluation: Evaluation) -> Evaluation:
    """With absolute local paths: trials run in another working directory."""
    corpus = evaluation.corpus.model_copy(update={"path": anchored(evaluation.corpus.path)})
    return evaluation.model_copy(update={"evaluator": tuple(map(anchored, evaluation.evaluator)), "corpus": corpus})


def _write(store: Store, sweep: Sweep, rows: Sequence[TrialRow], found: Sequence[Effect]) -> None:
    table = table_of(rows, sweep.varied)
    store.write("table.csv", csv_bytes(table))
    store.write("table.parquet", parquet_bytes(table))
    store.write("table.md", markdown(rows, sweep.varied, found).encode())
    store.write("effects.csv", csv_bytes(effects_table(found)))
    store.write("report.html", ablation_page(sweep, rows, found).encode())


def workers_of(sweep: Sweep, trials: dict[str, Trial]) -> int:
    """Trials at a time: as many as there are cores for their threads."""
    threads = max(trial.config.optim.threads for trial in trials.values())
    return sweep.workers or max(1, cores_here() // threads)


def _run(work: Work, keys: Sequence[str], workers: int) -> dict[str, str]:
    """Run pieces of work on Ray Tune. Returns the faults, by key. Raises Interrupted."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its tables, which verbose=0 does not silence
    faults: dict[str, str] = {}
    with cluster("local", workers):
        desk = ray.remote(Desk).options(num_cpus=0, max_concurrency=64).remote()
        with tempfile.TemporaryDirectory(prefix="tsdfm-tune-") as scratch:
            thread = threading.Thread(target=lambda: faults.update(_fit(work, keys, desk, scratch)), daemon=True)
            thread.start()
            with interruptible("saving checkpoints") as interrupted, ticker("trials") as show:
                while thread.is_alive():
                    thread.join(POLL_SECONDS)
                    if interrupted:
                        desk.stop.remote()
                    show.update(sum(map(work.is_done, keys)), len(keys), f"{min(workers, len(keys))} at a time")
    if interrupted:
        raise Interrupted(f"stopped; finished trials and the last checkpoints are in {work.out}; resume with: "
                          f"{shlex.join(resume_command())}")
    return faults


def _fit(work: Work, keys: Sequence[str], desk: Any, scratch: str) -> dict[str, str]:
    """The faults of a run of Tune, by key; what the folders hold says what was done."""
    resources = {"gpu": 1} if torch.cuda.is_available() else {"cpu": 1}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_piece, work=work, desk=desk), resources),
        param_space={"key": tune.grid_search(list(keys))},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(name="sweep", storage_path=scratch, verbose=0,
                                  failure_config=tune.FailureConfig(max_failures=RESTARTS)))
    try:
        results = list(tuner.fit())
    except Exception as error:
        return {key: _reason(error) for key in keys if not work.is_done(key)}
    faults = {str(each.config["key"]): _reason(each.error) for each in results if each.error is not None}
    return faults | {str(each.config["key"]): str(each.metrics["fault"]) for each in results
                     if each.error is None and each.metrics.get("fault")}


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error, 300)}"


def _piece(config: dict[str, Any], work: Work, desk: Any) -> dict[str, str]:
    """What a Tune worker runs. A fault that no restart mends is a result: the other trials go on."""
    def report(step: int, scalars: dict[str, float]) -> bool:
        return bool(ray.get(desk.post.remote(step, scalars)))

    key, device = config["key"], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if not report(0, {}):  # else the user wished to stop before it began
            run_piece(work, key, Place(0, 1, device), report)
    except (InputError, WorkError) as error:
        return {"fault": str(error)}
    return {"fault": ""}


def run_piece(work: Work, key: str, place: Place, report: Any) -> bool:
    """Distil and evaluate one trial, or evaluate the START, where its folder lacks it.

    Returns False if `report` asked to stop. Raises InputError or WorkError.
    """
    folder = work.folder(key)
    folder.mkdir(parents=True, exist_ok=True)
    if key == START:
        _evaluate(work, work.first.start, folder, reference=True)
        mark_complete(folder, TrialRecord(model=str(work.first.start)))
        return True
    trial, started = work.trials[key], time.monotonic()
    torch.set_num_threads(trial.config.optim.threads)
    for config, student in _rounds(trial, folder):
        if not (student / TRAINING_FILE).is_file() and not train_at(place, config, student, report):
            return False
        for name in (STATE_FILE, HEADER_FILE):  # four times the student's bytes
            (state_folder(student) / name).unlink(missing_ok=True)
    trained = time.monotonic()
    _evaluate(work, student, folder, reference=False)
    mark_complete(folder, TrialRecord(config=trial.config, model=str(student), seconds=TrialSeconds(
        distill=round(trained - started, 2), evaluate=round(time.monotonic() - trained, 2))))
    return True


def _rounds(trial: Trial, folder: Path) -> Iterator[tuple[Any, Path]]:
    """The distillations of a trial: config and folder of each student, from the second on starting from the one before."""
    config = trial.distill
    for number in range(1, trial.config.rounds + 1):
        student = folder / f"round-{number}"
        yield config, student
        config = config.model_copy(update={"init": str(student)})


def _evaluate(work: Work, model: Path, folder: Path, *, reference: bool) -> None:
    evaluated(work.evaluation.config(str(model), str(folder / "evaluation"), reference=reference))
