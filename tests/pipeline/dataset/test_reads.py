"""Nothing is read twice: the bytes that each operation asks of a dataset's files, counted."""

import contextlib
import hashlib
import pickle
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from tests.support import TinyModels, make_dataset, tiny_config
from tsdfm.pipeline.dataset.manifest import read_manifest
from tsdfm.pipeline.dataset.opened import open_dataset
from tsdfm.pipeline.dataset.summary import read_trajectories, summarise
from tsdfm.pipeline.dataset.verify import verify, verify_and_summarise
from tsdfm.pipeline.evaluation.counterfactual import counterfactual
from tsdfm.pipeline.flow.generate import InThisProcess, generate_dataset
from tsdfm.pipeline.loader.batches import Reader, ReaderSettings
from tsdfm.pipeline.storage import once
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.storage.store import LocalStore
from tsdfm.schemas.base import InputError
from tsdfm.schemas.distill import DataConfig
from tsdfm.schemas.generate import GenerateConfig

# Files of three row groups, each several times as large as what is held of a file's end.
SIZES = {"trajectories": 600, "shard_size": 100, "shards_per_file": 3, "arm": "both", "shaping": {"candidates": 4},
         "rollout": {"steps": 4, "batch_size": 100, "top_k": 16}}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_models) -> Path:
    out = tmp_path_factory.mktemp("reads") / "out"
    manifest = make_dataset(out, tiny_models, **SIZES)
    assert len(manifest.shards) == 2
    assert min(record.bytes for record in manifest.shards) > 3 * once.END_BYTES
    return out


@pytest.fixture
def asked(monkeypatch) -> Counter[str]:
    """Bytes that were asked of the files of any folder, by the file's name; they come in pieces smaller than a column."""
    monkeypatch.setattr(once, "PIECE_BYTES", 10_000)
    counts, lock, opened, read = Counter[str](), threading.Lock(), LocalStore.open, LocalStore.read

    class Counted:
        def __init__(self, file: pa.NativeFile, path: str) -> None:
            self.file, self.path = file, path

        def read(self, size: int) -> bytes:
            data = self.file.read(size)
            with lock:
                counts[self.path] += len(data)
            return data

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

        def __enter__(self) -> "Counted":
            return self

        def __exit__(self, *fault: object) -> None:
            self.file.close()

    def counted_open(store: LocalStore, path: str) -> object:
        file = opened(store, path)
        return None if file is None else Counted(file, path)

    def counted_read(store: LocalStore, path: str) -> bytes | None:
        data = read(store, path)
        with lock:
            counts[path] += len(data or b"")
        return data

    monkeypatch.setattr(LocalStore, "open", counted_open)
    monkeypatch.setattr(LocalStore, "read", counted_read)
    return counts


def shards_of(counts: Counter[str]) -> dict[str, int]:
    return {path: size for path, size in counts.items() if path.endswith(".parquet")}


def sizes(out: Path) -> dict[str, int]:
    return {record.path: record.bytes for record in read_manifest(open_store(str(out))).shards}


READERS: dict[str, Callable[[str], object]] = {
    "verify": verify,
    "inspect": lambda out: summarise(open_store(out)),
    "inspect --counterfactual": lambda out: counterfactual(open_store(out)),
    "what publish checks": lambda out: verify_and_summarise(open_store(out)),
    "single trajectories": lambda out: read_trajectories(open_store(out), read_manifest(open_store(out)), [7, 599]),
}


@pytest.mark.parametrize("name", READERS)
def test_every_byte_is_read_once(name, made, asked):
    READERS[name](str(made))
    assert shards_of(asked) == sizes(made)
    assert all(size < 20_000 or path.endswith((".parquet", "tokenizer.json")) for path, size in asked.items())


def remake(out: Path, models: TinyModels, **changes: object) -> None:
    config = GenerateConfig.model_validate(tiny_config(out, models) | SIZES | changes)
    generate_dataset(config, maker=InThisProcess(CPU))


def test_generate_on_a_finished_dataset_reads_each_file_once(made, tiny_models, asked):
    remake(made, tiny_models)
    assert shards_of(asked) == sizes(made)


def test_a_growth_reads_each_file_once_and_none_that_it_wrote(made, tiny_models, asked, tmp_path):
    grown = tmp_path / "grown"
    shutil.copytree(made, grown)
    before = sizes(made)
    remake(grown, tiny_models, trajectories=601)
    assert shards_of(asked) == before
    assert verify(str(grown))[1] == []


def test_choosing_by_energy_reads_each_file_once_for_all_processes(made, asked, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = DataConfig(paths=[str(made)], best=0.5)
    for _ in range(3):  # the driver, and two training processes
        Reader.open(data, ReaderSettings())
    assert shards_of(asked) == sizes(made)


def test_a_training_process_reads_each_file_once_to_hash_it_and_its_units_from_then_on(made, asked):
    source = Reader.open(DataConfig(paths=[str(made)]), ReaderSettings()).sources[0]
    source.load(0)
    first = next(iter(sizes(made)))
    assert shards_of(asked) == {first: sizes(made)[first]}
    source.load(1)
    source.load(2)
    assert shards_of(asked)[first] < 2 * sizes(made)[first]


def test_publish_reads_each_file_twice_once_to_check_and_once_to_send_it(made, asked, hub, cli, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    outcome = cli("publish", out, "--repo", "team/out")
    assert outcome.code == 0, outcome.stderr
    assert shards_of(asked) == {path: 2 * size for path, size in sizes(made).items()}


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.999])
@pytest.mark.parametrize("name", [name for name in READERS if name not in ("verify", "what publish checks")])
def test_what_was_decoded_of_a_changed_file_does_not_count(name, place, made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    path, size = list(sizes(out).items())[1]
    data = bytearray((out / path).read_bytes())
    data[int(place * size)] ^= 1
    (out / path).write_bytes(data)
    with pytest.raises(InputError, match=rf"{path}: its bytes differ from the manifest's checksum"):
        READERS[name](str(out))


def test_rows_of_a_changed_file_are_not_even_begun(made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    path, size = next(iter(sizes(out).items()))
    data = bytearray((out / path).read_bytes())
    data[size // 2] ^= 1
    (out / path).write_bytes(data)
    rows = open_dataset(str(out)).rows()
    with pytest.raises(InputError, match="its bytes differ"):
        next(rows)


def test_a_file_gives_what_is_asked_whatever_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(once, "PIECE_BYTES", 7)
    monkeypatch.setattr(once, "END_BYTES", 10)
    content = bytes(range(100))
    for size in (0, 1, 9, 10, 11, 24, 100):
        for asked_for in ([(0, 5), (3, 20), (20, 90), (95, 200)], [(98, 99), (50, 60), (0, 100), (2, 3)], [(200, 300)], []):
            file = once.ReadOnce(pa.BufferReader(content[:size]))
            assert [file.between(*place) for place in asked_for] == [content[:size][slice(*place)] for place in asked_for]
            assert file.sha256() == hashlib.sha256(content[:size]).hexdigest()
            assert [file.between(*place) for place in asked_for] == [content[:size][slice(*place)] for place in asked_for]


def test_stores_travel_by_their_address(tmp_path):
    with contextlib.chdir(tmp_path):
        store = open_store("out")
        store.write("a", b"1")
    for each in (store, open_store(f"file://{tmp_path}/out")):
        there = pickle.loads(pickle.dumps(each))
        assert (there.uri, there.address, there.read("a")) == (each.uri, each.address, b"1")
