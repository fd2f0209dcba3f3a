"""Imported teachers give the logits of their own architecture, restated; everything else is refused in one line."""

import json
import math
import os
import pickle
import sys
import zipfile
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from tests.foreign import COND, duo_log_probabilities, fsdfm_logits, gpt2_like, mdlm_logits, random_weights
from tests.support import make_dataset
from tsdfm.pipeline.flow.opening import open_models
from tsdfm.pipeline.flow.rollout import roll_out
from tsdfm.pipeline.models import folder as checkpoint
from tsdfm.pipeline.models.denoiser import SIGMA_EPSILON
from tsdfm.pipeline.models.foreign.importer import import_teacher
from tsdfm.pipeline.models.student import student_of
from tsdfm.pipeline.text.vocabulary import FILE, MASK
from tsdfm.schemas.base import InputError
from tsdfm.schemas.generate import GenerateConfig, RolloutConfig, ShapingConfig
from tsdfm.schemas.import_teacher import ImportConfig

WORDS = 30  # merges of the tokenizer
IDS = 256 + WORDS + 1  # without [MASK]
TOKENS = torch.randint(IDS, (3, 9), generator=torch.Generator().manual_seed(7))
T = torch.tensor([0.0, 0.3, 0.97])


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    (folder / FILE).write_text(gpt2_like(WORDS).to_str())
    return folder


@pytest.fixture
def bring(tmp_path, words):
    """Save a state (torch, or safetensors by name) and import it."""

    def run(state, name="checkpoint.pth", **options):
        file = tmp_path / name
        save_file(state, file) if file.suffix == ".safetensors" else torch.save(state, file)
        return import_teacher(ImportConfig(checkpoint=str(file), **({"tokenizer": str(words)} | options)))

    return run


def refusal(bring, state, **options):
    with pytest.raises(InputError) as caught:
        bring(state, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_close(found, expected):
    assert expected.std() > 0.1  # weights that matter
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("source", "rows"), [("uniform", IDS), ("mask", IDS + 1)])
@pytest.mark.parametrize("name", ["checkpoint.pth", "weights.safetensors"])
def test_dfm_teachers(bring, source, rows, name):
    weights = random_weights("fs-dfm", rows)
    made = bring(weights, name)
    config = made.network.config
    assert (config.source, config.mask_id) == (source, IDS if source == "mask" else None)
    assert (config.n_heads, config.n_blocks, config.cond_dim, config.length, config.step_size) == (2, 2, COND, 1024, False)
    assert_close(made.network(TOKENS, T), fsdfm_logits(weights, TOKENS, T))


def test_fsdfm_students(bring):
    weights = random_weights("fs-dfm", IDS, student=True)
    made = bring(weights)
    assert (made.network.config.conditioning, made.network.config.step_size) == ("fused", True)
    for dt in (torch.tensor([1.0, 0.5, 1 / 64]), torch.full((3,), 1 / 8)):
        assert_close(made.network(TOKENS, T, dt), fsdfm_logits(weights, TOKENS, T, dt))
    assert not torch.allclose(made.network(TOKENS, T, torch.ones(3)), made.network(TOKENS, T, torch.full((3,), 0.1)), atol=1e-3)
    assert_close(made.network(TOKENS, T), fsdfm_logits(weights, TOKENS, T, torch.zeros(3)))  # no step named: the limit dt = 0


def test_mdlm_as_published_is_not_told_the_time(bring):
    weights = random_weights("mdlm", IDS + 1)
    made = bring(weights, layout="mdlm")
    assert made.network.config.conditioning == "t"
    assert_close(made.network(TOKENS, T), mdlm_logits(weights, TOKENS, torch.zeros(3)))


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_mdlm_told_sigma(bring, exponent):
    """P(masked) = 1 - exp(-sigma) there, 1 - t^n here; at t = 0 MDLM's own log-linear schedule ends."""
    weights = random_weights("mdlm", IDS + 1)
    made = bring(weights, layout="mdlm", time_conditioning=True, kappa_exponent=exponent)
    sigma = torch.tensor([-math.log(max(t**exponent, SIGMA_EPSILON)) for t in T.tolist()])
    noisiest = -math.log1p(-(1 - 1e-3) * 1.0)
    assert float(sigma[0]) == pytest.approx(noisiest)
    assert made.network.config.conditioning == "sigma"
    assert_close(made.network(TOKENS, T), mdlm_logits(weights, TOKENS, sigma))


def test_config_json_beside_the_weights_is_read(tmp_path, words):
    weights = random_weights("mdlm", IDS + 1)
    del weights["rotary_emb.inv_freq"]
    save_file({f"backbone.{name}": tensor for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    facts = {"model_type": "mdlm", "n_heads": 2, "model_length": 77, "time_conditioning": True, "hidden_dim": 16}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    (tmp_path / FILE).write_text((words / FILE).read_text())
    config = import_teacher(ImportConfig(checkpoint=str(tmp_path))).network.config
    assert (config.n_heads, config.length, config.conditioning) == (2, 77, "sigma")


def test_heads_must_be_known(bring):
    weights = random_weights("mdlm", IDS + 1)
    del weights["rotary_emb.inv_freq"]
    assert "--heads" in refusal(bring, weights, layout="mdlm")
    assert bring(weights, layout="mdlm", heads=2).network.config.n_heads == 2
    assert "multiple of twice the heads" in refusal(bring, weights, layout="mdlm", heads=3)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "backbone.", "module._orig_mod.", "model.backbone."])
def test_prefixes_of_wrappers(bring, prefix):
    weights = random_weights("mdlm", IDS + 1)
    made = bring({"state_dict": {prefix + name: tensor for name, tensor in weights.items()}}, layout="mdlm")
    assert_close(made.network(TOKENS, T), mdlm_logits(weights, TOKENS, torch.zeros(3)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(bring, dtype):
    weights = {name: tensor.to(dtype) for name, tensor in random_weights("fs-dfm", IDS).items()}
    made = bring(weights)
    assert made.network.head.weight.dtype == torch.float32
    assert_close(made.network(TOKENS, T), fsdfm_logits({name: tensor.float() for name, tensor in weights.items()}, TOKENS, T))


def test_of_a_training_state_the_averaged_student_is_taken(bring):
    teacher, student, average = random_weights("fs-dfm", IDS), *(
        random_weights("fs-dfm", IDS, student=True, seed=seed) for seed in (1, 2))
    state = {"step": 3, "teacher_model": teacher, "student_model": student, "student_ema_model": average,
             "student_optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}}
    made = bring(state)
    assert made.record.imported.weights == "student_ema_model"
    assert made.record.imported.others == ["student_model", "teacher_model"]
    assert_close(made.network(TOKENS, T, T + 0.01), fsdfm_logits(average, TOKENS, T, T + 0.01))
    assert_close(bring(state, weights="teacher_model").network(TOKENS, T), fsdfm_logits(teacher, TOKENS, T))
    assert "student_ema_model, student_model, teacher_model" in refusal(bring, state, weights="ema")


def test_a_list_of_averages_is_taken_in_order(bring):
    raw, average = random_weights("mdlm", IDS + 1), random_weights("mdlm", IDS + 1, seed=5)
    shadow = [tensor for name, tensor in average.items() if name != "rotary_emb.inv_freq"]
    made = bring({"state_dict": {f"backbone.{n}": x for n, x in raw.items()}, "ema": {"decay": 0.9, "shadow_params": shadow}},
                 layout="mdlm")
    assert made.record.imported.weights == "ema"
    assert_close(made.network(TOKENS, T), mdlm_logits(average, TOKENS, torch.zeros(3)))


# ---- refusals


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(bring, tmp_path, zipped):
    state = {"model": random_weights("fs-dfm", IDS), "hyper": Harm(str(tmp_path / "harmed"))}
    file = tmp_path / "evil.pth"
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    assert zipfile.is_zipfile(file) == zipped
    with pytest.raises(InputError, match="nothing is unpickled"):
        import_teacher(ImportConfig(checkpoint=str(file), tokenizer="none"))
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Harm(str(tmp_path / "harmed"))))
    with pytest.raises(InputError):
        import_teacher(ImportConfig(checkpoint=str(tmp_path / "bare.pth"), tokenizer="none"))
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut short"])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_other_files_are_refused(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name) as caught:
        import_teacher(ImportConfig(checkpoint=str(tmp_path / name), tokenizer="none"))
    assert "\n" not in str(caught.value)


def without(name):
    def change(weights):
        del weights[name]
    return change


def replaced(name, tensor):
    def change(weights):
        weights[name] = tensor
    return change


@pytest.mark.parametrize(("change", "words_of_refusal"), [
    (without("blocks.1.kw.weight"), ["1 missing", "blocks.1.kw.weight"]),
    (without("output_layer.linear.bias"), ["1 missing", "output_layer.linear.bias"]),
    (without("blocks.0.mlp.0.weight"), ["blocks.0.mlp.0.weight", "absent"]),
    (replaced("blocks.0.qw.bias", torch.zeros(16)), ["1 unexpected", "blocks.0.qw.bias"]),
    (replaced("blocks.1.norm1.weight", torch.ones(17)), ["blocks.1.norm1.weight", "(17,)", "(16,)"]),
    (replaced("time_embedding.mlp.0.weight", torch.ones(12, 128)), ["time_embedding.mlp.0.weight", "256"]),
    (replaced("output_layer.linear.weight", torch.full((IDS, 16), torch.nan)), ["output_layer.linear.weight", "not finite"]),
    (replaced("blocks.0.norm2.weight", torch.ones(16, dtype=torch.int64)), ["blocks.0.norm2.weight", "not finite floats"]),
    (replaced("module.vocab_embed.weight", torch.ones(IDS, 16)), ["vocab_embed.weight", "twice"]),
])
def test_faulty_tensors_are_named(bring, change, words_of_refusal):
    weights = random_weights("fs-dfm", IDS)
    change(weights)
    message = refusal(bring, weights)
    assert all(word in message for word in words_of_refusal), message


@pytest.mark.parametrize(("layout", "rows", "options", "said"), [
    ("fs-dfm", IDS + 2, {}, f"vocabulary of {IDS + 2}"), ("fs-dfm", IDS - 1, {}, f"vocabulary of {IDS - 1}"),
    ("mdlm", IDS, {"layout": "mdlm"}, f"vocabulary of {IDS}"), ("mdlm", IDS, {"layout": "fs-dfm"}, "not fs-dfm"),
    ("mdlm", IDS + 1, {}, "--layout mdlm or sdtt (mask source), or duo (uniform source)"),
    ("mdlm", IDS + 1, {"source": "mask"}, "--layout mdlm"), ("mdlm", IDS + 2, {"layout": "duo"}, f"vocabulary of {IDS + 2}"), ("fs-dfm", IDS, {"source": "mask"}, "uniform source, not mask"),
    ("fs-dfm", IDS, {"layout": "mdlm"}, "has the layout fs-dfm"), ("fs-dfm", IDS, {"time_conditioning": True}, "always told"),
    ("fs-dfm", IDS, {"tokenizer": None}, "--tokenizer"), ("fs-dfm", IDS, {"eos": "<none>"}, "no such token"),
])
def test_what_does_not_fit_is_refused(bring, layout, rows, options, said):
    assert said in refusal(bring, random_weights(layout, rows), **options)


@pytest.mark.parametrize(("layout", "source", "ids"), [("fs-dfm", "uniform", IDS), ("fs-dfm", "mask", IDS + 1), ("mdlm", "mask", IDS + 1)])
def test_the_rows_of_a_padded_vocabulary_are_left_out(bring, layout, source, ids):
    """The cure that the refusal names helps; a vocabulary that is another one is not taken for a padded one."""
    padded = -(-IDS // 64) * 64 + 64
    weights = random_weights(layout, padded)
    assert "--source" in refusal(bring, weights, layout=layout)
    made = bring(weights, layout=layout, source=source)
    assert (made.network.config.source, made.network.config.vocab_size) == (source, ids)
    assert made.network.config.mask_id == (IDS if source == "mask" else None)
    name = {"fs-dfm": "vocab_embed.weight", "mdlm": "vocab_embed.embedding"}[layout]
    torch.testing.assert_close(made.network.state_dict()["trunk.vocab_embed.weight"], weights[name][:ids])
    assert "vocabulary of" in refusal(bring, random_weights(layout, IDS + 2000), layout=layout, source=source)


def test_other_models_are_refused(bring):
    assert "no weights of a known layout" in refusal(bring, {"wte.weight": torch.ones(3, 4)})
    assert "no weights of a known layout" in refusal(bring, [1, 2])
    assert "of no known layout" in refusal(bring, {"vocab_embed.weight": torch.ones(3, 4)})


def test_a_model_of_ours_is_told_to_be_one(tiny_models):
    for ours in (tiny_models.mask, tiny_models.ar / "model.safetensors"):
        with pytest.raises(InputError, match=r"is a model of this project.*--teacher"):
            import_teacher(ImportConfig(checkpoint=str(ours)))


@pytest.mark.parametrize(("named", "options", "source"), [
    ({"model_type": "mdlm"}, {}, "mask"), ({"model_type": "duo"}, {}, "uniform"), ({"model_type": "DUO"}, {}, "uniform"),
    ({"algo": {"name": "duo_base", "time_conditioning": True}}, {}, "uniform"), ({"algo": {"name": "mdlm"}}, {}, "mask"),
    ({"config": {"algo": {"name": "distillation"}, "model": {"length": 48, "n_heads": 2}}}, {}, "uniform"),
    ({"parameterization": {"name": "multi-round-sdtt", "num_distill_steps": 2}, "model": {"length": 48}}, {}, "mask"),
    ({}, {"layout": "mdlm"}, "mask"), ({}, {"layout": "sdtt"}, "mask"), ({}, {"layout": "duo"}, "uniform"),
    ({"model_type": "bd3lm"}, {}, "says 'bd3lm'"), ({"model_type": "bd3lm"}, {"layout": "mdlm"}, "says 'bd3lm'"),
    ({"algo": {"name": "sedd"}}, {}, "says 'sedd'"), ({"model_type": "duo"}, {"layout": "mdlm"}, "says 'duo', not mdlm"),
    ({"model_type": "mdlm"}, {"layout": "duo"}, "says 'mdlm', not duo"), ({"n_heads": 2}, {}, "--layout mdlm or sdtt"),
    ({"model_type": "duo", "model_length": -4}, {}, "model_length"), ({"model_type": ["duo"]}, {}, "model_type"),
])
def test_families_that_name_their_tensors_alike_are_told_apart_or_refused(tmp_path, words, named, options, source):
    """Duo's rows are V + [PAD], as many as MDLM's V + [MASK]: imported as MDLM's it would write nonsense."""
    torch.save(random_weights("mdlm", IDS + 1), tmp_path / "checkpoint.pth")
    if named:
        (tmp_path / "config.json").write_text(json.dumps(named))
    config = ImportConfig(checkpoint=str(tmp_path), tokenizer=str(words), **options)
    if source in ("mask", "uniform"):
        assert import_teacher(config).network.config.source == source
    else:
        with pytest.raises(InputError) as caught:
            import_teacher(config)
        assert source in str(caught.value)


@pytest.mark.parametrize("rows", [IDS, IDS + 1])
@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_duo_is_told_how_much_of_the_text_is_written(bring, rows, exponent):
    """alpha is our kappa; the last row of a tokenizer without [PAD] is [PAD]."""
    weights = random_weights("mdlm", rows)
    made = bring(weights, layout="duo", kappa_exponent=exponent)
    config = made.network.config
    assert (config.source, config.mask_id, config.vocab_size, config.conditioning) == ("uniform", None, rows, "sigma")
    assert made.vocabulary.size_without_mask == rows
    assert (made.vocabulary.tokenizer.token_to_id("[PAD]") == IDS) == (rows == IDS + 1) == any("[PAD]" in each for each in made.assumed)
    alpha = (T**exponent).clamp_min(SIGMA_EPSILON)
    assert_close(made.network(TOKENS, T).log_softmax(-1), duo_log_probabilities(weights, TOKENS, alpha))


def test_what_is_assumed_is_told(bring):
    assert [each.partition(" (")[0] for each in bring(random_weights("fs-dfm", IDS)).assumed] == [
        "texts of 1024 tokens", "the schedule kappa_t = t", "texts are packed: what follows an end is another document"]
    assert bring(random_weights("fs-dfm", IDS), length=16, kappa_exponent=1.0, texts="packed").assumed == []
    assert "not told its noise level" in bring(random_weights("mdlm", IDS + 1), layout="sdtt", length=16).assumed[0]
    assert bring(random_weights("mdlm", IDS + 1), layout="sdtt", length=16, time_conditioning=False, texts="packed").assumed == []


@pytest.mark.parametrize(("layout", "rows"), [("fs-dfm", IDS), ("fs-dfm", IDS + 1), ("mdlm", IDS + 1), ("duo", IDS)])
def test_a_checkpoint_of_padded_texts_writes_texts_that_end(bring, layout, rows):
    """Nothing in a checkpoint says how its texts lay; its record keeps what was said, and the weights are the same."""
    options = {} if layout == "fs-dfm" else {"layout": layout}
    weights = random_weights("fs-dfm" if layout == "fs-dfm" else "mdlm", rows)
    packed, padded = bring(weights, **options), bring(weights, texts="padded", **options)
    assert (packed.network.config.end_id, padded.network.config.end_id) == (None, padded.vocabulary.eos_id)
    assert padded.network.config.texts == padded.record.imported.config.texts == "padded"
    assert [any("texts are packed" in each for each in made.assumed) for made in (packed, padded)] == [True, False]
    assert "texts" not in packed.record.model_dump(mode="json")["imported"]["config"]
    torch.testing.assert_close(padded.network(TOKENS, T), packed.network(TOKENS, T), rtol=0, atol=0)


class Settings:
    """What stands for a library's config in a checkpoint of Lightning; it says when it is built."""

    def __reduce__(self):
        return Settings, (), {"algo": "mdlm"}


@pytest.mark.parametrize("library", ["omegaconf.dictconfig", "lightning.fabric"])
def test_weights_beside_a_config_of_lightning_are_read_and_the_config_is_not(tmp_path, words, library, monkeypatch):
    raw, average = random_weights("mdlm", IDS + 1), random_weights("mdlm", IDS + 1, seed=5)
    monkeypatch.setattr(Settings, "__module__", library)
    for name in (library.partition(".")[0], library):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(Settings=Settings))
    state = {"state_dict": {f"backbone.{name}": tensor for name, tensor in raw.items()}, "pytorch-lightning_version": "2.2",
             "hyper_parameters": {"config": Settings(), "sizes": dict}, "callbacks": {"EMA": {"ema_state_dict": average}}}
    file = tmp_path / "last.ckpt"
    torch.save(state, file)
    monkeypatch.setattr(Settings, "__reduce__", None)
    monkeypatch.setitem(sys.modules, library, None)
    config = ImportConfig(checkpoint=str(file), tokenizer=str(words), layout="mdlm")
    made = import_teacher(config)
    assert made.record.imported.weights == "callbacks.EMA.ema_state_dict"
    assert_close(made.network(TOKENS, T), mdlm_logits(average, TOKENS, torch.zeros(3)))
    plain = import_teacher(config.model_copy(update={"weights": "state_dict"}))
    assert_close(plain.network(TOKENS, T), mdlm_logits(raw, TOKENS, torch.zeros(3)))


def test_averages_of_other_parameters_are_refused(bring):
    """Silently taking the weights that were not averaged gives a worse teacher."""
    raw = random_weights("mdlm", IDS + 1)
    shadow = [value for name, value in raw.items() if not name.endswith("inv_freq")][:-1]
    said = refusal(bring, {"state_dict": {f"backbone.{n}": x for n, x in raw.items()}, "ema": {"shadow_params": shadow}},
                   layout="mdlm")
    assert f"holds {len(shadow)} tensors" in said


def test_folders_without_weights_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="checkpoint"):
            import_teacher(ImportConfig(checkpoint=str(path)))


# ---- what is imported is a teacher like any other

KINDS = {"uniform": ("fs-dfm", IDS, False, "auto"), "student": ("fs-dfm", IDS, True, "auto"), "mdlm": ("mdlm", IDS + 1, False, "mdlm"),
         "duo": ("mdlm", IDS, False, "duo")}


@pytest.fixture(params=KINDS)
def folder(request, bring, tmp_path):
    tensors, rows, student, layout = KINDS[request.param]
    made = bring(random_weights(tensors, rows, student=student), layout=layout, length=16)
    checkpoint.save(tmp_path / "teacher", made.network, made.vocabulary, made.record)
    return tmp_path / "teacher"


def test_it_is_saved_and_opened_and_rolled_out(folder):
    opened = checkpoint.load_denoiser(folder)
    network = opened.network
    assert opened.vocabulary.size == IDS + 1
    assert opened.vocabulary.tokenizer.id_to_token(opened.vocabulary.eos_id) == "<|endoftext|>"
    logs = roll_out(network, None, RolloutConfig(steps=4), ShapingConfig(candidates=1), range(3), "blind")
    assert all(log.tokens.min() >= 0 and log.tokens.max() < IDS for log in logs)


def test_datasets_are_made_with_it_and_students_of_it(folder, tmp_path, tiny_models):
    from tsdfm.pipeline.dataset.verify import verify
    from tsdfm.pipeline.storage.open_store import open_store

    make_dataset(tmp_path / "out", tiny_models, teacher=str(folder), compass="denoiser", trajectories=4)
    assert verify(open_store(str(tmp_path / "out")))[1] == []
    teacher = open_models(GenerateConfig(teacher=str(folder), compass="none", arm="blind"), torch.device("cpu")).teacher.network
    student, dt = student_of(teacher), torch.full((3,), 0.25)
    torch.testing.assert_close(student(TOKENS, T, dt), teacher(TOKENS, T, dt), rtol=0, atol=0)


def test_sizes_of_gpt2(tmp_path):
    """50,257 ids for the uniform source, 50,258 with [MASK] appended."""
    (tmp_path / FILE).write_text(gpt2_like(50_000).to_str())
    for rows, source in ((50_257, "uniform"), (50_258, "mask")):
        save_file(random_weights("fs-dfm", rows), tmp_path / "model.safetensors")
        made = import_teacher(ImportConfig(checkpoint=str(tmp_path)))
        assert (made.network.config.source, made.network.config.vocab_size, made.vocabulary.mask_id) == (source, rows, 50_257)
        assert made.vocabulary.eos_id == 50_256
    assert made.vocabulary.tokenizer.token_to_id(MASK) == 50_257
