"""What makes trajectories is opened only if it fits: the teacher's texts, its vocabulary, and energies that are the model's."""

import json
import shutil

import pytest
import torch
from torch import nn

from tests.support import LENGTH, SHAPE, present, scatter_weights, tiny_config, vocabulary
from tsdfm.pipeline.flow.generate import InThisProcess, generate_dataset
from tsdfm.pipeline.flow.opening import open_models
from tsdfm.pipeline.flow.transformers_compass import TransformersCompass
from tsdfm.pipeline.models.causal import CausalLM, ContrastLM
from tsdfm.pipeline.models.folder import load, save
from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError
from tsdfm.schemas.former import FORMER_TOKENIZERS
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.model import CausalConfig, ContrastConfig, NceConfig

CPU = torch.device("cpu")
LLAMA = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def llama(transformers, folder, **changes):
    """A Llama over the teacher's vocabulary, with the teacher's tokenizer beside it."""
    config = transformers.LlamaConfig(**LLAMA | {"vocab_size": 300, "max_position_embeddings": LENGTH} | changes)
    return scattered(transformers.LlamaForCausalLM(config), folder)


def scattered(model, folder):
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.25, generator=generator)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(vocabulary().to_json())
    return folder


def config_of(tiny_models, compass, **changes):
    return GenerateConfig.model_validate(tiny_config("nowhere", tiny_models) | {"compass": str(compass)} | changes)


def refused(tiny_models, compass, *words, **changes):
    with pytest.raises(InputError) as caught:
        open_models(config_of(tiny_models, compass, **changes), CPU)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(compass), *words):
        assert word in message, message


def energies(tiny_models, compass):
    found = present(open_models(config_of(tiny_models, compass), CPU).compass)
    states = torch.randint(299, (2, 3, LENGTH), generator=torch.Generator().manual_seed(0))
    return found.energy(states, torch.ones(2), None)


# ------------------------------------------------------------------ too small

@pytest.mark.parametrize("kind", ["ar", "nce", "contrast"])
def test_a_compass_that_was_fitted_to_shorter_texts(tmp_path, tiny_models, kind):
    opened = load(getattr(tiny_models, kind))
    shorter = CausalConfig(**SHAPE, vocab_size=299, length=LENGTH - 1)
    network: CausalLM | NceEncoder | ContrastLM
    if isinstance(opened.network, NceEncoder):
        network = NceEncoder(NceConfig(trunk=opened.network.config.trunk.model_copy(update={"length": LENGTH - 1})))
    else:
        network = CausalLM(shorter) if kind == "ar" else ContrastLM(ContrastConfig(each=shorter))
    scatter_weights(network, 0)
    save(tmp_path / kind, network, opened.vocabulary, None)
    refused(tiny_models, tmp_path / kind, f"{LENGTH - 1} tokens", f"have {LENGTH}")
    assert open_models(config_of(tiny_models, tmp_path / kind, rollout={"steps": 8, "length": LENGTH - 1}), CPU).compass


def test_a_transformers_compass_with_too_few_positions(tmp_path, tiny_models, transformers):
    refused(tiny_models, llama(transformers, tmp_path, max_position_embeddings=LENGTH - 1), f"{LENGTH - 1} positions", f"{LENGTH} tokens")


def test_a_transformers_compass_whose_table_of_positions_is_shorter_than_it_says(tmp_path, tiny_models, transformers):
    """RoBERTa's positions begin after its padding id, so that its table holds two texts' tokens less."""
    config = transformers.RobertaConfig(vocab_size=300, max_position_embeddings=LENGTH + 1, is_decoder=True, **LLAMA)
    refused(tiny_models, scattered(transformers.RobertaForCausalLM(config), tmp_path), f"the {LENGTH} positions that are needed")


def test_a_transformers_compass_with_too_few_rows(tmp_path, tiny_models, transformers):
    refused(tiny_models, llama(transformers, tmp_path, vocab_size=298), "rows for 298 ids")


def test_a_row_for_mask_is_not_needed(tmp_path, tiny_models, transformers):
    assert energies(tiny_models, llama(transformers, tmp_path, vocab_size=299)).isfinite().all()


@pytest.mark.parametrize("bos", [50256, -1, None])
def test_a_start_that_is_another_tokenizers_is_none(tmp_path, tiny_models, transformers, bos):
    """Story: a GPT-2 of one's own small vocabulary keeps the library's default start, 50256; it was a judge, and no compass."""
    found = present(open_models(config_of(tiny_models, llama(transformers, tmp_path, bos_token_id=bos)), CPU).compass)
    assert isinstance(found, TransformersCompass)
    assert found.bos_id == vocabulary().eos_id


class Own:
    """Somebody's own compass."""

    needs_completion, proposal_weight = False, 1.0

    def energy(self, states, t, completion):
        return states.float().mean(-1)


@pytest.mark.parametrize(("limits", "word"), [({"positions": LENGTH - 1}, "positions"), ({"vocab_size": 298}, "ids below 298")])
def test_an_own_compass_that_says_what_it_can(tmp_path, tiny_models, limits, word):
    compass = Own()
    vars(compass).update(limits)
    config = GenerateConfig.model_validate(tiny_config(tmp_path / "out", tiny_models))
    with pytest.raises(InputError, match=word):
        generate_dataset(config, compass=compass, maker=InThisProcess(CPU))
    assert not (tmp_path / "out").exists()
    vars(compass).update({"positions": LENGTH, "vocab_size": 299})
    assert open_models(config, CPU, compass).compass is compass


@pytest.mark.parametrize("fingerprint", ["mine", 7, "", "0" * 63, "G" * 64])
def test_a_fingerprint_that_is_no_sha256(tmp_path, tiny_models, fingerprint):
    """Story: it was pydantic's own error, of a model that nobody has heard of."""
    compass = Own()
    vars(compass)["fingerprint"] = fingerprint
    config = GenerateConfig.model_validate(tiny_config(tmp_path / "out", tiny_models))
    with pytest.raises(InputError, match=r"Own has the fingerprint .*64 hexadecimal digits; make it hashlib\.sha256") as caught:
        generate_dataset(config, compass=compass, maker=InThisProcess(CPU))
    assert repr(fingerprint) in str(caught.value)
    assert not (tmp_path / "out").exists()
    vars(compass)["fingerprint"] = "0a" * 32
    assert present(open_models(config, CPU, compass).compass_facts).fingerprint == "0a" * 32


class Half:
    """Has no more of the protocol than this."""

    energy = Own.energy


@pytest.mark.parametrize("given", [Half(), "embedded", 3.0])
def test_what_is_no_compass(tmp_path, tiny_models, given):
    """Story: an object without all of the protocol's names was found out by the first jump, as 'not callable'."""
    config = GenerateConfig.model_validate(tiny_config(tmp_path / "out", tiny_models))
    with pytest.raises(InputError, match=r"is neither a function of .* nor has all of `needs_completion`"):
        generate_dataset(config, compass=given, maker=InThisProcess(CPU))
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ energies that are not the model's

@pytest.mark.parametrize("family", ["Cohere", "Gemma2"])
def test_logits_that_are_more_than_a_head(tmp_path, tiny_models, transformers, family):
    sizes = LLAMA | {"vocab_size": 300, "max_position_embeddings": 64}
    if family == "Cohere":
        model = transformers.CohereForCausalLM(transformers.CohereConfig(logit_scale=0.3, **sizes))
    else:
        model = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(head_dim=16, num_key_value_heads=2, **sizes))
    refused(tiny_models, scattered(model, tmp_path), "more than a head of its hidden states")


def test_a_model_that_looks_ahead(tmp_path, tiny_models, transformers):
    model = transformers.BertLMHeadModel(transformers.BertConfig(vocab_size=300, max_position_embeddings=64, **LLAMA))
    refused(tiny_models, scattered(model, tmp_path), "causal LM")


# ------------------------------------------------------------------ tokenizers by what they do

def test_a_folder_that_transformers_saved_is_the_same_compass(tmp_path, tiny_models, transformers):
    plain = llama(transformers, tmp_path / "plain")
    shutil.copytree(plain, tmp_path / "saved")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(plain / "tokenizer.json"), eos_token="[EOS]", pad_token="[PAD]")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert Vocabulary.load(plain).fingerprint == vocabulary().fingerprint
    assert (tmp_path / "saved" / "tokenizer.json").read_text() != (plain / "tokenizer.json").read_text()
    assert torch.equal(energies(tiny_models, tmp_path / "saved"), energies(tiny_models, plain))


def lower(words):
    words["normalizer"] = {"type": "Lowercase"}


def swapped(words):
    vocab = words["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def other_merges(words):
    words["model"]["merges"].reverse()


def other_decoder(words):
    words["decoder"] = {"type": "Fuse"}


def other_start(words):
    words["pre_tokenizer"]["add_prefix_space"] = True


@pytest.mark.parametrize("change", [lower, swapped, other_merges, other_decoder, other_start])
@pytest.mark.parametrize("kind", ["ours", "transformers"])
def test_a_tokenizer_that_does_anything_else(tmp_path, tiny_models, transformers, change, kind):
    folder = tmp_path / "compass"
    if kind == "ours":
        shutil.copytree(tiny_models.ar, folder)
    else:
        llama(transformers, folder)
    words = json.loads(vocabulary().to_json())
    change(words)
    (folder / "tokenizer.json").write_text(json.dumps(words))
    refused(tiny_models, folder, "its tokenizer is not the teacher's")


def test_our_own_compass_with_a_tokenizer_written_otherwise(tmp_path, tiny_models, transformers):
    shutil.copytree(tiny_models.ar, tmp_path / "ar")
    transformers.PreTrainedTokenizerFast(tokenizer_file=str(tiny_models.ar / "tokenizer.json"), eos_token="[EOS]").save_pretrained(tmp_path / "ar")
    our_config = (tiny_models.ar / "config.json").read_text()
    assert (tmp_path / "ar" / "config.json").read_text() == our_config
    assert torch.equal(energies(tiny_models, tmp_path / "ar"), energies(tiny_models, tiny_models.ar))


def test_a_compass_without_a_tokenizer(tmp_path, tiny_models, transformers):
    folder = llama(transformers, tmp_path)
    (folder / "tokenizer.json").unlink()
    refused(tiny_models, folder, "no tokenizer.json there")


@pytest.mark.parametrize(("former", "words"), [
    ("foreign", "or give a copy of the embedded one of tsdfm-pipeline 0.0.9, whose tokenizer the teacher has"),
    ("ar", "it has that of the embedded models of tsdfm-pipeline 0.0.9")])
def test_a_compass_and_a_teacher_of_different_versions_are_told_apart(tiny_models, monkeypatch, former, words):
    """A student of a former embedded teacher and today's compass, say, or the other way round."""
    refused(tiny_models, tiny_models.ar, "fit a compass with this teacher", teacher=str(tiny_models.foreign))
    monkeypatch.setitem(FORMER_TOKENIZERS, load(getattr(tiny_models, former)).vocabulary.fingerprint, "0.0.9")
    refused(tiny_models, tiny_models.ar, "fit a compass with this teacher", words, teacher=str(tiny_models.foreign))


# ------------------------------------------------------------------ the wrong kind of folder, from the command line

def test_every_command_refuses_the_wrong_kind_in_one_line(cli, tmp_path, tiny_models, transformers):
    foreign = llama(transformers, tmp_path / "llama")
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    empty = tmp_path / "empty"
    empty.mkdir()
    generate = ["generate", "--out", tmp_path / "out", "--trajectories", "2", "--teacher"]
    wrong = {
        ("sample", "--model"): [tiny_models.ar, tiny_models.nce, tiny_models.contrast, foreign, file, empty, tmp_path / "nowhere"],
        ("evaluate", "--steps", "2", "-n", "2", "--no-reference", "--model"): [tiny_models.ar, tiny_models.nce, foreign, file, empty],
        ("evaluate", "--steps", "2", "-n", "2", "--no-reference", "--model", tiny_models.mask, "--evaluator"): [
            tiny_models.mask, tiny_models.nce, file, empty, tmp_path / "nowhere"],
        tuple(generate): [tiny_models.ar, tiny_models.nce, foreign, file, empty],
        (*generate, tiny_models.mask, "--compass"): [
            tiny_models.mask, tiny_models.uniform, file, empty, tmp_path / "nowhere", "embedded"],
    }
    for command, names in wrong.items():
        for name in names:
            outcome = cli(*command, name)
            lines = outcome.stderr.strip().splitlines()
            assert outcome.code == 2, (command, name, outcome)
            assert [line for line in lines if line.startswith("Error: ")] == lines[-1:], (command, name, outcome.stderr)
            assert "defect" not in lines[-1]
            assert str(name) in lines[-1], lines[-1]
    assert not (tmp_path / "out").exists()
