"""Texts of a dataset of the Hugging Face Hub, streamed: hub:NAME[@REVISION][:CONFIG][:SPLIT].

A single part behind the name is a config if the dataset has one of that name, else a split. All of a run reads one commit: what
a branch or tag points to is looked up once.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tsdfm.pipeline.storage.hub.client import client, explained
from tsdfm.pipeline.text.sources.fields import no_field, record_text
from tsdfm.schemas.base import InputError, WorkError, first_line
from tsdfm.schemas.corpus import HUB

TRAIN = "train"
NAMES_SHOWN = 40
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubText:
    """A split of a dataset, at one commit."""

    name: str
    repo: str
    commit: str
    config: str
    split: str

    @classmethod
    def find(cls, path: str) -> "HubText":
        """What a path hub:NAME[@REVISION][:CONFIG][:SPLIT] names. Raises InputError or WorkError."""
        from datasets import get_dataset_config_names, get_dataset_default_config_name, get_dataset_split_names

        address, *parts = path.removeprefix(HUB).split(":")
        repo, _, revision = address.partition("@")
        if not repo or len(parts) > 2:
            raise InputError(f"{path}: not a dataset of the Hub; write {HUB}NAME[@REVISION][:CONFIG][:SPLIT]")
        if _COMMIT.fullmatch(revision):
            commit = revision
        else:
            with explained(path):
                commit = str(client().dataset_info(repo, revision=revision or None).sha)
        with _asked(path):
            configs = get_dataset_config_names(repo, revision=commit)
            usual = get_dataset_default_config_name(repo, revision=commit)
        config, split = _told(path, parts, configs, usual)
        with _asked(path):
            splits = get_dataset_split_names(repo, config, revision=commit)
        if split not in splits:
            what = "config or split" if len(parts) == 1 else "split"
            more = f", the configs {_some(configs)}" if len(parts) == 1 else ""
            raise InputError(f"{path}: no {what} '{split}'; it has the splits {_some(splits)}{more}")
        return cls(path, repo, commit, config, split)

    def texts(self, field: str) -> Iterator[str | None]:
        """The texts, in order; None where one is null. Raises InputError or WorkError."""
        from datasets import load_dataset

        with _asked(self.name):
            rows = load_dataset(self.repo, self.config, split=self.split, revision=self.commit, streaming=True)
            if rows.column_names is not None:
                if field not in rows.column_names:
                    raise no_field(self.name, field, rows.column_names)
                rows = rows.select_columns([field])
            for number, row in enumerate(rows):
                yield record_text(row, field, f"{self.name}: row {number}")


def _told(path: str, parts: list[str], configs: list[str], usual: str | None) -> tuple[str, str]:
    """The config and the split that are meant; `usual`: the config where none is named. Raises InputError if one has to be."""
    config = parts[0] if parts else ""
    split = parts[1] if len(parts) > 1 else ""
    if len(parts) == 1 and config not in configs:
        config, split = "", config
    if config and config not in configs:
        raise InputError(f"{path}: no config '{config}'; it has {_some(configs)}")
    if not config and usual is None:
        raise InputError(f"{path}: has several configs; name one of them, {HUB}NAME:CONFIG: {_some(configs)}")
    return config or str(usual), split or TRAIN


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else "")


@contextmanager
def _asked(path: str) -> Iterator[None]:
    """What `datasets` raises, in one line: InputError, or WorkError where the Hub can't be reached. No bars meanwhile."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    if shown:
        disable_progress_bars()
    try:
        with explained(path):
            try:
                yield
            except (FileNotFoundError, ValueError, RuntimeError) as error:  # its words for what is not as it should be
                if type(error).__module__.startswith("huggingface_hub"):
                    raise  # of the client, which can't reach the Hub
                raise _unreadable(path, error) from None
    except (InputError, WorkError):
        raise
    except Exception as error:  # whatever else a library may say of the files of others
        raise _unreadable(path, error) from None
    finally:
        if shown:
            enable_progress_bars()


def _unreadable(path: str, error: Exception) -> InputError:
    return InputError(f"{path}: datasets can't read it ({first_line(error)}); check the name, the config and the split")
