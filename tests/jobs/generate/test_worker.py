"""What a worker finds on its node before it makes anything: the driver's models, and the folder that all share."""

import shutil

import pytest
import torch

from tests.support import TinyModels, make_dataset, tiny_config
from tsdfm.jobs.generate.run import anchored_models
from tsdfm.jobs.generate.worker import Order, _opened
from tsdfm.pipeline.dataset.manifest import read_manifest
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.generate import GenerateConfig


def order(tmp_path, models: TinyModels, address=None) -> Order:
    """Of a dataset that is there, and whose teacher lies in a folder of its own."""
    teacher = tmp_path / "teacher"
    shutil.copytree(models.mask, teacher)
    make_dataset(tmp_path / "out", models)
    config = GenerateConfig.model_validate(tiny_config(tmp_path / "out", models) | {"teacher": str(teacher)})
    return Order(config, read_manifest(open_store(str(tmp_path / "out"))).identity, address or str(tmp_path / "out"))


def test_what_a_node_lacks_is_told(tmp_path, tiny_models):
    mine = order(tmp_path, tiny_models)
    models, store = _opened(mine)
    assert _opened(mine)[0] is models  # kept for the next shard
    assert store.local == tmp_path / "out"
    with pytest.raises(WorkError, match="elsewhere: not the folder that this run writes to, which every node must share"):
        _opened(Order(mine.config, mine.identity, str(tmp_path / "elsewhere")))
    assert not (tmp_path / "elsewhere").exists()
    shutil.rmtree(tmp_path / "teacher")
    gone = mine.config.model_copy(update={"workers": 3})
    with pytest.raises(InputError, match=f"{tmp_path}/teacher: no such model folder"):
        _opened(Order(gone, mine.identity, mine.address))
    shutil.copytree(tiny_models.uniform, tmp_path / "teacher")
    with pytest.raises((InputError, WorkError), match=r"differs from the driver.s|another|not"):
        _opened(Order(gone, mine.identity, mine.address))
    torch.set_num_threads(1)


def test_relative_folders_are_anchored_for_workers_that_stand_elsewhere(tmp_path, tiny_models, monkeypatch):
    (tmp_path / "teacher").mkdir()
    monkeypatch.chdir(tmp_path)
    config = anchored_models(GenerateConfig(teacher="teacher", compass="none", arm="blind"))
    assert (config.teacher, config.compass) == (str(tmp_path / "teacher"), "none")
