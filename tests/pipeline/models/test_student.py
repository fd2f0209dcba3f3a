"""Students of fewer blocks: which are kept, and that the others are as if they added nothing."""

import pytest
import torch

from tests.support import copy_dataset, denoiser_config, present, scatter_weights, vocabulary
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.student import evenly_spaced, with_blocks
from tsdfm.pipeline.training.distill import open_start
from tsdfm.pipeline.training.loop.data_parallel import Place
from tsdfm.pipeline.training.student_trainer import train_student
from tsdfm.schemas.base import InputError
from tsdfm.schemas.distill import DistillConfig


@pytest.mark.parametrize(("count", "blocks", "kept"), [
    (5, 5, [0, 1, 2, 3, 4]), (5, 3, [0, 2, 4]), (5, 2, [0, 4]), (5, 1, [0]), (1, 1, [0]), (6, 4, [0, 2, 3, 5]), (12, 6, [0, 2, 4, 7, 9, 11])])
def test_the_kept_are_evenly_spaced_with_both_ends(count, blocks, kept):
    assert evenly_spaced(count, blocks) == kept


@pytest.fixture
def deep():
    model = Denoiser(denoiser_config("mask", vocabulary()).model_copy(update={"n_blocks": 5}))
    scatter_weights(model, 3)
    return model.eval()


@pytest.mark.parametrize("blocks", [1, 2, 3, 5])
@torch.no_grad()
def test_it_computes_what_the_model_does_whose_other_blocks_add_nothing(deep, blocks):
    """A block adds nothing if its gates are shut: their modulation is zero."""
    small = with_blocks(deep, blocks)
    assert small.config.n_blocks == len(small.trunk.blocks) == blocks
    for index, block in enumerate(deep.trunk.blocks):
        if index not in evenly_spaced(5, blocks):
            block.modulation.weight.zero_()
            block.modulation.bias.zero_()
    x, t = torch.randint(5, 300, (3, 16)), torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(small(x, t), deep(x, t))


def test_it_is_a_copy(deep):
    small = with_blocks(deep, 5)
    with torch.no_grad():
        small.head.weight.add_(1)
    assert not torch.equal(small.head.weight, deep.head.weight)
    for blocks in (0, 6):
        with pytest.raises(ValueError, match=f"{blocks} of a model's 5 blocks"):
            with_blocks(deep, blocks)


def test_a_student_of_one_block_trains_and_too_many_are_refused(tmp_path, tiny_models):
    copy_dataset(tmp_path / "data", tiny_models)

    def config(blocks):
        return DistillConfig.model_validate({"data": {"paths": [str(tmp_path / "data")]}, "budgets": {8: 1.0}, "init_blocks": blocks,
                                             "optim": {"steps": 2, "batch_size": 4}})

    student = present(train_student(open_start(config(1)), tmp_path / "state", Place(0, 1, torch.device("cpu")), lambda *_: None))
    assert (student.config.n_blocks, student.config.step_size) == (1, True)
    with pytest.raises(InputError, match=r"init_blocks: 3 is more than the 2 blocks"):
        open_start(config(3))


def test_keeping_all_blocks_is_leaving_the_setting_out(tmp_path, tiny_models):
    """Bit for bit: what is new in a student starts from the same numbers, whatever was cut."""
    copy_dataset(tmp_path / "data", tiny_models)
    students = []
    for blocks in (None, 2):
        config = DistillConfig.model_validate({"data": {"paths": [str(tmp_path / "data")]}, "budgets": {8: 1.0}, "init_blocks": blocks,
                                               "optim": {"steps": 2, "batch_size": 4}})
        start = open_start(config)
        assert start.weights.network.config.n_blocks == 2
        students.append(present(train_student(start, tmp_path / f"state-{blocks}", Place(0, 1, torch.device("cpu")), lambda *_: None)))
    assert all(map(torch.equal, students[0].state_dict().values(), students[1].state_dict().values()))
