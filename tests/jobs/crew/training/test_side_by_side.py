"""Several trainings at the same time, each in a process of its own: what comes out is what each gives alone."""

from pathlib import Path

import pytest
import torch

from tests.support import copy_dataset
from tsdfm.jobs.crew.training.side_by_side import Training, _far, train_all
from tsdfm.jobs.shell.cluster import cluster
from tsdfm.pipeline.training.distill import train_at
from tsdfm.pipeline.training.loop.data_parallel import Place
from tsdfm.schemas.base import WorkError
from tsdfm.schemas.distill import DistillConfig


def config_of(data: Path, init: Path, seed: int) -> DistillConfig:
    return DistillConfig.model_validate({"data": {"paths": [str(data)], "held_out": 0.25}, "init": str(init),
                                         "optim": {"steps": 6, "batch_size": 4, "log_every": 2, "seed": seed}})


def test_how_far_a_training_is_in_words():
    training = Training("student from blind", DistillConfig.model_validate({"optim": {"steps": 400}}), Path("x"))
    assert _far(training, 40, {"loss": 3.30123}) == "student from blind: update 40 of 400, loss 3.301"
    assert _far(training, 40, {"loss": 3.3, "held_out/loss": 3.4}) == "student from blind: update 40 of 400, loss 3.300, held out 3.400"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_trainings_side_by_side_end_in_the_bits_of_each_alone(tmp_path, tiny_models, head):
    copy_dataset(tmp_path / "data", tiny_models)
    configs = [config_of(tmp_path / "data", tiny_models.mask, seed) for seed in (0, 1)]
    with cluster(head.address, None):
        train_all([], train_at)
        train_all([Training(f"student {index}", each, tmp_path / f"together-{index}") for index, each in enumerate(configs)], train_at)
        lost = config_of(tmp_path / "lost", tiny_models.mask, 0)
        with pytest.raises(WorkError, match="lost: no dataset there"):
            train_all([Training("student", lost, tmp_path / "none")], train_at)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for index, each in enumerate(configs):
            train_at(Place(0, 1, torch.device("cpu")), each, tmp_path / f"alone-{index}", lambda step, scalars: False)
    finally:
        torch.set_num_threads(threads)
    made = {folder: (tmp_path / folder / "model.safetensors").read_bytes() for folder in ("together-0", "together-1", "alone-0", "alone-1")}
    assert made["together-0"] == made["alone-0"] != made["together-1"] == made["alone-1"]
