"""A student by the predecessor's online scheme: `python tests/benchmarks/claims_online.py --source S --seconds T --out FOLDER`.

FS-DFM (arXiv 2509.20624) makes its targets anew for every update: a frozen teacher, and four stages of the averaged student.
The scheme is that of `distill.py`, here on the corpus and from the embedded teacher, for T seconds of this process's CPU time,
as long as the other route took; by default step budgets 1 to 64, as published. A folder that is there is left alone.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import torch
from distill import BUDGETS, MANY, Drawn, Networks, online_loss, share_average

from tsdfm.pipeline.flow.mixture_path import MixturePath, stratified_times
from tsdfm.pipeline.models.folder import embedded, load_denoiser, save
from tsdfm.pipeline.models.student import student_of
from tsdfm.pipeline.text.corpus import training_stream
from tsdfm.pipeline.training.loop.trainer import Trainer, whole
from tsdfm.pipeline.training.text_trainer import TokenWindows
from tsdfm.schemas.corpus import CorpusConfig
from tsdfm.schemas.distill import DistillOptim


def train(source: str, seconds: float, optim: DistillOptim, out: Path) -> int:
    """Train and save a student; the number of its updates."""
    opened = load_denoiser(embedded(f"teacher-{source}"))
    teacher = opened.network.eval().requires_grad_(False)
    networks = Networks(teacher, student_of(teacher), student_of(teacher).eval().requires_grad_(False))
    networks.student.train().requires_grad_(True)
    trainer = Trainer(networks.student, optim, out, {}, writes=False)
    share_average(networks.ema, trainer)
    windows = TokenWindows(training_stream(CorpusConfig(), opened.vocabulary), teacher.config.length, optim.batch_size, optim.seed)
    path, began = networks.path, time.process_time()
    torch.manual_seed(optim.seed)
    while time.process_time() - began < seconds:
        batch = drawn(windows.batch(trainer.step), path, trainer.step)
        trainer.update(whole(partial(loss_of, networks, batch)))
        if trainer.step % 50 == 0:
            print(f"{trainer.step} updates, {time.process_time() - began:.0f} of {seconds:.0f} s", flush=True)
    save(out, networks.ema, opened.vocabulary, None)
    return trainer.step


def loss_of(networks: Networks, batch: Drawn, step: int, generator: torch.Generator) -> torch.Tensor:
    """The loss of an update, whose batch is drawn already."""
    return online_loss(networks, batch)


def drawn(x_1: torch.Tensor, path: MixturePath, step: int) -> Drawn:
    """Texts on the path, at the times and steps of the budgets."""
    generator = torch.Generator().manual_seed(step)
    budgets, chances = torch.tensor([float(n) for n in BUDGETS]), torch.tensor(list(BUDGETS.values()))
    n = budgets[torch.multinomial(chances, len(x_1), replacement=True, generator=generator)]
    t = torch.floor(stratified_times(len(x_1), generator) * n) / n
    return Drawn(x_1, path.sample(x_1, t, generator), t, 1 / n)


def main() -> None:
    """Train, unless it is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", choices=["mask", "uniform"], default="mask")
    parser.add_argument("--seconds", type=float, default=600.0, help="CPU time of this process  [600]")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    note = arguments.out.with_name(arguments.out.name + ".updates.json")
    if not (note.exists() and arguments.out.exists()):
        optim = DistillOptim(steps=MANY, batch_size=arguments.batch_size, lr=arguments.lr, seed=0)
        updates = train(arguments.source, arguments.seconds, optim, arguments.out)
        note.write_text(json.dumps({"updates": updates, "seconds": arguments.seconds}) + "\n")
    print(note.read_text().strip())


if __name__ == "__main__":
    main()
