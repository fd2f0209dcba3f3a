"""What text looks like by counting: unigram entropy and distinct-n, and running means.

Perplexity and energy alone reward dull, repetitive text, so these are reported beside them, of samples and
of real text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt


def unigram_entropy(tokens: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Entropy of each sequence's own token frequencies, in bits.

        H = - sum_v p_v log2 p_v,    p_v = (occurrences of v in the sequence) / L

    from 0 (one token throughout) to log2 L (no token twice).

    Args:
        tokens: integer ids [..., L], L >= 1.

    Returns:
        [...] float64.

    Raises:
        ValueError: L is 0.
    """
    array = np.asarray(tokens)
    length = array.shape[-1]
    if not length:
        raise ValueError("a sequence of no tokens has no entropy")
    # ordered: [rows, L]; equal tokens of a row stand in one run.
    ordered = np.sort(array.reshape(-1, length), axis=-1)
    starts = np.ones(ordered.shape, dtype=bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    start = np.flatnonzero(starts)
    p = np.diff(start, append=ordered.size) / length
    bits = np.bincount(start // length, weights=-p * np.log2(p), minlength=len(ordered))
    # + 0.0 turns -0.0 into 0.0
    return np.asarray(bits.reshape(array.shape[:-1]) + 0.0, dtype=np.float64)


def distinct_n(sequences: Sequence[npt.ArrayLike], n: int) -> float:
    """Share of different n-grams among all n-grams of all sequences (Li et al. 2016, arXiv 1510.03055).

        distinct-n = |{x_i ... x_{i+n-1}}| / (number of n-grams)

    n-grams don't cross sequences. It falls as text is added, so compare only equal amounts.

    Args:
        sequences: integer ids, each [L]; an array [R, L] will do. Sequences shorter than n add nothing.
        n: tokens per n-gram, at least 1.

    Returns:
        In (0, 1]; 1: no n-gram occurs twice.

    Raises:
        ValueError: n < 1, or no sequence has n tokens.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    arrays = [np.asarray(sequence) for sequence in sequences]
    windows = [np.lib.stride_tricks.sliding_window_view(array, n) for array in arrays if len(array) >= n]
    if not windows:
        raise ValueError(f"no sequence has {n} tokens")
    grams = np.concatenate(windows)  # [n-grams, n]
    ordered = grams[np.lexsort(grams.T)]
    distinct = 1 + np.count_nonzero((ordered[1:] != ordered[:-1]).any(1))
    return distinct / len(grams)


@dataclass
class Moments:
    """Running count, mean and squared deviations; batches merge without cancellation (Chan et al. 1983)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: npt.ArrayLike) -> None:
        """Add a batch of finite numbers, any shape."""
        batch = np.asarray(values, dtype=np.float64)
        if not batch.size:
            return
        total, mean = self.count + batch.size, float(batch.mean())
        delta = mean - self.mean
        self.squares += float(np.square(batch - mean).sum()) + delta * delta * self.count * batch.size / total
        self.mean += delta * batch.size / total
        self.count = total

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation (divisor count - 1); None for fewer than two values."""
        return sqrt(self.squares / (self.count - 1)) if self.count > 1 else None

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean of independent values; None for fewer than two."""
        return None if self.deviation is None else self.deviation / sqrt(self.count)
