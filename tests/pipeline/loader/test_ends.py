"""Windows of texts that end: nothing behind the end is learnt from, and a blind student's optimum is its teacher's posterior."""

from collections import Counter
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch

from tests.support import SHAPE, present
from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.flow.noise import Use
from tsdfm.pipeline.flow.rollout import roll_out, roll_out_blind
from tsdfm.pipeline.loader.windows import Trajectories
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.student import student_of
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.pipeline.training.objectives import StudentLoss
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig
from tsdfm.schemas.model import DenoiserConfig
from tsdfm.schemas.trajectory import Grid, arrow_schema

END, STEPS, L, K, TOP = 1, 8, 10, 3, 2
OBJECTIVES = ["event", "candidates", "endpoint", "forward_kl", "tilt"]


class Words:
    """Stands in for a vocabulary where only `decode` is asked for."""

    @staticmethod
    def decode(tokens):
        return " ".join(map(str, tokens))


def teacher_of(source):
    """A random teacher whose texts end early, often."""
    mask = source == "mask"
    torch.manual_seed(4)
    network = Denoiser(DenoiserConfig(**SHAPE, vocab_size=8 + mask, length=L, cond_dim=16, source=source, mask_id=8 if mask else None,
                                      end_id=END))
    for parameter in network.requires_grad_(False).parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    network.head.bias.zero_()
    network.head.bias[END] = 1.0
    return network.eval()


class Any:
    needs_completion, proposal_weight = False, 1.0

    def energy(self, states, t, completion):
        return (states * torch.arange(1, L + 1)).sum(-1).float() / 50


def made(source, end_id: int | None = END, junk: int | None = None):
    """Shaped trajectories; `junk`: the token that stands wherever something was written behind the end of the text."""
    teacher, rollout = teacher_of(source), RolloutConfig(steps=STEPS, top_k=TOP, logprobs=True)
    shaping = ShapingConfig(candidates=K)
    logs = roll_out(teacher, Any(), rollout, shaping, range(40), "shaped")
    if junk is not None:
        changed = []
        for log in logs:
            end = next((i for i in range(1, L) if log.tokens[i] == END), L)
            behind = log.event_position > end
            tokens = log.tokens.copy()
            tokens[end + 1:] = junk
            token, candidates = log.event_token.copy(), log.event_candidates.copy()
            token[behind] = candidates[behind] = junk
            logprobs = present(log.event_logprob).copy()
            logprobs[behind] = -junk * np.arange(K)
            changed.append(replace(log, tokens=tokens, event_token=token, event_candidates=candidates, event_logprob=logprobs))
        logs = changed
    config = teacher.config
    grid = Grid(length=L, steps=STEPS, vocab_size=config.vocab_size, mask_id=config.mask_id, candidates=K, top_k=TOP,
                shaped_steps=shaping.steps_of(rollout), select="argmin", compass=False, logprobs=True)
    return Trajectories.of(shards.to_table(logs, cast(Vocabulary, Words), arrow_schema(grid)), grid, "shaped", end_id), logs


@pytest.mark.parametrize("source", ["mask", "uniform"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_follows_an_end_is_not_learnt_from(source, objective):
    """The loss of every window is the same bits, whatever was written behind the ends; without an end_id it is not."""
    student = student_of(teacher_of(source))
    torch.nn.init.normal_(list(present(student.trunk.step_embedding).parameters())[-2], std=0.2)
    loss, rows = StudentLoss(student, objective), np.arange(40).repeat(STEPS)
    start = np.tile(np.arange(STEPS), 40)

    def of(junk, end_id=END):
        found, logs = made(source, end_id, junk)
        assert sum(END in log.tokens[1:-1] for log in logs) > 10
        with torch.no_grad():
            return loss(found.window(rows, start, np.minimum(STEPS, start + 2), objective, 1.0))

    losses = [of(junk) for junk in (None, 5, 7, END)]
    for other in losses[1:]:
        assert torch.equal(losses[0], other)
    assert not torch.equal(of(5, None), of(7, None))


def test_nothing_is_asked_for_behind_an_end_that_stands():
    """With the mask source; with the uniform one an end may be noise. Elsewhere behind the end the target is the end."""
    for source in ("mask", "uniform"):
        found, logs = made(source)
        packed, _ = made(source, None)
        asked = 0
        for start in range(STEPS):
            rows, at = np.arange(40), np.full(40, start)
            batch, whole = (each.window(rows, at, at + 1, "event", 1.0) for each in (found, packed))
            for row, log in enumerate(logs):
                end = next((i for i in range(1, L) if log.tokens[i] == END), L)
                stands = [i for i in range(1, L) if batch.x_t[row, i] == END]
                first = stands[0] if stands and source == "mask" else L
                for i in range(L):
                    target, unchanged = int(batch.target[row, i]), int(whole.target[row, i])
                    assert target == (-1 if i > first or unchanged < 0 else END if i > end else unchanged)
                    asked += target == END and i > end
        assert asked > 20


def test_a_blind_students_optimum_is_its_teachers_posterior(toys):
    """Frequencies of targets, for each state and position that is asked for, are the posterior's: leaving out what turns out to
    stand behind the end would condition on the outcome."""
    a, b, end, mask = range(4)
    law = {(a, end, end): 0.35, (b, a, end): 0.3, (a, b, b): 0.2, (b, b, a): 0.15}
    states = [(x, y, z) for x in range(4) for y in range(4) for z in range(4)]
    table = np.full((len(states), 3, 4), 1e-30)
    for text, p in law.items():
        for index, state in enumerate(states):
            if all(x in (mask, y) for x, y in zip(state, text, strict=True)):
                table[index, range(3), text] += p
    table /= table.sum(-1, keepdims=True)
    teacher = toys[0](torch.tensor(table).log()[None], "mask", mask)
    teacher.config = teacher.config.model_copy(update={"end_id": end})
    logs = roll_out_blind(teacher, RolloutConfig(steps=16), range(4000), Use.MEASURE)
    grid = Grid(length=3, steps=16, vocab_size=4, mask_id=mask, candidates=1, top_k=0, shaped_steps=[], select="argmin", compass=False)
    found = Trajectories.of(shards.to_table(logs, cast(Vocabulary, Words)), grid, "blind", end)
    counts: dict[tuple, Counter] = {}
    for start in range(16):
        at = np.full(4000, start)
        batch = found.window(np.arange(4000), at, at + 1, "event", 1.0)
        for row, position in (batch.target >= 0).nonzero().tolist():
            state = tuple(batch.x_t[row].tolist())
            counts.setdefault((state, position), Counter())[int(batch.target[row, position])] += 1
    big = {key: tally for key, tally in counts.items() if tally.total() > 300}
    assert ((mask,) * 3, 2) in big
    for (state, position), tally in big.items():
        wanted = table[states.index(state), position]
        for token in range(3):
            share, error = tally[token] / tally.total(), np.sqrt(wanted[token] * (1 - wanted[token]) / tally.total())
            # Beside the sampling error, what tokens that are written in the same step do to each other.
            assert abs(share - wanted[token]) <= 4.5 * error + 0.04, (state, position, token)
