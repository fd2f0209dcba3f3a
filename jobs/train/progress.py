"""How a training shows its progress: a line of loss and learning rate."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tsdfm.jobs.shell.console import ticker
from tsdfm.schemas.optim import OptimConfig

if TYPE_CHECKING:
    from tsdfm.pipeline.training.trainer import Report


@contextmanager
def training_progress(label: str, optim: OptimConfig) -> Iterator["Report"]:
    """A `Report` that shows each line."""
    with ticker(label) as show:
        def report(step: int, scalars: dict[str, float]) -> None:
            show.update(step, optim.steps, f"loss {scalars['loss']:.4f}  lr {scalars['lr']:.1e}")
        yield report
