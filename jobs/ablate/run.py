"""`tsdfm-pipeline ablate`: a sweep of `distill` and `evaluate` over frozen trajectories, trials spread over cores or a cluster.

    DIR/sweep.json                what was asked
    DIR/trials/KEY/round-1 ...    the students; training state stands beside them until they are done
    DIR/trials/KEY/evaluation     samples, scores and results, as `evaluate` keeps them; trial.json, written last
    DIR/start/KEY                 the evaluation of the model that the students start from, and of real text
    DIR/table.* effects.csv times.csv report.html

A trial's folder, named by a digest of all that its student depends on, is the source of truth: a rerun skips the trials that
are complete, goes on with those that are not from their own training state, and builds the table from the folders. So a sweep
may also grow: trials of other factors stand beside these.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
import torch

from tsdfm.jobs.ablate.page import ablation_page
from tsdfm.jobs.ablate.plan import DIGEST, Trial, plan
from tsdfm.jobs.ablate.results import (
    Now,
    lacking,
    mark_complete,
    refuse_mixed,
    round_folder,
    scored_of,
    start_rows,
    times_of,
    trial_rows,
)
from tsdfm.jobs.ablate.table import csv_bytes, effects_table, markdown, parquet_bytes, table_of
from tsdfm.jobs.crew.census import census
from tsdfm.jobs.crew.collect import SetAside, Told, collect
from tsdfm.jobs.crew.names import anchored
from tsdfm.jobs.crew.tasks import Call, Need, Tasks
from tsdfm.jobs.crew.training.desk import Desk
from tsdfm.jobs.crew.working import node_name
from tsdfm.jobs.evaluate.run import evaluated
from tsdfm.jobs.shell.cluster import cluster, cores_here, gpus_at
from tsdfm.jobs.shell.console import Stages, say, say_corpus
from tsdfm.pipeline.evaluation.effects import effects
from tsdfm.pipeline.evaluation.figures import count
from tsdfm.pipeline.evaluation.run import check
from tsdfm.pipeline.models.folder import TRAINING_FILE, state_folder
from tsdfm.pipeline.storage.hub.models import pinned
from tsdfm.pipeline.storage.store import LocalStore, Store
from tsdfm.pipeline.storage.targets import check_folder
from tsdfm.pipeline.training.distill import is_made, open_start, train_at
from tsdfm.pipeline.training.loop.checkpoint import HEADER_FILE, STATE_FILE
from tsdfm.pipeline.training.loop.data_parallel import Place
from tsdfm.schemas.ablate import Effect, Evaluation, Sweep, TrialRecord, TrialRow, TrialSeconds
from tsdfm.schemas.base import InputError, WorkError, first_line, recordable
from tsdfm.schemas.paths import redacted
from tsdfm.schemas.reports import AblateReport

SWEEP_FILE = "sweep.json"
START = "start"


@dataclass(frozen=True)
class Work:
    """What a worker needs to run one piece of a sweep: a trial, or START."""

    trials: dict[str, Trial]
    evaluation: Evaluation
    out: Path
    sweep: bytes  # of SWEEP_FILE, by which a node knows the folder

    @property
    def threads(self) -> int:
        """CPU threads of a trial."""
        return max(trial.config.optim.threads for trial in self.trials.values())

    def folder(self, key: str) -> Path:
        """Where a trial lies, or the evaluation of the start."""
        return self.out / START / self.first.start_fingerprint[:DIGEST] if key == START else self.out / "trials" / key

    @property
    def first(self) -> Trial:
        """The first trial, whose start is evaluated."""
        return next(iter(self.trials.values()))

    @cached_property
    def now(self) -> Now:
        """What its folders are compared with."""
        return Now(self.evaluation, self.first.start)

    def lacking(self) -> dict[str, str]:
        """What each trial (or START) that is not complete, made and evaluated as this sweep asks, lacks, by its key.

        Raises InputError if a folder holds another trial.
        """
        found = {key: lacking(self.folder(key), self.trials.get(key), self.now) for key in [START, *self.trials]}
        return {key: why for key, why in found.items() if why is not None}


def ablate(sweep: Sweep, data: Sequence[str], out: Path) -> AblateReport:
    """Run what a sweep lacks, and write its table. Returns the report that `--json` prints.

    Raises InputError (nothing was changed), WorkError (some trials failed; the table holds the others), or Interrupted.
    """
    out = Path(recordable(str(out.absolute())))
    trials = {trial.key: trial for trial in plan(sweep, data)}
    check_folder(out, {SWEEP_FILE}, "sweep")
    asked = (redacted(sweep.model_dump_json(indent=2)) + "\n").encode()
    work, store = Work(trials, anchored_evaluation(sweep.evaluate), out, asked), LocalStore(out)
    started = time.monotonic()
    todo = list(work.lacking())
    if START in todo:
        say_corpus(work.evaluation.corpus, [str(work.first.start)])
    if todo and sweep.address == "local":  # nodes may have what this machine has not
        _check_evaluation(work)
    with store.owned():
        store.write(SWEEP_FILE, asked)
        say(f"{sweep.name}: {count(len(trials), 'trial')}, {len(set(trials) - set(todo))} of them complete")
        faults = _run(work, todo, workers_of(sweep, work.threads), sweep.address) if todo else {}
        lacks = work.lacking()  # what failed, and what was made and is yet not what was asked for
        faults = {key: faults.get(key, f"{work.folder(key)}: was made just now, and yet {why}") for key, why in lacks.items()}
        done = [trial for trial in trials.values() if trial.key not in faults]
        if START in faults or not done:
            raise WorkError(f"{len(faults)} of {count(len(todo), 'piece')} of work failed, the first: "
                            f"{next(iter(faults.values()))}; the same command tries again")
        folders = {trial.key: work.folder(trial.key) for trial in done}
        refuse_mixed([work.folder(START), *folders.values()])
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


def _check_evaluation(work: Work) -> None:
    """Refuse an evaluation that would fail after the training, of each model that trials start from. Raises InputError."""
    with Stages() as progress:
        out = str(work.folder(START) / "evaluation")  # nothing is written there yet
        for start in sorted({str(trial.start) for trial in work.trials.values()}):
            check(work.evaluation.config(start, out, reference=start == str(work.first.start)), progress)


def anchored_evaluation(evaluation: Evaluation) -> Evaluation:
    """With absolute local paths, for trials run in another working directory, and judges of the Hub by their commits."""
    corpus = evaluation.corpus.model_copy(update={"path": anchored(evaluation.corpus.path)})
    judges = tuple(anchored(pinned(name)) for name in evaluation.evaluator)
    return evaluation.model_copy(update={"evaluator": judges, "corpus": corpus})


def _write(store: Store, sweep: Sweep, rows: Sequence[TrialRow], found: Sequence[Effect]) -> None:
    table = table_of(rows, sweep.varied)
    store.write("table.csv", csv_bytes(table))
    store.write("table.parquet", parquet_bytes(table))
    store.write("table.md", markdown(rows, sweep.varied, found).encode())
    store.write("effects.csv", csv_bytes(effects_table(found)))
    store.write("report.html", ablation_page(sweep, rows, found).encode())


def workers_of(sweep: Sweep, threads: int) -> int | None:
    """Trials at a time: on this machine as many as there are cores for their threads, on a cluster as there is room for."""
    return sweep.workers or (max(1, cores_here() // threads) if sweep.address == "local" else None)


def _run(work: Work, keys: Sequence[str], workers: int | None, address: str) -> dict[str, str]:
    """Run pieces of work on Ray. Returns the faults, by key. Raises Interrupted, or WorkError if Ray fails."""
    faults, threads, kept = dict[str, str](), work.threads, f"finished trials and the last checkpoints are in {work.out}"
    with cluster(address, None if workers is None else workers * threads), census(kept) as asking:
        # A desk that is lost with its node is started anew, and told again whether the user wishes to stop.
        desk = ray.remote(Desk).options(num_cpus=0, max_concurrency=64, max_restarts=-1, max_task_retries=-1).remote()
        told = Told("trials", "piece", lambda index: f"trial {keys[index]}", stopping="saving checkpoints",
                    stop=lambda: desk.stop.remote(), kept=kept)
        call = Call("Trial.run", _piece, lambda index: (work, keys[index], desk, address != "local"))
        need = Need("GPU", 1) if gpus_at(address) else Need("CPU", threads)
        try:
            tasks: Tasks[str] = Tasks(call, need, workers, asking)
            collect(tasks, told, range(len(keys)),
                    lambda index, fault: faults.update({keys[index]: fault} if fault else {}))
        except SetAside as error:
            faults |= {keys[index]: str(error) for index in error.pieces}
    return faults


def _piece(work: Work, key: str, desk: Any, named: bool) -> str | None:
    """What a worker runs. Returns the fault, which no restart mends, or ''; None if it was asked to stop.

    A fault is a result, for the other trials go on; with the node's name if it is `named`. Raises WorkError where this node
    does not share the sweep's folder.
    """
    def report(step: int, scalars: dict[str, float]) -> bool:
        return bool(ray.get(desk.post.remote(step, scalars)))

    if LocalStore(work.out).read(SWEEP_FILE) != work.sweep:
        raise WorkError(f"{work.out}: not the folder that this run writes to, which every node must share; give --out a shared "
                        "folder")
    where = f"node {node_name()}: " if named else ""
    try:
        if report(0, {}):  # the user wished to stop before it began
            return None
        place = Place(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        return "" if run_piece(work, key, place, report) else None
    except (InputError, WorkError) as error:
        return f"{where}{error}"
    except Exception as error:  # whatever it is, it is this trial's
        return f"{where}{type(error).__name__}: {first_line(error, 300)}"


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
        there = (student / TRAINING_FILE).is_file() and is_made(open_start(config), student)
        if not there and not train_at(place, config, student, report):
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
        student = round_folder(folder, number)
        yield config, student
        config = config.model_copy(update={"init": str(student)})


def _evaluate(work: Work, model: Path, folder: Path, *, reference: bool) -> None:
    evaluated(work.evaluation.config(str(model), str(folder / "evaluation"), reference=reference))
