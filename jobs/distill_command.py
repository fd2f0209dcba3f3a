"""The flags of `tsdfm-pipeline distill`."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from tsdfm.jobs.console import emit, people
from tsdfm.schemas.base import InputError

_FIELDS = {
    "data": "data.paths", "weight": "data.weights", "arm": "data.arm", "trajectories": "data.trajectories",
    "best": "data.best", "energy_beta": "data.energy_beta", "loader_workers": "data.loader_workers",
    "real_weight": "real.weight", "corpus": "real.corpus.path",
    "updates": "optim.steps", "batch_size": "optim.batch_size", "lr": "optim.lr", "ema": "optim.ema", "seed": "optim.seed",
    "threads": "optim.threads",
}


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--data", multiple=True, help="Dataset: a folder, a URI, or hf://datasets/USER/NAME@REVISION. Repeat to mix.")
@click.option("--weight", multiple=True, type=float, help="Share of each dataset.  [by their sizes]")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the student.")
@click.option("--init", help="'embedded', or the folder of the weights to start from.  [the dataset's teacher]")
@click.option("--init-blocks", type=int, help="Start from so many of their blocks only: a smaller student.  [all]")
@click.option("--arm", type=click.Choice(["shaped", "blind"]), help="[shaped]")
@click.option("--trajectories", type=int, help="Only trajectory ids below this.  [all]")
@click.option("--best", type=float, help="Only this fraction of them, those of the lowest final energy.  [all]")
@click.option("--energy-beta", type=float, help="Weigh each by exp(-this times its final energy).  [0]")
@click.option("--objective", type=click.Choice(["event", "candidates", "endpoint", "forward_kl", "reverse_kl"]), help="[event]")
@click.option("--beta", type=float, help="Inverse temperature of 'candidates'.  [64]")
@click.option("--budgets", help="Step budgets, e.g. 1,2,4,8 or 8:2,16:1 with weights.  [1,2,4,...,64]")
@click.option("--real-weight", type=float, help="Weight of a denoising loss on real text.  [0]")
@click.option("--corpus", help="That text: 'python', a file, a folder, or hub:NAME[:SPLIT].")
@click.option("--updates", type=int, help="Number of updates.  [2000]")
@click.option("--batch-size", type=int, help="Trajectories per update, over all workers.  [32]")
@click.option("--micro-batches", type=int, help="Parts that a batch is computed in.  [1]")
@click.option("--lr", type=float, help="Peak learning rate.  [0.0005]")
@click.option("--ema", type=float, help="Decay of the averaged weights.  [0.99]")
@click.option("--seed", type=int, help="Seed of the order, the windows and the new weights.  [0]")
@click.option("--threads", type=int, help="CPU threads of a worker.  [1]")
@click.option("--loader-workers", type=int, help="Processes that build batches ahead.  [0]")
@click.option("--workers", type=int, help="Data-parallel processes.  [1]")
@click.option("--address", help="'local', 'auto', 'host:port' or 'ray://host:port'.  [local]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def distill_command(config: Path | None, out: Path, as_json: bool, **flags: Any) -> None:
    """Train a few-step student from frozen datasets; run again to resume."""
    from tsdfm.jobs.distill import distill
    from tsdfm.jobs.options import build
    from tsdfm.schemas.distill import DistillConfig

    flags["budgets"] = None if flags["budgets"] is None else _budgets(flags["budgets"])
    for name in ("data", "weight"):
        flags[name] = list(flags[name]) or None
    settings = build(DistillConfig, config, {_FIELDS.get(name, name): value for name, value in flags.items()})
    with redirect_stdout(sys.stderr):  # Ray prints some warnings to standard output, which is for JSON alone
        report = distill(settings, out)
    people.print(f"{out}: a student of {report['updates']} updates, {report['seconds']} s; "
                 f"tsdfm-pipeline sample --model {out} --steps 8", markup=False)
    if as_json:
        emit(report)


def _budgets(text: str) -> dict[int, float]:
    """'1,2,8:0.5' -> {1: 1.0, 2: 1.0, 8: 0.5}."""
    try:
        pairs = [(int(n), float(weight or 1)) for n, _, weight in (part.partition(":") for part in text.split(","))]
    except ValueError:
        raise InputError(f"--budgets {text}: not a list of step counts; write 1,2,4,8 or, with weights, 4:1,8:2") from None
    budgets = dict(pairs)
    if len(budgets) < len(pairs):
        raise InputError(f"--budgets {text}: a step count stands there twice; give each once")
    return budgets
