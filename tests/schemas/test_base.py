"""A yes or no is no number, in whatever field, list or mapping of whichever config."""

from typing import Any

import pytest

from tsdfm.schemas.ablate import Sweep
from tsdfm.schemas.base import Frozen, InputError, parse
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.evaluate import EvaluateConfig
from tsdfm.schemas.generate import GenerateConfig


@pytest.mark.parametrize(("model", "data", "words"), [
    (GenerateConfig, {"trajectories": True}, "trajectories: Input should be a valid integer, not True"),
    (GenerateConfig, {"rollout": {"temperature": False}}, "rollout.temperature: Input should be a valid number, not False"),
    (EvaluateConfig, {"steps": [4, True]}, "steps.1: Input should be a valid integer, not True"),
    (DistillConfig, {"budgets": {4: True}}, "budgets.4: Input should be a valid number, not True"),
])
def test_a_yes_or_no_is_no_number(model: type[Frozen], data: dict[str, Any], words: str):
    with pytest.raises(InputError, match=f"^file: {words}"):
        parse(model, data, "file")


def test_where_it_may_stand_it_stays():
    assert GenerateConfig.model_validate({"rollout": {"logprobs": True, "top_k": 2}}).rollout.logprobs is True
    assert Sweep.model_validate({"name": "x", "factors": {"recompute": [True, False]}}).factors == {"recompute": [True, False]}
