"""Fitting a compass: its noise states, its independence of the trajectories that it will judge, its start, and its resumption."""

import json
import shutil

import pytest
import torch
from pydantic import ValidationError

from tests.support import SHAPE, present, with_other_weights, write_corpus
from tsdfm.pipeline.flow.compass import ContrastCompass
from tsdfm.pipeline.flow.rollout import roll_out
from tsdfm.pipeline.models import folder as checkpoint
from tsdfm.pipeline.models.causal import CausalLM, ContrastLM
from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.pipeline.training.contrast.of_texts import OfTexts
from tsdfm.pipeline.training.contrast.states import noise_states
from tsdfm.pipeline.training.fit_compass import check, fit_at, is_made
from tsdfm.pipeline.training.loop.data_parallel import Place
from tsdfm.pipeline.training.text_trainer import TextsInMemory
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


# ------------------------------------------------------------------ contrast

def contrast_of(corpus, models, **changes):
    return config_of(corpus, models.mask, kind="contrast", start=str(models.ar), **changes)


def test_a_contrast_keeps_what_it_starts_from_and_fits_a_copy_to_the_teachers_texts(corpus, tiny_models, tmp_path):
    """Cut and resumed it ends in the same bits; its record says how much likelier the copy finds texts that it has not learnt from."""
    config = contrast_of(corpus, tiny_models, rollouts=100, optim={"steps": 40, "lr": 1e-2})
    lines: list[dict[str, float]] = []
    whole = fitted(config, tmp_path / "whole", lambda update, scalars: lines.append(scalars))
    assert isinstance(whole.network, ContrastLM)
    start = checkpoint.load(tiny_models.ar)
    for name, weight in start.network.state_dict().items():
        assert torch.equal(whole.network.text.state_dict()[name], weight)
    assert not torch.equal(whole.network.teachers.head_weight, whole.network.text.head_weight)
    record = json.loads((tmp_path / "whole" / "training.json").read_text())
    assert record["teachers_nats"] < record["teachers_nats_before"] - 0.5
    assert (record["start"], record["rollouts"]) == (start.fingerprint, 100)
    assert lines[-1]["held_out/auc"] == pytest.approx(record["held_out_auc"], abs=1e-6)  # of the averaged weights, as they are saved
    assert not fit_at(HERE, config, tmp_path / "cut", lambda update, scalars: update == 8)
    assert fitted(config, tmp_path / "cut").fingerprint == whole.fingerprint


def test_the_auc_of_a_contrast_is_that_of_its_energies(corpus, tiny_models):
    """Text of which one model is sure, and the other is not, is told from the teacher's: 1; the other way round: 0; by equal models: 1/2."""
    network = checkpoint.load(tiny_models.contrast).network
    assert isinstance(network, ContrastLM)
    texts = torch.randint(299, (64, 16), generator=torch.Generator().manual_seed(0))
    energies = ContrastCompass(network).energy(texts[:, None], torch.ones(64), None)[:, 0]
    lower, higher = texts[energies.argsort()].split(32)
    assert OfTexts(network, lower, higher, None, HERE.device).auc() == 1
    assert OfTexts(network, higher, lower, None, HERE.device).auc() == 0
    assert 0.2 < OfTexts(network, texts[:32], texts[32:], None, HERE.device).auc() < 0.8
    network.teachers.load_state_dict(network.text.state_dict())
    assert OfTexts(network, lower, higher, None, HERE.device).auc() == 0.5


def test_a_start_that_is_changed_is_another_contrast(corpus, tiny_models, tmp_path):
    shutil.copytree(tiny_models.ar, tmp_path / "ar")
    config = config_of(corpus, tiny_models.mask, kind="contrast", start=str(tmp_path / "ar"))
    fitted(config, tmp_path / "out")
    assert is_made(config, tmp_path / "out", half=False)
    shutil.rmtree(tmp_path / "ar")
    with_other_weights(tiny_models.ar, tmp_path / "ar")
    assert not is_made(config, tmp_path / "out", half=False)
    with pytest.raises(InputError, match="another config"):
        fit_at(HERE, config, tmp_path / "out", lambda update, scalars: False)


def test_what_is_no_start(corpus, tiny_models, tmp_path):
    for start, words in ((tiny_models.nce, "holds a model of kind 'nce'"), ("embedded", "its tokenizer is not the teacher's"),
                         (tmp_path / "none", "no such model folder")):
        with pytest.raises(InputError, match=words):
            check(config_of(corpus, tiny_models.mask, kind="contrast", start=str(start)))
    opened = checkpoint.load(tiny_models.ar)
    assert isinstance(opened.network, CausalLM)
    short = opened.network.config.model_copy(update={"length": 8})
    checkpoint.save(tmp_path / "short", CausalLM(short), opened.vocabulary, None)
    with pytest.raises(InputError, match="texts of 8 tokens, the teacher's have 16"):
        check(config_of(corpus, tiny_models.mask, kind="contrast", start=str(tmp_path / "short")))


def test_clocks_of_the_rollouts(corpus, tiny_models, tmp_path):
    """Other texts by other clocks, and none where the teacher's source has no such clocks; a fit without them is what it was."""
    teacher = checkpoint.load_denoiser(tiny_models.mask)
    usual, spaced = (noise_states(config_of(corpus, tiny_models.mask, **clocks), teacher.network)
                     for clocks in ({}, {"rollout_clocks": "spaced"}))
    assert not torch.equal(usual, spaced)
    written = spaced.ne(present(teacher.network.config.mask_id)).sum(2)
    assert (written == torch.arange(2, 17, 2)).all()  # spaced: as many in each step
    with pytest.raises(InputError, match="'even' is of the uniform source"):
        check(config_of(corpus, tiny_models.mask, rollout_clocks="even"))


def test_what_only_some_kinds_have_is_refused_of_others():
    for given, words in (({"kind": "nce", "start": "x"}, "start: belongs to kind 'contrast'"),
                         ({"kind": "ar", "rollout_clocks": "spaced"}, "rollout_clocks: belongs to kinds 'nce' and 'contrast'"),
                         ({"kind": "contrast", "hard_negatives": 2}, "hard_negatives: belongs to kind 'nce'")):
        with pytest.raises(ValidationError, match=words):
            CompassConfig.model_validate(given)


def test_every_epoch_has_every_text_once_in_another_order():
    texts = torch.arange(10)[:, None]
    batches = [TextsInMemory(texts, 4, seed=3).batch(step)[:, 0].tolist() for step in range(5)]
    rows = [text for batch in batches for text in batch]
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10] != rows[10:]
    again = TextsInMemory(texts, 4, seed=3)
    assert [again.batch(step)[:, 0].tolist() for step in (4, 0, 2)] == [batches[4], batches[0], batches[2]]
    assert TextsInMemory(texts, 4, seed=4).batch(0)[:, 0].tolist() != batches[0]
