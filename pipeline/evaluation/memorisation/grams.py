"""8-grams (8 tokens in a row, of the model's own) of texts, looked for in texts that stream by.

Only the 8-grams of the texts are held, as 64-bit hashes; what they are looked for in may be of any size. Two different 8-grams
have the same hash with a chance of about 2^-64 a pair: with a million of them and 10^10 tokens that stream by, 1 in 2,000 that
any one is taken for one of those. 8-grams don't cross texts. Where texts go on from prompts, they are of what was written after
them.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tsdfm.pipeline.evaluation.sample_cache import Identity, SampleCache, key_of
from tsdfm.pipeline.evaluation.samples import Samples
from tsdfm.schemas.progress import Progress, unheard

GRAM = 8  # tokens
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


def standing_in(wanted: Hashes, passing: Iterable[Hashes]) -> Hashes:
    """Those of some hashes [n] that are among others, sorted, each once. `passing`: these, each taken once, flat."""
    wanted = np.unique(wanted)
    seen, asked = np.zeros(len(wanted), bool), np.zeros(1 << FILTER_BITS, bool)
    mask = np.uint64((1 << FILTER_BITS) - 1)
    asked[wanted & mask] = True
    for hashes in passing if len(wanted) else ():
        likely = hashes[asked[hashes & mask]]
        place = np.searchsorted(wanted, likely).clip(max=len(wanted) - 1)
        seen[place[wanted[place] == likely]] = True
    return wanted[seen]


class Place(Protocol):
    """What n-grams are looked for in."""

    @property
    def name(self) -> str:
        """Which it is among all that are looked through."""
        ...

    @property
    def identity(self) -> Identity:
        """All that counts in it depend on, but for the texts."""
        ...

    def hashes(self, progress: Progress = unheard) -> Iterator[Hashes]:
        """Those of all its n-grams, flat, some at a time. Raises InputError or WorkError where it can't be read."""
        ...


class Share(NamedTuple):
    """A share of n-grams, the mean over texts, and its standard error; None of a single text."""

    mean: float
    error: float | None


class Search:
    """Sets of texts, each with the place in which its n-grams are looked for, in one pass over each place."""

    def __init__(self, cache: SampleCache) -> None:
        self._cache = cache
        self._places: dict[str, Place] = {}
        self._texts: dict[str, npt.NDArray[np.int64]] = {}  # how many each text has, by the key of the set
        self._found: dict[str, npt.NDArray[np.int64]] = {}
        self._wanted: dict[str, dict[str, list[Hashes]]] = {}  # by place, then as the others

    def add(self, identity: Identity, samples: Samples, place: Place) -> None:
        """Take up a set of texts; what was counted before is read from the folder."""
        key, sizes = key_of(identity), np.array([len(text) for text in samples.written])
        grams = np.maximum(0, sizes - GRAM + 1)
        if not grams.any():
            return
        self._texts[key] = grams
        kept = self._cache.find_counts(_identity(key, place))
        if kept is not None:
            self._found[key] = kept
        else:
            self._places[place.name] = place
            self._wanted.setdefault(place.name, {})[key] = [gram_hashes(text) for text in samples.written]

    @property
    def places(self) -> list[Place]:
        """Those that have yet to be looked through."""
        return [self._places[name] for name in self._wanted]

    def look(self, place: Place, progress: Progress = unheard) -> None:
        """Look a place through. Raises InputError or WorkError where it can't be read; its texts have no share then."""
        sets = self._wanted.pop(place.name)
        every = np.concatenate([hashes for texts in sets.values() for hashes in texts])
        there = standing_in(every, place.hashes(progress))
        for key, texts in sets.items():
            self._found[key] = np.array([np.isin(hashes, there).sum() for hashes in texts], np.int64)
            self._cache.keep_counts(_identity(key, place), self._found[key])

    def shares(self) -> dict[str, Share]:
        """The share of the n-grams of each set that was found, by the key of its identity."""
        return {key: _share(found, self._texts[key]) for key, found in self._found.items()}


def _identity(key: str, place: Place) -> Identity:
    return {"samples": key, **place.identity}


def _share(found: npt.NDArray[np.int64], grams: npt.NDArray[np.int64]) -> Share:
    """Of texts that have n-grams, how many of all there are were found."""
    shares = found[grams > 0] / grams[grams > 0]
    return Share(float(shares.mean()), float(shares.std(ddof=1) / math.sqrt(len(shares))) if len(shares) > 1 else None)
