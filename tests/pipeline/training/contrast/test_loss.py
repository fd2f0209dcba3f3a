"""What an `nce` compass is fitted to: pairs of states, and jumps of real texts whose tokens a teacher could have drawn."""

import itertools
import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from tests.support import present
from tsdfm.kernels import sample_rows
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.pipeline.training.contrast.loss import Candidates, ContrastRows, NoiseContrast, nce, ranked

L, V, MASK = 3, 3, 3
TEXTS = torch.tensor(list(itertools.product(range(V), repeat=L)))
DATA = torch.tensor(np.random.default_rng(3).dirichlet(np.full(V**L, 0.7))).float().clamp_min(0.004)
DATA = DATA / DATA.sum()  # of each text; positions hang together
MARGINAL = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.25, 0.25, 0.5]])  # a teacher's, of each position


def rows_of(path_mask: int | None, candidates: Candidates | None = None, states: torch.Tensor | None = None, **config: Any) -> NoiseContrast:
    """A loss whose model is a stand-in that knows its path."""
    model = torch.nn.Module()
    trunk = {"kappa_exponent": 1.0, "vocab_size": 50, "mask_id": path_mask, **config}
    model.config = SimpleNamespace(trunk=SimpleNamespace(**trunk))  # type: ignore[assignment]
    return NoiseContrast(cast(NceEncoder, model), torch.zeros(1, 1, 1) if states is None else states, candidates)


class Product(torch.nn.Module):
    """A teacher that draws each position from MARGINAL, by itself, whatever it sees; and notes what it was asked."""

    config = SimpleNamespace(mask_id=MASK, end_id=None)

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(L, V + 1, bias=False)
        self.head.weight.data = torch.cat([MARGINAL.log(), torch.zeros(L, 1)], 1).T.contiguous()
        self.asked: list[tuple[torch.Tensor, ...]] = []

    def hidden_where(self, wanted, x_t, t, dt=None):
        self.asked.append((wanted, x_t, t, dt))
        return torch.eye(L)[wanted.nonzero()[:, 1]]


class Table(torch.nn.Module):
    """A logit for every text."""

    config = SimpleNamespace(trunk=SimpleNamespace(kappa_exponent=1.0, vocab_size=V + 1, mask_id=MASK))

    def __init__(self) -> None:
        super().__init__()
        self.logit = torch.nn.Parameter(torch.zeros(V**L))

    def forward(self, x, t):
        return self.logit[(x * torch.tensor([V * V, V, 1])).sum(-1)]


def test_nce_is_binary_cross_entropy_and_its_optimum_the_density_ratio():
    real, noise = torch.tensor([0, 1, 0, 0]), torch.tensor([1, 1, 0, 1])
    logits = torch.tensor([0.3, -2.0])
    expected = np.mean([math.log1p(math.exp(-v)) for v in (0.3, -2.0, 0.3, 0.3)]) + np.mean(
        [math.log1p(math.exp(v)) for v in (-2.0, -2.0, 0.3, -2.0)])
    assert nce(logits[real], logits[noise]).mean().item() == pytest.approx(expected, rel=1e-6)
    logits = torch.tensor([math.log(0.75 / 0.25), math.log(0.25 / 0.75)], requires_grad=True)  # log p_real / p_noise
    nce(logits[real], logits[noise]).mean().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(2), rtol=0, atol=1e-6)


def test_noise_is_a_state_of_a_rollout_at_the_time_of_the_text_it_is_paired_with():
    """States say where they come from: rollout r at step s holds 10 r + s everywhere. Texts are a single token."""
    states = (10 * torch.arange(3)[:, None, None] + torch.arange(4)[:, None]).expand(3, 4, 6)
    rows = rows_of(None, states=states).draw(torch.full((2000, 6), 7), torch.Generator().manual_seed(0))
    x_t, t = rows.noised()
    step = rows.tokens[:, 0] % 10
    assert torch.equal(t, (step + 1) / 4)
    assert torch.equal(rows.tokens, rows.tokens[:, :1].expand(-1, 6))
    assert torch.bincount(rows.tokens[:, 0]).nonzero()[:, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
    for s in range(4):
        assert (x_t[step == s] == 7).float().mean().item() == pytest.approx((s + 1) / 4, abs=0.03)


# ------------------------------------------------------------------ the same positions are masked

def test_a_text_is_masked_where_the_rollout_is():
    states = torch.randint(0, 2, (40, 4, 6), generator=torch.Generator().manual_seed(0)) * 45 + 5  # 5 or [MASK]
    rows = rows_of(50, states=states).draw(torch.full((300, 6), 7), torch.Generator().manual_seed(1))
    real, _ = rows.noised()
    assert torch.equal(real == 50, rows.tokens == 50)
    assert set(real.unique().tolist()) == {7, 50}
    assert set(rows.tokens.unique().tolist()) == {5, 50}


# ------------------------------------------------------------------ jumps

def jumps(mask_id: int | None, steps: int = 12, texts: int = 4000, exponent: float = 2.0) -> tuple[ContrastRows, torch.Tensor]:
    """Rows with jumps, of texts all 7, on a grid whose rollouts hold 5 where they are written, with the path's own law."""
    generator = torch.Generator().manual_seed(0)
    states = torch.full((500, steps, 6), 5)
    if mask_id is not None:
        times = (torch.arange(1, steps + 1) / steps) ** exponent
        states = torch.where(torch.rand(500, 1, 6, generator=generator) < times[:, None], 5, mask_id)
    candidates = Candidates(cast(Denoiser, None), 2)
    rows = rows_of(mask_id, candidates, states, kappa_exponent=exponent).draw(torch.full((texts, 6), 7), generator)
    return rows, rows.noised()[0]


@pytest.mark.parametrize("mask_id", [50, None])
def test_jumps_follow_the_path(mask_id):
    """At either end of a jump as much is written as kappa says, and what rang is what the jump wrote."""
    rows, real = jumps(mask_id)
    jump, t_next = rows.jump, rows.noised()[1]
    assert jump is not None
    steps = ((t_next - jump.t) * 12).round().long()
    assert set(steps.tolist()) == {1, 2, 4, 8}
    assert (jump.t >= 0).all()
    rang, exponent = jump.rings, 2.0
    assert (real[rang] == 7).all()
    assert torch.equal(real[~rang], jump.before[~rang])
    for early in (True, False):
        some = (t_next <= 0.5) if early else (t_next > 0.5)
        for state, time in ((jump.before, jump.t), (real, t_next)):
            kept = (state[some] == 7).float().mean(1) - (time[some] ** exponent if mask_id is not None else (
                time[some] ** exponent + (1 - time[some] ** exponent) / 50))
            assert abs(float(kept.mean())) < 0.015
    if mask_id is not None:
        assert (jump.before[rang] == mask_id).all()


def test_jumps_of_all_sizes_that_fit_are_alike_often():
    rows, _ = jumps(None, steps=4, texts=8000)
    assert rows.jump is not None
    sizes = ((rows.noised()[1] - rows.jump.t) * 4).round().long()
    last = rows.noised()[1] == 1
    for size in (1, 2, 4):
        assert float((sizes[last] == size).float().mean()) == pytest.approx(1 / 3, abs=0.04)


def test_candidates_differ_where_the_text_rang_and_are_the_teachers_draws():
    teacher = Product()
    states = torch.full((5, 4, L), MASK).masked_fill(torch.rand(5, 4, L, generator=torch.Generator().manual_seed(0)) < 0.7, 0)
    loss = NoiseContrast(cast(NceEncoder, Table()), states, Candidates(cast(Denoiser, teacher), 300))
    rows = loss.draw(torch.full((40, L), 1), torch.Generator().manual_seed(2))
    real, t = rows.noised()
    jump = rows.jump
    assert jump is not None
    drawn = present(loss.candidates).states(real, t, jump)
    assert drawn.shape == (40, 300, L)
    still = ~jump.rings[:, None].expand_as(drawn)
    assert torch.equal(drawn[still], real[:, None].expand_as(drawn)[still])
    for position in range(L):
        here = drawn[jump.rings[:, position], :, position].flatten()
        torch.testing.assert_close(torch.bincount(here, minlength=V) / len(here), MARGINAL[position], rtol=0, atol=0.02)
    wanted, before, time, dt = teacher.asked[0]
    assert torch.equal(wanted, jump.rings)
    assert torch.equal(before, jump.before)
    torch.testing.assert_close(time + dt, t)


def test_nothing_rings_and_nothing_is_drawn():
    real = torch.tensor([[0, 1, 2]])
    rows = rows_of(MASK, Candidates(cast(Denoiser, Product()), 2), torch.full((1, 1, L), MASK)).draw(real, torch.Generator())
    assert rows.jump is not None
    assert not rows.jump.rings.any()
    drawn = Candidates(cast(Denoiser, Product()), 2).states(rows.noised()[0], rows.noised()[1], rows.jump)
    assert torch.equal(drawn, torch.full((1, 2, L), MASK))


def test_rows_are_cut_and_moved_whole():
    rows, real = jumps(50, texts=8)
    part = rows.rows(slice(2, 5)).to(torch.device("cpu"))
    assert isinstance(part, ContrastRows)
    assert part.jump is not None
    assert rows.jump is not None
    assert torch.equal(part.noised()[0], real[2:5])
    for name in ("before", "t", "rings", "uniforms"):
        assert torch.equal(getattr(part.jump, name), getattr(rows.jump, name)[2:5])


# ------------------------------------------------------------------ the optimum

def test_ranking_is_cross_entropy_with_the_text_first():
    real, drawn = torch.tensor([0.5, -1.0]), torch.tensor([[0.1, 2.0], [-1.0, 0.0]])
    expected = torch.nn.functional.cross_entropy(torch.cat([real[:, None], drawn], 1), torch.zeros(2, dtype=torch.long), reduction="none")
    torch.testing.assert_close(ranked(real, drawn), expected)


@pytest.mark.parametrize("count", [0, 4])
def test_the_optimum_is_the_log_density_ratio(count, monkeypatch):
    """27 texts, one step: the rollouts' law is the product of the teacher's marginals, of which candidates are drawn, too. So
    the best logit is log p_data(x) - sum_i log p_teacher(x^i) by either part of the loss."""
    monkeypatch.setattr(sample_rows, "CDF_BLOCK", 4)  # for a vocabulary of four: a tenth of the time
    generator = torch.Generator().manual_seed(0)
    product = MARGINAL[torch.arange(L), TEXTS].prod(1)
    states = TEXTS[torch.multinomial(product, 60_000, replacement=True, generator=generator)][:, None]
    model = Table()
    loss = NoiseContrast(cast(NceEncoder, model), states, Candidates(cast(Denoiser, Product()), count) if count else None)
    optimizer = torch.optim.Adam([model.logit], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 150)
    for _ in range(150):
        rows = loss.draw(TEXTS[torch.multinomial(DATA, 4096, replacement=True, generator=generator)], generator)
        optimizer.zero_grad()
        loss(rows).mean().backward()
        optimizer.step()
        scheduler.step()
    often = DATA > 0.02
    torch.testing.assert_close(model.logit.detach()[often], (DATA / product).log()[often], rtol=0, atol=0.15)
