"""What a student is fitted to, at the positions that carry a target.

A target position of the window (t, t + dt] holds the kept token c of its last event, the K candidates of that event with
weights w = softmax(-beta E), and maybe the teacher's top-k p at that moment. With q = p_theta(. | x_t, t, dt) of that position:

    event, endpoint   -log q(c)                        (endpoint: the window reaches to t = 1, see `windows.py`)
    candidates        -sum_k w_k log q(c_k)            cross entropy to the mixture of DESIGN's jump log
    tilt              KL(w || softmax_k(sum_j (log q_j(c_jk) - log p_j(c_jk)))) / J
    forward_kl        KL(p || q)                       over the top-k and one bucket for the rest
    reverse_kl        KL(q || p)                       likewise

j being the J positions that chose together. The first four carry the compass's selection; the KL objectives are baselines
that fit the proposal and forget it.

**tilt** has the proposal's log-probabilities p(c_k) of the candidates, which the log holds, and learns the ratios of q to p
alone. A whole candidate has one energy for all positions that jumped together, so it is the sum of their log ratios that has
to prefer what the compass prefers: what its neighbours account for is not asked of a position. Where a position chose by
itself, J = 1. So at the optimum q(c_k) is proportional to p(c_k) exp(-beta E_k), c_k a whole candidate, as far as the energy is
a sum over positions. An energy of E nats per token is L E nats for the text, so beta = L is all that the compass prefers, and
less a milder preference, as keeping the best of few is. Where a window is one step of the log, x_t is the state that they were
drawn at; in a wider one p is that of a later state, and the optimum moves by what the posterior does in between. `event` can be
added to it, with a weight.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tsdfm.kernels.linear_buckets import linear_buckets
from tsdfm.kernels.linear_logprob import linear_logprob, linear_logprobs, normalised
from tsdfm.pipeline.loader.windows import Batch
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.schemas.terms import Objective

# The least mass that reverse_kl gives to the teacher's rest, where there is one: the student always has some mass there, and
# stored log-probabilities are rounded to 1/128 nat, so that a small rest may seem to be none.
TAIL_FLOOR = 1e-4


class StudentLoss(nn.Module):
    """The loss of a batch; a module, so that data-parallel wrappers see its forward pass."""

    def __init__(self, student: Denoiser, objective: Objective, event_weight: float = 0.0) -> None:
        super().__init__()
        self.student, self.objective, self.event_weight = student, objective, event_weight

    def forward(self, batch: Batch) -> Tensor:
        """Nats of every target position, 0 at the others: [B, L] float32."""
        has_target = batch.target >= 0
        hidden = self.student.hidden_where(has_target, batch.x_t, batch.t, batch.dt)
        head, bias = self.student.head, _bias(self.student)
        of_rows = self._of_rows(hidden, head.weight, bias, batch, has_target)
        return torch.zeros(batch.target.shape, device=of_rows.device).masked_scatter(has_target, of_rows)

    def _of_rows(self, hidden: Tensor, weight: Tensor, bias: Tensor, batch: Batch, has_target: Tensor) -> Tensor:
        """Nats of the rows that have a target: hidden [R, D] -> [R]; logits are held a block at a time (kernels)."""
        # Real text has tokens alone, whatever the objective.
        if batch.candidates is not None and batch.weights is not None:
            log_q = linear_logprobs(hidden, weight, bias, batch.candidates[has_target])
            if batch.logprobs is None:
                return mixture_cross_entropy(log_q, batch.weights[has_target])
            ratios, weights, choice = of_choices(batch, has_target, log_q - batch.logprobs[has_target])
            tilt = (listwise(ratios, weights) / choice.sizes)[choice.of_row]
            if not self.event_weight:
                return tilt
            kept = (batch.candidates[has_target] == batch.target[has_target][:, None]).int().argmax(1)  # always one of them
            return tilt - self.event_weight * log_q.gather(1, kept[:, None])[:, 0]
        if batch.topk_ids is not None and batch.topk_logprobs is not None:
            ids = batch.topk_ids[has_target]
            log_q, log_q_tail = normalised(linear_buckets(hidden, weight, bias, ids), ids)
            divergence = forward_kl if self.objective == "forward_kl" else reverse_kl
            return divergence(log_q, log_q_tail, batch.topk_logprobs[has_target])
        return -linear_logprob(hidden, weight, bias, batch.target[has_target])


def _bias(student: Denoiser) -> Tensor:
    """The bias of the head [V], by which [MASK] has no mass: it is never written."""
    bias: Tensor = student.head.bias
    if student.config.mask_id is None:
        return bias
    return bias.masked_fill(torch.arange(len(bias), device=bias.device) == student.config.mask_id, -torch.inf)


def candidate_logprobs(student: Denoiser, batch: Batch, where: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of the candidates at R positions, `where` [B, L] bool, at a temperature: [R, K] nats."""
    assert batch.candidates is not None
    hidden, head = student.hidden_where(where, batch.x_t, batch.t, batch.dt), student.head
    return linear_logprobs(hidden / temperature, head.weight, _bias(student) / temperature, batch.candidates[where])


@dataclass(frozen=True)
class Choices:
    """Which of M choices each of R positions was part of: of_row [R] int64; how many positions each had: sizes [M]."""

    of_row: Tensor
    sizes: Tensor


def of_choices(batch: Batch, where: Tensor, log_ratio: Tensor) -> tuple[Tensor, Tensor, Choices]:
    """Log ratios [R, K] of the positions `where` [B, L] bool, summed over those that chose together: [M, K]; the weights of the
    M choices, [M, K]; and who is part of which.
    """
    assert batch.choice is not None
    assert batch.weights is not None
    keys = torch.stack([where.nonzero()[:, 0], batch.choice[where]])
    _, of_row, sizes = keys.unique(dim=1, return_inverse=True, return_counts=True)
    summed = log_ratio.new_zeros(len(sizes), log_ratio.shape[1]).index_add(0, of_row, log_ratio)
    weights = torch.zeros_like(summed)
    weights[of_row] = batch.weights[where]  # all positions of a choice have its weights
    return summed, weights, Choices(of_row, sizes)


def listwise(log_ratio: Tensor, weights: Tensor) -> Tensor:
    """KL(w || softmax(log ratio)) over K candidates: log ratios and weights, [R, K] each -> [R] nats."""
    each = weights * log_ratio.log_softmax(-1)
    return (torch.xlogy(weights, weights) - torch.where(weights > 0, each, 0.0)).sum(-1)  # a ratio of nothing has no NaN


def possible(weights: Tensor) -> Tensor:
    """`listwise` of equal ratios, log K - H(w): what there is to learn. [R, K] -> [R] nats."""
    return listwise(torch.zeros_like(weights), weights)


def mixture_cross_entropy(log_q: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy -sum_k w_k log q(c_k) of a mixture of K candidates: log q and weights, [R, K] each -> [R] nats."""
    return -torch.where(weights > 0, weights * log_q, 0.0).sum(-1)  # one that counts nothing may be what can't be written


def forward_kl(log_q: Tensor, log_q_tail: Tensor, logprobs: Tensor) -> Tensor:
    """KL(p || q) over k tokens and one bucket for the rest; log q [R, k] and [R], log p of the tokens [R, k] -> [R] nats.

    Where log q of the rest is -inf there is no rest: the k tokens are all that can be written, and p is scaled to sum to one.
    """
    log_p, tail, log_q_tail = _proposal(logprobs, log_q_tail)
    p = log_p.exp()
    inside = torch.xlogy(p, p) - torch.where(p > 0, p * log_q, 0.0)
    return inside.sum(-1) + torch.where(tail > 0, tail * (tail.log() - log_q_tail), 0.0)


def reverse_kl(log_q: Tensor, log_q_tail: Tensor, logprobs: Tensor) -> Tensor:
    """KL(q || p) over k tokens and one bucket for the rest; as `forward_kl`, but that a rest of p is at least TAIL_FLOOR."""
    no_rest = log_q_tail == -torch.inf
    log_p, tail, log_q_tail = _proposal(logprobs, log_q_tail)
    q_tail = log_q_tail.exp().masked_fill(no_rest, 0.0)
    return (log_q.exp() * (log_q - log_p)).sum(-1) + q_tail * (log_q_tail - tail.clamp_min(TAIL_FLOOR).log())


def _proposal(logprobs: Tensor, log_q_tail: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p of the given tokens [R, k], its mass in the rest [R], and log q of the rest, 0 where there is none [R].

    The rounding of stored log-probabilities may leave more than one in the tokens, or less though they are all there are;
    then p is scaled to sum to one, and nothing is left for the rest.
    """
    total, no_rest = logprobs.exp().sum(-1), log_q_tail == -torch.inf
    scale = torch.where(no_rest | (total > 1), total, 1.0)
    tail = (1 - total).clamp_min(0).masked_fill(no_rest, 0.0)
    return logprobs - scale.log()[:, None], tail, log_q_tail.masked_fill(no_rest, 0.0)
