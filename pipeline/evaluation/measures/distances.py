"""How far the texts of a row are from real held-out texts, as sets: MAUVE and a Fréchet distance on each judge's features.

Features are those of `Likelihood`, which a judge's reading for its perplexity gives: no text is read twice. What texts are
compared with are held-out texts that the row of real text does not have, so that row says what the measures give for real
text, and the models' rows are to be read beside it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tsdfm.pipeline.evaluation.judge import Likelihood
from tsdfm.pipeline.evaluation.measures.frechet import Directions, frechet
from tsdfm.pipeline.evaluation.measures.mauve import clusters_of, mauve
from tsdfm.schemas.base import InputError
from tsdfm.schemas.measures import Distances

ENOUGH = 250  # texts: 25 clusters, and eight texts for each direction in which a covariance is taken whole
FEWEST = 4  # texts, that give a covariance and two clusters at all


class RealTexts:
    """Real texts of one vocabulary and length: the row's own, and others that all rows are compared with, by judge."""

    def __init__(self, own: Mapping[str, Likelihood], others: Mapping[str, Likelihood]) -> None:
        self._others = {name: _features(name, found) for name, found in others.items()}
        self._directions = {name: Directions.of(np.concatenate([_features(name, own[name]), real]))
                            for name, real in self._others.items()}

    def distances(self, found: Mapping[str, Likelihood]) -> dict[str, Distances]:
        """From texts that judges have scored, by judge. Raises InputError where too few have a token."""
        return {name: self._distance(name, each) for name, each in found.items()}

    def _distance(self, judge: str, found: Likelihood) -> Distances:
        features, real = _features(judge, found), self._others[judge]
        near, clusters = mauve(features, real)
        return Distances(mauve=near, clusters=clusters, frechet=frechet(features, real, self._directions[judge]),
                         texts=len(features), real_texts=len(real))


def why_few(found: Sequence[Distances]) -> str | None:
    """Why the distances of an evaluation mean little; None: there were texts enough."""
    fewest = min((min(each.texts, each.real_texts) for each in found), default=ENOUGH)
    if fewest >= ENOUGH:
        return None
    return (f"MAUVE and the Fréchet distance compare sets of {fewest} texts, in {clusters_of(fewest, fewest)} clusters: too "
            f"few to tell sets apart that are alike; give -n {ENOUGH} or more, and held-out text for twice as many")


def _features(judge: str, found: Likelihood) -> npt.NDArray[np.float64]:
    """The features of those texts that have a token, [R, D]."""
    assert found.features is not None
    features = found.features[found.tokens > 0].astype(np.float64)
    if len(features) < FEWEST:
        raise InputError(f"judge {judge}: distances of sets need {FEWEST} texts that have a token, and there are "
                         f"{len(features)}; give more texts, or leave --distances out")
    return features
