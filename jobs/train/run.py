"""Run a training on text: in this process, or in several that Ray starts."""

from pathlib import Path
from typing import Any, TypeVar

import torch

from tsdfm.jobs.crew.names import anchored
from tsdfm.jobs.crew.training.progress import stopped, told, training_progress
from tsdfm.jobs.shell.console import FINISHED, say, say_corpus, say_left_out
from tsdfm.jobs.shell.trackers import check_tracker, tracked, untracked
from tsdfm.pipeline.models.folder import TRAINING_FILE, check_target, state_folder
from tsdfm.pipeline.training.fit_compass import check
from tsdfm.pipeline.training.loop.data_parallel import Place
from tsdfm.pipeline.training.loop.trainer import Watch
from tsdfm.pipeline.training.text_trainer import corpus_of
from tsdfm.schemas.base import parse_json
from tsdfm.schemas.corpus import HUB, NAMED
from tsdfm.schemas.regular import read_regular
from tsdfm.schemas.train import CompassConfig, PretrainConfig, TextTraining
from tsdfm.schemas.training_record import CausalRecord, ContrastRecord, NceRecord, PretrainRecord

NO_FOLDERS = (*NAMED, HUB.rstrip(":"), "embedded")  # of corpora and teachers: what stands before a ':' in their names

C = TypeVar("C", bound=PretrainConfig | CompassConfig)
R = TypeVar("R", PretrainRecord, CausalRecord, NceRecord, ContrastRecord)


def train(label: str, loop: Any, is_made: Any, config: C, out: Path, kind: type[R]) -> R:
    """Train the model of a config into the folder `out`, or go on training it. Returns its record.

    Args:
        label: of the progress.
        loop: `pretrain_at` or `fit_at`.
        is_made: whether a folder holds what the training would end in, of the same module.
        config: what to train. One worker on this machine is this process, without Ray.
        out: folder of the model.
        kind: of the record in the model's training.json.

    Raises InputError (nothing was changed), WorkError (the last checkpoint is kept), or Interrupted.
    """
    check_tracker(config.tracker)
    if isinstance(config, CompassConfig) and _is_here(config):
        check(config)  # refused now, before anything is read or written
    say_corpus(config.corpus, [config.teacher] if isinstance(config, CompassConfig) else ())
    if _finished(label, is_made, config if config.alone else with_anchored_paths(config), out):
        say(f"{out}: {FINISHED}")
    else:
        check_target(out)
        (_here if config.alone else _in_a_group)(label, loop, config, out)
    record = parse_json(kind, read_regular(out / TRAINING_FILE), str(out / TRAINING_FILE))
    if not config.alone:  # else it was told when the corpus had been read
        say_left_out(record.corpus)
    return record


def _finished(label: str, is_made: Any, config: TextTraining, out: Path) -> bool:
    """Whether nothing is left to be done, as far as this machine can tell: of a cluster it may lack the text."""
    if not (out / TRAINING_FILE).is_file() or not _is_here(config):
        return False
    with training_progress(label, config.optim, untracked) as (_, _, progress):
        return bool(is_made(config, out, progress=progress))


def _here(label: str, loop: Any, config: TextTraining, out: Path) -> None:
    torch.set_num_threads(config.optim.threads)
    state = state_folder(out)
    with tracked(config, label, out, state) as track:
        with training_progress(label, config.optim, track) as (report, stop, progress):
            done = loop(Place.alone(), config, out, report, watch=Watch(stop, progress))
        if not done:
            raise stopped(state)


def _in_a_group(label: str, loop: Any, config: TextTraining, out: Path) -> None:
    from tsdfm.jobs.crew.training.group import Group
    from tsdfm.jobs.train.spread import on_ray

    anchored_config = with_anchored_paths(config)
    group = Group(label, loop, anchored_config, out.absolute())
    with group.cluster():
        if _is_here(anchored_config):  # else the processes see to it, the first of each node for all of it
            with training_progress(label, config.optim, untracked) as (_, _, progress):
                corpus_of(anchored_config, progress, on_ray)
        group.run(told)


def with_anchored_paths(config: C) -> C:
    """The config with absolute local paths: training processes have another working directory."""
    from tsdfm.pipeline.storage.hub.models import pinned

    corpus = config.corpus.model_copy(update={"path": anchored(config.corpus.path)})
    changes: dict[str, Any] = {"corpus": corpus}
    if isinstance(config, CompassConfig):
        changes["teacher"] = anchored(pinned(config.teacher))
        if config.start is not None:
            changes["start"] = anchored(pinned(config.start))
    elif config.tokenizer is not None:
        changes["tokenizer"] = anchored(config.tokenizer)
    found: C = config.model_copy(update=changes)  # type: ignore[assignment]  # mypy takes the bound's Self for the union
    return found


def _is_here(config: TextTraining) -> bool:
    """Whether this machine has what the corpus's tokens are made from; nodes of a cluster may have what it has not."""
    made_with = [config.teacher, config.start] if isinstance(config, CompassConfig) else [config.tokenizer]
    files = [name for name in (config.corpus.path, *made_with) if name and name.partition(":")[0] not in NO_FOLDERS]
    return config.address == "local" or all(Path(name).exists() for name in files)
