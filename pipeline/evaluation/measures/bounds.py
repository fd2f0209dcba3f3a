"""Bounds of how likely a model finds a text: upper bounds of -log p(x), estimated without bias.

**In N steps.** `sample --steps N` draws a chain of states: at step s, from t to t + h, each clock rings with probability g, and
what rings is drawn from p(. | x_t, t), of a student p(. | x_t, t, 1/N). Let q be the chain that ends in x: what rings becomes
x^i. Then, for independent clocks, as of any pair of chains,

    -log p(x) <= sum over steps and positions of E_q KL(q(x'^i | x_t, x) | p(x'^i | x_t)),

    KL = -log(1 - g + g p(x^i))                                             where x_t^i = x^i,
         -g log p(x^i) + (1 - g) log((1 - g) / (1 - g + g p(x_t^i)))        elsewhere.

With the mask source a written position has no clock, and p([MASK]) = 0: only -g log p(x^i) is left, of masked positions. It is
a bound of the sampler in just these steps, so it holds for students, too, and says what few steps cost. With the mask source
it is exact in one step.

**In continuous time**, N without end, for teachers. With kappa as the time, the mask source has the integral of

    sum over masked positions of -log p(x^i | x_t, t) / (1 - kappa)         (MDLM, arXiv 2406.07524; MD4, arXiv 2406.04329)

over kappa from 0 to 1. By the number m of masked positions it is a sum over m = 1..L with weights 1/m, of kappa from
Beta(L - m + 1, m): that is how it is drawn, for so no state outweighs the others, where of kappa drawn evenly the variance
diverges. For a posterior that is exact and doesn't depend on t it is -log p(x) itself.

The uniform source has the integral of (-[x_t != x] log p(x) + [x_t = x] - p(x_t)) / (1 - kappa) (Shaul et al. 2024, arXiv
2412.03487), which has no end at kappa = 1 unless the model gets ever surer. So it stops at t = 1 - END, and one last step
draws all positions: -log p(x^i | x_t, t). It is the bound of that sampler. It isn't tight, even of an exact posterior, for
noise doesn't say that it is noise; and it is not the bound of Duo and UDLM, whose chain is another one.

Noise of text r depends on the seed, r and N, times on the number of texts, too: they are spread evenly over a text's draws, and
over texts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tsdfm.kernels.linear_logprob import linear_logprob, linear_logprobs
from tsdfm.pipeline.flow.mixture_path import MixturePath
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.text.ends.written import is_written
from tsdfm.schemas.generate import RolloutConfig
from tsdfm.schemas.progress import Progress, unheard

DRAWS = 8  # states of each text that are looked at; in no more steps than that, one of each step
END = 1e-3  # before t = 1, where continuous time ends for the uniform source
Floats = npt.NDArray[np.float64]
_Head = tuple[Tensor, Tensor]  # weight and bias, both over the temperature


@dataclass(frozen=True)
class Asked:
    """Which bound: of N `steps` (None: continuous time), at a sampling temperature; and how its noise is seeded."""

    steps: int | None
    temperature: float = 1.0
    seed: int = 0
    batch_size: int = 32  # states computed together


@dataclass(frozen=True)
class _States:
    """States x_t [n, L] of one text; t [n]; g [n] of the step that follows, 0 in continuous time; and weights [n] of nats."""

    x_t: npt.NDArray[np.int64]
    t: Floats
    ring: Floats
    weight: Floats


# text x [L], evenly spread numbers in [0, 1) [n], noise -> states
_Draw = Callable[[npt.NDArray[np.int64], Floats, np.random.Generator], _States]


@torch.no_grad()
def bound(model: Denoiser, texts: npt.NDArray[np.int64], asked: Asked, progress: Progress = unheard) -> Floats:
    """Upper bounds of -log p of R texts, [R] float64, nats; of the clocks `independent`.

    Args:
        model: in eval mode; its device is used.
        texts: [R, L] of the model's tokens, none of them [MASK].
        asked: which bound. In continuous time, a model that is not told a step.
        progress: called after each batch.
    """
    path, device = MixturePath.of(model.config), model.head.weight.device
    draw = _drawing(path, asked.steps)
    head = model.head.weight / asked.temperature, _bias(model) / asked.temperature
    rows, found = len(texts), np.zeros(len(texts))
    random = np.random.default_rng([asked.seed, rows])
    offset = (random.permutation(rows) + random.random(rows)) / rows  # within a draw's part of [0, 1), another for each text
    together = max(1, asked.batch_size // DRAWS)
    for start in range(0, rows, together):
        part = range(start, min(start + together, rows))
        states = [draw(texts[row], (np.arange(DRAWS) + offset[row]) / DRAWS,
                       np.random.default_rng([asked.seed, row, asked.steps or 0])) for row in part]
        text = np.repeat(np.array(part), [len(each.t) for each in states])
        x, x_t = (torch.from_numpy(each).to(device) for each in (texts[text], np.concatenate([each.x_t for each in states])))
        t, ring, weight = (torch.from_numpy(np.concatenate([getattr(each, name) for each in states])).to(device)
                           for name in ("t", "ring", "weight"))
        hidden = model.hidden(x_t, t.float(), torch.full_like(t, 1 / asked.steps).float() if asked.steps else None)
        if model.config.end_id is not None and path.mask_id is not None:
            # Behind an end that stands the sampler writes padding, so that costs nothing, as if it were written.
            x_t = torch.where(is_written(x_t, model.config.end_id), x_t, x)
        np.add.at(found, text, (weight * _nats(path, hidden, head, x, x_t, ring)).cpu().numpy())
        progress("bounding likelihoods", part.stop, rows)
    return found


def _bias(model: Denoiser) -> Tensor:
    """The head's bias, without [MASK], which is never written."""
    bias = model.head.bias.clone()
    if model.config.mask_id is not None:
        bias[model.config.mask_id] = -torch.inf
    return bias


def _nats(path: MixturePath, hidden: Tensor, head: _Head, x: Tensor, x_t: Tensor, ring: Tensor) -> Tensor:
    """Nats of n states: hidden [n, L, D], texts and states [n, L], rings [n] -> [n] float64."""
    if path.mask_id is None:
        return _uniform_nats(hidden, head, x, x_t, ring)
    masked = x_t == path.mask_id
    nats = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    nats[masked] = -linear_logprob(hidden[masked], *head, x[masked]).double()
    return torch.where(ring == 0, 1.0, ring) * nats.sum(1)


def _uniform_nats(hidden: Tensor, head: _Head, x: Tensor, x_t: Tensor, ring: Tensor) -> Tensor:
    """As `_nats`, of the uniform source."""
    logprob = linear_logprobs(hidden.flatten(0, 1), *head, torch.stack([x, x_t], -1).flatten(0, 1)).double()
    at_text, at_state = logprob.view(*x.shape, 2).unbind(-1)
    p, g = at_state.exp(), ring[:, None]
    rate = torch.where(x_t == x, 1 - p, -at_text - p)
    stays = (1 - g) * torch.log1p(g * p / (1 - g).clamp_min(1e-300))
    step = torch.where(x_t == x, torch.where(g == 1, -at_text, -torch.log1p(-g * (1 - p))), -g * at_text - stays)
    return torch.where(g == 0, rate, step).sum(1)


def _drawing(path: MixturePath, steps: int | None) -> _Draw:
    if steps is not None:
        return _in_steps(path, steps)
    return _uniform(path) if path.mask_id is None else _masked(path, path.mask_id)


def _in_steps(path: MixturePath, steps: int) -> _Draw:
    """States before steps of a grid of N: before each, if there are few; else before as many as are drawn.

    Of the mask source a step is drawn by how many positions it writes; of the uniform one half so and half by how many clocks
    ring, and the last, where all do, is always there.
    """
    grid = torch.tensor(RolloutConfig(steps=steps).times, dtype=torch.float64)
    t, ring = grid[:-1].numpy(), path.ring_probability(grid[:-1], grid[1:]).numpy()
    kappa = path.kappa(grid).numpy()
    share, always = np.diff(kappa), np.arange(0)
    if path.mask_id is None:
        share[-1], always = 0, np.array([steps - 1])
        share = share / max(share.sum(), 1e-300) + np.append(ring[:-1], 0) / max(ring[:-1].sum(), 1e-300)
    share = share / max(share.sum(), 1e-300)
    below = share.cumsum()

    def draw(x: npt.NDArray[np.int64], even: Floats, random: np.random.Generator) -> _States:
        if steps <= len(even):
            step, weight = np.arange(steps), np.ones(steps)
        else:
            step = np.searchsorted(below, even * below[-1], side="right").clip(max=steps - 1)
            weight = 1 / (len(even) * share[step])
            step, weight = np.append(step, always), np.append(weight, np.ones(len(always)))
        return _States(_noised(path, x, kappa[step], random), t[step], ring[step], weight)

    return draw


def _masked(path: MixturePath, mask: int) -> _Draw:
    """States of each number of masked positions, at the times when there are so many."""
    def draw(x: npt.NDArray[np.int64], even: Floats, random: np.random.Generator) -> _States:
        number = np.floor(even * len(x)).astype(np.int64) + 1  # of masked positions, each from 1 to L as often
        kappa = random.beta(len(x) - number + 1, number)
        order = random.random((len(even), len(x))).argsort(1).argsort(1)
        x_t = np.where(order < number[:, None], mask, x)
        return _States(x_t, path.kappa_inverse(torch.from_numpy(kappa)).numpy(), np.zeros(len(even)),
                       len(x) / (number * len(even)))

    return draw


def _uniform(path: MixturePath) -> _Draw:
    """Half of the states at kappa drawn evenly, half with density 1 / (1 - kappa), and one at the end."""
    last = float(path.kappa(torch.tensor(1 - END, dtype=torch.float64)))
    reach = -np.log1p(-last)

    def draw(x: npt.NDArray[np.int64], even: Floats, random: np.random.Generator) -> _States:
        half = even[: len(even) // 2] * 2  # as evenly spread, of half as many
        kappa = np.concatenate([last * half, -np.expm1(-reach * half), [last]])
        density = 0.5 / last + 0.5 / ((1 - kappa) * reach)
        weight = 1 / (len(even) * density * (1 - kappa))
        weight[-1] = 1
        ring = np.append(np.zeros(len(even)), 1.0)
        t = path.kappa_inverse(torch.from_numpy(kappa)).numpy()
        return _States(_noised(path, x, kappa, random), t, ring, weight)

    return draw


def _noised(path: MixturePath, x: npt.NDArray[np.int64], kappa: Floats, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """States [n, L] of a text [L], in which each position is written with probability kappa [n]."""
    shape = (len(kappa), len(x))
    source = np.full(shape, path.mask_id) if path.mask_id is not None else random.integers(path.vocab_size, size=shape)
    return np.where(random.random(shape) < kappa[:, None], x, source)
