"""The vocabulary: any tokenizer of the `tokenizers` library, and the ids of its end of text and of [MASK].

Ids run from 0 to the tokenizer's highest, whether or not each has an entry. A tokenizer's own [MASK] is used wherever it
stands (BERT's is in the middle). One that has none gets it behind its highest id, and so one that has no token that ends a
text. These go into the tokenizer where the library gives them that id; it counts entries, so in a vocabulary with holes it
would give them a word's, and there they are known here alone.

Where [MASK] is the last id, a model that never sees it (of the uniform source, or a causal LM) uses the same ids with one row
fewer; elsewhere it has a row that no text needs.

The end of a text is the token that the tokenizer's own post-processor puts there, else the one of the usual name. Text is
always encoded with special tokens treated as plain text: a literal "[MASK]" in a corpus never becomes the mask id. (A model
that holds its end-of-text token as a piece, Unigram say, does find a literal one.)
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tsdfm.pipeline.text.tokenizer_file import open_tokenizer
from tsdfm.schemas.base import InputError, first_line

EOS, MASK = "[EOS]", "[MASK]"
USUAL_EOS = (EOS, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
FILE = "tokenizer.json"
PROBES = 64  # entries that are tried as a text, to see what the post-processor adds to one
LOST = "\0lost"  # no entry of anybody's
MOST_IDS = 1 << 22  # a model has a row for each
CHARACTERS_AT_ONCE = 1 << 20  # encoded: what the library keeps of each token takes far more than its id


def end_of_text(tokenizer: Tokenizer) -> str | None:
    """The token that ends a text: what the post-processor appends, else the first of the usual names; None: neither."""
    for text in _probes(tokenizer):
        try:
            probe = tokenizer.encode(text)
        except Exception:  # the library raises nothing narrower where a model has no entry for a text
            continue
        marks = probe.special_tokens_mask  # 1 where the post-processor added a token
        if 0 in marks:
            if marks[-1] and tokenizer.token_to_id(probe.tokens[-1]) is not None:
                return str(probe.tokens[-1])
            break
    return next((name for name in USUAL_EOS if tokenizer.token_to_id(name) is not None), None)


def _probes(tokenizer: Tokenizer) -> Iterator[str]:
    """Short texts of which a tokenizer should be able to encode one."""
    yield "a"
    yield from islice(sorted(tokenizer.get_vocab(with_added_tokens=False)), PROBES)


class Vocabulary:
    """A tokenizer with the two ids the project needs.

    `size`: ids 0..size-1, [MASK] among them. `size_without_mask`: rows of a model that never sees [MASK].
    """

    def __init__(self, tokenizer: Tokenizer, where: str) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._dropout = getattr(tokenizer.model, "dropout", None)
        _set_dropout(tokenizer, None)  # a text has the same tokens each time
        end = end_of_text(tokenizer)
        ids = _with_ids(tokenizer, where, [*([EOS] if end is None else []), MASK])
        end = end or EOS
        _make_special(tokenizer, [end, MASK])
        tokenizer.encode_special_tokens = True
        self.tokenizer, self.where, self.eos_id, self.mask_id = tokenizer, where, ids[end], ids[MASK]
        self.size = max(ids.values()) + 1
        self.size_without_mask = self.size - (self.mask_id == self.size - 1)
        unknown = getattr(tokenizer.model, "unk_token", None)
        self._in_place_of_mask = None if unknown is None else tokenizer.token_to_id(unknown)

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Open a tokenizer.json, or the folder that holds one. Raises InputError."""
        return cls(*_read(path))

    @classmethod
    def of_json(cls, text: str, where: str) -> "Vocabulary":
        """One that `to_json` gave; `where`: how messages name it."""
        return cls(Tokenizer.from_str(text), where)

    @classmethod
    def adopt(cls, path: Path, end: str | None = None, added: Sequence[str] = ()) -> "Vocabulary":
        """Open a tokenizer of another project for a model of ours. Raises InputError.

        Args:
            path: as of `load`.
            end: the token that ends a text; None: as the tokenizer says. The choice is kept in tokenizer.json, as a
                post-processor that appends the token; ids and encoding are untouched.
            added: special tokens that the model has rows for and the file lacks; they get the next ids.

        One without a decoder whose pieces are letters gets one that joins them: the library would set blanks between them.
        """
        return cls.of(*_read(path), end, added)

    @classmethod
    def of(cls, tokenizer: Tokenizer, where: str, end: str | None = None, added: Sequence[str] = ()) -> "Vocabulary":
        """As `adopt`, of a tokenizer that is open; `where`: how messages name it."""
        if end is not None:
            number = tokenizer.token_to_id(end)
            if number is None:
                raise InputError(f"--eos {end}: {where} has no such token; give one that it has")
            if number == tokenizer.token_to_id(MASK):
                raise InputError(f"--eos {end}: stands for what is not yet written in {where}, and so can't end a text; give "
                                 "another")
            tokenizer.post_processor = processors.TemplateProcessing(
                single=["$A", "end"], special_tokens=[{"id": "end", "ids": [number], "tokens": [end]}])
        tokenizer.add_special_tokens([name for name in added if tokenizer.token_to_id(name) is None])
        if tokenizer.decoder is None and _spells(tokenizer):
            tokenizer.decoder = decoders.Fuse()
        return cls(tokenizer, where)

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> "Vocabulary":
        """Train a BPE of `size` ids, the two special tokens included, on `texts`."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size - 1, special_tokens=[EOS], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.add_special_tokens([MASK])
        return cls(tokenizer, "trained tokenizer")

    def to_json(self) -> str:
        """The tokenizer.json, canonical: what the fingerprint is taken of. A dropout stands in it as it was given."""
        _set_dropout(self.tokenizer, self._dropout)
        try:
            return str(self.tokenizer.to_str(pretty=True))
        finally:
            _set_dropout(self.tokenizer, None)

    @property
    def fingerprint(self) -> str:
        """sha256 of the canonical tokenizer.json, hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def decode(self, tokens: Sequence[int] | npt.NDArray[np.int32]) -> str:
        """Text for people: [EOS] as a line break, [MASK] as a low line."""
        pieces: list[str] = []
        run: list[int] = []
        for token in tokens:
            if token in (self.eos_id, self.mask_id):
                pieces += [self.tokenizer.decode(run), "\n" if token == self.eos_id else "_"]
                run = []
            else:
                run.append(int(token))
        return "".join([*pieces, self.tokenizer.decode(run)])

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, nothing added, none of them [MASK]'s. Raises InputError if the tokenizer can't encode them."""
        try:
            encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises nothing narrower
            raise InputError(f"{self.where}: the tokenizer can't encode this text ({first_line(error)}); give one whose "
                             "vocabulary has an unknown token, or all that the text holds") from None
        return [self._without_mask(encoding.ids) for encoding in encodings]

    def encode_whole(self, text: str) -> list[int]:
        """The ids of a text that nothing may be lost of.

        Raises InputError: some is a special token ([MASK], the end of a text), or unknown, or can't be decoded.
        """
        self.encode([text])  # refuses what the library can't encode
        special = next((name for name in self._special if name in text), None)
        if special is not None:
            raise InputError(f"the model has no token for {special!r:.40} that stands in a text: that is the name of a special "
                             "token, not of a word; leave it out (a gap is written ___)")
        found = self.tokenizer.encode(text, add_special_tokens=False)
        for number, (start, end) in zip(found.ids, found.offsets, strict=True):
            if number in (self.mask_id, self.eos_id, self._unknown):
                raise InputError(f"the model has no token for {text[start:end]!r:.40}, or none that stands in texts; write it "
                                 "otherwise")
        lost = self.lost(text)
        if lost:
            raise InputError(f"the model has no token for {lost[0]!r:.40}, and its tokenizer leaves it out; write it otherwise")
        if text.strip() and not self.tokenizer.decode(found.ids).strip():
            raise InputError(f"{self.where}: the tokenizer turns {text!r:.40} into tokens that it decodes to nothing; give a "
                             "model whose tokenizer can be decoded")
        return list(found.ids)

    @cached_property
    def _special(self) -> list[str]:
        """The names of special tokens, which are no words."""
        added = self.tokenizer.get_added_tokens_decoder().values()
        return [token.content for token in added if token.special and token.content]

    def lost(self, text: str) -> list[str]:
        """The characters of a text, blanks aside, that its tokens leave out in silence, as they stand together in it.

        What a normalizer or a pre-tokenizer takes away is not asked about: that is how the model reads.
        """
        if self._watch is None:
            return []
        found = self._watch.encode(text, add_special_tokens=False)
        lost = self._watch.token_to_id(LOST)
        places = [slice(*place) for number, place in zip(found.ids, found.offsets, strict=True) if number == lost]
        return [text[place] for place in places if text[place].strip()]

    @cached_property
    def _watch(self) -> Tokenizer | None:
        """The same tokenizer with an unknown token, where it has none and may leave something out: BPE may, others raise."""
        data = json.loads(self.tokenizer.to_str())
        model = data["model"]
        if model["type"] != "BPE" or model.get("unk_token") is not None or _has_all_bytes(data):
            return None
        model["vocab"][LOST], model["unk_token"] = 2 * MOST_IDS, LOST  # an id that no other entry can get
        watch = Tokenizer.from_str(json.dumps(data))
        watch.encode_special_tokens = True
        return watch

    @cached_property
    def _unknown(self) -> int | None:
        """The id for what the tokenizer doesn't know, if it has one."""
        number = json.loads(self.tokenizer.to_str())["model"].get("unk_id")  # of Unigram; others name the token
        return self._in_place_of_mask if number is None else int(number)

    def _without_mask(self, ids: list[int]) -> list[int]:
        """A model that holds [MASK] as a word of its own finds a literal one: it is an unknown word, or none."""
        if self.mask_id not in ids:
            return ids
        instead = [] if self._in_place_of_mask is None else [self._in_place_of_mask]
        return [each for number in ids for each in (instead if number == self.mask_id else [number])]

    def stream(self, documents: Iterable[str]) -> npt.NDArray[np.int32]:
        """One int32 array: every document followed by [EOS]. Raises InputError if the tokenizer can't encode them."""
        return np.concatenate([np.empty(0, np.int32), *self.streams(documents)])

    def streams(self, documents: Iterable[str]) -> Iterator[npt.NDArray[np.int32]]:
        """`stream` in pieces, of which one is held at a time."""
        for some in _portions(documents):
            tokens = array("i")
            for ids in self.encode(some):
                tokens.extend(ids)
                tokens.append(self.eos_id)
            yield np.asarray(tokens, dtype=np.int32)


def _portions(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in lists of about CHARACTERS_AT_ONCE."""
    some, characters = list[str](), 0
    for text in documents:
        some.append(text)
        characters += len(text)
        if characters >= CHARACTERS_AT_ONCE:
            yield some
            some, characters = [], 0
    if some:
        yield some


def _read(path: Path) -> tuple[Tokenizer, str]:
    """The tokenizer of a file or folder, and the file's name. Raises InputError."""
    file = path / FILE if path.is_dir() else path
    try:
        return open_tokenizer(file), str(file)
    except OSError:
        raise InputError(f"{file}: no such tokenizer; give a tokenizer.json or a folder with one") from None


def _with_ids(tokenizer: Tokenizer, where: str, wanted: Sequence[str]) -> dict[str, int]:
    """The ids of a tokenizer's entries and of the `wanted` ones, which get new ids where they have none to themselves.

    Raises InputError if there is no entry, or an id that no model could have a row for.
    """
    ids: dict[str, int] = tokenizer.get_vocab()
    if not ids:
        raise InputError(f"{where}: the tokenizer has no entries; train it, or give another")
    shared = {number for name, number in ids.items() if name not in wanted}
    absent = [name for name in wanted if name not in ids or ids[name] in shared]
    taken = {number for name, number in ids.items() if name not in absent}
    free = max(taken) + 1
    if free + len(absent) > MOST_IDS:
        raise InputError(f"{where}: the tokenizer's highest id is {free - 1:,}, and a model has a row for each up to "
                         f"{MOST_IDS:,}; number its entries anew")
    if len(taken) == free and not set(absent) & ids.keys():
        tokenizer.add_special_tokens(absent)
    return ids | {name: free + index for index, name in enumerate(absent)}


def _make_special(tokenizer: Tokenizer, names: Sequence[str]) -> None:
    """An added token that is not special is matched in plain text, whatever `encode_special_tokens` says."""
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    tokenizer.add_special_tokens([name for name in names if name not in special and tokenizer.token_to_id(name) is not None])


def _set_dropout(tokenizer: Tokenizer, share: float | None) -> None:
    """Of merges, by which a BPE may be trained to encode at random."""
    if getattr(tokenizer.model, "dropout", None) != share:
        tokenizer.model.dropout = share


def _has_all_bytes(data: dict[str, Any]) -> bool:
    """Whether a BPE has an entry for each byte of any text, and texts as bytes."""
    model, steps = data["model"], data["pre_tokenizer"] or {}
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    if any(step.get("type") == "ByteLevel" for step in (steps, *steps.get("pretokenizers", ()))):
        return set(pre_tokenizers.ByteLevel.alphabet()) <= set(model["vocab"])
    return bool(model.get("byte_fallback")) and {f"<0x{byte:02X}>" for byte in range(256)} <= set(model["vocab"])


def _spells(tokenizer: Tokenizer) -> bool:
    """Whether the pieces of a word are its letters, with no mark of where it begins."""
    letters = sorted(name for name in tokenizer.get_vocab() if len(name) == 1 and name.isalpha())[:2]
    try:
        return len(letters) == 2 and tokenizer.encode("".join(letters), add_special_tokens=False).tokens == letters
    except Exception:  # the library raises nothing narrower
        return False
