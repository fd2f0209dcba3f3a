"""A compass that asks two language models: how likely is a text as text, and how likely as the teacher's? For `compasses.py --contrast`.

Its energy is the negative log-likelihood under an `ar` compass, less that under the compass's copy which was fitted further, to
blind texts of the teacher: an estimate of -log p_data(x) / p_teacher(x), nats per token, by two generative models, where `nce`
is one by a classifier. What both models find likely, dull text above all, so counts for nothing.

    python tests/benchmarks/contrast.py --out DATASET [--trajectories N] [--work DIR]

makes a dataset shaped by it, both arms, from which `tsdfm-pipeline distill` shows what a student learns of such a choice.
"""

import argparse
import copy
import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import say
from safetensors.torch import load_file, save
from torch import Tensor

from tsdfm.pipeline.flow.compass import CausalCompass
from tsdfm.pipeline.flow.generate import generate_dataset
from tsdfm.pipeline.flow.opening import open_compass
from tsdfm.pipeline.flow.rollout import roll_out
from tsdfm.pipeline.models.causal import CausalLM
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import EMBEDDED, ModelFolder, load_model
from tsdfm.pipeline.storage.atomic import write_atomic
from tsdfm.pipeline.training.loop.trainer import seeded
from tsdfm.schemas.generate import GenerateConfig, RolloutConfig, ShapingConfig

TEXTS, HELD_OUT, FIRST = 4096, 256, 1_000_000  # blind texts that the copy is fitted to; FIRST: none of those that it will choose
UPDATES, BATCH, LR, WARMUP = 400, 64, 5e-4, 20


class Contrast:
    """The difference of two language models' energies, through the protocol by which anybody's compass is taken."""

    needs_completion, proposal_weight = True, 0.0

    def __init__(self, text: CausalLM, teachers: CausalLM, fingerprint: str) -> None:
        self.parts, self.fingerprint = (CausalCompass(text), CausalCompass(teachers)), fingerprint

    def energy(self, states: Tensor, t: Tensor, completion: Tensor | None) -> Tensor:
        """See `Compass.energy`."""
        text, teachers = (part.energy(states, t, completion) for part in self.parts)
        return text - teachers


def contrast_of(teacher: ModelFolder[Denoiser], ar: str, work: Path) -> Contrast:
    """The contrast of an `ar` compass, by its name, with its copy, which is fitted now if it is not kept in `work`."""
    opened, facts = open_compass(ar, teacher, teacher.network.config.length, torch.device("cpu"))
    assert isinstance(opened, CausalCompass)
    assert facts is not None
    file = work / f"contrast-{teacher.fingerprint[:12]}-{facts.fingerprint[:12]}.safetensors"
    if not file.is_file():
        work.mkdir(parents=True, exist_ok=True)
        texts = blind_texts(teacher.network)
        with seeded(0):
            made = fitted(opened.network, texts)
        write_atomic(file, save(made.state_dict()))
    teachers = copy.deepcopy(opened.network)
    teachers.load_state_dict(load_file(file))
    return Contrast(opened.network, teachers, hashlib.sha256(facts.fingerprint.encode() + file.read_bytes()).hexdigest())


def blind_texts(teacher: Denoiser) -> Tensor:
    """Blind texts of a teacher in 8 steps on spaced clocks, at temperature 1: [TEXTS, L] int64."""
    rollout, tokens = RolloutConfig(steps=8, clocks="spaced"), list[Tensor]()
    for start in range(FIRST, FIRST + TEXTS, BATCH):
        logs = roll_out(teacher, None, rollout, ShapingConfig(candidates=1), range(start, start + BATCH), "blind")
        tokens += [torch.as_tensor(log.tokens).long() for log in logs]
    say(f"{len(tokens):,} blind texts")
    return torch.stack(tokens)


def fitted(model: CausalLM, texts: Tensor) -> CausalLM:
    """A copy of a model, fitted further to texts [R, L]. Says its held-out nats per token, before and after."""
    made = copy.deepcopy(model).train().requires_grad_(True)
    held, learnt = texts[:HELD_OUT], texts[HELD_OUT:]
    optimiser = torch.optim.AdamW(made.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.05)
    say(f"held out, of the teacher's texts: {_nats(made, held):.3f} nats per token")
    for update in range(UPDATES):
        for group in optimiser.param_groups:
            group["lr"] = LR * min(1.0, (update + 1) / WARMUP) * (1 - 0.9 * update / UPDATES)
        rows = learnt[torch.randint(len(learnt), (BATCH,))]
        optimiser.zero_grad()
        F.cross_entropy(made(rows).flatten(0, 1), rows.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimiser.step()
    say(f"after {UPDATES} updates: {_nats(made, held):.3f}")
    return made.eval().requires_grad_(False)


@torch.no_grad()
def _nats(model: CausalLM, texts: Tensor) -> float:
    model.eval()
    found = float(F.cross_entropy(model(texts).flatten(0, 1), texts.flatten()))
    model.train()
    return found


def main() -> None:
    """Make a dataset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="folder of the dataset")
    parser.add_argument("--trajectories", type=int, default=2048, help="of each arm")
    parser.add_argument("--tau", type=float, default=0.25, help="time from which the compass chooses")
    parser.add_argument("--work", type=Path, default=Path("out/benchmark-compasses"), help="where the fitted copy is kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    compass = contrast_of(load_model(EMBEDDED), EMBEDDED, options.work)
    config = GenerateConfig.model_validate({
        "out": options.out, "trajectories": options.trajectories, "arm": "both", "shaping": {"tau": options.tau},
        "rollout": {"steps": 8, "clocks": "spaced", "temperature": 0.9, "logprobs": True}})
    say(generate_dataset(config, compass=compass).model_dump_json())


if __name__ == "__main__":
    main()
