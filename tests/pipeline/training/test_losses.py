"""Losses against enumeration: three tokens, two positions, a joint distribution whose posteriors are known."""

import itertools
import math
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from tsdfm.pipeline.models.causal import CausalLM
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.training.losses import TIME_MARGIN, CausalNLL, CrossEntropy, GeneralizedKL, mean_loss
from tsdfm.schemas.model import CausalConfig, DenoiserConfig

TEXTS = list(itertools.product(range(3), repeat=2))
PROBABILITY = np.array([0.3, 0.02, 0.05, 0.03, 0.2, 0.1, 0.05, 0.2, 0.05])  # of each text; dependent positions
# Rotary attention alone can't tell two positions apart where all tokens are equal, so what is to be learnt is symmetric.
SYMMETRIC = np.array([0.3, 0.02, 0.06, 0.02, 0.2, 0.11, 0.06, 0.11, 0.12])


def config(source, exponent=1.0):
    mask = source == "mask"
    return DenoiserConfig(hidden_size=16, n_blocks=1, n_heads=1, vocab_size=3 + mask, length=2, cond_dim=8, source=source,
                          mask_id=3 if mask else None, kappa_exponent=exponent)


def exact_posterior(x_t, t, source, exponent, probability=PROBABILITY):
    """p(x_1^i = v | x_t): Bayes over the nine texts. x_t [B, 2], t [B] (numpy) -> [B, 2, V]."""
    kappa = (t**exponent)[:, None, None]
    texts = np.array(TEXTS)
    same = x_t[:, None] == texts[None]  # [B, 9, 2]
    likelihood = kappa * same + (1 - kappa) * ((x_t == 3)[:, None] if source == "mask" else 1 / 3)
    weight = probability * likelihood.prod(-1)
    weight /= weight.sum(1, keepdims=True)
    out = np.zeros((len(x_t), 2, 3 + (source == "mask")))
    for i, v in itertools.product(range(2), range(3)):
        out[:, i, v] = weight[:, texts[:, i] == v].sum(1)
    return out


class Exact:
    """The ideal denoiser: its hidden states are the log of the exact posterior, under an identity head."""

    def __init__(self, source, exponent=1.0):
        self.config = config(source, exponent)
        self.head = SimpleNamespace(weight=torch.eye(self.config.vocab_size, dtype=torch.float64), bias=None)

    def hidden(self, x_t, t):
        p = exact_posterior(x_t.numpy(), t.double().numpy(), self.config.source, self.config.kappa_exponent)
        return torch.from_numpy(p).clamp_min(1e-300).log()


def estimate(model, text, count, seed=0):
    """Monte Carlo mean and standard error of the loss of one text, over 20 batches; nats per text."""
    generator = torch.Generator().manual_seed(seed)
    x_1 = torch.tensor(text).expand(count // 20, -1)
    values = [2 * float(mean_loss(GeneralizedKL(model), x_1, generator)) for _ in range(20)]
    return np.mean(values), np.std(values, ddof=1) / math.sqrt(20)


@pytest.mark.parametrize("exponent", [1.0, 2.0])
@pytest.mark.parametrize("text", [(0, 0), (0, 1), (2, 1)])
def test_with_a_mask_the_bound_is_tight(text, exponent):
    """Every order of unmasking factorises p(x_1): with the exact posterior the negative ELBO is -log p(x_1), text by text."""
    mean, error = estimate(Exact("mask", exponent), text, 60_000)
    truth = -math.log(PROBABILITY[TEXTS.index(text)])
    assert error < 0.02 * truth
    # times stop at 1 - TIME_MARGIN, which leaves out at most `exponent` times that share
    assert abs(mean - truth) < 4 * error + exponent * TIME_MARGIN * truth


def test_a_wrong_posterior_costs_more():
    """Averaged over texts: H(p) at the optimum, and H(p) + KL away from it."""

    class Wrong(Exact):
        def hidden(self, x_t, t):
            return super().hidden(x_t, t) * 0.5

    entropy = -(PROBABILITY * np.log(PROBABILITY)).sum()
    right, wrong = (sum(p * estimate(model, text, 20_000)[0] for p, text in zip(PROBABILITY, TEXTS, strict=True))
                    for model in (Exact("mask"), Wrong("mask")))
    assert right == pytest.approx(entropy, rel=0.02)
    assert wrong > entropy + 0.03


@pytest.mark.parametrize("exponent", [1.0, 2.0])
@pytest.mark.parametrize("text", [(0, 0), (0, 1), (2, 1)])
def test_with_noise_tokens_it_is_a_bound(text, exponent):
    """Uniform source: the estimate agrees with quadrature of Shaul et al.'s eq. 37-40, and that is above -log p(x_1)."""
    mean, error = estimate(Exact("uniform", exponent), text, 60_000)
    states = np.array(TEXTS)
    times = (np.arange(4000) + 0.5) / 4000 * (1 - TIME_MARGIN)
    total = np.zeros(len(times))
    for state in states:
        x_t = np.repeat(state[None], len(times), 0)
        kappa = times**exponent
        reach = np.prod([kappa * (state[i] == text[i]) + (1 - kappa) / 3 for i in range(2)], axis=0)
        p = exact_posterior(x_t, times, "uniform", exponent)
        for i in range(2):
            same = state[i] == text[i]
            rate = same - p[:, i, state[i]] - (0 if same else 1) * np.log(p[:, i, text[i]])
            total += reach * exponent * times ** (exponent - 1) / (1 - kappa) * rate
    assert abs(mean - total.mean()) < 4 * error + 1e-3
    assert error < 0.05 * mean
    assert mean + 4 * error > -math.log(PROBABILITY[TEXTS.index(text)])


def test_uniform_bound_holds_on_average():
    entropy = -(PROBABILITY * np.log(PROBABILITY)).sum()
    mean = sum(p * estimate(Exact("uniform"), text, 20_000)[0] for p, text in zip(PROBABILITY, TEXTS, strict=True))
    assert mean > entropy - 0.02


def probability_of_states(x_t, t, source):
    """P(x_t) [S] at time t, linear schedule."""
    texts = np.array(TEXTS)
    likelihood = t * (x_t[:, None] == texts[None]) + (1 - t) * ((x_t == 3)[:, None] if source == "mask" else 1 / 3)
    return likelihood.prod(-1) @ SYMMETRIC


@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_cross_entropy_trains_to_the_posterior(source):
    """A tiny denoiser on draws from the joint distribution: its expected KL from Bayes is near zero at every time."""
    torch.manual_seed(0)
    model, generator = Denoiser(config(source)), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    weights, texts = torch.from_numpy(SYMMETRIC), torch.tensor(TEXTS)
    for _ in range(400):
        loss = mean_loss(CrossEntropy(model), texts[torch.multinomial(weights, 512, True, generator=generator)], generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    x_t = torch.tensor(list(itertools.product(range(3 + (source == "mask")), repeat=2)))
    asked = (x_t == 3).numpy() if source == "mask" else np.ones(x_t.shape, bool)
    unigram = np.array([[sum(q for q, x in zip(SYMMETRIC, TEXTS, strict=True) if x[i] == v) for v in range(3)] for i in (0, 1)])
    for time in (0.2, 0.5, 0.8):
        t = torch.full((len(x_t),), time)
        truth = exact_posterior(x_t.numpy(), t.double().numpy(), source, 1.0, SYMMETRIC)[..., :3]
        learned = model(x_t, t).softmax(-1).detach().numpy()[..., :3]
        state = probability_of_states(x_t.numpy(), time, source)[:, None]
        from_learned, from_unigram = (
            (state * asked * (truth * np.log(np.maximum(truth, 1e-12) / q)).sum(-1)).sum() for q in (learned, unigram))
        assert -1e-4 < from_learned < 0.005, time
        if time > 0.2:
            assert from_unigram > 4 * from_learned, time


class Table(torch.nn.Module):
    """Hidden states are one-hot tokens, so a row's logits are those of its token."""

    def __init__(self, source):
        super().__init__()
        self.config = config(source)
        self.head = torch.nn.Linear(self.config.vocab_size, self.config.vocab_size)

    def hidden(self, x_t, t):
        self.seen = (x_t, t)
        return torch.nn.functional.one_hot(x_t, self.config.vocab_size).float()

    def hidden_where(self, wanted, x_t, t):
        return self.hidden(x_t, t)[wanted]


@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_cross_entropy_counts_the_noised_positions(source):
    """Mask: the masked ones only; uniform: all. The mean over them of -log p(x_1^i | x_t)."""
    model = Table(source)
    x_1 = torch.tensor(TEXTS * 5)
    value = mean_loss(CrossEntropy(cast(Denoiser, model)), x_1, torch.Generator().manual_seed(3)).item()
    x_t, t = model.seen
    assert sorted((t * len(x_1)).long().tolist()) == list(range(len(x_1)))  # one time per stratum
    logprob = model.head(model.hidden(x_t, t)).log_softmax(-1)
    terms = [-logprob[b, i, x_1[b, i]].item()
             for b in range(len(x_1)) for i in range(2) if source == "uniform" or x_t[b, i] == 3]
    assert 20 < len(terms) <= x_1.numel()
    assert value == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_a_batch_without_noise_has_no_loss_and_still_a_gradient():
    model = Table("mask")
    for seed in range(100):
        loss = mean_loss(CrossEntropy(cast(Denoiser, model)), torch.tensor([[0, 1]]), torch.Generator().manual_seed(seed))
        if not (model.seen[0] == 3).any():
            assert loss.item() == 0
            assert loss.isfinite()
            return
    pytest.fail("no seed of 100 left both positions alone")


def test_causal_nll_is_the_mean_over_all_tokens():
    torch.manual_seed(0)
    model = CausalLM(CausalConfig(hidden_size=16, n_blocks=1, n_heads=1, vocab_size=5, length=4))
    tokens = torch.randint(5, (3, 4))
    logprob = model(tokens).log_softmax(-1)
    terms = [-logprob[b, i, tokens[b, i]].item() for b in range(3) for i in range(4)]
    assert mean_loss(CausalNLL(model), tokens, torch.Generator()).item() == pytest.approx(sum(terms) / 12, rel=1e-5)


def test_causal_nll_learns_the_chain_rule():
    """On draws of the joint distribution its minimum is the entropy per token; bos is none of the tokens."""
    torch.manual_seed(0)
    model = CausalLM(CausalConfig(hidden_size=16, n_blocks=1, n_heads=1, vocab_size=4, length=2, bos_id=3))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2, weight_decay=0.0)
    texts, weights = torch.tensor(TEXTS), torch.from_numpy(PROBABILITY)
    for _ in range(300):
        loss = mean_loss(CausalNLL(model), texts[torch.multinomial(weights, 256, True, generator=generator)], generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    exact = sum(float(p) * 2 * mean_loss(CausalNLL(model), texts[i : i + 1], generator).item() for i, p in enumerate(PROBABILITY))
    entropy = -(PROBABILITY * np.log(PROBABILITY)).sum()
    assert entropy - 1e-6 <= exact < entropy + 0.03
