"""How a training in this process shows its progress: a line of loss and learning rate, say."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tsdfm.jobs.shell.console import Stages
from tsdfm.jobs.shell.interrupts import Interrupted, interruptible, resume_command
from tsdfm.jobs.shell.trackers import Log
from tsdfm.schemas.optim import HELD_OUT_AUC, OptimConfig
from tsdfm.schemas.progress import Progress

if TYPE_CHECKING:
    from tsdfm.pipeline.training.loop.trainer import Report


def told(scalars: Mapping[str, float]) -> str:
    """How a training goes, in a few words: its loss and, of a compass that separates, the held-out AUC."""
    loss = f"loss {scalars['loss']:.4f}"
    return f"{loss}  AUC {scalars[HELD_OUT_AUC]:.2f}" if HELD_OUT_AUC in scalars else loss


def rated(scalars: Mapping[str, float]) -> str:
    """The words of `told`, and the learning rate."""
    return f"{told(scalars)}  lr {scalars['lr']:.1e}"


@contextmanager
def training_progress(
    label: str, optim: OptimConfig, track: Log, line: Callable[[Mapping[str, float]], str] = rated
) -> Iterator[tuple["Report", Callable[[], bool], Progress]]:
    """A `Report` that shows each line and hands it to `track`, whether the user interrupted, and the progress of what goes
    before the training.

    `line` makes a line's words from scalars. The progress of what goes before raises Interrupted where the user did: before
    the first update there is no checkpoint to save.
    """
    with interruptible("saving a checkpoint") as interrupted, Stages() as stages:
        def report(step: int, scalars: dict[str, float]) -> None:
            track(step, scalars)
            stages(label, step, optim.steps, line(scalars))

        def preparing(stage: str, done: int, total: int, note: str = "") -> None:
            if interrupted:
                raise Interrupted(f"stopped before the training ({stage}); what is finished is kept; resume with: "
                                  f"{shlex.join(resume_command())}")
            stages(stage, done, total, note)

        yield report, lambda: bool(interrupted), preparing


def stopped(state: Path) -> Interrupted:
    """What a training that was stopped says."""
    return Interrupted(f"stopped; the last checkpoint is in {state}; resume with: {shlex.join(resume_command())}")
