"""What an evaluation keeps comes back as it was, only for what it was made from, and damage is made anew."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from tsdfm.pipeline.evaluation.judge import Likelihood
from tsdfm.pipeline.evaluation.sample_cache import SampleCache
from tsdfm.pipeline.evaluation.samples import Samples
from tsdfm.schemas.base import WorkError

IDENTITY = {"model": "f" * 64, "steps": 8, "temperature": 1.0, "seed": 0, "samples": 3}
LABELS = {"model": "embedded", "steps": 8, "temperature": 1.0, "seed": 0}
REAL_LABELS = {"model": "corpus", "steps": None, "temperature": None, "seed": None}


def some(nfe=True):
    tokens = np.arange(12, dtype=np.int64).reshape(3, 4)
    return Samples(tokens, ["a", "b\nc", ""], np.array([4, 3, 4]) if nfe else None, 1.5 if nfe else None, "words")


def never():
    raise AssertionError("made again")


def same(a, b):
    assert a.texts == b.texts
    assert (a.seconds, a.vocabulary) == (b.seconds, b.vocabulary)
    np.testing.assert_array_equal(a.tokens, b.tokens)
    assert a.tokens.dtype == b.tokens.dtype
    assert (a.nfe is None) == (b.nfe is None)
    if a.nfe is not None:
        assert a.nfe.tolist() == b.nfe.tolist()


@pytest.mark.parametrize("nfe", [True, False])
def test_samples_come_back(tmp_path, nfe):
    made = SampleCache(tmp_path).samples(IDENTITY, LABELS if nfe else REAL_LABELS, lambda: some(nfe))
    same(made, some(nfe))
    same(SampleCache(tmp_path).samples(IDENTITY, LABELS, never), some(nfe))


def test_the_file_has_the_columns_a_reader_wants(tmp_path):
    SampleCache(tmp_path).samples(IDENTITY, LABELS, some)
    table = pq.read_table(tmp_path / "samples")
    assert table.column_names == ["model", "steps", "temperature", "seed", "index", "text", "tokens", "nfe"]
    assert table.to_pylist()[1] == {"model": "embedded", "steps": 8, "temperature": 1.0, "seed": 0, "index": 1, "text": "b\nc",
                                    "tokens": [4, 5, 6, 7], "nfe": 3}


@pytest.mark.parametrize("change", [{"model": "e" * 64}, {"steps": 4}, {"temperature": 0.9}, {"seed": 1}, {"samples": 4}])
def test_another_identity_is_made(tmp_path, change):
    SampleCache(tmp_path).samples(IDENTITY, LABELS, some)
    made = []
    SampleCache(tmp_path).samples(IDENTITY | change, LABELS, lambda: made.append(1) or some())
    assert made


def test_scores_come_back(tmp_path):
    scores = Likelihood(np.array([1.25, 2.5]), np.array([3.0, 0.0]), 1)
    SampleCache(tmp_path).likelihood({"samples": "a", "judge": "b"}, lambda: scores)
    found = SampleCache(tmp_path).likelihood({"samples": "a", "judge": "b"}, never)
    assert (found.nats.tolist(), found.tokens.tolist(), found.in_windows) == ([1.25, 2.5], [3.0, 0.0], 1)
    made = []
    SampleCache(tmp_path).likelihood({"samples": "a", "judge": "c"}, lambda: made.append(1) or scores)
    assert made


@pytest.mark.parametrize("damage", [b"", b"PAR1 and nothing more", None])
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    SampleCache(tmp_path).samples(IDENTITY, LABELS, some)
    file = next((tmp_path / "samples").iterdir())
    if damage is None:  # whole, and of another identity
        table = pq.read_table(file)
        pq.write_table(table.replace_schema_metadata({"tsdfm": json.dumps({"identity": {}})}), file)
    else:
        file.write_bytes(damage)
    same(SampleCache(tmp_path).samples(IDENTITY, LABELS, some), some())
    same(SampleCache(tmp_path).samples(IDENTITY, LABELS, never), some())


def test_a_failure_while_making_leaves_nothing(tmp_path):
    with pytest.raises(AssertionError):
        SampleCache(tmp_path).samples(IDENTITY, LABELS, never)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "samples").write_text("in the way")
    with pytest.raises(WorkError, match="cannot be written"):
        SampleCache(tmp_path).samples(IDENTITY, LABELS, some)
