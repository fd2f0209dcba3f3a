"""Which dataset each training row comes from: a fixed, periodic schedule that keeps every share to within one row."""

import heapq
from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]

LONGEST_PERIOD = 1 << 16  # shares that would need a longer one are rounded to about this many parts


def shares_of(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the proportions of finite `weights` > 0: exactly theirs if their sum is at most LONGEST_PERIOD."""
    exact = [Fraction(repr(weight)) for weight in weights]  # 0.1 is meant as 1/10
    unit = lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * unit) for weight in exact]
    divisor = gcd(*whole)
    whole = [share // divisor for share in whole]
    total = sum(whole)
    return whole if total <= LONGEST_PERIOD else [max(1, round(Fraction(LONGEST_PERIOD * share, total))) for share in whole]


class Mix:
    """Row number -> dataset, and how many earlier rows came from it.

    In a period of P = sum(shares) rows dataset d gets a_d = shares[d]. Its k-th row may come at floor((k - 1) P / a_d) and must
    come by ceil(k P / a_d); taking the earliest deadline first meets them all (Baruah et al. 1996, "Proportionate progress"),
    so that after any number T of rows, dataset d has had more than T a_d / P - 1 and fewer than T a_d / P + 1.
    """

    def __init__(self, shares: Sequence[int]) -> None:
        period = sum(shares)
        self.shares: Int = np.array(shares)
        self.owner: Int = np.empty(period, np.int64)
        self.before: Int = np.empty(period, np.int64)
        waiting = [(0, d, 1) for d in range(len(shares))]  # (release, dataset, k), of each dataset its next row
        ready: list[tuple[int, int, int]] = []  # (deadline, dataset, k)
        for row in range(period):
            while waiting and waiting[0][0] <= row:
                _, d, k = heapq.heappop(waiting)
                heapq.heappush(ready, (-(-k * period // shares[d]), d, k))
            _, d, k = heapq.heappop(ready)
            self.owner[row], self.before[row] = d, k - 1
            heapq.heappush(waiting, (k * period // shares[d], d, k + 1))

    def rows(self, numbers: Int) -> tuple[Int, Int]:
        """Of every row number: its dataset, and its place in that dataset's stream; both as [B] int64."""
        periods, row = np.divmod(numbers, len(self.owner))
        owner = self.owner[row]
        return owner, periods * self.shares[owner] + self.before[row]
