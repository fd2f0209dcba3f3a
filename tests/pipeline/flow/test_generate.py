"""Making a dataset: numbers that are not finite end it in one line that names a trajectory, and what is finished stays."""

import pytest
import torch

from tests.support import tiny_config
from tsdfm.pipeline.flow.compass import CausalCompass
from tsdfm.pipeline.flow.generate import InThisProcess, generate_dataset
from tsdfm.pipeline.flow.rollout import roll_out
from tsdfm.pipeline.models.causal import CausalLM
from tsdfm.pipeline.models.folder import load, load_denoiser
from tsdfm.schemas.base import WorkError
from tsdfm.schemas.generate import GenerateConfig, RolloutConfig, ShapingConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_energies_that_are_not_finite(tiny_models, value):
    """The smallest of them is chosen, and NaN is not comparable: nobody would notice."""
    network = load(tiny_models.ar).network
    assert isinstance(network, CausalLM)
    with torch.no_grad():
        next(iter(network.parameters()))[7] = value
    teacher = load_denoiser(tiny_models.mask).network
    rollout = RolloutConfig(steps=8, length=teacher.config.length, batch_size=4)
    with pytest.raises(WorkError, match=r"trajectory 5: .*compass"):
        roll_out(teacher, CausalCompass(network), rollout, ShapingConfig(candidates=4), range(5, 8), "shaped")


def test_a_function_whose_energies_are_not_finite(tmp_path, tiny_models):
    config = GenerateConfig.model_validate(tiny_config(tmp_path / "out", tiny_models))
    with pytest.raises(WorkError, match="not finite") as caught:
        generate_dataset(config, compass=lambda states, t: states.float().mean(-1).log() * 0 / 0, maker=InThisProcess(CPU))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("name", ["mask", "uniform"])
def test_logits_that_are_not_finite(tiny_models, name):
    teacher = load_denoiser(getattr(tiny_models, name)).network
    with torch.no_grad():
        teacher.head.weight[7] = float("inf")
    rollout = RolloutConfig(steps=8, length=teacher.config.length, batch_size=4)
    with pytest.raises(WorkError, match=r"trajectory 5: .*teacher"):
        roll_out(teacher, None, rollout, ShapingConfig(), range(5, 8), "blind")
