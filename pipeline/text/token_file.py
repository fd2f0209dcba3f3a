"""The tokens of a corpus in files that are mapped into memory: made once, in pieces, by as many processes as there are.

    KEY/tokens-PART-TOKENIZER/00000.uint16    tokens of text-00000.zst (`stored_text`), behind them the sha256 of their bytes

TOKENIZER is a digest of the tokenizer, of the library's version and of the documents. A piece is there and whole or not at
all, so that a run which was killed goes on with what is missing. Tokens take two bytes where the vocabulary has at most 65,536
ids, else four.
"""

import hashlib
import logging
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import tokenizers
import torch
from torch import Tensor

from tsdfm.pipeline.storage.atomic import writing_atomic
from tsdfm.pipeline.text.split import Part
from tsdfm.pipeline.text.stored_text import StoredText, kept_on_disk, made_once
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.regular import open_regular

STAGE = "tokenising the corpus"
SHORT_IDS, READ_BYTES = 1 << 16, 1 << 20
DIGEST = hashlib.sha256().digest_size
LOOKED_AT = 200  # documents, for what a tokenizer leaves out
log = logging.getLogger(__name__)


class Tokens(Protocol):
    """Tokens one after another; a 1-d tensor is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Tensor:
        """Those of a stretch, without a step."""
        ...


class TokenStream:
    """Tokens that lie in several arrays, one after another."""

    def __init__(self, pieces: Sequence[npt.NDArray[np.integer]]) -> None:
        self._pieces = pieces
        self._starts = np.cumsum([0, *map(len, pieces)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, part: slice) -> Tensor:
        """A stretch, [n] int64, copied."""
        start, stop, _ = part.indices(len(self))
        first, last = np.searchsorted(self._starts, [start, stop], side="right") - 1
        parts = [self._pieces[number][max(0, start - self._starts[number]) : max(0, stop - self._starts[number])]
                 for number in range(first, min(last + 1, len(self._pieces)))]
        return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64, copy=False))


@dataclass(frozen=True)
class TokenJob:
    """What is to be tokenised, and by what; it may be sent to another process that sees the same folder."""

    text: StoredText
    part: Part
    tokenizer: str  # its canonical JSON
    where: str  # how messages name it

    def __reduce__(self) -> tuple[type["TokenJob"], tuple[StoredText, Part, str, str]]:
        """Without the opened tokenizer: the library does not send along how it takes special tokens."""
        return TokenJob, (self.text, self.part, self.tokenizer, self.where)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer, opened."""
        return Vocabulary.of_json(self.tokenizer, self.where)

    @cached_property
    def dtype(self) -> np.dtype[np.integer]:
        """Of the tokens in files."""
        return np.dtype("<u2" if self.vocabulary.size <= SHORT_IDS else "<i4")

    @cached_property
    def folder(self) -> Path:
        """Where the tokens lie."""
        made_from = "\0".join([self.tokenizer, tokenizers.__version__, self.text.facts.sha256])
        return self.text.folder / f"tokens-{self.part}-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}"

    def file(self, number: int) -> Path:
        """Of the tokens of one piece of text."""
        return self.folder / f"{number:05d}.{self.dtype.name}"

    def write(self, number: int) -> Generator[int, None, None]:
        """Tokenise a piece of text; how many more tokens there are, as it goes on. To be asked to its end.

        Raises InputError if the tokenizer can't, OSError, or Damaged, as `StoredText.piece`.
        """
        digest = hashlib.sha256()
        with writing_atomic(self.file(number)) as file:
            for tokens in self.vocabulary.streams(self.text.piece(number, self.part)):
                data = tokens.astype(self.dtype).tobytes()
                digest.update(data)
                file.write(data)
                yield len(tokens)
            file.write(digest.digest())

    def is_there(self, number: int) -> bool:
        """Whether the tokens of a piece of text are there, as they were written."""
        try:
            with open_regular(self.file(number)) as file:
                left, digest = file.seek(0, 2) - DIGEST, hashlib.sha256()
                file.seek(0)
                while left > 0 and (data := file.read(min(READ_BYTES, left))):
                    digest.update(data)
                    left -= len(data)
                return file.read() == digest.digest()
        except OSError:
            return False

    def tokens(self, number: int) -> npt.NDArray[np.integer]:
        """The tokens of a piece of text, mapped. Raises OSError if they aren't there."""
        size = (self.file(number).stat().st_size - DIGEST) // self.dtype.itemsize
        if not size:  # which can't be mapped
            return np.empty(0, self.dtype)
        return np.asarray(np.memmap(self.file(number), self.dtype, mode="r", shape=(size,)))


class Spread(Protocol):
    """Who tokenises: it asks `write` of a job for each of some pieces, anywhere."""

    def __call__(self, job: TokenJob, numbers: Sequence[int]) -> Generator[tuple[int, int], None, None]:
        """(more pieces, more tokens) that are done, at least every second or so. Raises as `TokenJob.write`. To be closed."""
        ...


def one_by_one(job: TokenJob, numbers: Sequence[int]) -> Generator[tuple[int, int], None, None]:
    """Tokenise in this process; the library uses all cores."""
    for number in numbers:
        with closing(job.write(number)) as writing:
            for tokens in writing:
                yield 0, tokens
        yield 1, 0


def token_stream(
    text: StoredText, vocabulary: Vocabulary, part: Part, progress: Progress = unheard, spread: Spread = one_by_one
) -> TokenStream:
    """The tokens of a part of a corpus, each document followed by the end of text; made now or before.

    Raises InputError if the tokenizer can't encode the text, WorkError if the disk of the cache is full, Damaged if the stored
    text is not as it was. What is finished is kept when `progress` raises, too.
    """
    job, numbers = TokenJob(text, part, vocabulary.to_json(), vocabulary.where), range(len(text.facts.pieces))
    if _missing(job, numbers):
        with made_once(text.folder, progress), kept_on_disk():
            job.folder.mkdir(exist_ok=True)
            _warn_of_lost(job)
            _make(job, _missing(job, numbers), progress, spread)
    with kept_on_disk():
        return TokenStream([job.tokens(number) for number in numbers])


def _warn_of_lost(job: TokenJob) -> None:
    """Say so if the tokenizer leaves out characters of the text in silence, by its first documents."""
    texts = list(islice(job.text.piece(0, job.part), LOOKED_AT))
    lost = [each for text in texts for each in job.vocabulary.lost(text)]
    if lost:
        log.warning("%s: the tokenizer has no token for %r, say: it leaves out %s of the first %s characters of the text (%s); "
                    "give one with bytes or an unknown token if they should count", job.where, lost[0][:20],
                    f"{sum(map(len, lost)):,}", f"{sum(map(len, texts)):,}", job.part)


def _missing(job: TokenJob, numbers: Sequence[int]) -> list[int]:
    return [number for number in numbers if not job.is_there(number)]


def _make(job: TokenJob, missing: Sequence[int], progress: Progress, spread: Spread) -> None:
    total, tokens, started = len(job.text.facts.pieces), 0, time.monotonic()
    done = total - len(missing)
    with closing(spread(job, missing)) as going:
        for more_pieces, more_tokens in going:
            done, tokens = done + more_pieces, tokens + more_tokens
            rate = tokens / max(1e-9, time.monotonic() - started)
            progress(STAGE, done, total, f"{tokens:,} tokens ({job.part}), {rate / 1e6:.2f} million/s")
