"""Train in data-parallel processes that Ray starts: of `distill`, and of `pretrain` and `fit-compass` with several workers.

The training state and TensorBoard logs stand beside the model in OUT.training, which every process must share; a rerun of the
same command resumes from there, also after SIGKILL. Ray starts the processes and their process group; the exact state is ours.
"""

import logging
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
import torch
from ray.exceptions import GetTimeoutError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError, get_context
from ray.train.torch import TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tsdfm.jobs.crew.census import Census, census
from tsdfm.jobs.crew.training.desk import Desk, News
from tsdfm.jobs.shell.cluster import END_SECONDS, awaited_at_end, cluster, gpus_at
from tsdfm.jobs.shell.console import say, ticker
from tsdfm.jobs.shell.interrupts import Interrupted, interruptible, resume_command
from tsdfm.jobs.shell.trackers import tracked
from tsdfm.pipeline.models.folder import state_folder
from tsdfm.pipeline.training.loop.data_parallel import Place
from tsdfm.pipeline.training.loop.trainer import Report, Watch
from tsdfm.schemas.base import InputError, WorkError, first_line
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.train import TextTraining

RESTARTS = 3  # of the process group, when a process or node dies; training goes on from its last checkpoint
POLL_SECONDS = 0.5
ANSWER_SECONDS = 10.0  # of the desk, until what is known has to do
TERM_SECONDS = 6.0  # for a checkpoint where something other than a person asks to stop: it will not wait for long


class Wish:
    """Whether the driver wishes a training process to stop; asked after every update, it asks the desk now and then."""

    def __init__(self, desk: Any) -> None:
        self._desk, self._asked = desk, -POLL_SECONDS

    def __call__(self) -> bool:
        """Whether to save and stop."""
        if time.monotonic() - self._asked < POLL_SECONDS:
            return False
        self._asked = time.monotonic()
        return bool(ray.get(self._desk.stopping.remote()))


TrainingConfig = DistillConfig | TextTraining


class Loop(Protocol):
    """What one process runs. It is sent by its name, so it stands at the top of a module."""

    def __call__(self, place: Place, config: Any, out: Path, report: Report, *, watch: Watch) -> bool:
        """Train the model of a config into the folder `out`. Returns False if `report` or `watch` asked to stop."""
        ...


@dataclass(frozen=True)
class Group:
    """Data-parallel processes, and what they run.

    Args:
        label: of the progress, e.g. 'distill'.
        loop: what every process runs.
        config: what it is given, with absolute paths: processes have another working directory. It says how many they are.
        out: folder of the model, an absolute path.
    """

    label: str
    loop: Loop
    config: TrainingConfig
    out: Path

    def run(self, line: Callable[[dict[str, float]], str]) -> dict[str, float]:
        """Train to the end; `line` makes the words of the progress from scalars. Returns the last scalars.

        Raises InputError or WorkError (the last checkpoint is kept, the same command resumes).
        """
        with self.cluster(), census(f"the last checkpoint is in {state_folder(self.out)}") as asking:
            return _fitted(self, line, asking)

    def cluster(self) -> AbstractContextManager[None]:
        """The Ray cluster that it runs on, for what goes before it, too."""
        return cluster(self.config.address, self.config.workers * self.config.optim.threads + 1)


def _check_gpus(config: TrainingConfig) -> None:
    if config.address == "local" and torch.cuda.is_available() and config.workers > torch.cuda.device_count():
        raise InputError(f"workers: {config.workers} is more than this machine's GPUs ({torch.cuda.device_count()}), one for "
                         "each; lower --workers, or hide the GPUs with CUDA_VISIBLE_DEVICES=-1")


def _fitted(group: Group, line: Callable[[dict[str, float]], str], asking: Census) -> dict[str, float]:
    _check_gpus(group.config)
    gpu = bool(gpus_at(group.config.address))
    # On the driver's node: elsewhere it would be lost with a node whose loss the training outlives.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk = ray.remote(Desk).options(num_cpus=0, max_concurrency=8, scheduling_strategy=here).remote()
    trainer = TorchTrainer(
        _process, train_loop_config={"group": group, "desk": desk},
        scaling_config=ScalingConfig(num_workers=group.config.workers, use_gpu=gpu, resources_per_worker=(
            {"GPU": 1} if gpu else {"CPU": group.config.optim.threads})),
        run_config=RunConfig(
            name="ray", storage_path=str(state_folder(group.out)), failure_config=FailureConfig(max_failures=RESTARTS)),
    )
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    awaited_at_end(thread)
    thread.start()
    shown, told, news = 0, 0, News()
    with interruptible("saving a checkpoint") as interrupted, ticker(group.label) as show:
        going = True
        while going:
            thread.join(POLL_SECONDS)
            going = thread.is_alive()
            asking.check()
            if interrupted:
                desk.stop.remote()
            news, lacking = _asked(desk, news, failure), _lacking(group, asking, gpu=gpu)
            told = _warned(news, told)
            if lacking or not (news.begun or news.step):
                show.waiting(news.step, group.config.optim.steps, lacking or "starting the training processes")
            elif news.step > shown:
                show.update(news.step, group.config.optim.steps, line(news.scalars))
                shown = news.step
            # After a fault the other processes would wait for the one that left; before the first update nothing is lost.
            going &= news.fault is None and (news.begun or not interrupted) and not interrupted.is_urgent(TERM_SECONDS)
    if news.fault is not None:
        thread.join(END_SECONDS)  # where no process waits for another, it ends by itself
        raise news.fault
    if failure:
        raise _explained(failure[0])
    if news.stopped or (interrupted and (thread.is_alive() or not news.begun)):
        raise Interrupted(f"stopped; the last checkpoint is in {state_folder(group.out)}; resume with: "
                          f"{shlex.join(resume_command())}")
    return news.scalars


def _warned(news: News, told: int) -> int:
    """Say the warnings that have come since so many were told. Returns how many there are."""
    for warning in news.warnings[told:]:
        say(f"Warning: {warning}", logging.WARNING)
    return len(news.warnings)


def _lacking(group: Group, asking: Census, *, gpu: bool) -> str:
    """What the cluster has too little of for all training processes, as people may read it; '' where it has enough."""
    what, number = ("GPU", group.config.workers) if gpu else ("CPU", group.config.workers * group.config.optim.threads)
    there = int(asking.latest.total.get(what, 0))
    return "" if there >= number else f"waiting for {number} {what}{'s' if number > 1 else ''}: the cluster has {there}"


def _asked(desk: Any, known: News, failure: list[BaseException]) -> News:
    """The desk's news, or what is known where it does not answer, or `failure` tells why; else WorkError if Ray failed."""
    try:
        news: News = ray.get(desk.news.remote(), timeout=ANSWER_SECONDS)
    except GetTimeoutError:
        return known
    except RayError as error:
        if failure:
            return known
        raise _explained(error) from None
    return news


def _explained(error: BaseException) -> WorkError:
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        error = next(iter(error.worker_failures.values()))
    error = getattr(error, "_base_exc", error)  # Ray's wrapper, whose text is a whole traceback
    return WorkError(f"training failed: {type(error).__name__}: {first_line(error, 300)}; the last checkpoint is kept, "
                     "the same command resumes")


class _Warnings(logging.Handler):
    """Has the driver say what a training process warns of: what its libraries write on this node nobody reads."""

    def __init__(self, desk: Any) -> None:
        super().__init__(logging.WARNING)
        self._desk = desk

    def emit(self, record: logging.LogRecord) -> None:
        """Send a line to the desk."""
        with suppress(Exception):  # a training does not end over what it warns of
            self._desk.warn.remote(record.getMessage())


@contextmanager
def _heard(group: Group, rank: int, desk: Any) -> Iterator[Report]:
    """What tells the driver of scalars, and in the first process the tracker, too."""
    log = logging.getLogger("tsdfm")
    with ExitStack() as held:
        log.addHandler(handler := _Warnings(desk))
        held.callback(log.removeHandler, handler)
        track = None if rank else held.enter_context(
            tracked(group.config, group.label, group.out, state_folder(group.out)))

        def report(step: int, scalars: dict[str, float]) -> bool:
            if track is not None:
                track(step, scalars)
            return bool(ray.get(desk.post.remote(step, scalars)))
        yield report


def _process(settings: dict[str, Any]) -> None:
    """What every training process runs."""
    group, desk = settings["group"], settings["desk"]
    context = get_context()
    torch.set_num_threads(group.config.optim.threads)
    place = Place(context.get_world_rank(), context.get_world_size(), get_device())

    try:
        with _heard(group, place.rank, desk) as report:
            whole = group.loop(place, group.config, group.out, report, watch=Watch(stop=Wish(desk)))
        if not whole:
            ray.get(desk.leave.remote(None))
    except (InputError, WorkError) as error:  # no restart mends it
        ray.get(desk.leave.remote(error))
