"""The vocabulary: literal special tokens stay text, encoding is lossless, ids are where the models expect them."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tsdfm.pipeline.text.vocabulary import EOS, FILE, MASK, Vocabulary
from tsdfm.schemas.base import InputError

TEXTS = [f"the quick brown fox number {i} jumps over the lazy dog, and again" for i in range(200)]
NASTY = ["[MASK]", "[EOS]", "a [MASK] b", "[MASK][MASK]", "x[EOS]y\n[EOS]", " [MASK] ", "[MASK", "MASK]", "[[MASK]]",
         "[mask]", "[EOS][MASK]"]


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.train(TEXTS, 320)


def ids_of(vocabulary, text):
    return vocabulary.stream([text])[:-1].tolist()


def test_ids(vocabulary):
    assert vocabulary.size == vocabulary.tokenizer.get_vocab_size() == 320
    assert vocabulary.eos_id == vocabulary.tokenizer.token_to_id(EOS) == 0
    assert vocabulary.mask_id == vocabulary.tokenizer.token_to_id(MASK) == 319


@pytest.mark.parametrize("size", [258, 259, 300, 512])
def test_the_size_asked_for_is_the_size_trained(size):
    """From the least that PretrainConfig.vocab_size allows; [MASK] included, and always last."""
    trained = Vocabulary.train([*TEXTS, *(f"word{i} other{i * 7} third{i * 13}" for i in range(500))], size)
    assert trained.size == size
    assert trained.mask_id == size - 1


@pytest.mark.parametrize("text", NASTY)
def test_literal_special_tokens_stay_text(vocabulary, text):
    """A corpus that speaks of "[MASK]" once put the mask id into the training data, which the model then predicted."""
    ids = ids_of(vocabulary, text)
    assert vocabulary.mask_id not in ids
    assert vocabulary.eos_id not in ids
    assert vocabulary.decode(ids) == text


@pytest.mark.parametrize("again", ["same object", "from a file", "from a folder"])
def test_they_stay_text_after_loading(tmp_path, vocabulary, again):
    (tmp_path / FILE).write_text(vocabulary.to_json(), encoding="utf-8")
    loaded = {"same object": vocabulary, "from a file": Vocabulary.load(tmp_path / FILE),
              "from a folder": Vocabulary.load(tmp_path)}[again]
    assert loaded.fingerprint == vocabulary.fingerprint
    assert (loaded.size, loaded.eos_id, loaded.mask_id) == (vocabulary.size, vocabulary.eos_id, vocabulary.mask_id)
    stream = loaded.stream(NASTY)
    np.testing.assert_array_equal(stream, vocabulary.stream(NASTY))
    assert loaded.mask_id not in stream
    assert (stream == loaded.eos_id).sum() == len(NASTY)


def test_training_on_a_corpus_full_of_them():
    """Frequent literals must not merge into the special tokens."""
    trained = Vocabulary.train([*["a [MASK] b [EOS] c"] * 500, *["[MASK][MASK][EOS]"] * 500], 320)
    stream = trained.stream(["a [MASK] b [EOS] c", "[MASK][MASK][EOS]"])
    assert trained.mask_id == trained.size - 1
    assert trained.mask_id not in stream
    assert (stream == trained.eos_id).sum() == 2
    assert trained.decode(stream.tolist()) == "a [MASK] b [EOS] c\n[MASK][MASK][EOS]\n"


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_decode_undoes_encode(vocabulary, text):
    assert vocabulary.decode(ids_of(vocabulary, text)) == text


@given(text=st.text(alphabet="[]MASKEO \n", max_size=30))
def test_no_arrangement_of_their_letters_gives_a_special_id(vocabulary, text):
    ids = ids_of(vocabulary, text)
    assert not {vocabulary.mask_id, vocabulary.eos_id} & set(ids)
    assert vocabulary.decode(ids) == text


def test_stream_is_documents_each_with_its_eos(vocabulary):
    stream = vocabulary.stream(["ab", "", "cd ef"])
    assert stream.dtype == np.int32
    parts = [ids_of(vocabulary, t) for t in ("ab", "", "cd ef")]
    assert stream.tolist() == [*parts[0], 0, *parts[1], 0, *parts[2], 0]
    assert vocabulary.decode(stream.tolist()) == "ab\n\ncd ef\n"
    assert vocabulary.stream([]).tolist() == []
    assert vocabulary.stream([]).dtype == np.int32


def test_decode_shows_masks_and_breaks(vocabulary):
    fox, dog = ids_of(vocabulary, " fox"), ids_of(vocabulary, " dog")
    assert vocabulary.decode([*fox, 319, *dog, 0, 319, 319]) == " fox_ dog\n__"
    assert vocabulary.decode([]) == ""
    assert vocabulary.decode(np.array([*fox, 319], dtype=np.int32)) == " fox_"


def test_any_ids_decode(vocabulary):
    """Halves of a UTF-8 character become the replacement character; nothing raises."""
    for start in range(0, 320, 7):
        assert isinstance(vocabulary.decode(list(range(start, min(start + 9, 320)))), str)


def test_training_is_deterministic(vocabulary):
    assert Vocabulary.train(TEXTS, 320).fingerprint == vocabulary.fingerprint
    assert Vocabulary.train(TEXTS[:50], 320).fingerprint != vocabulary.fingerprint


def test_limits_of_a_foreign_file_are_lifted(tmp_path, vocabulary):
    """A tokenizer.json may carry truncation and padding; a corpus must not be cut by them."""
    foreign = Tokenizer.from_str(vocabulary.to_json())
    foreign.enable_truncation(4)
    foreign.enable_padding(length=50, pad_id=319, pad_token=MASK)
    foreign.save(str(tmp_path / FILE))
    loaded = Vocabulary.load(tmp_path)
    np.testing.assert_array_equal(loaded.stream(TEXTS[:3]), vocabulary.stream(TEXTS[:3]))
    assert loaded.fingerprint == vocabulary.fingerprint


# ------------------------------------------------------------------ refusals

def bpe(*, special=(), added=()):
    """An untrained byte-level BPE with these tokens, in order, behind the 256 bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for name in special:
        tokenizer.add_special_tokens([name])
    for name in added:
        tokenizer.add_tokens([name])
    return tokenizer


@pytest.mark.parametrize(("special", "ids"), [
    ((), (258, 256, 257)), ((MASK,), (258, 257, 256)), ((MASK, EOS), (258, 257, 256)), ((EOS, MASK, "[PAD]"), (259, 256, 257)),
])
def test_what_is_lacking_is_appended_and_what_is_there_is_used(tmp_path, special, ids):
    bpe(special=special).save(str(tmp_path / FILE))
    loaded = Vocabulary.load(tmp_path)
    assert (loaded.size, loaded.eos_id, loaded.mask_id) == ids
    assert loaded.size_without_mask == (257 if loaded.mask_id == 257 and loaded.size == 258 else loaded.size)
    stream = loaded.stream(NASTY)
    assert loaded.mask_id not in stream
    assert (stream == loaded.eos_id).sum() == len(NASTY)
    (tmp_path / FILE).write_text(loaded.to_json(), encoding="utf-8")
    again = Vocabulary.load(tmp_path)
    assert (again.fingerprint, again.size, again.eos_id, again.mask_id) == (loaded.fingerprint, *ids)


def test_a_foreign_tokenizer_with_them_is_fine(tmp_path):
    bpe(special=(EOS, MASK)).save(str(tmp_path / FILE))
    loaded = Vocabulary.load(tmp_path)
    assert (loaded.size, loaded.eos_id, loaded.mask_id) == (258, 256, 257)
    assert 257 not in loaded.stream(NASTY)


@pytest.mark.parametrize("plain", [MASK, EOS])
def test_plain_added_tokens_are_no_special_tokens(tmp_path, plain):
    """[MASK] added as an ordinary token is matched in text whatever `encode_special_tokens` says: refuse it, or mend it."""
    if plain == MASK:
        tokenizer = bpe(special=(EOS,), added=(MASK,))
    else:
        tokenizer = bpe(added=(EOS,))
        tokenizer.add_special_tokens([MASK])
    tokenizer.save(str(tmp_path / FILE))
    try:
        loaded = Vocabulary.load(tmp_path)
    except InputError:
        return
    stream = loaded.stream(NASTY)
    assert loaded.mask_id not in stream
    assert (stream == loaded.eos_id).sum() == len(NASTY)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"version": "1.0"}', "\x80\x04", json.dumps({"model": {"type": "Nope"}})])
def test_not_a_tokenizer_is_one_line(tmp_path, content):
    (tmp_path / FILE).write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=FILE) as caught:
        Vocabulary.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_tokenizer_there(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="no such tokenizer"):
            Vocabulary.load(path)


# ---- other people's tokenizers


def other(name):
    """A tokenizer of another kind, trained here: what ends a text, and the tokenizer."""
    from tokenizers import trainers

    from tests.foreign import gpt2_like

    if name == "gpt2":
        return "<|endoftext|>", gpt2_like(50)
    if name == "bert":  # [SEP] is what its post-processor appends, [CLS] what it prepends
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
        tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(
            vocab_size=120, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False))
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
        return "[SEP]", tokenizer
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.train_from_iterator(TEXTS, trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False))
    tokenizer.enable_padding(pad_token="<unk>", length=64)
    return "</s>", tokenizer


@pytest.mark.parametrize("name", ["gpt2", "bert", "unigram"])
def test_any_tokenizer_is_a_vocabulary(name, tmp_path):
    end, tokenizer = other(name)
    size = tokenizer.get_vocab_size()
    (tmp_path / FILE).write_text(tokenizer.to_str(), encoding="utf-8")
    loaded = Vocabulary.load(tmp_path)
    assert (loaded.size, loaded.mask_id) == (size + 1, size)  # [MASK] is appended
    assert loaded.eos_id == tokenizer.token_to_id(end)
    ids = ids_of(loaded, TEXTS[3])
    assert loaded.decode(ids).replace(" ", "") == TEXTS[3].replace(" ", "")
    assert loaded.stream([TEXTS[3]])[-1] == loaded.eos_id
    stream = loaded.stream(["a [MASK] b", f"a {end} b"])
    assert loaded.mask_id not in stream
    if name != "unigram":  # whose model holds </s> as a piece of text like any other
        assert (stream == loaded.eos_id).sum() == 2
    (tmp_path / "again.json").write_text(loaded.to_json(), encoding="utf-8")
    again = Vocabulary.load(tmp_path / "again.json")
    assert (again.fingerprint, again.size, again.eos_id) == (loaded.fingerprint, loaded.size, loaded.eos_id)


@pytest.mark.parametrize("end", ["<stop>", "<|end of text|>", "a:0"])
def test_a_chosen_end_is_kept_in_the_file(tmp_path, end):
    tokenizer = other("gpt2")[1]
    tokenizer.add_special_tokens([end])
    (tmp_path / FILE).write_text(tokenizer.to_str(), encoding="utf-8")
    loaded, chosen = Vocabulary.load(tmp_path), Vocabulary.adopt(tmp_path, end)
    with pytest.raises(InputError, match="no such token"):
        Vocabulary.adopt(tmp_path, "<none>")
    (tmp_path / FILE).write_text(chosen.to_json(), encoding="utf-8")
    again = Vocabulary.load(tmp_path)
    assert again.eos_id == chosen.eos_id == tokenizer.token_to_id(end) != loaded.eos_id
    assert again.size == loaded.size
    np.testing.assert_array_equal(ids_of(again, TEXTS[0]), ids_of(loaded, TEXTS[0]))


def test_a_tokenizer_without_a_usual_end_takes_the_one_that_is_named(tmp_path):
    """Nothing is appended for it, so that rows of a checkpoint over it are as many as its entries and [MASK]."""
    bpe(special=("<stop>",)).save(str(tmp_path / FILE))
    assert Vocabulary.adopt(tmp_path).size == 259
    chosen = Vocabulary.adopt(tmp_path, "<stop>")
    assert (chosen.size, chosen.eos_id, chosen.mask_id) == (258, 256, 257)


@pytest.mark.parametrize(("entries", "size"), [
    ({"a": 0, "b": 1, "[UNK]": 2, "</s>": 4}, 6), ({"a": 7, "b": 1, "[UNK]": 3, "</s>": 2}, 9), ({"a": 5, "[UNK]": 6, "b": 1000, "</s>": 3}, 1002),
    ({"a": 0, "b": 9, "[UNK]": 3}, 12),  # no end, either
])
def test_holes_between_ids(tmp_path, entries, size):
    """[MASK] behind the highest id; the library, which counts entries, would give it that of a word."""
    tokenizer = Tokenizer(models.WordLevel(entries, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (tmp_path / FILE).write_text(tokenizer.to_str(), encoding="utf-8")
    for loaded in (Vocabulary.load(tmp_path), Vocabulary.adopt(tmp_path)):
        assert (loaded.size, loaded.mask_id, loaded.size_without_mask) == (size, size - 1, size - 1)
        assert loaded.eos_id == entries.get("</s>", size - 2)
        unknown = entries["[UNK]"]
        assert loaded.stream(["b a [MASK] [EOS]"]).tolist() == [entries["b"], entries["a"], unknown, unknown, loaded.eos_id]
        assert loaded.decode([*range(size)]).count("_") == 1
        assert loaded.decode([entries["a"], loaded.mask_id, entries["b"], loaded.eos_id]) == "a_b\n"
        (tmp_path / "again.json").write_text(loaded.to_json(), encoding="utf-8")
        again = Vocabulary.load(tmp_path / "again.json")
        assert (again.fingerprint, again.size, again.eos_id, again.mask_id) == (loaded.fingerprint, size, loaded.eos_id, loaded.mask_id)


def test_a_mask_that_took_a_words_id_is_not_used(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "</s>": 2, "[UNK]": 4}, unk_token="[UNK]"))
    tokenizer.add_special_tokens([MASK])
    assert tokenizer.token_to_id(MASK) == 4
    (tmp_path / FILE).write_text(tokenizer.to_str(), encoding="utf-8")
    assert Vocabulary.load(tmp_path).mask_id == 5


@pytest.mark.parametrize("place", [4, 103])
def test_berts_own_mask_is_used_where_it_stands(tmp_path, place):
    entries = {name: i for i, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"[unused{i}]" for i in range(place - 4)), MASK])}
    entries |= {name: len(entries) + i for i, name in enumerate(["the", "fox", "##es", "[", "]", "mask"])}
    tokenizer = Tokenizer(models.WordPiece(entries, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", MASK])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    (tmp_path / FILE).write_text(tokenizer.to_str(), encoding="utf-8")
    loaded = Vocabulary.load(tmp_path)
    assert (loaded.size, loaded.mask_id, loaded.eos_id) == (len(entries), place, 3)
    assert loaded.size_without_mask == loaded.size  # [MASK] has a row in every model, for it stands in the middle
    ids = loaded.stream(["The foxes [MASK]"]).tolist()
    assert place not in ids
    assert loaded.decode([*ids[:3], place]) == "the foxes_"


@pytest.mark.parametrize("kind", ["words", "pieces", "bytes"])
def test_a_character_tokenizer_is_a_vocabulary(tmp_path, kind):
    """Letters alone, no end of text and no decoder, as one makes it for text8."""
    letters = [*"bcdefghijklmnopqrstuvwxyz "]
    model = {"words": models.WordLevel({c: i for i, c in enumerate(letters)}), "pieces": models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]),
             "bytes": models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])}[kind]
    tokenizer = Tokenizer(model)
    if kind == "bytes":
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    (tmp_path / FILE).write_text(tokenizer.to_str(), encoding="utf-8")
    made = Vocabulary.adopt(tmp_path)
    assert (made.size, made.eos_id, made.mask_id) == (tokenizer.get_vocab_size() + 2, tokenizer.get_vocab_size(), tokenizer.get_vocab_size() + 1)
    text = "the fox jumps over the dog"
    assert made.decode(made.stream([text])) == f"{text.replace('a', '')}\n"
    (tmp_path / FILE).write_text(made.to_json(), encoding="utf-8")
    assert Vocabulary.load(tmp_path).fingerprint == made.fingerprint
    assert Vocabulary.load(tmp_path).decode(made.stream([text])) == f"{text}\n"


def test_a_text_that_a_tokenizer_has_no_entry_for_is_one_line(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate("bcd")}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    (tmp_path / FILE).write_text(tokenizer.to_str(), encoding="utf-8")
    with pytest.raises(InputError, match="can't encode") as caught:
        Vocabulary.load(tmp_path).stream(["abcd"])
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("entries", "said"), [({}, "no entries"), ({"a": 0, "</s>": 2**23}, "highest id")])
def test_a_tokenizer_that_no_model_can_have_is_refused(tmp_path, entries, said):
    (tmp_path / FILE).write_text(Tokenizer(models.WordLevel(entries, unk_token="a")).to_str(), encoding="utf-8")
    with pytest.raises(InputError, match=said):
        Vocabulary.load(tmp_path)


def pieces(**how):
    """A BPE of small letters and blanks, without an unknown token."""
    entries = {c: i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz ")} | {"th": 27, "the": 28}
    tokenizer = Tokenizer(models.BPE(vocab=entries, merges=[("t", "h"), ("th", "e")], **how))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


@pytest.mark.parametrize(("text", "lost"), [
    ("the \u72d0 fox", "\u72d0"), ("the fox, quick", ","), ("The fox", "T"), ("\u72d0", "\u72d0"), ("the fox", None), ("the\nfox", None)])
def test_a_prompt_of_which_a_tokenizer_leaves_something_out_is_refused(tmp_path, text, lost):
    """A BPE passes over what it has no entry for, and says nothing."""
    pieces().save(str(tmp_path / FILE))
    words = Vocabulary.load(tmp_path)
    if lost is None:
        assert words.encode_whole(text) == words.encode([text])[0]
        return
    with pytest.raises(InputError, match=f"no token for '{lost}'"):
        words.encode_whole(text)
    assert words.stream([text])[-1] == words.eos_id  # a model over it opens, and its corpus is read as before


@pytest.mark.parametrize("text", ["The F\u00f4x", "the fox <tool>", "x\u0331"])
def test_what_a_normalizer_changes_is_not_lost(tmp_path, text):
    tokenizer = pieces()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()])
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save(str(tmp_path / FILE))
    assert Vocabulary.load(tmp_path).encode_whole(text)


def test_a_byte_that_a_tokenizer_lacks_is_lost(tmp_path):
    tokenizer = bpe()
    data = json.loads(tokenizer.to_str())
    data["model"]["vocab"] = {c: i for i, c in enumerate(sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {"\u00e9"}))}
    (tmp_path / FILE).write_text(json.dumps(data), encoding="utf-8")
    words = Vocabulary.load(tmp_path)
    with pytest.raises(InputError, match="no token for '\u9000'"):  # 0xE9 is its first byte
        words.encode_whole("the \u9000")
    assert words.encode_whole("the fox")


def test_a_dropout_is_off_and_stands_in_the_file(tmp_path):
    """It was meant for training: with it a text has other tokens at each call."""
    with_it = pieces(dropout=0.5)
    with_it.save(str(tmp_path / FILE))
    words = Vocabulary.load(tmp_path)
    assert {tuple(words.encode(["the the the the"])[0]) for _ in range(20)} == {tuple(words.encode_whole("the the the the"))}
    assert len(words.encode(["the"])[0]) == 1
    assert json.loads(words.to_json())["model"]["dropout"] == 0.5  # as it is in the fingerprint of models that are there
    assert Vocabulary.of_json(words.to_json(), "").fingerprint == words.fingerprint
    assert len(words.encode(["the"])[0]) == 1
