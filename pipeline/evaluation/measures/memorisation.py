"""Memorisation: how many of a text's 8-grams (8 tokens in a row, of the model's own) stand in the corpus's training text.

Only the 8-grams of the texts are held, as 64-bit hashes; the corpus streams by, so it may be of any size. Two different 8-grams
have the same hash with a chance of about 2^-64 a pair: with a million of them and a corpus of 10^10 tokens, 1 in 2,000 that any
one is taken for one of the corpus. 8-grams don't cross texts; those of the corpus may cross documents, as a model's texts do.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tsdfm.pipeline.evaluation.measures.corpus_texts import corpus_identity
from tsdfm.pipeline.evaluation.sample_cache import Identity, SampleCache, key_of
from tsdfm.pipeline.evaluation.samples import Samples
from tsdfm.pipeline.text.token_file import Tokens
from tsdfm.schemas.corpus import CorpusConfig
from tsdfm.schemas.evaluate import Memorised
from tsdfm.schemas.progress import Progress, unheard

GRAM = 8  # tokens
AT_ONCE = 1 << 18  # tokens of the corpus that are looked at together
FILTER_BITS = 22  # of a hash, that a table is asked for before the sorted hashes are
Hashes = npt.NDArray[np.uint64]
_ROLL = 0x9E3779B97F4A7C15  # odd, as are its powers


def gram_hashes(tokens: npt.NDArray[np.integer]) -> Hashes:
    """Hashes of the n-grams of token rows: [..., L] -> [..., L - GRAM + 1]; of shorter rows none."""
    mixed = tokens.astype(np.uint64)
    mixed = _mixed(mixed + np.uint64(_ROLL))
    width = max(0, tokens.shape[-1] - GRAM + 1)
    found = np.zeros((*tokens.shape[:-1], width), np.uint64)
    for place in range(GRAM):
        found = found * np.uint64(_ROLL) + mixed[..., place : place + width]
    return _mixed(found)


def _mixed(values: Hashes) -> Hashes:
    """The finaliser of splitmix64: a bijection whose every output bit depends on all input bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def standing_in(wanted: Hashes, stream: Tokens, progress: Progress = unheard) -> Hashes:
    """Those of some hashes [n] that an n-gram of the stream has, sorted, each once. `progress` hears of the stream's tokens."""
    wanted = np.unique(wanted)
    seen, asked = np.zeros(len(wanted), bool), np.zeros(1 << FILTER_BITS, bool)
    mask = np.uint64((1 << FILTER_BITS) - 1)
    asked[wanted & mask] = True
    for start in range(0, len(stream) if len(wanted) else 0, AT_ONCE):
        hashes = gram_hashes(stream[start : start + AT_ONCE + GRAM - 1].numpy())
        hashes = hashes[asked[hashes & mask]]
        place = np.searchsorted(wanted, hashes).clip(max=len(wanted) - 1)
        seen[place[wanted[place] == hashes]] = True
        progress("looking for the texts in the corpus", min(start + AT_ONCE, len(stream)), len(stream), "tokens")
    return wanted[seen]


class Memorisation:
    """The sets of texts of an evaluation, whose n-grams are looked for in one pass over the corpus for each vocabulary."""

    def __init__(self, cache: SampleCache, corpus: CorpusConfig) -> None:
        self._cache = cache
        self._corpus = {**corpus_identity(corpus), "part": corpus.part, "gram": GRAM}
        self._texts: dict[str, npt.NDArray[np.int64]] = {}  # how many each text has
        self._found: dict[str, npt.NDArray[np.int64]] = {}
        self._wanted: dict[str, dict[str, list[Hashes]]] = {}  # by vocabulary, then as the others by the key of the texts

    def add(self, identity: Identity, samples: Samples) -> None:
        """Take up a set of texts; what was counted before is read from the folder."""
        key, sizes = key_of(identity), np.array([len(text) for text in samples.written])
        grams = np.maximum(0, sizes - GRAM + 1)
        if not grams.any():
            return
        self._texts[key] = grams
        kept = self._cache.find_counts(self._identity(key))
        if kept is not None:
            self._found[key] = kept
        else:
            self._wanted.setdefault(samples.vocabulary, {})[key] = [gram_hashes(text) for text in samples.written]

    def count(self, stream: Callable[[str], Tokens], progress: Progress = unheard) -> dict[str, Memorised]:
        """The shares, by the key of the texts' identity. `stream`: the training tokens of a vocabulary, by fingerprint."""
        for vocabulary, sets in self._wanted.items():
            every = np.concatenate([hashes for texts in sets.values() for hashes in texts])
            there = standing_in(every, stream(vocabulary), progress)
            for key, texts in sets.items():
                self._found[key] = np.array([np.isin(hashes, there).sum() for hashes in texts], np.int64)
                self._cache.keep_counts(self._identity(key), self._found[key])
        self._wanted.clear()
        return {key: _share(found, self._texts[key]) for key, found in self._found.items()}

    def _identity(self, key: str) -> Identity:
        return {"samples": key, "memorised": self._corpus}


def _share(found: npt.NDArray[np.int64], grams: npt.NDArray[np.int64]) -> Memorised:
    """Of texts that have n-grams, how many of all there are were found."""
    shares = found[grams > 0] / grams[grams > 0]
    error = float(shares.std(ddof=1) / math.sqrt(len(shares))) if len(shares) > 1 else None
    return Memorised(memorised=float(shares.mean()), memorised_standard_error=error)
