"""The area under the ROC curve, and what lines of progress make of it."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.pipeline.training.contrast.separation import auc, auc_per_bin, scalars_of
from tsdfm.schemas.training_record import Separation


def counted(positive, negative):
    """By its definition, over all pairs."""
    return np.mean([(a > b) + 0.5 * (a == b) for a in positive for b in negative])


@pytest.mark.parametrize("values", [3, 10, 10**6])
def test_auc_is_the_share_of_ordered_pairs_ties_count_half(values):
    rng = np.random.default_rng(values)
    for n, m in ((1, 1), (1, 9), (40, 30), (17, 60)):
        positive, negative = rng.integers(0, values, n).astype(float), rng.integers(0, values, m).astype(float) - values / 9
        assert auc(positive, negative) == pytest.approx(counted(positive, negative), abs=1e-12)
        assert auc(positive, negative.round()) + auc(negative.round(), positive) == pytest.approx(1)


def test_auc_of_what_is_plain():
    assert auc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert auc(np.array([0.0]), np.array([1.0, 2.0])) == 0.0
    assert auc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5


def test_an_encoder_that_counts_a_token_separates_texts_by_it():
    """AUC per bin of a hand-made scorer: real text holds token 5, noise token 6; the scorer sees which."""

    class Counter(torch.nn.Module):
        config = SimpleNamespace(trunk=SimpleNamespace(kappa_exponent=1.0, vocab_size=10, mask_id=None))

        def forward(self, x, t):
            return (x == 5).sum(-1).float() - (x == 6).sum(-1).float()

    text, states = torch.full((50, 4), 5), torch.full((20, 8, 4), 6)
    bins = auc_per_bin(cast(NceEncoder, Counter()), text, states)
    assert len(bins) == 8
    assert bins[-1].auc == 1.0
    assert bins[0].t_from == pytest.approx(1 / 8)
    assert bins == auc_per_bin(cast(NceEncoder, Counter()), text, states)


def test_a_line_has_every_bin_and_the_mean_of_the_late_ones():
    bins = [Separation(t_from=t, t_to=t + 0.125, auc=value) for t, value in ((0.125, 0.5), (0.5, 0.7), (0.75, 0.9))]
    assert scalars_of(bins) == {"held_out/auc": pytest.approx(0.8), "held_out/auc_0.12-0.25": 0.5, "held_out/auc_0.50-0.62": 0.7,
                                "held_out/auc_0.75-0.88": 0.9}
    assert scalars_of(bins[:1])["held_out/auc"] == 0.5
