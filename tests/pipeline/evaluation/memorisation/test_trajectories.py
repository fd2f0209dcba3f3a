"""What of a student's texts stands in the trajectories that it learnt from, wherever these lie, and in no others."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support import LENGTH, TinyModels, copy_dataset, make_dataset, present, with_other_weights
from tsdfm.pipeline.dataset.opened import open_dataset
from tsdfm.pipeline.evaluation.memorisation import trajectories as module
from tsdfm.pipeline.evaluation.memorisation.grams import GRAM, Search, gram_hashes
from tsdfm.pipeline.evaluation.memorisation.trajectories import FinalTexts, learnt_by
from tsdfm.pipeline.evaluation.sample_cache import SampleCache, key_of
from tsdfm.pipeline.evaluation.samples import Samples
from tsdfm.pipeline.loader.streams import OpenDataset
from tsdfm.pipeline.models.folder import load_denoiser, save
from tsdfm.pipeline.models.student import student_of
from tsdfm.pipeline.training.distill import open_start, record_of
from tsdfm.schemas.base import InputError
from tsdfm.schemas.distill import DataConfig, DistillConfig


def make_student(out: Path, *paths: Path, **data: object) -> Path:
    """A student that has yet to learn, with the record of one that has."""
    start = open_start(DistillConfig.model_validate({"data": {"paths": list(map(str, paths)), **data}, "budgets": {1: 1.0}}))
    save(out, student_of(start.weights.network), start.weights.vocabulary, record_of(start))
    return out


def texts_of(where: Path, arm: str = "shaped", first: int = 0) -> np.ndarray:
    return np.stack([row.tokens for row in open_dataset(str(where)).rows() if row.arm == arm and row.trajectory_id >= first])


def share(folder: Path, tokens: np.ndarray, place: FinalTexts | None) -> float:
    assert place is not None
    search = Search(SampleCache(folder))
    search.add({"texts": tokens.tolist()}, Samples(tokens, [""] * len(tokens), None, None, "words"), place)
    for each in search.places:
        search.look(each)
    return search.shares()[key_of({"texts": tokens.tolist()})].mean


def learnt(model: Path, *named: Path):
    opened = load_denoiser(model)
    found = learnt_by({"student": opened}, list(map(str, named)))
    return found.of("student", opened.vocabulary.fingerprint), found.remarks


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_models: TinyModels) -> Path:
    root = tmp_path_factory.mktemp("made")
    copy_dataset(root / "data", tiny_models)
    make_dataset(root / "other", tiny_models, rollout={"steps": 8, "batch_size": 4, "seed": 5})
    return root


@pytest.fixture
def data(tmp_path, made) -> Path:
    return Path(shutil.copytree(made / "data", tmp_path / "data"))


@pytest.fixture
def other(tmp_path, made) -> Path:
    return Path(shutil.copytree(made / "other", tmp_path / "other"))


def test_copied_trajectories_are_found_and_foreign_texts_are_not(tmp_path, data, other):
    place, remarks = learnt(make_student(tmp_path / "student", data))
    assert remarks == ()
    assert share(tmp_path, texts_of(data), place) == 1
    assert share(tmp_path, texts_of(other), place) < 0.05
    assert share(tmp_path, texts_of(data, "blind"), place) < 1  # it did not learn from that arm


@pytest.mark.parametrize(("chosen", "ids"), [
    ({"trajectories": 7}, range(7)), ({"held_out": 0.3}, range(7)), ({"best": 0.4}, None), ({"arm": "blind"}, range(10))])
def test_only_what_was_learnt_from_counts(tmp_path, data, chosen, ids):
    place, _ = learnt(make_student(tmp_path / "student", data, **chosen))
    rows = [row for row in open_dataset(str(data)).rows() if row.arm == chosen.get("arm", "shaped")]
    if ids is None:
        ids = [row.trajectory_id for row in sorted(rows, key=lambda row: present(row.final_energy))[:4]]
    wanted = np.concatenate([gram_hashes(row.tokens) for row in rows if row.trajectory_id in ids])
    assert np.array_equal(np.sort(np.concatenate(list(place.hashes()))), np.sort(wanted))


def test_all_datasets_of_a_student_count(tmp_path, data, other):
    place, _ = learnt(make_student(tmp_path / "student", data, other))
    assert share(tmp_path, np.concatenate([texts_of(data), texts_of(other)]), place) == 1


def test_what_stands_behind_an_end_is_no_text(data):
    tokens = texts_of(data)
    end_id = int(tokens[0, 11])
    sizes = [next((place + 1 for place, token in enumerate(row) if token == end_id and place), LENGTH) for row in tokens.tolist()]
    source = OpenDataset.open(str(data), DataConfig())
    manifest, identity = source.manifest, source.manifest.identity
    padded = identity.model_copy(update={"teacher": identity.teacher.model_copy(update={"end_id": end_id})})
    source = replace(source, manifest=manifest.model_copy(update={"identity": padded}))
    found = np.concatenate(list(FinalTexts((source,)).hashes()))
    assert np.array_equal(found, np.concatenate([gram_hashes(row[:size]) for row, size in zip(tokens, sizes, strict=True)]))
    assert len(found) < len(tokens) * (LENGTH - GRAM + 1)


def test_a_dataset_that_moved_grew_or_went(tmp_path, tiny_models, data, other):
    student, texts = make_student(tmp_path / "student", data), texts_of(data)
    make_dataset(data, tiny_models, trajectories=14)
    place, remarks = learnt(student)
    assert (share(tmp_path, texts, place), remarks) == (1, ())
    assert share(tmp_path, texts_of(data, first=10), place) < 0.2  # which it has not seen
    data.rename(tmp_path / "moved")
    place, remarks = learnt(student)
    assert place is None
    assert len(remarks) == 1
    for words in ("student", str(data), "not there any more", "--trajectories-of"):
        assert words in remarks[0]
    place, remarks = learnt(student, tmp_path / "moved")
    assert (share(tmp_path, texts, place), remarks) == (1, ())
    other.rename(data)
    place, remarks = learnt(student)
    assert place is None
    assert "lies another dataset now" in remarks[0]


def test_one_dataset_of_two_gone_leaves_no_share(tmp_path, data, other):
    student = make_student(tmp_path / "student", data, other)
    shutil.rmtree(other)
    place, remarks = learnt(student, data)
    assert place is None
    assert str(other) in remarks[0]


def test_a_dataset_on_another_machine_is_read_only_if_it_is_named(tmp_path, data, monkeypatch):
    student = make_student(tmp_path / "student", data)
    record = student / "training.json"
    record.write_text(record.read_text().replace(f'"uri": "{data}"', '"uri": "s3://shelf/data"'))

    def never(name):
        raise AssertionError(f"{name} was opened")

    monkeypatch.setattr(module, "open_store", never)
    place, remarks = learnt(student)
    assert place is None
    assert "--trajectories-of s3://shelf/data" in remarks[0]
    monkeypatch.undo()
    place, remarks = learnt(student, data)
    assert (share(tmp_path, texts_of(data), place), remarks) == (1, ())


def test_a_teacher_and_real_text_are_looked_for_in_what_is_named(tmp_path, tiny_models, data):
    opened = load_denoiser(tiny_models.mask)
    words = opened.vocabulary.fingerprint
    assert learnt_by({"teacher": opened}, []).of("teacher", words) is None
    found = learnt_by({"teacher": opened}, [str(data)])
    both = np.concatenate([texts_of(data), texts_of(data, "blind")])
    assert share(tmp_path, both, found.of("teacher", words)) == share(tmp_path, both, found.of(None, words)) == 1
    assert found.of(None, "others") is None
    both_kinds = learnt_by({"teacher": opened, "student": load_denoiser(make_student(tmp_path / "student", data))}, [str(data)])
    own, all_of_it = both_kinds.of("student", words), both_kinds.of("teacher", words)
    assert own is not None
    assert all_of_it is not None
    assert (len(own.sources), len(all_of_it.sources)) == (1, 2)


def test_a_foreign_dataset_that_is_named_is_refused(tmp_path, tiny_models, data, other):
    student = make_student(tmp_path / "student", data)
    for named, words in [(other, f"they learnt from {data}"), (tmp_path / "nowhere", "no dataset there")]:
        with pytest.raises(InputError, match=words):
            learnt(student, named)
    with pytest.raises(InputError, match="another tokenizer"):
        learnt(tiny_models.foreign, data)


def test_a_student_without_a_record_says_so(tmp_path, data):
    student = make_student(tmp_path / "student", data)
    (student / "training.json").write_text("{}")
    place, remarks = learnt(student)
    assert place is None
    assert "names no dataset" in remarks[0]
    assert share(tmp_path, texts_of(data), learnt(student, data)[0]) == 1


def test_a_changed_shard_is_no_share_and_no_traceback(tmp_path, data):
    place, _ = learnt(make_student(tmp_path / "student", data))
    shard = next((data / "data").iterdir())
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(InputError, match="checksum"):
        share(tmp_path, np.arange(LENGTH)[None], place)


def test_a_student_of_other_weights_has_the_same_place(tmp_path, data):
    """Students that learnt from the same rows are looked for in one pass."""
    one = make_student(tmp_path / "student", data)
    twin = with_other_weights(one, tmp_path / "twin")
    first, second = learnt(one)[0], learnt(twin)[0]
    assert first is not None
    assert second is not None
    assert first.name == second.name


def test_a_dataset_of_other_prompts_is_another(tmp_path, tiny_models):
    for name in ("jumps", "turn"):
        (tmp_path / f"{name}.txt").write_text(f"the {name}\nin {name}")
        make_dataset(tmp_path / name, tiny_models, prompts=str(tmp_path / f"{name}.txt"), per_prompt=2, trajectories=None)
    student = make_student(tmp_path / "student", tmp_path / "jumps")
    assert learnt(student, tmp_path / "jumps")[0] is not None
    with pytest.raises(InputError, match="no student here learnt from it"):
        learnt(student, tmp_path / "turn")
