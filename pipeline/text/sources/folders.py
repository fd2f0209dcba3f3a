"""Which files of a folder are read: those that `datasets` would read as the split `train`, if the folder is laid out in splits;
else all files with texts. Cards, licences and hidden files never are.

A folder is laid out in splits if its card (README.md) says so under `configs`, or files or folders are named for them, as in a
snapshot of a Hub dataset: data/train-00000-of-00001.parquet, test.jsonl, validation/.
"""

import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os.path import abspath
from pathlib import Path

from tsdfm.pipeline.text.cleaning import LeftOut
from tsdfm.pipeline.text.sources.compression import bare_name
from tsdfm.pipeline.text.sources.formats import KNOWN, is_known, suffix_of
from tsdfm.schemas.base import InputError, first_line
from tsdfm.schemas.regular import read_regular

TRAIN, HELD_BACK = "train", {"test", "validation"}
CARDS, OTHER_SPLITS, OTHER_KINDS = "cards", "files of other splits", "files of other kinds"
UNREADABLE = "folders that can't be read"
_CARD = re.compile(r"(readme|licen[cs]e|copying|notice|citation|datasheet)([-_][\w-]{1,16})?")
_NOT_DATA = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}  # of `datasets`
_CONFIGS = re.compile(rb"\A---\r?\n(?:.*\n)*?configs:")  # in the head of a card
_CARD_BESIDE = ".huggingface.yaml"  # may be there, and say more than the card
_SPLITS = re.compile(r"train|val|dev|test|eval")  # no split has a name without one of these


def files_of(folder: Path, left_out: LeftOut) -> list[Path]:
    """The files of a folder that are read, in the order of their paths; others are counted in `left_out`.

    Raises InputError if there are none.
    """
    files = sorted(_walked(folder, left_out))
    texts = [path for path in files if not _is_card(path)]
    read = [path for path in texts if is_known(path)]
    others = Counter(suffix_of(path) or bare_name(path) for path in texts if not is_known(path))
    train, held_back = _splits(folder, files, read)
    left_out.update({CARDS: len(files) - len(texts), OTHER_SPLITS: len(read) - len(train)})
    if others:
        left_out[f"{OTHER_KINDS} ({', '.join(sorted(others)[:8])})"] += sum(others.values())
    if not train:
        there = ", ".join(f"{number} {kind}" for kind, number in others.most_common(8))
        what = (f"only the splits {', '.join(held_back)}, which are not trained on" if read
                else f"no {', '.join(KNOWN)} files in this folder" + (f" (there are {there})" if there else ""))
        raise InputError(f"{folder}: {what}; point --corpus (corpus.path) at your text")
    return train


def _walked(folder: Path, left_out: LeftOut) -> Iterator[Path]:
    """The files in a folder and below that are not hidden, also in linked folders; each folder once, so no link goes round."""
    seen, linked = set[str](), [folder]

    def unreadable(_: OSError) -> None:
        left_out[UNREADABLE] += 1

    while linked:
        starts, linked = sorted(linked), []
        for start in starts:
            for here, folders, files in os.walk(start, onerror=unreadable):
                place = os.path.realpath(here)
                folders[:] = sorted(name for name in folders if not name.startswith(".")) if place not in seen else []
                if place in seen:
                    continue
                seen.add(place)
                linked += [Path(here, name) for name in folders if os.path.islink(Path(here, name))]
                yield from (Path(here, name) for name in files if not name.startswith("."))


def _is_card(path: Path) -> bool:
    return path.name in _NOT_DATA or _CARD.fullmatch(path.name.lower().partition(".")[0]) is not None


def _splits(folder: Path, files: list[Path], read: list[Path]) -> tuple[list[Path], list[str]]:
    """The files, of those that can be read, that are trained on, and the names of the splits that the others are of."""
    card = folder / "README.md"
    card_says = card.is_file() and _CONFIGS.match(read_regular(card)) is not None
    if not (card_says or any(_SPLITS.search(path.relative_to(folder).as_posix()) for path in read)):
        return read, []
    with _alike(folder, files) as likeness:
        found = _of_card(folder, likeness) if card_says else _of_names(likeness)
        split = {abspath(folder / Path(file).relative_to(likeness)): of for file, of in found.items()
                 if Path(file).is_relative_to(likeness)} | found
    names = sorted(set(split.values()))
    if TRAIN in names:
        return [path for path in read if split.get(abspath(path)) == TRAIN], names
    return [path for path in read if split.get(abspath(path)) not in HELD_BACK], names


@contextmanager
def _alike(folder: Path, files: list[Path]) -> Iterator[Path]:
    """A folder of links to the files of a folder, for `datasets`, which takes brackets in a name for a pattern and follows no
    link to a folder."""
    with tempfile.TemporaryDirectory(prefix="tsdfm-datasets-") as made:
        likeness = Path(made).resolve() / "data"
        for file in [*files, folder / _CARD_BESIDE]:
            link = likeness / file.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(abspath(file))
        yield likeness


def _of_names(likeness: Path) -> dict[str, str]:
    """The split of each file of a folder's likeness, by the names of files and folders."""
    from datasets.data_files import get_data_patterns, resolve_pattern

    found: dict[str, str] = {}
    with suppress(FileNotFoundError):  # no pattern has a file
        for split, patterns in get_data_patterns(str(likeness)).items():
            for pattern in patterns:
                with suppress(FileNotFoundError):  # this one has none
                    found |= {abspath(file): str(split) for file in resolve_pattern(pattern, str(likeness))}
    return found


def _of_card(folder: Path, likeness: Path) -> dict[str, str]:
    """The split of each file of a folder's likeness that the card's config names.

    Raises InputError if there are several configs, and no default.
    """
    from datasets import get_dataset_config_names, load_dataset_builder

    with tempfile.TemporaryDirectory(prefix="tsdfm-datasets-") as cache:
        try:
            files = load_dataset_builder(str(likeness), cache_dir=cache).config.data_files
        except Exception as error:  # whatever a card may say
            if "Config name is missing" in str(error):
                names = ", ".join(get_dataset_config_names(str(likeness)))
                raise InputError(f"{folder}: its README.md names several configs ({names}); point --corpus at the files of one"
                                 ) from None
            what = first_line(error).replace(str(likeness), str(folder))
            raise InputError(f"{folder}: datasets can't read this folder by its README.md ({what}); mend the card, or point "
                             "--corpus at the files") from None
    return {abspath(file): str(split) for split, each in (files or {}).items() for file in each}
