"""What text looks like by counting: unigram entropy, distinct-n and self-BLEU.

Perplexity and energy alone reward dull, repetitive text, so these are reported beside them, of samples and
of real text.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

BLEU_ORDER = 4
REFERENCES = 128  # of self-BLEU, per text


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


def entropies(texts: npt.NDArray[np.integer] | Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.float64]:
    """`unigram_entropy` of texts that may differ in length: [R] bits, as an array [R, L] or a list of arrays [L_r]."""
    if isinstance(texts, np.ndarray):
        return unigram_entropy(texts)
    return np.array([float(unigram_entropy(text)) for text in texts])


def character_bits(texts: Sequence[str]) -> float:
    """Entropy, in bits, of the characters of some texts by their frequencies in all of them: what a character costs whoever
    knows these frequencies and nothing else. Raises ValueError if no text has a character.
    """
    return float(unigram_entropy(np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype="<u4")))


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


def self_bleu(tokens: npt.NDArray[np.integer] | Sequence[npt.ArrayLike], references: int = REFERENCES, seed: int = 0) -> float:
    """Mean BLEU-4 of each text against others of the same set (Texygen, Zhu et al. 2018, arXiv 1802.01886).

        BLEU-4 = (p_1 p_2 p_3 p_4)^(1/4),    p_n = max(sum_g min(c(g), r(g)), 0.1) / (L - n + 1)

    with c(g) the occurrences of the n-gram g in the text and r(g) the most in any one reference. 0.1 in place of a sum of 0
    is method 1 of Chen & Cherry (2014), which Texygen uses. Texts of one length have no brevity penalty; else it is
    min(1, exp(1 - r / L)), with r the length of the reference that is nearest to L, the shorter of two. It grows with the
    number of references, so each text gets equally many: the first ones of a fixed random order, itself left out.

    Args:
        tokens: integer ids of R >= 2 texts: [R, L], or arrays of any lengths of at least 1. Some text has 4 tokens; one of
            fewer than n has no n-gram, and counts as if it had one that is nowhere else.
        references: texts each is compared with; all R - 1 others if there are fewer.
        seed: of the random order.

    Returns:
        In (0, 1]; 1: every text equals one of its references.

    Raises:
        ValueError: too few texts or tokens.
    """
    texts = [np.asarray(text) for text in tokens]
    rows, sizes = len(texts), np.array([len(text) for text in texts])
    if rows < 2 or sizes.max() < BLEU_ORDER or references < 1:
        raise ValueError(f"self-BLEU needs two texts of {BLEU_ORDER} tokens, not {rows} of {sizes.max()}, and a reference")
    pool = np.random.default_rng(seed).permutation(rows)[: references + 1]
    # left_out [R]: each text is compared with the whole pool but one member: itself, or the last.
    left_out = np.full(rows, pool[-1])
    left_out[pool] = pool
    log_precision = np.zeros(rows)
    for n in range(1, BLEU_ORDER + 1):
        matches = np.maximum(_clipped_matches(texts, n, pool, left_out), 0.1)
        log_precision += np.log(matches / np.maximum(1, sizes - n + 1))
    return float((np.exp(log_precision / BLEU_ORDER) * _brevity(sizes, pool, left_out)).mean())


def _brevity(sizes: npt.NDArray[np.int64], pool: npt.NDArray[np.int64], left_out: npt.NDArray[np.int64]
             ) -> npt.NDArray[np.float64]:
    """The brevity penalty of each text [R]."""
    if (sizes == sizes[0]).all():
        return np.ones(len(sizes))
    reference = np.sort(sizes[pool])
    # Distance of each text from each reference, [R, references]; of equal ones the first, i.e. the shorter, counts.
    order = pool[np.argsort(sizes[pool], kind="stable")]
    distance = np.where(order == left_out[:, None], np.iinfo(np.int64).max, abs(reference - sizes[:, None]))
    return np.asarray(np.minimum(1.0, np.exp(1 - reference[distance.argmin(1)] / sizes)))


def _clipped_matches(texts: Sequence[npt.NDArray[np.int64]], n: int, pool: npt.NDArray[np.int64],
                     left_out: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Per text [R]: its n-grams that occur in a reference, each counted at most as often as the richest reference has it."""
    rows = len(texts)
    windows = [np.lib.stride_tricks.sliding_window_view(text, n) for text in texts if len(text) >= n]  # [L - n + 1, n] each
    owner = np.repeat(np.arange(rows), [max(0, len(text) - n + 1) for text in texts])
    gram = np.unique(np.concatenate(windows), axis=0, return_inverse=True)[1].ravel()
    pair, count = np.unique(gram * rows + owner, return_counts=True)
    gram, row = pair // rows, pair % rows
    # Of each n-gram: the pool's highest count and who has it, and the highest of the others.
    pooled = np.flatnonzero(np.isin(row, pool))
    pooled = pooled[np.lexsort((-count[pooled], gram[pooled]))]
    found, start, size = np.unique(gram[pooled], return_index=True, return_counts=True)
    best, second, owner = (np.zeros(gram[-1] + 1, dtype=np.int64) for _ in range(3))
    best[found], owner[found] = count[pooled[start]], row[pooled[start]]
    several = size > 1
    second[found[several]] = count[pooled[start[several] + 1]]
    most = np.where(owner[gram] == left_out[row], second[gram], best[gram])
    return np.asarray(np.bincount(row, weights=np.minimum(count, most), minlength=rows), dtype=np.float64)
