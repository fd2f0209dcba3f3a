"""The Fréchet distance of two sets of texts: of the Gaussians that have their features' means and covariances.

    |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))        (Heusel et al. 2017, arXiv 1706.08500: FID)

The covariance of n texts in D directions is off in all of them, by about D/n of the features' variance, and judges have
hundreds of features and more. So it is taken whole in the DIRECTIONS in which real texts differ most, and in the others
together, where it counts as the same in each, by its trace: what is left there adds (tr(S_1)^(1/2) - tr(S_2)^(1/2))^2, and
the means are compared in all. The distance is told as a multiple of the variance of real texts' features, tr(S): so 1 is as
far as one real text lies from their mean, squared.

The distance of finite sets is too large still. A *basic* bootstrap over texts of both sets mends that: what resampling adds
once more is taken off instead. So value and interval are of very many texts.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tsdfm.schemas.measures import Corrected

Floats = npt.NDArray[np.float64]
DIRECTIONS, RESAMPLES = 32, 500
TINY = 1e-30  # what the variance is at least: real texts may all be the same


@dataclass(frozen=True)
class Directions:
    """Where real texts differ: their mean [D], the first d principal directions [D, d], and the variance of their features."""

    mean: Floats
    main: Floats
    variance: float

    @classmethod
    def of(cls, real: npt.ArrayLike) -> "Directions":
        """Of real texts by their features, [Q, D]; Q at least 2."""
        features = np.asarray(real, np.float64)
        centred = features - features.mean(0)
        _, size, directions = np.linalg.svd(centred, full_matrices=False)
        return cls(features.mean(0), directions[:DIRECTIONS].T, max(float((size**2).sum() / (len(features) - 1)), TINY))

    def split(self, features: npt.ArrayLike) -> tuple[Floats, Floats]:
        """Features [R, D] less the mean: within the main directions [R, d], and what is left of them [R, D]."""
        centred = np.asarray(features, np.float64) - self.mean
        within = centred @ self.main
        return within, centred - within @ self.main.T


def frechet(features: npt.ArrayLike, real: npt.ArrayLike, directions: Directions, seed: int = 0) -> Corrected:
    """The distance between two sets of texts, as a multiple of the variance of `directions`.

    Args:
        features: [R, D], R at least 2.
        real: [Q, D], Q at least 2.
        directions: of real texts.
        seed: of resampling.
    """
    first, second = directions.split(features), directions.split(real)
    random = np.random.default_rng(seed)
    plain = _distance(first, second)
    again = np.array([_distance(*(_resampled(each, random) for each in (first, second))) for _ in range(RESAMPLES)])
    found = np.maximum(2 * plain - np.array([again.mean(), *np.quantile(again, [0.975, 0.025])]), 0) / directions.variance
    value, low, high = found.tolist()
    return Corrected(value=value, low=low, high=high, plain=plain / directions.variance)


def _resampled(split: tuple[Floats, Floats], random: np.random.Generator) -> tuple[Floats, Floats]:
    rows = random.integers(len(split[0]), size=len(split[0]))
    return split[0][rows], split[1][rows]


def _distance(first: tuple[Floats, Floats], second: tuple[Floats, Floats]) -> float:
    """Of two sets of texts, split as `Directions.split` does."""
    means = first[0].mean(0) - second[0].mean(0)
    within = gaussian_distance(means, *(np.atleast_2d(np.cov(each[0], rowvar=False)) for each in (first, second)))
    left = first[1].mean(0) - second[1].mean(0)
    spread = [np.sqrt(((each[1] - each[1].mean(0)) ** 2).sum() / (len(each[1]) - 1)) for each in (first, second)]
    return within + float(left @ left + (spread[0] - spread[1]) ** 2)


def gaussian_distance(means: Floats, first: Floats, second: Floats) -> float:
    """The distance of two Gaussians: the difference of their means [D], and their covariances [D, D]."""
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    # (S_1 S_2)^(1/2) and (S_1^(1/2) S_2 S_1^(1/2))^(1/2) have one trace, and the latter is symmetric
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    return max(0.0, float(means @ means + np.trace(first) + np.trace(second) - 2 * shared))
