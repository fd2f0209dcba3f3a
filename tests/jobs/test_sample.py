"""`sample` with prompts: what is given stands in every text, the rest is written around it, and what can't be is told in a line."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.support import LENGTH, assert_refused, denoiser_config, scatter_weights
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import load_model, save
from tsdfm.pipeline.text.vocabulary import Vocabulary

SOURCES = pytest.mark.parametrize("source", ["mask", "uniform"])


@pytest.fixture
def write(cli, tiny_models):
    """write(source, *flags) -> the report of `sample --json`."""
    def run(source, *flags):
        done = cli("sample", "--model", getattr(tiny_models, source), "--steps", 4, "-n", 3, "--json", *flags)
        assert done.code == 0, done.stderr
        return json.loads(done.stdout)

    return run


@SOURCES
def test_a_beginning(write, source):
    report = write(source, "--prompt", "the quick")
    assert [each["prompt"] for each in report["prompted"]] == ["the quick"] * 3
    assert report["texts"] == ["the quick" + "".join(each["written"]) for each in report["prompted"]]
    assert len(set(report["texts"])) == 3
    assert write(source, "--prompt", "the quick") == report != write(source, "--prompt", "the quick", "--seed", 1)
    assert write(source)["prompted"] is None


@SOURCES
def test_gaps(write, tiny_models, source):
    """Given words stand where they were put, gaps share the rest evenly, and the blank before a gap is the model's to write."""
    words = load_model(str(tiny_models.mask)).vocabulary
    given = [len(words.encode([text])[0]) for text in ("the quick", " fox", " dog")]
    for text in ("the quick ___ fox ___ dog", "the quick______ fox____ dog"):
        for each, whole in zip((report := write(source, "--infill", text, "--clocks", "spaced"))["prompted"], report["texts"], strict=True):
            first, second = each["written"]
            assert whole == f"the quick{first} fox{second} dog"
            assert each["prompt"] == text
    assert LENGTH - sum(given) > 2
    for text, gaps in (("___ fox", 1), ("the quick ___", 1), ("___ fox ___", 2), ("the quick ___\n ___ dog", 1)):
        assert {len(each["written"]) for each in write(source, "--infill", text)["prompted"]} == {gaps}, text


@pytest.mark.parametrize("name", ["p.txt", "p.TXT.gz", "p.jsonl", "p.parquet", "p.csv"])
def test_files_of_prompts(write, tmp_path, name):
    """Every text is that of its place: `n` to each prompt, in the file's order."""
    import gzip

    path, prompts = tmp_path / name, ["the quick", "masks fall, in", " the"]
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"prompt": prompts, "other": [1, 2, 3]}), path)
    else:
        text = ("".join(json.dumps({"prompt": each}) + "\n" for each in prompts) if name.endswith("jsonl")
                else "prompt\n" + "".join(f'"{each}"\n' for each in prompts) if name.endswith("csv") else "\n" + "\n\r\n".join(prompts))
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    report = write("mask", "--prompts", path)
    assert [each["prompt"] for each in report["prompted"]] == [each for each in prompts for _ in range(3)]
    assert all(text.startswith(each["prompt"]) for text, each in zip(report["texts"], report["prompted"], strict=True))
    assert report["texts"][:3] == write("mask", "--prompt", "the quick")["texts"]


def test_what_people_see(cli, tiny_models, tmp_path):
    """A line with each prompt, and under it its texts."""
    (tmp_path / "p.txt").write_text("the quick\nmasks\x1b fall\n")
    done = cli("sample", "--model", tiny_models.mask, "--steps", 2, "-n", 2, "--prompts", tmp_path / "p.txt")
    heads = [line for line in done.stdout.splitlines() if line.startswith("> ")]
    assert heads == ["> the quick", "> masks\u241b fall"]
    assert done.stdout.count("the quick") == 3
    config = tmp_path / "c.yaml"
    config.write_text(cli("sample", "--prompt", "the quick", "--model", tiny_models.mask, "--steps", 2, "-n", 1, "--print-config").stdout)
    assert cli("sample", config).stdout.startswith("> the quick\n\nthe quick")


def test_progress_is_told_of_more_than_a_batch(cli, tiny_models):
    """Beside the texts, not among them; of a few texts there is nothing to tell."""
    asked = ["sample", "--model", tiny_models.mask, "--steps", 2, "-n", 5, "--json"]
    several, one = cli(*asked, "--batch-size", 2), cli(*asked)
    assert "sampling texts: 5/5" in several.stderr
    assert one.stderr == ""
    assert len(json.loads(several.stdout)["texts"]) == len(json.loads(one.stdout)["texts"]) == 5


def test_prompts_that_cannot_be(cli, tiny_models, tmp_path, monkeypatch):
    """One line each, before the model writes anything."""
    monkeypatch.setattr(Denoiser, "hidden", None)

    def refused(flag, value, *words, **files):
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_bytes(text)
        flags = flag if isinstance(flag, list) else [flag, value]
        outcome = cli("sample", "--model", tiny_models.mask, "--steps", 2, *flags)
        assert_refused(outcome, *words)
        assert outcome.code == 2

    long = "the quick brown fox jumps over the lazy dog " * 20
    refused("--prompt", "", "prompt: is empty")
    refused("--prompt", long, "prompt: has", "a text of the model 16", "shorten it")
    refused(["--prompt", "the quick", "--length", "1"], None, "prompt: has", "a text of the model 1,", "--length")
    refused("--prompt", "x\udcff", "is not UTF-8")
    refused("--infill", "the quick", "infill: has no gap", "___")
    refused("--infill", "the __ quick", "infill: has no gap")
    refused("--infill", "___ ___", "infill: has gaps and no words")
    refused("--infill", f"{long}___ a", "infill: has")
    refused(["--prompt", "hi ___ he", "--prompt-gaps"], None, "prompt_gaps: says how prompts are taken, and there are none")
    refused(["--prompt", "hi", "--prompt-field", "x"], None, "prompt_field: says how prompts are taken, and there are none")
    refused(["--prompt", "a", "--infill", "a ___"], None, "prompt and infill: give only one")
    refused(["--prompt", "a", "--prompts", "b.txt"], None, "prompt and prompts: give only one")
    refused("--prompts", tmp_path / "nowhere.txt", "nowhere.txt: cannot be read")
    refused("--prompts", tmp_path, str(tmp_path), "not a kind of file")
    refused("--prompts", tmp_path / "a.bin", "a.bin: not a kind of file", a_bin=b"x")
    refused("--prompts", tmp_path / "a.txt", "a.txt: holds no prompt", a_txt=b"\n \n")
    refused("--prompts", tmp_path / "b.txt", "b.txt: not UTF-8", b_txt=b"\xff\xfe\n")
    refused("--prompts", tmp_path / "c.txt", "c.txt: prompt 2: has", c_txt=f"the\n\n{long}\n".encode())
    refused("--prompts", tmp_path / "d.txt", "name it .jsonl", d_txt=b'{"prompt": "a"}\n')
    refused("--prompts", tmp_path / "a.jsonl", "no text field 'prompt'; it has text", "--prompt-field", a_jsonl=b'{"text": "a"}\n')
    refused("--prompts", tmp_path / "b.jsonl", "prompt 2 is empty", b_jsonl=b'{"prompt": "a"}\n{"prompt": ""}\n')
    refused("--prompts", tmp_path / "c.jsonl", "prompt 1 is null", c_jsonl=b'{"prompt": null}\n')
    refused("--prompts", tmp_path / "d.jsonl", "holds a number, not text", d_jsonl=b'{"prompt": 3}\n')
    refused("--prompts", tmp_path / "a.parquet", "a.parquet: ", a_parquet=b"PAR1")
    pq.write_table(pa.table({"prompt": [1, 2]}), tmp_path / "n.parquet")
    refused("--prompts", tmp_path / "n.parquet", "column 'prompt' holds int64, not text")


@pytest.fixture
def of_words(tmp_path):
    """A teacher whose tokenizer knows a few words, [MASK] among them, and has a token for all others."""
    entries = {name: number for number, name in enumerate(["[UNK]", "[EOS]", "[MASK]", "the", "fox", "dog"])}
    tokenizer = Tokenizer(models.WordLevel(entries, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece()
    words = Vocabulary(tokenizer, "words")
    network = Denoiser(denoiser_config("mask", words))
    scatter_weights(network, 1)
    save(tmp_path / "words", network, words, None)
    return tmp_path / "words"


def test_words_that_the_model_does_not_have(cli, of_words):
    done = cli("sample", "--model", of_words, "--steps", 2, "-n", 2, "--prompt", "the fox", "--json")
    assert all(text.startswith("the fox ") for text in json.loads(done.stdout)["texts"]), done.stdout
    for text, word in (("the cat", "'cat'"), ("[MASK] fox", "'[MASK]'"), ("the [UNK]", "'[UNK]'"), ("fox \u2603", "'\u2603'")):
        assert_refused(cli("sample", "--model", of_words, "--prompt", text), f"prompt: the model has no token for {word}")
        assert_refused(cli("sample", "--model", of_words, "--infill", f"dog ___ {text}"), f"infill: the model has no token for {word}")
    assert_refused(cli("sample", "--model", of_words, "--prompt", "  "), "prompt: is no token of the model")
