"""What is measured on held-out trajectories: which they are, their loss, and the share of the selection learnt."""

import json
from dataclasses import replace

import pytest
import torch

from tests.support import assert_refused, make_dataset, present
from tsdfm.pipeline.loader.batches import Reader, ReaderSettings
from tsdfm.pipeline.loader.streams import OpenDataset
from tsdfm.pipeline.models.student import student_of
from tsdfm.pipeline.training.distill import distill, open_start
from tsdfm.pipeline.training.held_out.measure import COOLED, SHARE, HeldOut
from tsdfm.pipeline.training.loop.data_parallel import Place
from tsdfm.pipeline.training.objectives import StudentLoss
from tsdfm.pipeline.training.student_trainer import proposal_temperature, train
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.distill import DataConfig, DistillConfig
from tsdfm.schemas.optim import HELD_OUT_LOSS

OPTIM = {"steps": 8, "batch_size": 8, "lr": 1e-2, "warmup": 2, "log_every": 4, "checkpoint_every": 100, "ema": 0.5}


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_models):
    """A dataset whose tokens were chosen one by one, with log-probabilities, at a temperature."""
    out = tmp_path_factory.mktemp("data") / "out"
    make_dataset(out, tiny_models, trajectories=40, shard_size=16, arm="both", shaping={"candidates": 4, "level": "token"},
                 rollout={"steps": 4, "batch_size": 8, "logprobs": True, "temperature": 0.7})
    return str(out)


def config(where, optim=(), **changes):
    given = {"data": {"paths": [where], "held_out": 0.25, **changes.pop("data", {})}, "budgets": {4: 1.0}, "objective": "tilt",
             "beta": 16.0, "optim": {**OPTIM, **dict(optim)}}
    return DistillConfig.model_validate(given | changes)


def held_out_of(made):
    start = open_start(made)
    begun = student_of(start.weights.network, start.reader.clocks).eval()
    return HeldOut(made, start.reader.budget_shares, begun, proposal_temperature(start)), begun


def test_a_figure_that_is_not_finite_is_no_defect(data, tmp_path):
    held, begun = held_out_of(config(data))
    with torch.no_grad():
        begun.head.weight.fill_(torch.nan)
    with pytest.raises(WorkError, match=r"the held_out/loss is nan at update 3; lower optim\.lr"):
        held.facts(begun, 3, tmp_path)


@pytest.mark.parametrize(("share", "below", "first"), [(0.0, None, 40), (0.25, None, 30), (0.001, None, 39), (0.5, 17, 9)])
def test_the_last_trajectories_are_held_out(data, share, below, first):
    given = DataConfig(paths=[data], held_out=share, trajectories=below)
    learnt = OpenDataset.open(data, given)
    assert learnt.ids == range(first)
    assert sum(len(learnt.load(shard)) for shard in range(len(learnt.shards))) == first == learnt.rows_of_shard.sum()
    if share:
        held = OpenDataset.open_held_out(data, given)
        assert held.ids == range(first, below or 40)
        assert sum(len(held.load(shard)) for shard in range(len(held.shards))) == len(held.ids) == held.rows_of_shard.sum()
        rows = Reader.open_held_out(given, ReaderSettings(batch_size=len(held.ids))).batch(0)
        assert len(rows) == len(held.ids)


def test_each_is_measured_once_whatever_the_weights_of_the_datasets(data, tmp_path, tiny_models):
    make_dataset(tmp_path / "other", tiny_models, trajectories=40, arm="both", rollout={"steps": 4, "seed": 1, "temperature": 0.7})
    held, _ = held_out_of(config(data, data={"paths": [data, str(tmp_path / "other")], "weights": [9, 1]}, objective="endpoint", beta=64.0))
    assert len({tuple(row) for row in held.windows.target.tolist()}) == len(held.windows) == 20


def test_a_dataset_that_is_held_out_altogether_is_refused(data):
    with pytest.raises(InputError, match="held_out"):
        OpenDataset.open(data, DataConfig(paths=[data], held_out=0.99, trajectories=1))


def test_who_has_learnt_nothing_has_a_share_of_0(data):
    """At the temperature of the data the start is the proposal; the loss is that of the objective."""
    made = config(data)
    held, begun = held_out_of(made)
    nothing = present(held.choices)
    # a student that draws at the proposal's temperature: its head is divided by it
    cold = student_of(open_start(made).weights.network, "independent").eval()
    with torch.no_grad():
        cold.head.weight.div_(0.7)
        cold.head.bias.div_(0.7)
    assert held(cold)[SHARE] == pytest.approx(0, abs=1e-4)
    assert held(begun)[SHARE] != pytest.approx(0, abs=1e-4)
    # and a cooler one still carries what it carries, without having learnt anything
    with torch.no_grad():
        cold.head.weight.div_(0.8)
        cold.head.bias.div_(0.8)
    assert held(cold)[SHARE] <= held(cold)[COOLED] + 1e-6
    assert held(begun)[COOLED] == held.cooled >= 0
    assert (nothing.dt == 0.25).all()
    batch = held.windows
    with torch.no_grad():
        wanted = StudentLoss(begun, "tilt")(batch).sum() / (batch.target >= 0).sum()
    assert held(begun)[HELD_OUT_LOSS] == pytest.approx(float(wanted), rel=1e-5)


def test_what_is_learnt_shows_in_log_lines_record_and_card(data, tmp_path):
    lines = []
    out = tmp_path / "student"
    made = config(data, {"steps": 48, "log_every": 12}, event_weight=0.1)
    report = present(distill(made, out, lambda step, scalars: lines.append(scalars)))
    shares = [scalars[SHARE] for scalars in lines]
    assert shares[-1] > shares[0] + 0.02
    found = json.loads((out / "training.json").read_text())["held_out"]
    assert found == {"trajectories": 10, "updates": 48, "loss": pytest.approx(lines[-1][HELD_OUT_LOSS], rel=1e-5),
                     "share": pytest.approx(shares[-1], rel=1e-4), "cooled": pytest.approx(lines[-1][COOLED])}
    assert f"It carries {100 * found['share']:.1f} % of the compass's" in (out / "README.md").read_text()
    assert f"Its start alone, sampled cooler, carries {100 * found['cooled']:.1f} %." in (out / "README.md").read_text()
    assert report.updates == 48


def test_patience_ends_a_training_and_its_best_weights_are_saved(data, tmp_path):
    lines = []
    made = config(data, {"steps": 200, "log_every": 2, "lr": 0.3}, patience=2)
    report = present(distill(made, tmp_path / "out", lambda step, scalars: lines.append((step, scalars[HELD_OUT_LOSS]))))
    least = min(lines, key=lambda line: line[1])
    assert lines[-1][0] == least[0] + 4 < 200
    assert report.updates == least[0]
    assert json.loads((tmp_path / "out" / "training.json").read_text())["held_out"]["loss"] == pytest.approx(least[1], rel=1e-5)


@pytest.mark.parametrize("changes", [
    {"data": {"arm": "blind"}, "objective": "event"}, {"init_blocks": 1}], ids=str)
def test_where_the_start_is_not_the_proposal_no_share_is_told(data, tmp_path, changes):
    made = config(data, {"steps": 2, "log_every": 1}, **changes)
    lines = []
    trained = train(open_start(made), tmp_path, Place(0, 1, torch.device("cpu")), lambda step, scalars: lines.append(scalars))
    assert all(SHARE not in scalars and HELD_OUT_LOSS in scalars for scalars in lines)
    assert present(present(trained).held_out).share is None


def test_measuring_does_not_change_what_is_learnt(data, tmp_path):
    """The same updates, whether a line is told at each of them or at the end."""
    students = [present(train(open_start(config(data, {"log_every": every})), tmp_path / str(every),
                              Place(0, 1, torch.device("cpu")), lambda *_: None)).student for every in (1, 8)]
    for a, b in zip(*(student.state_dict().values() for student in students), strict=True):
        assert torch.equal(a, b)


def test_every_window_alike(data, tmp_path):
    """The mean over windows of their means, on the first batch."""
    made, lines = config(data, {"steps": 1, "log_every": 1}, objective="endpoint", alike=True, budgets={1: 1.0, 4: 1.0}), []
    start = open_start(made)
    train(start, tmp_path, Place(0, 1, torch.device("cpu")), lambda step, scalars: lines.append(scalars))
    batch = start.reader.batch(0)
    nats = StudentLoss(student_of(start.weights.network, "independent"), "endpoint")(batch).detach()
    each = nats.sum(1) / (batch.target >= 0).sum(1)
    assert lines[0]["loss"] == pytest.approx(float(each[(batch.target >= 0).any(1)].mean()), rel=1e-5)
    assert lines[0]["loss"] != pytest.approx(float(nats.sum() / (batch.target >= 0).sum()), rel=1e-3)


@pytest.mark.parametrize(("arm", "changes", "word"), [
    ("shaped", {"rollout": {"steps": 4}}, "--logprobs"),
    ("shaped", {"rollout": {"steps": 4, "logprobs": True}, "shaping": {"candidates": 1}}, "no choices"),
    ("blind", {"rollout": {"steps": 4, "logprobs": True}}, "no choices"),
])
def test_data_that_tilt_can_not_learn_from_are_refused(cli, tmp_path, tiny_models, arm, changes, word):
    make_dataset(tmp_path / "data", tiny_models, trajectories=2, **changes)
    asked = cli("distill", "--data", str(tmp_path / "data"), "--arm", arm, "--objective", "tilt", "--out", str(tmp_path / "out"))
    assert_refused(asked, word)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", [{"event_weight": 1.0}, {"patience": 2}])
def test_settings_that_would_do_nothing_are_refused(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        DistillConfig.model_validate(given)


def test_older_configs_are_written_as_they_were():
    assert not {"event_weight", "alike", "patience"} & DistillConfig().model_dump().keys()
    assert "held_out" not in DistillConfig().model_dump()["data"]


def test_a_whole_candidate_is_preferred_by_all_its_positions_together(tiny_models, tmp_path):
    """A student that tilts each position by its part of an energy carries all of the selection."""
    out = tmp_path / "data"
    make_dataset(out, tiny_models, trajectories=24, shard_size=16, shaping={"candidates": 4}, rollout={"steps": 4, "batch_size": 8})
    made = config(str(out), objective="event")
    held, begun = held_out_of(made)
    choices = present(held.choices)
    weights = torch.zeros_like(present(choices.weights))
    assert choices.candidates is not None
    parts = torch.randn(begun.config.vocab_size, generator=torch.Generator().manual_seed(0))  # of each token, wherever it stands
    for row in range(len(choices)):
        jumped = choices.target[row] >= 0
        weights[row, jumped] = parts[choices.candidates[row, jumped]].sum(0).softmax(0)
    held.choices = replace(choices, weights=weights)
    with torch.no_grad():
        begun.head.bias.add_(parts)
    assert held(begun)[SHARE] == pytest.approx(1, abs=1e-4)
