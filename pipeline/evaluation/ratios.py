"""Means over the steps of many trajectories, with standard errors over trajectories.

Steps of one trajectory depend on each other, so the trajectory is the unit. With s_i what trajectory i adds to the numerator
and n_i to the denominator, r = sum s / sum n has the standard error of the ratio estimator (Cochran 1977, section 6.3)

    se(r)^2 = M / (M - 1)  sum_i (s_i - r n_i)^2 / (sum_i n_i)^2,

over M trajectories. Sums and products are all that is kept, so trajectories may come in any number of batches.
"""

from math import sqrt

import numpy as np
import numpy.typing as npt

from tsdfm.schemas.counterfactual import Estimate

NORMAL_95 = 1.959963984540054  # two-sided 95 % quantile of the normal law
Floats = npt.NDArray[np.float64]


class _Sums:
    """Sums of per-trajectory vectors [W], and of their outer products."""

    def __init__(self, width: int) -> None:
        self.rows, self.sums, self.products = 0, np.zeros(width), np.zeros((width, width))

    def add(self, vectors: Floats) -> None:
        """Add trajectories, [M, W]."""
        self.rows += len(vectors)
        self.sums += vectors.sum(0)
        self.products += vectors.T @ vectors

    def merge(self, other: "_Sums") -> None:
        """Add the trajectories of another."""
        self.rows += other.rows
        self.sums += other.sums
        self.products += other.products

    def estimate(self, mean: float, direction: Floats, count: float) -> Estimate:
        """`mean` with the error of sum_i direction . v_i / count; direction [W] is at right angles to the sums."""
        if self.rows < 2:
            return Estimate(mean=mean, standard_error=None, low=None, high=None, count=count)
        squares = max(0.0, float(direction @ self.products @ direction))
        error = sqrt(self.rows / (self.rows - 1) * squares) / count
        half = NORMAL_95 * error
        return Estimate(mean=mean, standard_error=error, low=mean - half, high=mean + half, count=count)


class Ratio:
    """The ratio sum_i s_i / sum_i n_i over trajectories i, with the standard error of the ratio estimator."""

    def __init__(self) -> None:
        self._sums = _Sums(2)

    def add(self, numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> None:
        """Add M trajectories: numerators s [M] and denominators n [M]."""
        self._sums.add(np.stack([np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)], 1))

    def merge(self, other: "Ratio") -> None:
        """Add the trajectories of another."""
        self._sums.merge(other._sums)

    def estimate(self) -> Estimate | None:
        """The ratio, and from two trajectories on its 95 % interval; None unless the sum of denominators is above 0."""
        numerator, denominator = self._sums.sums.tolist()
        if denominator <= 0:
            return None
        mean = numerator / denominator
        return self._sums.estimate(mean, np.array([1.0, -mean]), denominator)


class Entropy:
    """Plug-in entropy of the frequencies of K outcomes, bits; its error by the delta method, dH = - sum_k log2 p_k dp_k.

    The plug-in estimate is low by about (K - 1) / (2 ln 2 n) bits for n independent outcomes (Miller 1955).
    """

    def __init__(self, outcomes: int) -> None:
        self._sums = _Sums(outcomes)

    def add(self, counts: npt.ArrayLike) -> None:
        """Add M trajectories: counts [M, K] of how often each outcome was seen."""
        self._sums.add(np.asarray(counts, np.float64))

    def merge(self, other: "Entropy") -> None:
        """Add the trajectories of another."""
        self._sums.merge(other._sums)

    def estimate(self) -> Estimate | None:
        """The entropy in bits, and from two trajectories on its 95 % interval; None if nothing was seen."""
        total = float(self._sums.sums.sum())
        if not total:
            return None
        p = self._sums.sums / total
        surprise = -np.log2(p, where=p > 0, out=np.zeros_like(p))
        entropy = float(p @ surprise) + 0.0
        return self._sums.estimate(entropy, surprise - entropy, total)
