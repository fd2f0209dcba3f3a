"""Wall clock of sampling in 8 steps against 1,024, every step a forward pass of every text, and as our sampler does it.

A sampler that computes every step, as other implementations do, costs n forward passes for n steps. Ours visits a text only
where one of its clocks rings, which is exact and costs at most L passes for the mask source: the teacher gains much, the
student nothing. Both are given, and never mixed.
"""

import time
from pathlib import Path

import torch

from tsdfm.pipeline.flow.mixture_path import MixturePath
from tsdfm.pipeline.flow.noise import Noise
from tsdfm.pipeline.flow.rings.clocks import draw_rings
from tsdfm.pipeline.flow.rings.visits import Ringing
from tsdfm.pipeline.flow.rollout import draw_source, roll_out
from tsdfm.pipeline.flow.shaping import Shaper, StepState
from tsdfm.pipeline.flow.solvers import euler
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import embedded, load_denoiser
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig

TEXTS, FEW, MANY, ROUNDS = 32, 8, 1024, 3


@torch.no_grad()
def every_step(model: Denoiser, steps: int, texts: int) -> torch.Tensor:
    """Sample with a forward pass of every text at every step; the same texts as `roll_out` up to floating-point ties."""
    path, length = MixturePath.of(model.config), model.config.length
    noise, rollout = Noise(7, torch.arange(texts)), RolloutConfig(steps=steps, seed=7)
    shaper = Shaper(model, None, rollout, ShapingConfig(candidates=1), noise)
    state, rings = draw_source(path, noise, length), draw_rings(path, noise, rollout.times, length)
    grid = torch.tensor(rollout.times, dtype=torch.float64)
    rows, untouched = torch.arange(texts), torch.ones(texts, length, dtype=torch.bool)
    for step in range(steps):
        now = torch.full((texts,), step)
        moment = StepState(rows, now, grid[now], grid[now + 1], state, untouched, torch.zeros(texts, dtype=torch.bool), 1 / steps,
                           False)
        state = shaper.jump(moment, Ringing.of(rings[:, step]), euler(model, moment)).next_state
        untouched &= ~rings[:, step]
    return state


def skipping(model: Denoiser, steps: int, texts: int) -> torch.Tensor:
    """Sample as the package does."""
    logs = roll_out(model, None, RolloutConfig(steps=steps, seed=7), ShapingConfig(candidates=1), range(texts), "blind")
    return torch.tensor([log.tokens.tolist() for log in logs])


def speed_of_steps(source: str, student: Path) -> dict[str, float]:
    """Seconds for a batch of texts: the student in 8 steps, the teacher in 1,024; medians over rounds, in turn."""
    torch.set_num_threads(1)
    models = {"student": load_denoiser(student).network, "teacher": load_denoiser(embedded(f"teacher-{source}")).network}
    every_step(models["student"], FEW, TEXTS)  # warm-up
    seconds: dict[str, list[float]] = {}
    for round_ in range(ROUNDS):
        for how, sampler in (("every_step", every_step), ("skipping", skipping)):
            for name, steps in (("student", FEW), ("teacher", MANY)):
                if how == "every_step" and name == "teacher" and round_:
                    continue  # a minute each; its 1,024 equal steps are average enough
                began = time.perf_counter()
                sampler(models[name], steps, TEXTS)
                seconds.setdefault(f"{how}_{name}_seconds", []).append(time.perf_counter() - began)
    medians = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    return {**medians, "texts": TEXTS,
            "every_step_ratio": medians["every_step_teacher_seconds"] / medians["every_step_student_seconds"],
            "skipping_ratio": medians["skipping_teacher_seconds"] / medians["skipping_student_seconds"]}
