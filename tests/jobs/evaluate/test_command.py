"""`evaluate` as a user meets it: rows, real text, the frontier, a rerun that resumes, and every wrong input in one line."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from tests.support import LENGTH, assert_refused, copy_dataset, make_dataset, present, vocabulary, with_other_weights
from tsdfm.pipeline.dataset.opened import open_dataset
from tsdfm.pipeline.evaluation import run as module
from tsdfm.pipeline.evaluation import samples as evaluation
from tsdfm.pipeline.evaluation.cells import make_cell
from tsdfm.pipeline.evaluation.judge import Judge
from tsdfm.pipeline.evaluation.measures import corpus_texts
from tsdfm.pipeline.evaluation.memorisation.corpus import TrainingText
from tsdfm.pipeline.evaluation.memorisation.trajectories import FinalTexts
from tsdfm.pipeline.evaluation.run import evaluate
from tsdfm.pipeline.evaluation.samples import Cell, Made
from tsdfm.pipeline.flow.noise import Use
from tsdfm.pipeline.flow.texts.blocks import roll_out_blocks
from tsdfm.pipeline.models.causal import CausalLM
from tsdfm.pipeline.models.folder import load, load_denoiser, save
from tsdfm.pipeline.models.student import student_of
from tsdfm.pipeline.text.corpus import held_out_stream
from tsdfm.pipeline.training.distill import open_start, record_of
from tsdfm.schemas.base import WorkError
from tsdfm.schemas.corpus import CorpusConfig
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.evaluate import EvaluateConfig, Results
from tsdfm.schemas.former import FORMER, FormerModel

WORDS = ["the quick brown fox jumps over the lazy dog and back", "energy compass keeps the most coherent jump of all",
         "masks fall in turn while the lazy fox keeps quick"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n\n".join(f"{WORDS[i % 3]} {i}, {WORDS[(i + 1) % 3]} {7 * i}" for i in range(3000)))
    return path


@pytest.fixture
def arguments(tmp_path, tiny_models, corpus):
    return ["evaluate", "--model", tiny_models.mask, "--model", tiny_models.uniform, "--steps", "1,4", "--evaluator", tiny_models.ar,
            "--number", "6", "--corpus", corpus, "--batch-size", "4", "--threads", "1", "--out", tmp_path / "out"]


@pytest.fixture
def counts(monkeypatch):
    """How often texts were sampled (rollouts of more than warming up), judged, and the corpus read."""
    found = {"rollouts": 0, "judged": 0, "corpora": 0}
    score = Judge.score

    def rolled(model, rollout, ids, use, extent, fixed=None):
        found["rollouts"] += 1
        assert use == Use.MEASURE
        return roll_out_blocks(model, rollout, ids, use, extent, fixed)

    def scored(self, tokens, texts, vocabulary, given=None):
        found["judged"] += 1
        return score(self, tokens, texts, vocabulary, given)

    def loaded(config, vocabulary, progress):
        found["corpora"] += 1
        return held_out_stream(config, vocabulary, progress)

    monkeypatch.setattr(evaluation, "roll_out_blocks", rolled)
    monkeypatch.setattr(Judge, "score", scored)
    monkeypatch.setattr(corpus_texts, "held_out_stream", loaded)
    return found


def run(cli, arguments, *more):
    outcome = cli(*arguments, *more, "--json")
    assert outcome.code == 0, outcome.stderr
    return json.loads(outcome.stdout), outcome


def test_rows_real_text_and_files(cli, arguments, tmp_path, tiny_models):
    report, outcome = run(cli, arguments)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == report
    found = Results.model_validate(report)
    assert [(row.model, row.steps) for row in found.rows] == [
        (str(m), n) for m in (tiny_models.mask, tiny_models.uniform) for n in (1, 4)]
    for row in found.rows:
        assert 1 <= present(row.nfe) <= present(row.steps)
        assert row.samples == 6
        judged = row.judges[str(tiny_models.ar)]
        assert judged.low < judged.perplexity < judged.high
        assert judged.tokens == 6 * LENGTH
    assert len(found.reference) == 1  # both models have one vocabulary and one length
    assert found.reference[0].steps is None
    assert "real text" in outcome.stderr
    table = pq.read_table(tmp_path / "out" / "samples").to_pylist()
    assert len(table) == 5 * 6
    mine = [r for r in table if r["model"] == str(tiny_models.mask) and r["steps"] == 4]
    assert [r["index"] for r in mine] == list(range(6))
    assert np.mean([r["nfe"] for r in mine]) == found.rows[1].nfe


def test_a_rerun_makes_nothing_and_says_the_same(cli, arguments, counts):
    first, _ = run(cli, arguments)
    assert counts == {"rollouts": 4 * (1 + 2), "judged": 5, "corpora": 1}
    again, _ = run(cli, arguments)
    assert counts == {"rollouts": 4 * (1 + 2), "judged": 5, "corpora": 1}
    assert (again["rows"], again["reference"]) == (first["rows"], first["reference"])


def test_naive_samplers_have_rows_of_their_own(cli, arguments, counts, tmp_path):
    """Beside real text in the table, marked; found again in a second run; the models' rows are what they were."""
    plain, _ = run(cli, arguments)
    report, _ = run(cli, arguments, "--naive")
    assert [row["model"] for row in report["naive"]] == ["unigram", "shuffled", "repeated", "copied"]
    assert (report["rows"], report["reference"]) == (plain["rows"], plain["reference"])
    assert plain["naive"] == []
    assert "naive" not in plain["settings"]
    for row in report["naive"]:
        assert (row["samples"], row["length"], row["steps"], row["nfe"]) == (6, LENGTH, None, None)
    assert counts["judged"] == 5 + 4
    again, _ = run(cli, arguments, "--naive")
    assert again["naive"] == report["naive"]
    assert counts["judged"] == 5 + 4
    other, _ = run(cli, arguments, "--naive", "--out", tmp_path / "other")
    assert other["naive"] == report["naive"]  # by the seed, not by the folder
    reseeded, _ = run(cli, arguments, "--naive", "--no-reference", "--seed", "1")
    assert reseeded["naive"] != report["naive"]
    assert "naive: repeated" in cli(*arguments, "--naive").stdout


def test_memorisation_is_in_every_row_and_counted_once(cli, arguments, monkeypatch, tmp_path, tiny_models):
    report, _ = run(cli, arguments, "--naive")
    naive = {row["model"]: row["memorised"] for row in report["naive"]}
    assert naive["copied"] == 1
    assert naive["shuffled"] < 0.1
    assert 0 < report["reference"][0]["memorised"] < 1  # of sentences that all documents share, but for their numbers
    assert all(row["memorised"] < 0.1 for row in report["rows"])  # of models whose weights are random
    assert all(row["memorised_standard_error"] is not None for row in report["rows"])
    monkeypatch.setattr(TrainingText, "hashes", None)  # which is not looked at again
    again, _ = run(cli, arguments, "--naive")
    assert [again[table] for table in ("naive", "reference", "rows")] == [report[table] for table in ("naive", "reference", "rows")]
    assert "100.0 %" in cli(*arguments, "--naive").stdout
    for flags in (["--no-memorisation"], ["--no-reference"]):
        without, _ = run(cli, arguments, *flags, "--out", tmp_path / "other")
        assert {row["memorised"] for row in [*without["rows"], *without["reference"]]} == {None}


def test_a_student_is_looked_for_in_its_trajectories(cli, arguments, monkeypatch, tmp_path, tiny_models):
    """Beside the corpus, in every form: of a student that copies them all is found, of its teacher nothing is looked for."""
    copy_dataset(tmp_path / "data", tiny_models)
    start = open_start(DistillConfig.model_validate({"data": {"paths": [str(tmp_path / "data")]}, "budgets": {1: 1.0}}))
    save(tmp_path / "student", student_of(start.weights.network), start.weights.vocabulary, record_of(start))
    copied = np.stack([row.tokens for row in open_dataset(str(tmp_path / "data")).rows("shaped")][:6]).astype(np.int64)
    sampled = evaluation.sample_texts

    def copying(model, *rest):
        made = sampled(model, *rest)
        return replace(made, tokens=copied) if model.config.step_size else made

    monkeypatch.setattr(module, "sample_texts", copying)
    both = [*arguments[:1], "--model", tiny_models.mask, "--model", tmp_path / "student", *arguments[5:]]
    report, _ = run(cli, both, "--steps", "1")
    teacher, student = report["rows"]
    assert (student["in_trajectories"], student["in_trajectories_standard_error"]) == (1, 0)
    assert student["memorised"] < 0.1
    assert not any("in_trajectories" in row for row in [teacher, *report["reference"]])
    shown = cli(*both, "--steps", "1").stdout
    assert "in trajectories" in shown
    assert "100.0 %" in shown
    named, _ = run(cli, both, "--steps", "1", "--trajectories-of", tmp_path / "data", "--naive")
    assert named["rows"][1] == student
    assert all(row["in_trajectories"] < 0.1 for row in [named["rows"][0], *named["reference"], *named["naive"]])
    monkeypatch.setattr(FinalTexts, "hashes", None)  # which are not looked at again
    assert run(cli, both, "--steps", "1")[0]["rows"] == report["rows"]
    alone, _ = run(cli, both, "--steps", "1", "--no-reference")
    assert [row["memorised"] for row in alone["rows"]] == [None, None]
    assert alone["rows"][1]["in_trajectories"] == 1
    without, _ = run(cli, both, "--steps", "1", "--no-memorisation")
    assert "in_trajectories" not in without["rows"][1]


def test_trajectories_that_are_gone_are_said_and_do_no_harm(cli, arguments, tmp_path, tiny_models):
    copy_dataset(tmp_path / "data", tiny_models)
    start = open_start(DistillConfig.model_validate({"data": {"paths": [str(tmp_path / "data")]}, "budgets": {1: 1.0}}))
    save(tmp_path / "student", student_of(start.weights.network), start.weights.vocabulary, record_of(start))
    alone = [*arguments[:1], "--model", tmp_path / "student", *arguments[5:], "--steps", "1"]
    shard = next((tmp_path / "data" / "data").iterdir())
    shard.write_bytes(shard.read_bytes()[:-9])
    broken, _ = run(cli, alone)
    assert "its bytes differ" in broken["remarks"][-1]
    shutil.rmtree(tmp_path / "data")
    report, outcome = run(cli, alone)
    assert report["remarks"][-1] in " ".join(outcome.stderr.split())
    assert "not there any more" in report["remarks"][-1]
    assert not any("in_trajectories" in row for row in [*report["rows"], *broken["rows"]])
    make_dataset(tmp_path / "data", tiny_models, rollout={"steps": 8, "batch_size": 4, "seed": 5})
    assert_refused(cli(*alone, "--trajectories-of", tmp_path / "data"), "no student here learnt from it", "--trajectories-of")


def test_distances_of_sets_read_no_text_twice(cli, arguments, counts, monkeypatch, tmp_path, tiny_models):
    """In every row, for every judge; a line says that there are too few texts; features are kept, and older folders mended."""
    run(cli, arguments, "--steps", "1")
    assert counts["judged"] == 3
    report, outcome = run(cli, arguments, "--steps", "1", "--naive", "--distances")
    assert counts["judged"] == 3 + 3 + 4 + 1  # anew, for features; naive samplers; and other real texts
    name = str(tiny_models.ar)
    for row in [*report["rows"], *report["reference"], *report["naive"]]:
        found = row["distances"][name]
        assert (found["texts"], found["real_texts"]) == (6, 6)
        assert 1 / 252 <= found["mauve"]["low"] <= found["mauve"]["value"] <= found["mauve"]["high"] <= 1
        assert 0 <= found["frechet"]["low"] <= found["frechet"]["value"] <= found["frechet"]["high"]
    assert report["reference"][0]["distances"][name]["frechet"]["value"] < report["rows"][0]["distances"][name]["frechet"]["value"]
    assert "sets of 6 texts" in report["remarks"][-1]
    assert report["remarks"][-1] in " ".join(outcome.stderr.split())
    before = dict(counts)
    again, _ = run(cli, arguments, "--steps", "1", "--naive", "--distances")
    assert counts == before
    assert [again[table] for table in ("naive", "reference", "rows")] == [report[table] for table in ("naive", "reference", "rows")]
    assert "MAUVE, ar" in cli(*arguments, "--steps", "1", "--naive", "--distances").stdout
    plain, _ = run(cli, arguments, "--steps", "1")
    assert not any("distances" in row for row in [*plain["rows"], *plain["reference"]])


def test_likelihood_bounds_are_of_teachers_and_students(cli, arguments, counts, tmp_path, tiny_models):
    """Teachers in continuous time, too; found again; without sampling nothing is sampled or judged, and no judge opened."""
    student = student_of(load_denoiser(tiny_models.mask).network)
    save(tmp_path / "student", student, load_denoiser(tiny_models.mask).vocabulary, None)
    flags = ["--model", tmp_path / "student", "--likelihood", "--no-sampling", "--evaluator", "/nowhere/judge"]
    report, _ = run(cli, arguments, *flags)
    assert [(Path(row["model"]).name, row["steps"]) for row in report["likelihood"]] == [
        ("mask", None), ("mask", 1), ("mask", 4), ("uniform", None), ("uniform", 1), ("uniform", 4), ("student", 1), ("student", 4)]
    assert (report["rows"], report["reference"], report["judges"]) == ([], [], {})
    for row in report["likelihood"]:
        assert (row["texts"], row["length"], row["tokens"]) == (6, LENGTH, 6 * LENGTH)
        assert row["perplexity"] == pytest.approx(np.exp(row["nats_per_token"]))
        assert row["low"] <= row["perplexity"] <= row["high"]
        assert row["bits_per_byte"] == pytest.approx(row["nats_per_token"] * row["tokens"] / np.log(2) / row["bytes"])
    (one,) = [row for row in report["likelihood"] if row["model"] == str(tiny_models.mask) and row["steps"] == 1]
    (same,) = [row for row in report["likelihood"] if Path(row["model"]).name == "student" and row["steps"] == 1]
    assert one["nats_per_token"] == pytest.approx(same["nats_per_token"], rel=1e-5)  # its step embedding is zero still
    assert counts["rollouts"] == counts["judged"] == 0
    assert "continuous" in cli(*arguments, *flags).stdout
    again, _ = run(cli, arguments, *flags)
    assert again["likelihood"] == report["likelihood"]
    beside, _ = run(cli, arguments, "--likelihood")
    assert beside["likelihood"] == report["likelihood"][:6]
    after_prompts, _ = run(cli, arguments, "--likelihood", "--prompt-tokens", "5")  # the bounds are of whole texts all the same
    assert after_prompts["likelihood"] == report["likelihood"][:6]
    assert len(beside["rows"]) == 4


def test_the_likelihood_of_any_text_file(cli, arguments, tmp_path):
    file = tmp_path / "some.txt"
    file.write_text("\n\n".join(f"the quick brown fox keeps the most coherent jump {i}" for i in range(30)))
    report, _ = run(cli, arguments, "--text", file, "--no-sampling")
    assert {row["text"] for row in report["likelihood"]} == {str(file)}
    assert report["likelihood"][0]["texts"] == 6
    other, _ = run(cli, arguments, "--likelihood", "--no-sampling")
    assert other["likelihood"][0]["nats_per_token"] != report["likelihood"][0]["nats_per_token"]
    short = tmp_path / "short.txt"
    short.write_text("the quick")
    report, _ = run(cli, arguments, "--text", short, "--no-sampling")
    assert report["likelihood"][0]["texts"] == 1
    assert report["likelihood"][0]["length"] < LENGTH
    assert any("is a single text" in remark for remark in report["remarks"])


def test_shorter_texts_of_all_models(cli, arguments, tmp_path):
    report, _ = run(cli, arguments, "--length", "8", "--naive", "--likelihood", "--distances")
    for row in [*report["rows"], *report["reference"], *report["naive"], *report["likelihood"]]:
        assert row["length"] == 8
    whole, _ = run(cli, arguments)
    assert {row["length"] for row in whole["rows"]} == {LENGTH}


def test_a_protocol_is_defaults_that_are_written_out(cli, arguments, tmp_path):
    shown = yaml.safe_load(cli("evaluate", "--protocol", "owt-1024", "--print-config").stdout)
    assert (shown["samples"], shown["length"], shown["evaluator"]) == (1024, 1024, ["hub:openai-community/gpt2-large"])
    assert (shown["temperature"], shown["dtype"], shown["reference"]) == (1.0, "float32", False)
    assert yaml.safe_load(cli("evaluate", "--protocol", "owt-1024", "--corpus", "x.txt", "--print-config").stdout)["reference"]
    report, _ = run(cli, arguments, "--protocol", "owt-1024", "--length", str(LENGTH))
    assert report["settings"]["protocol"] == "owt-1024"
    assert (report["settings"]["samples"], report["settings"]["length"], report["settings"]["dtype"]) == (6, LENGTH, "float32")
    assert EvaluateConfig.model_validate(report["settings"]).model_dump() == EvaluateConfig.model_validate(
        json.loads((tmp_path / "out" / "results.json").read_text())["settings"]).model_dump()
    nulled = EvaluateConfig(protocol="owt-1024", length=None)
    assert EvaluateConfig.model_validate_json(nulled.model_dump_json()) == nulled


def test_naive_samplers_need_text_as_long_as_the_models(cli, arguments, tmp_path, counts):
    short = tmp_path / "short.txt"
    short.write_text("a b")
    assert_refused(cli(*arguments, "--naive", "--no-reference", "--corpus", short), "training text", "fewer than one text of", "--naive")
    assert counts["rollouts"] == 0


class Elsewhere:
    """Makes cells as nodes of a cluster do, last first: with models that it opens itself."""

    def __init__(self) -> None:
        self.cells: list[Cell] = []

    def make(self, cells: Sequence[Cell], take: Callable[[int, Made], None]) -> None:
        self.cells = list(cells)
        for index in reversed(range(len(cells))):
            take(index, make_cell(pickle.loads(pickle.dumps(cells[index]))))


def test_rows_made_elsewhere_are_the_same(tmp_path, tiny_models, corpus, counts):
    def config(out: str, *models: str) -> EvaluateConfig:
        return EvaluateConfig(model=models, steps=(1, 4), evaluator=(str(tiny_models.ar),), samples=6, corpus=CorpusConfig(path=str(corpus)),
                              batch_size=4, threads=1, out=str(tmp_path / out))

    def told(results: Results) -> list[dict[str, object]]:
        return [row.model_dump(exclude={"seconds", "tokens_per_second"}) for row in [*results.rows, *results.reference]]

    elsewhere, models = Elsewhere(), (str(tiny_models.mask), str(tiny_models.uniform))
    here = evaluate(config("here", *models))
    there = evaluate(config("there", *models), maker=elsewhere)
    assert told(there) == told(here)
    assert (there.device, len(elsewhere.cells)) == (here.device, 4)
    assert kept_files(tmp_path / "there") == kept_files(tmp_path / "here")
    before = dict(counts)
    assert told(evaluate(config("there", *models), maker=elsewhere)) == told(here)  # nothing is lacking
    assert counts == before
    for file in (tmp_path / "there" / "scores").iterdir():
        file.unlink()
    assert told(evaluate(config("there", *models), maker=elsewhere)) == told(here)
    assert all(cell.samples is not None for cell in elsewhere.cells)  # texts that are there are only judged
    other = replace(elsewhere.cells[0], fingerprint="another")
    with pytest.raises(WorkError, match="differs from the one that was asked for; give every node the same files"):
        make_cell(other)


def kept_files(folder: Path) -> set[str]:
    return {f"{path.parent.name}/{path.name}" for path in folder.glob("s*/*.parquet")}


def test_only_what_is_new_is_made(cli, arguments, counts, tiny_models, tmp_path):
    run(cli, arguments)
    run(cli, arguments, "--steps", "1,4,8")
    assert counts["rollouts"] == 6 * 3
    assert counts["judged"] == 7
    run(cli, arguments, "--steps", "1,4,8", "--evaluator", "embedded")
    assert counts["rollouts"] == 6 * 3
    assert counts["judged"] == 7 + 7
    assert counts["corpora"] == 1


def test_figures_of_an_embedded_judge_that_was_replaced_are_not_compared_in_silence(cli, corpus, tiny_models, tmp_path, monkeypatch):
    judge, out = shutil.copytree(tiny_models.ar, tmp_path / "judge"), tmp_path / "out"
    arguments = ["evaluate", "--model", tiny_models.mask, "--steps", "1", "--evaluator", judge, "-n", 6, "--corpus", corpus, "--out", out]
    run(cli, arguments)
    monkeypatch.setitem(FORMER, load(judge).fingerprint, FormerModel("judge of the tests", "0.0.9", "there/judge"))
    report, _ = run(cli, arguments)
    assert not any("0.0.9" in remark for remark in report["remarks"])  # it is the same
    shutil.rmtree(judge)
    with_other_weights(tiny_models.ar, judge)
    report, outcome = run(cli, arguments)
    remark = report["remarks"][-1]
    assert remark.startswith("the results.json that was here is of the embedded judge of the tests of tsdfm-pipeline 0.0.9")
    assert remark in outcome.stderr
    report, _ = run(cli, arguments)
    assert not any("0.0.9" in remark for remark in report["remarks"])


def test_an_interrupted_run_goes_on(cli, arguments, counts, monkeypatch):
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluation.sample_texts(*args, **kwargs)

    monkeypatch.setattr(module, "sample_texts", interrupted)
    outcome = cli(*arguments)
    assert outcome.code == 130
    assert "goes on with it" in outcome.stderr
    run(cli, arguments)
    assert counts == {"rollouts": 4 * 3, "judged": 5, "corpora": 1}


def test_a_changed_corpus_is_read_anew(cli, arguments, counts, tmp_path, corpus):
    copy = tmp_path / "copy.txt"
    copy.write_text(corpus.read_text())
    first, _ = run(cli, arguments, "--corpus", copy)
    copy.write_text(corpus.read_text()[::-1])
    second, _ = run(cli, arguments, "--corpus", copy)
    assert counts["corpora"] == 2
    assert first["reference"][0]["judges"] != second["reference"][0]["judges"]


def test_the_frontier_is_written(cli, arguments, tmp_path, tiny_models):
    report, outcome = run(cli, arguments, "--frontier", "--temperatures", "0.5,0.8")
    assert len(report["rows"]) == 4 * 3  # 1.0, the temperature of the rows, is on the curves, too
    data = json.loads((tmp_path / "out" / "frontier.json").read_text())
    curves = data["judges"][str(tiny_models.ar)]["curves"]
    assert [[p["temperature"] for p in curve["points"]] for curve in curves] == [[0.5, 0.8, 1.0]] * 4
    assert (tmp_path / "out" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert "frontier.png" in outcome.stderr


def test_models_are_set_against_the_first_or_the_one_that_is_named(cli, arguments, tiny_models):
    models = str(tiny_models.mask), str(tiny_models.uniform)
    sweep = ("--frontier", "--temperatures", "0.5,0.8", "--steps", "4")
    for base, other, flags in ((*models, ()), (*models[::-1], ("--against", models[1]))):
        report, _ = run(cli, arguments, *sweep, *flags)
        assert [(row["model"], row["steps"], row["against"], row["against_steps"]) for row in report["compared"]] == [(other, 4, base, 4)] * 3
        assert "cooled or heated until as diverse" in cli(*arguments, *sweep, *flags).stdout
        rows = {(row["model"], row["temperature"]): row for row in report["rows"]}
        for row in report["compared"]:
            [found] = row["judges"].values()
            curve = [rows[base, t]["entropy_bits"] for t in (0.5, 0.8, 1.0)]
            entropy = rows[other, row["temperature"]]["entropy_bits"]
            if not min(curve) <= entropy <= max(curve):
                assert found["entropy"] is None
            elif found["entropy"] is not None:
                assert found["entropy"]["low"] <= found["entropy"]["value"] <= found["entropy"]["high"]


@pytest.mark.parametrize(("flags", "words"), [
    (("--against", "OTHER", "--frontier"), ("against", "OTHER", "--model")), (("--against", "embedded"), ("against", "--frontier"))])
def test_what_is_set_against_is_a_model_with_a_curve(cli, tmp_path, flags, words):
    outcome = cli("evaluate", "--out", tmp_path / "out", *flags)
    assert outcome.code == 2
    assert len(outcome.stderr.strip().splitlines()) == 1
    assert all(word in outcome.stderr for word in words)


def test_a_file_of_settings_and_flags_over_it(cli, tmp_path, tiny_models):
    file = tmp_path / "evaluate.yaml"
    file.write_text(yaml.safe_dump({"model": str(tiny_models.mask), "evaluator": [str(tiny_models.ar)], "steps": [2, 4],
                                    "samples": 3, "reference": False, "out": str(tmp_path / "out")}))
    report, _ = run(cli, ["evaluate", file, "--steps", "3"])
    assert [row["steps"] for row in report["rows"]] == [3]
    assert report["reference"] == []


def test_nothing_is_kept_without_out(tmp_path, tiny_models, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    evaluate(EvaluateConfig(model=str(tiny_models.mask), evaluator=str(tiny_models.ar), steps=2, samples=3, reference=False))
    assert list(tmp_path.iterdir()) == []


def test_help_needs_no_torch():
    code = ("import sys; from click.testing import CliRunner; from tsdfm.jobs.evaluate.command import evaluate_command as c; "
            "r = CliRunner().invoke(c, ['--help']); sys.exit(r.exit_code or 'torch' in sys.modules or '--frontier' not in r.output)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("flags", "words"), [
    (["--model", "/nowhere/model"], ["/nowhere/model", "no such model folder"]),
    (["--model", "embedded:gaussian"], ["embedded:gaussian", "embedded:uniform"]),
    (["--model", "AR"], ["causal", "denoiser"]),
    (["--evaluator", "MASK"], ["kind 'denoiser'", "causal LM"]),
    (["--evaluator", "/nowhere/judge"], ["/nowhere/judge", "no such model folder"]),
    (["--evaluator", "/nowhere/judge.gguf"], ["/nowhere/judge.gguf", "no such file"]),
    (["--steps", "0"], ["steps.0", "greater than or equal to 1"]),
    (["--steps", "1,two"], ["steps.1", "two"]),
    (["--steps", ""], ["steps", "is empty"]),
    (["--temperature", "0"], ["temperature", "greater than 0"]),
    (["--temperatures", "0.5,-1"], ["temperatures.1", "greater than 0"]),
    (["--number", "1"], ["samples", "greater than or equal to 2"]),
    (["--corpus", "/nowhere/corpus.txt"], ["/nowhere/corpus.txt", "no such file"]),
    (["--seed", "-1"], ["seed"]),
    (["--out", "TAKEN"], ["cannot write there"]),
    (["--distances", "--no-reference"], ["real held-out text", "--no-reference"]),
    (["--distances", "-n", "100000"], ["--distances", "leave 0 to compare with", "-n "]),
    (["--no-sampling"], ["nothing is left to measure", "--likelihood"]),
    (["--no-sampling", "--likelihood", "--naive"], ["--no-sampling leaves out"]),
    (["--text", "/nowhere/text.txt"], ["/nowhere/text.txt", "no such file"]),
    (["--likelihood", "--clocks", "spaced"], ["spaced clocks", "--clocks independent"]),
    (["--length", "17", "--likelihood"], ["--likelihood: model", "writes 17 tokens in blocks", "up to its 16"]),
    (["--length", "0"], ["length", "greater than or equal to 1"]),
    (["--trajectories-of", "/nowhere/data"], ["/nowhere/data", "no dataset there"]),
    (["--trajectories-of", "/nowhere/data", "--no-memorisation"], ["trajectories_of", "--no-memorisation"]),
    (["--protocol", "lm1b"], ["protocol", "owt-1024"]),
])
def test_wrong_input_is_one_line(cli, arguments, flags, words, tmp_path, tiny_models):
    (tmp_path / "taken").write_text("a file")
    names = {"AR": tiny_models.ar, "MASK": tiny_models.mask, "TAKEN": tmp_path / "taken"}
    outcome = cli(*arguments, *(names.get(flag, flag) for flag in flags))
    assert outcome.code == 2, outcome
    assert outcome.stdout == ""
    errors = [line for line in outcome.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert outcome.stderr.strip().splitlines()[-1] == errors[0]
    for word in words:
        assert word in errors[0]
    assert not list((tmp_path / "out").rglob("*.parquet"))  # found before anything was sampled


def test_a_frontier_without_a_folder_is_refused(cli):
    outcome = cli("evaluate", "--frontier")
    assert outcome.code == 2
    assert "--out" in outcome.stderr


CHINESE = "狐狸跳过那只懒狗然后回到森林里去看月亮在水中的影子春天来了花开满山坡孩子们放学以后一起走回家路上说笑着唱歌"


@pytest.fixture(scope="module")
def chinese(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("chinese") / "corpus.txt"
    path.write_text("\n\n".join("".join(rng.choice(list(CHINESE), 90)) + "。" for _ in range(400)))
    return path


def test_a_judge_that_cannot_read_the_language_is_remarked_on(cli, arguments, chinese, tiny_models):
    """The judge was fitted to English; its byte-level tokenizer takes three tokens for a Chinese character."""
    report, outcome = run(cli, arguments, "--evaluator", "embedded", "--corpus", chinese)
    remark = next(line for line in report["remarks"] if line.startswith("judge embedded"))
    assert "does not read real held-out text" in remark
    assert "tokens a character" in remark
    assert "bits a character, where the characters' frequencies alone give" in remark
    assert remark in " ".join(outcome.stderr.split())


PLAIN = ["This is the way in which it was made.", "The work of the first part was not at an end.", "There is no other name for it.",
         "All of them were sent to the same place, and they came back."]


def test_a_judge_that_can_read_the_language_is_not(cli, arguments, tmp_path):
    """Plain words, which a model of any English knows."""
    corpus = tmp_path / "plain.txt"
    corpus.write_text("\n\n".join(" ".join(PLAIN[i // 4 ** place % 4] for place in range(6)) for i in range(4096)))
    report, outcome = run(cli, arguments, "--evaluator", "embedded", "--corpus", corpus)
    (remark,) = report["remarks"]
    assert remark.startswith("judge ar does not read real held-out text")  # whose weights are random
    assert "judge embedded does not read" not in outcome.stderr


def test_without_real_text_only_the_tokenizer_tells(cli, arguments, tiny_models):
    report, _ = run(cli, arguments, "--no-reference", "--steps", "1")
    assert report["remarks"] == []  # its own tokens, and noise deserves any perplexity


def test_texts_longer_than_the_judge_are_scored_in_windows_and_it_is_said(cli, arguments, tmp_path, tiny_models):
    """A judge of the models' own vocabulary with half their positions."""
    network = load(tiny_models.ar).network
    assert isinstance(network, CausalLM)
    config = network.config.model_copy(update={"length": LENGTH // 2})
    judge = CausalLM(config)
    judge.load_state_dict(network.state_dict())
    save(tmp_path / "judge", judge, load(tiny_models.ar).vocabulary, None)
    report, outcome = run(cli, arguments, "--evaluator", tmp_path / "judge")
    name = str(tmp_path / "judge")
    assert (report["judges"][name]["positions"], report["judges"][name]["reads_tokens"]) == (LENGTH // 2, True)
    for row in [*report["rows"], *report["reference"]]:
        assert row["judges"][name]["in_windows"] == 6
        assert row["judges"][name]["tokens"] == 6 * LENGTH
    assert "judge judge: 30 of 30 texts have more tokens than its 8 positions and were scored in windows" in " ".join(outcome.stderr.split())
    again, _ = run(cli, arguments, "--evaluator", tmp_path / "judge")
    assert again["rows"] == report["rows"]


@pytest.mark.parametrize("kind", ["no tokenizer", "fewer rows"])
def test_an_unfit_judge_is_refused_before_anything_is_sampled(cli, arguments, tmp_path, counts, kind):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=290, **sizes)).save_pretrained(tmp_path / "judge")
    if kind == "fewer rows":
        (tmp_path / "judge" / "tokenizer.json").write_text(vocabulary().to_json())
    outcome = cli(*arguments, "--evaluator", tmp_path / "judge")
    assert_refused(outcome, str(tmp_path / "judge"), "tokenizer")
    assert counts == {"rollouts": 0, "judged": 0, "corpora": 0}


def test_texts_of_another_dtype_are_other_texts(cli, arguments, counts):
    """Sampled anew in the same folder, and found again; on a CPU a line says what to expect. Judges stay as they are."""
    few = [*arguments, "--steps", "2", "--no-reference"]
    plain, quiet = run(cli, few)
    narrow, outcome = run(cli, few, "--dtype", "bfloat16")
    assert "bfloat16 is for GPUs" in outcome.stderr
    assert "bfloat16" not in quiet.stderr
    assert counts["rollouts"] == 2 * 2 * 3
    again, _ = run(cli, few, "--dtype", "bfloat16")
    assert counts["rollouts"] == 2 * 2 * 3
    assert again["rows"] == narrow["rows"] != plain["rows"]
    assert narrow["settings"]["dtype"] == "bfloat16"
    assert not {"dtype", "compile"} & plain["settings"].keys()
    assert EvaluateConfig.model_validate(plain["settings"]).dtype == "float32"
