"""Likelihood of a continuation given what stands before it, of a model of the mask source: a bound, by masks over it alone.

A continuation c of m tokens that is written one token at a time, in a random order, has by Jensen's inequality

    -log p(c | given)  <=  E_l E_S  m / l  sum over i in S of  -log p(c_i | given, c outside S),

with l uniform in 1..m and S a uniform set of l positions: how LLaDA is evaluated (Nie et al. 2025, arXiv 2502.09992). Of a
perfect model it is an equality. Where there are no more sets than may be asked (2^m - 1), each is asked once and the bound is
exact; otherwise sets are drawn, their sizes stratified.

The given tokens stand, and the text ends where the continuation ends. The model is told the time at which as large a share of
the continuation is noise, and as its step the time until there is one noisy token fewer.
"""

import zlib
from collections.abc import Iterator, Sequence
from itertools import combinations
from math import comb

import numpy as np
import torch
from torch import Tensor

from tsdfm.kernels.linear_logprob import linear_logprob
from tsdfm.pipeline.flow.mixture_path import MixturePath
from tsdfm.pipeline.models.denoiser import Denoiser


class Conditional:
    """Likelihoods under one model, which is in eval mode and of the mask source."""

    def __init__(self, model: Denoiser, samples: int, batch_size: int, seed: int) -> None:
        """`samples`: states that are asked for a piece of text at the most, `batch_size` of them at a time."""
        self.model, self.path = model, MixturePath.of(model.config)
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        assert self.path.mask_id is not None
        self.weight, self.bias = model.head.weight.detach(), model.head.bias.detach().clone()
        self.bias[self.path.mask_id] = -torch.inf  # [MASK] is never written, so it has no mass

    def log_likelihood(self, given: Sequence[int], continuation: Sequence[int]) -> float:
        """The bound on log p(continuation | given), in nats: a function of (seed, tokens). Longer texts are divided."""
        return sum(self._bound(*piece) for piece in pieces(given, continuation, self.model.config.length))

    @torch.no_grad()
    def is_greedy(self, given: Sequence[int], continuation: Sequence[int]) -> bool:
        """Whether the model writes just this, if it writes the token that it is surest of, one position after another."""
        for before, part in pieces(given, continuation, self.model.config.length):
            left = torch.ones(1, len(part), dtype=torch.bool)
            while left.any():
                logits = torch.nn.functional.linear(self._hidden(before, part, left), self.weight, self.bias).float()
                sure, tokens = logits.log_softmax(-1).max(-1)
                best = int(sure.argmax())
                place = int(left[0].nonzero()[best])
                if int(tokens[best]) != part[place]:
                    return False
                left[0, place] = False
        return True

    @torch.no_grad()
    def _bound(self, given: Sequence[int], continuation: Sequence[int]) -> float:
        noisy, shares = self._sets(given, continuation)
        tokens, total = torch.tensor(continuation), 0.0
        for some, share in zip(noisy.split(self.batch_size), shares.split(self.batch_size), strict=True):
            hidden = self._hidden(given, continuation, some)
            targets = tokens.expand(some.shape)[some].to(hidden.device)
            logprob = linear_logprob(hidden, self.weight, self.bias, targets).double().cpu()
            total += float((logprob * share.repeat_interleave(some.sum(1))).sum())
        return total

    def _hidden(self, given: Sequence[int], continuation: Sequence[int], noisy: Tensor) -> Tensor:
        """Of R states, in which noisy [R, m] of the continuation are [MASK]: the features of those, row-major, [., D]."""
        device, rows = self.weight.device, len(noisy)
        assert self.path.mask_id is not None
        tokens = torch.tensor([*given, *continuation]).expand(rows, -1)
        wanted = torch.cat([torch.zeros(rows, len(given), dtype=torch.bool), noisy], 1)
        clean = 1 - noisy.double().mean(1)
        t, later = (self.path.kappa_inverse(kappa).float() for kappa in (clean, clean + 1 / noisy.shape[1]))
        x_t = tokens.masked_fill(wanted, self.path.mask_id)
        return self.model.hidden_where(wanted.to(device), x_t.to(device), t.to(device), (later - t).to(device))

    def _sets(self, given: Sequence[int], continuation: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Sets of noisy positions [R, m] bool, none of them empty, and what each counts [R] float64."""
        m = len(continuation)
        if m < 32 and 2**m - 1 <= self.samples:
            members = [each for size in range(1, m + 1) for each in combinations(range(m), size)]
            noisy = torch.zeros(len(members), m, dtype=torch.bool)
            for row, each in enumerate(members):
                noisy[row, list(each)] = True
            return noisy, torch.tensor([1 / (len(each) * comb(m, len(each))) for each in members], dtype=torch.float64)
        key = zlib.crc32(np.asarray([len(given), *given, *continuation], dtype=np.int64).tobytes())
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, key])))
        sizes = 1 + np.floor((np.arange(self.samples) + random.random(self.samples)) / self.samples * m).astype(np.int64)
        sizes = np.minimum(sizes, m)
        order = random.random((self.samples, m)).argsort(1).argsort(1)
        return torch.from_numpy(order < sizes[:, None]), torch.from_numpy(m / sizes / self.samples)


def pieces(given: Sequence[int], continuation: Sequence[int], length: int) -> Iterator[tuple[list[int], list[int]]]:
    """A continuation in pieces that fit into texts of `length` tokens, each with as much before it as has room.

    A piece that is not the last has at least half of a text to itself; the likelihood of all is the product of theirs.
    """
    given, continuation = list(given), list(continuation)
    while continuation:
        size = min(len(continuation), max(length - len(given), length // 2, 1))
        room = length - size
        yield (given[-room:] if room else []), continuation[:size]
        given, continuation = given + continuation[:size], continuation[size:]
