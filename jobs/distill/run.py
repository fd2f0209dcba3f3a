"""`tsdfm-pipeline distill`: train a student from frozen shards, in this process or in several that Ray starts."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch

from tsdfm.jobs.crew.names import anchored
from tsdfm.jobs.crew.reading import readers_at
from tsdfm.jobs.crew.training.progress import stopped, training_progress
from tsdfm.jobs.shell.console import FINISHED, say, say_corpus, say_left_out
from tsdfm.jobs.shell.trackers import check_tracker, tracked
from tsdfm.pipeline.loader.batches import Reader
from tsdfm.pipeline.models.folder import check_target, load, state_folder
from tsdfm.pipeline.storage.hub.models import pinned as pinned_model
from tsdfm.pipeline.training.distill import is_made, opened, record_in, train_at
from tsdfm.pipeline.training.held_out.measure import COOLED, SHARE
from tsdfm.pipeline.training.loop.data_parallel import Place
from tsdfm.pipeline.training.loop.trainer import Watch
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.reports import DistillReport
from tsdfm.schemas.words import count

D = TypeVar("D", bound=DistillConfig)


def distill(config: DistillConfig, out: Path) -> DistillReport:
    """Train, or go on training, the student of a config into the folder `out`. Returns the report that `--json` prints.

    One worker on this machine is this process, without Ray.

    Raises InputError (nothing was changed) or WorkError (the last checkpoint is kept, the same command resumes).
    """
    out, config = out.absolute(), with_anchored_paths(config)
    check_tracker(config.tracker)
    reads = config.data.best is not None or config.data.energy_beta  # before the training: energies
    with readers_at(config.address if reads else "local") as mapper:
        start = opened(config, out, mapper)
        config, made = pinned(config, start.reader), is_made(start, out)
        if not made:
            check_target(out)
        say(f"{count(start.reader.rows_per_epoch, 'trajectory')}, {config.objective} objective, "
            f"{count(config.optim.steps, 'update')} of {config.optim.batch_size}, from {start.weights.path}")
        if config.real.weight:
            say_corpus(config.real.corpus, [str(start.weights.path)])
        started, last = time.monotonic(), dict[str, float]()
        if made:
            say(f"{out}: {FINISHED}")
        else:
            start.weights.network.to("meta")  # they have been found fit; a training opens its own
            last = (_here if config.alone else _in_a_group)(config, out)
    record = record_in(out)
    say_left_out(record.corpus)
    return DistillReport(out=str(out), fingerprint=load(out).fingerprint, init=start.weights.fingerprint,
                         updates=record.updates, seconds=round(time.monotonic() - started, 2), scalars=last)


def _here(config: DistillConfig, out: Path) -> dict[str, float]:
    torch.set_num_threads(config.optim.threads)
    state, last = state_folder(out), dict[str, float]()

    def track(step: int, scalars: Mapping[str, float]) -> None:
        last.update(scalars)
        told(step, scalars)

    with tracked(config, "distill", out, state) as told:
        with training_progress("distill", config.optim, track, _line) as (report, stop, progress):
            done = train_at(Place.alone(), config, out, report, watch=Watch(stop, progress))
        if not done:
            raise stopped(state)
    return last


def _in_a_group(config: DistillConfig, out: Path) -> dict[str, float]:
    from tsdfm.jobs.crew.training.group import Group

    return Group("distill", train_at, config, out).run(_line)


def with_anchored_paths(config: D) -> D:
    """The config with absolute local paths: training processes have another working directory."""
    data = config.data.model_copy(update={"paths": [anchored(path) for path in config.data.paths]})
    corpus = config.real.corpus.model_copy(update={"path": anchored(config.real.corpus.path)})
    return config.model_copy(update={"data": data, "real": config.real.model_copy(update={"corpus": corpus}),
                                     "init": None if config.init is None else anchored(pinned_model(config.init))})


def pinned(config: DistillConfig, reader: Reader) -> DistillConfig:
    """The config with every Hub dataset at the commit that the reader found: a branch may move before other processes look."""
    paths = [source.store.address for source in reader.sources]
    for path in sorted(set(paths) - set(config.data.paths)):
        say(f"reading {path}")
    return config.model_copy(update={"data": config.data.model_copy(update={"paths": paths})})


def _line(scalars: Mapping[str, float]) -> str:
    by_budget = {name.removeprefix("loss/"): value for name, value in scalars.items() if name.startswith("loss/")}
    budgets = "  ".join(f"1/{n}: {value:.2f}" for n, value in by_budget.items())
    held_out = f"  held out {scalars['held_out/loss']:.3f}" if "held_out/loss" in scalars else ""
    share = ""
    if SHARE in scalars:
        learnt, cooled = (100 * scalars[name] for name in (SHARE, COOLED))
        share = f"  selection learnt {learnt:.1f} % (a cooler teacher {cooled:.1f} %)"
    return f"loss {scalars['loss']:.3f}  ({budgets}){held_out}{share}"
