"""`--plan`: what it counts is what a run does, it leaves OUT as it is, and it refuses what the run would refuse."""

import json
from pathlib import Path

import pytest
import torch

from tests.support import assert_refused, make_dataset, ray_here, tree, write_corpus
from tsdfm.jobs.plan.plan import Measurement
from tsdfm.jobs.plan.rollouts import measure
from tsdfm.jobs.plan.training import WARM, told
from tsdfm.pipeline.flow.opening import open_models
from tsdfm.pipeline.models.denoiser import Trunk
from tsdfm.schemas.base import parse_json
from tsdfm.schemas.plan import Machine, Plan, Rates

TINY = ["--set", "shape.hidden_size=32", "--set", "shape.n_blocks=1", "--set", "shape.n_heads=2", "--length", 8,
        "--vocab-size", 300, "--batch-size", 4]


@pytest.fixture
def generating(tiny_models, monkeypatch):
    """Arguments of `generate`, which is measured in this process."""
    def here(config, identity, given, workers):
        models = open_models(config, torch.device("cpu"))
        assert (given is None) == (models.given is None) == (config.prompts is None)
        found = measure(models, identity, 0, 0.2)
        per = found.trajectories
        return Measurement(Machine(device="a processor", cores=2), workers, {
            "ray": 1.0, "worker": 2.0, "opening": 0.5, "leaving": 0.5, "trajectory": found.seconds_each,
            "bytes": found.bytes / per, "compass_tokens": found.compass_tokens / per, "shard_bytes": found.shard_bytes,
            "share": found.share})

    monkeypatch.setattr("tsdfm.jobs.generate.plan.measured", here)
    return ["generate", "--teacher", tiny_models.mask, "--compass", tiny_models.ar, "--arm", "both", "--trajectories", 10,
            "--set", "shard_size=4", "--steps", 8, "--candidates", 4, "--set", "rollout.batch_size=4", "--workers", 2]


def planned(outcome) -> Plan:
    assert outcome.code == 0, outcome.stderr
    return parse_json(Plan, outcome.stdout, "plan")


def test_generate_tells_shards_rows_bytes_work_time_and_money(generating, tiny_models, tmp_path, cli):
    found = planned(cli(*generating, "--out", tmp_path / "out", "--plan", "--json", "--price", 3))
    assert not (tmp_path / "out").exists()
    assert (found.makes["shards"], found.makes["rows"], found.there) == (3, 20, {})
    assert found.seconds == pytest.approx(sum(stage.seconds for stage in found.stages))
    assert found.device_hours == pytest.approx(2 * found.seconds / 3600)
    assert found.money == pytest.approx(3 * found.device_hours)
    manifest = make_dataset(tmp_path / "out", tiny_models)
    assert found.makes["bytes"] == pytest.approx(manifest.totals.bytes, rel=0.25)
    assert found.work["jumps"] == manifest.totals.events
    text = cli(*generating, "--out", tmp_path / "other", "--plan").stdout
    for word in ("nothing was made", "teacher forward passes", "device-hours", "making shards"):
        assert word in text


@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_prompts_leave_less_to_do(generating, tiny_models, tmp_path, cli, source):
    """Jumps are of free positions alone, exactly so with the mask source, where each has one."""
    (tmp_path / "p.txt").write_text("the quick brown fox\nmasks fall\nthe\n")
    flags = ["--teacher", getattr(tiny_models, source), "--prompts", tmp_path / "p.txt", "--per-prompt", 3, "--trajectories", 9,
             "--out", tmp_path / "out", *(["--compass", "none", "--arm", "blind"] if source == "uniform" else [])]
    found = planned(cli(*generating, *flags, "--plan", "--json"))
    config = {"teacher": str(getattr(tiny_models, source)), "prompts": str(tmp_path / "p.txt"), "per_prompt": 3, "trajectories": 9}
    manifest = make_dataset(tmp_path / "out", tiny_models, **config, **({"compass": "none", "arm": "blind"} if source == "uniform" else {}))
    assert found.makes["trajectories"] == 9
    assert found.work["jumps"] == pytest.approx(manifest.totals.events, rel=1e-9 if source == "mask" else 0.15)
    assert found.makes["bytes"] == pytest.approx(manifest.totals.bytes, rel=0.25)


def test_blocks_of_long_texts_leave_less_to_do(generating, tiny_models, tmp_path, cli):
    """All but the first of a text begin with tokens of the one before, also where it is measured."""
    long = {"rollout": {"steps": 8, "batch_size": 4, "length": 40}, "overlap": 6, "trajectories": 12}
    found = planned(cli(*generating, "--length", 40, "--overlap", 6, "--trajectories", 12, "--out", tmp_path / "out", "--plan", "--json"))
    manifest = make_dataset(tmp_path / "out", tiny_models, **long)
    assert (found.makes["trajectories"], found.makes["shards"]) == (12, len(manifest.shards))
    assert found.work["jumps"] == pytest.approx(manifest.totals.events)
    assert found.makes["bytes"] == pytest.approx(manifest.totals.bytes, rel=0.25)


def test_a_half_made_dataset_is_told_and_left_as_it_is(generating, tiny_models, tmp_path, cli):
    out = tmp_path / "out"
    make_dataset(out, tiny_models)
    next(out.glob("data/*00001-of*")).unlink()
    before = tree(out)
    found = planned(cli(*generating, "--out", out, "--plan", "--json"))
    assert tree(out) == before
    assert (found.there["shards"], found.work["shards"], found.work["trajectories"]) == (2, 1, 4)
    make_dataset(out, tiny_models)
    whole = planned(cli(*generating, "--out", out, "--plan", "--json"))
    assert whole.work["shards"] == 0
    assert [stage.what for stage in whole.stages] == ["start, models, what is there"]


def test_what_the_run_would_refuse_is_refused_before_anything_is_measured(generating, tiny_models, tmp_path, cli, monkeypatch):
    monkeypatch.setattr("tsdfm.jobs.generate.plan.measured", None)  # calling it would be a defect
    full, other = tmp_path / "full", tmp_path / "other"
    full.mkdir()
    (full / "letter.txt").write_text("dear")
    make_dataset(other, tiny_models, trajectories=3)
    assert_refused(cli(*generating, "--out", full, "--plan"), "letter.txt")
    assert_refused(cli(*generating, "--out", other, "--plan", "--seed", 4), "rollout.seed")
    assert_refused(cli(*generating, "--out", tmp_path / "x", "--plan", "--teacher", tmp_path / "none"), "none")
    assert_refused(cli(*generating, "--out", tmp_path / "x", "--plan", "--compass", tiny_models.foreign), "foreign")
    assert_refused(cli(*generating, "--out", full / "letter.txt" / "x", "--plan"), "letter.txt")
    assert_refused(cli(*generating, "--plan"), "--out")
    assert_refused(cli(*generating, "--out", tmp_path / "x", "--price", 3), "--plan")
    assert_refused(cli(*generating, "--out", tmp_path / "x", "--plan", "--price", -1), "price")
    assert_refused(cli(*generating, "--out", tmp_path / "x", "--plan", "--save-rates", tmp_path / "no" / "r.json"), "r.json")
    for training in (["pretrain", *TINY], ["fit-compass", "--teacher", tiny_models.mask], ["distill", "--data", tmp_path / "x"]):
        monkeypatch.setattr("tsdfm.jobs.shell.trackers.find_spec", lambda name: None)
        assert_refused(cli(*training, "--out", tmp_path / "new", "--plan", "--tracker", "wandb"), "client is not installed")


def test_rates_are_kept_and_taken_elsewhere(generating, tmp_path, cli, monkeypatch):
    file, out = tmp_path / "rates.json", ["--out", tmp_path / "out", "--plan"]
    first = planned(cli(*generating, *out, "--json", "--save-rates", file))
    assert parse_json(Rates, file.read_text(), "rates") == first.rates
    monkeypatch.setattr("tsdfm.jobs.generate.plan.measured", None)
    far = ["--address", "10.0.0.1:6379", "--rates", file]  # of a cluster that is not asked
    again = planned(cli(*generating, *out, *far, "--json"))
    assert (again.makes, again.work) == (first.makes, first.work)
    assert again.seconds == pytest.approx(first.seconds)
    assert again.rates_from == str(file)
    many = planned(cli(*generating, *out, *far, "--json", "--trajectories", 1000, "--workers", 50))
    assert (many.devices, many.makes["shards"]) == (50, 250)
    assert "50 workers are taken to be as fast as the 2" in many.remarks[0]


def test_rates_that_do_not_fit_are_refused(generating, tiny_models, tmp_path, cli):
    file, out = tmp_path / "rates.json", ["--out", tmp_path / "out", "--plan"]
    assert cli(*generating, *out, "--save-rates", file).code == 0
    far = ["--address", "10.0.0.1:6379"]
    assert_refused(cli(*generating, *out, *far, "--rates", file, "--steps", 16), "rollout.steps")
    assert_refused(cli(*generating, *out, *far, "--rates", file, "--compass", tiny_models.nce), "compass.kind")
    assert_refused(cli(*generating, *out, "--rates", file), "a processor", "--address")  # not this machine's
    assert_refused(cli(*generating, *out, "--rates", tmp_path / "none.json"), "none.json")
    assert_refused(cli(*generating, *out, "--rates", file, "--save-rates", file), "one of them")
    assert_refused(cli("evaluate", "--plan", "--rates", file), "for generate, not for evaluate")
    file.write_text("{}")
    assert_refused(cli(*generating, *out, *far, "--rates", file), "rates.json")
    assert not (tmp_path / "out").exists()


def test_pretrain_counts_what_it_does_and_goes_on(tmp_path, cli, monkeypatch):
    corpus, out = write_corpus(tmp_path / "text.txt", 600), tmp_path / "teacher"
    train = ["pretrain", "--corpus", corpus, *TINY, "--updates", 12, "--out", out]
    before = sorted(tmp_path.iterdir())
    found = planned(cli(*train, "--plan", "--json"))
    assert sorted(tmp_path.iterdir()) == before
    seen, forward = [0], Trunk.forward

    def counted(self, x_t, *rest):
        seen[0] += len(x_t) * torch.is_grad_enabled()
        return forward(self, x_t, *rest)

    monkeypatch.setattr(Trunk, "forward", counted)
    assert cli(*train).code == 0
    assert seen[0] == found.work["passes forward and backward"] == 12 * 4
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert found.makes["bytes of the model"] == pytest.approx(size, rel=0.01)
    done = planned(cli(*train, "--plan", "--json"))
    assert (done.there, done.work["updates"]) == ({"updates": 12}, 0)
    assert_refused(cli(*train, "--plan", "--lr", 1.0), "optim.lr")
    assert_refused(cli(*train, "--plan", "--corpus", tmp_path / "none.txt", "--out", tmp_path / "x"), "none.txt")


@pytest.mark.parametrize(("kind", "texts"), [("ar", 1), ("nce", 2), ("contrast", 1)])
def test_fit_compass_tells_its_work(tiny_models, tmp_path, cli, kind, texts):
    corpus = write_corpus(tmp_path / "text.txt", 600)
    start = ["--start", tiny_models.ar] if kind == "contrast" else []
    found = planned(cli("fit-compass", "--corpus", corpus, "--teacher", tiny_models.mask, "--kind", kind, *start, "--updates", 9, "--batch-size",
                        4, "--rollouts", 4, "--rollout-steps", 2, "--out", tmp_path / "compass", "--plan", "--json"))
    assert found.work["passes forward and backward"] == 9 * 4 * texts
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt"}


def test_seconds_of_an_update_leave_out_the_first_and_those_with_a_checkpoint():
    gaps = [9.0] * (WARM - 1) + [1.0] * 4 + [6.0] + [1.0] * 4
    marks = [sum(gaps[:number]) for number in range(len(gaps) + 1)]
    assert told(marks, WARM + 4) == {"update": 1.0, "save": 5.0}
    assert told([5.0], 1) == {"update": 0.0, "save": 0.0}


def test_evaluate_counts_what_it_does(tiny_models, tmp_path, cli):
    asked = ["evaluate", "--model", tiny_models.mask, "--evaluator", tiny_models.ar, "--no-reference", "-n", 24, "--steps", "1,8",
             "--batch-size", 8, "--out", tmp_path / "kept"]
    found = planned(cli(*asked, "--plan", "--json"))
    assert not (tmp_path / "kept").exists()
    assert (found.makes["rows"], found.work["texts to judge"]) == (2, 48)
    rows = json.loads(cli(*asked, "--json").stdout)["rows"]
    assert found.work["forward passes"] == pytest.approx(24 * sum(row["nfe"] for row in rows), rel=0.1)
    before = tree(tmp_path / "kept")
    more = planned(cli(*asked, "--steps", "1,4,8", "--plan", "--json"))
    assert tree(tmp_path / "kept") == before
    assert (more.there["rows"], more.work["texts"]) == (2, 24)
    assert_refused(cli(*asked, "--plan", "--evaluator", tmp_path / "none"), "none")


def test_evaluate_after_prompts_is_planned_by_fewer_texts_than_asked_for(tiny_models, tmp_path, cli):
    (tmp_path / "p.txt").write_text("the quick\nmasks\n")
    found = planned(cli("evaluate", "--model", tiny_models.mask, "--evaluator", tiny_models.ar, "--prompts", tmp_path / "p.txt", "-n", 20,
                        "--steps", 4, "--batch-size", 3, "--plan", "--json"))
    assert (found.makes["rows"], found.work["texts to judge"]) == (1, 20)


def test_the_figures_of_very_many_texts_are_planned_by_few(tiny_models, cli, monkeypatch):
    sizes = []
    monkeypatch.setattr("tsdfm.jobs.evaluate.plan.summarise", lambda samples, scores: sizes.append(len(samples.texts)))
    found = planned(cli("evaluate", "--model", tiny_models.mask, "--evaluator", tiny_models.ar, "--no-reference", "-n", 10**9,
                        "--steps", 4, "--batch-size", 4, "--plan", "--json"))
    assert found.makes["texts"] == 10**9
    assert 4 == sizes[0] < sizes[1] <= 2**20 // 8


@pytest.fixture
def ray():
    with ray_here(3):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_on_ray(tiny_models, tmp_path, cli):
    """The real measurements: of shards in Ray's workers, of a student in a process group, of a sweep's trials."""
    out, file = tmp_path / "out", tmp_path / "rates.json"
    found = planned(cli("generate", "--teacher", tiny_models.mask, "--compass", tiny_models.ar, "--trajectories", 8, "--out", out,
                        "--workers", 2, "--set", "shard_size=4", "--steps", 8, "--plan", "--json", "--save-rates", file))
    assert (found.rates.workers, found.devices, file.is_file()) == (2, 2, True)
    make_dataset(out, tiny_models)
    before = tree(out)
    student = planned(cli("distill", "--data", out, "--out", tmp_path / "student", "--updates", 6, "--batch-size", 4, "--init",
                          tiny_models.mask, "--plan", "--json"))
    assert student.work["passes forward and backward"] == 24
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("name: arms\nbase: {optim: {steps: 4, batch_size: 4}, budgets: {1: 1, 2: 1}}\n"
                     "factors: {data.arm: [shaped, blind]}\nevaluate: {steps: [1], samples: 4, evaluator: ["
                     f"{tiny_models.ar}], corpus: {{path: {write_corpus(tmp_path / 'text.txt', 600)}}}}}\n")
    trials = planned(cli("ablate", sweep, "--data", out, "--out", tmp_path / "sweep", "--workers", 2, "--plan", "--json"))
    assert (trials.makes["trials"], trials.work["updates"], trials.devices) == (2, 8, 2)
    assert tree(out) == before
    left = {path.name for path in Path(tmp_path).iterdir()}
    assert left == {"out", "rates.json", "sweep.yaml", "text.txt"}
