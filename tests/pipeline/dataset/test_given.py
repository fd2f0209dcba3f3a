"""What rows were given is checked against the manifest: changed, with every checksum made right again, it is found."""


import pytest

from tests.forging import forge
from tests.support import assert_refused, make_dataset
from tsdfm.pipeline.dataset.files.given import OTHER
from tsdfm.pipeline.dataset.manifest import read_manifest, read_shard
from tsdfm.pipeline.dataset.verify import verify, verify_and_summarise
from tsdfm.pipeline.storage.open_store import open_store

TEXTS = ["the quick", "masks fall in turn", " lazy dog", "energy"]
DIGEST = "identity.prompts.sha256 is not that of the fixed tokens in the rows"


@pytest.fixture(params=["mask", "uniform"])
def made(request, tmp_path, tiny_models):
    """Twelve trajectories of four prompts, in three files: the second prompt's are in two of them."""
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))
    out = tmp_path / "out"
    make_dataset(out, tiny_models, prompts=str(tmp_path / "prompts.txt"), per_prompt=3, trajectories=None, shard_size=5,
                 teacher=str(getattr(tiny_models, request.param)))
    assert faults_of(out) == []
    return out


def faults_of(out):
    """What verify finds, in both of its ways."""
    faults = verify(str(out))[1]
    assert verify_and_summarise(open_store(str(out)))[1] == faults
    return [(each.path.rpartition("/")[2][:11], each.row, each.what) for each in faults]


def other_token(wanted):
    """Another token at the first fixed position of rows of which `wanted` is true."""
    def change(row):
        if wanted(row):
            place = row["fixed_positions"][0]
            row["source_tokens"][place] = row["tokens"][place] = row["tokens"][place] + 1
    return change


def test_a_forgery_that_changes_nothing_is_none(made):
    forge(made)
    assert faults_of(made) == []


def test_a_row_that_was_given_something_else_is_named(made):
    forge(made, other_token(lambda row: (row["trajectory_id"], row["arm"]) == (1, "blind")))
    assert faults_of(made) == [("train-00000", 3, OTHER)]


def test_a_prompt_whose_rows_are_in_two_files_is_one(made):
    forge(made, other_token(lambda row: row["trajectory_id"] == 5))
    assert faults_of(made) == [("train-00001", 0, OTHER)]


@pytest.mark.parametrize("prompt", range(4))
def test_a_prompt_that_was_changed_in_all_of_its_rows_is_found(made, prompt, cli):
    forge(made, other_token(lambda row: row["trajectory_id"] // 3 == prompt))
    assert faults_of(made) == [("manifest.js", None, DIGEST)]
    if prompt == 0:
        assert_refused(cli("verify", made), "1 fault", code=1)


def test_prompts_in_another_order_are_others(made):
    """Trajectories take each other's numbers."""
    def swap(row):
        row["trajectory_id"] = {0: 3, 1: 4, 2: 5, 3: 0, 4: 1, 5: 2}.get(row["trajectory_id"], row["trajectory_id"])

    store = open_store(str(made))
    tables = [read_shard(store, record).to_pylist() for record in read_manifest(store).shards]
    rows = [row for table in tables for row in table]
    for row in rows:
        swap(row)
    rows.sort(key=lambda row: (row["trajectory_id"], row["arm"] != "shaped"))
    by_id = {(row["trajectory_id"], row["arm"]): row for row in rows}
    forge(made, lambda row: row.update(by_id[row["trajectory_id"], row["arm"]]))
    assert faults_of(made) == [("manifest.js", None, DIGEST)]


def test_a_position_that_is_given_no_more_is_missed(made):
    """Of the uniform source a row is sound without an event at a free position; of the mask source it isn't."""
    manifest = read_manifest(open_store(str(made)))
    forge(made, lambda row: row["fixed_positions"].pop() if row["trajectory_id"] < 3 else None)
    if manifest.identity.teacher.mask_id is None:
        assert faults_of(made) == [("manifest.js", None, DIGEST)]
    else:
        assert faults_of(made)[0][2] == "the mask source needs exactly one event per position that is not fixed"


def test_what_the_manifest_says_of_prompts_was_changed(made):
    forge(made, sha256="0" * 64)
    assert faults_of(made) == [("manifest.js", None, DIGEST)]
    forge(made, per_prompt=6)
    assert [each[2] for each in faults_of(made)][:1] == [OTHER]
    forge(made, per_prompt=1)
    assert faults_of(made) == [("manifest.js", None, DIGEST)]
