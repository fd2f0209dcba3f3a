"""Run a training on text: in this process, or in several that Ray starts."""

from pathlib import Path
from typing import Any, TypeVar

import torch

from tsdfm.jobs.shell.console import say_corpus, say_left_out
from tsdfm.jobs.train.progress import stopped, training_progress
from tsdfm.pipeline.models.folder import TRAINING_FILE, check_target, state_folder
from tsdfm.pipeline.training.data_parallel import Place
from tsdfm.pipeline.training.trainer import Watch
from tsdfm.schemas.base import parse_json
from tsdfm.schemas.regular import read_regular
from tsdfm.schemas.train import CompassConfig, TextTraining
from tsdfm.schemas.training_record import CausalRecord, NceRecord, PretrainRecord

R = TypeVar("R", PretrainRecord, CausalRecord, NceRecord)


def train(label: str, loop: Any, config: TextTraining, out: Path, kind: type[R]) -> R:
    """Train the model of a config into the folder `out`, or go on training it. Returns its record.

    Args:
        label: of the progress.
        loop: `pretrain_at` or `fit_at`.
        config: what to train. One worker on this machine is this process, without Ray.
        out: folder of the model.
        kind: of the record in the model's training.json.

    Raises InputError (nothing was changed), WorkError (the last checkpoint is kept), or Interrupted.
    """
    check_target(out)
    say_corpus(config.corpus)
    alone = config.workers == 1 and config.address == "local"
    (_here if alone else _in_a_group)(label, loop, config, out)
    record = parse_json(kind, read_regular(out / TRAINING_FILE), str(out / TRAINING_FILE))
    if not alone:  # else it was told when the corpus had been read
        say_left_out(record.corpus)
    return record


def _here(label: str, loop: Any, config: TextTraining, out: Path) -> None:
    torch.set_num_threads(config.optim.threads)
    with training_progress(label, config.optim) as (report, stop, progress):
        done = loop(Place.alone(), config, out, report, watch=Watch(stop, progress))
    if not done:
        raise stopped(state_folder(out))


def _in_a_group(label: str, loop: Any, config: TextTraining, out: Path) -> None:
    from tsdfm.jobs.crew.training_group import Group
    from tsdfm.jobs.shell.cluster import anchored

    corpus = config.corpus.model_copy(update={"path": anchored(config.corpus.path)})
    changes: dict[str, Any] = {"corpus": corpus}
    if isinstance(config, CompassConfig):
        changes["teacher"] = anchored(config.teacher)
    elif config.tokenizer is not None:
        changes["tokenizer"] = anchored(config.tokenizer)
    Group(label, loop, config.model_copy(update=changes), out.absolute()).run(lambda scalars: f"loss {scalars['loss']:.4f}")
