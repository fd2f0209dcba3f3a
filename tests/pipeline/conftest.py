"""Toys whose every probability and energy is a table, so that a rollout can be enumerated."""

import pytest
import torch
from hypothesis import settings
from torch import nn

from tsdfm.schemas.model import DenoiserConfig

settings.register_profile("tsdfm", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("tsdfm")


class TableDenoiser:
    """logits(x, t)_i = table[time cell of t, index of x, i]; the head is a mixing matrix that hidden states undo.

    table: [T, V^L, L, V] logits; times are looked up as round(t (T - 1)); the index of x is its number in base V, x_0 the
    highest digit. `calls` counts what is asked of it: (sequences, t) per call.
    """

    def __init__(self, table, source="mask", mask_id=None, kappa_exponent=1.0):
        times, states, length, vocab = table.shape
        assert states == vocab**length
        self.config = DenoiserConfig(hidden_size=8, n_heads=1, n_blocks=1, vocab_size=vocab, length=length, source=source,
                                     mask_id=mask_id, kappa_exponent=kappa_exponent)
        generator = torch.Generator().manual_seed(11)
        self.head = nn.Linear(vocab, vocab)
        with torch.no_grad():
            mixing = torch.eye(vocab) * 2 + torch.rand(vocab, vocab, generator=generator)
            self.head.weight.copy_(mixing)
            self.head.bias.copy_(torch.randn(vocab, generator=generator))
        unmixed = (table.double() - self.head.bias.double()) @ torch.linalg.inv(mixing.double()).T
        self.hidden_table = unmixed.float()
        self.place = vocab ** torch.arange(length - 1, -1, -1)
        self.times, self.calls = times, []

    def hidden(self, x, t, dt=None):
        """Look up [B, L, V]."""
        self.calls.append((x.clone(), t.clone()))
        cell = (t * (self.times - 1)).round().long()
        return self.hidden_table[cell, (x * self.place).sum(-1)]


class TableCompass:
    """E(x, t) = table[time cell of t, index of x]; table [T, V^L]."""

    def __init__(self, table, vocab, length, *, proposal_weight=1.0):
        self.table, self.place, self.proposal_weight = table, vocab ** torch.arange(length - 1, -1, -1), proposal_weight
        self.needs_completion, self.calls = False, 0

    def energy(self, states, t, completion):
        """Look up [B, K]."""
        assert completion is None
        self.calls += 1
        cell = (t * (len(self.table) - 1)).round().long()
        return self.table[cell[:, None], (states * self.place).sum(-1)].float()


@pytest.fixture(scope="session")
def toys():
    """The two toy classes (a fixture, for test modules can't import each other)."""
    return TableDenoiser, TableCompass
