"""The mixture path of discrete flow matching: schedule, source distributions, ring probabilities.

    P(x_t^i) = kappa_t delta(x_1^i) + (1 - kappa_t) delta(x_0^i),   kappa_t = t^n        (Gat et al. 2024, arXiv 2407.15595)

Over a step from t to t + h the clock of an eligible position *rings* with probability

    g(t, h) = 1 - (1 - kappa_{t+h}) / (1 - kappa_t),

and a position that rings is redrawn from the posterior p(x_1 | x_t, t). For a frozen posterior this is the exact kernel of
the path, and g = 1 on the step that ends at t = 1. Rings don't depend on the model, so they can be drawn first.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tsdfm.schemas.model import DenoiserConfig


@dataclass(frozen=True)
class MixturePath:
    """The path of one model: its schedule exponent n, vocabulary V, and [MASK] id (None: uniform source)."""

    kappa_exponent: float
    vocab_size: int
    mask_id: int | None

    @classmethod
    def of(cls, config: DenoiserConfig) -> "MixturePath":
        """The path that the denoiser of `config` was trained on."""
        return cls(config.kappa_exponent, config.vocab_size, config.mask_id)

    def kappa(self, t: Tensor) -> Tensor:
        """Progress kappa_t = t^n of the path at t in [0, 1], any shape."""
        return t**self.kappa_exponent

    def kappa_derivative(self, t: Tensor) -> Tensor:
        """Derivative d kappa_t / dt at t in [0, 1], any shape."""
        return self.kappa_exponent * t ** (self.kappa_exponent - 1)

    def kappa_inverse(self, kappa: Tensor) -> Tensor:
        """The t in [0, 1] with kappa_t = kappa."""
        return kappa ** (1 / self.kappa_exponent)

    def ring_probability(self, t: Tensor, t_next: Tensor) -> Tensor:
        """Probability that a clock rings in a jump from t to t_next, float64, any shape; 1 wherever t_next = 1."""
        kappa, kappa_next = self.kappa(t.double()), self.kappa(t_next.double())
        return torch.where(t_next >= 1, 1.0, (kappa_next - kappa) / (1 - kappa).clamp_min(1e-300))

    def sample_source(self, x_1: Tensor, generator: torch.Generator) -> Tensor:
        """x_0 of x_1's shape: all [MASK], or independent uniform tokens. int64."""
        if self.mask_id is not None:
            return torch.full_like(x_1, self.mask_id)
        return torch.randint(self.vocab_size, x_1.shape, generator=generator, device=x_1.device)

    def sample(self, x_1: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        """x_t ~ P(. | x_1): x_1 [B, L] int64, t [B] in [0, 1] -> [B, L]."""
        keep = torch.rand(x_1.shape, generator=generator, device=x_1.device) < self.kappa(t)[:, None]
        return torch.where(keep, x_1, self.sample_source(x_1, generator))


def stratified_times(count: int, generator: torch.Generator) -> Tensor:
    """`count` times, one uniform in each of `count` equal strata of [0, 1), in random order (variance reduction)."""
    u = torch.rand(count, generator=generator)
    return (torch.randperm(count, generator=generator) + u) / count
