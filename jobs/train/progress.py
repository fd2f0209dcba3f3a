"""How a training shows its progress: a line of loss and learning rate."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tsdfm.jobs.shell.console import ticker
from tsdfm.jobs.shell.interrupts import Interrupted, interruptible, resume_command
from tsdfm.schemas.optim import OptimConfig

if TYPE_CHECKING:
    from tsdfm.pipeline.training.trainer import Report


@contextmanager
def training_progress(label: str, optim: OptimConfig) -> Iterator[tuple["Report", Callable[[], bool]]]:
    """A `Report` that shows each line, and whether the user interrupted."""
    with interruptible("saving a checkpoint") as interrupted, ticker(label) as show:
        def report(step: int, scalars: dict[str, float]) -> None:
            show.update(step, optim.steps, f"loss {scalars['loss']:.4f}  lr {scalars['lr']:.1e}")
        yield report, lambda: bool(interrupted)


def stopped(state: Path) -> Interrupted:
    """What a training that was stopped says."""
    return Interrupted(f"stopped; the last checkpoint is in {state}; resume with: {shlex.join(resume_command())}")
