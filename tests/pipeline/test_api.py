"""The public Python API: lazy, without Ray or a terminal, and changing nothing of the process that calls it."""

import logging
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import tsdfm.pipeline as api
from tests.support import LENGTH, copy_dataset, make_dataset, present, tiny_config, tree
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.evaluate import EvaluateConfig
from tsdfm.schemas.generate import GenerateConfig, RolloutConfig
from tsdfm.schemas.sample import SampleConfig


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_models):
    out = tmp_path_factory.mktemp("api") / "both"
    copy_dataset(out, tiny_models)
    return str(out)


def test_names_are_lazy_and_all_there():
    code = "import sys, tsdfm.pipeline as p; assert {'batches', 'replay'} <= set(dir(p)); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    for name in api.__all__:
        assert getattr(api, name).__doc__
    with pytest.raises(AttributeError, match="nothing"):
        api.nothing  # noqa: B018


def test_a_dataset_is_made_here_and_again_nothing(tmp_path, tiny_models, made):
    config = GenerateConfig.model_validate(tiny_config(tmp_path / "out", tiny_models))
    seen = []
    report = api.generate_dataset(config, progress=lambda stage, done, total, note="": seen.append((stage, done, total)))
    assert (report.rows, report.shards, report.made, report.kept) == (20, 3, 3, 0)
    assert seen == [("making shards", n, 3) for n in (1, 2, 3)]
    assert tree(tmp_path / "out" / "data") == tree(__import__("pathlib").Path(made) / "data")
    assert api.verify(str(tmp_path / "out"))[1] == []
    again = api.generate_dataset(config)
    assert (again.made, again.kept) == (0, 3)


def test_a_dataset_needs_a_folder(tiny_models):
    with pytest.raises(InputError, match="no folder for the dataset"):
        api.generate_dataset(GenerateConfig(teacher=str(tiny_models.mask), compass=str(tiny_models.ar)))


class Prefers:
    """A compass by an object: the lower the ids, the better, up to a limit."""

    needs_completion, proposal_weight, fingerprint = False, 0.0, "ab" * 32

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def energy(self, states, t, completion):
        return (states > self.limit).float().mean(-1)


def prefers_low_ids(states, t):
    return states.float().mean(-1)


@pytest.mark.parametrize("compass", [prefers_low_ids, Prefers(150)], ids=["a function", "an object"])
def test_a_compass_of_ones_own(tmp_path, tiny_models, compass):
    config = GenerateConfig.model_validate(tiny_config(tmp_path / "out", tiny_models) | {"compass": "none", "arm": "blind"})
    config = config.model_copy(update={"arm": "both"})
    api.generate_dataset(config, compass=compass)
    dataset = api.open_dataset(str(tmp_path / "out"))
    assert api.verify(str(tmp_path / "out"))[1] == []
    facts = present(dataset.manifest.identity.compass)
    assert facts.kind == "custom"
    if isinstance(compass, Prefers):
        assert facts.fingerprint == compass.fingerprint
    energies = {arm: np.mean([row.final_energy for row in dataset.rows(arm)]) for arm in ("shaped", "blind")}
    assert energies["shaped"] < energies["blind"]
    if compass is prefers_low_ids:
        for row in dataset.rows():
            assert row.final_energy == pytest.approx(row.tokens.mean(), abs=1e-3)
            assert row.mask_id is not None


def test_a_compass_that_gives_nonsense_is_named(tmp_path, tiny_models):
    config = GenerateConfig.model_validate(tiny_config(tmp_path / "out", tiny_models))
    with pytest.raises(WorkError, match=r"test_api\.test_a_compass_that_gives_nonsense.*not finite"):
        api.generate_dataset(config, compass=lambda states, t: states.float().mean(-1) * float("nan"))
    with pytest.raises(WorkError, match="shape"):
        api.generate_dataset(config, compass=lambda states, t: states.float())


def test_rows_and_their_states(made):
    dataset = api.open_dataset(made)
    rows = list(dataset)
    assert len(rows) == len(dataset) == 20
    assert [(row.trajectory_id, row.arm) for row in rows[:4]] == [(0, "shaped"), (0, "blind"), (1, "shaped"), (1, "blind")]
    assert [row.arm for row in dataset.rows("blind")] == ["blind"] * 10
    row = dataset.row(9, arm="blind")
    assert (row.trajectory_id, row.arm, row.steps) == (9, "blind", 8)
    assert row.text == dataset.vocabulary.decode(row.tokens.tolist())
    for number, t in [(0, 0.0), (0, 0.124), (1, 0.125), (3, 3 / 8), (3, 0.4), (7, 0.999), (8, 1.0)]:
        state = np.full(LENGTH, row.mask_id)
        for step, position, token in zip(row.event_step, row.event_position, row.event_token, strict=True):
            if step < number:
                state[position] = token
        assert api.replay(row, t).tolist() == state.tolist(), t
    for t in (-0.1, 1.1):
        with pytest.raises(ValueError, match="must lie in"):
            api.replay(row, t)
    with pytest.raises(InputError, match=r"trajectory 10: .*0\.\.9"):
        dataset.row(10)


def test_every_grid_time_is_its_own_state():
    """t = s/N as Python rounds it, of every N up to 300, finds the state after step s - 1."""
    from math import floor

    from tsdfm.pipeline.dataset.opened import TIME_SLACK

    for steps in range(1, 301):
        for step in range(steps + 1):
            assert floor(step / steps * steps + TIME_SLACK) == step
            assert floor((step / steps) * steps + TIME_SLACK) == step


def test_a_row_of_the_uniform_source(tmp_path, tiny_models):
    make_dataset(tmp_path / "out", tiny_models, teacher=str(tiny_models.uniform))
    row = api.open_dataset(str(tmp_path / "out")).row(3)
    assert row.mask_id is None
    assert api.replay(row, 0).tolist() == present(row.source_tokens).tolist()
    assert api.replay(row, 1).tolist() == row.tokens.tolist()


def test_windows_for_ones_own_loop(made):
    windows = api.batches(made, "endpoint", updates=5, batch_size=4, budgets={4: 1.0}, seed=3)
    alone = list(DataLoader(windows, batch_size=None))
    assert len(alone) == len(windows) == 5
    spread = list(DataLoader(windows, batch_size=None, num_workers=2))
    for one, other in zip(alone, spread, strict=True):
        assert torch.equal(one.x_t, other.x_t)
        assert torch.equal(one.target, other.target)
    pairs = list(DataLoader(windows, batch_size=2, collate_fn=windows.collate))
    assert [len(pair.t) for pair in pairs] == [8, 8, 4]
    assert torch.equal(pairs[0].x_t, torch.cat([alone[0].x_t, alone[1].x_t]))
    assert (alone[0].dt == 0.25).all()
    with pytest.raises(InputError, match="3 does not divide"):
        api.batches(made, budgets={3: 1.0})
    for wrong, named in (({"objective": "nonsense"}, "objective: 'nonsense' is none of event, "), ({"batch_size": 0}, "batch_size: 0"),
                         ({"updates": -1}, "updates: -1"), ({"seed": -1}, "seed: -1"), ({"budgets": {}}, "budgets: "),
                         ({"budgets": {4: 0.0}}, "budgets: ")):
        with pytest.raises(InputError, match=named):
            api.batches(made, **wrong)
    assert len(api.batches(Path(made), updates=3)) == 3


def test_a_student_trains_scores_and_writes_without_ray(tmp_path, made, tiny_models):
    config = DistillConfig.model_validate({"data": {"paths": [made]}, "budgets": {8: 1}, "optim": {"steps": 6, "batch_size": 4, "log_every": 2}})
    lines = []
    report = present(api.distill(config, tmp_path / "student", lambda update, scalars: lines.append(update)))
    assert lines == [2, 4, 6]
    assert report.scalars["loss"] > 0
    opened = api.load_model(str(tmp_path / "student"))
    assert opened.network.config.step_size
    assert opened.fingerprint == report.fingerprint
    assert api.distill(config, tmp_path / "cut", lambda update, scalars: update >= 2) is None
    assert present(api.distill(config, tmp_path / "cut")).fingerprint == report.fingerprint  # goes on where it was cut
    texts = api.sample(SampleConfig(model=str(tmp_path / "student"), number=3, rollout=RolloutConfig(steps=2)))
    assert len(texts) == 3
    with pytest.raises(InputError, match="holds the weights to start from"):
        api.distill(config.model_copy(update={"init": str(tmp_path / "student")}), tmp_path / "student")


def test_any_texts_are_scored_never_by_perplexity_alone(tiny_models):
    found = api.score(["the quick brown fox", "energy energy energy energy"], judges=[str(tiny_models.ar)])[str(tiny_models.ar)]
    assert (found.texts, found.tokens > 2, found.low <= found.perplexity <= found.high) == (2, True, True)
    assert found.entropy_bits > 0
    assert 0 < present(found.distinct_2) <= 1
    dull = api.score(["energy energy energy energy"], judges=[str(tiny_models.ar)])[str(tiny_models.ar)]
    assert dull.entropy_bits < found.entropy_bits
    with pytest.raises(InputError, match="give a list of texts"):
        api.score("the quick brown fox", judges=[str(tiny_models.ar)])


def process_state() -> dict:
    root = logging.getLogger()
    return {
        "threads": torch.get_num_threads(), "environment": dict(os.environ), "random": (random.getstate(), torch.get_rng_state().tolist()),
        "numpy": str(np.random.get_state()), "handlers": {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)},
        "logging": (root.level, list(root.handlers)), "grad": torch.is_grad_enabled(), "folder": os.getcwd(), "dtype": torch.get_default_dtype()}


def test_the_process_is_left_as_it_was(tmp_path, tiny_models, made):
    torch.set_num_threads(2)
    config = DistillConfig.model_validate({"data": {"paths": [made]}, "budgets": {8: 1}, "optim": {"steps": 2, "batch_size": 4, "threads": 1}})
    calls = {
        "generate_dataset": lambda: api.generate_dataset(GenerateConfig.model_validate(tiny_config(tmp_path / "out", tiny_models))),
        "open_dataset": lambda: list(api.open_dataset(made)), "verify": lambda: api.verify(made),
        "batches": lambda: list(api.batches(made, updates=2, batch_size=4)), "distill": lambda: api.distill(config, tmp_path / "student"),
        "sample": lambda: api.sample(SampleConfig(model=str(tiny_models.mask), number=1, rollout=RolloutConfig(steps=2, threads=1))),
        "evaluate": lambda: api.evaluate(EvaluateConfig(model=str(tiny_models.mask), evaluator=str(tiny_models.ar), steps=1, samples=2,
                                                        reference=False, threads=1)),
        "score": lambda: api.score(["a text"], judges=[str(tiny_models.ar)]), "load_model": lambda: api.load_model("embedded"),
    }
    before = process_state()
    try:
        for name, call in calls.items():
            call()
            after = process_state()
            assert {key for key in before if before[key] != after[key]} == set(), name
    finally:
        torch.set_num_threads(1)
