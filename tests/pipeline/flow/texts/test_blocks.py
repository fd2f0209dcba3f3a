"""Texts in blocks: a chain of blocks has the law of a Markov text, each block goes on from the last, and texts stop at their end."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from tests.support import LENGTH, present
from tsdfm.pipeline.flow.noise import Noise, Use
from tsdfm.pipeline.flow.prompts import FREE
from tsdfm.pipeline.flow.rollout import roll_out_begun, roll_out_blind
from tsdfm.pipeline.flow.texts.blocks import Extent, block_trajectories, roll_out_blocks
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import load_denoiser
from tsdfm.schemas.base import InputError
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig
from tsdfm.schemas.given import BlockFacts

A, B, END, MASK = range(4)
START = np.array([0.7, 0.3, 0.0])
STEP = np.array([[0.2, 0.6, 0.2], [0.5, 0.25, 0.25], [0.0, 0.0, 1.0]])  # from a, b, end (which stays)


def chance(text, start=START):
    return start[text[0]] * np.prod([STEP[x, y] for x, y in itertools.pairwise(text)])


def markov(toys, length, start=START):
    """A perfect model of the first `length` tokens of the chain, which is at least as sure as one token a step."""
    states = list(itertools.product(range(4), repeat=length))
    table = np.full((len(states), length, 4), 1e-30)
    for text in itertools.product(range(3), repeat=length):
        for index, state in enumerate(states):
            if all(x in (MASK, y) for x, y in zip(state, text, strict=True)):
                table[index, range(length), text] += chance(text, start)
    made = toys[0](torch.tensor(table).log()[None], "mask", MASK)
    made.config = made.config.model_copy(update={"end_id": END})
    return made


@pytest.mark.parametrize("overlap", [1, 2])
def test_a_chain_of_blocks_has_the_law_of_a_markov_text(toys, overlap):
    """Blocks of 3 give 6 tokens of the chain. 256 steps, so that tokens are hardly ever written together."""
    model, count = markov(toys, 3), 4000
    extent = Extent(6, 3, overlap, END)
    assert list(extent.starts) == ([0, 2, 4] if overlap == 1 else [0, 1, 2, 3])
    found = roll_out_blocks(model, RolloutConfig(steps=256), range(count), Use.MEASURE, extent)
    wanted = {text: p for text in itertools.product(range(3), repeat=6) if (p := chance(text)) > 1e-3}
    counts = [int((found.tokens == text).all(1).sum()) for text in wanted]
    rest = 1 - sum(wanted.values())
    assert chisquare([*counts, count - sum(counts)], [*(p * count for p in wanted.values()), rest * count]).pvalue > 1e-4
    ended = [text.index(END) + 1 if END in text else 6 for text in itertools.product(range(3), repeat=6)]
    sizes = np.bincount(ended, weights=[chance(text) for text in itertools.product(range(3), repeat=6)], minlength=7)[2:]
    assert chisquare(np.bincount(found.sizes, minlength=7)[2:], sizes * count).pvalue > 1e-4
    assert found.ended.mean() == pytest.approx(1 - sum(chance(t) for t in itertools.product(range(2), repeat=6)), abs=0.03)


def test_trajectories_of_blocks_have_that_law_too(toys):
    """Joined without their overlaps; numbers of trajectories are noise of their own, so texts and blocks are independent of each other."""
    start = np.full(3, 1 / 3)  # a block may begin with any token
    model, count = markov(toys, 3, start), 1500
    model.config = model.config.model_copy(update={"end_id": None})
    logs = block_trajectories(
        lambda begun: roll_out_begun(model, None, RolloutConfig(steps=256), ShapingConfig(candidates=1), begun, "blind"),
        range(count), BlockFacts(per_text=3, overlap=1), torch.full((count, 3), FREE))
    assert [log.trajectory_id for log in logs] == list(range(3 * count))
    blocks = np.stack([log.tokens for log in logs]).reshape(count, 3, 3)
    assert (blocks[:, 1:, 0] == blocks[:, :-1, -1]).all()
    found = np.concatenate([blocks[:, 0], blocks[:, 1:, 1:].reshape(count, 4)], 1)
    wanted = {text: p for text in itertools.product(range(3), repeat=7) if (p := chance(text, start)) > 4e-3}
    counts = [int((found == text).all(1).sum()) for text in wanted]
    rest = 1 - sum(wanted.values())
    assert chisquare([*counts, count - sum(counts)], [*(p * count for p in wanted.values()), rest * count]).pvalue > 1e-4


def joined(blocks):
    """The text that some blocks [n, 3], which overlap by a token, begin with, up to its end; END fills it up to where they end."""
    tokens = list(blocks[0])
    for block in blocks[1:]:
        tokens += [END, END] if END in tokens else list(block[1:])
    return tuple(tokens)


def test_trajectories_of_texts_that_end_have_that_law_and_another_text_begins_behind_an_end(toys):
    """The first text of three blocks, and the one that begins in the second block where the first one was all of a text."""
    model, count = markov(toys, 3), 1500
    logs = block_trajectories(
        lambda begun: roll_out_begun(model, None, RolloutConfig(steps=256), ShapingConfig(candidates=1), begun, "blind"),
        range(count), BlockFacts(per_text=3, overlap=1), torch.full((count, 3), FREE), END)
    blocks = np.stack([log.tokens for log in logs]).reshape(count, 3, 3)
    over = (blocks[:, 0, 1:] == END).any(1)
    assert [len(present(log.fixed_positions)) for log in logs[1::3]] == (~over).astype(int).tolist()
    for found, size in (([joined(each) for each in blocks], 7), ([joined(each[1:]) for each in blocks[over]], 5)):
        assert len(found) > 400
        wanted = {text: p for text in itertools.product(range(3), repeat=size) if (p := chance(text)) * len(found) > 4}
        counts = [found.count(text) for text in wanted]
        rest = 1 - sum(wanted.values())
        assert chisquare([*counts, len(found) - sum(counts)], [*(p * len(found) for p in wanted.values()), rest * len(found)]).pvalue > 1e-4


@pytest.fixture(scope="module", params=["mask", "uniform"])
def model(request, tiny_models):
    return load_denoiser(getattr(tiny_models, request.param)).network


def rolled(model, ids=range(5), fixed=None, steps=4, seed=0, **extent):
    return roll_out_blocks(model, RolloutConfig(steps=steps, seed=seed), ids, Use.MEASURE, Extent(**extent), fixed)


@pytest.mark.parametrize("length", [5, LENGTH])
def test_one_block_is_a_text_as_ever(model, length):
    rollout = RolloutConfig(steps=4, length=length)
    logs = roll_out_blind(model, rollout, range(5), Use.MEASURE)
    found = rolled(model, length=length, size=length)
    assert found.tokens.tolist() == [log.tokens.tolist() for log in logs]
    assert found.passes.tolist() == [len(np.unique(log.event_step)) for log in logs]
    assert found.sizes.tolist() == [length] * 5
    assert not found.ended.any()


def test_each_block_goes_on_from_the_last(model):
    """A text of 40 begins as the one of 16, and as one of any length between; every block is the model's, given the overlap."""
    found = rolled(model, length=40, size=16, overlap=6)
    for length in (16, 17, 26, 33):
        assert (rolled(model, length=length, size=16, overlap=6).tokens == found.tokens[:, :length]).all()
    assert not (rolled(model, length=40, size=16, overlap=7).tokens[:, 16:] == found.tokens[:, 16:]).all()
    assert (rolled(model, ids=[3], length=40, size=16, overlap=6).tokens[0] == found.tokens[3]).all()
    assert (rolled(model, length=40, size=16, overlap=6).tokens == found.tokens).all()
    assert (rolled(model, length=40, size=16, overlap=6, seed=1).tokens != found.tokens).any()
    assert model.config.mask_id not in found.tokens


def test_blocks_have_noise_of_their_own():
    """Block b of a text never draws what another block draws, nor candidates of one: all counters differ."""
    blocks = [Noise(0, torch.arange(3), Use.MEASURE, block) for block in (0, 1, 2, 255)]
    drawn = torch.cat([part.flatten() for noise in blocks for part in (
        noise.source(8), noise.rings(torch.arange(3), torch.zeros(3, dtype=torch.long), 8), noise.spacing(8),
        noise.tokens(torch.arange(3), torch.zeros(3, dtype=torch.long), torch.arange(3), 127))])
    assert len(drawn.unique()) == len(drawn)
    assert torch.equal(Noise(0, torch.arange(3)).source(8), Noise(0, torch.arange(3), block=0).source(8))


def test_given_tokens_stand_in_every_block(model):
    """A prompt longer than a block, and gaps that lie anywhere."""
    fixed = torch.full((2, 40), FREE)
    fixed[0, :23] = torch.arange(23) + 3
    fixed[1, [0, 15, 16, 30, 39]] = torch.tensor([9, 8, 7, 6, 5])
    found = rolled(model, ids=range(2), fixed=fixed, length=40, size=16, overlap=6)
    assert (np.where(fixed < 0, found.tokens, fixed) == found.tokens).all()
    assert found.passes[0] < found.passes[1]  # its first block is all given


def test_texts_stop_at_their_end_whatever_the_others_do(tiny_models):
    """An end in any block but one that is given, or first; behind it there is nothing, and no more block is computed."""
    model, end = load_denoiser(tiny_models.mask).network, 70
    whole = rolled(model, ids=range(60), length=40, size=16, overlap=6)
    found = rolled(model, ids=range(60), length=40, size=16, overlap=6, end_id=end)
    ends = [next((i for i, token in enumerate(row) if i and token == end), None) for row in whole.tokens.tolist()]
    assert len({place is not None and place >= 16 for place in ends}) == 2
    for row, place in enumerate(ends):
        size = 40 if place is None else place + 1
        assert found.sizes[row] == size
        assert found.ended[row] == (place is not None)
        assert (found.tokens[row, :size] == whole.tokens[row, :size]).all()
        assert (found.tokens[row, size:] == end).all()
        assert (found.passes[row] < whole.passes[row]) == (size <= 26)  # the last of three blocks begins at 20, and is written from 26 on
    fixed = torch.full((1, 40), FREE)
    fixed[0, 4] = end
    given = rolled(model, ids=[0], fixed=fixed, length=40, size=16, overlap=6, end_id=end)
    assert given.sizes[0] > 5


def test_an_end_before_a_word_that_is_given_in_a_later_block_ends_nothing(tiny_models):
    """Of a teacher whose texts end: up to that word they are those of one whose texts don't."""
    packed, end = load_denoiser(tiny_models.mask).network, 70
    padded = Denoiser(packed.config.model_copy(update={"end_id": end})).eval().requires_grad_(False)
    packed.head.bias[end] += 3
    padded.load_state_dict(packed.state_dict())
    fixed = torch.full((50, 24), FREE)
    fixed[:, 20] = 9
    found, whole = (rolled(model, ids=range(50), fixed=fixed, length=24, size=16, overlap=8, end_id=model.config.end_id).tokens
                    for model in (padded, packed))
    assert (found[:, 1:16] == end).sum() > 30
    assert (found[:, :21] == whole[:, :21]).all()


def test_what_cannot_be(tiny_models):
    opened = load_denoiser(tiny_models.mask)

    def asked(length=None, until=None, overlap=None):
        return Extent.of(opened.network.config, opened.vocabulary, length=length, until=until, overlap=overlap)

    assert asked() == Extent(16, 16)
    assert asked(length=5) == Extent(5, 5)
    assert asked(length=20, until="end") == Extent(20, 16, 8, opened.vocabulary.eos_id)
    assert asked(length=20, overlap=15, until="length") == Extent(20, 16, 15)
    for length, overlap, words in ((None, 4, "leave it out"), (16, 4, "leave it out"), (20, 16, "give fewer"), (20, 17, "give fewer")):
        with pytest.raises(InputError, match=f"overlap: .*{words}"):
            asked(length=length, overlap=overlap)
