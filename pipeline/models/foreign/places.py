"""Where the files of a checkpoint are: at a path, in a folder, or in a repository of the Hub, which is not fetched whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tsdfm.pipeline.storage.hub.models import HUB, HubModel, hub_model
from tsdfm.schemas.base import InputError
from tsdfm.schemas.words import count

# Looked for in this order; else the only file with such a suffix is taken.
USUAL = ("model.safetensors", "pytorch_model.bin", "checkpoint.pth", "checkpoints/checkpoint.pth")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
INDEX = "model.safetensors.index.json"
BESIDE = ("*.json", "*.txt", "*.model")  # config and tokenizer
_SHOWN = 8  # names in a message


@dataclass(frozen=True)
class Place:
    """A file of weights, and the folder of what stands beside it."""

    file: Path
    commit: str | None = None  # of a repository of the Hub

    @property
    def folder(self) -> Path:
        """Where config.json and the tokenizer are, if there are any."""
        return self.file.parent


def find(name: str, wanted: str | None) -> Place:
    """The weights of a checkpoint.

    Args:
        name: a file, a folder, or hub:USER/NAME[@REVISION].
        wanted: which file of a folder or repository; None: the usual or the only one.

    Raises InputError (no such place, no weights, or several) or WorkError (the Hub can't be reached).
    """
    if name.startswith(HUB):
        return _on_the_hub(hub_model(name), name, wanted)
    path = Path(name)
    if path.is_file():
        if wanted is not None:
            raise InputError(f"--file {wanted}: {path} is a file itself; leave out --file, or give its folder")
        return Place(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such checkpoint; give a .safetensors or torch file, a folder with one, or "
                         "hub:USER/NAME")
    inside = {each.relative_to(path).as_posix() for depth in ("*", "*/*") for each in path.glob(depth) if each.is_file()}
    if wanted is not None and (path / wanted).is_file():
        inside.add(wanted)  # however deep
    return Place(path / _choose(sorted(inside), wanted, f"checkpoint {path}"))


def _on_the_hub(model: HubModel, name: str, wanted: str | None) -> Place:
    chosen = _choose(model.files(), wanted, name)
    return Place(model.fetch([chosen, *BESIDE]) / chosen, model.commit)


def _choose(files: Sequence[str], wanted: str | None, where: str) -> str:
    if wanted is not None:
        if wanted in files:
            return wanted
        raise InputError(f"--file {wanted}: {where} has no such file (it has {_listed(files)})")
    usual = next((each for each in USUAL if each in files), None)
    if usual is not None:
        return usual
    if INDEX in files:
        raise InputError(f"{where}: its weights are divided over several files ({INDEX}), which are not read; save them as one")
    weights = [each for each in files if PurePosixPath(each).suffix in SUFFIXES]
    if len(weights) > 1:
        raise InputError(f"{where}: holds {count(len(weights), 'file')} of weights ({_listed(weights)}); name one with --file")
    if not weights:
        raise InputError(f"{where}: holds no file of weights (it has {_listed(files)}); .safetensors and torch files "
                         f"({', '.join(SUFFIXES[1:])}) are read")
    return weights[0]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "") if names else "nothing"
