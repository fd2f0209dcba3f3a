"""Judges by name: ours, transformers folders made here, GGUF, and every name that must be refused in one line."""

import json
import math
import os
import shutil
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.loopback_hub import folder_files
from tests.support import vocabulary
from tsdfm.pipeline.evaluation import open_judge as module
from tsdfm.pipeline.evaluation.open_judge import open_judge
from tsdfm.pipeline.models.causal import CausalLM
from tsdfm.pipeline.models.folder import embedded, load, save
from tsdfm.pipeline.models.transformers import CausalModel, accelerate
from tsdfm.pipeline.text.vocabulary import Vocabulary
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


def test_texts_longer_than_the_context_are_scored_in_windows(gpt2, transformers):
    """The usual strided perplexity of transformers: labels of -100 where a window before has scored."""
    judge, model = open_judge(str(gpt2), CPU), transformers.GPT2LMHeadModel.from_pretrained(gpt2)
    tokens = np.random.default_rng(2).integers(299, size=70).tolist()
    whole, nats, end = torch.tensor([[judge.start_id, *tokens]]), 0.0, 1
    for begin in range(0, 70, 16):
        stop = min(begin + 32, 70) + 1
        part = whole[:, begin:stop - 1]  # 32 positions at the most; the last token is only predicted
        logprob = model(input_ids=part).logits[0].double().log_softmax(-1)
        nats -= sum(float(logprob[place - 1 - begin, whole[0, place]]) for place in range(end, stop))
        end = stop
        if stop == 71:
            break
    found = judge.score_tokens([tokens])
    assert found.nats[0] == pytest.approx(nats, rel=1e-5)
    assert (found.tokens[0], found.in_windows) == (70, 1)


def bpe(transformers, folder, mask, **config):
    """A GPT-2 in a folder whose tokenizer, saved by transformers, does as ours, with or without [MASK]."""
    settings = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
    scattered(transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings | config))).save_pretrained(folder)
    words = json.loads(vocabulary().to_json())
    if not mask:
        words["added_tokens"] = [token for token in words["added_tokens"] if token["content"] != "[MASK]"]
    (folder / "raw.json").write_text(json.dumps(words))
    transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "raw.json"), eos_token="[EOS]").save_pretrained(folder)
    (folder / "raw.json").unlink()
    assert load_vocabulary_or_none(folder) != vocabulary().fingerprint  # written otherwise
    return folder


def load_vocabulary_or_none(folder):
    return Vocabulary.load(folder).fingerprint if "[MASK]" in (folder / "tokenizer.json").read_text() else None


@pytest.mark.parametrize("mask", [True, False])
def test_a_judge_of_the_models_vocabulary_up_to_mask_reads_its_tokens(tmp_path, transformers, mask):
    folder = bpe(transformers, tmp_path, mask)
    tokens = np.random.default_rng(0).integers(299, size=(5, 20))
    judge = open_judge(str(folder), CPU, [vocabulary(), vocabulary(310)])
    assert judge.reads_tokens(vocabulary().fingerprint)
    assert not judge.reads_tokens(vocabulary(310).fingerprint)
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    found = judge.score(tokens, ["never read"] * 5, vocabulary().fingerprint)
    np.testing.assert_allclose(found.nats, direct(model, 0, tokens.tolist()), rtol=1e-4)


def test_a_judge_without_a_tokenizer_or_of_another_is_refused(tmp_path, transformers, llama):
    for name in ("without", "wider", "knows-nothing"):
        shutil.copytree(llama, tmp_path / name)
    (tmp_path / "without" / "tokenizer.json").unlink()
    refused(tmp_path / "without", "tokenizer")
    (tmp_path / "wider" / "tokenizer.json").write_text(vocabulary(320).to_json())
    refused(tmp_path / "wider", "rows for 300 ids")
    bare: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "pre_tokenizer": None,
            "post_processor": None, "decoder": None, "model": {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}}
    (tmp_path / "knows-nothing" / "tokenizer.json").write_text(json.dumps(bare))
    (tmp_path / "knows-nothing" / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<unk>"}))
    refused(tmp_path / "knows-nothing", "no tokenizer, or one that knows no text")


def test_a_gpt2_without_any_tokenizer_file_is_refused(tmp_path, transformers):
    config = transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=32)
    scattered(transformers.GPT2LMHeadModel(config)).save_pretrained(tmp_path)
    refused(tmp_path, "tokenizer")


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"num_hidden_layers": 10**9}, {"hidden_size": 16384},
                                    {"intermediate_size": 10**9}, {"max_position_embeddings": -1, "vocab_size": 10**8}])
def test_a_config_of_a_larger_model_is_refused_by_the_weights_header(tmp_path, llama, change):
    shutil.copytree(llama, tmp_path / "huge")
    config = json.loads((tmp_path / "huge" / "config.json").read_text())
    (tmp_path / "huge" / "config.json").write_text(json.dumps({**config, **change}))
    refused(tmp_path / "huge", "larger model than its files hold")


def test_a_folder_that_lacks_weights_is_refused(tmp_path, llama):
    shutil.copytree(llama, tmp_path / "less")
    weights = load_file(tmp_path / "less" / "model.safetensors")
    kept = {name.replace("down_proj", "elsewhere"): tensor for name, tensor in weights.items()}
    save_file(kept, tmp_path / "less" / "model.safetensors", metadata={"format": "pt"})
    refused(tmp_path / "less", "lack 2 tensors", "down_proj")


def test_weights_that_are_not_finite_are_refused(tmp_path, llama):
    shutil.copytree(llama, tmp_path / "nan")
    weights = load_file(tmp_path / "nan" / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, tmp_path / "nan" / "model.safetensors", metadata={"format": "pt"})
    refused(tmp_path / "nan", "not finite")


def test_a_pipe_among_a_judges_files_is_refused(tmp_path, llama):
    shutil.copytree(llama, tmp_path / "pipe")
    (tmp_path / "pipe" / "tokenizer.json").unlink()
    os.mkfifo(tmp_path / "pipe" / "tokenizer.json")
    refused(tmp_path / "pipe", "not a regular file")


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
    model = SimpleNamespace(config=SimpleNamespace(bos_token_id=None, eos_token_id=None), get_input_embeddings=lambda: nn.Embedding(9, 1))
    opened = CausalModel("x", model, nn.Identity(), torch.zeros(9, 1), None)
    assert module._start("x", opened, tokenizer) == vocab[expected]


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
    judge = open_judge(str(llama), CPU)
    calls.clear()
    judge.score_tokens([[1, 2, 3]])
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
    refused(tiny_models.contrast, "kind 'contrast'", "causal LM")
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


def write_gguf(path, blocks):
    """A Llama of two blocks over our vocabulary, whose header says how many it has."""
    gguf = pytest.importorskip("gguf")
    width, inner, words, rng = 32, 48, vocabulary(), np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(24)
    writer.add_embedding_length(width)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(300)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([words.tokenizer.id_to_token(number) for number in range(300)])
    writer.add_token_types([3 if number in (words.eos_id, words.mask_id) else 1 for number in range(300)])
    writer.add_token_merges([" ".join(pair) for pair in json.loads(words.to_json())["model"]["merges"]])
    writer.add_bos_token_id(words.eos_id)
    writer.add_eos_token_id(words.eos_id)
    shapes = {"token_embd": (300, width), "output_norm": (width,)}
    for block in range(2):
        shapes |= {f"blk.{block}.attn_{part}": (width, width) for part in ("q", "k", "v", "output")}
        shapes |= {f"blk.{block}.{part}": (width,) for part in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{block}.ffn_gate": (inner, width), f"blk.{block}.ffn_up": (inner, width), f"blk.{block}.ffn_down": (width, inner)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(size=shape, scale=0.2).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_of_the_models_vocabulary_reads_its_tokens(tmp_path, transformers):
    judge = open_judge(str(write_gguf(tmp_path / "tiny.gguf", 2)), CPU, [vocabulary()])
    assert (judge.longest, judge.reads_tokens(vocabulary().fingerprint)) == (24, True)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    tokens = np.random.default_rng(0).integers(299, size=(3, 20))
    found = judge.score(tokens, ["never read"] * 3, vocabulary().fingerprint)
    np.testing.assert_allclose(found.nats, direct(model, vocabulary().eos_id, tokens.tolist()), rtol=1e-4)


@pytest.mark.parametrize("blocks", [3, 10**6])
def test_a_gguf_of_more_blocks_than_it_holds_is_refused(tmp_path, transformers, blocks):
    refused(write_gguf(tmp_path / "huge.gguf", blocks), "larger model than its files hold")


def test_without_transformers_the_way_to_get_it_is_named(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused(llama, "needs transformers", "pip install")


def test_the_hub_gives_a_snapshot_without_pickles_or_code(llama, hub):
    repo = hub.add("model", "somebody/judge")
    repo.refs["v2"] = repo.commit(folder_files(llama) | {"modeling.py": b"raise SystemExit", "pytorch_model.bin": b"\x80"})
    judge = open_judge("hub:somebody/judge@v2", CPU)
    assert not any(call.endswith((".py", ".bin")) for call in hub.calls)
    assert (judge.name, judge.fingerprint) == ("hub:somebody/judge@v2", open_judge(str(llama), CPU).fingerprint)


def test_a_hub_name_that_cannot_be_had_is_refused(hub):
    hub.stop()
    with pytest.raises(WorkError, match=r"hub:somebody/judge: the Hub can't be reached .*network"):
        open_judge("hub:somebody/judge", CPU)


def test_fingerprints_follow_the_files(llama, tmp_path):
    before = open_judge(str(llama), CPU).fingerprint
    shutil.copytree(llama, tmp_path / "copy")
    assert open_judge(str(tmp_path / "copy"), CPU).fingerprint == before
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert open_judge(str(tmp_path / "copy"), CPU).fingerprint != before
