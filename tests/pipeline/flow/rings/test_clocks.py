"""Which positions ring together: every clock's own law is the path's, counts per step are even, and neighbours ring apart.

The joint law is checked against an enumeration of all patterns in the room `exact`.
"""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from tests.support import assert_refused, make_dataset
from tsdfm.pipeline.dataset.manifest import digest
from tsdfm.pipeline.dataset.verify import verify
from tsdfm.pipeline.evaluation.run import evaluate
from tsdfm.pipeline.evaluation.samples import sample
from tsdfm.pipeline.flow.mixture_path import MixturePath
from tsdfm.pipeline.flow.noise import Noise
from tsdfm.pipeline.flow.rings.clocks import draw_rings, noised_states, spread
from tsdfm.pipeline.flow.rollout import roll_out_blind
from tsdfm.pipeline.models.folder import load, load_model
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.training.distill import distill
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.evaluate import EvaluateConfig
from tsdfm.schemas.generate import RolloutConfig
from tsdfm.schemas.manifest import Identity
from tsdfm.schemas.sample import SampleConfig
from tsdfm.schemas.terms import Clocks

LENGTHS = (1, 3, 16, 23, 64)
ROLLOUT = {"steps": 8, "batch_size": 4}  # of `make_dataset`


def path(source: str, exponent: float = 1.0) -> MixturePath:
    return MixturePath(exponent, 50, 49 if source == "mask" else None)


def rings(source: str, clocks, steps: int, length: int, *, exponent: float = 1.0, batch: int = 2000) -> np.ndarray:
    noise, times = Noise(5, torch.arange(batch)), RolloutConfig(steps=steps).times
    return draw_rings(path(source, exponent), noise, times, length, clocks).numpy()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("steps", "exponent"), [(1, 1.0), (4, 1.0), (8, 2.0), (40, 0.5)])
def test_spaced_masks_fall_once_each_by_the_law_of_the_path(length, steps, exponent):
    drawn = rings("mask", "spaced", steps, length, exponent=exponent)
    assert (drawn.sum(1) == 1).all()
    share = np.diff(np.array(RolloutConfig(steps=steps).times) ** exponent)
    for position in {0, length // 2, length - 1} if steps > 1 else ():
        assert chisquare(drawn[:, :, position].sum(0), share * len(drawn)).pvalue > 1e-4
    counts = drawn.sum(2)
    assert (np.abs(counts - share * length) < 1 + 1e-9).all(), "as many at each step as its share of the positions, to within one"


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("steps", "exponent"), [(1, 1.0), (4, 1.0), (8, 2.0)])
def test_spaced_redraws_follow_the_law_of_the_path(length, steps, exponent):
    drawn = rings("uniform", "spaced", steps, length, exponent=exponent)
    grid = torch.tensor(RolloutConfig(steps=steps).times, dtype=torch.float64)
    g = path("uniform", exponent).ring_probability(grid[:-1], grid[1:]).numpy()
    assert drawn[:, -1].all()
    assert (np.abs(drawn.sum(2) - g * length) < 1 + 1e-9).all()
    for position, step in itertools.product({0, length // 2, length - 1}, range(steps - 1)):
        hits = drawn[:, step, position].sum()
        assert chisquare([hits, len(drawn) - hits], np.array([g[step], 1 - g[step]]) * len(drawn)).pvalue > 1e-4
    if steps > 2:  # steps know nothing of each other
        both = (drawn[:, 0, 0] & drawn[:, 1, 0]).mean()
        assert abs(both - g[0] * g[1]) < 5 * np.sqrt(g[0] * g[1] / len(drawn))


@pytest.mark.parametrize("length", [16, 23, 64])
def test_even_redraws_pass_over_all_positions_before_any_comes_again(length):
    steps, exponent = 8, 1.0
    drawn = rings("uniform", "even", steps, length, exponent=exponent)
    grid = torch.tensor(RolloutConfig(steps=steps).times, dtype=torch.float64)
    sums = path("uniform").ring_probability(grid[:-1], grid[1:]).cumsum(0).numpy()
    times_rung = drawn.cumsum(1)[:, :-1]
    assert ((times_rung.max(2) - times_rung.min(2)) <= 1).all()
    assert (np.abs(times_rung.sum(2) - sums[:-1] * length) < 1 + 1e-9).all()
    assert drawn[:, -1].all()


@pytest.mark.parametrize(("source", "clocks"), [("mask", "spaced"), ("uniform", "spaced"), ("uniform", "even")])
def test_what_rings_together_stands_apart(source, clocks):
    """In 8 steps of 64 positions: the 8 that ring first are 8 apart, where 8 at random have a pair of neighbours more often than not."""
    def nearest(drawn):
        first = [np.flatnonzero(row[0]) for row in drawn[:300]]
        return np.array([np.diff(each).min() for each in first if len(each) > 1])

    assert set(nearest(rings(source, clocks, 8, 64))) == {8}
    assert np.median(nearest(rings(source, "independent", 8, 64))) == 1


def test_ranks_are_van_der_corputs():
    assert spread(8, torch.device("cpu")).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
    for length in range(1, 40):
        found = spread(length, torch.device("cpu")).tolist()
        assert sorted(found) == list(range(length))
        by_bits = sorted(range(length), key=lambda i: format(i, "06b")[::-1])
        assert [found[i] for i in by_bits] == list(range(length))


@pytest.mark.parametrize("clocks", ["spaced", "independent"])
def test_states_to_train_on_are_those_that_trajectories_pass(clocks):
    """Of the mask source, at t = s / N: the same share of masks, and (spaced) the same sets of positions."""
    share, length, generator = (1.0 if clocks == "spaced" else 0.0), 8, torch.Generator().manual_seed(0)
    x_1, t = torch.arange(length).repeat(20_000, 1), torch.full((20_000,), 0.375)
    masked = (noised_states(path("mask"), x_1, t, generator, share) == 49).numpy()
    drawn = ~rings("mask", clocks, 8, length, batch=20_000)[:, :3].any(1)
    assert abs(masked.mean() - 0.625) < 0.005
    places = 2 ** np.arange(length)
    seen, passed = (np.bincount(each @ places, minlength=256) for each in (masked, drawn))
    if clocks == "spaced":
        assert len(np.flatnonzero(seen)) == length
        assert set(np.flatnonzero(seen)) == set(np.flatnonzero(passed))
    half = noised_states(path("mask"), x_1[:100], t[:100], generator, 0.25)
    assert ((half == 49).sum(1)[:25] == 5).all()
    assert (half == 49).sum(1).unique().numel() > 1


def test_clocks_are_part_of_what_a_dataset_is(tiny_models, tmp_path):
    """Independent ones leave manifests and digests as they were before there was a choice."""
    usual = make_dataset(tmp_path / "usual", tiny_models, trajectories=4).identity
    named = make_dataset(tmp_path / "named", tiny_models, trajectories=4, rollout={**ROLLOUT, "clocks": "independent"}).identity
    spaced = make_dataset(tmp_path / "spaced", tiny_models, trajectories=4, rollout={**ROLLOUT, "clocks": "spaced"}).identity
    assert usual == named
    assert (usual.rollout.clocks, spaced.rollout.clocks) == ("independent", "spaced")
    assert "clocks" not in usual.model_dump_json()
    assert digest(usual) != digest(spaced)
    assert Identity.model_validate_json(spaced.model_dump_json()) == spaced
    assert Identity.model_validate_json(usual.model_dump_json()) == usual
    assert verify(open_store(str(tmp_path / "spaced")))[1] == []


@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_a_student_keeps_the_clocks_of_its_data(tiny_models, tmp_path, source):
    """From a dataset over a student to its texts and to the next round; a setting overrides it."""
    teacher = tiny_models.mask if source == "mask" else tiny_models.uniform
    clocks: Clocks = "spaced" if source == "mask" else "even"
    common = {"arm": "blind", "compass": "none", "trajectories": 8}
    made = make_dataset(tmp_path / "data", tiny_models, teacher=str(teacher), rollout={**ROLLOUT, "steps": 4, "clocks": clocks}, **common)
    assert made.identity.rollout.clocks == clocks
    distill(DistillConfig.model_validate({"data": {"paths": [str(tmp_path / "data")], "arm": "blind"}, "init": str(teacher),
                                          "optim": {"steps": 2, "batch_size": 4}}), tmp_path / "student")
    student = load(tmp_path / "student").network.config
    assert student.clocks == clocks  # type: ignore[union-attr]  # a denoiser's
    assert load_model(str(teacher)).network.config.clocks == "independent"
    config = SampleConfig(model=str(tmp_path / "student"), number=3, rollout=RolloutConfig(steps=4))
    texts = {name: sample(config.model_copy(update={"rollout": RolloutConfig(steps=4, clocks=name)})) for name in (None, clocks, "independent")}
    assert texts[None] == texts[clocks] != texts["independent"]
    following = make_dataset(tmp_path / "next", tiny_models, teacher=str(tmp_path / "student"), rollout={**ROLLOUT, "steps": 4}, **common)
    assert following.identity.rollout.clocks == clocks


def test_even_clocks_are_refused_for_masks(cli, tiny_models, tmp_path):
    for command in (["sample", "--model", tiny_models.mask], ["evaluate", "--model", tiny_models.mask], ["generate", "--teacher", tiny_models.mask, "--compass", "none", "--arm", "blind", "--out", tmp_path / "o"]):
        assert_refused(cli(*command, "--clocks", "even"), "clocks: 'even' is of the uniform source", "--clocks spaced")
    assert not (tmp_path / "o").exists()
    assert_refused(cli("pretrain", "--source", "uniform", "--spaced", 0.5, "--out", tmp_path / "t"), "spaced: only of the mask source")


def test_an_evaluation_has_texts_of_its_clocks(tiny_models, tmp_path):
    """Texts that are kept are found again by the clocks that were asked for; without any, as before."""
    def rows(clocks):
        config = EvaluateConfig(out=str(tmp_path), model=(str(tiny_models.mask),), steps=(4,), samples=8, evaluator=(str(tiny_models.ar),), reference=False, clocks=clocks)
        return evaluate(config).rows[0]

    usual, spaced = rows(None), rows("spaced")
    assert usual.judges != spaced.judges
    assert len(list((tmp_path / "samples").iterdir())) == 2
    assert rows(None) == usual
    assert rows("spaced") == spaced
    assert "clocks" not in EvaluateConfig().model_dump_json()


def test_spaced_clocks_cost_no_more_passes(tiny_models):
    model = load_model(str(tiny_models.mask)).network
    for clocks in ("independent", "spaced"):
        logs = roll_out_blind(model, RolloutConfig(steps=4, clocks=clocks), range(20), use=1)  # type: ignore[arg-type]  # MEASURE
        assert all(len(np.unique(log.event_step)) <= 4 for log in logs)
        assert all(len(log.event_step) == 16 for log in logs)


@pytest.mark.parametrize(("source", "clocks"), [("mask", "spaced"), ("uniform", "spaced"), ("uniform", "even")])
def test_clocks_are_spaced_over_the_free_positions(source, clocks):
    """Of each trajectory its own: they ring as a shorter text's do, and as evenly; fixed ones never ring. Independent ones ring as ever."""
    steps, length, batch = 4, 16, 400
    free = torch.rand(batch, length, generator=torch.Generator().manual_seed(0)) < torch.linspace(0.1, 1, batch)[:, None]
    free[:, 5] = True
    noise, times = Noise(5, torch.arange(batch)), RolloutConfig(steps=steps).times
    drawn = draw_rings(path(source), noise, times, length, clocks, free)
    assert not (drawn & ~free[:, None]).any()
    for row in range(batch):
        alone = draw_rings(path(source), Noise(5, torch.tensor([row])), times, int(free[row].sum()), clocks)
        torch.testing.assert_close(drawn[row][:, free[row]], alone[0])
    independent = draw_rings(path(source), noise, times, length, "independent")
    torch.testing.assert_close(draw_rings(path(source), noise, times, length, "independent", free), independent & free[:, None])
