"""Run `tsdfm-pipeline evaluate`: in this process, or with its rows spread over the nodes of a Ray cluster."""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from tsdfm.jobs.crew.names import anchored
from tsdfm.jobs.shell.console import Stages, say, say_corpus, say_if_slow
from tsdfm.pipeline.evaluation.cells import make_cell
from tsdfm.pipeline.evaluation.figures import short_names
from tsdfm.pipeline.evaluation.run import evaluate
from tsdfm.pipeline.evaluation.samples import Cell, Made
from tsdfm.schemas.evaluate import EvaluateConfig, Results
from tsdfm.schemas.paths import redacted
from tsdfm.schemas.words import count

KEPT, NOT_KEPT = "all kept", "which are lost, for there is no --out to keep them"


def evaluated(config: EvaluateConfig) -> Results:
    """Evaluate with progress shown, in the config's threads. Raises InputError, WorkError or Interrupted."""
    alone = config.address == "local"
    if alone:
        say_if_slow(config.dtype, torch.cuda.is_available())
    threads = config.threads if alone else config.threads or 1
    if threads is not None:
        torch.set_num_threads(threads)
    if config.reads_corpus:
        say_corpus(config.corpus, config.model)
    with Stages() as progress:
        return evaluate(config, progress, redacted(shlex.join(sys.argv)), None if alone else _OnCluster(config))


class _OnCluster:
    """Makes cells on the nodes of a cluster, which this connects to when it is needed."""

    def __init__(self, config: EvaluateConfig) -> None:
        self._config = config

    def make(self, cells: Sequence[Cell], take: Callable[[int, Made], None]) -> None:
        """See `Maker.make`."""
        from tsdfm.jobs.crew.census import census
        from tsdfm.jobs.crew.collect import Told, collect
        from tsdfm.jobs.crew.tasks import Call, Need, Tasks
        from tsdfm.jobs.shell.cluster import cluster, gpus_at

        names, threads = short_names([cell.model for cell in cells]), self._config.threads or 1
        told = Told("sampling and judging texts", "set", lambda index: _name(cells[index], names), unit="sets",
                    stopping="finishing the sets in hand", kept=NOT_KEPT if self._config.out is None else KEPT,
                    cure="lower --batch-size")
        with cluster(self._config.address, None), census(f"finished sets of texts: {told.kept}") as asking:
            need = Need("GPU", 1) if gpus_at(self._config.address) else Need("CPU", threads)
            say_if_slow(self._config.dtype, need.what == "GPU")
            workers = count(min(len(cells), need.places(asking)), f"{need.what} worker")
            say(f"{count(len(cells), 'set')} of texts to make, {workers}")
            call = Call("Evaluator.make", make_on_node, lambda index: (_sent(cells[index]), threads))
            tasks: Tasks[Made] = Tasks(call, need, None, asking)
            collect(tasks, told, range(len(cells)), lambda index, made: take(index, replace(
                made, likelihoods=dict(zip(cells[index].judges, made.likelihoods.values(), strict=True)))))


def _sent(cell: Cell) -> Cell:
    """A cell as a worker needs it, who may stand in another directory: with absolute local paths."""
    return replace(cell, model=anchored(cell.model), judges={anchored(name): found for name, found in cell.judges.items()})


def _name(cell: Cell, names: dict[str, str]) -> str:
    return f"{names[cell.model]}, n = {cell.steps}, T = {cell.temperature:g}"


def make_on_node(cell: Cell, threads: int) -> Made:
    """What a worker runs for a cell."""
    torch.set_num_threads(threads)
    return make_cell(cell)
