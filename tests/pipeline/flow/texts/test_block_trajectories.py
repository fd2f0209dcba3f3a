"""Datasets of texts longer than their teacher's: each trajectory is a block, given the last tokens of the block before it."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch

from tests.forging import forge
from tests.support import LENGTH, assert_refused, make_dataset, present, tiny_config, tree
from tsdfm.jobs.generate import worker
from tsdfm.jobs.generate.worker import Order
from tsdfm.pipeline import batches, open_dataset, verify
from tsdfm.pipeline.dataset.card import read_front_matter
from tsdfm.pipeline.dataset.files.blocks import ANEW, FIRST, OTHER
from tsdfm.pipeline.dataset.manifest import claim, plan, read_manifest, read_shard
from tsdfm.pipeline.dataset.opened import Row
from tsdfm.pipeline.flow.generate import InThisProcess, generate_dataset
from tsdfm.pipeline.flow.opening import open_models
from tsdfm.pipeline.flow.prompts import FREE
from tsdfm.pipeline.flow.rollout import Begun, roll_out_begun
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import load_denoiser, save
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.storage.store import LocalStore
from tsdfm.schemas.base import InputError
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.given import BlockFacts

CPU = torch.device("cpu")
OVERLAP, BLOCKS = 6, 4  # of texts of 40 tokens: blocks of 16 begin at 0, 10, 20 and 30
LONG = {"rollout": {"steps": 8, "batch_size": 2, "length": 40}, "overlap": OVERLAP, "trajectories": 12, "shard_size": 5}


def long(out, models, **changes):
    return make_dataset(out, models, **(LONG | changes))


def grow(out, models, maker=None, **changes):
    config = GenerateConfig.model_validate(tiny_config(out, models) | LONG | changes)
    return generate_dataset(config, maker=maker or InThisProcess(CPU))


@pytest.fixture(scope="module", params=["mask", "uniform"])
def source(request):
    return request.param


@pytest.fixture(scope="module")
def teacher(source, tiny_models):
    return {"teacher": str(getattr(tiny_models, source))}


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_models, teacher):
    out = tmp_path_factory.mktemp("blocks") / "out"
    long(out, tiny_models, **teacher)
    return out


def test_each_block_goes_on_from_the_last(made):
    """Four trajectories are a text, in each arm by itself; a shard holds whole texts, so its size is rounded up."""
    manifest = read_manifest(open_store(str(made)))
    identity = manifest.identity
    assert (identity.blocks, identity.trajectories, identity.shard_size) == (BlockFacts(per_text=BLOCKS, overlap=OVERLAP), 12, 8)
    assert (manifest.format_version, identity.rollout.length) == (2, LENGTH)
    assert verify(str(made))[1] == []
    dataset = open_dataset(str(made))
    for arm in ("shaped", "blind"):
        rows = list(dataset.rows(arm))
        assert [row.trajectory_id for row in rows] == list(range(12))
        for row, before in zip(rows, [None, *rows], strict=False):
            fixed = present(row.fixed_positions).tolist()
            if row.trajectory_id % BLOCKS == 0:
                assert fixed == []
            else:
                assert fixed == list(range(OVERLAP))
                assert row.tokens[:OVERLAP].tolist() == present(before).tokens[-OVERLAP:].tolist()
                assert present(row.source_tokens)[:OVERLAP].tolist() == row.tokens[:OVERLAP].tolist()
    first = [dataset.row(number, "shaped").tokens.tolist() for number in (0, 4, 8)]
    assert len(set(map(tuple, first))) == 3


def test_a_block_is_the_trajectory_of_its_number_given_the_overlap(made, tiny_models, teacher):
    """Tokens, choices and energies are those of a trajectory whose prompt the overlap is."""
    dataset = open_dataset(str(made))
    config = GenerateConfig.model_validate(tiny_config("x", tiny_models) | LONG | teacher)
    models, identity = open_models(config, CPU), dataset.manifest.identity
    for row in dataset:
        fixed = torch.full((1, LENGTH), FREE)
        given = present(row.fixed_positions).tolist()
        fixed[0, given] = torch.tensor(row.tokens[given].tolist(), dtype=torch.long)
        [log] = roll_out_begun(models.teacher.network, models.compass, identity.rollout, identity.shaping,
                               Begun([row.trajectory_id], fixed), row.arm)
        assert log.tokens.tolist() == row.tokens.tolist()
        assert log.step_choice.tolist() == row.step_choice.tolist()
        assert log.final_energy == pytest.approx(row.final_energy, abs=2e-3)


def assert_others_make_the_same(made, tmp_path, tiny_models, **settings):
    """A worker of a cluster, and a dataset that grows, make the bytes of `made`."""
    whole = tree(made / "data")
    config = GenerateConfig.model_validate(tiny_config(tmp_path / "work", tiny_models) | LONG | settings)
    identity, store = read_manifest(open_store(str(made))).identity, LocalStore(tmp_path / "work")
    claim(store, identity)
    for item in plan(identity):
        worker.make(Order.of(config, identity, str(tmp_path / "work")), item, None)
    assert tree(tmp_path / "work" / "data") == whole
    long(tmp_path / "grown", tiny_models, trajectories=8, **settings)
    assert grow(tmp_path / "grown", tiny_models, **settings).grown_from == 8
    assert tree(tmp_path / "grown" / "data") == whole



def test_the_bytes_are_those_of_the_settings_whoever_makes_what(made, tmp_path, tiny_models, teacher):
    """Made backwards, killed, by workers of a run; and grown from fewer texts."""
    class Backwards(InThisProcess):
        def make(self, work, missing, progress):
            return super().make(work, list(reversed(missing)), progress)

    whole = tree(made / "data")
    grow(tmp_path / "back", tiny_models, Backwards(CPU), **teacher)
    next((tmp_path / "back" / "data").glob("*00001-of*")).unlink()
    assert grow(tmp_path / "back", tiny_models, **teacher).made == 1
    assert tree(tmp_path / "back" / "data") == whole
    assert_others_make_the_same(made, tmp_path, tiny_models, **teacher)
    with pytest.raises(InputError, match=r"blocks\.overlap \(there 6, here 7\)"):
        grow(tmp_path / "grown", tiny_models, overlap=7, **teacher)
    torch.set_num_threads(1)


def test_files_of_several_units_hold_whole_texts_too(tmp_path, tiny_models, teacher):
    manifest = long(tmp_path / "out", tiny_models, shard_size=1, shards_per_file=2, **teacher)
    assert (manifest.identity.shard_size, len(manifest.shards)) == (4, 2)
    assert verify(str(tmp_path / "out"))[1] == []


def test_a_text_may_go_on_from_a_prompt(tmp_path, tiny_models, teacher):
    """The first block of each text of a prompt is given it; all are trajectories of it."""
    (tmp_path / "p.txt").write_text("the quick\nmasks fall\n")
    prompts = {"prompts": str(tmp_path / "p.txt"), "per_prompt": 2 * BLOCKS, "trajectories": None, **teacher}
    manifest = long(tmp_path / "out", tiny_models, **prompts)
    assert manifest.identity.trajectories == 16
    assert verify(str(tmp_path / "out"))[1] == []
    dataset = open_dataset(str(tmp_path / "out"))
    for row in dataset:
        given = dataset.vocabulary.encode(["masks fall" if row.trajectory_id >= 8 else "the quick"])[0]
        if row.trajectory_id % BLOCKS == 0:
            assert row.tokens[: len(given)].tolist() == given
            assert present(row.fixed_positions).tolist() == list(range(len(given)))
        else:
            assert len(present(row.fixed_positions)) == OVERLAP
    manifest = read_manifest(open_store(str(tmp_path / "out")))
    forge(tmp_path / "out", lambda row: retoken(row) if row["trajectory_id"] in (4, 0) else None)
    assert "identity.prompts.sha256" in str(verify(str(tmp_path / "out"))[1][0])


def retoken(row):
    row["source_tokens"][0] = row["tokens"][0] = row["tokens"][0] + 1


def test_a_block_that_does_not_go_on_from_the_last_is_found(tmp_path, tiny_models, teacher):
    out = tmp_path / "out"
    long(out, tiny_models, **teacher)
    forge(out, lambda row: retoken(row) if (row["trajectory_id"], row["arm"]) == (2, "blind") else None)
    assert [(each.row, each.what) for each in verify(str(out))[1]] == [(5, OTHER)]
    long(tmp_path / "two", tiny_models, **teacher)
    store = open_store(str(tmp_path / "two"))
    rows = [row for record in read_manifest(store).shards for row in read_shard(store, record).to_pylist()]
    by = {(row["trajectory_id"], row["arm"]): row for row in rows}
    other = {1: 5, 5: 1}  # second blocks of two texts change places
    forge(tmp_path / "two", lambda row: row.update(by[other.get(row["trajectory_id"], row["trajectory_id"]), row["arm"]]
                                                  | {"trajectory_id": row["trajectory_id"]}))
    assert {each.what for each in verify(str(tmp_path / "two"))[1]} == {OTHER}
    long(tmp_path / "three", tiny_models, **teacher, compass="none", arm="blind")
    forge(tmp_path / "three", lambda row: give_first(row) if row["trajectory_id"] == 4 else None)
    assert [(each.row, each.what) for each in verify(str(tmp_path / "three"))[1]] == [(4, FIRST)]


def give_first(row):
    """Say of a row of one candidate that its first token was given."""
    kept = [number for number, position in enumerate(row["event_position"]) if position]
    for name in ("event_step", "event_position", "event_token", "event_candidates"):
        row[name] = [row[name][number] for number in kept]
    row["fixed_positions"], row["source_tokens"][0] = [0], row["tokens"][0]


def test_students_learn_from_blocks(made, tmp_path, tiny_models, teacher):
    """No window asks for the overlap; datasets with and without blocks mix; the card says how texts are put together."""
    make_dataset(tmp_path / "plain", tiny_models, **teacher)
    for batch in batches([str(made), str(tmp_path / "plain")], "event", updates=3, batch_size=16):
        assert bool((batch.target >= 0).any())
    rows = {row.trajectory_id: row for row in open_dataset(str(made)).rows("shaped")}
    begins = {tuple(rows[number].tokens[:OVERLAP].tolist()) for number in rows if number % BLOCKS}
    found = 0
    for batch in batches(str(made), "endpoint", updates=4, batch_size=16):
        for state, target in zip(batch.x_t.tolist(), batch.target.tolist(), strict=True):
            if tuple(state[:OVERLAP]) in begins and max(target[:OVERLAP]) < 0:
                found += 1
    assert found
    card = (made / "README.md").read_text()
    assert "4 trajectories in a row are one text" in card
    assert read_front_matter(card)["trajectories"]["overlap"] == OVERLAP
    texts = np.concatenate([rows[0].tokens, *(rows[number].tokens[OVERLAP:] for number in (1, 2, 3))])
    assert len(texts) == BLOCKS * (LENGTH - OVERLAP) + OVERLAP


@pytest.fixture(scope="module")
def ending(source, tiny_models, tmp_path_factory):
    """A teacher whose texts end, as a dataset's settings, and its end token, which it likes."""
    opened = load_denoiser(getattr(tiny_models, source))
    end_id = present(opened.vocabulary.eos_id)
    network = Denoiser(opened.network.config.model_copy(update={"end_id": end_id}))
    network.load_state_dict(opened.network.state_dict())
    network.head.bias.data[end_id] += {"mask": 1.0, "uniform": 7.0}[source]
    folder = tmp_path_factory.mktemp("ending") / source
    save(folder, network, opened.vocabulary, None)
    return {"teacher": str(folder)}, end_id


BLIND = {"compass": "none", "arm": "blind"}


@pytest.fixture(scope="module")
def ended(tmp_path_factory, tiny_models, ending):
    out = tmp_path_factory.mktemp("ended") / "out"
    long(out, tiny_models, **ending[0], **BLIND)
    return out


def begins(out, end_id):
    """Of every row of a dataset whether the text before it, in its arm, has ended behind what was given of it, and the row."""
    before: dict[str, bool] = {}
    for row in open_dataset(str(out)).rows():
        yield before.get(row.arm), row
        given = present(row.fixed_positions).tolist()
        before[row.arm] = end_id in row.tokens[max([0, *given]) + 1 :].tolist()


def test_the_block_behind_an_end_begins_another_text(tmp_path, tiny_models, ending):
    """Whatever goes on goes on from the block before; nothing is made, scored or learnt of a text that is over."""
    settings, end_id = ending
    long(tmp_path / "out", tiny_models, **settings)
    assert verify(str(tmp_path / "out"))[1] == []
    last, seen = dict[str, Row](), set[tuple[bool, bool]]()
    for over, row in begins(tmp_path / "out", end_id):
        anew = row.trajectory_id % BLOCKS == 0 or over
        assert present(row.fixed_positions).tolist() == ([] if anew else list(range(OVERLAP)))
        if not anew:
            assert row.tokens[:OVERLAP].tolist() == last[row.arm].tokens[-OVERLAP:].tolist()
            assert end_id not in row.tokens[1:OVERLAP]
        last[row.arm] = row
        seen.add((row.trajectory_id % BLOCKS == 0, bool(anew)))
    assert seen == {(True, True), (False, True), (False, False)}
    for batch in batches(str(tmp_path / "out"), "event", updates=3, batch_size=16):
        assert bool((batch.target >= 0).any())
    assert f"A text with token {end_id} in it ends there" in (tmp_path / "out" / "README.md").read_text()


def test_texts_that_end_are_made_by_whoever_and_grow(tmp_path, tiny_models, ending, ended):
    assert_others_make_the_same(ended, tmp_path, tiny_models, **ending[0], **BLIND)


def test_another_text_of_a_prompt_begins_with_it_too(tmp_path, tiny_models, ending):
    settings, end_id = ending
    (tmp_path / "p.txt").write_text("the quick\nmasks fall\n")
    long(tmp_path / "out", tiny_models, prompts=str(tmp_path / "p.txt"), per_prompt=2 * BLOCKS, trajectories=None, **settings, **BLIND)
    assert verify(str(tmp_path / "out"))[1] == []
    words, anew = open_dataset(str(tmp_path / "out")).vocabulary, 0
    for over, row in begins(tmp_path / "out", end_id):
        given = words.encode(["masks fall" if row.trajectory_id >= 8 else "the quick"])[0]
        if row.trajectory_id % BLOCKS == 0 or over:
            anew += row.trajectory_id % BLOCKS > 0
            assert present(row.fixed_positions).tolist() == list(range(len(given)))
            assert row.tokens[: len(given)].tolist() == given
    assert anew


def of_trajectory(number, change, row):
    return change(row) if row["trajectory_id"] == number else None


def test_verify_asks_of_each_block_whether_the_text_was_over(tmp_path, ending, ended):
    """One that should begin another text and is given something, and one that should go on and goes on from something else."""
    later = [(row.trajectory_id, over) for over, row in begins(ended, ending[1]) if row.trajectory_id % BLOCKS]
    for change, is_over, what in ((give_first, True, ANEW), (retoken, False, OTHER)):
        number = next(number for number, over in later if over == is_over)
        shutil.copytree(ended, tmp_path / what[:9])
        forge(tmp_path / what[:9], partial(of_trajectory, number, change))
        assert (number % 8, what) in [(each.row, each.what) for each in verify(str(tmp_path / what[:9]))[1]]


def test_what_cannot_be(cli, tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(Denoiser, "hidden", None)
    generate = ["generate", "--teacher", tiny_models.mask, "--compass", "none", "--arm", "blind", "--out", tmp_path / "out", "--steps", 2]

    def refused(*flags, words):
        for more in ([], ["--plan"]):
            assert_refused(cli(*generate, *flags, *more), *words)
        assert not (tmp_path / "out").exists()

    refused("--length", 40, "--overlap", 16, words=["overlap: 16 tokens leave nothing to write", "give fewer"])
    refused("--length", 16, "--overlap", 4, words=["overlap: is of texts that are longer than the model's 16", "--length"])
    refused("--length", 40, "--overlap", 6, "--trajectories", 10,
            words=["trajectories: 10 are not whole texts: one of 40 tokens is 4 trajectories, blocks of 16; give 12, say"])
    (tmp_path / "p.txt").write_text("the quick\nmasks fall\n")
    refused("--length", 40, "--overlap", 6, "--prompts", tmp_path / "p.txt", words=["per_prompt: 1 are not whole texts", "give 4, say"])
    refused("--length", 40, "--overlap", 6, "--prompts", tmp_path / "p.txt", "--per-prompt", 4, "--trajectories", 12,
            words=["has 2 prompts, which are 8 trajectories of 4 each"])


@pytest.mark.parametrize(("change", "words"), [
    ({"blocks": {"per_text": 5, "overlap": 6}}, "must be multiples of blocks.per_text"),
    ({"blocks": {"per_text": 1, "overlap": 6}}, "blocks.per_text"),
    ({"blocks": {"per_text": 4, "overlap": 16}}, "blocks.overlap leaves nothing"),
    ({"blocks": {"per_text": 4, "overlap": 0}}, "blocks.overlap"),
    ({"blocks": None}, None)])
def test_manifests_that_cannot_be(made, tmp_path, change, words):
    """And one that forgets them: its rows are not of the version that it must be of."""
    (tmp_path / "out").mkdir()
    data = json.loads((made / "manifest.json").read_text())
    data["identity"].update(change)
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=words or "format_version is 2"):
        read_manifest(open_store(str(tmp_path / "out")))
