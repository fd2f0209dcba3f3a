"""What the version before the rooms wrote (tests/fixtures/v1, commit 0bf3877) opens, verifies and resumes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support import tree
from tsdfm.pipeline.dataset.manifest import read_manifest
from tsdfm.pipeline.dataset.verify import verify
from tsdfm.pipeline.evaluation import run as evaluation
from tsdfm.pipeline.evaluation.sample_cache import kept_texts
from tsdfm.pipeline.flow.compass import NceCompass
from tsdfm.pipeline.flow.generate import InThisProcess, generate_dataset
from tsdfm.pipeline.models.folder import load, load_denoiser
from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.training.distill import train_at
from tsdfm.pipeline.training.loop.data_parallel import Place
from tsdfm.pipeline.training.student_card import student_card
from tsdfm.schemas.base import parse_json, to_json
from tsdfm.schemas.distill import RealConfig
from tsdfm.schemas.evaluate import Results
from tsdfm.schemas.frontier import Frontier
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.training_record import NceRecord, StudentRecord

FIXTURES = Path(__file__).parent / "fixtures" / "v1"
CPU = torch.device("cpu")
NEW_FIELDS = ("compile", "recompute")  # of distill's config, which it did not have


def without_new(card: str) -> str:
    """A card without the lines of NEW_FIELDS."""
    return "".join(line for line in card.splitlines(keepends=True) if not any(f'"{name}": false' in line for name in NEW_FIELDS))


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A copy, whose paths are relative to the working directory."""
    shutil.copytree(FIXTURES, tmp_path / "v1")
    monkeypatch.chdir(tmp_path / "v1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path / "v1"
    torch.set_num_threads(threads)


def config_of(out: str, name: str, compass: str = "models/ar") -> GenerateConfig:
    """The config of an old dataset, from its manifest."""
    identity = read_manifest(open_store(name)).identity
    return GenerateConfig(out=out, teacher=f"models/{name}", compass=compass, arm=identity.arm, trajectories=identity.trajectories,
                          shard_size=identity.shard_size, rollout=identity.rollout, shaping=identity.shaping)


@pytest.mark.parametrize("name", ["mask", "uniform"])
def test_datasets_are_sound_and_their_manifests_are_written_the_same(old, name):
    before = tree(old / name)
    manifest, faults = verify(open_store(name))
    assert faults == []
    assert (old / name / "manifest.json").read_text() == manifest.model_dump_json(indent=2) + "\n"
    report = generate_dataset(config_of(name, name), maker=InThisProcess(CPU))
    assert (report.made, report.kept) == (0, 2)
    after = tree(old / name)
    kept = [path for path in before if path not in ("manifest.json", "README.md")]
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}
    assert read_manifest(open_store(name)).model_copy(update={"versions": manifest.versions, "teacher": manifest.teacher}) == manifest


@pytest.mark.parametrize("name", ["mask", "uniform"])
def test_the_same_config_gives_the_same_bytes(old, name):
    generate_dataset(config_of("anew", name), maker=InThisProcess(CPU))
    assert tree(old / "anew" / "data") == tree(old / name / "data")
    assert (old / "anew" / "tokenizer.json").read_bytes() == (old / name / "tokenizer.json").read_bytes()


def test_an_unfinished_dataset_is_finished(old):
    """Its shard has no receipt, and is kept for nothing less: it is made again, to the same bytes."""
    report = generate_dataset(config_of("unfinished", "mask"), maker=InThisProcess(CPU))
    assert (report.made, report.kept) == (2, 0)
    assert tree(old / "unfinished" / "data") == tree(old / "mask" / "data")


def test_a_student_opens_and_its_record_and_card_are_written_the_same(old):
    opened = load_denoiser(old / "student")
    record = parse_json(StudentRecord, (old / "student" / "training.json").read_bytes(), "training.json")
    anew = json.loads(to_json(record))
    assert [anew["config"].pop(name) for name in NEW_FIELDS] == [False, False]
    assert json.dumps(anew, indent=2, sort_keys=True) + "\n" == (old / "student" / "training.json").read_text()
    assert without_new(student_card(opened.network.config, record)) == (old / "student" / "README.md").read_text()
    results = parse_json(Results, (old / "evaluation" / "results.json").read_bytes(), "results.json")
    assert {row.fingerprint for row in results.rows} == {opened.fingerprint}


def test_an_nce_compass_gives_the_energies_that_it_gave(old):
    """And its record is written the same, but for fields that its config did not have."""
    opened, found = load(old / "models" / "nce"), json.loads((old / "models" / "nce" / "energies.json").read_text())
    assert isinstance(opened.network, NceEncoder)
    assert opened.fingerprint == found["fingerprint"]
    energies = NceCompass(opened.network).energy(torch.tensor(found["states"]), torch.tensor(found["t"]), None)
    torch.testing.assert_close(energies, torch.tensor(found["energies"]), rtol=0, atol=1e-6)
    text = (old / "models" / "nce" / "training.json").read_text()
    anew = json.loads(to_json(parse_json(NceRecord, text, "training.json")))
    new = anew["config"].keys() - json.loads(text)["config"].keys()
    assert new == {"workers", "address", "micro_batches", "compile", "recompute"}
    for name in new:
        del anew["config"][name]
    assert json.dumps(anew, indent=2, sort_keys=True) + "\n" == text


@pytest.mark.parametrize("corpus", ["as it was", "today's default"])
def test_training_that_was_cut_goes_on_to_the_same_student(old, corpus):
    """The last bits of a training are its processor's: that a kill moves none of them is tested where both halves run here."""
    record = parse_json(StudentRecord, (old / "student" / "training.json").read_bytes(), "training.json")
    config = record.config.model_copy(update={"real": RealConfig()}) if corpus == "today's default" else record.config
    assert train_at(Place(0, 1, CPU), config, Path("cut"), lambda step, scalars: False)
    for name in ("config.json", "tokenizer.json", "README.md"):
        assert without_new((old / "cut" / name).read_text()) == (old / "student" / name).read_text(), name
    anew, before = load_file(old / "cut" / "model.safetensors"), load_file(old / "student" / "model.safetensors")
    assert list(anew) == list(before)
    for name in anew:
        torch.testing.assert_close(anew[name], before[name], rtol=1e-4, atol=1e-6)


def test_every_record_says_which_corpus_it_is_of():
    """So the default may change: what was written before goes on meaning what it meant."""
    def corpora(document):
        if isinstance(document, dict):
            yield from [document["corpus"]] if isinstance(document.get("corpus"), dict) and "part" in document["corpus"] else []
            document = list(document.values())
        for each in document if isinstance(document, list) else []:
            yield from corpora(each)

    found = [each for file in sorted(FIXTURES.parent.rglob("*.json")) for each in corpora(json.loads(file.read_text()))]
    assert [each["path"] for each in found] == ["python", "python", "corpus.txt", "python", "python"]


def test_an_evaluation_is_read_as_it_was_written(old):
    """Its texts and scores are found; a rerun takes none of them, for they were sampled with the noise of `generate`."""
    results = parse_json(Results, (old / "evaluation" / "results.json").read_bytes(), "results.json")
    frontier = (old / "evaluation" / "frontier.json").read_text()
    assert parse_json(Frontier, frontier, "frontier.json").model_dump_json(indent=2) + "\n" == frontier
    assert results.method == 1
    for row in results.rows:
        samples, judges = kept_texts(results, row, old / "evaluation")
        assert len(samples.texts) == row.samples
        assert {name: found.perplexity for name, found in judges.items()} == {
            name: found.perplexity for name, found in row.judges.items()}
    before = tree(old / "evaluation" / "samples")
    assert evaluation.evaluate(results.settings).method == 2
    after = tree(old / "evaluation" / "samples")
    assert len(after) == 2 * len(before)
    assert before.items() <= after.items()


def test_an_evaluation_of_today_is_taken_up_and_nothing_is_sampled_again(old, monkeypatch):
    """tests/fixtures/v2: of the models of v1."""
    shutil.rmtree(old / "evaluation")
    shutil.copytree(FIXTURES.with_name("v2") / "evaluation", old / "evaluation")
    results = parse_json(Results, (old / "evaluation" / "results.json").read_bytes(), "results.json")
    frontier = (old / "evaluation" / "frontier.json").read_text()

    def never(*arguments):
        raise AssertionError("sampled again")

    monkeypatch.setattr(evaluation, "sample_texts", never)
    again = evaluation.evaluate(results.settings)
    newer = {"in_trajectories", "in_trajectories_standard_error"}
    assert [row.model_dump(exclude=newer) for row in again.rows] == [row.model_dump(exclude=newer) for row in results.rows]
    assert all(row.in_trajectories is not None for row in again.rows)  # its record says where its dataset lies
    assert (old / "evaluation" / "frontier.json").read_text() == frontier
