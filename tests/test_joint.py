"""The joint layer of `tests/benchmarks/joint.py`: that it begins as the factorised student, looks back only, and can learn what that can't."""

import importlib
import math
from pathlib import Path

import pytest
import torch

from tsdfm.pipeline.flow.noise import Use
from tsdfm.pipeline.flow.rollout import roll_out_blind
from tsdfm.pipeline.loader.windows import Batch
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.student import student_of
from tsdfm.pipeline.training.objectives import StudentLoss
from tsdfm.schemas.generate import RolloutConfig
from tsdfm.schemas.model import DenoiserConfig

WORDS, LENGTH = 11, 8
MASK = WORDS - 1


@pytest.fixture
def layers(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "benchmarks"))
    return importlib.import_module("joint_layer")


def student(words=WORDS, length=LENGTH, width=16):
    """A student of random weights, its head too."""
    torch.manual_seed(0)
    teacher = Denoiser(DenoiserConfig(vocab_size=words, mask_id=words - 1, source="mask", length=length, hidden_size=width, n_blocks=1,
                                      n_heads=2, cond_dim=8, mlp_ratio=2))
    torch.nn.init.normal_(teacher.head.weight)
    return student_of(teacher, "spaced").eval()


def opened(side):
    """The side with a layer that changes what the head is given."""
    torch.manual_seed(1)
    torch.nn.init.normal_(side.layer.out.weight, std=0.3)
    return side


def windows(target, x_t, t=0.0, dt=1.0):
    rows = len(target)
    return Batch(x_t=x_t, t=torch.full((rows,), t), dt=torch.full((rows,), dt), target=target,
                 candidates=None, weights=None, topk_ids=None, topk_logprobs=None)


@pytest.fixture
def batch():
    """Two windows of which four and three positions jump."""
    tokens = torch.arange(2 * LENGTH).view(2, LENGTH) % MASK
    where = torch.tensor([[1, 0, 1, 0, 1, 0, 1, 0], [0, 1, 1, 0, 0, 0, 0, 1]], dtype=torch.bool)
    return windows(torch.where(where, tokens, -1), torch.where(where, MASK, tokens), 0.5, 0.25)


@pytest.mark.parametrize("name", ["Factorised", "Joint", "Added"])
def test_every_side_begins_as_the_packages_student(layers, batch, name):
    model = student()
    expected = StudentLoss(model, "event")(batch)[batch.target >= 0]
    assert torch.allclose(getattr(layers, name)(model).nats(batch), expected, atol=1e-5)


def test_a_token_is_told_to_later_targets_of_its_jump_alone(layers, batch):
    side, where = opened(layers.Joint(student())), batch.target >= 0
    together, tokens = layers.Together.of(where), batch.target[where]
    hidden = side.student.hidden_where(where, batch.x_t, batch.t, batch.dt)
    before = side.seen(hidden, together, tokens)
    for k in range(7):  # targets 0..3 of the first window, 4..6 of the second
        after = side.seen(hidden, together, tokens.scatter(0, torch.tensor([k]), (tokens[k, None] + 1) % MASK))
        changed = (after != before).any(1).nonzero()[:, 0].tolist()
        assert changed == list(range(k + 1, 4 if k < 4 else 7))


def test_what_is_added_to_a_teacher_learns_alone(layers, batch):
    side = opened(layers.Added(student()))
    side.nats(batch).sum().backward()
    assert all(each.grad is not None for each in side.fitted.parameters())
    assert all(each.grad is None for each in side.student.parameters())


def test_what_is_drawn_one_by_one_is_drawn_from_what_was_trained(layers, batch):
    side, where = opened(layers.Joint(student())), batch.target >= 0
    together, uniforms = layers.Together.of(where), torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    hidden = side.student.hidden_where(where, batch.x_t, batch.t, batch.dt)
    with torch.no_grad():
        tokens = side.draw(hidden, together, uniforms, 0.9)
        assert torch.equal(side.drawn(side.seen(hidden, together, tokens), uniforms, 0.9), tokens)
        assert not torch.equal(layers.Factorised(side.student).draw(hidden, together, uniforms, 0.9), tokens)


@pytest.mark.parametrize("clocks", ["spaced", "independent"])
def test_texts_are_written_where_clocks_ring_with_one_pass_of_the_trunk_a_step(layers, monkeypatch, clocks):
    side, rollout = opened(layers.Joint(student())), RolloutConfig(steps=4, clocks=clocks)
    passes, whole = [], side.student.hidden_where

    def noted(where, x_t, t, dt):
        passes.append((where, x_t))
        return whole(where, x_t, t, dt)

    monkeypatch.setattr(side.student, "hidden_where", noted)
    texts = layers.write(side, rollout, range(5))
    assert len(passes) == 4
    assert (sum(where.int() for where, _ in passes) == 1).all()  # every position once
    for (where, before), after in zip(passes, [state for _, state in passes[1:]] + [texts], strict=True):
        assert torch.equal(before[~where], after[~where])
        assert (before[where] == MASK).all()
        assert (after[where] != MASK).all()


def test_the_factorised_side_writes_what_the_package_writes(layers):
    model, rollout = student(), RolloutConfig(steps=4, clocks="spaced", temperature=0.8)
    expected = [log.tokens.tolist() for log in roll_out_blind(model, rollout, range(6), Use.MEASURE)]
    assert layers.write(layers.Factorised(model), rollout, range(6)).tolist() == expected


def test_of_two_tokens_that_always_agree_the_joint_layer_learns_one(layers):
    sides = {name: getattr(layers, name)(student(words=4, length=2)) for name in ("Factorised", "Joint")}
    nats = {}
    for name, side in sides.items():
        optimizer, numbers = torch.optim.AdamW(side.parameters(), lr=0.03), torch.Generator().manual_seed(0)
        for _ in range(50):
            tokens = torch.randint(3, (32, 1), generator=numbers).expand(-1, 2)
            loss = side.nats(windows(tokens, torch.full_like(tokens, 3))).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        nats[name] = loss.item()
    assert nats["Factorised"] == pytest.approx(math.log(3), abs=0.05)
    assert nats["Joint"] == pytest.approx(math.log(3) / 2, abs=0.05)
