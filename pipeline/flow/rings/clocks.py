"""Which clocks ring at which step of a rollout: the law of every single clock is the path's, the joint law is a choice.

Rings don't depend on the model (see `mixture_path`), so all of them are drawn before a rollout begins. Tokens that are redrawn
in one step are drawn independently of each other, which is the more wrong, the more they have to do with each other; and
neighbours have most. So it matters which positions ring together:

    independent  every clock by itself, as in Gat et al. 2024 (arXiv 2407.15595).
    spaced       positions that ring together are spread evenly over the text, and their number varies by at most one.
    even         of the uniform source only: spaced from step to step, too. NOT the path's law, see below.

*Spread evenly* is by van der Corput's sequence: `spread` gives each position a rank such that positions of neighbouring ranks
are far apart, as in dilated unmasking (Luxembourg et al. 2025, arXiv 2506.19037).

All rest on *phases*: position i has rank r_i = spread((i + a) mod L), a uniform in 0..L-1, and phase (r_i + u) / L, u uniform
in [0, 1). As a makes r_i uniform, each phase is uniform in [0, 1), exactly, for any L; and the L phases are a regular grid.

**spaced, mask source.** Position i rings once, when kappa_t first exceeds its phase: each clock's law is the path's, for any N.
A step of share s = kappa_{t+h} - kappa_t has between floor(s L) and ceil(s L) rings.

**spaced, uniform source.** Phases are drawn anew at every step, and position i rings if its phase is below g(t, h): a
systematic sample. Each clock's law is the path's exactly, independently from step to step; floor(g L) to ceil(g L) positions
ring.

**even, uniform source.** Phases are drawn once: position i rings at each step in which the sum of all g so far passes its phase
plus an integer, and at the last step. So each clock rings at even intervals, none twice before all others
have rung once. A position's rings at different steps are then not independent, and by time t more positions have been redrawn
than kappa_t says. The model is told the t of the grid nevertheless. (The time at which as many would have been redrawn, told in
its place, made texts worse in a trial: a token that was redrawn early was redrawn from a noisier text.)

Inner stages of the solvers `rk4` and `rk4_chained` have independent clocks always.

**Fixed positions** have no clock. The others are numbered from left to right, and L is their number wherever it stands above:
so each free clock's law is what it would be without them, and as evenly spaced clocks go, counts per step are as even.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tsdfm.pipeline.flow.mixture_path import MixturePath
from tsdfm.pipeline.flow.noise import Noise
from tsdfm.pipeline.models.computing import at_once
from tsdfm.schemas.base import InputError
from tsdfm.schemas.generate import RolloutConfig
from tsdfm.schemas.model import DenoiserConfig
from tsdfm.schemas.terms import Clocks


def clocks_of(rollout: RolloutConfig, model: DenoiserConfig) -> Clocks:
    """The clocks of a model's rollouts: the config's, else those it was trained for. Raises InputError: not of its source."""
    clocks = rollout.clocks or model.clocks
    if clocks == "even" and model.source == "mask":
        raise InputError("clocks: 'even' is of the uniform source, and the model's is mask, where 'spaced' clocks are even "
                         "already; give --clocks spaced")
    return clocks


def draw_rings(
    path: MixturePath, noise: Noise, times: Sequence[float], length: int, clocks: Clocks = "independent",
    free: Tensor | None = None,
) -> Tensor:
    """Rings [B, N, L] bool of B trajectories' clocks at each step of a grid of N + 1 times; mask source: each rings once.

    `free` [B, L] bool: the positions that have a clock; None: all.
    """
    grid = torch.tensor(times, dtype=torch.float64, device=noise.device)
    if clocks == "independent":
        rings = _independent(path, noise, grid, length)
    elif path.mask_id is not None:
        rings = _spaced_once(path, grid, _phases(noise, length, 1, free)[:, 0])
    else:
        probability = path.ring_probability(grid[:-1], grid[1:])
        if clocks == "even":
            rings = _even(probability, _phases(noise, length, 1, free))
        else:
            rings = _phases(noise, length, len(probability), free) < probability[:, None]
    return rings if free is None else rings & free[:, None]


def spread(length: int, device: torch.device) -> Tensor:
    """The ranks [L] int64 of positions 0..L-1, by van der Corput's numbers: the bits of a position, read backwards."""
    bits = max(1, (length - 1).bit_length())
    number = torch.arange(length, device=device)
    reversed_bits = sum((number >> bit & 1) << (bits - 1 - bit) for bit in range(bits))
    assert isinstance(reversed_bits, Tensor)
    return reversed_bits.argsort().argsort()


def noised_states(
    path: MixturePath, x_1: Tensor, t: Tensor, generator: torch.Generator, spaced: float = 0.0
) -> Tensor:
    """States x_t of texts x_1 [B, L] at times t [B], of which the first `spaced` times B have spaced clocks; [B, L] int64.

    Those are of the mask source: what a trajectory of spaced clocks is at time t, whatever its steps, namely the positions with
    (r_i + u) / L < kappa_t hold their token. (Of the uniform source the joint law depends on the grid of steps.)
    """
    x_t = path.sample(x_1, t, generator)
    count, length = round(spaced * len(x_1)), x_1.shape[1]
    if count:
        offset = torch.randint(length, (count, 1), generator=generator)
        phase = (_shifted(length, offset) + torch.rand(count, 1, generator=generator)) / length
        source = path.sample_source(x_1[:count], generator)
        x_t[:count] = torch.where(phase < path.kappa(t[:count])[:, None], x_1[:count], source)
    return x_t


def _shifted(length: int, offset: Tensor) -> Tensor:
    """Ranks [..., L] of the positions of texts, counted from `offset` [..., 1] int64 on."""
    return spread(length, offset.device)[(torch.arange(length, device=offset.device) + offset) % length]


def _independent(path: MixturePath, noise: Noise, grid: Tensor, length: int) -> Tensor:
    batch, steps = len(noise.ids), len(grid) - 1
    probability = path.ring_probability(grid[:-1], grid[1:])
    rings = torch.empty(batch, steps, length, dtype=torch.bool, device=noise.device)
    rung = torch.zeros(batch, length, dtype=torch.bool, device=noise.device)
    block = max(1, at_once(noise.device).ring_numbers // (batch * length))
    for start in range(0, steps, block):
        step = torch.arange(start, min(start + block, steps), device=noise.device)
        row = torch.arange(batch, device=noise.device).repeat_interleave(len(step))
        uniforms = noise.rings(row, step.repeat(batch), length).view(batch, len(step), length)
        part = uniforms < probability[step][:, None]
        if path.mask_id is not None:
            part &= ~rung[:, None] & (part.cumsum(1) == 1)
            rung |= part.any(1)
        rings[:, start : start + block] = part
    return rings


def _phases(noise: Noise, length: int, count: int, free: Tensor | None) -> Tensor:
    """`count` draws of the phases (r_i + u) / L of each trajectory's positions, uniform in [0, 1): [B, count, L] float64.

    Where only some are `free` [B, L], L is their number and i counts them; the others' phases are 0 and mean nothing.
    """
    offset, u = noise.spacing(2 * count).view(-1, count, 2, 1).unbind(2)
    if free is None:
        return _grid(length, offset, u)
    number = free.sum(1)
    phases = u.new_zeros(len(free), count, length)
    for each in number.unique().tolist():
        rows = number == each
        phases[(rows[:, None] & free)[:, None].expand_as(phases)] = _grid(each, offset[rows], u[rows]).flatten()
    return phases


def _grid(length: int, offset: Tensor, u: Tensor) -> Tensor:
    """The phases [..., L] of L positions, of `offset` [..., 1] and `u` [..., 1] uniform in [0, 1)."""
    return (_shifted(length, (offset * length).long()) + u) / length


def _spaced_once(path: MixturePath, grid: Tensor, phase: Tensor) -> Tensor:
    step = torch.searchsorted(path.kappa(grid[1:]), phase, right=True).clamp_max(len(grid) - 2)
    rings = torch.zeros(len(phase), len(grid) - 1, phase.shape[1], dtype=torch.bool, device=phase.device)
    return rings.scatter_(1, step[:, None], True)


def _even(probability: Tensor, phases: Tensor) -> Tensor:
    sums = torch.cat([probability.new_zeros(1), probability.cumsum(0)])
    rings = (sums[:, None] - phases).ceil().diff(dim=1) > 0
    rings[:, -1] = True
    return rings
