"""`ablate --plan`: what the trials of a sweep that are left will take; nothing is made."""

import io
import multiprocessing
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tsdfm.jobs.ablate.plan import Trial, plan
from tsdfm.jobs.ablate.run import START, SWEEP_FILE, Work, anchored_evaluation, workers_of
from tsdfm.jobs.distill.plan import job_of
from tsdfm.jobs.evaluate.plan import EvaluateJob
from tsdfm.jobs.plan.plan import Forecast, Measurement, check_writable, plan_of, started_seconds
from tsdfm.jobs.plan.rates import this_machine
from tsdfm.jobs.plan.rollouts import makespan
from tsdfm.jobs.plan.training import TrainingJob
from tsdfm.jobs.shell.cluster import cluster
from tsdfm.jobs.shell.console import say_corpus, ticker
from tsdfm.pipeline.evaluation.sample_cache import key_of
from tsdfm.pipeline.storage.targets import check_folder
from tsdfm.pipeline.training.distill import open_start
from tsdfm.schemas.ablate import Sweep
from tsdfm.schemas.base import WorkError
from tsdfm.schemas.plan import Plan, PlanWish, Rates, Stage

MOST = 8  # kinds of trials that are measured
KIND = 8  # hex digits that name one


def plan_ablate(sweep: Sweep, wish: PlanWish, data: Sequence[str], out: Path) -> Plan:
    """The plan of a sweep. Raises InputError where the run would; nothing is written."""
    out = out.absolute()
    check_writable(out)
    trials = {trial.key: trial for trial in plan(sweep, data)}
    check_folder(out, {SWEEP_FILE}, "sweep")
    work = Work(trials, anchored_evaluation(sweep.evaluate), out, b"")
    todo = list(work.lacking())
    if START in todo:
        say_corpus(work.evaluation.corpus, [str(work.first.start)])
    return plan_of(AblateJob(work, todo, workers_of(sweep, work.threads) or 1, started_seconds()), wish)


@dataclass(frozen=True)
class AblateJob:
    """A sweep to be planned: see `jobs.plan.plan.Job`. `todo`: keys of the pieces that are left; `workers`: pieces at once."""

    work: Work
    todo: list[str]
    workers: int
    started: float
    command: str = "ablate"
    address: str = "local"

    @property
    def out(self) -> str | None:
        """Where trials and table are."""
        return str(self.work.out)

    @cached_property
    def kinds(self) -> dict[str, list[Trial]]:
        """The trials by what an update of them takes."""
        found: dict[str, list[Trial]] = {}
        for key, trial in self.work.trials.items():
            found.setdefault(kind_of(self.trainings[key]), []).append(trial)
        return found

    @cached_property
    def trainings(self) -> dict[str, TrainingJob]:
        """The first round of every trial as a job; the others take as long."""
        return {key: training_of(trial) for key, trial in self.work.trials.items()}

    @cached_property
    def evaluation(self) -> EvaluateJob:
        """The evaluation of the start, beside real text."""
        first = self.work.first
        return EvaluateJob.of(self.work.evaluation.config(str(first.start), str(self.work.folder(START) / "evaluation"),
                                                          reference=True))

    def measured_for(self) -> Mapping[str, Any]:
        """The kinds of trials, and what every evaluation depends on."""
        return {"kinds": {kind: dict(self.trainings[trials[0].key].measured_for()) for kind, trials in self.kinds.items()},
                "evaluation": dict(self.evaluation.measured_for())}

    def measure(self) -> Measurement:
        """Measure a trial of every kind, as many at a time as trials will run.

        Numbers: `start` of the command, its cluster and a worker; of each kind `KIND.once`, `KIND.update` and `KIND.save`;
        `evaluation.NAME` as `evaluate` has them, with `evaluation.real` in place of `once` where real text is read, too.
        """
        first = [trials[0] for trials in self.kinds.values()][:MOST]
        measured = [first[number % len(first)] for number in range(max(len(first), 2, min(self.workers, MOST)))]
        began = time.monotonic()
        with ticker("measuring") as show:
            show.waiting(0, len(measured), "starting Ray")
            with cluster("local", self.workers):
                ray = time.monotonic() - began
            show.waiting(0, len(measured), f"{len(measured)} short trials")
            began = time.monotonic()
            told = _told(self.work, measured, self.workers)
        starting = min(each.pop("began") for each in told) - began
        numbers = {"start": self.started + ray + max(0.0, starting), "evaluation.real": told[0].pop("evaluation.real")}
        for name in {name for each in told for name in each}:
            values = [each[name] for each in told if name in each]
            numbers[name] = sum(values) / len(values)
        return Measurement(this_machine(), min(self.workers, len(measured)), numbers)

    def forecast(self, rates: Rates) -> Forecast:
        """The pieces that are left, handed to the workers in turn."""
        n, trials = rates.numbers, self.work.trials
        left = [trials[key] for key in self.todo if key != START]
        evaluation = self.evaluation.forecast(_evaluating(rates, n["evaluation.real"]))
        again = sum(stage.seconds for stage in self.evaluation_alone.forecast(_evaluating(rates, n["evaluation.once"])).stages)
        seconds = [sum(stage.seconds for stage in evaluation.stages)] if START in self.todo else []
        seconds += [self._distilling(trial, rates) + again for trial in left]
        updates = sum(trial.config.optim.steps * trial.config.rounds for trial in left)
        texts = len(self.work.evaluation.steps) * len(self.work.evaluation.temperatures) * self.work.evaluation.samples
        return Forecast(
            makes={"trials": len(trials)},
            there={"trials": len(trials) - len(left)} if len(left) < len(trials) else {},
            work={"trials": len(left), "updates": updates, "texts": texts * len(seconds),
                  "passes forward and backward": sum(
                      self._told(trial, rates).work["passes forward and backward"] * trial.config.rounds for trial in left)},
            stages=[Stage(what="start, Ray and its workers", seconds=n["start"]),
                    Stage(what="trials", seconds=makespan([1] * len(seconds), self.workers, sum(seconds) / len(seconds))
                          if seconds else 0.0)],
            devices=self.workers)

    @cached_property
    def evaluation_alone(self) -> EvaluateJob:
        """The evaluation of a student, of which nothing is there yet."""
        config = self.evaluation.config.model_copy(update={"out": None, "reference": False})
        return replace(self.evaluation, config=config, started=0.0)

    def _distilling(self, trial: Trial, rates: Rates) -> float:
        """Seconds of all rounds of a trial."""
        return trial.config.rounds * sum(stage.seconds for stage in self._told(trial, rates).stages)

    def _told(self, trial: Trial, rates: Rates) -> Forecast:
        """What one round of a trial takes."""
        training = self.trainings[trial.key]
        return training.forecast(_of_kind(rates, training))


def _told(work: Work, trials: Sequence[Trial], workers: int) -> list[dict[str, float]]:
    """The numbers of trials, each measured in a process of its own, so many at a time; the first reads real text, too."""
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _settle) as pool:
            return list(pool.map(measured_trial, [work] * len(trials), trials, [number == 0 for number in range(len(trials))]))
    except BrokenProcessPool:
        raise WorkError("measuring failed: a process was killed, perhaps for want of memory; lower --workers, or a batch size"
                        ) from None


def _settle() -> None:
    """A process that measures: an interrupt ends it without a word, and its progress is told by nobody."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.stderr = io.StringIO()


def measured_trial(work: Work, trial: Trial, real: bool) -> dict[str, float]:
    """The numbers of one trial, measured in this process."""
    began = time.monotonic()
    training = training_of(trial)
    with tempfile.TemporaryDirectory(prefix="tsdfm-plan-") as scratch:
        found = training.timed_here(Path(scratch))
        config = work.evaluation.config(str(trial.start), scratch, reference=real)
        evaluating = EvaluateJob.of(config).measure().numbers
    once = evaluating.pop("once")
    evaluating.pop("start")
    return {**{f"{kind_of(training)}.{name}": found[name] for name in ("once", "update", "save", "whole")},
            **{f"evaluation.{name}": number for name, number in evaluating.items()},
            "evaluation.real" if real else "evaluation.once": once, "began": began}


def training_of(trial: Trial) -> TrainingJob:
    """The first round of a trial as a job."""
    return job_of(trial.distill, open_start(trial.distill), Path(trial.key), 0)


def kind_of(job: TrainingJob) -> str:
    """The name of all trainings that take as long for an update."""
    return key_of(dict(job.measured_for()))[:KIND]


def _of_kind(rates: Rates, training: TrainingJob) -> Rates:
    """Rates of a training; of a kind that was not measured, those of the first that was."""
    kind, n = kind_of(training), rates.numbers
    if f"{kind}.update" not in n:
        kind = next(name.partition(".")[0] for name in n if name.endswith(".update"))
    numbers = {name: n[f"{kind}.{name}"] for name in ("once", "update", "save", "whole")}
    return rates.model_copy(update={"numbers": {**numbers, "start": 0.0, "model": 0.0, "state": 0.0}})


def _evaluating(rates: Rates, once: float) -> Rates:
    """Rates of an evaluation."""
    numbers = {name.removeprefix("evaluation."): number for name, number in rates.numbers.items()
               if name.startswith("evaluation.")}
    return rates.model_copy(update={"numbers": {**numbers, "start": 0.0, "once": once}})
