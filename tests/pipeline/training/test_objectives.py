"""Every objective against its optimum in closed form: a teacher of two words, one position, a compass that prefers word 0.

The log is a real rollout of the toy: at step s of N the clock rings first with probability 1/N, K draws come from the teacher's
p_s, and argmin keeps word 0 if any draw is it. So everything a student can be asked for is a sum of N terms.
"""

from dataclasses import replace
from itertools import combinations, product
from math import comb
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import nn

from tests.support import present, vocabulary
from tsdfm.kernels.linear_buckets import linear_buckets
from tsdfm.kernels.linear_logprob import normalised
from tsdfm.pipeline.dataset.shards import to_table
from tsdfm.pipeline.flow.rollout import _halved, roll_out
from tsdfm.pipeline.loader.windows import Batch, Trajectories, join
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.training.objectives import StudentLoss, forward_kl, listwise, mixture_cross_entropy, possible, reverse_kl
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig
from tsdfm.schemas.trajectory import Grid, arrow_schema

N, K, MASK, ROWS = 4, 3, 2, 12_000
P = np.array([0.15, 0.3, 0.45, 0.6])  # the teacher's probability of word 0 at step s
ENERGY = (0.0, 0.25)  # of the states that hold word 0 and word 1
BETA = 4.0


class Table(nn.Module):
    """One free pair of logits per start step and window length: the most expressive student there is."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.cells = nn.Parameter(torch.zeros(N, N + 1, 3))
        self.head = nn.Linear(3, 3)
        self.head.requires_grad_(False)
        nn.init.eye_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def hidden(self, x, t, dt):
        return self.cells[(t * N).round().long(), (dt * N).round().long()][:, None].expand(-1, x.shape[1], -1)

    def hidden_where(self, wanted, x, t, dt):
        return self.hidden(x, t, dt)[wanted]


@pytest.fixture(scope="module")
def logs(toys):
    """Blind and shaped trajectories of the toy, with the teacher's whole posterior stored."""
    denoiser_class, compass_class = toys
    # states of one position: word 0, word 1, [MASK]; times 0, 1/N, ..., 1
    table = torch.zeros(N + 1, 3, 1, 3)
    table[:N, :, 0, 0] = torch.tensor(np.log(P))[:, None]
    table[:N, :, 0, 1] = torch.tensor(np.log(1 - P))[:, None]
    table[..., 2] = -30.0
    teacher = denoiser_class(table, mask_id=MASK)
    energies = torch.tensor([[*ENERGY, 9.0]]).expand(N + 1, 3)
    compass = compass_class(energies, 3, 1)
    rollout, shaping = RolloutConfig(steps=N, length=1, top_k=2, seed=3, logprobs=True), ShapingConfig(candidates=K)
    grid = Grid(length=1, steps=N, vocab_size=3, mask_id=MASK, candidates=K, top_k=2,
                shaped_steps=shaping.steps_of(rollout), select="argmin", compass=True, logprobs=True)
    words = vocabulary()
    read = {}
    for arm in ("blind", "shaped"):
        made = roll_out(teacher, compass, rollout, shaping, range(ROWS), arm)
        read[arm] = Trajectories.of(to_table(made, words, arrow_schema(grid)), grid, arm)
    return teacher, read


def fitted(logs, arm, objective, start, stop, event_weight=0.0):
    """p(word 0) of a table student fitted to all rows of an arm, for one window."""
    teacher, read = logs
    rows = np.arange(ROWS)
    batch = read[arm].window(rows, np.full(ROWS, start), np.full(ROWS, stop), objective, BETA)
    student = Table(teacher.config)
    loss = StudentLoss(cast(Denoiser, student), objective, event_weight)
    optimizer = torch.optim.LBFGS([student.cells], lr=1.0, max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        total = loss(batch).sum() / (batch.target >= 0).sum()
        total.backward()
        return total

    optimizer.step(closure)
    logits = student.cells[start, stop - start, :2].detach()
    assert not bool(present(student.cells.grad)[start, stop - start, MASK])  # [MASK] is no token to write
    return float(logits.softmax(-1)[0])


def kept(s):
    """Probability that argmin keeps word 0 at step s."""
    return 1 - (1 - P[s]) ** K


def soft(s):
    """Expected weight of word 0 among K draws, softmax(-BETA E)."""
    low, high = (np.exp(-BETA * e) for e in ENERGY)
    return sum(comb(K, m) * P[s] ** m * (1 - P[s]) ** (K - m) * m * low / (m * low + (K - m) * high) for m in range(K + 1))


WINDOWS = [(0, 1), (0, 2), (0, 4), (2, 4), (3, 4)]
NOISE = 4 * np.sqrt(0.25 / (ROWS / N))  # four standard errors of a share among the rows that ring at one step


@pytest.mark.parametrize(("start", "stop"), WINDOWS)
@pytest.mark.parametrize("objective", ["event", "candidates"])
def test_blind_students_match_the_teacher_averaged_over_the_window(logs, objective, start, stop):
    """The martingale: one step of the grid gives back the teacher's own posterior."""
    assert fitted(logs, "blind", objective, start, stop) == pytest.approx(P[start:stop].mean(), abs=NOISE)


@pytest.mark.parametrize(("start", "stop"), WINDOWS)
def test_event_students_learn_what_the_compass_kept(logs, start, stop):
    wanted = np.mean([kept(s) for s in range(start, stop)])
    assert fitted(logs, "shaped", "event", start, stop) == pytest.approx(wanted, abs=NOISE)
    assert abs(wanted - P[start:stop].mean()) > 2 * NOISE  # far from the blind optimum: the test can tell


@pytest.mark.parametrize(("start", "stop"), WINDOWS)
def test_candidates_students_learn_the_mixture(logs, start, stop):
    wanted = np.mean([soft(s) for s in range(start, stop)])
    assert fitted(logs, "shaped", "candidates", start, stop) == pytest.approx(wanted, abs=NOISE)


def tilted(s):
    """The teacher's law at step s, tilted: p exp(-BETA E), normalised."""
    mass = np.array([P[s], 1 - P[s]]) * np.exp(-BETA * np.array(ENERGY))
    return mass[0] / mass.sum()


@pytest.mark.parametrize("start", range(N))
def test_tilt_students_learn_the_tilted_law_whatever_was_kept(logs, start):
    """Exactly at a window of one step: the candidates' weights are those of the tilt, however few are drawn."""
    assert fitted(logs, "shaped", "tilt", start, start + 1) == pytest.approx(tilted(start), abs=0.004)
    assert abs(tilted(start) - kept(start)) > 0.02
    assert abs(tilted(start) - P[start]) > 0.1


@pytest.mark.parametrize(("event_weight", "start", "stop"), [(0.0, 0, 4), (0.5, 1, 2), (2.0, 0, 4)])
def test_tilt_of_any_window_and_with_event_minimises_its_definition(logs, event_weight, start, stop):
    """Over the steps of the window, the number m of draws of word 0, and the kept word."""
    def loss(x):
        q, total = np.log([1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x))]), 0.0
        for s in range(start, stop):
            for m in range(K + 1):
                chance = comb(K, m) * P[s] ** m * (1 - P[s]) ** (K - m)
                words = [0] * m + [1] * (K - m)
                w = np.exp(-BETA * np.array([ENERGY[v] for v in words]))
                w /= w.sum()
                f = np.array([q[v] - np.log([P[s], 1 - P[s]])[v] for v in words])
                total += chance * (-(w * (f - np.log(np.exp(f).sum()))).sum() - event_weight * q[0 if m else 1])
        return total

    best = minimize_scalar(loss, bounds=(-6, 6), method="bounded").x
    assert fitted(logs, "shaped", "tilt", start, stop, event_weight) == pytest.approx(1 / (1 + np.exp(-best)), abs=NOISE)


class FreePosition(nn.Module):
    """Logits of its own for each of L positions, whatever the state."""

    def __init__(self, logits):
        super().__init__()
        self.config, self.logits = SimpleNamespace(mask_id=None), nn.Parameter(logits)
        self.head = nn.Linear(logits.shape[1], logits.shape[1]).requires_grad_(False)
        nn.init.eye_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def hidden_where(self, wanted, x, t, dt):
        return self.logits.expand(*x.shape, -1)[wanted]


def chosen_together(weigh, choice):
    """Every pair of candidates of two positions and three words, and the proposal that they were drawn from."""
    p = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]).log()
    pairs = torch.tensor(list(product(range(3), repeat=2)))
    candidates = torch.tensor([[one.tolist(), other.tolist()] for one, other in combinations(pairs, 2)]).mT  # [B, L, K]
    drawn = torch.stack([p[at][candidates[:, at]] for at in (0, 1)], 1)
    size = len(candidates)
    return p, Batch(torch.zeros(size, 2, dtype=torch.int64), torch.zeros(size), torch.ones(size), candidates[..., 0], candidates,
                    weigh(candidates), None, None, logprobs=drawn, choice=torch.tensor(choice).expand(size, 2))


def test_positions_that_chose_together_are_asked_for_their_sum():
    """A whole candidate's energy is a sum over its positions: the tilt of each by its own part explains every choice."""
    parts = torch.tensor([[0.0, 1.0, 2.0], [0.5, 0.0, -1.0]])

    def weights(candidates):
        energy = torch.stack([parts[at][candidates[:, at]] for at in (0, 1)]).sum(0)
        return torch.softmax(-BETA * energy, -1)[:, None].expand(-1, 2, -1)

    p, together = chosen_together(weights, [1, 1])
    tilted, blind = (StudentLoss(cast(Denoiser, FreePosition(logits)), "tilt") for logits in (p - BETA * parts, p))
    assert float(tilted(together).detach().abs().max()) < 1e-5
    there_is = possible(together.weights[:, 0])
    torch.testing.assert_close(blind(together), (there_is / 2)[:, None].expand(-1, 2))  # a choice counts once, shared by its positions
    _, alone = chosen_together(weights, [0, 1])
    assert float(tilted(alone).detach().mean()) > 0.1  # each asked for the whole choice
    torch.testing.assert_close(blind(alone), there_is[:, None].expand(-1, 2))


def test_a_choice_is_shared_within_its_row_only():
    _, batch = chosen_together(lambda candidates: torch.rand(len(candidates), 1, 2).softmax(-1).expand(-1, 2, -1), [3, 3])
    loss = StudentLoss(cast(Denoiser, FreePosition(torch.randn(2, 3))), "tilt")
    torch.testing.assert_close(torch.cat([loss(batch.rows(slice(row, row + 1))) for row in range(len(batch))]), loss(batch))


def test_padded_candidates_are_nobody_s_choice():
    """A dataset of fewer candidates beside one of more: the same loss, and the same gradient, as by itself."""
    _, few = chosen_together(lambda candidates: torch.rand(len(candidates), 1, 2).softmax(-1).expand(-1, 2, -1), [3, 3])
    wide = replace(few, candidates=F.pad(few.candidates, (0, 1)), weights=F.pad(few.weights, (0, 1)),
                   logprobs=F.pad(few.logprobs, (0, 1)))
    joined = join([few, wide], np.arange(2 * len(few))).rows(slice(0, len(few)))
    assert present(joined.candidates).shape[-1] == 3
    gradients = []
    for batch in (few, joined):
        student = FreePosition(torch.ones(2, 3))
        loss = StudentLoss(cast(Denoiser, student), "tilt")(batch).sum()
        loss.backward()
        gradients.append((loss.detach(), present(student.logits.grad)))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_share_of_the_selection_is_0_for_the_proposal_and_1_for_the_full_tilt():
    p, energy = torch.tensor([0.2, 0.3, 0.5]).log(), torch.tensor([1.0, 0.2, 0.5])
    weights = torch.softmax(-BETA * energy, 0)[None]
    log_q = (p - BETA * energy).log_softmax(0)
    assert float(possible(weights)) > 0.1
    assert float(listwise((log_q - p)[None], weights)) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(listwise((p - p)[None], weights), possible(weights))
    uniform = torch.full((1, 3), 1 / 3)
    assert float(possible(uniform)) == pytest.approx(0, abs=1e-6)
    assert float(listwise(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.0]]))) == pytest.approx(np.log(3))  # no NaN of 0 log 0


@pytest.mark.parametrize(("start", "stop"), WINDOWS)
def test_endpoint_students_learn_the_final_token(logs, start, stop):
    wanted = np.mean([kept(s) for s in range(start, N)])
    assert fitted(logs, "shaped", "endpoint", start, stop) == pytest.approx(wanted, abs=NOISE)


@pytest.mark.parametrize(("start", "stop"), WINDOWS)
def test_kl_students_forget_the_selection(logs, start, stop):
    """forward_kl: the arithmetic mean of the proposals; reverse_kl: the geometric mean. Neither sees the compass."""
    part = P[start:stop]
    geometric = np.exp(np.log(part).mean()) / (np.exp(np.log(part).mean()) + np.exp(np.log(1 - part).mean()))
    for arm in ("shaped", "blind"):
        assert fitted(logs, arm, "forward_kl", start, stop) == pytest.approx(part.mean(), abs=0.015)
        assert fitted(logs, arm, "reverse_kl", start, stop) == pytest.approx(geometric, abs=0.015)


def log_q_of(logits, ids, bias=None):
    """What the losses take, by the kernel: the logits themselves are the hidden states of an identity head."""
    return normalised(linear_buckets(logits, torch.eye(logits.shape[1], dtype=logits.dtype), bias, ids), ids)


def dense(logits, ids, logprobs):
    """Bucketed log q and log p in float64, by loops: [R, k + 1] each."""
    q = F.softmax(logits.double(), -1)
    p = logprobs.double().exp()
    bucket_q, bucket_p = [], []
    for row in range(len(q)):
        rest = [v for v in range(q.shape[1]) if v not in ids[row].tolist()]
        bucket_q.append(torch.cat([q[row, ids[row]], q[row, rest].sum()[None]]).log())
        bucket_p.append(torch.cat([p[row], (1 - p[row].sum())[None]]).log())
    return torch.stack(bucket_q), torch.stack(bucket_p)


@pytest.mark.parametrize("spread", [0.1, 1.0, 8.0])
def test_divergences_are_their_definitions(spread):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 9, generator=generator) * spread
    top = (torch.randn(20, 9, generator=generator)).log_softmax(-1).topk(4, -1)
    log_q, log_p = dense(logits, top.indices, top.values)
    forward = (log_p.exp() * (log_p - log_q)).sum(-1)
    reverse = (log_q.exp() * (log_q - log_p)).sum(-1)
    found, tail = log_q_of(logits, top.indices)
    assert torch.allclose(forward_kl(found, tail, top.values).double(), forward, atol=1e-4)
    assert torch.allclose(reverse_kl(found, tail, top.values).double(), reverse, atol=1e-4)
    assert (forward >= -1e-9).all()


def test_a_top_k_that_holds_everything_stays_finite():
    logits = torch.randn(3, 4, requires_grad=True)
    logprobs = torch.tensor([[0.0, -65504.0, -65504.0, -65504.0]] * 3)
    ids = torch.arange(4).expand(3, 4)
    for divergence in (forward_kl, reverse_kl):
        log_q, tail = log_q_of(logits, ids)
        loss = divergence(log_q, tail, logprobs).sum()
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(present(logits.grad)).all()


def stored(p):
    """Log-probabilities as a dataset holds them."""
    return torch.from_numpy(_halved(p.log().numpy())).float()


@pytest.mark.parametrize("words", [2, 3, 5, 27])
def test_a_top_k_of_the_whole_vocabulary_has_no_rest(words):
    """Every distribution over a few words, [MASK] apart: the divergence of what is stored, to the stored numbers' rounding."""
    generator = torch.Generator().manual_seed(1)
    p = (2 * torch.randn(200, words, generator=generator)).softmax(-1)
    logits = 2 * torch.randn(200, words + 1, generator=generator)
    no_mask = torch.tensor([0.0] * words + [-torch.inf])
    top = stored(p).topk(words, -1)
    log_q, tail = log_q_of(logits, top.indices, no_mask)
    q = logits[:, :words].softmax(-1)
    forward = (p * (p.log() - q.log())).sum(-1)
    reverse = (q * (q.log() - p.log())).sum(-1)
    # a stored log-probability is within 1/256 nat
    assert torch.allclose(forward_kl(log_q, tail, top.values).float(), forward, atol=0.02)
    assert torch.allclose(reverse_kl(log_q, tail, top.values).float(), reverse, atol=0.02)
    same = stored(q).topk(words, -1)
    log_q, tail = log_q_of(logits, same.indices, no_mask)
    assert (forward_kl(log_q, tail, same.values).abs() < 1e-4).all()


def test_rounding_never_makes_the_rest_negative():
    """What is stored of nearly certain proposals adds up to more than one: still a divergence, and least where q is p."""
    logprobs = stored(torch.tensor([[0.998, 0.0019], [0.5, 0.4999], [0.9999, 0.00005]]))
    assert (logprobs.exp().sum(-1) > 1).any()
    ids = torch.tensor([[0, 1]] * 3)
    logits = torch.zeros(3, 6, requires_grad=True)
    log_q, tail = log_q_of(logits, ids)
    found = forward_kl(log_q, tail, logprobs)
    found.sum().backward()
    assert (found > 0).all()
    assert torch.isfinite(present(logits.grad)).all()
    p = logprobs.exp()
    p = torch.cat([p / p.sum(-1, keepdim=True).clamp_min(1), torch.zeros(3, 4)], -1)
    p[:, 2:] = ((1 - p.sum(-1)) / 4)[:, None]
    log_q, tail = log_q_of(p.clamp_min(1e-12).log(), ids)
    assert (forward_kl(log_q, tail, logprobs).abs() < 1e-6).all()


def test_a_candidate_without_weight_may_be_what_cannot_be_written():
    """As [MASK] is, by which the fewer candidates of one dataset are made as many as another's."""
    log_q = torch.tensor([[-0.5, -torch.inf]])
    assert mixture_cross_entropy(log_q, torch.tensor([[1.0, 0.0]])).tolist() == [0.5]


def test_the_mixture_merges_equal_candidates():
    logits = torch.randn(5, 7, requires_grad=True)
    candidates, weights = torch.randint(7, (5, 6)), torch.rand(5, 6).softmax(-1)
    merged = torch.zeros(5, 7).scatter_add(1, candidates, weights)
    wanted = -(merged * logits.log_softmax(-1)).sum(-1)
    assert torch.allclose(mixture_cross_entropy(log_q_of(logits, candidates)[0], weights), wanted, atol=1e-6)
    assert torch.autograd.gradcheck(lambda x: mixture_cross_entropy(log_q_of(x, candidates)[0], weights.double()), logits.detach().double().requires_grad_())


def test_positions_without_target_cost_nothing(logs):
    teacher, read = logs
    batch = read["shaped"].window(np.arange(50), np.full(50, 0), np.full(50, 1), "event", BETA)
    nats = StudentLoss(cast(Denoiser, Table(teacher.config)), "event")(batch)
    assert ((nats > 0) == (batch.target >= 0)).all()
    assert (batch.target < 0).any()
    assert torch.allclose(nats[batch.target >= 0], torch.tensor(2.0).log())
