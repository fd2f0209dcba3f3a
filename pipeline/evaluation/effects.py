"""What each factor of a sweep does to perplexity and entropy, and how two models compare, with intervals.

The effect of a level is its difference from the factor's first level, over all pairs of trials that agree in every other
factor and in the seed, averaged. Intervals are 95 % bootstrap intervals over texts and seeds: every resample draws the same
text indices for all trials, for texts of one index come from the same noise, and, where there are several, training seeds.
With one seed they say nothing of how much another training would differ; with a few they say too little.

Two models are compared alike: a `Ratio` of their perplexities, its interval over texts that are drawn for both at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import numpy.typing as npt

from tsdfm.pipeline.evaluation.judge import Likelihood
from tsdfm.schemas.ablate import Effect

Float = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
RESAMPLES = 1000
UNREACHED = 0.05  # share of resamples in which a curve may miss an entropy


@dataclass(frozen=True, eq=False)  # arrays have no truth value: equal means the same object
class ScoredTexts:
    """The R texts of one trial at one step count and temperature, the i-th from the same noise in all trials."""

    levels: Mapping[str, str]
    seed: int
    steps: int
    temperature: float
    judges: Mapping[str, Likelihood]
    entropy: Float  # [R], bits


@dataclass(frozen=True)
class Ratio:
    """The perplexity of one model's texts over that of another's, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> Literal["lower", "higher", "not told apart"]:
        """What the interval allows to be said of the first model: 'not told apart' where it holds 1."""
        if self.high < 1:
            return "lower"
        return "higher" if self.low > 1 else "not told apart"


@dataclass(frozen=True, eq=False)
class JudgedTexts:
    """R texts of one model: what a judge said of them, and the entropy [R] of each in bits."""

    judged: Likelihood
    entropy: Float


def perplexity_ratio(one: JudgedTexts, other: JudgedTexts, resamples: int = RESAMPLES) -> Ratio:
    """One model's perplexity over another's; both have R texts, and the i-th texts of both came from the same noise."""
    rows = _resampled(len(one.entropy), resamples)
    return _ratio(_log_perplexity(one.judged, rows) - _log_perplexity(other.judged, rows))


def ratio_at_equal_entropy(one: JudgedTexts, others: Sequence[JudgedTexts], resamples: int = RESAMPLES) -> Ratio | None:
    """One model's perplexity over another's, the other sampled at the temperature that gives its texts the same entropy.

    Args:
        one: R texts.
        others: R texts of the other model at each of its temperatures, one or more; the i-th from the same noise everywhere.
        resamples: of the bootstrap. In each, log perplexity is linear in entropy between neighbouring temperatures.

    Returns:
        None where the temperatures don't reach that entropy, or not in 95 % of the resamples.
    """
    rows = _resampled(len(one.entropy), resamples)
    wanted = one.entropy[rows].mean(1)
    entropies = np.stack([each.entropy[rows].mean(1) for each in others], axis=1)
    values = np.stack([_log_perplexity(each.judged, rows) for each in others], axis=1)
    order = entropies.argsort(axis=1)
    entropies, values = (np.take_along_axis(each, order, axis=1) for each in (entropies, values))
    there = np.array([np.interp(at, x, y, left=np.nan, right=np.nan)
                      for at, x, y in zip(wanted, entropies, values, strict=True)])
    if np.isnan(there[0]) or np.isnan(there).mean() > UNREACHED:
        return None
    return _ratio(_log_perplexity(one.judged, rows) - there)


def _ratio(differences: Float) -> Ratio:
    """Of differences [1 + resamples] of log perplexity, the first as it is."""
    low, high = np.nanquantile(differences[1:], [0.025, 0.975])
    return Ratio(*(float(np.exp(each)) for each in (differences[0], low, high)))


def effects(scored: Sequence[ScoredTexts], first: Mapping[str, str], resamples: int = RESAMPLES) -> list[Effect]:
    """The effects of all levels, at every step count and temperature; in the order of the levels met.

    Args:
        scored: of every trial and row; equally many texts each.
        first: factor -> the level that the others are compared with.
        resamples: of the bootstrap.
    """
    def setting(each: ScoredTexts) -> tuple[int, float]:
        return each.steps, each.temperature

    found = []
    for (steps, temperature), group in groupby(sorted(scored, key=setting), key=setting):
        cells = list(group)
        draws = _measures(cells, resamples)
        seeds = sorted({cell.seed for cell in cells})
        weight_of_seed = dict(zip(seeds, _seed_weights(len(seeds), resamples), strict=True))
        for factor, level, pairs in _contrasts(cells, first):
            weights = np.stack([weight_of_seed[cells[one].seed] for one, _ in pairs])
            for measure, values in draws.items():
                differences = np.stack([values[one] - values[other] for one, other in pairs])
                with np.errstate(invalid="ignore"):  # a resample without any seed of these pairs
                    means = (weights * differences).sum(0) / weights.sum(0)
                low, high = np.nanquantile(means[1:], [0.025, 0.975])
                found.append(Effect(
                    factor=factor, level=level, against=first[factor], steps=steps, temperature=temperature, measure=measure,
                    difference=float(means[0]), low=float(low), high=float(high), pairs=len(pairs)))
    return found


def _contrasts(cells: Sequence[ScoredTexts], first: Mapping[str, str]) -> Iterator[tuple[str, str, list[tuple[int, int]]]]:
    """(factor, level, pairs of cells: with that level, and with the factor's first)."""
    for factor, reference in first.items():
        twin = {_others(cell, factor): index for index, cell in enumerate(cells) if cell.levels[factor] == reference}
        for level in dict.fromkeys(cell.levels[factor] for cell in cells):
            pairs = [(index, twin[_others(cell, factor)]) for index, cell in enumerate(cells)
                     if cell.levels[factor] == level != reference and _others(cell, factor) in twin]
            if pairs:
                yield factor, level, pairs


def _others(cell: ScoredTexts, factor: str) -> tuple[object, ...]:
    return cell.seed, *(level for name, level in cell.levels.items() if name != factor)


def _measures(cells: Sequence[ScoredTexts], resamples: int) -> dict[str, list[Float]]:
    """Measure -> of every cell its value [1 + resamples], the first as it is, the others of resampled texts."""
    rows = _resampled(len(cells[0].entropy), resamples)
    found = {f"log perplexity ({name})": [_log_perplexity(cell.judges[name], rows) for cell in cells]
             for name in cells[0].judges}
    return found | {"entropy": [cell.entropy[rows].mean(1) for cell in cells]}


def _resampled(texts: int, resamples: int) -> Int64:
    """[1 + resamples, texts]: which texts each resample holds; the first holds each once."""
    return np.concatenate([np.arange(texts)[None], np.random.default_rng(0).integers(texts, size=(resamples, texts))])


def _log_perplexity(found: Likelihood, rows: Int64) -> Float:
    """[1 + resamples], of the texts that each resample holds."""
    log: Float = found.nats[rows].sum(1) / found.tokens[rows].sum(1)
    return log


def _seed_weights(seeds: int, resamples: int) -> Float:
    """[seeds, 1 + resamples]: how often each seed is drawn; at first, once."""
    drawn = np.random.default_rng(1).multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    return np.concatenate([np.ones((1, seeds)), drawn]).T
