"""What every kernel test needs: a fixed hypothesis profile, and poisoned uninitialised memory on demand."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("tsdfm", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("tsdfm")

POISON_INT = 2**40


@pytest.fixture
def poisoned(monkeypatch):
    """Fill whatever torch leaves uninitialised, so that an output that is never written shows."""
    real_empty, real_new_empty = torch.empty, torch.Tensor.new_empty

    def poison(tensor):
        if tensor.is_floating_point():
            return tensor.fill_(float("nan"))
        return tensor.fill_(min(POISON_INT, torch.iinfo(tensor.dtype).max))

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(real_empty(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *a, **k: poison(real_new_empty(self, *a, **k)))
