"""Judges by name: ours, transformers folders made here, GGUF, and every name that must be refused in one line."""

import json
import math
import shutil
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.support import vocabulary
from tsdfm.pipeline.evaluation import open_judge as module
from tsdfm.pipeline.evaluation.open_judge import open_judge
from tsdfm.pipeline.models.causal import CausalLM
from tsdfm.pipeline.models.folder import embedded, load, save
from tsdfm.pipeline.models.transformers import accelerate
from tsdfm.schemas.base import InputError, WorkError

CPU = torch.device("cpu")
TEXTS = ["the quick brown fox jumps", "energy 12", "masks fall in turn, and the lazy dog keeps the most coherent jump"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def scattered(model):
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.25, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def llama(tmp_path_factory, transformers):
    """A Llama with a tokenizer of ours."""
    folder = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(vocab_size=300, intermediate_size=48, max_position_embeddings=40, bos_token_id=3,
                                      eos_token_id=0, **SIZES)
    scattered(transformers.LlamaForCausalLM(config)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(vocabulary().to_json())
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory, transformers):
    """A GPT-2 with a tokenizer of its own kind, which is none of ours."""
    folder = tmp_path_factory.mktemp("gpt2")
    config = transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=32)
    scattered(transformers.GPT2LMHeadModel(config)).save_pretrained(folder)
    words = json.loads(vocabulary().to_json())
    words["added_tokens"] = []
    for token in ("[EOS]", "[MASK]"):
        words["model"]["vocab"][{"[EOS]": "<|endoftext|>", "[MASK]": "<|im_start|>"}[token]] = words["model"]["vocab"].pop(token, 299)
    (folder / "plain.json").write_text(json.dumps(words))
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "plain.json"), bos_token="<|endoftext|>", eos_token="<|endoftext|>").save_pretrained(folder)
    (folder / "plain.json").unlink()
    return folder


def direct(model, start, sequences):
    """Nats of each sequence from all logits, one at a time."""
    nats = []
    for ids in sequences:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[start, *ids]])).logits.double().log_softmax(-1)
        nats.append(-float(logits[0, :-1].gather(-1, torch.tensor(ids)[:, None]).sum()))
    return nats


def test_the_embedded_judge_is_a_causal_lm_of_the_teachers_vocabulary():
    judge = open_judge("embedded", CPU)
    assert judge.fingerprint == load(embedded("judge")).fingerprint
    assert judge.vocabulary == load(embedded("teacher-mask")).vocabulary.fingerprint
    real = "The function returns the first element of the list, and raises an error if there is none."
    noise = "kqzj wvx uuu qqq zzz bjk xxv wjq yyy ppq"
    assert judge.score_tokens(judge.encode([real])).perplexity < judge.score_tokens(judge.encode([noise])).perplexity / 5


def test_a_llama_of_our_vocabulary_scores_tokens(llama, transformers):
    judge = open_judge(str(llama), CPU)
    assert judge.vocabulary == vocabulary().fingerprint
    tokens = np.random.default_rng(0).integers(299, size=(5, 20))
    model = transformers.LlamaForCausalLM.from_pretrained(llama)
    found = judge.score(tokens, ["never read"] * 5, vocabulary().fingerprint)
    # what the folder's tokenizer knows of beginnings is [EOS], before every document of ours
    np.testing.assert_allclose(found.nats, direct(model, vocabulary().eos_id, tokens.tolist()), rtol=1e-4)


def test_a_gpt2_of_another_vocabulary_reads_text(gpt2, transformers):
    judge = open_judge(str(gpt2), CPU)
    assert judge.vocabulary is None
    tokenizer = transformers.AutoTokenizer.from_pretrained(gpt2)
    encoded = [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
    model = transformers.GPT2LMHeadModel.from_pretrained(gpt2)
    found = judge.score(np.zeros((3, 8), dtype=np.int64), TEXTS, vocabulary().fingerprint)
    np.testing.assert_allclose(found.nats, direct(model, tokenizer.bos_token_id, encoded), rtol=1e-4)
    assert found.tokens.tolist() == [len(ids) for ids in encoded]
    assert found.perplexity == pytest.approx(math.exp(found.nats.sum() / sum(map(len, encoded))))


def test_special_tokens_in_a_text_are_plain_text(gpt2):
    judge = open_judge(str(gpt2), CPU)
    assert judge.start_id not in judge.encode(["a <|endoftext|> b"])[0]


def test_texts_longer_than_the_context_are_refused(gpt2):
    with pytest.raises(InputError, match="more than its 32 positions"):
        open_judge(str(gpt2), CPU).score_tokens([[1] * 33])


@pytest.mark.parametrize(("bos", "eos", "expected"), [
    ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),  # SmolLM2-Instruct
    (None, "<|endoftext|>", "<|endoftext|>"),  # Qwen
    ("<s>", "</s>", "<s>"),
    (None, "</s>", "</s>"),
])
def test_texts_start_as_documents_did(bos, eos, expected):
    vocab = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2} if eos != "</s>" else {"<s>": 3, "</s>": 4}
    tokenizer = SimpleNamespace(bos_token=bos, bos_token_id=vocab.get(bos), eos_token_id=vocab[eos], get_vocab=lambda: vocab,
                                convert_tokens_to_ids=vocab.get)
    model = SimpleNamespace(config=SimpleNamespace(bos_token_id=None, eos_token_id=None))
    assert module._start("x", model, tokenizer) == vocab[expected]


@pytest.mark.parametrize("bias", [True, False])
def test_accelerated_linears_keep_their_results(bias):
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 200, bias=bias), nn.GELU(), nn.Sequential(nn.Linear(200, 70, bias=bias))).eval()
    x = torch.randn(3, 5, 96, generator=generator)
    with torch.no_grad():
        expected = model(x)
        accelerate(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_accelerated_linears_go_through_our_kernel(monkeypatch, llama):
    calls = []

    def counted(x, weight, bias=None):
        calls.append(tuple(weight.shape))
        return torch.nn.functional.linear(x, weight, bias)

    monkeypatch.setattr("tsdfm.pipeline.models.transformers.linear", counted)
    open_judge(str(llama), CPU).score_tokens([[1, 2, 3]])
    assert len(calls) == 2 * 7  # two blocks: q, k, v, o, gate, up, down; the head is computed apart


def refused(name, *words):
    with pytest.raises(InputError) as caught:
        open_judge(str(name), CPU)
    message = str(caught.value)
    assert "\n" not in message
    assert str(name) in message
    for word in words:
        assert word in message, message


def test_models_that_are_no_judge_are_refused(tiny_models):
    refused(tiny_models.mask, "kind 'denoiser'", "causal LM")
    refused(tiny_models.nce, "kind 'nce'", "causal LM")
    refused("/nowhere", "no such model folder")
    refused("/nowhere/model.gguf", "no such file")


def test_the_compass_is_no_judge_in_any_clothes(tmp_path):
    refused(embedded("compass"), "never shares weights with the compass")
    opened = load(embedded("compass"))
    save(tmp_path / "copy", opened.network, opened.vocabulary, None)  # float32 now: another fingerprint, the same weights
    assert load(tmp_path / "copy").fingerprint != opened.fingerprint
    refused(tmp_path / "copy", "never shares weights with the compass")
    assert isinstance(opened.network, CausalLM)


def test_a_bidirectional_model_is_refused(tmp_path, transformers):
    config = transformers.BertConfig(vocab_size=300, intermediate_size=48, **SIZES)
    scattered(transformers.BertLMHeadModel(config)).save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer.json").write_text(vocabulary().to_json())
    refused(tmp_path / "bert", "causal LM")


def test_a_head_that_is_more_than_a_product_is_refused(tmp_path, transformers):
    config = transformers.CohereConfig(vocab_size=300, intermediate_size=48, logit_scale=0.3, **SIZES)
    scattered(transformers.CohereForCausalLM(config)).save_pretrained(tmp_path / "scaled")
    (tmp_path / "scaled" / "tokenizer.json").write_text(vocabulary().to_json())
    refused(tmp_path / "scaled", "more than a head of its hidden states")


def test_pickled_weights_are_refused(tmp_path, llama):
    shutil.copytree(llama, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    refused(tmp_path / "pickled", "cannot open it", "safetensors")


def test_an_unreadable_gguf_is_refused(tmp_path, transformers):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(60))
    refused(tmp_path / "broken.gguf", "cannot open it")


def test_without_transformers_the_way_to_get_it_is_named(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused(llama, "needs transformers", "pip install")


def test_the_hub_gives_a_snapshot_without_pickles_or_code(llama, monkeypatch):
    asked: dict[str, Any] = {}

    def download(repository, revision, allow_patterns):
        asked.update(repository=repository, revision=revision, patterns=allow_patterns)
        return str(llama)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    judge = open_judge("hub:somebody/judge@v2", CPU)
    assert (asked["repository"], asked["revision"]) == ("somebody/judge", "v2")
    assert not any(pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in asked["patterns"])
    assert (judge.name, judge.fingerprint) == ("hub:somebody/judge@v2", open_judge(str(llama), CPU).fingerprint)


def test_a_hub_name_that_cannot_be_had_is_refused(monkeypatch):
    def download(*arguments, **options):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(WorkError, match=r"judge hub:somebody/judge: the Hub can't be reached .*network"):
        open_judge("hub:somebody/judge", CPU)


def test_fingerprints_follow_the_files(llama, tmp_path):
    before = open_judge(str(llama), CPU).fingerprint
    shutil.copytree(llama, tmp_path / "copy")
    assert open_judge(str(tmp_path / "copy"), CPU).fingerprint == before
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert open_judge(str(tmp_path / "copy"), CPU).fingerprint != before
