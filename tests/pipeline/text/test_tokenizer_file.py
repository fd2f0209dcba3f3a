"""A tokenizer that would take all memory is refused at once; those that people use are opened."""

import json
import os
import time

import pytest
from tokenizers import Tokenizer

from tests.support import vocabulary
from tsdfm.pipeline.text import tokenizer_file as module
from tsdfm.pipeline.text.tokenizer_file import open_tokenizer, parse_tokenizer
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError


def replaced(pattern, content, kind="String"):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(name, *steps):
    return {"type": "Sequence", name: list(steps)}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
TWICE = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2, "special_tokens": {},
         "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]}
BOMBS = {
    "doubling": {"normalizer": sequence("normalizers", *[replaced("a", "aa")] * 40)},
    "of a letter that no probe has": {"normalizer": sequence("normalizers", *[replaced("ž", "žž")] * 40)},
    "by a pattern": {"normalizer": sequence("normalizers", *[replaced(".", "xy", "Regex")] * 40)},
    "of nothing": {"normalizer": sequence("normalizers", *[replaced("", "x", "Regex")] * 40)},
    "in turn": {"normalizer": sequence("normalizers", *[replaced("a", "bb"), replaced("b", "aa")] * 20)},
    "nested, among others": {"normalizer": sequence("normalizers", *[sequence(
        "normalizers", {"type": "Lowercase"}, replaced("a", "aa"), {"type": "NFKC"})] * 40)},
    "by two long contents": {"normalizer": sequence("normalizers", replaced("a", "b" * 10**6), replaced("b", "a" * 10**6))},
    "of bytes": {"normalizer": sequence("normalizers", *[{"type": "ByteLevel"}] * 40)},
    "of bytes, before tokens": {"pre_tokenizer": sequence("pretokenizers", *[BYTE_LEVEL] * 40)},
    "in decoding": {"decoder": sequence("decoders", *[replaced("a", "aa")] * 40)},
    "of tokens": {"post_processor": sequence("processors", *[TWICE] * 40)},
    "only of an added token": {
        "normalizer": sequence("normalizers", *[replaced("[Q-T]", "QRST", "Regex")] * 40),
        "added_tokens": [{"id": 299, "content": "Q", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True,
                          "special": False}]},
}


@pytest.mark.parametrize("name", BOMBS)
def test_steps_that_build_on_each_other_are_refused_before_they_run(tmp_path, name):
    (tmp_path / "tokenizer.json").write_text(json.dumps(json.loads(vocabulary().to_json()) | BOMBS[name]))
    started = time.monotonic()
    with pytest.raises(InputError, match=r"lengthens texts without bound|more steps than a tokenizer needs") as caught:
        Vocabulary.load(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(caught.value)
    assert time.monotonic() - started < 3


PLAIN = {
    "as ours": {},
    "thirty letters written as two": {"normalizer": sequence(
        "normalizers", *[replaced(letter, letter.upper() + "e") for letter in "abcdefghijklmnopqrstuvwxyzäöü"])},
    "escapes": {"normalizer": sequence("normalizers", *[replaced(sign, f"&{ord(sign)};") for sign in "<>\"'"])},
    "Llama's": {"normalizer": sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, replaced(" ", "▁")),
                "decoder": sequence("decoders", replaced("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"},
                                    {"type": "Strip", "content": " ", "start": 1, "stop": 0})},
    "BERT's": {"normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                              "lowercase": True}},
}


@pytest.mark.parametrize("name", PLAIN)
def test_what_people_use_is_opened(name):
    data = json.dumps(json.loads(vocabulary().to_json()) | PLAIN[name])
    assert parse_tokenizer(data.encode(), "here").to_str() == Tokenizer.from_str(data).to_str()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"5", b"{}", b"\xff", b'{"normalizer": 5}', b'{"decoder": [1]}',
                                  b'{"normalizer": {"type": "Nothing"}}', b'{"normalizer": ' + b"[" * 10**5])
def test_what_is_no_tokenizer_is_one_line(data):
    with pytest.raises(InputError, match=r"^here: not a tokenizer of the tokenizers library") as caught:
        parse_tokenizer(data, "here")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_too_large_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    (tmp_path / "tokenizer.json").write_text(vocabulary().to_json())
    with pytest.raises(InputError, match="larger than 1,000 bytes"):
        open_tokenizer(tmp_path / "tokenizer.json")


def test_a_pipe_in_the_place_of_a_tokenizer(tmp_path):
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        Vocabulary.load(tmp_path)
