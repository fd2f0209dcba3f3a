"""The plan of a training: of `pretrain`, `fit-compass` and `distill`, by short trainings with the same loop, somewhere else."""

import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tsdfm.jobs.plan.plan import Forecast, Measurement
from tsdfm.jobs.plan.rates import this_machine
from tsdfm.jobs.shell.console import ticker
from tsdfm.jobs.shell.interrupts import Interrupted
from tsdfm.pipeline.models.folder import refuse_others, state_folder
from tsdfm.pipeline.storage.store import explained
from tsdfm.pipeline.training.loop.checkpoint import refuse_other, updates_in
from tsdfm.pipeline.training.loop.data_parallel import Place
from tsdfm.pipeline.training.loop.trainer import CHECKPOINT_SECONDS, Report, Watch
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.optim import OptimConfig
from tsdfm.schemas.plan import Machine, Rates, Stage
from tsdfm.schemas.regular import read_regular
from tsdfm.schemas.train import CompassConfig, TextTraining

UPDATES = 21  # that are made to measure one
WARM = 3  # of them at the beginning are no measure: memory is taken, blocks are compiled
LEAST, LONG_SECONDS = 6, 60.0  # where updates take long: so many are enough, once so much time has passed
TIMES = "times.json"
COPIES = 4  # of the weights in a training state: they, their average, and two moments
TrainingConfig = DistillConfig | TextTraining


@dataclass(frozen=True)
class TrainingJob:
    """A training to be planned: see `jobs.plan.plan.Job`.

    Args:
        command: its name.
        loop: what every process of it runs.
        config: with absolute paths.
        folder: of the model.
        done: updates that were made before, and are kept.
        length: tokens of a text, if that is known.
        shape: of what is trained, and of what it is trained on, as far as that moves the time; JSON.
        started: seconds from the start of the process until all was checked.
    """

    command: str
    loop: Any
    config: TrainingConfig
    folder: Path
    done: int
    length: int
    shape: Mapping[str, Any]
    started: float

    @property
    def out(self) -> str | None:
        """The folder of the model."""
        return str(self.folder)

    @property
    def address(self) -> str:
        """Where it runs."""
        return self.config.address

    def measured_for(self) -> Mapping[str, Any]:
        """What an update's time depends on; not how many there are, nor rates, seeds and the like."""
        config = self.config
        return {"shape": dict(self.shape), "batch_size": config.optim.batch_size, "threads": config.optim.threads,
                "micro_batches": config.micro_batches, "workers": config.workers, "compile": config.compile,
                "recompute": config.recompute, "length": self.length}

    def measure(self) -> Measurement:
        """Train a model of few updates, from the corpus to the last figures.

        Numbers: `start` of the command and of its processes, `once` all that happens once whatever the updates, `update` one of
        them, `save` a checkpoint, in seconds; bytes of `model` and `state`; `whole`: 1 if the last figures were measured, too.
        """
        with _scratch(self.folder, self.config.address) as scratch:
            began = time.monotonic()
            try:
                self._trained(scratch)
            except Interrupted:
                raise Interrupted("stopped; nothing was changed") from None
            whole = time.monotonic() - began
            times, machine = _read(scratch)
            model, state = _bytes(scratch / "model"), _bytes(state_folder(scratch / "model"))
        start = self.started + max(0.0, whole - times.pop("inside"))
        sizes = {"model": model or state / COPIES, "state": state}
        return Measurement(machine, self.config.workers, {**times, **sizes, "start": start})

    def timed_here(self, scratch: Path) -> dict[str, float]:
        """The seconds of a training of few updates in this process, as `timed` tells them."""
        torch.set_num_threads(self.config.optim.threads)
        timed(Place.alone(), self.config, scratch / "model", _unheard, watch=Watch(), loop=self.loop)
        return _read(scratch)[0]

    def _trained(self, scratch: Path) -> None:
        if self.config.alone:
            with ticker("measuring") as show:
                show.waiting(0, UPDATES, "a training of few updates")
                self.timed_here(scratch)
            return
        from tsdfm.jobs.crew.training.group import Group

        Group("measuring", partial(timed, loop=self.loop), self.config, scratch / "model").run(lambda scalars: "")

    def forecast(self, rates: Rates) -> Forecast:
        """The updates that are left, and how long they take."""
        optim, n, left = self.config.optim, rates.numbers, self.config.optim.steps - self.done
        updates = left * n["update"]
        saves = (optim.steps - 1) // optim.checkpoint_every - self.done // optim.checkpoint_every
        saves = max(saves, int(updates / CHECKPOINT_SECONDS))
        texts = left * optim.batch_size * self._texts_a_row
        return Forecast(
            makes={"updates": optim.steps, "bytes of the model": round(n["model"]),
                   "bytes of its training state": round(n["state"])},
            there={"updates": self.done} if self.done else {},
            work={"updates": left, "passes forward and backward": texts, "tokens": texts * self.length},
            stages=[Stage(what="start, and its processes", seconds=n["start"]),
                    Stage(what="reading text or data, last figures", seconds=n["once"]),
                    Stage(what="updates", seconds=updates),
                    Stage(what="checkpoints", seconds=max(0, saves) * n["save"])],
            devices=self.config.workers, remarks=[] if n["whole"] else [
                "updates take long, so the figures that are taken after the last were not measured: they come on top"])

    @property
    def _texts_a_row(self) -> int:
        """Texts that the network sees for each row of a batch."""
        config = self.config
        if isinstance(config, CompassConfig):
            return 2 + config.hard_negatives if config.kind == "nce" else 1
        return 2 if isinstance(config, DistillConfig) and config.real.weight else 1


def timed(place: Place, config: Any, out: Path, report: Report, *, watch: Watch, loop: Any) -> bool:
    """Time a training of few updates; the first process writes the times beside `out`. Every process runs it for `loop`."""
    optim: OptimConfig = config.optim
    updates = min(UPDATES, optim.steps)
    short = optim.model_copy(update={"steps": updates, "checkpoint_every": max(1, updates // 2)})
    began, marks = time.monotonic(), list[float]()

    def enough() -> bool:
        marks.append(time.monotonic())
        return LEAST <= len(marks) < updates and marks[-1] - marks[0] > LONG_SECONDS

    whole = loop(place, config.model_copy(update={"optim": short}), out, _unheard, watch=Watch(stop=enough))
    if place.rank == 0:
        times = {**told(marks, short.checkpoint_every), "whole": float(whole), "inside": time.monotonic() - began}
        first, last = marks[0] - began - times["update"], time.monotonic() - marks[-1] if whole else 0.0
        result = {"times": {**times, "once": max(0.0, first) + last}, "machine": this_machine().model_dump()}
        (out.parent / TIMES).write_text(json.dumps(result))
    return True


def _read(scratch: Path) -> tuple[dict[str, float], Machine]:
    """What `timed` wrote: seconds by name, and where the first process ran."""
    found = json.loads(read_regular(scratch / TIMES))
    return found["times"], Machine.model_validate(found["machine"])


def told(marks: Sequence[float], checkpoint_every: int) -> dict[str, float]:
    """Seconds of an update and of a checkpoint, by the times at which updates ended; the checkpoint falls into the next one."""
    gaps = {number: after - before for number, (before, after) in enumerate(itertools.pairwise(marks), 1)}
    plain = [gap for number, gap in gaps.items() if number % checkpoint_every]
    measured = plain[WARM - 1:] or plain or [0.0]
    update = sum(measured) / len(measured)
    return {"update": update, "save": max(0.0, gaps.get(checkpoint_every, update) - update)}


def _unheard(step: int, scalars: dict[str, float]) -> bool:
    return False


@contextmanager
def _scratch(out: Path, address: str) -> Iterator[Path]:
    """A folder for the measurement that all processes share: of this machine, or of a cluster beside OUT."""
    beside = None if address == "local" else out.absolute().parent
    with explained("write there", str(out)):
        folder = tempfile.TemporaryDirectory(prefix=".tsdfm-plan-", dir=beside)
    with folder as name:
        yield Path(name)


def _bytes(folder: Path) -> float:
    return float(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))


def updates_done(out: Path, settings: Mapping[str, Any]) -> int:
    """The updates that a training into `out` has made, by its last checkpoint. Raises InputError where it is of other settings.

    `settings`: what must not change between a run and its resumption, as JSON, as far as it is known before the text is read.
    """
    refuse_others(out)
    refuse_other(state_folder(out), settings)
    return updates_in(state_folder(out))
