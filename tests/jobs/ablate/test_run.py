"""Sweeps: which trials, what is refused, the table and its page, rounds, faults, and kills in the middle."""

import csv
import json
import math
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from tests.commands import running, wait_for
from tests.support import assert_refused, copy_dataset, make_dataset, present, tree, with_other_weights, write_corpus
from tsdfm.jobs.ablate import run as module
from tsdfm.jobs.ablate.plan import plan, read_sweep, studies
from tsdfm.jobs.ablate.table import at_equal_entropy, markdown
from tsdfm.jobs.shell import plots
from tsdfm.pipeline.models.folder import load, load_denoiser, state_folder
from tsdfm.pipeline.training.loop.checkpoint import HEADER_FILE, STATE_FILE
from tsdfm.pipeline.training.loop.data_parallel import Place
from tsdfm.schemas.ablate import Sweep, TrialRow
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.corpus import CorpusConfig
from tsdfm.schemas.evaluate import Perplexity

TABLES = ("table.csv", "table.parquet", "table.md", "effects.csv", "report.html")
PLACE = Place(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_models):
    """Two datasets, one of them blind from t = 0.5 on, and a corpus."""
    folder = tmp_path_factory.mktemp("sweeps")
    copy_dataset(folder / "data", tiny_models)
    make_dataset(folder / "late", tiny_models, shaping={"candidates": 4, "tau": 0.5})
    write_corpus(folder / "corpus.txt", 400)
    return folder


@pytest.fixture
def fields(root, tiny_models):
    """A sweep of 2 x 2 trials that take a second."""
    return {
        "name": "tiny", "question": "Which <one>?",
        "base": {"budgets": {1: 1, 8: 1}, "optim": {"steps": 4, "batch_size": 4, "log_every": 1, "checkpoint_every": 2}},
        "factors": {"data.arm": ["shaped", "blind"], "init_blocks": [2, 1]},
        "evaluate": {"steps": [2, 4], "samples": 6, "evaluator": [str(tiny_models.ar)], "corpus": {"path": str(root / "corpus.txt")}},
    }


@pytest.fixture
def drawn() -> None:
    """Plots are drawn as users get them: for tests of what is in them."""


@pytest.fixture
def in_process(monkeypatch, request):
    """Run the pieces here, without Ray, one after another; gives the keys that were run.

    Plots are blank, for to draw those of a page takes as long as all trials do; but for tests that ask for `drawn`.
    """
    ran = []
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(plots, "_svg", lambda sketch, width: f'<svg viewBox="0 0 {width} 1"></svg>')

    def run(work, keys, workers, address):
        faults = {}
        for key in keys:
            ran.append(key)
            try:
                module.run_piece(work, key, PLACE, lambda step, scalars: False)
            except (InputError, WorkError) as error:
                faults[key] = str(error)
        return faults

    monkeypatch.setattr(module, "_run", run)
    return ran


def sweep_of(fields, **changes):
    return Sweep.model_validate({**fields, **changes})


def run(fields, root, out, **changes):
    return module.ablate(sweep_of(fields, **changes), [str(root / "data")], out).model_dump(mode="json")


def test_files_of_the_evaluation_may_be_relative(fields, root, tmp_path, tiny_models, monkeypatch):
    """Trials run in another working directory than the user's."""
    seen = []
    monkeypatch.setattr(module, "_run", lambda work, keys, workers, address: seen.append(work) or dict.fromkeys(keys, "not run"))
    monkeypatch.chdir(root)
    named = {"evaluator": [os.path.relpath(tiny_models.ar), "embedded"], "corpus": {"path": "corpus.txt"}}
    with pytest.raises(WorkError, match="not run"):
        run(fields, root, tmp_path / "out", evaluate={**fields["evaluate"], **named})
    found = seen[0].evaluation
    assert found.corpus.path == str(root / "corpus.txt")
    assert (Path(found.evaluator[0]).resolve(), found.evaluator[1]) == (tiny_models.ar.resolve(), "embedded")
    assert Path(found.evaluator[0]).is_absolute()


def test_an_evaluation_that_would_fail_is_refused_before_any_training(fields, root, tmp_path, tiny_models, in_process):
    """Story: two students were trained for a night, and then the judge was not there."""
    (tmp_path / "short.txt").write_text("A word.\n\nAnother.")
    for change, words in (({"evaluator": ["no/judge"]}, "no/judge"), ({"corpus": {"path": "no.txt"}}, "no.txt: no such file"),
                          ({"evaluator": [str(tiny_models.mask)]}, "a judge is a causal LM"),
                          ({"corpus": {"path": str(tmp_path / "short.txt")}}, "held-out text")):
        with pytest.raises(InputError, match=words):
            run(fields, root, tmp_path / "out", evaluate={**fields["evaluate"], **change})
    assert not in_process
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["clocks", "tau", "trajectory-or-student"])
def test_a_study_that_ships_passes_every_check(name, fields, root, tmp_path, tiny_models, monkeypatch):
    """All that comes before the first trial, with its own evaluation: of small models, its temperatures and steps."""
    monkeypatch.setattr(module, "_run", lambda work, keys, workers, address: dict.fromkeys(keys, "not run"))
    study = read_sweep(name)
    data = [f"{each}={tmp_path / each}" for each in study.datasets] or [str(root / "data")]
    for index, each in enumerate(study.datasets):
        make_dataset(tmp_path / each, tiny_models, trajectories=4, rollout={"steps": 8, "seed": index})
    small = study.evaluate.model_copy(update={"evaluator": (str(tiny_models.ar),), "corpus": CorpusConfig(path=str(root / "corpus.txt")),
                                              "samples": 8})
    factors = {"init_blocks": [2, 1]} if "init_blocks" in study.factors else {}
    study = study.model_copy(update={"base": study.base | {"init": str(tiny_models.mask)}, "evaluate": small,
                                     "factors": study.factors | factors})
    with pytest.raises(WorkError, match="not run"):
        module.ablate(study, data, tmp_path / "out")


def test_several_temperatures_are_in_the_table_and_compared_at_equal_entropy(fields, root, tmp_path, in_process):
    evaluate = {**fields["evaluate"], "temperatures": [0.5, 1.0]}
    report = run(fields, root, tmp_path / "out", evaluate=evaluate, factors={"data.arm": ["shaped", "blind"]})
    assert {(row["steps"], row["temperature"]) for row in report["rows"] if row["levels"]} == {(n, t) for n in (2, 4) for t in (0.5, 1.0)}
    assert {effect["steps"] for effect in report["effects"]} == {2, 4}
    in_process.clear()
    assert run(fields, root, tmp_path / "out", evaluate=evaluate, factors={"data.arm": ["shaped", "blind"]})["made"] == 0
    assert not in_process


# ------------------------------------------------------------------ which trials

def test_a_grid_is_every_combination_with_every_seed(fields, root):
    trials = plan(sweep_of(fields, seeds=[0, 3]), [str(root / "data")])
    assert [(trial.levels, trial.seed) for trial in trials] == [
        ({"data.arm": arm, "init_blocks": blocks}, seed) for arm in ("shaped", "blind") for blocks in ("2", "1") for seed in (0, 3)]
    for trial in trials:
        assert (trial.config.data.arm, str(trial.config.init_blocks)) == tuple(trial.levels.values())
        assert trial.config.optim.seed == trial.seed
        assert trial.config.optim.steps == 4
    assert len({trial.key for trial in trials}) == 8


def test_a_level_of_several_fields_is_the_same_with_every_seed(fields, root):
    trials = plan(sweep_of(fields, factors={"optim": [{"steps": 4}, {"steps": 5}]}, seeds=[0, 3]), [str(root / "data")])
    assert [(trial.levels["optim"], trial.config.optim.seed) for trial in trials] == [
        (f'{{"steps": {steps}}}', seed) for steps in (4, 5) for seed in (0, 3)]


def test_a_list_takes_what_it_leaves_out_from_the_base(fields, root):
    listed = [{"objective": "endpoint"}, {"rounds": 2, "data.best": 0.5}, {"budgets": {4: 1}, "data.energy_beta": 2}]
    trials = plan(sweep_of(fields, factors={}, trials=listed), [str(root / "data")])
    assert [trial.levels for trial in trials] == [
        {"objective": "endpoint", "rounds": "1", "data.best": "null", "budgets": '{"1": 1.0, "8": 1.0}', "data.energy_beta": "0.0"},
        {"objective": "event", "rounds": "2", "data.best": "0.5", "budgets": '{"1": 1.0, "8": 1.0}', "data.energy_beta": "0.0"},
        {"objective": "event", "rounds": "1", "data.best": "null", "budgets": '{"4": 1}', "data.energy_beta": "2"}]


def test_a_key_is_that_of_what_the_student_depends_on(fields, root, tmp_path, tiny_models):
    def keys(data="data", **changes):
        return [trial.key for trial in plan(sweep_of(fields, **changes), [str(root / data)])]

    first = keys()
    os.symlink(root / "data", tmp_path / "moved")
    assert [trial.key for trial in plan(sweep_of(fields), [str(tmp_path / "moved")])] == first
    assert keys(name="other", evaluate={"steps": [1]}) == first
    assert keys(base={**fields["base"], "init": str(tiny_models.mask)}) == first  # the teacher, named
    assert not set(keys("late")) & set(first)
    assert not set(keys(base={**fields["base"], "beta": 1.0})) & set(first)
    assert not set(keys(seeds=[1])) & set(first)


def test_datasets_by_name_are_levels(fields, root):
    named = sweep_of(fields, datasets={"early": "generate early", "late": "generate late"},
                     factors={"data.paths": ["early", ["early", "late"]]})
    trials = plan(named, [f"early={root / 'data'}", f"late={root / 'late'}"])
    assert [trial.levels["data.paths"] for trial in trials] == ["early", "early+late"]
    assert [trial.config.data.paths for trial in trials] == [[str(root / "data")], [str(root / "data"), str(root / "late")]]
    with pytest.raises(InputError, match=r"needs the dataset 'late'; make it with `generate late` and give --data late=OUT"):
        plan(named, [f"early={root / 'data'}"])


def test_the_studies_that_ship_are_sweeps():
    assert set(studies()) == {"clocks", "tau", "trajectory-or-student"}
    for name in studies():
        sweep = read_sweep(name)
        assert sweep.name == name
        assert sweep.question.endswith("?")
    assert len(read_sweep("trajectory-or-student").factors) == 2


# ------------------------------------------------------------------ refused, in one line, and nothing is written

REFUSED: dict[str, tuple[dict[str, object], list[str]]] = {
    "an unknown field": ({"factor": {}}, ["factor", "no such field"]),
    "an unknown factor": ({"factors": {"data.arms": ["shaped"]}}, ["tiny: trial data.arms shaped", "data.arms", "no such field"]),
    "a level that is none": ({"factors": {"data.arm": ["shapely"]}}, ["data.arm", "shapely"]),
    "a factor below a value": ({"factors": {"objective.x": [1]}, "base": {"objective": "event"}}, ["objective", "mapping"]),
    "neither grid nor list": ({"factors": {}}, ["either factors", "trials"]),
    "grid and list": ({"trials": [{"beta": 1}]}, ["either factors", "trials"]),
    "no level": ({"factors": {"beta": []}}, ["factors.beta"]),
    "the seed as a factor": ({"factors": {"optim.seed": [1]}}, ["optim.seed", "'seeds'"]),
    "the seed within a factor": ({"factors": {"optim": [{"steps": 4, "seed": 3}]}}, ["optim.seed is no factor", "'seeds'"]),
    "workers as a factor": ({"factors": {"workers": [1, 2]}}, ["workers", "one process"]),
    "workers in the base": ({"base": {"workers": 2}}, ["workers", "leave them out"]),
    "a seed twice": ({"seeds": [1, 1]}, ["seeds", "twice"]),
    "a trial twice": ({"factors": {"objective": ["event", "event"]}}, ["two trials are the same"]),
    "a trial twice by another name": ({"factors": {}, "trials": [{"objective": "event"}, {"rounds": 1}]}, ["two trials are the same"]),
    "no round": ({"factors": {"rounds": [0]}}, ["rounds"]),
    "too many blocks": ({"factors": {"init_blocks": [9]}}, ["init_blocks: 9", "2 blocks"]),
    "a best of nothing": ({"factors": {"data.best": [0]}}, ["data.best"]),
    "a top-k that is not there": ({"factors": {"objective": ["forward_kl"]}}, ["holds no top-k"]),
    "no such data": ({"factors": {"data.paths": ["nowhere"]}}, ["nowhere", "no dataset there"]),
    "paths that are no list": ({"factors": {"data.paths": [5]}}, ["data.paths.0"]),
    "a base that is none": ({"base": {"data": "x"}}, ["data", "mapping"]),
    "an evaluation of nothing": ({"evaluate": {"steps": []}}, ["evaluate.steps"]),
    "an evaluation that writes": ({"evaluate": {"out": "x"}}, ["evaluate.out", "no such field"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_sweeps_are_one_line(name, cli, fields, root, tmp_path):
    changes, words = REFUSED[name]
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({**fields, **changes}))
    assert_refused(cli("ablate", file, "--data", root / "data", "--out", tmp_path / "out"), *words)
    assert {path.name for path in tmp_path.iterdir()} == {"sweep.yaml"}


def test_no_such_sweep_no_data_and_a_foreign_folder(cli, fields, root, tmp_path):
    assert_refused(cli("ablate", "nosuch", "--out", tmp_path / "out"), "nosuch", "trajectory-or-student")
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(fields))
    assert_refused(cli("ablate", file, "--out", tmp_path / "out"), "--data")
    before = tree(root / "data")
    assert_refused(cli("ablate", file, "--data", root / "data", "--out", root / "data"), "holds files and no sweep")
    assert tree(root / "data") == before
    assert_refused(cli("ablate", "tau", "--data", root / "data", "--out", tmp_path / "out"), "tau-0", "--tau 0 ", "--data tau-0=OUT")


# ------------------------------------------------------------------ the table

@pytest.mark.usefixtures("drawn", "in_process")
def test_a_sweep_ends_in_one_table_thrice_and_one_page(fields, root, tmp_path, tiny_models):
    report = run(fields, root, tmp_path / "out")
    assert (report["trials"], report["made"], report["kept"]) == (4, 4, 0)
    table = pq.read_table(tmp_path / "out" / "table.parquet")
    lines = list(csv.DictReader((tmp_path / "out" / "table.csv").read_text().splitlines()))
    assert table.num_rows == len(lines) == len(report["rows"]) == 1 + 2 + 4 * 2  # real text, the start, the trials
    assert [line["trial"] for line in lines[:3]] == ["real", "start", "start"]
    assert [(line["data.arm"], line["init_blocks"], line["steps"]) for line in lines[3:]] == [
        (arm, blocks, steps) for arm in ("shaped", "blind") for blocks in ("2", "1") for steps in ("2", "4")]
    for line, row in zip(lines, table.to_pylist(), strict=True):
        assert float(line["perplexity (ar)"]) == row["perplexity (ar)"]
        assert row["perplexity_low (ar)"] <= row["perplexity (ar)"] <= row["perplexity_high (ar)"]
    markdown = (tmp_path / "out" / "table.md").read_text()
    assert f"{table['perplexity (ar)'][3].as_py():.1f} (" in markdown
    network = load_denoiser(tiny_models.mask).network
    assert table["parameters"][1].as_py() == sum(each.numel() for each in network.parameters())
    assert not any("seconds" in name for name in table.column_names)
    times = list(csv.DictReader((tmp_path / "out" / "times.csv").read_text().splitlines()))
    assert len(times) == 8
    assert all(float(line["distill_seconds"]) > 0 for line in times)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Which &lt;one&gt;?" in page
    assert page.count("<svg ") == 2 * 2  # each for a desk and for a phone
    assert not re.search(r"https?:|url\((?!#)|@import|<script|<link", page)


def test_effects_are_those_of_the_table(fields, root, tmp_path, in_process):
    report = run(fields, root, tmp_path / "out")
    rows = {(*row["levels"].values(), row["steps"]): row for row in report["rows"] if row["levels"]}
    [judge] = report["rows"][0]["judges"]
    for effect in report["effects"]:
        place, others = (0, ("2", "1")) if effect["factor"] == "data.arm" else (1, ("shaped", "blind"))

        def value(level, other, effect=effect, place=place):
            row = rows[(level, other, effect["steps"]) if place == 0 else (other, level, effect["steps"])]
            return row["entropy_bits"] if effect["measure"] == "entropy" else math.log(row["judges"][judge]["perplexity"])

        differences = [value(effect["level"], other) - value(effect["against"], other) for other in others]
        assert effect["difference"] == pytest.approx(sum(differences) / 2, abs=1e-9)
        assert effect["low"] <= effect["difference"] <= effect["high"]
    assert len(report["effects"]) == 2 * 2 * 2  # factors, step counts, measures


def test_trials_are_compared_at_equal_entropy_between_temperatures():
    """By hand: log perplexity is linear in entropy between neighbours; the shared range is 5.2 to 5.4 bits."""
    def row(trial, entropy, perplexity, steps=8):
        found = Perplexity(perplexity=perplexity, low=perplexity, high=perplexity, tokens=9)
        return TrialRow(trial=trial, levels={"a": trial}, seed=0, steps=steps, temperature=1.0, judges={"J": found}, entropy_bits=entropy,
                        entropy_standard_error=0.1, distinct_2=0.5, distinct_4=0.5, self_bleu=0.5, nfe=8.0, parameters=1)

    rows = [row("x", 5.0, 100.0), row("x", 5.4, 400.0), row("y", 5.6, 90.0), row("y", 5.2, 10.0), row("y", 5.9, 1.0, steps=4)]
    entropy, found = present(at_equal_entropy(rows, 8))
    assert entropy == pytest.approx(5.3)
    assert found["x", 0]["J"] == pytest.approx(100 * 4**0.75)
    assert found["y", 0]["J"] == pytest.approx(10 * 9**0.25)
    assert at_equal_entropy(rows[:1] + rows[2:], 8) is None
    assert "At equal entropy, 5.300 bits, 8 steps" in markdown(rows, ["a"], [])


def test_a_rerun_makes_nothing_and_a_grown_sweep_what_it_lacks(fields, root, tmp_path, in_process):
    out = tmp_path / "out"
    run(fields, root, out)
    before = {name: (out / name).read_bytes() for name in TABLES}
    in_process.clear()
    assert run(fields, root, out)["made"] == 0
    assert not in_process
    assert {name: (out / name).read_bytes() for name in TABLES} == before
    report = run(fields, root, out, factors={**fields["factors"], "objective": ["event", "endpoint"]})
    assert (report["made"], report["kept"]) == (4, 4)
    in_process.clear()
    students = {path: path.stat().st_mtime_ns for path in out.glob("trials/*/round-1/model.safetensors")}
    report = run(fields, root, out, evaluate={**fields["evaluate"], "steps": [4, 8]})
    assert len(in_process) == 5  # evaluated anew, not trained
    assert {path: path.stat().st_mtime_ns for path in students} == students


def test_one_table_is_of_one_judge_and_one_corpus(fields, root, tmp_path, in_process, tiny_models):
    """Story: the judge was refitted in its place, the sweep grew by a seed, and its rows were paired with those of the old judge."""
    out, judge, corpus = tmp_path / "out", tmp_path / "judge", tmp_path / "corpus.txt"
    shutil.copytree(tiny_models.ar, judge)
    write_corpus(corpus, 400)
    named = {"factors": {"init_blocks": [1]}, "evaluate": {**fields["evaluate"], "evaluator": [str(judge)], "corpus": {"path": str(corpus)}}}
    run(fields, root, out, **named)
    first, students = set(in_process), {path: path.stat().st_mtime_ns for path in out.glob("trials/*/round-1/model.safetensors")}
    shutil.rmtree(judge)
    with_other_weights(tiny_models.ar, judge)
    in_process.clear()
    run(fields, root, out, seeds=[0, 1], **named)
    assert first < set(in_process)
    judges = {json.loads(file.read_text())["judges"][str(judge)]["fingerprint"] for file in out.glob("*/*/evaluation/results.json")}
    assert judges == {load(judge).fingerprint}
    assert {path: path.stat().st_mtime_ns for path in students} == students  # judged anew, not trained
    in_process.clear()
    write_corpus(corpus, 500)
    before = (out / "table.csv").read_text()
    run(fields, root, out, seeds=[0, 1], **named)
    assert in_process == [module.START]
    assert (out / "table.csv").read_text() != before
    shutil.rmtree(judge)  # what is finished needs no judge any more
    assert run(fields, root, out, seeds=[0, 1], **named)["made"] == 0


def test_students_of_another_trial_and_of_another_text_are_seen(fields, root, tmp_path, in_process):
    out, text = tmp_path / "out", write_corpus(tmp_path / "text.txt", 300)
    real = {"weight": 0.5, "corpus": {"path": str(text)}}
    named = {"base": {**fields["base"], "real": real}, "factors": {"init_blocks": [2, 1]}}
    run(fields, root, out, **named)
    one, two = sorted((out / "trials").iterdir())
    before = tree(out / "trials")
    for old, new in ((one, "aside"), (two, one.name), (out / "trials" / "aside", two.name)):
        old.rename(out / "trials" / new)
    with pytest.raises(InputError, match=r"trials/\w+: holds the students of another trial, by their records.*: init_blocks \(there"):
        run(fields, root, out, **named)
    for old, new in ((one, "aside"), (two, one.name), (out / "trials" / "aside", two.name)):
        old.rename(out / "trials" / new)
    in_process.clear()
    run(fields, root, out, **named)
    assert (in_process, tree(out / "trials")) == ([], before)
    write_corpus(text, 310)
    run(fields, root, out, **named)
    assert set(in_process) == {one.name, two.name}
    assert all(tree(out / "trials")[name] != before[name] for name in before if name.endswith("model.safetensors"))


def test_a_judge_of_the_hub_is_that_of_its_commit(fields, root, tmp_path, in_process, tiny_models, hub):
    """Story: it was asked for by a branch and noted by its commit, so nothing was ever finished."""
    repo, out = hub.add("model", "team/judge"), tmp_path / "out"
    files = {path.name: path.read_bytes() for path in tiny_models.ar.iterdir()}
    named = {"factors": {"init_blocks": [1]}, "evaluate": {**fields["evaluate"], "evaluator": ["hub:team/judge"]}}
    for content, made in ((files, 2), (files, 0), (files | {"README.md": b"A card"}, 2)):
        if content is not files or made:
            repo.commit(content)
        in_process.clear()
        run(fields, root, out, **named)
        assert len(in_process) == made


def test_what_was_made_and_is_not_as_asked_is_a_fault(fields, root, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_run", lambda *given: {})
    with pytest.raises(WorkError, match=r"5 of 5 pieces of work failed, the first: .*start.*: was made just now, and yet is not finished"):
        run(fields, root, tmp_path / "out")


def test_rounds_start_from_the_student_before(fields, root, tmp_path, in_process):
    out = tmp_path / "out"
    run(fields, root, out, factors={"rounds": [1, 3], "init_blocks": [1]})
    [thrice] = [path.parent for path in out.glob("trials/*/round-3")]
    [once] = [path for path in out.glob("trials/*") if path != thrice]
    assert load(once / "round-1").fingerprint == load(thrice / "round-1").fingerprint
    for number in (2, 3):
        facts = json.loads((thrice / f"round-{number}" / "training.json").read_text())
        assert facts["init"] == load(thrice / f"round-{number - 1}").fingerprint
        assert not (state_folder(thrice / f"round-{number}") / STATE_FILE).exists()
    evaluated = json.loads((thrice / "evaluation" / "results.json").read_text())["rows"][0]
    assert evaluated["fingerprint"] == load(thrice / "round-3").fingerprint


def test_a_trial_that_fails_leaves_the_others_a_table(fields, root, tmp_path, in_process):
    out = tmp_path / "out"
    diverging = {"factors": {"optim.lr": [1e-3, 1e30], "data.arm": ["shaped", "blind"]}}
    with pytest.raises(WorkError, match=r"2 of 4 trials failed, the first: the .* is .*table.md holds the others"):
        run(fields, root, out, **diverging)
    table = pq.read_table(out / "table.parquet")
    assert set(table["optim.lr"].to_pylist()) == {None, "0.001"}
    assert {line["factor"] for line in csv.DictReader((out / "effects.csv").read_text().splitlines())} == {"data.arm"}


def test_a_trial_that_dies_again_and_again_ends_in_the_same_bytes(fields, root, tmp_path, in_process, monkeypatch):
    """In its training, then after it, then before it is noted as made."""
    run(fields, root, tmp_path / "whole")

    class Killed(BaseException):
        pass

    def dying(*arguments, **named):
        raise Killed

    for dies in ("tsdfm.pipeline.training.distill.save", "tsdfm.jobs.ablate.run.evaluated", "tsdfm.jobs.ablate.run.mark_complete"):
        with monkeypatch.context() as patch:
            patch.setattr(dies, dying)
            with pytest.raises(Killed):
                run(fields, root, tmp_path / "killed")
        assert not (tmp_path / "killed" / "table.csv").exists()
    run(fields, root, tmp_path / "killed")
    for name in TABLES:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


# ------------------------------------------------------------------ on Ray

@pytest.fixture
def long_sweep(fields, tmp_path):
    """A file of a sweep whose trials take some seconds each."""
    optim = {**fields["base"]["optim"], "steps": 150, "log_every": 5, "checkpoint_every": 10}
    changed = {**fields, "base": {**fields["base"], "optim": optim}, "workers": 1}
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(changed))
    return file


def finish(file: Path, data: Path, out: Path, *flags: str):
    with running("ablate", file, "--data", data, "--out", out, *flags, "--json") as process:
        stdout, stderr = process.communicate(timeout=280)
        assert process.returncode == 0, stderr
    return json.loads(stdout)


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.timeout(900)
def test_a_driver_that_is_killed_and_started_again_ends_in_the_same_table(long_sweep, root, tmp_path, head):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert finish(long_sweep, root / "data", whole, "--address", head.address)["made"] == 4
    for number in (1, 2):  # once in the first trials, once in later ones, each in the middle of a training
        with running("ablate", long_sweep, "--data", root / "data", "--out", killed, "--address", head.address) as process:
            def in_the_middle(number=number):
                done = len(list(killed.glob("trials/*/trial.json")))
                return done >= number and any(killed.glob(f"trials/*/*.training/{HEADER_FILE}"))

            wait_for(in_the_middle, process)
            os.kill(process.pid, signal.SIGKILL)  # Ray's own processes are left to find out
            time.sleep(1)
        assert not (killed / "table.csv").exists()
    report = finish(long_sweep, root / "data", killed, "--address", head.address)
    assert 1 <= report["kept"] < 4
    for name in TABLES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_interrupt_stops_the_trials_and_says_how_to_resume(long_sweep, root, tmp_path, head):
    out = tmp_path / "out"
    with running("ablate", long_sweep, "--data", root / "data", "--out", out) as process:
        wait_for(lambda: any(out.glob(f"trials/*/*.training/{HEADER_FILE}")), process)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "resume with: tsdfm-pipeline ablate" in stderr.strip().splitlines()[-1]
    assert not (out / "table.csv").exists()
    assert finish(long_sweep, root / "data", out, "--address", head.address)["trials"] == 4
