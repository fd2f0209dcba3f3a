"""`tsdfm-pipeline distill`: train a student from frozen shards, on Ray Train.

The training state and TensorBoard logs stand beside the student in OUT.training, which every process must share; a rerun of the
same command resumes from there, also after SIGKILL. Ray starts the processes and their process group; the exact state is ours.
"""

import shlex
import threading
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError, get_context
from ray.train.torch import TorchTrainer, get_device

from tsdfm.jobs.cluster import connect
from tsdfm.jobs.console import people, ticker
from tsdfm.jobs.interrupts import Interrupted, interruptible, resume_command
from tsdfm.jobs.train import check_target, state_folder
from tsdfm.pipeline import checkpoint
from tsdfm.pipeline.distill import Place, distill_student, open_init, open_reader, training_facts
from tsdfm.pipeline.reader import Reader
from tsdfm.pipeline.storage import Store
from tsdfm.pipeline.student_card import student_card
from tsdfm.pipeline.training import Report
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.distill import DistillConfig

RESTARTS = 3  # of the process group, when a process or node dies; training goes on from its last checkpoint
POLL_SECONDS = 0.5
LOCK_SECONDS = 20  # to wait for the folder: processes of a killed run may outlive it by a few
D = TypeVar("D", bound=DistillConfig)


def distill(config: DistillConfig, out: Path) -> dict[str, Any]:
    """Train, or go on training, the student of a config into the folder `out`. Returns the report that `--json` prints.

    Raises InputError (nothing was changed) or WorkError (the last checkpoint is kept, the same command resumes).
    """
    out, config = out.absolute(), anchored(config)
    reader = open_reader(config)
    config = _pinned(config, reader)
    start = open_init(config, reader.manifests[0])
    if out.resolve() == start.path.resolve():
        raise InputError(f"{out}: holds the weights to start from, which the student would replace; give another --out")
    check_target(out)
    people.print(f"{reader.rows_per_epoch} trajectories, {config.objective} objective, {config.optim.steps} updates of "
                 f"{config.optim.batch_size}, from {start.path}", markup=False)
    started = time.monotonic()
    try:
        last = _train(config, out)
    finally:
        ray.shutdown()
    return {"out": str(out), "fingerprint": checkpoint.load(out).fingerprint, "init": start.fingerprint,
            "updates": config.optim.steps, "seconds": round(time.monotonic() - started, 2), **last}


def anchored(config: D) -> D:
    """The same with absolute local paths: training processes have another working directory."""
    def anchor(name: str) -> str:
        return str(Path(name).absolute()) if Path(name).exists() else name

    data = config.data.model_copy(update={"paths": [anchor(path) for path in config.data.paths]})
    text = config.real.corpus.path
    corpus = config.real.corpus.model_copy(update={"path": text if text == "python" else anchor(text)})
    changes: dict[str, Any] = {"data": data, "real": config.real.model_copy(update={"corpus": corpus})}
    if config.init not in (None, "embedded"):
        changes["init"] = anchor(config.init)
    return config.model_copy(update=changes)


def _pinned(config: DistillConfig, reader: Reader) -> DistillConfig:
    """The same with every Hub dataset at the commit that the reader found: a branch may move before other processes look."""
    paths = [source.store.uri for source in reader.sources]
    for path in sorted(set(paths) - set(config.data.paths)):
        people.print(f"reading {path}", markup=False)
    return config.model_copy(update={"data": config.data.model_copy(update={"paths": paths})})


def _train(config: DistillConfig, out: Path) -> dict[str, float]:
    """Run the process group to its end. Returns the last scalars that it reported."""
    if config.address == "local" and torch.cuda.is_available() and config.workers > torch.cuda.device_count():
        raise InputError(f"workers: {config.workers} is more than this machine's GPUs ({torch.cuda.device_count()}), "
                         "one for each; lower --workers, or hide the GPUs with CUDA_VISIBLE_DEVICES=-1")
    if config.address == "local":
        connect("local", config.workers * config.optim.threads + 1)
    else:
        connect(config.address, None)
    gpu = torch.cuda.is_available() if config.address == "local" else bool(ray.cluster_resources().get("GPU", 0))
    desk = ray.remote(Desk).options(num_cpus=0, max_concurrency=8).remote()
    trainer = TorchTrainer(
        _loop, train_loop_config={"config": config.model_dump(mode="json"), "out": str(out), "desk": desk},
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=gpu, resources_per_worker=(
            {"GPU": 1} if gpu else {"CPU": config.optim.threads})),
        run_config=RunConfig(
            name="ray", storage_path=str(state_folder(out)), failure_config=FailureConfig(max_failures=RESTARTS)),
    )
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    shown, news = 0, News(0, {}, None, stopped=False)
    with interruptible("saving a checkpoint") as interrupted, ticker("distill", config.optim.steps) as show:
        going = True
        while going:
            thread.join(POLL_SECONDS)
            going = thread.is_alive()
            if interrupted:
                desk.stop.remote()
            news = _asked(desk.news.remote(), news, failure)
            if news.step > shown:
                show.update(news.step, _line(news.scalars))
                shown = news.step
            going &= news.fault is None  # after a fault the other processes would wait for the one that left
    if news.fault is not None:
        raise news.fault
    if failure:
        raise _explained(failure[0])
    if news.stopped:
        raise Interrupted(f"stopped; the last checkpoint is in {state_folder(out)}; resume with: "
                          f"{shlex.join(resume_command())}")
    return news.scalars


def _asked(answer: Any, known: "News", failure: list[BaseException]) -> "News":
    """The desk's news. If Ray itself failed: what is known, where `failure` tells more, else WorkError."""
    try:
        news: News = ray.get(answer)
    except RayError as error:
        if failure:
            return known
        raise _explained(error) from None
    return news


def _line(scalars: dict[str, float]) -> str:
    budgets = "  ".join(f"1/{name.removeprefix('loss/')}: {value:.2f}" for name, value in scalars.items() if "/" in name)
    return f"loss {scalars['loss']:.3f}  ({budgets})"


def _explained(error: BaseException) -> WorkError:
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        error = next(iter(error.worker_failures.values()))
    error = getattr(error, "_base_exc", error)  # Ray's wrapper, whose text is a whole traceback
    reason = " ".join(str(error).split())
    return WorkError(f"training failed: {type(error).__name__}: {reason:.300}; the last checkpoint is kept, "
                     "the same command resumes")


@dataclass(frozen=True)
class News:
    """What the training processes said last: update, scalars, what no restart mends, and whether they ended early."""

    step: int
    scalars: dict[str, float]
    fault: Exception | None
    stopped: bool


class Desk:
    """A Ray actor between the driver and the training processes: progress one way, a wish to stop the other."""

    def __init__(self) -> None:
        self._step, self._scalars = 0, dict[str, float]()
        self._stopping = self._stopped = False
        self._fault: Exception | None = None

    def post(self, step: int, scalars: dict[str, float]) -> bool:
        """Progress; answers whether to save and stop."""
        self._step, self._scalars = step, scalars
        return self._stopping

    def news(self) -> News:
        """All that was posted."""
        return News(self._step, self._scalars, self._fault, self._stopped)

    def stop(self) -> None:
        """Ask the training to save and stop."""
        self._stopping = True

    def leave(self, fault: Exception | None) -> None:
        """The training ended early: it was asked to (None), or something is wrong that no restart mends. The first counts."""
        self._stopped, self._fault = True, self._fault or fault


def _owned(store: Store) -> AbstractContextManager[object, bool | None]:
    """Hold the training folder, which another process may be about to let go. Raises InputError if it doesn't."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        with ExitStack() as stack:
            try:
                stack.enter_context(store.owned())
            except InputError:
                if time.monotonic() > deadline:
                    raise
            else:
                return stack.pop_all()
        time.sleep(POLL_SECONDS)


def train_at(place: Place, config: DistillConfig, out: Path, report: Report) -> bool:
    """One process's part of a distillation; the first process writes the student to `out`.

    Returns False if `report` asked to stop. Raises InputError or WorkError.
    """
    with ExitStack() as stack:
        if place.rank == 0:
            stack.enter_context(_owned(Store(str(state_folder(out)))))
        reader = open_reader(config)
        start = open_init(config, reader.manifests[0])
        student = distill_student(config, reader, start, state_folder(out), place, report)
        if student is not None and place.rank == 0:
            versions = {name: version(name) for name in ("tsdfm-pipeline", "torch", "ray")}
            facts = {**training_facts(config, reader, start), "versions": versions}
            checkpoint.save(out, student, start.vocabulary, facts, card=student_card(student.config, facts))
    return student is not None


def _loop(settings: dict[str, Any]) -> None:
    """What every training process runs."""
    config, out, desk = DistillConfig.model_validate(settings["config"]), Path(settings["out"]), settings["desk"]
    context = get_context()
    place = Place(context.get_world_rank(), context.get_world_size(), get_device())

    def report(step: int, scalars: dict[str, float]) -> bool:
        return bool(ray.get(desk.post.remote(step, scalars)))

    try:
        if not train_at(place, config, out, report):
            ray.get(desk.leave.remote(None))
    except (InputError, WorkError) as error:  # no restart mends it
        ray.get(desk.leave.remote(error))
