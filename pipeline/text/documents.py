"""The documents of a corpus, wherever it lies: the built-in one, a file, a folder, or a dataset of the Hub."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tsdfm.pipeline.text.cleaning import LeftOut, clean, told
from tsdfm.pipeline.text.sources.built_in import built_in_documents
from tsdfm.pipeline.text.sources.folders import files_of
from tsdfm.pipeline.text.sources.formats import file_texts
from tsdfm.pipeline.text.sources.hub import HubText
from tsdfm.schemas.base import InputError
from tsdfm.schemas.corpus import BUILT_IN, HUB, CorpusConfig
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.words import count

STAGE, TEXTS_AT_ONCE = "reading the corpus", 1000


@dataclass
class Reading:
    """What is told of a corpus as it is read: how far it is, what was left out, and which commit of the Hub it was."""

    progress: Progress = unheard
    left_out: LeftOut = field(default_factory=LeftOut)
    commit: str | None = None


def load_documents(config: CorpusConfig, reading: Reading | None = None) -> list[str]:
    """All documents of a corpus, in its order, cleaned as the config says; `reading` is told what there is to tell.

    Raises InputError if there is no such corpus, it can't be read, or holds no document; WorkError if the Hub can't be reached.
    """
    reading = reading or Reading()
    if config.path == BUILT_IN:
        documents = built_in_documents(reading.progress)
    else:
        documents = list(clean(_texts(config, reading), config.clean, reading.left_out))
    left_out = told(reading.left_out)
    if not documents:
        raise InputError(f"corpus {config.path}: holds no document" + (f" (left out: {left_out})" if left_out else "") +
                         "; give more text")
    reading.progress(STAGE, 1, 1, count(len(documents), "document") + (f"; left out: {left_out}" if left_out else ""))
    return documents


def _texts(config: CorpusConfig, reading: Reading) -> Iterator[str | None]:
    """The texts of a corpus as they are, in order, with a word of progress now and then."""
    for number, text in enumerate(_of_hub(config, reading) if config.path.startswith(HUB) else _of_files(config, reading)):
        if number % TEXTS_AT_ONCE == 0:
            reading.progress(STAGE, 0, 1, f"{number:,} texts")
        yield text


def _of_hub(config: CorpusConfig, reading: Reading) -> Iterator[str | None]:
    found = HubText.find(config.path)
    reading.commit = found.commit
    return found.texts(config.text_field)


def _of_files(config: CorpusConfig, reading: Reading) -> Iterator[str | None]:
    path = Path(config.path)
    if path.is_dir():
        files = files_of(path, reading.left_out)
    elif path.is_file():
        files = [path]
    else:
        found = "neither a regular file nor a folder" if path.exists() else "no such file or folder"
        raise InputError(f"corpus {path}: {found}; give a path, '{BUILT_IN}' or '{HUB}NAME'")
    return (text for file in files for text in file_texts(file, config.text_field))
