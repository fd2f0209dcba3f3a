"""Making a dataset: numbers that are not finite end it in one line that names a trajectory; its dtype is part of what it is."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.support import LENGTH, make_dataset, present, tiny_config, tree, vocabulary
from tsdfm.pipeline.dataset.verify import verify
from tsdfm.pipeline.flow.compass import CausalCompass
from tsdfm.pipeline.flow.generate import InThisProcess, generate_dataset
from tsdfm.pipeline.flow.opening import open_models
from tsdfm.pipeline.flow.rollout import roll_out
from tsdfm.pipeline.models.causal import CausalLM
from tsdfm.pipeline.models.folder import load, load_denoiser
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.schemas.base import InputError, WorkError
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


# ------------------------------------------------------------------ dtypes and compiled models

@pytest.mark.parametrize(("teacher", "compass"), [("mask", "ar"), ("mask", "nce"), ("mask", "denoiser"), ("uniform", "denoiser")])
def test_a_dataset_in_bfloat16(tmp_path, tiny_models, teacher, compass):
    """Sound, the same each time, another than in float32, and its manifest says so."""
    changes = {"teacher": str(getattr(tiny_models, teacher)), "trajectories": 3, "compass": str(getattr(tiny_models, compass, compass))}
    rollout = {"steps": 4, "batch_size": 3, "top_k": 2}
    for name, dtype in (("one", "bfloat16"), ("two", "bfloat16"), ("wide", "float32")):
        manifest = make_dataset(tmp_path / name, tiny_models, **changes, rollout=rollout | {"dtype": dtype})
        assert manifest.identity.rollout.dtype == dtype
    assert verify(open_store(str(tmp_path / "one")))[1] == []
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    one, wide = (energies_of(tmp_path / name) for name in ("one", "wide"))
    assert one.dtype == np.float32
    assert not np.array_equal(one, wide, equal_nan=True)


def energies_of(out):
    return pq.read_table(out / "data")["step_energy"].combine_chunks().flatten().to_numpy()


def test_a_transformers_compass_in_bfloat16(tmp_path, tiny_models):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                                      vocab_size=300, max_position_embeddings=LENGTH)
    torch.manual_seed(1)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    (tmp_path / "llama" / "tokenizer.json").write_text(vocabulary().to_json())
    config = tiny_config("nowhere", tiny_models) | {"compass": str(tmp_path / "llama"), "rollout": {"steps": 2}}
    states = torch.randint(299, (2, 3, LENGTH), generator=torch.Generator().manual_seed(0))
    found = []
    for dtype in ("float32", "bfloat16"):
        config["rollout"]["dtype"] = dtype
        compass = open_models(GenerateConfig.model_validate(config), CPU).compass
        found.append(present(compass).energy(states, torch.ones(2), None))
    assert found[1].dtype == torch.float32
    torch.testing.assert_close(*found, rtol=0.05, atol=0.05)
    assert not torch.equal(*found)


def test_what_is_float32_and_not_compiled_is_told_as_it_was(tmp_path, tiny_models):
    """The fields are newer than some datasets, whose digests and bytes stay what they are."""
    make_dataset(tmp_path / "plain", tiny_models)
    make_dataset(tmp_path / "named", tiny_models, rollout={"steps": 8, "batch_size": 4, "dtype": "float32", "compile": False})
    assert tree(tmp_path / "plain") == tree(tmp_path / "named")
    written = json.loads((tmp_path / "plain" / "manifest.json").read_text())["identity"]["rollout"]
    assert list(written) == ["steps", "length", "temperature", "solver", "top_k", "seed", "batch_size", "threads"]


@pytest.mark.parametrize(("field", "value", "there", "here"), [
    ("dtype", "bfloat16", '"float32"', '"bfloat16"'), ("compile", True, "false", "true")])
def test_another_dtype_is_another_dataset(tmp_path, tiny_models, field, value, there, here):
    rollout = {"steps": 4, "batch_size": 4}
    make_dataset(tmp_path / "out", tiny_models, trajectories=4, rollout=rollout)
    before = tree(tmp_path / "out")
    for trajectories in (4, 8):  # nor does it grow
        with pytest.raises(InputError) as caught:
            make_dataset(tmp_path / "out", tiny_models, trajectories=trajectories, rollout=rollout | {field: value})
        assert f"rollout.{field} (there {there}, here {here})" in str(caught.value)
    assert tree(tmp_path / "out") == before


@pytest.mark.slow
def test_a_dataset_of_a_compiled_teacher(tmp_path, tiny_models):
    """Sound, and the same each time."""
    for name in ("one", "two"):
        manifest = make_dataset(tmp_path / name, tiny_models, rollout={"steps": 6, "batch_size": 4, "compile": True})
        assert manifest.identity.rollout.compile
    assert verify(open_store(str(tmp_path / "one")))[1] == []
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
