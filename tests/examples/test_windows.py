"""Three ways to the training windows of a published dataset give the same ones: plain `datasets` and torch, Ray Data, our loader."""

import inspect
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.examples import windows_datasets
from tests.support import TinyModels, copy_dataset, make_dataset
from tsdfm.pipeline import batches
from tsdfm.pipeline.dataset.card import read_front_matter
from tsdfm.pipeline.publishing.dataset import publish_dataset
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.schemas.distill import DataConfig
from tsdfm.schemas.publish import PublishConfig

HERE = Path(__file__).parent
N = 4
NAMES = ("x_t", "t", "dt", "target", "candidates", "weights")
KINDS = [("mask", "shaped"), ("mask", "blind"), ("uniform", "shaped")]


def published(tmp_path: Path, hub, models: TinyModels, source: str) -> Path:
    """The folder of a dataset as it stands on the Hub: every file of its repository."""
    make_dataset(tmp_path / "made", models, teacher=str(getattr(models, source)), shaping={"candidates": 4, "tau": 0.3, "shape_every": 2})
    publish_dataset(open_store(str(tmp_path / "made")), PublishConfig(out=str(tmp_path / "made"), repo="team/runs"))
    for path, data in hub.repos["dataset", "team/runs"].files.items():
        file = tmp_path / "published" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return tmp_path / "published"


def key(window: Mapping[str, Any]) -> tuple[bytes, ...]:
    """What tells a window from another, but for its weights, which are compared as numbers."""
    return tuple(np.asarray(window[name]).astype(kind).tobytes() for name, kind in zip(NAMES[:-1], "qffqq", strict=True))


@pytest.mark.parametrize(("source", "arm"), KINDS)
def test_plain_datasets_and_the_loader_give_the_same_windows(tmp_path, hub, tiny_models, monkeypatch, source, arm):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = published(tmp_path, hub, tiny_models, source)
    plain = windows_datasets.Windows(str(folder), arm, N)
    known = {key(window): window["weights"] for window in map(plain.__getitem__, range(len(plain)))}
    assert len(known) == len(plain) == 10 * N
    met = set()
    data = DataConfig(paths=[str(folder)], arm=arm)
    for batch in batches(data, "candidates", budgets={N: 1.0}, updates=25, batch_size=10):
        for row in range(len(batch)):
            window = {name: getattr(batch, name)[row] for name in NAMES}
            torch.testing.assert_close(window["weights"], known[key(window)])
            met.add(key(window))
    assert met == known.keys()
    if arm == "shaped":
        assert any(weights.amax(-1).max() > 0.5 for weights in known.values())  # not all of them are alike


RAY = """
import pickle, runpy, sys
sys.modules["tsdfm"] = None
import ray
ray.init(address=sys.argv[3])
read = runpy.run_path(sys.argv[1])["read"]
with open("rows.pickle", "wb") as file:
    pickle.dump({arm: read(sys.argv[2], arm, 4).take_all() for arm in ("shaped", "blind")}, file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("source", ["mask", pytest.param("uniform", marks=pytest.mark.release)])
def test_ray_data_gives_them_too(tmp_path, hub, tiny_models, monkeypatch, source, head):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = published(tmp_path, hub, tiny_models, source)
    done = subprocess.run([sys.executable, "-c", RAY, str(HERE / "windows_ray.py"), str(folder), head.address], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for arm, rows in pickle.loads((tmp_path / "rows.pickle").read_bytes()).items():
        plain = windows_datasets.Windows(str(folder), arm, N)
        wanted = {key(window): window["weights"].numpy() for window in map(plain.__getitem__, range(len(plain)))}
        assert {key(row) for row in rows} == wanted.keys()
        assert len(rows) == len(wanted)
        for row in rows:
            np.testing.assert_allclose(row["weights"], wanted[key(row)], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("source", ["mask", "uniform"])
@pytest.mark.parametrize("card", ["made", "published"])
def test_the_snippet_of_the_card_gives_them_too(tmp_path, hub, tiny_models, monkeypatch, source, card):
    """Both cards, the folder's own and the one on the Hub, as they stand but for the dataset's place."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    published(tmp_path, hub, tiny_models, source)
    folder = str(tmp_path / card)
    text = (tmp_path / card / "README.md").read_text().replace("PATH_OR_REPOSITORY", folder).replace('"team/runs"', repr(folder))
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    manifest = json.loads((tmp_path / card / "manifest.json").read_text())
    wanted = [window for row in names["rows"] for window in windows_datasets.windows(row, manifest, 8)]
    assert len(names["data"]) == len(wanted) == 20 * 8
    for mine, other in zip(names["data"], wanted, strict=True):
        for name in mine:
            assert torch.equal(mine[name], other[name])
    assert sum(len(batch["x_t"]) for batch in names["batches"]) == len(wanted)


def test_the_head_of_both_cards_is_what_the_clients_read(tmp_path, hub, tiny_models):
    """Every field that the Hub's client knows is of its kind, nothing is left over but ours, and it is written back as it was."""
    from huggingface_hub import DatasetCard, DatasetCardData

    folder = published(tmp_path, hub, tiny_models, "mask")
    known = set(inspect.signature(DatasetCardData.__init__).parameters) | {"configs"}
    for where in (tmp_path / "made", folder):
        text = (where / "README.md").read_text()
        data = DatasetCard(text, ignore_metadata_errors=False).data
        fields = data.to_dict()
        assert fields.keys() - known == {"tags", "trajectories"} - known
        assert fields == read_front_matter(text)
        assert DatasetCardData(**fields).to_dict() == fields
        from datasets.utils.metadata import MetadataConfigs

        configs = MetadataConfigs.from_dataset_card_data(data)
        assert configs.get_default_config_name() == "default"
        assert set(configs) >= {"default", "shaped", "blind"}


def run(script: str, where: Path, cache: Path, *, ours: bool) -> str:
    """What an example prints. `ours`: whether our package may be imported."""
    blocked = "" if ours else "sys.modules['tsdfm'] = None\n"
    code = f"import runpy, sys\n{blocked}runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code, str(HERE / script), str(where)], capture_output=True, text=True, check=False, cwd=cache,
                          env=os.environ | {"HF_HOME": str(cache), "OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("script", "ours"), [
    ("windows_datasets.py", False), ("windows_package.py", True), pytest.param("windows_ray.py", False, marks=pytest.mark.slow)])
def test_each_runs_as_a_script(tmp_path, tiny_models, script, ours):
    copy_dataset(tmp_path / "out", tiny_models)
    printed = run(script, tmp_path / "out", tmp_path, ours=ours)
    assert "8 windows" in printed or "40 windows" in printed
