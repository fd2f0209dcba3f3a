"""The network of the `nce` compass: the denoiser's trunk with a mean-pooled scalar head.

Trained to tell noised real text at time t from teacher states at time t; its logit then estimates the log density ratio
log p_data,t(x) - log p_teacher,t(x)  (noise-contrastive estimation, Gutmann & Hyvarinen 2010; for text EDLM, arXiv 2410.21357).
"""

from torch import Tensor, nn

from tsdfm.pipeline.models.denoiser import trunk_of
from tsdfm.schemas.model import NceConfig


class NceEncoder(nn.Module):
    """States and times to one logit per state (high: looks like real text)."""

    def __init__(self, config: NceConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = trunk_of(config.trunk)
        self.head = nn.Linear(config.trunk.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t [B, L] int64, t [B] -> logits [B]."""
        out: Tensor = self.head(self.trunk(x_t, t).float().mean(1))[:, 0]  # float32, in whatever dtype the trunk computes
        return out

    def per_token(self, x_t: Tensor, t: Tensor) -> Tensor:
        """What each position has to say, [B, L] float32: their mean is the logit, up to floating-point error."""
        out: Tensor = self.head(self.trunk(x_t, t).float())[..., 0]
        return out
