"""Other people's tokenizers, from `pretrain --tokenizer` to a sound dataset, whatever their ids and their own tokens."""

import json
import shutil

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tests.support import assert_refused, make_dataset, tree, write_corpus
from tsdfm.pipeline.dataset.verify import verify
from tsdfm.pipeline.models.folder import load
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.text.split import split_of
from tsdfm.pipeline.training.loop.checkpoint import HEADER_FILE

WORDS = [*(f"{a}{b}" for a in ("number", "the", "sees", "follows", "greets", "leaves", "and", "sleeps", "until", "day") for b in ("",)),
         "fox", "dog", "bird", "cat", "horse", ":", ",", ".", *"0123456789", *(f"##{digit}" for digit in range(10))]
SMALL = ["--length", 8, "--hidden-size", 16, "--n-blocks", 1, "--n-heads", 1, "--updates", 2, "--batch-size", 4, "--set", "optim.warmup=1",
         "--set", "optim.log_every=1"]


def bert() -> Tokenizer:
    """[MASK] at id 4, as bert-base-cased's neighbours have it."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    tokenizer.add_special_tokens(names[:5])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def holes() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({name: 3 * i for i, name in enumerate(["[UNK]", "</s>", *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def letters() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate("?abcdefghijklmnopqrstuvwxyzN0123456789 :,.\n")}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return tokenizer


TOKENIZERS = {"bert": bert, "holes": holes, "letters": letters}


@pytest.mark.parametrize("source", ["mask", "uniform"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_from_any_tokenizer_to_a_sound_dataset(cli, tmp_path, tiny_models, name, source):
    corpus = write_corpus(tmp_path / "corpus.txt", 300)
    tokenizer = TOKENIZERS[name]()
    tokenizer.save(str(tmp_path / "words.json"))
    outcome = cli("pretrain", "--corpus", corpus, "--tokenizer", tmp_path / "words.json", "--out", tmp_path / "teacher", "--source", source, "--cond-dim", 16, *SMALL)
    assert outcome.code == 0, outcome.stderr
    words = load(tmp_path / "teacher").vocabulary
    assert words.mask_id not in {tokenizer.token_to_id(word) for word in WORDS}
    outcome = cli("fit-compass", "--corpus", corpus, "--teacher", tmp_path / "teacher", "--out", tmp_path / "compass", *SMALL[2:])
    assert outcome.code == 0, outcome.stderr
    make_dataset(tmp_path / "out", tiny_models, teacher=str(tmp_path / "teacher"), compass=str(tmp_path / "compass"), trajectories=4)
    assert verify(open_store(str(tmp_path / "out")))[1] == []
    told = cli("evaluate", "--model", tmp_path / "teacher", "--evaluator", tmp_path / "compass", "--steps", 2, "-n", 4, "--corpus", corpus, "--json")
    assert told.code == 0, told.stderr


def test_the_end_of_a_text_may_be_named(cli, tmp_path):
    corpus = write_corpus(tmp_path / "corpus.txt", 300)
    letters().save(str(tmp_path / "words.json"))
    arguments = ["pretrain", "--corpus", corpus, "--tokenizer", tmp_path / "words.json", "--out", tmp_path / "teacher", *SMALL]
    assert_refused(cli(*arguments, "--eos", "<none>"), "--eos <none>", "no such token")
    assert_refused(cli("pretrain", "--corpus", corpus, "--eos", ".", "--out", tmp_path / "teacher"), "eos", "tokenizer")
    assert cli(*arguments, "--eos", ".").code == 0
    words = load(tmp_path / "teacher").vocabulary
    assert words.eos_id == letters().token_to_id(".")
    assert words.size == letters().get_vocab_size() + 1
    assert json.loads((tmp_path / "teacher" / "training.json").read_text())["config"]["eos"] == "."


def test_a_tokenizer_that_was_replaced_is_no_longer_that_of_the_training(cli, tmp_path):
    """Story: another one of the same size was put in its place, and the weights went on with words of other ids."""
    corpus, file, state = write_corpus(tmp_path / "corpus.txt", 300), tmp_path / "words.json", tmp_path / "teacher.training" / HEADER_FILE
    arguments = ["pretrain", "--corpus", corpus, "--tokenizer", file, "--out", tmp_path / "teacher", *SMALL]
    letters().save(str(file))
    assert cli(*arguments).code == 0
    before = tree(tmp_path / "teacher")
    ids = letters().get_vocab()
    other = Tokenizer(models.WordLevel(ids | {"a": ids["b"], "b": ids["a"]}, unk_token="?"))
    other.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    other.save(str(file))
    assert_refused(cli(*arguments), "teacher: was trained with another tokenizer", str(file))
    shutil.move(tmp_path / "teacher", tmp_path / "finished")
    for more in ([], ["--plan"]):
        assert_refused(cli(*arguments, *more), "holds a run of another config", "tokenizer_fingerprint")
    header = json.loads(state.read_text())
    del header["identity"]["tokenizer_fingerprint"]  # as versions before wrote it: such a training goes on
    state.write_text(json.dumps(header))
    letters().save(str(file))
    assert cli(*arguments).code == 0
    assert tree(tmp_path / "teacher") == before


def test_a_command_says_which_corpus_it_takes_and_what_it_left_out(cli, tmp_path, monkeypatch):
    corpus = tmp_path / "texts.jsonl"
    corpus.write_text("".join(json.dumps({"text": f"text {i % 200} of a few words, and of a few more\u200c"}) + "\n" for i in range(201)) + '{"text": null}\n')
    outcome = cli("pretrain", "--corpus", corpus, "--vocab-size", 270, "--out", tmp_path / "teacher", *SMALL)
    assert outcome.code == 0, outcome.stderr
    assert f"corpus: {corpus}\n" in outcome.stderr
    assert "200 documents; left out: 1 duplicate document, 1 null text" in outcome.stderr
    record = json.loads((tmp_path / "teacher" / "training.json").read_text())
    assert record["corpus"]["left_out"] == {"duplicate documents": 1, "null texts": 1}
    monkeypatch.setattr("tsdfm.pipeline.text.documents.python_stamp", lambda: "of the sentences")
    monkeypatch.setattr("tsdfm.pipeline.text.documents.python_documents", lambda progress: [f"A sentence of {i} words." for i in range(300)])
    outcome = cli("pretrain", "--corpus", "python", "--vocab-size", 270, "--out", tmp_path / "other", *SMALL)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stderr.startswith("corpus: python, English prose")


class Verses:
    """A short book in place of the Bible."""

    split_of = staticmethod(split_of)

    def documents(self):
        return iter([f"Verse {i} of a few words." for i in range(300)])


def test_without_a_corpus_it_is_the_one_that_is_the_same_everywhere_and_models_of_another_are_named(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("tsdfm.pipeline.text.documents.Bible", Verses)
    monkeypatch.setattr("tsdfm.pipeline.text.documents.SHA256", "of the verses")
    texts = write_corpus(tmp_path / "texts.txt", 300)
    outcome = cli("pretrain", "--corpus", texts, "--vocab-size", 270, "--out", tmp_path / "other", *SMALL)
    assert outcome.code == 0, outcome.stderr
    outcome = cli("pretrain", "--vocab-size", 270, "--out", tmp_path / "teacher", *SMALL)
    assert outcome.stderr.startswith("corpus: bible, the Bible in Basic English")
    assert json.loads((tmp_path / "teacher" / "training.json").read_text())["config"]["corpus"]["path"] == "bible"
    told = f"corpus: {tmp_path / 'other'} was trained on another, {texts}; --corpus {texts} takes that\n"
    outcome = cli("fit-compass", "--teacher", tmp_path / "other", "--out", tmp_path / "compass", *SMALL[2:])
    assert outcome.code == 0, outcome.stderr
    assert outcome.stderr.startswith("corpus: bible, the Bible")
    assert told in outcome.stderr
    evaluate = ["evaluate", "--evaluator", tmp_path / "compass", "--steps", 2, "-n", 2]
    for model, corpus, named in (("other", "bible", True), ("other", texts, False), ("teacher", "bible", False)):
        outcome = cli(*evaluate, "--model", tmp_path / model, "--corpus", corpus)
        assert outcome.code == 0, outcome.stderr
        assert (told in outcome.stderr) == ("was trained on another" in outcome.stderr) == named
