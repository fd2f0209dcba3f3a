"""A dataset made with prompts: which trajectory is of which, what stays, what is refused; resuming, growth, and how it is read."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.support import LENGTH, copy_dataset, make_dataset, present, tiny_config, tree
from tsdfm.pipeline import batches, open_dataset, replay, verify
from tsdfm.pipeline.dataset.card import read_front_matter
from tsdfm.pipeline.dataset.manifest import read_manifest
from tsdfm.pipeline.evaluation.counterfactual import counterfactual
from tsdfm.pipeline.flow.generate import InThisProcess, generate_dataset
from tsdfm.pipeline.flow.opening import open_models
from tsdfm.pipeline.flow.prompts import FREE, Given, Prompt, prompts_in
from tsdfm.pipeline.models.folder import load_model
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.schemas.base import InputError
from tsdfm.schemas.generate import GenerateConfig

CPU = torch.device("cpu")
TEXTS = ["the quick", "masks fall in turn", " lazy dog", "energy"]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(TEXTS))
    return path


def made(out, models, prompts, **changes):
    """The dataset of three trajectories a prompt."""
    return make_dataset(out, models, **({"prompts": str(prompts), "per_prompt": 3, "trajectories": None, "shard_size": 5} | changes))


def grow(out, models, prompts, trajectories=None, **changes):
    config = tiny_config(out, models) | {"prompts": str(prompts), "per_prompt": 3, "shard_size": 5, "trajectories": trajectories} | changes
    return generate_dataset(GenerateConfig.model_validate(config), maker=InThisProcess(CPU))


@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_every_trajectory_goes_on_from_its_prompt(tmp_path, tiny_models, prompts, source):
    """Trajectory i is of prompt i // per_prompt, in each arm; what was given stands in every state of it, and the arms are paired."""
    models = {"teacher": str(getattr(tiny_models, source))}
    manifest = made(tmp_path / "out", tiny_models, prompts, **models)
    assert (manifest.format_version, manifest.identity.trajectories, present(manifest.identity.prompts).per_prompt) == (2, 12, 3)
    assert verify(str(tmp_path / "out"))[1] == []
    dataset = open_dataset(str(tmp_path / "out"))
    texts = set()
    for row in dataset:
        given = dataset.vocabulary.encode([TEXTS[row.trajectory_id // 3]])[0]
        assert present(row.fixed_positions).tolist() == list(range(len(given)))
        assert row.text.startswith(TEXTS[row.trajectory_id // 3])
        for t in (0.0, 0.3, 1.0):
            assert replay(row, t)[: len(given)].tolist() == given
        assert not set(row.event_position.tolist()) & set(range(len(given)))
        texts.add(row.text)
    assert len(texts) > 12  # noise is by the trajectory's number, so texts of one prompt differ
    for number in range(12):
        one, other = dataset.row(number, "shaped"), dataset.row(number, "blind")
        np.testing.assert_array_equal(one.source_tokens, other.source_tokens)
        np.testing.assert_array_equal(np.unique(one.event_step), np.unique(other.event_step))


@pytest.mark.parametrize("name", ["p.jsonl", "p.parquet"])
def test_what_counts_is_what_was_given_not_the_file(tmp_path, tiny_models, prompts, name):
    """Another kind of file, and another field, of the same prompts: the same bytes, and a run of it goes on with the other."""
    file = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.table({"question": TEXTS}), file)
    else:
        file.write_text("".join(json.dumps({"question": text}) + "\n" for text in TEXTS))
    made(tmp_path / "one", tiny_models, prompts)
    made(tmp_path / "two", tiny_models, file, prompt_field="question")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert grow(tmp_path / "one", tiny_models, file, prompt_field="question").made == 0


def test_gaps_are_read_where_they_are_asked_for(tmp_path, tiny_models):
    (tmp_path / "p.txt").write_text("the quick ___ lazy ___ dog\n___ energy\nmasks\n")
    manifest = made(tmp_path / "out", tiny_models, tmp_path / "p.txt", prompt_gaps=True, per_prompt=1)
    assert manifest.identity.trajectories == 3
    first, second, third = (present(open_dataset(str(tmp_path / "out")).row(number).fixed_positions).tolist() for number in range(3))
    assert first[0] == 0
    assert first[-1] == LENGTH - 1
    assert first != list(range(len(first)))
    assert second[-1] == LENGTH - 1
    assert 0 not in second
    assert third == list(range(len(third)))
    words = load_model(str(tiny_models.mask)).vocabulary
    (tmp_path / "low.txt").write_text("the ___\n")
    made(tmp_path / "low", tiny_models, tmp_path / "low.txt", per_prompt=1)
    assert open_dataset(str(tmp_path / "low")).row(0).text.startswith("the ___")  # else it is text
    assert len(words.encode(["the ___"])[0]) < LENGTH


def test_another_file_of_prompts_is_another_dataset(tmp_path, tiny_models, prompts):
    made(tmp_path / "out", tiny_models, prompts)
    before = tree(tmp_path / "out")
    other = tmp_path / "other.txt"
    other.write_text("\n".join([*TEXTS[:3], "energies"]))
    with pytest.raises(InputError, match=r"prompts\.sha256 \(there .*, here .*\) \(the prompts here are those of .*other\.txt\)"):
        grow(tmp_path / "out", tiny_models, other)
    with pytest.raises(InputError, match=r"prompts\.per_prompt \(there 3, here 2\)"):
        grow(tmp_path / "out", tiny_models, prompts, trajectories=8, per_prompt=2)
    with pytest.raises(InputError, match=r"holds a dataset of another config.*prompts"):
        make_dataset(tmp_path / "out", tiny_models, shard_size=5)
    plain = tmp_path / "plain"
    make_dataset(plain, tiny_models, trajectories=12, shard_size=5)
    with pytest.raises(InputError, match=r"prompts \(there null.*those of .*prompts\.txt"):
        grow(plain, tiny_models, prompts)
    assert tree(tmp_path / "out") == before


def test_a_dataset_grows_by_more_of_its_prompts_and_by_new_ones(tmp_path, tiny_models, prompts):
    """The bytes are those of the whole made at once; prompts that are appended to the file do no harm to those before."""
    out = tmp_path / "out"
    made(out, tiny_models, prompts, trajectories=7)
    assert grow(out, tiny_models, prompts).grown_from == 7
    prompts.write_text("\n".join([*TEXTS, "keeps the most"]))
    report = grow(out, tiny_models, prompts)
    assert (report.grown_from, report.kept) == (12, 2)
    made(tmp_path / "at once", tiny_models, prompts)
    assert [sha for path, sha in sorted(tree(out).items()) if path != "manifest.json"] == [
        sha for path, sha in sorted(tree(tmp_path / "at once").items()) if path != "manifest.json"]
    assert [past.trajectories for past in read_manifest(open_store(str(out))).history] == [7, 12]
    assert verify(str(out))[1] == []
    prompts.write_text("\n".join(["other", *TEXTS[1:], "keeps the most", "jump"]))
    with pytest.raises(InputError, match="another config"):
        grow(out, tiny_models, prompts)
    prompts.write_text("\n".join([*TEXTS, "keeps the most"]))
    with pytest.raises(InputError, match="does not shrink"):
        grow(out, tiny_models, prompts, trajectories=9)


def test_datasets_with_and_without_prompts_mix_where_they_mean_the_same(tmp_path, tiny_models, prompts):
    """Both versions in one stream of windows, which never asks for what was given; another source or length is refused."""
    whole = copy_dataset(tmp_path / "whole", tiny_models)
    given = made(tmp_path / "given", tiny_models, prompts)
    assert (whole.format_version, given.format_version) == (1, 2)
    paths, mask = [str(tmp_path / "whole"), str(tmp_path / "given")], whole.identity.teacher.mask_id
    words = load_model(str(tiny_models.mask)).vocabulary
    begins = {tuple(words.encode([text])[0]) for text in TEXTS}
    for objective in ("event", "candidates", "endpoint"):
        found = 0
        for batch in batches(paths, objective, updates=6, batch_size=16):
            for state, target, t in zip(batch.x_t.tolist(), batch.target.tolist(), batch.t.tolist(), strict=True):
                if t == 0 and state != [mask] * LENGTH:
                    start = tuple(token for token in state if token != mask)
                    assert start in begins
                    assert target[: len(start)] == [-1] * len(start)
                    found += 1
        assert found
    make_dataset(tmp_path / "uniform", tiny_models, teacher=str(tiny_models.uniform))
    with pytest.raises(InputError, match=r"can't be mixed.*teacher\.source"):
        batches([str(tmp_path / "uniform"), str(tmp_path / "given")], "event")
    made(tmp_path / "short", tiny_models, prompts, rollout={"steps": 8, "batch_size": 4, "length": LENGTH - 2})
    with pytest.raises(InputError, match=r"can't be mixed.*rollout\.length"):
        batches([str(tmp_path / "short"), str(tmp_path / "given")], "event")


def test_the_rest_of_what_reads_a_dataset_reads_these(tmp_path, tiny_models, prompts):
    """Other rules of choice, the best rows alone, the card, and `datasets`."""
    from datasets import load_dataset

    from tsdfm.schemas.distill import DataConfig

    made(tmp_path / "out", tiny_models, prompts)
    asked = counterfactual(open_store(str(tmp_path / "out")))
    assert asked.trajectories == 12
    data = DataConfig(paths=[str(tmp_path / "out")], best=0.5, energy_beta=1.0)
    assert len(list(batches(data, "event", updates=2, batch_size=4))) == 2
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| `fixed_positions` | list of int32 |" in card
    assert "E is L less what was given" in card
    assert read_front_matter(card)["trajectories"]["per_prompt"] == 3
    rows = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows[0]["fixed_positions"] == present(open_dataset(str(tmp_path / "out")).row(0, "shaped").fixed_positions).tolist()


@pytest.mark.parametrize(("text", "trained_on"), [
    ("the\r\nquick", "the\nquick"), ("the\x85quick\x00", "the\nquick"), (" the e\u0301 ", " the \u00e9 "), (" ", " ")])
def test_a_prompt_has_the_form_of_the_text_that_is_trained_on(tiny_models, text, trained_on):
    """A carriage return, say, is never seen in training. Blanks, which matter to a prompt, stay."""
    words = load_model(str(tiny_models.mask)).vocabulary
    given = Prompt(text, "prompt", [text], ends_free=True).fixed(words, 64)
    assert [token for token in given if token != FREE] == words.encode([trained_on])[0]


def test_parts_of_prompts_are_those_of_the_whole(tmp_path, tiny_models, prompts):
    """What travels with a unit of work gives its trajectories the same tokens, and says the same of the first so many."""
    config = GenerateConfig.model_validate(tiny_config("x", tiny_models) | {"prompts": str(prompts), "per_prompt": 3, "trajectories": None})
    given = present(open_models(config, CPU).given)
    whole = given.fixed(range(12))
    assert given.trajectories == 12
    assert given.free == pytest.approx((whole == FREE).sum(1).float().mean().item())
    for start in range(12):
        for stop in range(start + 1, 13):
            part = given.of_trajectories(start, stop)
            assert torch.equal(part.fixed(range(start, stop)), whole[start:stop])
            assert len(part) == (stop - 1) // 3 - start // 3 + 1
    assert torch.equal(given.fixed([12, 35]), whole[[0, 11]])  # a plan measures ids that no dataset has
    words = load_model(str(tiny_models.mask)).vocabulary
    fewer = Given.of(prompts_in(str(prompts), "prompt", gaps=False)[:2], words, LENGTH, 3)
    assert fewer.facts(6) == given.facts(6) == given.facts(4) != given.facts(7)
