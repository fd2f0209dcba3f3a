"""Several trainings at the same time, each in a process of its own, as many as there is room for.

Where `group` divides the batches of one training among processes, here every training is whole, and stays so: it
takes the updates that it takes alone.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from tsdfm.jobs.crew.census import census
from tsdfm.jobs.crew.collect import Told, collect
from tsdfm.jobs.crew.tasks import Call, Need, Tasks
from tsdfm.jobs.crew.training.desk import Desk
from tsdfm.jobs.crew.training.group import Loop, TrainingConfig, Wish
from tsdfm.jobs.shell.cluster import gpus_at
from tsdfm.jobs.shell.console import say
from tsdfm.pipeline.training.loop.data_parallel import Place
from tsdfm.pipeline.training.loop.trainer import Watch
from tsdfm.schemas.optim import HELD_OUT_LOSS

NEWS_SECONDS = 15.0  # between two lines that say how far they are
KEPT = "the last checkpoints are kept"


@dataclass(frozen=True)
class Training:
    """A model to be made: what people call it, its config with absolute paths, and its folder, an absolute path."""

    name: str
    config: TrainingConfig
    out: Path


def train_all(trainings: Sequence[Training], loop: Loop) -> None:
    """Run `loop` for every training, on the Ray cluster that this process is connected to.

    Raises WorkError, which names the node, of the first that fails, or Interrupted. The last checkpoints are kept.
    """
    if not trainings:
        return
    with census(KEPT) as asking:
        desks = [ray.remote(Desk).options(num_cpus=0, max_concurrency=8).remote() for _ in trainings]
        need = Need("GPU", 1) if gpus_at("auto") else Need("CPU", max(each.config.optim.threads for each in trainings))
        told = Told("training", "model", lambda index: trainings[index].name, stopping="saving checkpoints",
                    stop=lambda: _stop(desks), kept=KEPT)
        call = Call("Training.run", _train, lambda index: (loop, trainings[index], desks[index]))
        tasks: Tasks[bool] = Tasks(call, need, None, asking)
        collect(tasks, told, range(len(trainings)), lambda index, done: None, _News(trainings, desks))


def _stop(desks: Sequence[Any]) -> None:
    for desk in desks:
        desk.stop.remote()


def _train(loop: Loop, training: Training, desk: Any) -> bool | None:
    """What a worker runs. Returns None if it was asked to stop before the end."""
    torch.set_num_threads(training.config.optim.threads)

    def report(step: int, scalars: dict[str, float]) -> bool:
        return bool(ray.get(desk.post.remote(step, scalars)))

    place = Place(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return loop(place, training.config, training.out, report, watch=Watch(stop=Wish(desk))) or None


class _News:
    """Says now and then in a line how far all trainings are. Called again and again, it waits for no answer."""

    def __init__(self, trainings: Sequence[Training], desks: Sequence[Any]) -> None:
        self._trainings, self._desks = trainings, desks
        self._asked, self._said, self._at = list[Any](), "", time.monotonic()

    def __call__(self) -> None:
        if self._asked:
            ready, _ = ray.wait(self._asked, num_returns=len(self._asked), timeout=0)
            if len(ready) == len(self._asked):
                asked, self._asked = self._asked, []
                with suppress(RayError):  # a desk is lost: the training goes on, or fails for itself
                    self._say(ray.get(asked))
        elif time.monotonic() - self._at >= NEWS_SECONDS:
            self._asked, self._at = [desk.news.remote() for desk in self._desks], time.monotonic()

    def _say(self, news: Sequence[Any]) -> None:
        line = "; ".join(_far(training, each.step, each.scalars)
                         for training, each in zip(self._trainings, news, strict=True) if each.step)
        if line and line != self._said:
            say(line)
            self._said = line


def _far(training: Training, step: int, scalars: dict[str, float]) -> str:
    """How far one training is: 'blind: update 40 of 400, loss 3.301, held out 3.412'."""
    held_out = f", held out {scalars[HELD_OUT_LOSS]:.3f}" if HELD_OUT_LOSS in scalars else ""
    return f"{training.name}: update {step} of {training.config.optim.steps}, loss {scalars['loss']:.3f}{held_out}"
