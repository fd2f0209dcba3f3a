"""A corpus as it was read: its clean documents in files of this user's cache, so that it is read once and never held in memory.

Below $TSDFM_CORPORA, or ~/.cache/tsdfm-pipeline/corpora:

    KEY/corpus.json         a `StoredCorpus`, written last
    KEY/text-00000.zst      documents, the initial of its split before and a zero byte behind each; Zstandard

KEY is a digest of what the documents are made from: where they lie, names, sizes and times of files or the commit of the Hub,
how they are cleaned, and all code of this room.
"""

import hashlib
import json
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import zstandard

from tsdfm.pipeline.storage.atomic import write_atomic, writing_atomic
from tsdfm.pipeline.storage.cache import CORPORA, corpora_folder
from tsdfm.pipeline.storage.locks import flock
from tsdfm.pipeline.storage.store import FULL
from tsdfm.pipeline.text.documents import STAGE, Reading, Source, find_source
from tsdfm.pipeline.text.split import Part, Split, splits_of
from tsdfm.schemas.base import InputError, WorkError, first_line, parse_json, to_json
from tsdfm.schemas.corpus import NAMED, CorpusConfig
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.regular import open_regular, read_regular
from tsdfm.schemas.stored_corpus import StoredCorpus

INDEX, END = "corpus.json", b"\0"  # no document holds a zero byte
PIECE_BYTES, READ_BYTES = 1 << 26, 1 << 20
WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class StoredText:
    """A corpus that was read."""

    folder: Path
    facts: StoredCorpus

    def documents(self, part: Part) -> Iterator[str]:
        """The documents of a part, in order. Raises OSError or WorkError as `piece`."""
        return (text for number in range(len(self.facts.pieces)) for text in self.piece(number, part))

    def piece(self, number: int, part: Part) -> Iterator[str]:
        """The documents of one file that are of a part. Raises OSError if it isn't there, Damaged if it isn't as it was."""
        wanted = {split[0] for split in splits_of(part)}
        return (text[1:] for text in self._all_of(number) if text[0] in wanted)

    def _all_of(self, number: int) -> Iterator[str]:
        path, found, rest = _piece_file(self.folder, number), 0, [b""]
        try:
            with open_regular(path) as raw:
                stream = zstandard.ZstdDecompressor().stream_reader(raw)
                while data := stream.read(READ_BYTES):
                    first, *more = data.split(END)
                    rest.append(first)
                    if more:
                        for each in (b"".join(rest), *more[:-1]):
                            found += 1
                            yield each.decode()
                        rest = [more[-1]]
        except (zstandard.ZstdError, UnicodeDecodeError) as error:
            raise Damaged(f"{path}: is damaged ({first_line(error)}); delete it") from None
        if found != self.facts.pieces[number] or any(rest):
            raise Damaged(f"{path}: holds {found:,} documents of {self.facts.pieces[number]:,}; delete it")

    def forget(self) -> None:
        """Have the corpus read anew when it is asked for again."""
        (self.folder / INDEX).unlink(missing_ok=True)


class Damaged(WorkError):
    """A file of the cache is not as it was written."""


def _piece_file(folder: Path, number: int) -> Path:
    return folder / f"text-{number:05d}.zst"


def stored_text(config: CorpusConfig, progress: Progress = unheard) -> StoredText:
    """The documents of a corpus, read now or before. `progress` may raise: then nothing of a reading under way counts.

    Raises InputError if there is no such corpus, it can't be read, or holds no document; WorkError if the Hub can't be reached,
    the files changed meanwhile, or the disk of the cache is full.
    """
    source = find_source(config)
    folder = _folder_of(config, source)
    found = _found(folder)
    if found is None:
        with made_once(folder, progress):
            found = _found(folder) or _read(config, source, folder, progress)
    Reading(progress, Counter(found.facts.left_out)).finished(config.path, sum(found.facts.splits.values()))
    return found


def _found(folder: Path) -> StoredText | None:
    with suppress(OSError, InputError):
        return StoredText(folder, parse_json(StoredCorpus, read_regular(folder / INDEX), str(folder / INDEX)))
    return None


def _folder_of(config: CorpusConfig, source: Source) -> Path:
    name = config.path if config.path in NAMED else [config.path, config.text_field, config.clean]
    room = Path(__file__).parent  # all of its code, of which some decides the documents, and some how they become tokens
    code = [hashlib.sha256(each.read_bytes()).hexdigest() for each in sorted(room.rglob("*.py"))]
    key = json.dumps([name, source.stamp, code, unicodedata.unidata_version], sort_keys=True)
    return corpora_folder() / hashlib.sha256(key.encode()).hexdigest()[:32]


def _read(config: CorpusConfig, source: Source, folder: Path, progress: Progress) -> StoredText:
    reading = Reading(progress, Counter(source.left_out))
    tally, pieces, texts = _Tally(), list[int](), source.documents(reading)
    while (first := next(texts, None)) is not None:
        pieces.append(_write_piece(_piece_file(folder, len(pieces)), chain([first], texts), source.split, tally))
    if find_source(config).stamp != source.stamp:
        raise WorkError(f"corpus {config.path}: changed while it was read; run the command again")
    facts = StoredCorpus(splits=dict(tally.splits), sha256=tally.digest.hexdigest(), commit=source.commit,
                         left_out=dict(+reading.left_out), pieces=pieces)
    if pieces:
        with kept_on_disk():
            write_atomic(folder / INDEX, to_json(facts).encode())
    return StoredText(folder, facts)


class _Tally:
    """What is known of documents once they have gone by: how many are in each split, and the digest of all."""

    def __init__(self) -> None:
        self.splits, self.digest = Counter[str](), hashlib.sha256()

    def add(self, split: Split, data: bytes) -> None:
        """Count a document; `data`: its UTF-8."""
        if self.splits:
            self.digest.update(END)
        self.digest.update(data)
        self.splits[split] += 1


def _write_piece(path: Path, texts: Iterable[str], split_of: Callable[[str], Split], tally: _Tally) -> int:
    """Write documents until the file is large enough. Returns how many."""
    count = size = 0
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    with kept_on_disk(), writing_atomic(path) as file, compressor.stream_writer(file, closefd=False) as writer:
        for text in texts:
            split, data = split_of(text), text.encode()
            tally.add(split, data)
            writer.write(split[0].encode() + data + END)
            count, size = count + 1, size + len(data)
            if size >= PIECE_BYTES:
                break
    return count


@contextmanager
def kept_on_disk() -> Iterator[None]:
    """Turn what goes wrong with the disk of the cache into a WorkError of one line."""
    try:
        yield
    except OSError as error:
        what = "the disk is full; free some space" if error.errno in FULL else f"cannot write there ({error.strerror or error})"
        raise WorkError(f"{corpora_folder()}, where corpora are kept: {what}, or set {CORPORA} to a folder of another disk; "
                        "the same command goes on") from None


@contextmanager
def made_once(folder: Path, progress: Progress) -> Iterator[None]:
    """Hold a folder of the cache, which is made, while something is made in it; wait for another process that does.

    Where the disk knows no locks it is not held: files appear whole, so the work is done twice at the worst.
    """
    with ExitStack() as held:
        with kept_on_disk():
            folder.mkdir(parents=True, exist_ok=True)
        held_by_us = False
        while not held_by_us:
            try:
                with suppress(OSError):
                    held.enter_context(flock(folder, str(folder)))
                held_by_us = True
            except InputError:
                progress(STAGE, 0, 1, "waiting for another process, which reads it")
                time.sleep(WAIT_SECONDS)
        for leftover in folder.rglob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        yield
