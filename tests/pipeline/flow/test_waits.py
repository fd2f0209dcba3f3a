"""How often a rollout would wait for a GPU: at each step a small number of times, whatever the batch and the candidates."""

from dataclasses import replace

import pytest
import torch

from tests.pipeline.flow.waits import Waits
from tests.support import LENGTH, at_once
from tsdfm.kernels import linear_logprob as nll_module
from tsdfm.pipeline.flow import compass as compass_module
from tsdfm.pipeline.flow import noise as noise_module
from tsdfm.pipeline.flow import shaping as shaping_module
from tsdfm.pipeline.flow.opening import open_compass
from tsdfm.pipeline.flow.rollout import roll_out
from tsdfm.pipeline.models.folder import load_denoiser
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig

KERNELS = [(compass_module, "linear_logprob"), (nll_module, "linear_logprob"), (noise_module, "uniform"),
           (compass_module, "linear_logprobs"), (shaping_module, "argmax_rows"), (shaping_module, "sample_rows")]
COMPASSES = ["none", "ar", "nce", "denoiser"]


def opened(name, models, teacher):
    facts = load_denoiser(models.mask if teacher.config.mask_id is not None else models.uniform)
    return open_compass(str(getattr(models, name, name)), replace(facts, network=teacher), LENGTH, torch.device("cpu"))[0]


@pytest.fixture
def waits_of(monkeypatch, tiny_models):
    """What waits at each step of a rollout."""
    def measure(compass, batch, candidates, source="mask", solver="euler", steps=6, level="sequence"):  # noqa: PLR0913
        teacher, waits = load_denoiser(getattr(tiny_models, source)).network, Waits()
        for module, kernel in KERNELS:
            monkeypatch.setattr(module, kernel, waits.uncounted(getattr(module, kernel)))
        hidden = teacher.hidden

        def counted(x, t, dt=None):
            if dt is not None:  # the sampler's own calls name a step
                waits.next_step()
            return hidden(x, t, dt)

        monkeypatch.setattr(teacher, "hidden", counted)
        found = opened(compass, tiny_models, teacher)
        with waits.counted():
            roll_out(teacher, found, RolloutConfig(steps=steps, solver=solver), ShapingConfig(candidates=candidates, level=level),
                     range(batch), "blind" if found is None else "shaped")
        return waits.steps
    return measure


# What a compass reads for itself: `ar` the places from which its texts are run.
READ = {"none": 0, "nce": 1, "ar": 2, "denoiser": 1}


@pytest.mark.parametrize("source", ["mask", "uniform"])
@pytest.mark.parametrize("compass", COMPASSES)
def test_a_step_waits_a_small_number_of_times_whatever_its_size(waits_of, compass, source):
    if (compass, source) == ("nce", "uniform"):
        pytest.skip("an nce compass is of one source")
    for batch, candidates in ((2, 2), (9, 8)):
        steps = waits_of(compass, batch, candidates, source)
        assert len(steps) == 7
        assert all(len(step) <= READ[compass] for step in steps[1:-1]), steps
        assert {name for step in steps[1:-1] for name in step} <= {"tolist"}


@pytest.mark.parametrize("compass", ["ar", "denoiser"])
def test_a_choice_by_token_waits_once_a_step_whatever_its_size(waits_of, compass):
    for batch, candidates in ((2, 2), (9, 8)):
        steps = waits_of(compass, batch, candidates, level="token")
        assert all(step in ([], ["tolist"]) for step in steps[1:-1]), steps


def test_what_a_rollout_waits_for_before_and_after_its_steps_is_as_much_for_any_batch(waits_of):
    few, many = (waits_of("ar", batch, 4) for batch in (2, 9))
    assert len(few[0]) == len(many[0]) < 20
    assert len(few[-1]) == len(many[-1]) < 40


def test_an_inner_stage_of_a_solver_waits_for_its_clocks_too(waits_of):
    """Four evaluations a step, of which three have clocks of their own."""
    steps = waits_of("ar", 4, 4, solver="rk4")
    assert all(len(stage) <= 1 + READ["ar"] for stage in steps[1:-1])


def test_more_batches_of_a_compass_do_not_wait_more_often(monkeypatch, waits_of):
    """Their sizes are read together."""
    at_once(monkeypatch, suffix_tokens=1, suffix_texts=1)
    many = waits_of("ar", 4, 4)
    at_once(monkeypatch, "cuda")
    assert [len(step) for step in waits_of("ar", 4, 4)[1:-1]] == [len(step) for step in many[1:-1]]


def test_the_counter_sees_what_would_wait():
    waits, mask = Waits(), torch.tensor([True, False])
    with waits.counted():
        for wait in (lambda: mask.nonzero(), lambda: mask[mask], lambda: bool(mask.any()), lambda: mask.cpu(),
                     lambda: mask.tolist(), lambda: torch.tensor(1), lambda: torch.zeros(2).masked_select(mask),
                     lambda: torch.zeros(2).index_put((mask,), torch.zeros(())), lambda: torch.zeros(2).to("cpu")):
            waits.next_step()
            wait()
    assert all(len(step) >= 1 for step in waits.steps[1:])
    with waits.counted():
        waits.next_step()
        torch.nonzero_static(mask, size=1)
        torch.full((), 3)
        torch.zeros(2)[torch.arange(1)].to(torch.float64)
    assert waits.steps[-1] == []
