"""Judges: perplexity of texts under a causal LM that had no part in making them.

A judge must be independent of the compass: other weights, fitted on other documents. Perplexity alone rewards dull text, so
report entropy, distinct-n and self-BLEU (`metrics.py`) beside it, of samples and of real text.

A judge of the same vocabulary, [MASK] aside, scores a model's tokens as they are. Any other reads the decoded text ([EOS] is a
line break there, bytes that are no UTF-8 are replacement characters) and counts per token of its own tokenizer, so its
perplexities compare with each other and not with another judge's.

A text of more tokens than the judge has positions, W, is scored in strided windows: each begins W/2 tokens after the last and
scores those that no window before it has. So every token counts once, the first W after all that precede them and each later
one after at least W - W/2 tokens. Shorter texts are scored whole.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import exp

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tsdfm.kernels.linear_logprob import linear_logprob
from tsdfm.pipeline.models.computing import at_once
from tsdfm.schemas.base import InputError

WINDOW_TO_STRIDE = 2  # W over the stride of windows
RESAMPLES = 1000
Ragged = Sequence[Sequence[int] | npt.NDArray[np.int64]] | npt.NDArray[np.int64]  # R texts of tokens, of any lengths


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood of R texts: nats [R] and scored tokens [R] of each; some text has a token.

    `in_windows`: how many texts were scored in windows: those of more tokens, given ones too, than the judge has positions.
    `features` [R, D] float32: the mean, over a text's scored positions, of the judge's last hidden states, from which it
    predicts the tokens there; zeros for a text without a token. None: not kept.
    """

    nats: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.float64]
    in_windows: int = 0
    features: npt.NDArray[np.float32] | None = None

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
class Prefixes:
    """What R texts begin with that nobody need be judged for: how many of their tokens, [R] int64, and which text."""

    tokens: npt.NDArray[np.int64]
    texts: list[str]


@dataclass(frozen=True)
class Judge:
    """A causal LM, opened. `open_judge` opens one by name."""

    name: str
    fingerprint: str
    vocabulary: str | None  # fingerprint of its tokenizer if that is one of ours
    shared: frozenset[str]  # fingerprints of the models' tokenizers that do as its own: their tokens are scored as they are
    hidden: Callable[[Tensor], Tensor]  # inputs [B, T] int64 -> [B, T, D]; position i has seen inputs up to i
    weight: Tensor  # [V, D] of the output embedding
    bias: Tensor | None  # [V]
    start_id: int  # stands before every text
    encode: Callable[[list[str]], list[list[int]]]  # texts to its own tokens, special tokens taken as plain text
    longest: int | None  # positions it was built for; None: any number
    unknown: int | None = None  # the token that stands for what its tokenizer doesn't know

    def score(self, tokens: Ragged, texts: Sequence[str], vocabulary: str, given: Prefixes | None = None) -> Likelihood:
        """Score R texts: as `tokens` if `vocabulary`, their fingerprint, is one that the judge shares, else as `texts`.

        `given`: what they begin with, which is read and not scored. Of a judge that reads texts, the first token that counts is
        the first that isn't what it reads in the beginning alone: it may hold the last letters of that, too.

        Raises InputError: no text has a token.
        """
        if self.reads_tokens(vocabulary):
            return self.score_tokens(tokens, None if given is None else given.tokens)
        whole = self.encode(list(texts))
        return self.score_tokens(whole, None if given is None else [
            _alike(begun, all_of_it) for begun, all_of_it in zip(self.encode(given.texts), whole, strict=True)])

    def reads_tokens(self, vocabulary: str) -> bool:
        """Whether tokens of a vocabulary, by fingerprint, are scored as they are."""
        return vocabulary == self.vocabulary or vocabulary in self.shared

    @torch.no_grad()
    def score_tokens(
        self, sequences: Ragged, first: Sequence[int] | npt.NDArray[np.int64] | None = None,
    ) -> Likelihood:
        """Score R sequences of the judge's own tokens, of any lengths; of each from its token `first` on. Raises as `score`."""
        arrays = [torch.as_tensor(sequence, dtype=torch.long) for sequence in sequences]
        lengths = [len(array) for array in arrays]
        begins = [0] * len(arrays) if first is None else [int(each) for each in first]
        scored = np.array(lengths, dtype=np.float64) - begins
        if not scored.sum():
            raise InputError(f"judge {self.name}: none of the {len(arrays)} texts has a token; there is nothing to score")
        nats, features = np.zeros(len(arrays)), np.zeros((len(arrays), self.weight.shape[1]))
        long = {row for row, length in enumerate(lengths) if self.longest is not None and length > self.longest}
        for rows in (set(range(len(arrays))) - long, long):  # apart: texts that fit are computed as if there were no others
            windows = [(row, window) for row in sorted(rows) for window in self._windows(arrays[row], begins[row])]
            for batch in _batches([len(window.inputs) for _, window in windows], at_once(self.weight.device).judge_tokens):
                batch_rows = [windows[index][0] for index in batch]
                found = self._scored([windows[index][1] for index in batch])
                np.add.at(nats, batch_rows, found[0])
                np.add.at(features, batch_rows, found[1])
        features /= np.maximum(scored, 1)[:, None]
        return Likelihood(nats, scored, sum(bool(scored[row]) for row in long), features.astype(np.float32))

    def _windows(self, tokens: Tensor, first: int) -> Iterator["_Window"]:
        """The windows that score a text [T], of at least no token, from token `first` on: one, if it has the positions."""
        inputs = torch.nn.functional.pad(tokens[:-1], (1, 0), value=self.start_id)[: len(tokens)]
        width = len(tokens) if self.longest is None else self.longest
        scored = first
        for begin in range(0, len(tokens), max(1, width // WINDOW_TO_STRIDE)):
            end = min(begin + width, len(tokens))
            targets = tokens[begin:end].clone()
            if scored < end:
                targets[: max(0, scored - begin)] = -1  # given, or the windows before have scored them
                yield _Window(inputs[begin:end], targets)
                scored = end
            if end == len(tokens):
                return

    def _scored(self, windows: list["_Window"]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Of windows that are computed together: negative log-likelihoods of their targets [B], and sums of features [B, D]."""
        device = self.weight.device
        # Padding stands on the right, where a causal model never looks back; no logits are computed for it.
        targets = pad_sequence([each.targets for each in windows], batch_first=True, padding_value=-1).to(device)
        inputs = pad_sequence([each.inputs for each in windows], batch_first=True).to(device)
        row, position = (targets >= 0).nonzero(as_tuple=True)
        hidden = self.hidden(inputs)[row, position]
        nats = -linear_logprob(hidden, self.weight, self.bias, targets[row, position])
        sums = [torch.zeros(len(windows), *each.shape[1:], dtype=torch.float64, device=device).index_add_(0, row, each.double())
                for each in (nats, hidden)]
        return sums[0].cpu().numpy(), sums[1].cpu().numpy()


@dataclass(frozen=True)
class _Window:
    """Consecutive tokens of a text: inputs [W], each the token before; targets [W], -1 where nothing is scored."""

    inputs: Tensor
    targets: Tensor


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """With how many equal tokens two sequences begin."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _batches(lengths: Sequence[int], positions: int) -> Iterator[list[int]]:
    """Rows that have tokens, longest first, in batches of about so many positions."""
    order = sorted((row for row, length in enumerate(lengths) if length), key=lambda row: -lengths[row])
    while order:
        size = max(1, positions // lengths[order[0]])
        yield order[:size]
        order = order[size:]
