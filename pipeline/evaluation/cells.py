"""Models under evaluation, and the cells of its table: a model's texts at a step count and temperature, with their scores.

A cell may be made anywhere the model and its judges can be opened; `Maker` says who makes cells that this process doesn't.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch

from tsdfm.pipeline.evaluation.judge import Judge
from tsdfm.pipeline.evaluation.measures.corpus_texts import extent_of
from tsdfm.pipeline.evaluation.open_judge import open_judge
from tsdfm.pipeline.evaluation.samples import Cell, Made, likelihood, sample_texts
from tsdfm.pipeline.flow.rings.clocks import clocks_of
from tsdfm.pipeline.models.computing import prepare
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import ModelFolder, load_model
from tsdfm.schemas.base import WorkError
from tsdfm.schemas.evaluate import EvaluateConfig
from tsdfm.schemas.generate import RolloutConfig


@dataclass(frozen=True)
class Subject:
    """A model under evaluation, as it was named."""

    name: str
    opened: ModelFolder[Denoiser]


class Maker(Protocol):
    """Who makes cells elsewhere, with `make_cell`."""

    def make(self, cells: Sequence[Cell], take: Callable[[int, Made], None]) -> None:
        """Make the cells, in any order, and give each to `take` by its index. Raises WorkError, or what an interrupt is."""


def make_cell(cell: Cell) -> Made:
    """Sample the texts of a cell and judge them; its model and judges stay open for the next.

    Raises InputError (no such model or judge here) or WorkError (they are not the ones that were asked for).
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    subject, judges = _opened(cell.model, tuple(cell.judges), cell.config, device)
    for what, found, wanted in [("model", subject.opened.fingerprint, cell.fingerprint),
                                *((name, judges[name].fingerprint, wanted) for name, wanted in cell.judges.items())]:
        if found != wanted:
            raise WorkError(f"{cell.model if what == 'model' else what}: differs from the one that was asked for; give every "
                            "node the same files")
    opened, config = subject.opened, cell.config
    samples = cell.samples or sample_texts(opened.network, opened.vocabulary, rollout_of(config, cell.steps, cell.temperature),
                                           config.samples, extent=extent_of(config, opened))
    return Made(samples, {name: likelihood(samples, judge) for name, judge in judges.items()}, device_name(device))


@lru_cache(maxsize=1)
def _opened(model: str, judges: tuple[str, ...], config: EvaluateConfig, device: torch.device
            ) -> tuple[Subject, dict[str, Judge]]:
    subject = open_subject(model, config, device)
    return subject, {name: open_judge(name, device, [subject.opened.vocabulary]) for name in judges}


def rollout_of(config: EvaluateConfig, steps: int, temperature: float) -> RolloutConfig:
    """How the texts of a row are sampled."""
    return RolloutConfig(steps=steps, length=config.length, temperature=temperature, seed=config.seed,
                         batch_size=config.batch_size, dtype=config.dtype, compile=config.compile, clocks=config.clocks)


def open_subject(name: str, config: EvaluateConfig, device: torch.device) -> Subject:
    """A model by its name, ready to write on a device.

    Raises InputError: no such model, an overlap that leaves nothing to write, or clocks that it can't have.
    """
    opened = load_model(name)
    extent_of(config, opened)
    clocks_of(RolloutConfig(clocks=config.clocks), opened.network.config)
    prepare(opened.network, config.dtype, config.compile)
    opened.network.to(device)
    return Subject(name, opened)


def device_name(device: torch.device) -> str:
    """How results call a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
