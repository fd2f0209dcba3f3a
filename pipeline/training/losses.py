"""Training losses and held-out bounds of the denoiser, the causal LM and the NCE encoder."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tsdfm.kernels.linear_logprob import linear_logprob, linear_logprobs
from tsdfm.pipeline.flow.mixture_path import MixturePath, stratified_times
from tsdfm.pipeline.models.causal import CausalLM
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.nce import NceEncoder

# t stays below 1 by this much: the generalised KL's weight kappa'/(1 - kappa) has a pole at t = 1, where nothing is noised.
TIME_MARGIN = 1e-3


def cross_entropy(model: Denoiser, x_1: Tensor, generator: torch.Generator) -> Tensor:
    """Mean -log p(x_1^i | x_t, t) over the positions that carry noise; x_1 [B, L] int64. Scalar, nats per token.

    Mask source: the masked positions. Uniform source: every position (which ones are noise is not visible).
    """
    path = MixturePath.of(model.config)
    t = stratified_times(len(x_1), generator)
    x_t = path.sample(x_1, t, generator)
    hidden = model.hidden(x_t, t)
    if path.mask_id is None:
        return -linear_logprob(hidden.flatten(0, 1), model.head.weight, model.head.bias, x_1.flatten()).mean()
    noised = x_t == path.mask_id
    if not noised.any():
        return hidden.sum() * 0.0
    return -linear_logprob(hidden[noised], model.head.weight, model.head.bias, x_1[noised]).mean()


def generalized_kl(model: Denoiser, x_1: Tensor, generator: torch.Generator) -> Tensor:
    """The generalised KL of the path's jump rates, nats per token (Shaul et al. 2024, arXiv 2412.03487, eq. 37-40).

    kappa'/(1-kappa) * ( -(1 - [x_t = x_1]) log p(x_1) + [x_t = x_1] - p(x_t) ), averaged over t uniform in [0, 1) and
    positions. Its expectation bounds -log p(x_1) from above: the negative ELBO. For the mask source a resolved position
    keeps its token with probability one, so only masked positions count.
    """
    path = MixturePath.of(model.config)
    t = stratified_times(len(x_1), generator) * (1 - TIME_MARGIN)
    x_t = path.sample(x_1, t, generator)
    weight = path.kappa_derivative(t.clamp_min(TIME_MARGIN)) / (1 - path.kappa(t))
    hidden, head = model.hidden(x_t, t).flatten(0, 1), model.head
    if path.mask_id is not None:
        at_target = linear_logprob(hidden, head.weight, head.bias, x_1.flatten()).view(x_1.shape)
        terms = torch.where(x_t == path.mask_id, -at_target, 0.0)
    else:
        # ids: [B, L, 2], the token of the text and that of the state
        ids = torch.stack([x_1, x_t], -1)
        logprob = linear_logprobs(hidden, head.weight, head.bias, ids.flatten(0, 1))
        at_target, at_state = logprob.view(ids.shape).unbind(-1)
        same = x_t == x_1
        terms = torch.where(same, 0.0, -at_target) + same - at_state.exp()
    return (weight[:, None] * terms).mean()


def causal_nll(model: CausalLM, tokens: Tensor) -> Tensor:
    """Mean next-token negative log-likelihood, nats per token; tokens [B, L] int64."""
    hidden, _ = model.hidden(model.inputs(tokens))
    return -linear_logprob(hidden.flatten(0, 1), model.head_weight, None, tokens.flatten()).mean()


def nce(model: NceEncoder, real: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Binary cross entropy of real states against teacher states at the same times; real, noise [B, L], t [B]."""
    return F.softplus(-model(real, t)).mean() + F.softplus(model(noise, t)).mean()
