"""Distillation in one process and in two: exact resume, micro-batches, data-parallel shares, refusals, stops, NaN."""

import contextlib
import json
import shutil
import socket
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.multiprocessing.spawn import spawn

from tests.support import TinyModels, copy_dataset, make_dataset, make_models, with_other_weights, write_corpus
from tsdfm.pipeline.dataset.manifest import digest
from tsdfm.pipeline.loader.batches import Reader
from tsdfm.pipeline.models.folder import load, load_denoiser, save
from tsdfm.pipeline.models.student import student_of
from tsdfm.pipeline.training.distill import open_init, open_reader, open_start, record_of
from tsdfm.pipeline.training.loop.checkpoint import HEADER_FILE, STATE_FILE
from tsdfm.pipeline.training.loop.data_parallel import Place
from tsdfm.pipeline.training.loop.trainer import Trainer
from tsdfm.pipeline.training.objectives import StudentLoss
from tsdfm.pipeline.training.student_card import student_card
from tsdfm.pipeline.training.student_trainer import train_student
from tsdfm.schemas.base import InputError, WorkError, parse_json
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.former import FORMER, FormerModel
from tsdfm.schemas.training_record import StudentRecord

CPU = torch.device("cpu")
OPTIM = {"steps": 12, "batch_size": 4, "lr": 3e-3, "warmup": 2, "log_every": 3, "checkpoint_every": 4}
OBJECTIVES = ["event", "candidates", "endpoint", "forward_kl", "reverse_kl"]


class Killed(BaseException):
    """Stands for a kill signal."""


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_models):
    """name -> path: a mask and a uniform dataset of 10 trajectories with a top-k, and a mask one of many steps."""
    root = tmp_path_factory.mktemp("data")
    rollout = {"steps": 8, "batch_size": 4, "top_k": 4}
    make_dataset(root / "mask", tiny_models, rollout=rollout)
    make_dataset(root / "other", tiny_models, rollout=rollout | {"seed": 5})
    make_dataset(root / "uniform", tiny_models, rollout=rollout, teacher=str(tiny_models.uniform), compass="denoiser")
    make_dataset(root / "long", tiny_models, rollout={"steps": 256, "batch_size": 10}, arm="blind", trajectories=16)
    return {name: str(root / name) for name in ("mask", "other", "uniform", "long")}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.txt", 200)


def small(*paths, optim=(), **changes):
    settings = {"data": {"paths": list(paths), "group": 1}, "budgets": {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}, "optim": OPTIM | dict(optim)}
    settings["data"] |= changes.pop("data", {})
    return DistillConfig.model_validate(settings | changes)


def train(config, folder, report=lambda *_: None, place=None, start=None):
    """As a new process would."""
    torch.rand(7)  # which stands anywhere in torch's own stream
    torch.set_num_threads(config.optim.threads)
    opened = open_start(config)
    return train_student(opened if start is None else replace(opened, weights=start), folder, place or Place(0, 1, CPU), report)


def assert_same(one, other):
    for (name, a), (twin, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert name == twin
        assert torch.equal(a, b), name


@contextlib.contextmanager
def dying(monkeypatch, at):
    """Let the process die when it comes to update `at`."""
    update = Trainer.update

    def wrapped(self, loss_at):
        if self.step == at:
            raise Killed
        return update(self, loss_at)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", wrapped)
        yield


# ------------------------------------------------------------------ what is learned and said

@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_falls_and_each_budget_has_its_own(objective, data, tmp_path):
    reports = []
    config = small(data["mask"], objective=objective, optim={"steps": 45, "log_every": 15, "lr": 1e-2})
    student = train(config, tmp_path, lambda step, scalars: reports.append((step, scalars)))
    assert [step for step, _ in reports] == [15, 30, 45]
    assert reports[-1][1]["loss"] < 0.9 * reports[0][1]["loss"]
    for _, scalars in reports:
        assert {name for name in scalars if "/" in name} == {"loss/1", "loss/2", "loss/4", "loss/8"}
        assert min(scalars.values()) > 0
    assert not student.training
    assert student.config.step_size


@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_the_first_line_is_the_teachers_own_loss_on_the_first_batch(source, data, tmp_path):
    """Mean nats per target of the whole batch, and of each budget's rows; computed here from the reader's batch."""
    config, lines = small(data[source], optim={"log_every": 1, "steps": 1, "batch_size": 8}), []
    train(config, tmp_path, lambda step, scalars: lines.append(scalars))
    reader = open_reader(config)
    batch = reader.batch(0)
    student = student_of(open_init(config, reader.manifests[0]).network)
    nats = StudentLoss(student, "event")(batch).detach()
    has = batch.target >= 0
    assert lines[0]["loss"] == pytest.approx(float(nats.sum() / has.sum()), rel=1e-5)
    budgets = (1 / batch.dt).round().int()
    wanted = {f"loss/{n}": float(nats[budgets == n].sum() / has[budgets == n].sum()) for n in budgets.unique().tolist()}
    assert {name: value for name, value in lines[0].items() if "/" in name} == pytest.approx(wanted, rel=1e-5)


def test_real_text_pulls_the_student_towards_real_text(data, corpus, tmp_path, tiny_models):
    """Of two students the one with the real-data loss gives held-out real text a higher likelihood."""
    from tsdfm.pipeline.text.corpus import prepare, windows_of
    from tsdfm.pipeline.training.pretrain import evaluate
    from tsdfm.schemas.corpus import CorpusConfig

    scores = {}
    vocabulary = load(tiny_models.mask).vocabulary
    windows = windows_of(prepare(CorpusConfig(path=str(corpus)), vocabulary, vocabulary.size).held_out, 16, 64)
    for weight in (0.0, 1.0):
        config = small(data["mask"], optim={"steps": 80}, real={"weight": weight, "corpus": {"path": str(corpus)}})
        student = train(config, tmp_path / str(weight))
        scores[weight] = evaluate(student, windows)["held_out_cross_entropy"]
    assert scores[1.0] < 0.9 * scores[0.0]


def test_a_student_of_continuations_says_so(data, tmp_path, tiny_models):
    """Record and card name the datasets that were made with prompts; of others nothing is said."""
    (tmp_path / "p.txt").write_text("the quick\nmasks\n")
    manifest = make_dataset(tmp_path / "given", tiny_models, prompts=str(tmp_path / "p.txt"), per_prompt=3, trajectories=None)
    copy_dataset(tmp_path / "whole", tiny_models)
    cards = {}
    for paths in (["given"], ["whole"], ["whole", "given"]):
        start = open_start(DistillConfig.model_validate({"data": {"paths": [str(tmp_path / path) for path in paths]}}))
        record = record_of(start)
        assert [entry.prompts for entry in record.data.datasets] == [manifest.identity.prompts if path == "given" else None for path in paths]
        cards[len(paths), paths[0]] = " ".join(student_card(start.weights.network.config, record).split())
        assert ('"prompts"' in record.model_dump_json()) == ("given" in paths)
    assert "These go on from prompts" in cards[1, "given"]
    assert "of continuations" in cards[1, "given"]
    assert "go on from prompts" not in cards[1, "whole"]
    assert f"Those of `{digest(manifest.identity)[:16]}` go on from prompts" in cards[2, "whole"]


def test_facts_and_card_say_what_the_student_was_made_of(data, tmp_path, tiny_models):
    config = small(data["mask"], optim={"steps": 1})
    start = open_start(config)
    student = train(config, tmp_path / "state")
    record = record_of(start)
    assert record.config == small(data["mask"], optim={"steps": 1}, real={"corpus": {"path": "python"}})  # which was not read
    identity = record.data.datasets[0].identity
    save(tmp_path / "student", student, start.weights.vocabulary, record, card=student_card(student.config, record))
    assert parse_json(StudentRecord, (tmp_path / "student" / "training.json").read_bytes(), "training.json") == record
    text = (tmp_path / "student" / "README.md").read_text()
    for words in (identity[:16], "1, 2, 4, 8", "`event`", load(tiny_models.mask).fingerprint[:16], '"batch_size": 4', "1 updates"):
        assert words in text, words
    assert load_denoiser(tmp_path / "student").network.config.step_size


# ------------------------------------------------------------------ resume

def _variant(name, data, corpus):
    real = {"weight": 0.5, "corpus": {"path": str(corpus)}}
    return {
        "mid-epoch, a shard at a time": lambda: small(data["mask"]),
        "uniform, candidates": lambda: small(data["uniform"], objective="candidates"),
        "two datasets": lambda: small(data["mask"], data["other"], data={"weights": [2.0, 1.0]}),
        "real text": lambda: small(data["mask"], real=real),
        "micro-batches": lambda: small(data["mask"], micro_batches=2),
        "micro-batches and real text": lambda: small(data["mask"], micro_batches=4, real=real),
    }[name]()


VARIANTS = ["mid-epoch, a shard at a time", "uniform, candidates", "two datasets", "real text", "micro-batches", "micro-batches and real text"]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_killed_run_ends_in_the_bits_of_one_that_was_not(name, data, corpus, tmp_path, monkeypatch):
    """Ten rows in batches of four: updates 2, 5, 7, 10 straddle epochs. Killed before, at and after checkpoints (4, 8, 12)."""
    config = _variant(name, data, corpus)
    whole = train(config, tmp_path / "whole")
    for death in (0, 3, 4, 6, 11):
        with dying(monkeypatch, death), pytest.raises(Killed):
            train(config, tmp_path / "cut")
    assert_same(train(config, tmp_path / "cut"), whole)
    assert_same(train(config, tmp_path / "cut"), whole)  # and once more, when all is done


@pytest.mark.parametrize("loader_workers", [1, 2])
def test_processes_that_read_ahead_change_no_bit_and_may_change_in_number(loader_workers, data, tmp_path, monkeypatch):
    whole = train(small(data["mask"]), tmp_path / "whole")
    with dying(monkeypatch, 7), pytest.raises(Killed):
        train(small(data["mask"]), tmp_path / "cut")
    assert_same(train(small(data["mask"], data={"loader_workers": loader_workers}), tmp_path / "cut"), whole)


def test_dropout_of_a_teacher_resumes_bit_for_bit(data, tmp_path, monkeypatch, tiny_models):
    opened = load_denoiser(tiny_models.mask)
    network = opened.network
    start = open_init(small(data["mask"]), open_reader(small(data["mask"])).manifests[0])
    network.config = network.config.model_copy(update={"dropout": 0.3})
    start = type(start)(network, opened.vocabulary, opened.fingerprint, opened.path)
    whole = train(small(data["mask"]), tmp_path / "whole", start=start)
    assert whole.config.dropout == 0.3
    with dying(monkeypatch, 6), pytest.raises(Killed):
        train(small(data["mask"]), tmp_path / "cut", start=start)
    assert_same(train(small(data["mask"]), tmp_path / "cut", start=start), whole)


def test_a_report_that_says_stop_saves_there_and_the_next_run_goes_on(data, tmp_path):
    config, seen = small(data["mask"]), []
    whole = train(config, tmp_path / "whole", lambda step, scalars: seen.append((step, scalars)))
    assert train(config, tmp_path / "cut", lambda step, scalars: step >= 5) is None
    assert json.loads((tmp_path / "cut" / HEADER_FILE).read_text())["step"] == 6  # a line is due at 3, 6, ...; checkpoints at 4
    again = []
    assert_same(train(config, tmp_path / "cut", lambda step, scalars: again.append((step, scalars))), whole)
    assert again == seen[2:]


def test_stop_at_the_last_line_is_the_end(data, tmp_path):
    config = small(data["mask"])
    assert_same(train(config, tmp_path / "a", lambda step, _: step == 12), train(config, tmp_path / "b"))


# ------------------------------------------------------------------ the same run, or another

CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "objective": ({"objective": "endpoint"}, "objective"),
    "beta": ({"beta": 1.0}, "beta"),
    "budgets": ({"budgets": {1: 1.0, 2: 1.0, 4: 1.0, 8: 2.0}}, "budgets.8"),
    "a budget less": ({"budgets": {1: 1.0, 2: 1.0, 4: 1.0}}, "budgets.8"),
    "lr": ({"optim": {"lr": 1e-3}}, "optim.lr"),
    "seed": ({"optim": {"seed": 1}}, "optim.seed"),
    "batch": ({"optim": {"batch_size": 8}}, "optim.batch_size"),
    "arm": ({"data": {"arm": "blind"}}, "data.arm"),
    "fewer trajectories": ({"data": {"trajectories": 5}}, "data.trajectories"),
    "group": ({"data": {"group": 2}}, "data.group"),
    "micro-batches": ({"micro_batches": 2}, "micro_batches"),
}


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, train(small(data["mask"]), folder)


def bytes_in(folder):
    return {name: (folder / name).read_bytes() for name in (STATE_FILE, HEADER_FILE)}


@pytest.mark.parametrize("name", CHANGES)
def test_another_config_is_refused_by_field(name, finished, data):
    folder, _ = finished
    change, field = CHANGES[name]
    before = bytes_in(folder)
    with pytest.raises(InputError, match=field) as caught:
        train(small(data["mask"], **change), folder)
    assert "\n" not in str(caught.value)
    assert bytes_in(folder) == before


def test_other_data_other_weights_and_other_real_text_are_refused(finished, data, corpus, tmp_path, tiny_models):
    folder, _ = finished
    before = bytes_in(folder)
    with pytest.raises(InputError, match="datasets"):
        train(small(data["other"]), folder)
    with pytest.raises(InputError, match="datasets"):
        train(small(data["mask"], data["other"]), folder)
    opened = load_denoiser(tiny_models.mask)
    network = opened.network
    with torch.no_grad():
        network.head.bias[0] += 1
    save(tmp_path / "moved", network, opened.vocabulary, None)
    with pytest.raises(InputError, match="init"):
        train(small(data["mask"], init=str(tmp_path / "moved")), folder)
    assert bytes_in(folder) == before
    text = tmp_path / "text.txt"
    text.write_text(corpus.read_text())
    config = small(data["mask"], real={"weight": 0.5, "corpus": {"path": str(text)}}, optim={"steps": 4})
    train(config, tmp_path / "real")
    text.write_text(corpus.read_text() + "\n\nOne more document, long enough to be kept, and unlike all of the others in here.")
    with pytest.raises(InputError, match="corpus"):
        train(config, tmp_path / "real")


def test_data_and_weights_may_lie_elsewhere_when_a_run_goes_on(data, tmp_path, tiny_models, monkeypatch):
    whole = train(small(data["mask"]), tmp_path / "whole")
    with dying(monkeypatch, 6), pytest.raises(Killed):
        train(small(data["mask"]), tmp_path / "cut")
    shutil.copytree(data["mask"], tmp_path / "moved")
    shutil.copytree(tiny_models.mask, tmp_path / "teacher")
    assert_same(train(small(str(tmp_path / "moved"), init=str(tmp_path / "teacher")), tmp_path / "cut"), whole)


# ------------------------------------------------------------------ the weights to start from

@pytest.fixture
def mortal(tmp_path):
    """Models that may be deleted, and a dataset made with them."""
    models = make_models(tmp_path / "models")
    make_dataset(tmp_path / "out", models)
    return models, str(tmp_path / "out")


def test_a_student_needs_neither_teacher_nor_compass(mortal, tmp_path):
    models, out = mortal
    copy = tmp_path / "copy"
    shutil.copytree(models.mask, copy)
    with_them = train(small(out), tmp_path / "with")
    shutil.rmtree(tmp_path / "models")
    without = train(small(out, init=str(copy)), tmp_path / "without")
    assert_same(without, with_them)
    config = small(out)
    with pytest.raises(InputError, match="--init FOLDER") as caught:
        open_init(config, open_reader(config).manifests[0])
    assert str(models.mask) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_manifests_teacher_is_found_and_must_still_be_it(mortal):
    models, out = mortal
    config = small(out)
    manifest = open_reader(config).manifests[0]
    assert open_init(config, manifest).path == models.mask
    weights = load_file(models.mask / "model.safetensors")
    weights["head.bias"] = weights["head.bias"] + 1  # the folder now holds another teacher
    save_file(weights, models.mask / "model.safetensors")
    with pytest.raises(InputError, match="--init FOLDER"):
        open_init(config, manifest)
    shutil.rmtree(models.mask)
    models.mask.mkdir()  # and now none: what is wanted is told all the same
    with pytest.raises(InputError, match="--init FOLDER"):
        open_init(config, manifest)


@pytest.mark.parametrize("init", [None, "embedded", "the teacher of the folder"])
def test_a_teacher_of_a_former_version_is_told_with_that_version_and_a_copy_of_it_will_do(mortal, monkeypatch, tmp_path, init):
    models, out = mortal
    copy = shutil.copytree(models.mask, tmp_path / "copy")
    monkeypatch.setitem(FORMER, load(copy).fingerprint, FormerModel("teacher of the tests", "0.0.9", "there/teacher"))
    name = {"the teacher of the folder": str(models.foreign)}.get(str(init), init)
    manifest = open_reader(small(out)).manifests[0]
    assert open_init(small(out), manifest).path == models.mask  # it is found: then no version matters
    shutil.rmtree(models.mask)
    with_other_weights(copy, models.mask)
    with pytest.raises(InputError) as caught:
        open_init(small(out, init=name), manifest)
    for words in ("the embedded teacher of the tests of tsdfm-pipeline 0.0.9 (there/teacher there)", "distil with that version", "--init FOLDER"):
        assert words in str(caught.value)
    assert open_init(small(out, init=str(copy)), manifest).path == copy


def test_without_real_text_records_name_the_corpus_as_they_always_did(data, corpus):
    """Nothing of it is read, and trainings that were cut before the default changed are gone on with."""
    named = small(data["mask"], real={"corpus": {"path": "python"}})
    assert small(data["mask"]).real.corpus.path == "bible"
    assert open_start(small(data["mask"])).identity == open_start(named).identity
    assert open_start(small(data["mask"])).config == open_start(named).config
    for path in ("bible", "python", str(corpus)):
        real = {"weight": 0.5, "corpus": {"path": path}}
        assert open_start(small(data["mask"], real=real)).identity["real"]["corpus"]["path"] == path


def test_a_dataset_of_the_embedded_teacher_needs_no_folder(tmp_path, tiny_models):
    make_dataset(tmp_path / "out", tiny_models, teacher="embedded", compass="none", arm="blind", trajectories=2, shard_size=2,
                 rollout={"steps": 2, "batch_size": 2, "length": 4})
    config = small(str(tmp_path / "out"), budgets={1: 1.0, 2: 1.0}, data={"arm": "blind"})
    manifest = open_reader(config).manifests[0]
    found, named = open_init(config, manifest), open_init(config.model_copy(update={"init": "embedded"}), manifest)
    assert found.fingerprint == named.fingerprint == manifest.identity.teacher.fingerprint


WRONG_STARTS = {
    "another vocabulary": ("foreign", ["vocab_size", "is not the dataset's"]),
    "the other source": ("uniform", ["source", "uniform", "mask"]),
    "a compass": ("ar", ["holds a causal model"]),
    "another compass": ("nce", ["holds a nce model"]),
}


@pytest.mark.parametrize("name", WRONG_STARTS)
def test_weights_that_do_not_fit_the_data_are_refused(name, data, tiny_models):
    kind, words = WRONG_STARTS[name]
    config = small(data["mask"], init=str(getattr(tiny_models, kind)))
    with pytest.raises(InputError) as caught:
        open_init(config, open_reader(config).manifests[0])
    for word in [*words, str(getattr(tiny_models, kind))]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["kappa_exponent", "length"])
def test_weights_of_another_schedule_or_too_short_are_refused(field, data, tmp_path, tiny_models):
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_models.mask, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"kappa_exponent": 2.0} if field == "kappa_exponent" else
                               json.loads(file.read_text()) | {"length": 8}))
    config = small(data["mask"], init=str(folder))
    with pytest.raises(InputError, match="kappa_exponent" if field == "kappa_exponent" else "takes 8 tokens, the dataset has 16"):
        open_init(config, open_reader(config).manifests[0])


def test_a_student_may_start_from_a_student(data, tmp_path, tiny_models):
    """A second round keeps the step embedding that the first one learned."""
    config = small(data["mask"], optim={"lr": 3e-2})
    first = train(config, tmp_path / "first")
    save(tmp_path / "student", first, load(tiny_models.mask).vocabulary, None)
    again = small(data["mask"], init=str(tmp_path / "student"), optim={"steps": 1, "lr": 1e-9})
    second = train(again, tmp_path / "second")
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)
    assert first.trunk.step_embedding.mlp[2].weight.abs().max() > 1e-3


# ------------------------------------------------------------------ losses that are not finite, data that is not there

def poisoned(folder, target, name="trunk.blocks.0.qkv.weight"):
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    weights[name][:] = 3e38  # finite, unlike their products
    save_file(weights, target / "model.safetensors")
    return str(target)


def test_a_nan_at_the_start_is_one_line_and_saves_nothing(data, tmp_path, tiny_models):
    config = small(data["mask"], init=poisoned(tiny_models.mask, tmp_path / "nan"), optim={"checkpoint_every": 1})
    with pytest.raises(WorkError, match=r"the loss is nan at update 0; lower optim\.lr") as caught:
        train(config, tmp_path / "state")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "state" / STATE_FILE).exists()


@pytest.mark.parametrize("lr", [1e4, 1e30, 1e39])
def test_a_run_that_diverges_keeps_a_checkpoint_of_finite_weights(lr, data, tmp_path):
    """The update itself may be what overflows: its weights must never replace the last good ones."""
    config = small(data["mask"], optim={"lr": lr, "warmup": 0, "checkpoint_every": 1, "steps": 40})
    with pytest.raises(WorkError, match="kept" if lr < 1e39 else "at update 1; lower") as caught:
        train(config, tmp_path)
    assert "\n" not in str(caught.value)
    if (tmp_path / STATE_FILE).exists():
        for name, tensor in load_file(tmp_path / STATE_FILE).items():
            assert tensor.isfinite().all(), name


def test_a_nan_in_the_middle_keeps_the_last_checkpoint(data, tmp_path, monkeypatch):
    config = small(data["mask"])
    whole = train(config, tmp_path / "whole")
    batch_of = Reader.batch

    def spoilt(self, step, rank=0, world=1):
        batch = batch_of(self, step, rank, world)
        if step == 6:
            batch.t.fill_(torch.nan)
        return batch

    with monkeypatch.context() as patch:
        patch.setattr(Reader, "batch", spoilt)
        with pytest.raises(WorkError, match="update 6"):
            train(config, tmp_path / "cut")
    assert json.loads((tmp_path / "cut" / HEADER_FILE).read_text())["step"] == 4
    assert_same(train(config, tmp_path / "cut"), whole)


@pytest.mark.parametrize("loader_workers", [0, 1])
@pytest.mark.parametrize(("fault", "words"), [
    (lambda shard: shard.unlink(), "this shard is missing"),
    (lambda shard: shard.write_bytes(shard.read_bytes()[:-9] + b"\0" * 9), "checksum"),
], ids=["missing", "changed"])
def test_a_faulty_shard_is_one_line_and_keeps_the_last_checkpoint(fault, words, loader_workers, data, tmp_path):
    """Three shards, one at a time: the last one's turn comes in the middle."""
    out = tmp_path / "out"
    shutil.copytree(data["mask"], out)
    config = small(str(out), optim={"checkpoint_every": 1}, data={"loader_workers": loader_workers})
    whole = train(config, tmp_path / "whole")
    layout, bounds = open_reader(config).streams[0]._layout(0)
    shard = sorted((out / "data").iterdir())[layout[-1][0]]
    sound = shard.read_bytes()
    fault(shard)
    with pytest.raises(InputError, match=words) as caught:
        train(config, tmp_path / "cut")
    assert shard.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert json.loads((tmp_path / "cut" / HEADER_FILE).read_text())["step"] == bounds[-2] // 4
    shard.write_bytes(sound)
    assert_same(train(config, tmp_path / "cut"), whole)


# ------------------------------------------------------------------ shares of a batch

@contextlib.contextmanager
def gradients():
    """A list that the gradients of every update are put in, unclipped."""
    seen = []
    check = Trainer._check_finite

    def spy(self, name, value):
        check(self, name, value)
        if name == "loss":  # after backward, before clipping
            seen.append([p.grad.clone() for p in self.parameters])

    with mock.patch.object(Trainer, "_check_finite", spy):
        yield seen


def gradients_of(config, folder):
    with gradients() as seen:
        train(config, folder)
    return seen


def apart(one, other):
    """The distance of two lists of tensors, as a share of the first one's length; 0 if both are 0."""
    distance = sum(float((a - b).double().square().sum()) for a, b in zip(one, other, strict=True))
    return (distance / max(sum(float(a.double().square().sum()) for a in one), 1e-30)) ** 0.5


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_the_gradient_of_four_micro_batches_is_that_of_one(source, objective, data, corpus, tmp_path):
    """Rows carry different numbers of targets, so a mean of means would differ; real text, too."""
    found = {}
    for parts in (1, 4):
        config = small(data[source], objective=objective, micro_batches=parts, optim={"steps": 1, "batch_size": 8},
                       real={"weight": 0.7, "corpus": {"path": str(corpus)}})
        found[parts] = gradients_of(config, tmp_path / str(parts))[0]
    assert sum(float(g.abs().sum()) for g in found[1]) > 1
    assert apart(found[1], found[4]) < 1e-5
    for one, four in zip(found[1], found[4], strict=True):
        assert (one == 0).all() == (four == 0).all()


def test_a_part_without_any_target_changes_nothing(data, tmp_path):
    """256 steps, dt = 1/256, 16 positions: most rows have none; a whole batch without any is an update without a gradient."""
    found = {}
    for parts in (1, 4):
        config = small(data["long"], micro_batches=parts, budgets={256: 1.0}, data={"arm": "blind"}, optim={"steps": 10})
        found[parts] = gradients_of(config, tmp_path / str(parts))
    reader = open_reader(config)
    counts = [(reader.batch(step).target >= 0).sum(1).tolist() for step in range(10)]
    assert any(sum(row) == 0 for row in counts)
    assert any(0 in row and sum(row) for row in counts)
    for step, row in enumerate(counts):
        for one in found[1][step]:
            assert one.isfinite().all()
            assert (sum(row) > 0) or (one == 0).all()
        assert apart(found[1][step], found[4][step]) < 1e-3


# ------------------------------------------------------------------ data-parallel processes

def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _process(rank, world, port, jobs):
    """One of `world` processes: runs every job, (config, folder), one after another."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    for settings, folder, stop_at in jobs:
        lines: list[tuple[int, dict[str, float]]] = []

        def report(step, scalars, lines=lines, stop_at=stop_at):
            lines.append((step, scalars))
            return step == stop_at

        with gradients() as seen:
            student = train(DistillConfig.model_validate(settings), Path(folder) / "state", report, Place(rank, world, CPU))
        torch.save(seen, Path(folder) / f"gradients-{rank}.pt")
        if student is not None:
            torch.save(student.state_dict(), Path(folder) / f"{rank}.pt")
        (Path(folder) / f"{rank}.json").write_text(json.dumps(lines))
    dist.destroy_process_group()


def in_processes(world, jobs):
    spawn(_process, (world, _free_port(), jobs), nprocs=world)


def away(weights, student, config):
    """The distance of `weights` from the student's, as a share of the way that the student has gone."""
    torch.manual_seed(config.optim.seed)
    start = student_of(open_init(config, open_reader(config).manifests[0]).network).state_dict()
    final = student.state_dict()
    return apart([final[key] - start[key] for key in final], [weights[key] - start[key] for key in final])


DDP = ["mask", "uniform", "candidates", "few targets", "real text in micro-batches"]


def ddp_config(name, data, corpus, world):
    real = {"weight": 0.5, "corpus": {"path": str(corpus)}}
    optim = {"batch_size": 4, "steps": 8, "log_every": 2}
    return {
        "mask": lambda: small(data["mask"], workers=world, optim=optim),
        "uniform": lambda: small(data["uniform"], workers=world, optim=optim),
        "candidates": lambda: small(data["uniform"], objective="candidates", workers=world, optim=optim),
        "few targets": lambda: small(data["long"], budgets={64: 1.0}, data={"arm": "blind"}, workers=world, optim=optim),
        "real text in micro-batches": lambda: small(data["mask"], micro_batches=2, real=real, workers=world, optim=optim),
    }[name]()


@pytest.fixture(scope="module")
def pairs(data, corpus):
    """name -> (student of one process, folder of what two wrote). All in one spawn, for starting two is what takes time."""
    with tempfile.TemporaryDirectory() as root:
        folders = {name: Path(root) / name.replace(" ", "-") for name in [*DDP, "stopped"]}
        jobs = []
        for name, folder in folders.items():
            folder.mkdir()
            config = ddp_config("mask" if name == "stopped" else name, data, corpus, 2).model_dump(mode="json")
            jobs.append((config, str(folder), 4 if name == "stopped" else None))
            if name == "stopped":
                jobs.append((config, str(folder), None))
        in_processes(2, jobs)
        yield folders


@pytest.mark.slow
@pytest.mark.parametrize("name", DDP)
def test_two_processes_take_the_updates_of_one(name, pairs, data, corpus, tmp_path):
    lines, folder = [], pairs[name]
    config = ddp_config(name, data, corpus, 1)
    with gradients() as seen:
        student = train(config, tmp_path, lambda step, scalars: lines.append([step, scalars]))
    for rank in (0, 1):  # both hold the whole gradient, after the exchange
        theirs = torch.load(folder / f"gradients-{rank}.pt", weights_only=True)
        distances = [apart(mine, other) for mine, other in zip(seen, theirs, strict=True)]
        assert distances[0] < 1e-5
        assert max(distances) < 5e-3  # Adam's steps blow float errors up
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert away(first, student, config) < 2e-3
    said = json.loads((folder / "0.json").read_text())
    assert json.loads((folder / "1.json").read_text()) == []  # the first alone speaks
    assert [step for step, _ in said] == [step for step, _ in lines]
    for (_, mine), (_, theirs) in zip(said, lines, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    if name == "few targets":
        batches = [open_reader(config).batch(step).target >= 0 for step in range(8)]
        assert any(b.any() and not b[:2].any() for b in batches)
        assert any(b.any() and not b[2:].any() for b in batches)


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on_to_the_same_bits(pairs):
    stopped, whole = (torch.load(pairs[name] / "0.pt", weights_only=True) for name in ("stopped", "mask"))
    for key, value in whole.items():
        assert torch.equal(stopped[key], value), key
    assert len(list((pairs["mask"] / "state" / "tensorboard").iterdir())) == 1  # the first alone writes


@pytest.mark.slow
def test_a_run_of_one_process_may_go_on_in_two(data, corpus, tmp_path, monkeypatch):
    whole = train(ddp_config("mask", data, corpus, 1), tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    assert train(ddp_config("mask", data, corpus, 1), tmp_path / "cut" / "state", lambda step, _: step == 4) is None
    in_processes(2, [(ddp_config("mask", data, corpus, 2).model_dump(mode="json"), str(tmp_path / "cut"), None)])
    resumed = torch.load(tmp_path / "cut" / "0.pt", weights_only=True)
    assert away(resumed, whole, ddp_config("mask", data, corpus, 1)) < 2e-3


def test_types_of_this_module_are_what_the_fixtures_give(tiny_models):
    assert isinstance(tiny_models, TinyModels)


def test_a_wish_to_stop_is_heeded_after_any_update(data, tmp_path):
    """Between two lines of the log, and with the state saved."""
    config = small(data["mask"])
    assert config.optim.log_every > 1
    asked = iter([False, True])
    assert train_student(open_start(config), tmp_path, Place(0, 1, CPU), lambda *_: None, lambda: next(asked)) is None
    assert json.loads((tmp_path / HEADER_FILE).read_text())["step"] == 2
