"""MAUVE: how near the distribution of some texts is to that of others, by features (Pillutla et al. 2021, arXiv 2102.01454).

Both sets of texts are *quantised* together: their features, of length one each, fall into k clusters by k-means, so a set is a
histogram, p or q, over clusters. With the mixtures r_w = w p + (1 - w) q, w from 0 to 1, the *divergence curve* is

    (exp(-c KL(q, r_w)), exp(-c KL(p, r_w))),    c = 5, KL in nats,

and MAUVE is the area under it: 1 if p = q, and if they share no cluster the area under (1 - x^(1/c))^c, which is
c!^2 / (2c)! = 1/252, about 0.004.

This restates the paper and uses nothing of its authors' package; settings that the paper leaves open are that package's
defaults: features that keep 90 % of their variance, a tenth as many clusters as texts in the smaller set, 25 mixtures.

A histogram of few texts differs from another of the same law, so MAUVE of finite sets is too low, even between real texts and
real texts: the fewer texts a cluster has, the more. A *basic* bootstrap over texts of both sets, the clusters kept, mends that:
what resampling loses once more is added instead. So value and interval are of very many texts, in these clusters. Histograms
are resampled with half a text added to each cluster (Krichevsky & Trofimov), else an empty one would stay empty for certain.
"""

import numpy as np
import numpy.typing as npt

from tsdfm.schemas.measures import Corrected

Floats = npt.NDArray[np.float64]
SCALING, MIXTURES, PRINCIPAL, TEXTS_A_CLUSTER = 5.0, 25, 0.9, 10
RESAMPLES, RESTARTS, ROUNDS = 500, 5, 100
FLOOR = 1 / 252  # of sets that share no cluster


def mauve(features: npt.ArrayLike, real: npt.ArrayLike, seed: int = 0) -> tuple[Corrected, int]:
    """MAUVE between two sets of texts, and the number of clusters.

    Args:
        features: [R, D], R at least 2; no row is all zeros.
        real: [Q, D], as `features`.
        seed: of the clusters' first centres, and of resampling.
    """
    first, second = (np.asarray(each, np.float64) for each in (features, real))
    random = np.random.default_rng(seed)
    labels = k_means(_principal(np.concatenate([first, second])), clusters_of(len(first), len(second)), random)
    clusters = int(labels.max()) + 1
    p, q = (np.bincount(part, minlength=clusters) for part in np.split(labels, [len(first)]))
    return of_counts(p, q, random), clusters


def clusters_of(texts: int, real: int) -> int:
    """The clusters that sets of so many texts fall into, where texts are different enough."""
    return max(2, round(min(texts, real) / TEXTS_A_CLUSTER))


def of_counts(p: npt.NDArray[np.int64], q: npt.NDArray[np.int64], random: np.random.Generator) -> Corrected:
    """MAUVE of two sets by their numbers of texts in each of k clusters, [k] each."""
    plain = float(area(p / p.sum(), q / q.sum()))
    smooth = [(each + 0.5) / (each + 0.5).sum() for each in (p, q)]
    again = area(*(random.multinomial(each.sum(), part, RESAMPLES) / each.sum()
                   for each, part in zip((p, q), smooth, strict=True)))
    centre = plain + float(area(*smooth))
    value, low, high = np.clip(centre - np.array([again.mean(), *np.quantile(again, [0.975, 0.025])]), FLOOR, 1).tolist()
    return Corrected(value=value, low=low, high=high, plain=plain)


def area(p: Floats, q: Floats) -> Floats:
    """MAUVE of histograms p and q over k clusters: [..., k] each, sums 1 -> [...]."""
    weights = np.linspace(1e-6, 1 - 1e-6, MIXTURES)[:, None]
    mixed = weights * p[..., None, :] + (1 - weights) * q[..., None, :]
    ends = np.ones((*p.shape[:-1], 1))
    # Both ends of the curve lie on the axes: (1, 0) as w is 0, (0, 1) as it is 1.
    x, y = (np.concatenate([end, np.exp(-SCALING * _divergence(each, mixed)), other], -1)
            for each, end, other in ((q, ends, 0 * ends), (p, 0 * ends, ends)))
    return np.asarray(-(np.diff(x) * (y[..., 1:] + y[..., :-1]) / 2).sum(-1))


def _divergence(p: Floats, mixed: Floats) -> Floats:
    """KL(p, r), nats: p [..., k], r [..., M, k], positive where p is -> [..., M]."""
    p = np.broadcast_to(p[..., None, :], mixed.shape)
    ratio = np.divide(p, mixed, where=p > 0, out=np.ones_like(mixed))
    return np.asarray((p * np.log(ratio)).sum(-1))


def _principal(features: Floats) -> Floats:
    """Features [n, D] of length one, in the fewest principal directions that hold PRINCIPAL of their variance."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    left, size, _ = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    held = (size**2).cumsum()
    kept = int(np.searchsorted(held, PRINCIPAL * held[-1])) + 1
    return np.asarray(left[:, :kept] * size[:kept])


def k_means(points: Floats, clusters: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """The cluster of each point [n, d], numbered from 0 without holes: the best of RESTARTS runs of Lloyd's algorithm.

    First centres are those of k-means++ (Arthur & Vassilvitskii 2007). Fewer than `clusters` are found where points coincide.
    """
    runs = [_lloyd(points, clusters, random) for _ in range(RESTARTS)]
    labels = min(runs, key=lambda run: run[1])[0]
    return np.asarray(np.unique(labels, return_inverse=True)[1], np.int64)


def _lloyd(points: Floats, clusters: int, random: np.random.Generator) -> tuple[npt.NDArray[np.int64], float]:
    """One run: clusters of the points, and the sum of their squared distances from the centres."""
    centres = _first_centres(points, clusters, random)
    labels = np.full(len(points), -1)
    for _ in range(ROUNDS):
        before, distances = labels, _squared(points, centres)
        labels = distances.argmin(1)
        if np.array_equal(labels, before):
            break
        counts = np.bincount(labels, minlength=len(centres))
        sums = np.zeros_like(centres)
        np.add.at(sums, labels, points)
        centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)
    return labels, float(distances.min(1).sum())


def _first_centres(points: Floats, clusters: int, random: np.random.Generator) -> Floats:
    """Points that are far from each other: each next one drawn by its squared distance from those before."""
    chosen = [int(random.integers(len(points)))]
    nearest = _squared(points, points[chosen])[:, 0]
    while len(chosen) < clusters and nearest.sum() > 0:
        chosen.append(int(random.choice(len(points), p=nearest / nearest.sum())))
        nearest = np.minimum(nearest, _squared(points, points[chosen[-1:]])[:, 0])
    return points[chosen]


def _squared(points: Floats, centres: Floats) -> Floats:
    """Squared distances [n, k]."""
    found = (points**2).sum(1)[:, None] - 2 * points @ centres.T + (centres**2).sum(1)
    return np.asarray(np.maximum(found, 0))
