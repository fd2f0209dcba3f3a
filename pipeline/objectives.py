"""What a student is fitted to, at the positions that carry a target.

A target position of the window (t, t + dt] holds the kept token c of its last event, the K candidates of that event with
weights w = softmax(-beta E), and maybe the teacher's top-k p at that moment. With q = p_theta(. | x_t, t, dt) of that position:

    event, endpoint   -log q(c)                        (endpoint: the window reaches to t = 1, see `windows.py`)
    candidates        -sum_k w_k log q(c_k)            cross entropy to the mixture of DESIGN's jump log
    forward_kl        KL(p || q)                       over the top-k and one bucket for the rest
    reverse_kl        KL(q || p)                       likewise

The first three carry the compass's selection; the KL objectives are baselines that fit the proposal and forget it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsdfm.kernels.linear import linear
from tsdfm.pipeline.denoiser import Denoiser
from tsdfm.pipeline.windows import Batch
from tsdfm.schemas.distill import Objective

TAIL_FLOOR = 1e-4  # the least mass of the bucket for the rest; stored log-probabilities are rounded to 1/128 nat
LOWEST = -1e30  # stands for -inf where all tokens may be hit: the gradient of a log-sum-exp of nothing but -inf is NaN


class StudentLoss(nn.Module):
    """The loss of a batch; a module, so that data-parallel wrappers see its forward pass."""

    def __init__(self, student: Denoiser, objective: Objective) -> None:
        super().__init__()
        self.student, self.objective = student, objective

    def forward(self, batch: Batch) -> Tensor:
        """Nats of every target position, 0 at the others: [B, L] float32."""
        has_target = batch.target >= 0
        hidden = self.student.hidden(batch.x_t, batch.t, batch.dt)[has_target]
        head, mask_id = self.student.head, self.student.config.mask_id
        bias: Tensor = head.bias
        if mask_id is not None:  # [MASK] is never written, so it has no mass
            excluded = torch.arange(len(bias), device=bias.device) == mask_id
            bias = bias.masked_fill(excluded, -torch.inf)
        logits = linear(hidden, head.weight, bias).float()
        losses = torch.zeros(batch.target.shape, device=logits.device)
        return losses.masked_scatter(has_target, self._of_rows(logits, batch, has_target))

    def _of_rows(self, logits: Tensor, batch: Batch, has_target: Tensor) -> Tensor:
        # Real text has tokens alone, whatever the objective.
        if batch.candidates is not None and batch.weights is not None:
            return mixture_cross_entropy(logits, batch.candidates[has_target], batch.weights[has_target])
        if batch.topk_ids is not None and batch.topk_logprobs is not None:
            divergence = forward_kl if self.objective == "forward_kl" else reverse_kl
            return divergence(logits, batch.topk_ids[has_target], batch.topk_logprobs[has_target])
        return F.cross_entropy(logits, batch.target[has_target], reduction="none")


def mixture_cross_entropy(logits: Tensor, candidates: Tensor, weights: Tensor) -> Tensor:
    """-sum_k w_k log softmax(logits)[c_k]; logits [R, V], candidates and weights [R, K] -> [R]."""
    return (weights * (logits.logsumexp(-1, keepdim=True) - logits.gather(-1, candidates))).sum(-1)


def forward_kl(logits: Tensor, ids: Tensor, logprobs: Tensor) -> Tensor:
    """KL(p || q) over k given tokens and one bucket for the rest; logits [R, V], ids and logprobs [R, k] -> [R]."""
    log_q, log_q_tail = _bucketed(logits, ids)
    p, tail = _proposal(logprobs)
    inside = torch.xlogy(p, p) - torch.where(p > 0, p * log_q, 0.0)
    return inside.sum(-1) + tail * (tail.log() - log_q_tail)


def reverse_kl(logits: Tensor, ids: Tensor, logprobs: Tensor) -> Tensor:
    """KL(q || p) over k given tokens and one bucket for the rest; logits [R, V], ids and logprobs [R, k] -> [R]."""
    log_q, log_q_tail = _bucketed(logits, ids)
    _, tail = _proposal(logprobs)
    return (log_q.exp() * (log_q - logprobs)).sum(-1) + log_q_tail.exp() * (log_q_tail - tail.log())


def _bucketed(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """log q of the given tokens [R, k], and of all others together [R]."""
    total = logits.logsumexp(-1)
    rest = logits.scatter(-1, ids, LOWEST).logsumexp(-1)
    return logits.gather(-1, ids) - total[:, None], (rest - total).clamp_min(-1e4)


def _proposal(logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """p of the given tokens [R, k], and what is left [R], at least TAIL_FLOOR."""
    p = logprobs.exp()
    return p, (1 - p.sum(-1)).clamp_min(TAIL_FLOOR)
