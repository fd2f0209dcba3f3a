"""Tokens in files: those of the documents in memory, whatever is cut, killed or damaged, and made once."""

import errno
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from tests.support import select
from tsdfm.pipeline.storage.cache import corpora_folder
from tsdfm.pipeline.text import documents, stored_text, token_file
from tsdfm.pipeline.text.corpus import prepare, windows_of
from tsdfm.pipeline.text.token_file import TokenJob, TokenStream, one_by_one, token_stream
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.corpus import CorpusConfig

DOCUMENTS = [f"Document {i} is here; {i * i} is the square of {i}, é, 日本, and [MASK] is text." for i in range(300)]
PARTS = ("all", "first", "second", "held_out")


@pytest.fixture(scope="module")
def words():
    return Vocabulary.train(DOCUMENTS, 300)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A corpus of many pieces, in a cache of its own."""
    monkeypatch.setenv("TSDFM_CORPORA", str(tmp_path / "corpora"))
    monkeypatch.setattr(stored_text, "PIECE_BYTES", 2000)
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return CorpusConfig(path=str(path))


def job_of(config, words, part="all"):
    return TokenJob(stored_text.stored_text(config), part, words.to_json(), words.where)


@given(lengths=st.lists(st.integers(0, 5), max_size=8), data=st.data())
def test_a_stream_of_pieces_is_cut_as_one_array(lengths, data):
    whole = np.arange(sum(lengths), dtype=np.uint16)
    stream = TokenStream(np.split(whole, np.cumsum(lengths)[:-1]) if lengths else [])
    start, stop = (data.draw(st.none() | st.integers(-12, 50)) for _ in range(2))
    assert len(stream) == len(whole)
    assert stream[start:stop].tolist() == whole[start:stop].tolist()
    assert stream[start:stop].dtype == torch.int64


@pytest.mark.parametrize("part", PARTS)
def test_tokens_are_those_of_the_documents(config, words, part):
    text = stored_text.stored_text(config)
    assert len(text.facts.pieces) > 5
    assert list(text.documents(part)) == list(select(DOCUMENTS, part))
    expected = torch.from_numpy(words.stream(select(DOCUMENTS, part))).long()
    assert torch.equal(token_stream(text, words, part)[:], expected)


def test_characters_that_the_tokenizer_leaves_out_are_told_of(config, words, caplog):
    """A BPE without an unknown token passes over what it has no entry for, and says nothing. What it has is not told of."""
    text = stored_text.stored_text(config)
    token_stream(text, words, "all")
    assert caplog.messages == []
    letters = {letter: i for i, letter in enumerate(sorted(set("".join(DOCUMENTS)) - set("\u65e5\u672c")))}
    few = Tokenizer(models.BPE(letters, []))
    few.add_special_tokens(["[EOS]"])
    token_stream(text, Vocabulary.of_json(few.to_str(), "few"), "all")
    [said] = caplog.messages
    first = list(text.piece(0, "all"))
    assert said.startswith(f"few: the tokenizer has no token for '\u65e5', say: it leaves out {2 * len(first)} of the first {sum(map(len, first)):,} ")


def test_many_ids_take_four_bytes(config, words, monkeypatch):
    monkeypatch.setattr(token_file, "SHORT_IDS", 299)
    text = stored_text.stored_text(config)
    assert job_of(config, words).dtype.itemsize == 4
    assert torch.equal(token_stream(text, words, "all")[:], torch.from_numpy(words.stream(select(DOCUMENTS, "all"))).long())


def test_a_job_that_was_sent_makes_the_same(config, words):
    """A literal [MASK] stays text in another process, too: the library forgets that when it is pickled."""
    job = job_of(config, words)
    assert job.vocabulary.eos_id == words.eos_id
    job.folder.mkdir()
    list(pickle.loads(pickle.dumps(job)).write(0))
    count = job.text.facts.pieces[0]
    assert job.tokens(0).tolist() == words.stream(select(DOCUMENTS[:count], "all")).tolist()


def test_a_corpus_is_read_and_tokenised_once(config, words, monkeypatch):
    first = prepare(config, None, 300)

    def never(*arguments):
        raise AssertionError("read or tokenised again")

    monkeypatch.setattr(documents, "file_texts", never)
    monkeypatch.setattr(Vocabulary, "streams", never)
    monkeypatch.setattr(Vocabulary, "train", never)
    again = prepare(config, None, 300)
    assert again.facts == first.facts
    assert torch.equal(again.train[:], first.train[:])
    assert again.vocabulary.fingerprint == first.vocabulary.fingerprint


def test_documents_of_other_code_are_read_anew(config, tmp_path, monkeypatch):
    """Any module of the room may decide them; one that is left out of the key would have old documents pass for new ones."""
    room = tmp_path / "room"
    shutil.copytree(Path(stored_text.__file__).parent, room)
    monkeypatch.setattr(stored_text, "__file__", str(room / "stored_text.py"))
    seen = {stored_text.stored_text(config).folder}
    for module in ("sources/compression.py", "sources/json_array.py", "sources/folders.py", "split.py"):
        with (room / module).open("a") as file:
            file.write("# another\n")
        seen.add(stored_text.stored_text(config).folder)
    assert len(seen) == 5


def test_what_was_tokenised_before_a_kill_is_kept(config, words):
    asked = []

    def spread(job, numbers):
        asked.append(len(numbers))
        yield from one_by_one(job, numbers)

    def dies(stage, done, total, note=""):
        if stage == token_file.STAGE and done == 3:
            raise KeyboardInterrupt

    text = stored_text.stored_text(config)
    with pytest.raises(KeyboardInterrupt):
        token_stream(text, words, "all", dies, spread)
    expected = torch.from_numpy(words.stream(select(DOCUMENTS, "all"))).long()
    assert torch.equal(token_stream(text, words, "all", spread=spread)[:], expected)
    assert asked == [len(text.facts.pieces), len(text.facts.pieces) - 3]
    assert not list(text.folder.rglob("*.tmp"))


@pytest.mark.parametrize("stage", ["reading the corpus", "training a tokenizer", token_file.STAGE])
def test_it_stops_where_progress_raises_and_can_begin_again(config, tmp_path, stage):
    heard = []

    def raises(at, done, total, note=""):
        heard.append(at)
        if at == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config, None, 300, raises)
    assert heard[-1] == stage
    assert not list((tmp_path / "corpora").rglob("*.tmp"))
    assert prepare(config, None, 300).facts.documents == len(DOCUMENTS)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], lambda data: b""],
                         ids=["cut", "flipped", "emptied"])
@pytest.mark.parametrize("pattern", ["tokens-all-*/00001.*", "text-00001.zst", "corpus.json"])
def test_what_is_damaged_is_made_anew(config, words, tmp_path, damage, pattern):
    first = prepare(config, words, 300)
    (file,) = (tmp_path / "corpora").glob(f"*/{pattern}")
    if not pattern.startswith("tokens"):
        for tokens in (tmp_path / "corpora").glob("*/tokens-*/*"):
            tokens.unlink()
    del first.train.__dict__["_pieces"]  # no mapping of a file that is cut
    file.write_bytes(damage(file.read_bytes()))
    again = prepare(config, words, 300)
    assert again.facts == first.facts
    assert torch.equal(again.train[:], torch.from_numpy(words.stream(select(DOCUMENTS, "all"))).long())


def test_a_change_of_equal_length_is_seen_at_once(config, words, tmp_path):
    path = tmp_path / "texts.jsonl"
    first = prepare(config, words, 300).facts
    path.write_text(path.read_text().replace("Document 7 ", "Document 8 "))
    assert prepare(config, words, 300).facts.sha256 != first.sha256


def test_a_corpus_that_changes_while_it_is_read_is_refused(config, words, tmp_path):
    path = tmp_path / "texts.jsonl"

    def changes(stage, done, total, note=""):
        path.write_text(path.read_text() + '{"text": "one more"}\n')

    with pytest.raises(WorkError, match="changed while it was read"):
        prepare(config, words, 300, changes)
    assert prepare(config, words, 300).facts.documents > len(DOCUMENTS)


@pytest.mark.parametrize("module", [stored_text, token_file])
def test_a_full_disk_is_told_with_the_folder_and_the_cure(config, words, tmp_path, monkeypatch, module):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "writing_atomic", full)
        with pytest.raises(WorkError, match=f"{tmp_path}/corpora.*disk is full.*TSDFM_CORPORA"):
            prepare(config, words, 300)
    assert prepare(config, words, 300).facts.documents == len(DOCUMENTS)


def test_a_cache_that_cannot_be_written_is_replaced_by_a_passing_one(config, words, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TSDFM_CORPORA", str(tmp_path / "file" / "below"))
    with pytest.raises(InputError, match="TSDFM_CORPORA="):
        prepare(config, words, 300)
    monkeypatch.delenv("TSDFM_CORPORA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert prepare(config, words, 300).facts.documents == len(DOCUMENTS)


def test_where_the_cache_lies_is_no_matter_of_where_a_command_was_started(tmp_path, monkeypatch):
    """No shell has seen what a Dockerfile sets: `~` stayed one, and a relative XDG_CACHE_HOME was another folder each time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TSDFM_CORPORA", "~/texts")
    assert corpora_folder() == tmp_path / "home" / "texts"
    monkeypatch.delenv("TSDFM_CORPORA")
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert corpora_folder() == tmp_path / "home" / ".cache" / "tsdfm-pipeline" / "corpora"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_windows_of_a_stream_in_files_are_those_of_one_in_memory(config, words):
    stream = prepare(config, words, 300).train
    assert torch.equal(windows_of(stream, 7, 50), windows_of(stream[:], 7, 50))
