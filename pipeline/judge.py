"""Judges: perplexity of texts under a causal LM that had no part in making them.

A judge must be independent of the compass: other weights, fitted on other documents. Perplexity alone rewards dull text, so
report entropy and distinct-n (`metrics.py`) beside it, of samples and of real text.
"""

from dataclasses import dataclass
from math import exp

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tsdfm.kernels.linear_logprob import linear_logprob
from tsdfm.pipeline.causal import CausalLM

BATCH = 64
RESAMPLES = 1000


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood of R texts: nats [R] and scored tokens [R] of each."""

    nats: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.float64]

    @property
    def perplexity(self) -> float:
        """exp(total nats / total tokens)."""
        return exp(self.nats.sum() / self.tokens.sum())

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval of the perplexity, resampling texts."""
        rows = np.random.default_rng(seed).integers(len(self.nats), size=(RESAMPLES, len(self.nats)))
        samples = np.exp(self.nats[rows].sum(1) / self.tokens[rows].sum(1))
        low, high = np.quantile(samples, [0.025, 0.975])
        return float(low), float(high)


@torch.no_grad()
def judge_tokens(model: CausalLM, tokens: Tensor) -> Likelihood:
    """Score sequences of the judge's own vocabulary: tokens [R, L] int64, no [MASK] among them."""
    nats = []
    for part in tokens.split(BATCH):
        hidden = model.hidden(model.inputs(part))[0].flatten(0, 1)
        nats.append(-linear_logprob(hidden, model.head_weight, part.flatten()).view(part.shape).double().sum(-1))
    rows, length = tokens.shape
    return Likelihood(torch.cat(nats).numpy(), np.full(rows, float(length)))
