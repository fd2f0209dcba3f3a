"""Fitting a compass: its noise states, its independence of the trajectories that it will judge, its start, and its resumption."""

import json
import shutil

import pytest
import torch
from pydantic import ValidationError

from tests.support import SHAPE, present, write_corpus
from tsdfm.pipeline.flow.rollout import roll_out
from tsdfm.pipeline.models import folder as checkpoint
from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.pipeline.training.contrast.states import noise_states
from tsdfm.pipeline.training.fit_compass import fit_at, is_made
from tsdfm.pipeline.training.loop.data_parallel import Place
from tsdfm.schemas.base import InputError
from tsdfm.schemas.generate import GenerateConfig, ShapingConfig
from tsdfm.schemas.train import CompassConfig


def test_noise_states_are_those_of_blind_rollouts(tiny_models):
    """[R, N, L]: full of masks at first, without any at the end, and never masked again."""
    teacher = checkpoint.load_denoiser(tiny_models.mask).network
    config = CompassConfig(kind="nce", rollouts=5, rollout_steps=6)
    states = noise_states(config, teacher, lambda *_: None)
    assert states.shape == (5, 6, teacher.config.length)
    masked = states.eq(present(teacher.config.mask_id))
    assert not masked[:, -1].any()
    assert masked[:, 0].any()
    assert not (masked[:, 1:] & ~masked[:, :-1]).any()
    assert torch.equal(states, noise_states(config, teacher, lambda *_: None))


@pytest.mark.parametrize("seed", [0, 0x6E6F6973])
def test_the_noise_is_none_of_the_trajectories_to_be_shaped(tiny_models, seed):
    """With both commands' default seeds, and any others, `generate --steps N` must not draw the very states that the compass was taught to
    reject: candidate 0 of its first steps would be a training example of the compass, labelled as noise."""
    teacher = checkpoint.load_denoiser(tiny_models.mask).network
    config = CompassConfig(kind="nce", rollouts=8)
    rollout = GenerateConfig().rollout.model_copy(update={"steps": config.rollout_steps, "seed": seed})
    states = noise_states(config, teacher, lambda *_: None)
    logs = roll_out(teacher, None, rollout, ShapingConfig(), range(8), "blind")
    seen = [torch.equal(states[i, -1], torch.from_numpy(log.tokens).long()) for i, log in enumerate(logs)]
    assert not any(seen)


# ------------------------------------------------------------------ fits

HERE = Place(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus.txt", 300)


def config_of(corpus, teacher, **changes):
    optim = {"steps": 12, "batch_size": 8, "warmup": 2, "lr": 3e-3, "ema": 0.8, "log_every": 4, **changes.pop("optim", {})}
    return CompassConfig.model_validate({
        "kind": "nce", "teacher": str(teacher), "corpus": {"path": str(corpus), "part": "first"}, "rollouts": 20, "rollout_steps": 8,
        "optim": optim, **changes})


def fitted(config, out, report=lambda update, scalars: False):
    assert fit_at(HERE, config, out, report)
    return checkpoint.load(out)


@pytest.mark.parametrize("source", ["mask", "uniform"])
@pytest.mark.parametrize("hard_negatives", [0, 2])
def test_a_fit_that_is_cut_ends_as_one_that_is_not(corpus, tiny_models, tmp_path, source, hard_negatives):
    """And what its lines measure moves nothing: one is written four times, the other once."""
    teacher = getattr(tiny_models, source)
    config = config_of(corpus, teacher, hard_negatives=hard_negatives)
    lines: list[dict[str, float]] = []
    whole = fitted(config, tmp_path / "whole", lambda update, scalars: lines.append(scalars))
    assert not fit_at(HERE, config, tmp_path / "cut", lambda update, scalars: update == 8)
    assert not (tmp_path / "cut").exists()
    assert fitted(config, tmp_path / "cut").fingerprint == whole.fingerprint
    quiet = fitted(config_of(corpus, teacher, hard_negatives=hard_negatives, optim={"log_every": 12}), tmp_path / "quiet")
    assert quiet.fingerprint == whole.fingerprint
    bins = json.loads((tmp_path / "whole" / "training.json").read_text())["held_out_auc"]
    assert [name for name in lines[-1] if name.startswith("held_out/auc_")] == [
        f"held_out/auc_{each['t_from']:.2f}-{each['t_to']:.2f}" for each in bins]
    assert 0 <= lines[-1]["held_out/auc"] <= 1


def test_noise_is_made_once_for_a_training(corpus, tiny_models, tmp_path, monkeypatch):
    """A run that goes on takes what is kept; of another teacher or seed, or damaged, it is made anew."""
    from tsdfm.pipeline.training.contrast import states as module

    teacher, made = checkpoint.load_denoiser(tiny_models.mask), []
    monkeypatch.setattr(module, "noise_states", lambda *given: made.append(1) or noise_states(*given))
    config = config_of(corpus, tiny_models.mask)
    first = module.kept_states(config, teacher, tmp_path)
    assert torch.equal(module.kept_states(config, teacher, tmp_path), first)
    assert len(made) == 1
    other = config_of(corpus, tiny_models.mask, optim={"seed": 1})
    assert not torch.equal(module.kept_states(other, teacher, tmp_path), first)
    module.kept_states(config, checkpoint.load_denoiser(tiny_models.mask), tmp_path)
    file = tmp_path / module.FILE
    file.write_bytes(file.read_bytes()[:-9])
    assert torch.equal(module.kept_states(config, teacher, tmp_path), first)
    content = bytearray(file.read_bytes())
    content[-4:] = b"\xff\xff\xff\x7f"  # a file as it should be, but for an id that there is not
    file.write_bytes(content)
    assert torch.equal(module.kept_states(config, teacher, tmp_path), first)
    assert len(made) == 5


def test_a_fit_is_for_texts_as_long_as_the_teachers(corpus, tiny_models, tmp_path):
    """A causal LM learns from its teacher's tokens and lengths: one of the same tokenizer and other lengths is another teacher."""
    config = config_of(corpus, tmp_path / "teacher", kind="ar")
    shutil.copytree(tiny_models.mask, tmp_path / "teacher")
    fitted(config, tmp_path / "out")
    assert is_made(config, tmp_path / "out", half=False)
    file = tmp_path / "teacher" / checkpoint.CONFIG_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), "length": 8}))
    assert not is_made(config, tmp_path / "out", half=False)
    with pytest.raises(InputError, match=r"another config.*teacher_texts.length \(there 16, here 8\)"):
        fit_at(HERE, config, tmp_path / "out", lambda update, scalars: False)


def test_hard_negatives_change_what_is_learnt(corpus, tiny_models, tmp_path):
    plain, hard = (fitted(config_of(corpus, tiny_models.mask, hard_negatives=count), tmp_path / str(count)) for count in (0, 2))
    assert plain.fingerprint != hard.fingerprint
    state = (tmp_path / "2.training" / "training_state.json").read_text()
    assert json.loads(state)["identity"]["hard_negatives"] == 2
    assert "hard_negatives" not in (tmp_path / "0.training" / "training_state.json").read_text()


def test_where_a_network_starts(corpus, tiny_models, tmp_path):
    """In the teacher's widths from its weights, or in others from none: a rate of almost nothing leaves it where it began."""
    teacher = checkpoint.load_denoiser(tiny_models.mask).network
    still = {"steps": 1, "warmup": 0, "lr": 1e-12, "batch_size": 4}
    begun = fitted(config_of(corpus, tiny_models.mask, optim=still), tmp_path / "teacher").network
    for name, value in teacher.trunk.state_dict().items():
        torch.testing.assert_close(begun.trunk.state_dict()[name], value, rtol=0, atol=1e-9)
    shape = {**SHAPE, "hidden_size": 16, "n_blocks": 1}
    small = fitted(config_of(corpus, tiny_models.mask, optim=still, init="random", shape=shape), tmp_path / "random")
    assert isinstance(small.network, NceEncoder)
    trunk = small.network.config.trunk
    assert (trunk.hidden_size, trunk.n_blocks, trunk.mask_id) == (16, 1, teacher.config.mask_id)
    given = fitted(config_of(corpus, tiny_models.mask, optim=still, init="teacher"), tmp_path / "given").network
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), begun.parameters(), strict=True))


def test_what_only_nce_has_is_refused_of_others():
    for wrong in ({"init": "teacher"}, {"hard_negatives": 3}):
        with pytest.raises(ValidationError, match="belongs to kind 'nce'"):
            CompassConfig.model_validate({"kind": "ar", **wrong})
    assert CompassConfig(kind="ar", init="random").init == "random"
    assert not {"init", "hard_negatives"} & CompassConfig(kind="nce").model_dump().keys()
