"""Early stop: what is kept, when it ends, and that a killed training ends in the same weights."""

import pytest
import torch

from tsdfm.pipeline.training.held_out.early_stop import EarlyStop
from tsdfm.pipeline.training.loop.trainer import Ending, Trainer, whole
from tsdfm.schemas.base import InputError
from tsdfm.schemas.optim import HELD_OUT_LOSS, OptimConfig

CONFIG = OptimConfig(steps=40, batch_size=1, lr=0.05, warmup=1, log_every=2, checkpoint_every=3, weight_decay=0.0)


def test_the_weights_of_the_lowest_value_are_kept():
    weights = [torch.zeros(2)]
    early = EarlyStop(2, weights)
    for step, value in enumerate([3.0, 2.0, 2.5, 1.0, 1.0]):
        weights[0].fill_(step)
        early.hear(value, weights, step)
        assert not early.spent
    early.hear(1.5, weights, 5)
    assert early.spent
    assert early.step == 3
    assert early.best[0].tolist() == [3.0, 3.0]
    other = EarlyStop(2, [torch.zeros(2)])
    other.load(early.tensors())
    assert (other.spent, other.step, other.best[0].tolist()) == (True, 3, [3.0, 3.0])


def run(folder, stop_at=None, patience=3, report=lambda *_: None):
    """A weight that is pulled to 1, and a held-out loss that is least where it passes 0.4."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    trainer = Trainer(model, CONFIG, folder, {"patience": patience}, ending=Ending(patience))
    trainer.resume()

    def measured():
        with trainer.averaged():
            return {HELD_OUT_LOSS: abs(float(model.weight.detach()) - 0.4)}

    done = trainer.run(whole(lambda step, generator: (model.weight - 1).square().sum()), report, measured,
                       stop=lambda: trainer.step == stop_at)
    return done, trainer, float(model.weight.detach())


def test_a_training_stops_where_the_held_out_loss_rises_and_resumes_exactly(tmp_path):
    lines = []
    done, trainer, weight = run(tmp_path / "whole", report=lambda step, scalars: lines.append((step, scalars[HELD_OUT_LOSS])))
    assert done
    assert trainer.step < CONFIG.steps
    least = min(lines, key=lambda line: line[1])
    assert trainer.kept_step == least[0] == lines[-4][0]
    assert abs(weight - 0.4) == pytest.approx(least[1])
    for stop_at in (1, least[0] - 1, least[0] + 1, trainer.step - 1):
        folder = tmp_path / f"cut {stop_at}"
        assert not run(folder, stop_at)[0]
        again = run(folder)
        assert (again[0], again[1].step, again[1].kept_step, again[2]) == (True, trainer.step, trainer.kept_step, weight)
    assert run(tmp_path / "whole")[1:][1] == weight  # a finished one has nothing left to do


def test_without_patience_a_training_goes_to_its_end(tmp_path):
    done, trainer, _ = run(tmp_path, patience=None)
    assert done
    assert trainer.kept_step == CONFIG.steps


def test_a_checkpoint_without_it_is_refused(tmp_path):
    run(tmp_path, stop_at=3, patience=None)
    with pytest.raises(InputError):
        run(tmp_path)
