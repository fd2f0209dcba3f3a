"""The documents of a corpus, their split, and their tokens.

Documents are split by content hash, so the split depends neither on order nor on what else is in the corpus: 2 % is held
out, and the rest falls into two halves, `first` and `second`, so that a compass and its judge never share a document.
"""

import hashlib
import platform
from dataclasses import dataclass

import torch

from tsdfm.pipeline.text.documents import Reading, load_documents
from tsdfm.pipeline.text.sources.built_in import SEPARATOR, python_distributions
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError
from tsdfm.schemas.corpus import BUILT_IN, CorpusConfig
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.terms import CorpusPart
from tsdfm.schemas.training_record import CorpusFacts

HELD_OUT_PERCENT = 2
EVAL_WINDOWS = 512  # of the held-out text, that a trained network is measured on


def _bucket(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def split_of(text: str) -> str:
    """'held_out', 'first' or 'second': a function of the text alone."""
    bucket = _bucket(text)
    if bucket % 100 < HELD_OUT_PERCENT:
        return "held_out"
    return "first" if bucket // 100 % 2 else "second"


def select(documents: list[str], part: CorpusPart) -> list[str]:
    """The training documents of `part`; `all` is both halves. Held-out documents are never among them."""
    wanted = {"first", "second"} if part == "all" else {part}
    return [text for text in documents if split_of(text) in wanted]


def held_out(documents: list[str]) -> list[str]:
    """The held-out documents."""
    return [text for text in documents if split_of(text) == "held_out"]


@dataclass(frozen=True)
class Corpus:
    """A tokenised corpus: the training stream of the chosen part, held-out windows, and what it was."""

    vocabulary: Vocabulary
    train: torch.Tensor
    held_out: torch.Tensor
    facts: CorpusFacts


def prepare(
    config: CorpusConfig, vocabulary: Vocabulary | None, vocab_size: int, progress: Progress = unheard,
) -> Corpus:
    """Load, split and encode a corpus; a missing vocabulary is trained on all its training documents.

    Raises InputError: no such corpus, no text in it, or text that the vocabulary can't encode.
    """
    reading = Reading(progress)
    documents = load_documents(config, reading)
    vocabulary = vocabulary or Vocabulary.train(select(documents, "all"), vocab_size)
    chosen = select(documents, config.part)
    train = torch.from_numpy(vocabulary.stream(chosen))
    test = torch.from_numpy(vocabulary.stream(held_out(documents)))
    python = config.path == BUILT_IN
    facts = CorpusFacts(
        documents=len(documents), training_documents=len(chosen), training_tokens=len(train), held_out_tokens=len(test),
        sha256=_digest(documents), python=platform.python_version() if python else None,
        distributions=[f"{d.name}=={d.version}" for d in python_distributions()] if python else None,
        commit=reading.commit, left_out=dict(+reading.left_out) or None)
    return Corpus(vocabulary, train, test, facts)


def _digest(documents: list[str]) -> str:
    """sha256 of all documents, a zero byte between any two."""
    found = hashlib.sha256()
    for number, text in enumerate(documents):
        found.update(f"{SEPARATOR if number else ''}{text}".encode())
    return found.hexdigest()


def windows_of(stream: torch.Tensor, length: int, limit: int) -> torch.Tensor:
    """Up to `limit` windows [n, L] int64 evenly spaced over a stream. Raises InputError if there is none."""
    count = len(stream) // length
    if not count:
        raise InputError(f"the held-out text has {len(stream)} tokens, fewer than one window of {length}; give more text, in "
                         "more documents: 2 % of them are held out (in a .txt, blank lines separate documents)")
    picks = torch.linspace(0, count - 1, min(limit, count)).long()
    return stream[: count * length].view(count, length)[picks].long()
