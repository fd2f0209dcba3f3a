"""The tokens of a corpus, and what it was: all that a training or an evaluation asks of a text.

Neither the text nor its tokens are held in memory: documents are read once into this user's cache (`stored_text`), tokens made
once into files that are mapped (`token_file`).
"""

import hashlib
import platform
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import tokenizers
import torch

from tsdfm.pipeline.storage.atomic import write_atomic
from tsdfm.pipeline.text.sources.python import python_distributions
from tsdfm.pipeline.text.split import splits_of
from tsdfm.pipeline.text.stored_text import Damaged, StoredText, kept_on_disk, stored_text
from tsdfm.pipeline.text.token_file import Spread, Tokens, one_by_one, token_stream
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError
from tsdfm.schemas.corpus import PYTHON, CorpusConfig
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.regular import read_regular
from tsdfm.schemas.training_record import CorpusFacts

EVAL_WINDOWS = 512  # of the held-out text, that a trained network is measured on
STAGE, DOCUMENTS_AT_ONCE = "training a tokenizer", 1000
T = TypeVar("T")


@dataclass(frozen=True)
class Corpus:
    """A tokenised corpus: the training stream of the chosen part, the held-out stream, and what it was."""

    vocabulary: Vocabulary
    train: Tokens
    held_out: Tokens
    facts: CorpusFacts


def prepare(
    config: CorpusConfig, vocabulary: Vocabulary | None, vocab_size: int, progress: Progress = unheard,
    spread: Spread = one_by_one,
) -> Corpus:
    """Load, split and encode a corpus; a missing vocabulary is trained on all its training documents.

    Args:
        config: which text.
        vocabulary: to encode it with, or None.
        vocab_size: of a vocabulary that is trained.
        progress: may raise to stop the work; what is finished is kept.
        spread: who tokenises.

    Raises InputError: no such corpus, no text in it, or text that the vocabulary can't encode; WorkError: the Hub can't be
    reached, the files changed while they were read, or the disk of the cache is full.
    """
    def made(text: StoredText) -> Corpus:
        words = vocabulary or _trained(text, vocab_size, progress)
        train = token_stream(text, words, config.part, progress, spread)
        held_out = token_stream(text, words, "held_out", progress, spread)
        return Corpus(words, train, held_out, _facts(config, text, len(train), len(held_out)))

    return _from_text(config, progress, made)


def corpus_sha256(config: CorpusConfig, progress: Progress = unheard) -> str:
    """The sha256 of all documents of a corpus, as `CorpusFacts` has it. Raises as `prepare`."""
    return _from_text(config, progress, lambda text: text.facts.sha256)


def held_out_stream(config: CorpusConfig, vocabulary: Vocabulary, progress: Progress = unheard) -> Tokens:
    """The tokens of the held-out documents of a corpus. Raises as `prepare`."""
    return _from_text(config, progress, lambda text: token_stream(text, vocabulary, "held_out", progress))


def training_stream(config: CorpusConfig, vocabulary: Vocabulary, progress: Progress = unheard) -> Tokens:
    """The tokens of the chosen part of a corpus's training documents. Raises as `prepare`."""
    return _from_text(config, progress, lambda text: token_stream(text, vocabulary, config.part, progress))


def _from_text(config: CorpusConfig, progress: Progress, make: Callable[[StoredText], T]) -> T:
    """What is made from the stored text of a corpus, which is read anew where it is damaged."""
    text = stored_text(config, progress)
    try:
        return make(text)
    except Damaged:
        text.forget()
        return make(stored_text(config, progress))


def _trained(text: StoredText, size: int, progress: Progress) -> Vocabulary:
    """The vocabulary that is trained on all training documents of a corpus, now or before."""
    file = text.folder / f"tokenizer-{size}-{tokenizers.__version__}-{text.facts.sha256[:16]}"
    with suppress(OSError):  # not there
        digest, _, data = read_regular(file).partition(b"\n")
        if hashlib.sha256(data).hexdigest().encode() == digest:
            return Vocabulary.of_json(data.decode(), str(file))
    total = sum(number for split, number in text.facts.splits.items() if split in splits_of("all"))

    def watched() -> Iterator[str]:
        for number, document in enumerate(text.documents("all")):
            if number % DOCUMENTS_AT_ONCE == 0:
                progress(STAGE, number, total, "documents")
            yield document

    vocabulary = Vocabulary.train(watched(), size)
    progress(STAGE, total, total, "documents")
    data = vocabulary.to_json().encode()
    with kept_on_disk():
        write_atomic(file, hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
    return vocabulary


def _facts(config: CorpusConfig, text: StoredText, training_tokens: int, held_out_tokens: int) -> CorpusFacts:
    known, python = text.facts, config.path == PYTHON
    training_documents = sum(known.splits.get(each, 0) for each in splits_of(config.part))
    return CorpusFacts(
        documents=sum(known.splits.values()), training_documents=training_documents, training_tokens=training_tokens,
        held_out_tokens=held_out_tokens, sha256=known.sha256,
        python=platform.python_version() if python else None,
        distributions=[f"{d.name}=={d.version}" for d in python_distributions()] if python else None,
        commit=known.commit, left_out=known.left_out or None)


def windows_of(stream: Tokens, length: int, limit: int) -> torch.Tensor:
    """Up to `limit` windows [n, L] int64 evenly spaced over a stream. Raises InputError if there is none."""
    windows = len(stream) // length
    if not windows:
        raise InputError(f"the held-out text has {len(stream)} tokens, fewer than one window of {length}; give more text, in "
                         "more documents: 2 % of them are held out (in a .txt, blank lines separate documents)")
    return _windows_at(stream, length, spaced(windows, limit))


def others_of(stream: Tokens, length: int, limit: int) -> torch.Tensor:
    """Up to `limit` windows [n, L] int64, evenly spaced, none of which is of `windows_of` at this limit; n may be 0."""
    windows = len(stream) // length
    free = torch.ones(windows, dtype=torch.bool)
    free[spaced(windows, limit)] = False
    left = free.nonzero()[:, 0]
    return _windows_at(stream, length, left[spaced(len(left), limit)])


def spaced(windows: int, limit: int) -> torch.Tensor:
    """Up to `limit` of the numbers 0..windows-1, evenly spaced, int64."""
    most = min(limit, windows)
    return torch.linspace(0, windows - 1, most).long().clamp(max=windows - 1)  # of many, float32 may exceed it


def _windows_at(stream: Tokens, length: int, picks: torch.Tensor) -> torch.Tensor:
    found = [stream[pick * length : (pick + 1) * length].long() for pick in picks.tolist()]
    return torch.stack(found) if found else torch.empty(0, length, dtype=torch.long)
