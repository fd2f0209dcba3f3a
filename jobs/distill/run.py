"""`tsdfm-pipeline distill`: train a student from frozen shards, on Ray Train.

The training state and TensorBoard logs stand beside the student in OUT.training, which every process must share; a rerun of the
same command resumes from there, also after SIGKILL. Ray starts the processes and their process group; the exact state is ours.
"""

import shlex
import threading
import time
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError, get_context
from ray.train.torch import TorchTrainer, get_device

from tsdfm.jobs.distill.desk import Desk, News
from tsdfm.jobs.shell.cluster import anchored, cluster, gpus_at
from tsdfm.jobs.shell.console import say, ticker
from tsdfm.jobs.shell.interrupts import Interrupted, interruptible, resume_command
from tsdfm.pipeline.loader.batches import Reader
from tsdfm.pipeline.models.folder import load, state_folder
from tsdfm.pipeline.training.distill import check, train_at
from tsdfm.pipeline.training.student_trainer import Place
from tsdfm.schemas.base import InputError, WorkError, first_line
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.reports import DistillReport

RESTARTS = 3  # of the process group, when a process or node dies; training goes on from its last checkpoint
POLL_SECONDS = 0.5
D = TypeVar("D", bound=DistillConfig)


def distill(config: DistillConfig, out: Path) -> DistillReport:
    """Train, or go on training, the student of a config into the folder `out`. Returns the report that `--json` prints.

    Raises InputError (nothing was changed) or WorkError (the last checkpoint is kept, the same command resumes).
    """
    out, config = out.absolute(), with_anchored_paths(config)
    start = check(config, out)
    config = _pinned(config, start.reader)
    say(f"{start.reader.rows_per_epoch} trajectories, {config.objective} objective, {config.optim.steps} updates of "
        f"{config.optim.batch_size}, from {start.weights.path}")
    started = time.monotonic()
    with cluster(config.address, config.workers * config.optim.threads + 1):
        last = _train(config, out)
    return DistillReport(out=str(out), fingerprint=load(out).fingerprint, init=start.weights.fingerprint,
                         updates=config.optim.steps, seconds=round(time.monotonic() - started, 2), scalars=last)


def with_anchored_paths(config: D) -> D:
    """The config with absolute local paths: training processes have another working directory."""
    data = config.data.model_copy(update={"paths": [anchored(path) for path in config.data.paths]})
    corpus = config.real.corpus.model_copy(update={"path": anchored(config.real.corpus.path)})
    return config.model_copy(update={"data": data, "real": config.real.model_copy(update={"corpus": corpus}),
                                     "init": None if config.init is None else anchored(config.init)})


def _pinned(config: DistillConfig, reader: Reader) -> DistillConfig:
    """The config with every Hub dataset at the commit that the reader found: a branch may move before other processes look."""
    paths = [source.store.address for source in reader.sources]
    for path in sorted(set(paths) - set(config.data.paths)):
        say(f"reading {path}")
    return config.model_copy(update={"data": config.data.model_copy(update={"paths": paths})})


def _train(config: DistillConfig, out: Path) -> dict[str, float]:
    """Run the process group to its end. Returns the last scalars that it reported."""
    if config.address == "local" and torch.cuda.is_available() and config.workers > torch.cuda.device_count():
        raise InputError(f"workers: {config.workers} is more than this machine's GPUs ({torch.cuda.device_count()}), "
                         "one for each; lower --workers, or hide the GPUs with CUDA_VISIBLE_DEVICES=-1")
    gpu = bool(gpus_at(config.address))
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
    with interruptible("saving a checkpoint") as interrupted, ticker("distill") as show:
        show.waiting(0, config.optim.steps, "starting the training processes")
        going = True
        while going:
            thread.join(POLL_SECONDS)
            going = thread.is_alive()
            if interrupted:
                desk.stop.remote()
            news = _asked(desk.news.remote(), news, failure)
            if news.step > shown:
                show.update(news.step, config.optim.steps, _line(news.scalars))
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


def _asked(answer: Any, known: News, failure: list[BaseException]) -> News:
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
    return WorkError(f"training failed: {type(error).__name__}: {first_line(error, 300)}; the last checkpoint is kept, "
                     "the same command resumes")


def _loop(settings: dict[str, Any]) -> None:
    """What every training process runs."""
    config, out, desk = DistillConfig.model_validate(settings["config"]), Path(settings["out"]), settings["desk"]
    context = get_context()
    torch.set_num_threads(config.optim.threads)
    place = Place(context.get_world_rank(), context.get_world_size(), get_device())

    def report(step: int, scalars: dict[str, float]) -> bool:
        return bool(ray.get(desk.post.remote(step, scalars)))

    try:
        if not train_at(place, config, out, report):
            ray.get(desk.leave.remote(None))
    except (InputError, WorkError) as error:  # no restart mends it
        ray.get(desk.leave.remote(error))
