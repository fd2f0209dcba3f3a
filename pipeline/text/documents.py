"""The documents of a corpus, wherever it lies: one that has a name, a file, a folder, or a dataset of the Hub.

They come one after another, always in the same order, and none is kept here: what is remembered of a document is a digest.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tsdfm.pipeline.text.cleaning import LeftOut, clean, told
from tsdfm.pipeline.text.sources.bible import SHA256, Bible
from tsdfm.pipeline.text.sources.folders import files_of
from tsdfm.pipeline.text.sources.formats import LONGEST, file_texts
from tsdfm.pipeline.text.sources.hub import HubText
from tsdfm.pipeline.text.sources.python import python_documents, python_stamp
from tsdfm.pipeline.text.split import Split, split_of
from tsdfm.schemas.base import InputError
from tsdfm.schemas.corpus import BIBLE, HUB, PYTHON, CorpusConfig
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.words import count

STAGE, TEXTS_AT_ONCE, CHARACTERS_AT_ONCE = "reading the corpus", 1000, 1 << 22  # between two words of progress
SETTLED_NS = 50_000_000  # times of files go in steps, of a few milliseconds: a change within one can't be told by them


@dataclass
class Reading:
    """What is told of a corpus as it is read: how far it is, what was left out, and which commit of the Hub it was."""

    progress: Progress = unheard
    left_out: LeftOut = field(default_factory=LeftOut)
    commit: str | None = None

    def finished(self, path: str, documents: int) -> None:
        """Tell what was read. Raises InputError if it holds no document."""
        left_out = told(self.left_out)
        if not documents:
            raise InputError(f"corpus {path}: holds no document" + (f" (left out: {left_out})" if left_out else "") +
                             "; give more text")
        self.progress(STAGE, 1, 1, count(documents, "document") + (f"; left out: {left_out}" if left_out else ""))


@dataclass(frozen=True)
class Source:
    """A corpus that was found, and not yet read.

    `stamp`: plain JSON that is another whenever the texts are others: names, sizes and times of files, or a commit.
    `left_out`: what was passed over already. `documents`: reads it; asked for the left out and the progress. `split`: of each.
    """

    stamp: list[object]
    commit: str | None
    left_out: LeftOut
    documents: Callable[[Reading], Iterator[str]]
    split: Callable[[str], Split] = split_of


def find_source(config: CorpusConfig) -> Source:
    """Find a corpus. Raises InputError if there is none; WorkError if the Hub can't be reached."""
    if config.path == BIBLE:
        bible = Bible()
        return Source([SHA256], None, LeftOut(), lambda _: bible.documents(), bible.split_of)
    if config.path == PYTHON:
        return Source([python_stamp()], None, LeftOut(), lambda reading: iter(python_documents(reading.progress)))
    if config.path.startswith(HUB):
        found = HubText.find(config.path)
        stamp: list[object] = [found.repo, found.commit, found.config, found.split]
        return Source(stamp, found.commit, LeftOut(), lambda reading: _cleaned(config, found.texts(config.text_field), reading))
    left_out = LeftOut()
    files = _files(config, left_out)

    def texts() -> Iterator[str | None]:
        return (text for file in files for text in file_texts(file, config.text_field))

    return Source([dict(left_out), *_settled(files)], None, left_out, lambda reading: _cleaned(config, texts(), reading))


def read_documents(config: CorpusConfig, reading: Reading | None = None) -> Iterator[str]:
    """All documents of a corpus, in its order, cleaned as the config says; `reading` is told what there is to tell.

    Raises InputError if there is no such corpus, it can't be read, or holds no document; WorkError if the Hub can't be reached.
    """
    reading, number = reading or Reading(), 0
    source = find_source(config)
    reading.commit = source.commit
    reading.left_out.update(source.left_out)
    for document in source.documents(reading):
        yield document
        number += 1
    reading.finished(config.path, number)


def _cleaned(config: CorpusConfig, texts: Iterator[str | None], reading: Reading) -> Iterator[str]:
    return clean(_watched(config.path, texts, reading.progress), config.clean, reading.left_out)


def _watched(path: str, texts: Iterator[str | None], progress: Progress) -> Iterator[str | None]:
    """The texts as they are, with a word of progress now and then. Raises InputError where one is too long."""
    started, characters, told_of = time.monotonic(), 0, -CHARACTERS_AT_ONCE
    for number, text in enumerate(texts):
        if text is not None and len(text) > LONGEST:
            raise InputError(f"corpus {path}: text {number} has {len(text):,} characters, more than the {LONGEST:,} that one "
                             "document may have; cut it into several")
        if number % TEXTS_AT_ONCE == 0 or characters - told_of >= CHARACTERS_AT_ONCE:
            rate = characters / max(1e-9, time.monotonic() - started)
            progress(STAGE, 0, 1, f"{number:,} texts, {characters / 1e6:,.0f} million characters, {rate / 1e6:.1f} million/s")
            told_of = characters
        characters += len(text or "")
        yield text


def _files(config: CorpusConfig, left_out: LeftOut) -> list[Path]:
    path = Path(config.path)
    if path.is_dir():
        return files_of(path, left_out)
    if path.is_file():
        return [path]
    found = "neither a regular file nor a folder" if path.exists() else "no such file or folder"
    raise InputError(f"corpus {path}: {found}; give a path, '{BIBLE}', '{PYTHON}' or '{HUB}NAME'")


def _settled(files: list[Path]) -> list[list[object]]:
    """Names, sizes and times of files, once the times are old enough that a later change would give others."""
    while True:
        try:
            stats = [(file, file.stat()) for file in files]
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror}); check the file") from None
        newest = max((max(stat.st_mtime_ns, stat.st_ctime_ns) for _, stat in stats), default=0)
        if not 0 <= time.time_ns() - newest < SETTLED_NS:
            return [[str(file.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
                    for file, stat in stats]
        time.sleep(SETTLED_NS / 1e9)
