"""Clean documents, their split, and their tokens.

Documents are split by content hash, so the split depends neither on order nor on what else is in the corpus: 2 % is held
out, and the rest falls into two halves, `first` and `second`, so that a compass and its judge never share a document.
"""

import hashlib
import platform
import re
import unicodedata
from dataclasses import dataclass

import torch

from tsdfm.pipeline.text.documents import MIN_CHARACTERS, python_distributions, raw_documents
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError
from tsdfm.schemas.corpus import CorpusConfig
from tsdfm.schemas.terms import CorpusPart
from tsdfm.schemas.training_record import CorpusFacts

HELD_OUT_PERCENT = 2
EVAL_WINDOWS = 512  # of the held-out text, that a trained network is measured on
_LINE_BREAKS = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85]")


def clean(text: str) -> str:
    """NFC, no control characters but newlines, runs of blanks folded."""
    text = _LINE_BREAKS.sub("\n", text)
    text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c)[0] != "C")
    text = unicodedata.normalize("NFC", text)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+", " ", text)).strip()


def _bucket(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def split_of(text: str) -> str:
    """'held_out', 'first' or 'second': a function of the text alone."""
    bucket = _bucket(text)
    if bucket % 100 < HELD_OUT_PERCENT:
        return "held_out"
    return "first" if bucket // 100 % 2 else "second"


def load_documents(config: CorpusConfig) -> list[str]:
    """All clean documents, exact duplicates of a paragraph dropped, in corpus order. Raises InputError if there are none."""
    seen: set[bytes] = set()
    documents = []
    for raw in raw_documents(config):
        paragraphs = []
        for paragraph in clean(raw).split("\n"):
            digest = hashlib.blake2b(" ".join(paragraph.lower().split()).encode(), digest_size=8).digest()
            if paragraph and digest not in seen:
                seen.add(digest)
                paragraphs.append(paragraph)
        text = "\n".join(paragraphs)
        if len(text) >= MIN_CHARACTERS:
            documents.append(text)
    if not documents:
        raise InputError(f"corpus {config.path}: no document of at least {MIN_CHARACTERS} characters; give more text")
    return documents


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


def prepare(config: CorpusConfig, vocabulary: Vocabulary | None, vocab_size: int) -> Corpus:
    """Load, split and encode a corpus; a missing vocabulary is trained on all its training documents."""
    documents = load_documents(config)
    vocabulary = vocabulary or Vocabulary.train(select(documents, "all"), vocab_size)
    chosen = select(documents, config.part)
    train = torch.from_numpy(vocabulary.stream(chosen))
    test = torch.from_numpy(vocabulary.stream(held_out(documents)))
    digest = hashlib.sha256("\0".join(documents).encode()).hexdigest()
    python = config.path == "python"
    facts = CorpusFacts(
        documents=len(documents), training_documents=len(chosen), training_tokens=len(train), held_out_tokens=len(test),
        sha256=digest, python=platform.python_version() if python else None,
        distributions=[f"{d.name}=={d.version}" for d in python_distributions()] if python else None)
    return Corpus(vocabulary, train, test, facts)


def windows_of(stream: torch.Tensor, length: int, limit: int) -> torch.Tensor:
    """Up to `limit` windows [n, L] int64 evenly spaced over a stream. Raises InputError if there is none."""
    count = len(stream) // length
    if not count:
        raise InputError(f"the held-out text has {len(stream)} tokens, fewer than one window of {length}; give more text, in "
                         "more documents: 2 % of them are held out (in a .txt, blank lines separate documents)")
    picks = torch.linspace(0, count - 1, min(limit, count)).long()
    return stream[: count * length].view(count, length)[picks].long()
