"""`generate --prompts` from the command line: what can't be is told in one line before anything is made, and workers need no file."""

import gzip
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.support import LENGTH, assert_refused, denoiser_config, make_dataset, present, scatter_weights, tiny_config, tree
from tsdfm.jobs.generate import worker
from tsdfm.jobs.generate.worker import Order, check_alike
from tsdfm.pipeline import open_dataset, verify
from tsdfm.pipeline.dataset.manifest import claim, plan
from tsdfm.pipeline.flow.opening import identity_of, open_models
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import save
from tsdfm.pipeline.storage.store import LocalStore
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import WorkError
from tsdfm.schemas.generate import GenerateConfig

CPU = torch.device("cpu")
LONG = "the quick brown fox jumps over the lazy dog " * 20


@pytest.fixture
def refused(cli, tiny_models, tmp_path, monkeypatch):
    """refused(name, content, *words, flags=...): the file is refused, with its name and the words, and OUT is not made."""
    monkeypatch.setattr(Denoiser, "hidden", None)

    def check(name: str, content: bytes | None, *words: str, flags: tuple[Any, ...] = (), teacher: Any = None) -> None:
        file, out = tmp_path / name, tmp_path / "out"
        if content is not None:
            file.write_bytes(content)
        model = ["--teacher", teacher or tiny_models.mask, "--compass", "none", "--arm", "blind"]
        for more in ([], ["--plan"]):
            assert_refused(cli("generate", "--out", out, *model, "--prompts", file, "--steps", 2, *flags, *more), *words)
        assert not out.exists()

    return check


def test_files_that_cannot_be(refused, tmp_path):
    refused("nowhere.txt", None, "nowhere.txt: cannot be read")
    refused("a.bin", b"x", "a.bin: not a kind of file")
    refused("b.txt", b"\x00\xff\xfe\n", "b.txt: not UTF-8")
    refused("c.txt.gz", b"not compressed", "c.txt.gz: ")
    refused("d.txt.gz", gzip.compress(b"the quick\n" * 9)[:-9], "d.txt.gz: ")
    refused("a.txt", b"\n \n", "a.txt: holds no prompt")
    refused("e.txt", b"", "e.txt: holds no prompt")
    refused("f.txt", b'{"prompt": "a"}\n', "name it .jsonl")
    refused("a.jsonl", b'{"text": "a"}\n', "a.jsonl:1", "no text field 'prompt'", "--prompt-field")
    refused("b.jsonl", b'{"prompt": "a"}\n{"prompt": ""}\n', "b.jsonl: prompt 2 is empty")
    refused("c.jsonl", b'{"prompt": null}\n', "c.jsonl: prompt 1 is null")
    refused("d.jsonl", b'{"prompt": ["a"]}\n', "not text")
    refused("e.jsonl", b'{"prompt": "a"\n', "e.jsonl")
    refused("a.parquet", b"PAR1", "a.parquet: ")
    pq.write_table(pa.table({"prompt": [1, 2]}), tmp_path / "n.parquet")
    refused("n.parquet", None, "column 'prompt' holds int64, not text")
    pq.write_table(pa.table({"prompt": ["a", None]}), tmp_path / "m.parquet")
    refused("m.parquet", None, "m.parquet: prompt 2 is null")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "t.parquet")
    refused("t.parquet", None, "--prompt-field")
    (tmp_path / "folder").mkdir()
    refused("folder", None, "folder: ")


def test_prompts_that_cannot_be(refused):
    refused("a.txt", f"the\n\n{LONG}\n".encode(), "a.txt: prompt 2: has", f"a text of the model {LENGTH}", "one to write", "shorten it")
    refused("b.txt", b"the quick\n", "b.txt: prompt 1: has", "a text of the model 1,", flags=("--length", 1))
    refused("c.txt", b"the ___ fox ___ dog ___\n", "c.txt: prompt 1: has", "one to write in each gap", flags=("--prompt-gaps", "--length", 5))
    refused("d.txt", b"the\n___\n", "d.txt: prompt 2: is no token of the model", flags=("--prompt-gaps",))
    for special in ("[MASK]", "[EOS]"):
        refused("e.txt", f"the\nthe {special} fox\n".encode(), f"e.txt: prompt 2: the model has no token for '{special}'", "___")


def test_settings_that_cannot_be(refused, cli, tmp_path):
    refused("a.txt", b"the\nfox\n", "a.txt: has 2 prompts, which are 6 trajectories of 3 each", "--trajectories", flags=("--per-prompt", 3, "--trajectories", 7))
    refused("a.txt", None, "per_prompt", flags=("--per-prompt", 0))
    assert_refused(cli("generate", "--out", tmp_path / "out", "--per-prompt", 2), "per_prompt: says how prompts are taken", "give prompts a file")
    assert_refused(cli("generate", "--out", tmp_path / "out", "--prompt-gaps"), "prompt_gaps: says how prompts are taken")


def of_words(folder, decoder=None):
    """A teacher whose tokenizer knows a few words, and has a token for all others."""
    entries = {name: number for number, name in enumerate(["[UNK]", "[EOS]", "[MASK]", "the", "fox", "dog"])}
    tokenizer = Tokenizer(models.WordLevel(entries, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.WhitespaceSplit(), decoder or decoders.WordPiece()
    words = Vocabulary(tokenizer, "words")
    network = Denoiser(denoiser_config("mask", words))
    scatter_weights(network, 1)
    save(folder, network, words, None)
    return folder


def test_words_that_the_teacher_does_not_have(refused, tmp_path):
    teacher = of_words(tmp_path / "words")
    for text, word in (("the cat", "'cat'"), ("[MASK] fox", "'[MASK]'"), ("the [UNK]", "'[UNK]'"), ("[EOS]", "'[EOS]'"), ("fox \u2603", "'\u2603'")):
        refused("a.txt", f"the\n{text}\n".encode(), f"a.txt: prompt 2: the model has no token for {word}", teacher=teacher)
    refused("b.txt", b"  x\n", "b.txt: prompt 1: ", teacher=teacher)


def test_no_spelling_of_a_prompt_is_an_end(refused, tmp_path):
    """A tokenizer that folds letters turns another word than its end token into that."""
    from tokenizers import normalizers

    entries = {name: number for number, name in enumerate(["[UNK]", "end", "[MASK]", "the", "fox"])}
    tokenizer = Tokenizer(models.WordLevel(entries, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    words = Vocabulary.of(tokenizer, "words", "end")
    network = Denoiser(denoiser_config("mask", words).model_copy(update={"end_id": words.eos_id}))
    scatter_weights(network, 1)
    save(tmp_path / "words", network, words, None)
    for text in ("the END", "the end", "End fox"):
        refused("a.txt", f"the\n{text}\n".encode(), "a.txt: prompt 2: the model has no token for", teacher=tmp_path / "words")


def test_a_teacher_whose_tokens_decode_to_nothing(refused, tmp_path):
    from tokenizers import Regex

    teacher = of_words(tmp_path / "mute", decoders.Replace(Regex(".+"), ""))
    refused("a.txt", b"the fox\n", "a.txt: prompt 1: ", "decodes to nothing", teacher=teacher)


def test_changed_prompts_are_told_before_anything_is_made(refused, tiny_models, tmp_path, cli, monkeypatch):
    """Also of a run that was cut, and by `--plan`; the file is named."""
    file, out = tmp_path / "p.txt", tmp_path / "out"
    file.write_text("the\nfox\n")
    monkeypatch.undo()
    make_dataset(out, tiny_models, prompts=str(file), per_prompt=2, trajectories=None)
    config = GenerateConfig.model_validate(tiny_config(tmp_path / "cut", tiny_models) | {"prompts": str(file), "per_prompt": 2, "trajectories": None})
    claim(LocalStore(tmp_path / "cut"), identity_of(config, open_models(config, CPU), CPU))
    before = tree(out)
    file.write_text("the\ndog\n")
    flags = ["--teacher", tiny_models.mask, "--compass", tiny_models.ar, "--arm", "both", "--set", "shard_size=4", "--steps", 8,
             "--candidates", 4, "--set", "rollout.batch_size=4", "--prompts", file, "--per-prompt", 2]
    for folder in ("out", "cut"):
        for more in ([], ["--plan"]):
            assert_refused(cli("generate", "--out", tmp_path / folder, *flags, *more), f"{folder}: holds a dataset of another config", "prompts.sha256", str(file))
    assert tree(out) == before


def test_a_worker_needs_no_file_of_prompts(tiny_models, tmp_path):
    """Their tokens come with the shard; what it makes is what this process makes, and another teacher is found out all the same."""
    file = tmp_path / "p.txt"
    file.write_text("the quick\nmasks fall\nenergy\n")
    made = make_dataset(tmp_path / "made", tiny_models, prompts=str(file), per_prompt=2, trajectories=None)
    config = GenerateConfig.model_validate(tiny_config(tmp_path / "out", tiny_models) | {"prompts": str(file), "per_prompt": 2, "trajectories": None})
    given = present(open_models(config, CPU).given)
    file.unlink()
    store = LocalStore(tmp_path / "out")
    claim(store, made.identity)
    order = Order.of(config, made.identity, str(tmp_path / "out"))
    for item in plan(made.identity):
        worker.make(order, item, given.of_trajectories(item.start, item.stop))
        assert (tmp_path / "out" / item.path).read_bytes() == (tmp_path / "made" / item.path).read_bytes()
    other = replace(open_models(order.config.model_copy(update={"compass": "none", "arm": "blind"}), CPU))
    with pytest.raises(WorkError, match=r"differs from the driver.s"):
        check_alike(order.config, other, made.identity, CPU)
    torch.set_num_threads(1)


@pytest.mark.slow
def test_on_ray(tiny_models, tmp_path, cli, head):
    """A dataset of the command, of several shards and workers, is that of this process, byte for byte."""
    file = tmp_path / "p.txt"
    file.write_text("the quick\nmasks fall\nenergy\n")
    make_dataset(tmp_path / "made", tiny_models, prompts=str(file), per_prompt=3, trajectories=None)
    done = cli("generate", "--out", tmp_path / "out", "--teacher", tiny_models.mask, "--compass", tiny_models.ar, "--arm", "both", "--set", "shard_size=4",
               "--steps", 8, "--candidates", 4, "--set", "rollout.batch_size=4", "--prompts", file, "--per-prompt", 3, "--workers", 2, "--address", head.address)
    assert done.code == 0, done.stderr
    assert tree(tmp_path / "out" / "data") == tree(tmp_path / "made" / "data")
    assert verify(str(tmp_path / "out"))[1] == []
    assert open_dataset(str(tmp_path / "out")).row(8).text.startswith("energy")
