"""Judges: perplexity of texts under a causal LM that had no part in making them.

A judge must be independent of the compass: other weights, fitted on other documents. Perplexity alone rewards dull text, so
report entropy, distinct-n and self-BLEU (`metrics.py`) beside it, of samples and of real text.

A judge of the same vocabulary scores a model's tokens as they are. Any other reads the decoded text ([EOS] is a line break
there, bytes that are no UTF-8 are replacement characters) and counts per token of its own tokenizer, so its perplexities
compare with each other and not with another judge's.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import exp

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tsdfm.kernels.linear_logprob import linear_logprob
from tsdfm.schemas.base import InputError

BATCH_TOKENS = 4096  # padded positions computed together
RESAMPLES = 1000


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood of R texts: nats [R] and scored tokens [R] of each; some text has a token."""

    nats: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.float64]

    @property
    def perplexity(self) -> float:
        """Perplexity exp(total nats / total tokens) of all texts together."""
        return exp(self.nats.sum() / self.tokens.sum())

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval of the perplexity, resampling the texts that have tokens."""
        real = self.tokens > 0
        nats, tokens = self.nats[real], self.tokens[real]
        rows = np.random.default_rng(seed).integers(len(nats), size=(RESAMPLES, len(nats)))
        low, high = np.quantile(np.exp(nats[rows].sum(1) / tokens[rows].sum(1)), [0.025, 0.975])
        return float(low), float(high)


@dataclass(frozen=True)
class Judge:
    """A causal LM, opened. `open_judge` opens one by name."""

    name: str
    fingerprint: str
    vocabulary: str | None  # fingerprint of its tokenizer if that is one of ours: then it can score tokens as they are
    hidden: Callable[[Tensor], Tensor]  # inputs [B, T] int64 -> [B, T, D]; position i has seen inputs up to i
    weight: Tensor  # [V, D] of the output embedding
    bias: Tensor | None  # [V]
    start_id: int  # stands before every text
    encode: Callable[[list[str]], list[list[int]]]  # texts to its own tokens, special tokens taken as plain text
    longest: int | None  # positions it was built for; None: any number

    def score(self, tokens: npt.NDArray[np.int64], texts: Sequence[str], vocabulary: str) -> Likelihood:
        """Score R texts: as `tokens` [R, L] if `vocabulary`, their fingerprint, is the judge's own, else as decoded `texts`.

        Raises InputError: no text has a token, or one has more than the judge has positions.
        """
        return self.score_tokens(tokens if vocabulary == self.vocabulary else self.encode(list(texts)))

    @torch.no_grad()
    def score_tokens(
        self, sequences: Sequence[Sequence[int] | npt.NDArray[np.int64]] | npt.NDArray[np.int64]
    ) -> Likelihood:
        """Score R sequences of the judge's own tokens, of any lengths. Raises InputError as `score` does."""
        arrays = [torch.as_tensor(sequence, dtype=torch.long) for sequence in sequences]
        lengths = [len(array) for array in arrays]
        if not sum(lengths):
            raise InputError(f"judge {self.name}: none of the {len(arrays)} texts has a token; there is nothing to score")
        if self.longest is not None and max(lengths) > self.longest:
            raise InputError(f"judge {self.name}: a text has {max(lengths)} of its tokens, more than its {self.longest} "
                             "positions; give another judge, or models of shorter texts")
        nats = np.zeros(len(arrays))
        for rows in _batches(lengths):
            nats[rows] = self._nats([arrays[row] for row in rows])
        return Likelihood(nats, np.array(lengths, dtype=np.float64))

    def _nats(self, sequences: list[Tensor]) -> npt.NDArray[np.float64]:
        """Negative log-likelihoods [B] of sequences that are computed together."""
        device = self.weight.device
        # Padding stands on the right, where a causal model never looks back; no logits are computed for it.
        targets = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=-1).to(device)
        row, position = (targets >= 0).nonzero(as_tuple=True)
        inputs = torch.nn.functional.pad(targets[:, :-1].clamp_min(0), (1, 0), value=self.start_id)
        scored = -linear_logprob(self.hidden(inputs)[row, position], self.weight, self.bias, targets[row, position])
        total = torch.zeros(len(sequences), dtype=torch.float64, device=device).index_add_(0, row, scored.double())
        return total.cpu().numpy()


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows that have tokens, longest first, in batches of about BATCH_TOKENS positions."""
    order = sorted((row for row, length in enumerate(lengths) if length), key=lambda row: -lengths[row])
    while order:
        size = max(1, BATCH_TOKENS // lengths[order[0]])
        yield order[:size]
        order = order[size:]
