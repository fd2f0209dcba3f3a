"""Rollouts against the dense sampler of our predecessor: `python tests/benchmarks/rollout.py [--quick]`.

Three questions, each answered by ratios of runs that take turns on the same machine (see measure.py):

  blind     tokens/s and peak memory of `roll_out`, against a sampler that builds dense [B, L, V] tensors at
            every step, and against a lean one that builds only the posterior; V = 50,257, one random teacher.
  shaping   what K = 8 candidates and a compass of the teacher's own trunk size cost, as a share of the run.
  scaling   growth of time and memory as N, L and V each grow by 4 (and N by 64).

Dense samplers cost the same at every step, so a run of theirs is a window of steps that starts from a state
on the path, and whole rollouts are extrapolated; the windows of all rounds lie evenly over [0, 1]. NFE counts
forward passes of a trunk per sequence, by the tokens that enter its first block. Random weights draw
candidates that never agree, so the compass can skip nothing: shaping costs here what it costs at most.
"""

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from measure import MIB, Builder, Piece, Ratio, Sample, interleave, machine, report, say, table
from torch import Tensor, nn

from tsdfm.pipeline.flow.compass import CausalCompass, Compass, NceCompass
from tsdfm.pipeline.flow.mixture_path import MixturePath
from tsdfm.pipeline.flow.rollout import roll_out
from tsdfm.pipeline.models.causal import CausalLM
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig
from tsdfm.schemas.model import CausalConfig, DenoiserConfig, NceConfig
from tsdfm.schemas.terms import Source

Kind = Literal["dense", "lean"]  # a dense sampler: the predecessor's, or the least one

SEED = 0
LOGIT_STD = 2.0  # of the random head: posteriors spread over thousands of tokens, yet far from uniform
MODULATION_STD = 0.05  # of the random adaLN weights: at zero no block would have an effect
CANDIDATES = 8
TARGET_TIME, TARGET_MEMORY = 5.0, 4.0  # what the dense sampler should take at least, in multiples of ours


@dataclass(frozen=True)
class Setting:
    """One measured rollout. `vocab` counts real tokens; [MASK], where there is one, comes on top."""

    vocab: int = 50_257
    length: int = 128
    steps: int = 64
    batch: int = 4
    source: Source = "mask"
    compass: Literal["none", "nce", "ar"] = "none"
    width: int = 384
    blocks: int = 6
    heads: int = 6

    @property
    def tokens(self) -> int:
        """Tokens that a rollout of the batch makes."""
        return self.batch * self.length

    def __str__(self) -> str:
        return (f"V {self.vocab:,}, L {self.length}, N {self.steps}, B {self.batch}, "
                f"trunk {self.blocks} x {self.width}")


@dataclass(frozen=True)
class Plan:
    """Sizes of one run of the benchmark."""

    rounds: int
    window: int  # steps of a dense sampler per round
    blind: Setting
    shaping: Setting
    base: Setting  # of scaling


TINY = Setting(vocab=257, length=16, steps=4, width=48, blocks=1, heads=2)  # pages the libraries in
FULL = Plan(rounds=3, window=6, blind=Setting(), shaping=Setting(batch=1, steps=16),
            base=Setting(vocab=12_564, length=32, steps=16))
QUICK = Plan(rounds=1, window=1, blind=Setting(steps=16), shaping=Setting(batch=1, steps=4),
             base=Setting(vocab=3_141, length=16, steps=8))


# -- models ----------------------------------------------------------------------------------------------

def make_teacher(setting: Setting) -> Denoiser:
    """The random teacher of a setting; equal settings give equal weights."""
    torch.manual_seed(SEED)
    teacher = Denoiser(trunk_config(setting))
    randomise(teacher)
    return teacher.eval().requires_grad_(False)


def make_compass(setting: Setting) -> tuple[Compass, nn.Module] | None:
    """The random compass of a setting, and the first block of its trunk."""
    torch.manual_seed(SEED + 1)
    trunk = trunk_config(setting)
    if setting.compass == "nce":
        encoder = NceEncoder(NceConfig(trunk=trunk))
        randomise(encoder)
        return NceCompass(encoder.eval().requires_grad_(False)), encoder.trunk.blocks[0]
    if setting.compass == "ar":
        causal = CausalLM(CausalConfig(
            hidden_size=trunk.hidden_size, n_blocks=trunk.n_blocks, n_heads=trunk.n_heads,
            vocab_size=trunk.vocab_size, length=trunk.length))
        return CausalCompass(causal.eval().requires_grad_(False)), causal.blocks[0]
    return None


def trunk_config(setting: Setting) -> DenoiserConfig:
    """The trunk of the teacher, and of a compass of the same size."""
    masked = setting.source == "mask"
    return DenoiserConfig(
        hidden_size=setting.width, n_blocks=setting.blocks, n_heads=setting.heads,
        vocab_size=setting.vocab + masked, length=setting.length, source=setting.source,
        mask_id=setting.vocab if masked else None,
    )


def randomise(network: nn.Module) -> None:
    """Give random weights to what is initialised at zero, so that outputs depend on every input."""
    for name, weight in network.named_parameters():
        if name.endswith("modulation.weight"):
            nn.init.normal_(weight, std=MODULATION_STD)
        if name == "head.weight":
            nn.init.normal_(weight, std=LOGIT_STD / weight.shape[1] ** 0.5)


class Passes:
    """Counts forward passes of a trunk by the tokens that enter its first block."""

    def __init__(self, first_block: nn.Module) -> None:
        self.tokens = 0
        first_block.register_forward_pre_hook(self._add)

    def _add(self, block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.tokens += inputs[0].shape[0] * inputs[0].shape[1]

    def take(self, setting: Setting) -> float:
        """Passes per sequence since the last call."""
        passes, self.tokens = self.tokens / setting.tokens, 0
        return passes


class TimedCompass:
    """A compass that adds up the wall seconds spent in it."""

    def __init__(self, compass: Compass) -> None:
        self.compass, self.seconds = compass, 0.0
        self.needs_completion, self.proposal_weight = compass.needs_completion, compass.proposal_weight

    def energy(self, states: Tensor, t: Tensor, completion: Tensor | None) -> Tensor:
        """See `Compass.energy`."""
        start = time.perf_counter()
        energy = self.compass.energy(states, t, completion)
        self.seconds += time.perf_counter() - start
        return energy


# -- the measured sides ----------------------------------------------------------------------------------

def build_blind(setting: Setting) -> Piece:
    """`roll_out` on the blind arm, whole."""
    teacher = make_teacher(setting)
    passes, rollout = Passes(teacher.trunk.blocks[0]), rollout_config(setting)

    def piece() -> dict[str, float]:
        logs = roll_out(teacher, None, rollout, ShapingConfig(), range(setting.batch), "blind")
        rows = sum(len(log.event_step) for log in logs)
        return {"tokens": setting.tokens, "nfe": passes.take(setting), "head_rows": rows / setting.tokens}

    return piece


def build_shaped(setting: Setting) -> Piece:
    """`roll_out` on the shaped arm with the setting's compass, whole."""
    made = make_compass(setting)
    if made is None:
        raise ValueError(f"setting {setting} has no compass")
    teacher, compass, compass_passes = make_teacher(setting), TimedCompass(made[0]), Passes(made[1])
    passes, rollout = Passes(teacher.trunk.blocks[0]), rollout_config(setting)
    shaping = ShapingConfig(candidates=CANDIDATES)

    def piece() -> dict[str, float]:
        compass.seconds = 0.0
        roll_out(teacher, compass, rollout, shaping, range(setting.batch), "shaped")
        return {
            "tokens": setting.tokens, "nfe": passes.take(setting),
            "compass_nfe": compass_passes.take(setting), "compass_seconds": compass.seconds,
        }

    return piece


def rollout_config(setting: Setting) -> RolloutConfig:
    """The rollout of a setting."""
    return RolloutConfig(steps=setting.steps, length=setting.length, seed=SEED)


def build_dense(setting: Setting, plan: Plan, kind: Kind) -> Piece:
    """A dense sampler; the piece's j-th run is the j-th window of the plan's rounds."""
    teacher, step = make_teacher(setting), dense_step if kind == "dense" else lean_step
    path, generator = MixturePath.of(teacher.config), torch.Generator().manual_seed(SEED)
    passes, shape = Passes(teacher.trunk.blocks[0]), (setting.batch, setting.length)
    grid, share = RolloutConfig(steps=setting.steps).times, plan.window / setting.steps
    starts = iter([int((setting.steps - plan.window) * (j + 0.5) / plan.rounds) for j in range(plan.rounds)])

    def piece() -> dict[str, float]:
        start = next(starts)
        x_1 = torch.randint(setting.vocab, shape, generator=generator)
        x_t = path.sample(x_1, torch.full(shape[:1], grid[start]), generator)
        for t, t_next in itertools.pairwise(grid[start : start + plan.window + 1]):
            x_t = step(teacher, path, x_t, t, t_next)
        return {"tokens": setting.tokens * share, "nfe": passes.take(setting) / share,
                "head_rows": plan.window / share}

    return piece


@torch.no_grad()
def dense_step(teacher: Denoiser, path: MixturePath, x_t: Tensor, t: float, t_next: float) -> Tensor:
    """One Euler step as the solvers of flow_matching and FS-DFM take it, with all their [B, L, V] tensors.

    x_1 ~ p_1t(. | x_t) everywhere; rates u = kappa' / (1 - kappa) delta_{x_1}, zero at x_t; a position jumps
    with probability 1 - exp(-h sum u), to a draw from u. With [MASK], only masked positions move.
    """
    vocab, h = teacher.config.vocab_size, t_next - t
    p_1t = dense_posterior(teacher, x_t, t)
    x_1 = draw(p_1t)
    movable = torch.ones_like(x_t, dtype=torch.bool) if path.mask_id is None else x_t == path.mask_id
    if t_next >= 1:
        return torch.where(movable, x_1, x_t)
    kappa, derivative = path.kappa(torch.tensor(t)), path.kappa_derivative(torch.tensor(t))
    delta_1 = F.one_hot(x_1, vocab).to(torch.float32)
    u = derivative / (1 - kappa) * delta_1
    delta_t = F.one_hot(x_t, vocab)
    u = torch.where(delta_t.to(torch.bool), torch.zeros_like(u), u)
    jumps = movable & (torch.rand(x_t.shape) < 1 - torch.exp(-h * u.sum(-1)))
    x_next = x_t.clone()
    if jumps.any():
        x_next[jumps] = draw(u[jumps])
    return x_next


@torch.no_grad()
def lean_step(teacher: Denoiser, path: MixturePath, x_t: Tensor, t: float, t_next: float) -> Tensor:
    """The least a dense sampler can do: a [B, L, V] posterior, a draw everywhere, kept where clocks ring."""
    x_1 = draw(dense_posterior(teacher, x_t, t))
    rings = torch.rand(x_t.shape) < path.ring_probability(torch.tensor(t), torch.tensor(t_next))
    if path.mask_id is not None:
        rings &= x_t == path.mask_id
    return torch.where(rings, x_1, x_t)


def dense_posterior(teacher: Denoiser, x_t: Tensor, t: float) -> Tensor:
    """p_1t(. | x_t) [B, L, V], float32; [MASK] has probability zero."""
    logits = teacher(x_t, torch.full(x_t.shape[:1], t))
    if teacher.config.mask_id is not None:
        logits[..., teacher.config.mask_id] = -torch.inf
    return torch.softmax(logits, -1)


def draw(weights: Tensor) -> Tensor:
    """One draw per row: [..., V] -> [...]."""
    return torch.multinomial(weights.flatten(0, -2), 1, replacement=True).view(weights.shape[:-1])


@torch.no_grad()
def posterior_entropy(setting: Setting) -> float:
    """Mean entropy in nats of the random teacher's posteriors halfway: neither degenerate nor uniform."""
    teacher = make_teacher(setting)
    path, generator = MixturePath.of(teacher.config), torch.Generator().manual_seed(SEED)
    x_1 = torch.randint(setting.vocab, (1, setting.length), generator=generator)
    p_1t = dense_posterior(teacher, path.sample(x_1, torch.tensor([0.5]), generator), 0.5)
    return float(-torch.special.xlogy(p_1t, p_1t).sum(-1).mean())


# -- the three comparisons ---------------------------------------------------------------------------------

Row = Sequence[object]


def builders(setting: Setting, plan: Plan, kinds: Sequence[Kind]) -> dict[str, tuple[Builder, Builder]]:
    """Ours and the dense samplers of a setting, each with its warm-up."""
    tiny, tiny_plan = replace(TINY, source=setting.source), replace(plan, window=TINY.steps)
    sides: dict[str, tuple[Builder, Builder]] = {
        "ours": (partial(build_blind, setting), partial(build_blind, tiny))}
    for kind in kinds:
        sides[kind] = (partial(build_dense, setting, plan, kind), partial(build_dense, tiny, tiny_plan, kind))
    return sides


def summary(samples: Sequence[Sample]) -> dict[str, float]:
    """Medians of the rate and the counts, and the highest peak."""
    facts = {key: statistics.median(s.counts[key] for s in samples) for key in samples[0].counts}
    del facts["tokens"]
    facts["tokens_per_second"] = statistics.median(s.rate for s in samples)
    facts["extra_peak_mib"] = max(s.extra_bytes for s in samples) / MIB
    return facts


def times(slow: Sequence[Sample], fast: Sequence[Sample]) -> tuple[Ratio, Ratio]:
    """How many times as long `slow` takes per token as `fast`: by wall clock, and by CPU time."""
    return (Ratio.of([s.rate for s in fast], [s.rate for s in slow]),
            Ratio.of([s.cpu_rate for s in fast], [s.cpu_rate for s in slow]))


def compare_blind(plan: Plan, threads: int) -> dict[str, object]:
    """Ours against the dense samplers, for both sources."""
    entropy = posterior_entropy(plan.blind)
    result: dict[str, object] = {
        "posterior_entropy_nats": entropy, "uniform_entropy_nats": math.log(plan.blind.vocab)}
    rows: list[Row] = []
    sources: tuple[Source, ...] = ("mask", "uniform")
    for source in sources:
        say(f"blind rollouts, {source} source ...")
        setting = replace(plan.blind, source=source)
        samples = interleave(builders(setting, plan, ("dense", "lean")), plan.rounds, threads)
        ours = summary(samples["ours"])
        for name, side in samples.items():
            fact, (wall, cpu) = summary(side), times(side, samples["ours"])
            memory = fact["extra_peak_mib"] / ours["extra_peak_mib"]
            rows.append((f"{source}, {name}", fact["tokens_per_second"], fact["nfe"], fact["head_rows"],
                         fact["extra_peak_mib"], wall, cpu, memory))
            result[f"{source}, {name}"] = fact | {
                "times_ours": asdict(wall), "times_ours_cpu": asdict(cpu), "memory_times_ours": memory}
    table(f"Blind rollouts: {plan.blind}; posterior entropy {entropy:.3g} nats\n"
          f"(targets: dense takes >= {TARGET_TIME:g}x our time and >= {TARGET_MEMORY:g}x our memory)",
          ("", "tokens/s", "NFE/seq", "head rows/token", "peak MiB", "time / ours", "CPU / ours",
           "memory / ours"), rows)
    return result


def compare_shaping(plan: Plan, threads: int) -> dict[str, object]:
    """K = 8 under the `nce` and the `ar` compass against the blind arm."""
    say("shaping ...")
    sides: dict[str, tuple[Builder, Builder]] = {
        "blind": (partial(build_blind, plan.shaping), partial(build_blind, TINY))}
    compasses: tuple[Literal["nce", "ar"], ...] = ("nce", "ar")
    for compass in compasses:
        sides[compass] = (partial(build_shaped, replace(plan.shaping, compass=compass)),
                          partial(build_shaped, replace(TINY, compass=compass)))
    samples = interleave(sides, plan.rounds, threads)
    result: dict[str, object] = {}
    rows: list[Row] = []
    for name, side in samples.items():
        fact, (wall, cpu) = summary(side), times(side, samples["blind"])
        inside = statistics.median(s.counts.get("compass_seconds", 0.0) / s.seconds for s in side)
        share = 1 - 1 / cpu.median
        rows.append((name, fact["tokens_per_second"], fact["nfe"], fact.get("compass_nfe", 0.0),
                     fact["extra_peak_mib"], wall, cpu, 100 * share, 100 * inside))
        result[name] = fact | {
            "times_blind": asdict(wall), "times_blind_cpu": asdict(cpu), "shaping_share": share,
            "compass_share": inside}
    table(f"Shaping: K {CANDIDATES}, {plan.shaping}, compass trunk of the same size",
          ("", "tokens/s", "NFE/seq", "compass NFE/seq", "peak MiB", "time / blind", "CPU / blind",
           "shaping %", "in compass %"), rows)
    return result


def compare_scaling(plan: Plan, threads: int) -> dict[str, object]:
    """CPU time of a rollout and peak memory as one size grows at a time."""
    say("scaling ...")
    base = plan.base
    settings = {
        "base": base, "N x4": replace(base, steps=4 * base.steps),
        "N x64": replace(base, steps=64 * base.steps), "L x4": replace(base, length=4 * base.length),
        "V x4": replace(base, vocab=4 * base.vocab),
    }
    samples = interleave({
        f"{grown}, {name}": pair for grown, setting in settings.items()
        for name, pair in builders(setting, plan, ("dense",)).items()
    }, plan.rounds, threads)
    seconds = {  # of a whole rollout of the batch
        f"{grown}, {name}": [setting.tokens / s.cpu_rate for s in samples[f"{grown}, {name}"]]
        for grown, setting in settings.items() for name in ("ours", "dense")
    }
    result: dict[str, object] = {}
    rows: list[Row] = []
    for grown in settings:
        row: list[object] = [grown]
        for name in ("ours", "dense"):
            key = f"{grown}, {name}"
            fact, growth = summary(samples[key]), Ratio.of(seconds[key], seconds[f"base, {name}"])
            cpu_seconds = statistics.median(seconds[key])
            row += [fact["nfe"], cpu_seconds, growth.median, fact["extra_peak_mib"]]
            result[key] = fact | {"cpu_seconds": cpu_seconds, "growth": asdict(growth)}
        row.append(Ratio.of(seconds[f"{grown}, dense"], seconds[f"{grown}, ours"]).median)
        rows.append(row)
    table(f"Scaling (mask source; CPU seconds of a whole rollout, dense extrapolated): base {base}",
          ("", "ours: NFE", "CPU s", "x base", "peak MiB", "dense: NFE", "CPU s", "x base", "peak MiB",
           "CPU / ours"), rows)
    return result


COMPARISONS = {"blind": compare_blind, "shaping": compare_shaping, "scaling": compare_scaling}


def main() -> None:
    """Run the comparisons; tables on standard error, one JSON object on standard output."""
    parser = argparse.ArgumentParser(description="Rollouts against the dense sampler of our predecessor.")
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute: not to be quoted")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the JSON object to FILE")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads per process (2; if busy, 1)")
    parser.add_argument("--only", choices=tuple(COMPARISONS), help="run one comparison (default: all)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    plan, started = QUICK if options.quick else FULL, time.perf_counter()
    result: dict[str, object] = {"machine": machine(options.threads), "quick": options.quick}
    for name, compare in COMPARISONS.items():
        if options.only in (None, name):
            result[name] = compare(plan, options.threads)
    result["seconds"] = time.perf_counter() - started
    say(f"\n{result['seconds']:.0f} s")
    report(result, options.json)


if __name__ == "__main__":
    main()
