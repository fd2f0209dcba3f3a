"""Students published to a loopback Hub as model repositories: files, card, results table, and what is refused."""

import json
import shutil

import pytest

from tests.support import copy_dataset
from tsdfm.pipeline.evaluation.judge import Likelihood
from tsdfm.pipeline.evaluation.samples import of_tokens, summarise
from tsdfm.pipeline.models import folder as checkpoint
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.publishing.student import publish_student, without_folders
from tsdfm.pipeline.training.distill import open_start, record_of
from tsdfm.pipeline.training.student_card import student_card
from tsdfm.schemas.base import InputError, parse_json
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.evaluate import EvaluateConfig, JudgeFacts, Results, Row
from tsdfm.schemas.publish import PublishConfig
from tsdfm.schemas.training_record import StudentRecord

KEY = ("model", "team/student")


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_models):
    """A student folder as `distill` writes it, its weights those of its teacher."""
    root = tmp_path_factory.mktemp("student")
    copy_dataset(root / "data", tiny_models)
    config = DistillConfig.model_validate({"data": {"paths": [str(root / "data")]}, "budgets": {1: 1, 8: 1}})
    start = open_start(config)
    student = Denoiser(start.weights.network.config.model_copy(update={"step_size": True}))
    record = record_of(start).model_copy(update={"versions": {}})
    checkpoint.save(root / "student", student, start.weights.vocabulary, record, card=student_card(student.config, record))
    return root / "student"


@pytest.fixture
def student(made, tmp_path):
    shutil.copytree(made, tmp_path / "student")
    return tmp_path / "student"


def publish(folder, **changes):
    config = PublishConfig.model_validate({"out": str(folder), "repo": "team/student", "license": "apache-2.0"} | changes)
    return publish_student(folder, config, lambda *_: None)


@pytest.fixture
def evaluation(tmp_path, student):
    """What `evaluate --out` leaves of this student and of its teacher."""
    import numpy as np

    opened = checkpoint.load(student)
    samples = of_tokens(np.arange(64).reshape(4, 16) % 50, opened.vocabulary)
    likelihood = Likelihood(np.full(4, 40.0), np.full(4, 16))
    measures = dict(summarise(samples, {"embedded": likelihood})) | {"nfe": 7.5, "seconds": 1.0, "tokens_per_second": 64.0}
    rows = [Row(**measures, model=name, fingerprint=fingerprint, vocabulary="v", steps=8, temperature=1.0)
            for name, fingerprint in (("/home/me/teacher", "f" * 64), (str(student), opened.fingerprint))]
    results = Results(
        command="secret command", settings=EvaluateConfig(model=["/home/me/teacher", str(student)], samples=4, frontier=True, out=str(tmp_path)),
        versions={}, device="cpu", threads=1, judges={"embedded": JudgeFacts(fingerprint="0" * 64, vocabulary=None)}, rows=rows, reference=[])
    (tmp_path / "results.json").write_text(results.model_dump_json())
    (tmp_path / "frontier.png").write_bytes(b"\x89PNG picture")
    return tmp_path


def test_a_student_is_a_model_repository(hub, student):
    receipt = publish(student)
    files = hub.repos[KEY].files
    assert sorted(files) == [".gitattributes", "README.md", "config.json", "model.safetensors", "modeling_tsdfm.py", "tokenizer.json",
                             "tokenizer_config.json", "training.json"]
    assert receipt.uri == f"hf://team/student@{hub.repos[KEY].head}"
    assert json.loads((student / "published.json").read_text())["kind"] == "model"
    again = publish(student)
    assert (again.revision, again.sent_anything) == (receipt.revision, False)


def test_what_was_published_is_the_same_model(hub, student, tmp_path):
    publish(student)
    (tmp_path / "copy").mkdir()
    for path, data in hub.repos[KEY].files.items():
        (tmp_path / "copy" / path).write_bytes(data)
    assert checkpoint.load(tmp_path / "copy").fingerprint == checkpoint.load(student).fingerprint


def test_a_student_that_was_downloaded_is_published_anew(hub, student, tmp_path):
    publish(student)
    (tmp_path / "copy").mkdir()
    for path, data in hub.repos[KEY].files.items():
        (tmp_path / "copy" / path).write_bytes(data)
    assert not publish(tmp_path / "copy").sent_anything


def test_what_transformers_cannot_open_is_published_without_code(hub, student):
    """A config that is not as this package writes it keeps its bytes, and with them the fingerprint."""
    publish(student)
    config = (student / "config.json").read_bytes().replace(b"  ", b" ")
    (student / "config.json").write_bytes(config)
    publish(student)
    files = hub.repos[KEY].files
    assert files["config.json"] == config
    assert not {"modeling_tsdfm.py", "tokenizer_config.json"} & files.keys()
    from huggingface_hub import ModelCard

    card = ModelCard(files["README.md"].decode())
    assert (card.data["pipeline_tag"], card.data["library_name"]) == ("text-generation", "tsdfm-pipeline")
    assert "transformers alone" not in card.text


def test_no_path_of_this_machine_is_published(hub, student, tmp_path_factory):
    publish(student)
    for name, data in hub.repos[KEY].files.items():
        assert str(tmp_path_factory.getbasetemp()).encode() not in data, name
    facts = json.loads(hub.repos[KEY].files["training.json"])
    assert facts["data"]["datasets"][0]["path"] == "data"


def test_folders_become_their_last_part(made):
    record = parse_json(StudentRecord, (made / "training.json").read_bytes(), "training.json")
    paths = ["/x/y", "hf://datasets/u/n@1", "~/z", "file:///a/b"]
    data = record.config.data.model_copy(update={"paths": paths})
    moved = record.model_copy(update={"config": record.config.model_copy(update={"data": data, "init": "/m/teacher"})})
    bare = without_folders(moved).config
    assert (bare.data.paths, bare.init, bare.real.corpus.path) == (["y", "hf://datasets/u/n@1", "z", "b"], "teacher", "python")


def test_the_model_card_and_its_table(hub, student, evaluation):
    from huggingface_hub import ModelCard

    publish(student, evaluation=str(evaluation))
    files = hub.repos[KEY].files
    text = files["README.md"].decode()
    card = ModelCard(text)
    assert card.data["license"] == "apache-2.0"
    assert (card.data["pipeline_tag"], card.data["library_name"]) == ("fill-mask", "transformers")
    assert card.data["model_name"] == "student"
    assert {(each.metric_type, each.dataset_args["steps"], each.metric_value) for each in card.data["eval_results"]} == {
        ("perplexity", 8, 12.1825), ("entropy", 8, 4.0)}
    assert 'from_pretrained("team/student", trust_remote_code=True)' in text
    assert "| **this student** | 8 | 1 | 12.2 (12.2-12.2) |" in text
    assert "| teacher | 8 |" in text
    assert "/home/me" not in text
    assert "secret command" not in text
    assert files["frontier.png"] == b"\x89PNG picture"
    assert "eprint = {2605.07924}" in text
    assert "hf download team/student --local-dir STUDENT" in text
    publish(student)
    assert "frontier.png" not in hub.repos[KEY].files


def test_the_card_says_what_fools_the_measures_and_what_is_copied(hub, student, evaluation):
    """Rows of naive samplers, memorisation, distances of sets and likelihood bounds, in the table and in the head."""
    from huggingface_hub import ModelCard

    from tsdfm.schemas.measures import Bound, Corrected, Distances

    results = Results.model_validate_json((evaluation / "results.json").read_text())
    near = Corrected(value=0.91, low=0.88, high=0.95, plain=0.85)
    distances = {"embedded": Distances(mauve=near, clusters=25, frechet=near, texts=250, real_texts=250)}
    rows = [row.model_copy(update={"memorised": 0.125, "in_trajectories": 0.5, "distances": distances}) for row in results.rows]
    naive = rows[0].model_copy(update={"model": "copied", "memorised": 1.0, "steps": None, "temperature": None, "nfe": None})
    bound = Bound(model=str(student), fingerprint=rows[1].fingerprint, vocabulary="v", steps=8, temperature=1.0, text="/home/me/a.txt", texts=4,
                  length=16, tokens=64, bytes=200, nats_per_token=3.0, perplexity=20.1, low=19.0, high=21.0, bits_per_byte=1.385)
    settings = results.settings.model_copy(update={"naive": True, "distances": True, "likelihood": True})
    told = results.model_copy(update={"rows": rows, "naive": [naive], "likelihood": [bound], "settings": settings})
    (evaluation / "results.json").write_text(told.model_dump_json())
    publish(student, evaluation=str(evaluation))
    text = hub.repos[KEY].files["README.md"].decode()
    assert "| naive: copied |" in text
    assert "| 100.0 % | 50.0 % | 0.910 (0.880-0.950) |" in text
    assert "| 12.5 % | 50.0 % | 0.910 (0.880-0.950) |" in text
    assert "self-BLEU | memorised | in trajectories |" in text
    assert "4 texts of a.txt" in text
    assert "| 8 | 3.0000 | 20.1 (19.0-21.0) | 1.3850 |" in text
    found = {each.metric_type: each.metric_value for each in ModelCard(text).data["eval_results"]}
    assert (found["memorisation"], found["mauve"], found["frechet"]) == (0.125, 0.91, 0.91)
    assert found["memorisation_of_trajectories"] == 0.5
    assert "/home/me" not in text


def test_figures_after_prompts_are_said_to_be_that(hub, student, evaluation):
    """In the table's notes and in the head; without prompts the card says nothing of them."""
    from huggingface_hub import ModelCard

    publish(student, evaluation=str(evaluation))
    assert "prompt (" not in hub.repos[KEY].files["README.md"].decode()
    results = Results.model_validate_json((evaluation / "results.json").read_text())
    rows = [row.model_copy(update={"given": 5.25, "prompts": "a" * 64}) for row in results.rows]
    (evaluation / "results.json").write_text(results.model_copy(update={"rows": rows}).model_dump_json())
    publish(student, evaluation=str(evaluation))
    text = hub.repos[KEY].files["README.md"].decode()
    assert "All figures are of what stands after a prompt (5.2 tokens on average), given that" in text
    told = ModelCard(text).data["eval_results"]
    assert {(each.dataset_name.split(",")[0], each.dataset_args["prompt_tokens"]) for each in told} == {("its own continuations of prompts", 5.2)}


def test_a_student_of_a_published_dataset_names_it(hub, student):
    facts = json.loads((student / "training.json").read_text())
    facts["data"]["datasets"][0]["uri"] = f"hf://datasets/team/runs@{'1' * 40}"
    (student / "training.json").write_text(json.dumps(facts))
    publish(student)
    from huggingface_hub import ModelCard

    assert ModelCard(hub.repos[KEY].files["README.md"].decode()).data["datasets"] == ["team/runs"]


def test_what_is_no_student_or_no_evaluation_of_it(hub, student, tiny_models, evaluation, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")  # folders are looked at before a login is asked for

    def line(*arguments, **changes):
        with pytest.raises(InputError) as caught:
            publish(*arguments, **changes)
        assert not hub.repos
        return str(caught.value)

    assert "holds a teacher" in line(tiny_models.mask)
    assert "holds a causal model" in line(tiny_models.ar)
    assert "no results.json there" in line(student, evaluation=str(student))
    other = json.loads((evaluation / "results.json").read_text())
    other["rows"] = other["rows"][:1]
    (evaluation / "results.json").write_text(json.dumps(other))
    assert "has no row of this student" in line(student, evaluation=str(evaluation))
    (student / "training.json").write_text("{}")
    assert "not the record of a distillation" in line(student)


def test_a_model_of_others_is_left_alone(hub, student):
    """Many models have a file that is called training.json."""
    repo = hub.add("model", "team/student")
    repo.commit({"training.json": b'{"epochs": 3}', "model.safetensors": b"mine"})
    with pytest.raises(InputError, match=r"holds other files than this model \(training.json\)"):
        publish(student)
    assert len(repo.commits) == 2
    assert not hub.sent
