"""Naive samplers: texts that nobody would call good, made from a corpus's training text without any network.

Each is known to be bad in one way, so a measure that ranks it beside real text does not see that way of being bad.

    unigram     each token drawn by how often it occurs, whatever stands beside it
    shuffled    a real text with its tokens in random order: real frequencies, no order
    repeated    a short phrase over and over, of just so many tokens that no check of entropy finds it: see `repeated`
    copied      a real text, word for word: fluent, diverse, and nobody's own
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from tsdfm.pipeline.text.metrics import unigram_entropy
from tsdfm.pipeline.text.token_file import Tokens
from tsdfm.schemas.base import InputError

FLOOR = 0.05  # the share of real texts that lie below the entropy floor
AT_ONCE = 1 << 20  # tokens of the corpus that are held at the same time
Int64 = npt.NDArray[np.int64]
Sampler = Callable[[int, int, np.random.Generator], Int64]  # texts R, tokens L -> [R, L]


def naive_samplers(stream: Tokens, ids: int) -> Mapping[str, Sampler]:
    """All of them over a stream of training tokens, each an id below `ids`. They raise InputError: fewer than L tokens."""
    return {"unigram": partial(unigram, stream, ids), "shuffled": partial(shuffled, stream),
            "repeated": partial(repeated, stream), "copied": partial(copied, stream)}


def unigram(stream: Tokens, ids: int, texts: int, length: int, random: np.random.Generator) -> Int64:
    """Tokens [R, L] drawn independently, by their counts in the stream."""
    _check(stream, length)
    counts = np.zeros(ids, np.int64)
    for start in range(0, len(stream), AT_ONCE):
        counts += np.bincount(stream[start : start + AT_ONCE].numpy(), minlength=ids)
    below = counts.cumsum()
    return np.searchsorted(below, random.integers(below[-1], size=(texts, length)), side="right")


def shuffled(stream: Tokens, texts: int, length: int, random: np.random.Generator) -> Int64:
    """Stretches of the stream, [R, L], the tokens of each in random order."""
    return random.permuted(copied(stream, texts, length, random), axis=1)


def repeated(stream: Tokens, texts: int, length: int, random: np.random.Generator) -> Int64:
    """The shortest beginning of a stretch of the stream whose repetition reaches the entropy floor, repeated to [R, L].

    The floor is the unigram entropy that all but FLOOR of the stretches have. A stretch that never reaches it stays whole.
    """
    real = copied(stream, texts, length, random)
    floor = np.quantile(unigram_entropy(real), FLOOR)
    found, left = real.copy(), np.arange(texts)
    for size in range(1, length):
        tiled = real[left][:, np.arange(length) % size]
        high = unigram_entropy(tiled) >= floor
        found[left[high]] = tiled[high]
        left = left[~high]
        if not len(left):
            break
    return found


def copied(stream: Tokens, texts: int, length: int, random: np.random.Generator) -> Int64:
    """Stretches of the stream that begin at random places, [R, L]."""
    _check(stream, length)
    starts = random.integers(len(stream) - length + 1, size=texts).tolist()
    return np.stack([stream[start : start + length].numpy() for start in starts])


def _check(stream: Tokens, length: int) -> None:
    if len(stream) < length:
        raise InputError(f"the training text has {len(stream)} tokens, fewer than one text of {length}; give more text with "
                         "--corpus, or leave --naive out")
