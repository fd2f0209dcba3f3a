"""Models that are tables, for every test of this room."""

import pytest
import torch

from tsdfm.kernels import sample_rows


@pytest.fixture
def build(toys, monkeypatch):
    """(space, steps, ...) -> (teacher, compass, table, energy); tables vary with t at the resolution of half a step."""
    monkeypatch.setattr(sample_rows, "CDF_BLOCK", 2)  # so that three tokens, too, fill several blocks, and cheaply
    table_denoiser, table_compass = toys

    def make(space, steps, *, exponent=1.0, seed=0, depends_on_state=True, ties=False, proposal_weight=1.0):  # noqa: PLR0913
        g = torch.Generator().manual_seed(1000 + seed)
        times, states = 2 * steps + 1, space.vocab**space.length
        shape = (times, states if depends_on_state else 1, space.length, space.vocab)
        table = (1.3 * torch.randn(shape, generator=g)).expand(times, states, -1, -1).contiguous()
        energy = 3 * torch.rand(times, states, generator=g)
        energy = energy.round() if ties else (energy * 1024).round() / 1024
        teacher = table_denoiser(table, space.source, space.mask, exponent)
        compass = table_compass(energy, space.vocab, space.length, proposal_weight=proposal_weight)
        return teacher, compass, table.double().numpy(), energy.double().numpy()

    return make
