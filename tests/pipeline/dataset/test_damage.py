"""Whatever the bytes of a dataset are, reading them gives a fault in one line: no other error, and no memory without bound."""

import contextlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import copy_dataset
from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.files.check import check_bytes
from tsdfm.pipeline.dataset.manifest import digest, plan, read_manifest
from tsdfm.pipeline.dataset.verify import verify
from tsdfm.pipeline.storage.store import LocalStore
from tsdfm.schemas.base import InputError


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_models):
    """A small dataset: its first shard's bytes, that shard's plan, and the identity."""
    out = tmp_path_factory.mktemp("damage") / "out"
    identity = copy_dataset(out, tiny_models).identity
    item = plan(identity)[0]
    return (out / item.path).read_bytes(), item, identity


def rewritten(made, change):
    """The first shard with a column changed, encoded as our writer does."""
    data, item, identity = made
    table, _ = shards.decode(data, item.path)
    return shards.encode(change(table), digest(identity))


def put(table, name, values):
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)


def said_of(data, item, identity):
    """The message of an InputError; empty if none is raised. Any other error is a failure."""
    with contextlib.suppress(InputError):
        check_bytes(data, item, identity)
        return ""
    with pytest.raises(InputError) as caught:
        check_bytes(data, item, identity)
    return str(caught.value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(1, 255), st.booleans()), min_size=1, max_size=4))
def test_changed_bytes_are_a_fault_or_an_input_error(made, changes):
    data, item, identity = made
    damaged, footer = bytearray(data), int.from_bytes(data[-8:-4], "little")
    for place, mask, in_footer in changes:
        damaged[len(data) - 8 - footer + place % footer if in_footer else place % len(data)] ^= mask
    said = said_of(bytes(damaged), item, identity)
    assert said == "" or said.startswith(item.path)
    assert "\n" not in said


def test_text_that_is_not_utf8(made):
    bad = pa.Array.from_buffers(pa.binary(), 8, pa.array([b"\xff\xfe"] * 8).buffers())
    changed = rewritten(made, lambda table: put(table, "text", bad.view(pa.string())))
    with pytest.raises(InputError, match="not a readable Parquet file"):
        check_bytes(changed, *made[1:])


def test_more_rows_than_the_plan_holds_are_never_decoded(made, monkeypatch):
    changed = rewritten(made, lambda table: pa.concat_tables([table] * 50))
    monkeypatch.setattr(shards, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(InputError, match="holds 400 rows, not 8"):
        check_bytes(changed, *made[1:])


def test_a_small_file_that_would_fill_memory_is_never_decoded(made, monkeypatch):
    """300 million equal tokens in a row are a file of a few kilobytes."""
    data, item, identity = made
    table, _ = shards.decode(data, item.path)
    count = 4_000_000
    tokens = pa.ListArray.from_arrays(pa.array([0] + [count * i for i in range(1, 9)], pa.int32()),
                                      pa.array([1], pa.int32()).take(pa.array([0] * count * 8)))
    sink = pa.BufferOutputStream()
    bomb = table.set_column(table.schema.get_field_index("tokens"), "tokens", tokens)
    pq.write_table(bomb, sink, compression="zstd", use_dictionary=False)
    changed = sink.getvalue().to_pybytes()
    assert len(changed) < 1 << 20
    monkeypatch.setattr(shards, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(InputError, match="would decode to"):
        check_bytes(changed, item, identity)


@pytest.mark.parametrize(("change", "words"), [
    (lambda m: m["totals"].update(tokens=m["totals"]["tokens"] + 1), "totals.tokens"),
    (lambda m: m["totals"].update(bytes=m["totals"]["bytes"] + 1), "totals.bytes"),
    (lambda m: m["shards"].pop(), "shards: 2 are not those of 10 trajectories"),
])
def test_a_manifest_that_contradicts_itself(tmp_path, tiny_models, change, words):
    copy_dataset(tmp_path / "out", tiny_models)
    file = tmp_path / "out" / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=words):
        read_manifest(LocalStore(tmp_path / "out"))


def test_another_tokenizer_is_told_by_its_checksum_and_never_parsed(tmp_path, tiny_models, monkeypatch):
    copy_dataset(tmp_path / "out", tiny_models)
    (tmp_path / "out" / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "WordLevel"}}')
    monkeypatch.setattr("tokenizers.Tokenizer.from_str", lambda _: pytest.fail("parsed"))
    _, faults = verify(LocalStore(tmp_path / "out"))
    assert any("not the tokenizer that the manifest names" in fault.what for fault in faults)
