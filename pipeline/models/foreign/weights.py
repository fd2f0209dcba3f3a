"""Open checkpoints of other projects: tensors by name, from safetensors or torch files. No object of a file is ever built.

A torch file is read with `weights_only=True`: tensors, numbers, strings and containers of them; anything else is refused before
it is built. One exception: Lightning keeps a run's config and tokenizer beside its weights. Where a file names classes of the
libraries in PASSED_OVER, torch's restricted reader puts an empty object of ours in their place, and none of their code runs.
Training states hold several sets of weights (teacher, student, EMA); each is found where it is nested.
"""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tsdfm.schemas.base import InputError, first_line

# Of several sets in one file, the first of these is taken: students before teachers, averaged before raw weights.
PASSED_OVER = ("omegaconf.", "lightning.", "pytorch_lightning.", "lightning_fabric.", "transformers.", "tokenizers.", "typing.",
               "collections.", "pathlib.", "datetime.")
PLAIN = {f"builtins.{kind.__name__}": kind for kind in (dict, list, tuple, set, str, int, float, bool)}
ORDER = ("student_ema_model", "student_model", "ema", "model", "state_dict", "teacher_model")
PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.")  # of DDP, torch.compile, MDLM's wrapper, Lightning
EMBEDDING = re.compile(r"(^|\.)vocab_embed\.(weight|embedding)$")  # what all layouts have
DEPTH = 4  # how deep a set may be nested

Weights = dict[str, Tensor]


class UnknownLayout(InputError):
    """A file holds no weights of a layout that is known."""


def read_weights(file: Path) -> dict[str, Weights]:
    """Every set of weights in a file, by where it is nested ('' for the file itself), names without wrappers' prefixes.

    Raises InputError: not such a file, pickled objects in it, or no weights of a layout we know.
    """
    data = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    found = _sets(data, "", DEPTH)
    if not found:
        names = ", ".join(sorted(map(str, data))[:6]) if isinstance(data, dict) else type(data).__name__
        raise UnknownLayout(f"{file}: no weights of a known layout in it (found {names}); give a checkpoint of FS-DFM, MDLM, "
                         "Duo or SDTT, or a masked language model of transformers with its config.json")
    return {name: _plain(weights, file) for name, weights in found.items()}


def choose(sets: dict[str, Weights], wanted: str | None, file: Path) -> str:
    """The name of the set to take: `wanted`, or the first in ORDER. Raises InputError if there is none of that name."""
    if wanted is not None and wanted not in sets:
        held = ", ".join(sorted(name for name in sets if name)) or "one set, without a name"
        raise InputError(f"--weights {wanted}: {file} has {held}; give one of those, or leave it out")
    return wanted or min(sets, key=lambda name: (_rank(name), name))


def _rank(name: str) -> int:
    """A set's place in ORDER; whatever callback keeps an average of the weights, it is one."""
    averaged = re.search(r"(^|[._])ema([._]|$)", name, re.IGNORECASE)
    known = name if name in ORDER else "ema" if averaged else ""
    return ORDER.index(known) if known else len(ORDER)


def _read_safetensors(file: Path) -> Weights:
    try:
        weights: Weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not a safetensors file ({first_line(error, 160)}); make or copy it anew") from None
    return weights


def _read_torch(file: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_passed_over(file)):
            # A mapped file costs no memory for the optimiser's states; only the zip format can be mapped.
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)|Unsupported \w+ (\S+)", str(error))
        what = f" ({named[1] or named[2]})" if named else ""
        raise InputError(f"{file}: holds pickled objects{what} or is no torch file, and nothing is unpickled here; "
                         "where you trust it, save its state dict alone, best as safetensors") from None
    except Exception as error:  # of bytes that were made to break a reader, torch raises whatever comes
        raise InputError(f"{file}: not a torch file ({first_line(error, 160)}); make or copy it anew") from None


class _Nothing:
    """What stands for an object whose class is not built: it takes whatever the file says, and keeps none of it."""

    def __new__(cls, *arguments: object, **named: object) -> "_Nothing":
        return super().__new__(cls)

    def __init__(self, *arguments: object, **named: object) -> None:
        """Forget it all."""

    def __setstate__(self, state: object) -> None:
        """Forget it all."""


def _passed_over(file: Path) -> list[Any]:
    """What torch's restricted reader puts in place of the classes of a file that may be passed over: (stand-in, name)."""
    if not zipfile.is_zipfile(file):
        return []
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # of bytes that were made to break a reader; reading it tells
        return []
    return [(PLAIN.get(name, _Nothing), name) for name in names if name in PLAIN or name.startswith(PASSED_OVER)]


def _sets(data: object, where: str, depth: int) -> dict[str, Weights]:
    """The dicts of tensors that hold an embedding, by dotted name."""
    if not isinstance(data, dict) or not depth:
        return {}
    weights = {name: value for name, value in data.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if any(EMBEDDING.search(name) for name in weights):
        return {where: weights}
    found: dict[str, Weights] = {}
    for name, value in data.items():
        found |= _sets(value, f"{where}.{name}" if where else str(name), depth - 1)
    averages = _shadow(data, found)
    return found | ({} if averages is None else {"ema": averages})


def _shadow(data: dict[str, Any], found: dict[str, Weights]) -> Weights | None:
    """MDLM's `ema.shadow_params`: a bare list, in the order of the parameters of `state_dict`; None if there is none."""
    ema, plain = data.get("ema"), found.get("state_dict")
    values = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(values, list) or plain is None:
        return None
    buffers = {name: value for name, value in plain.items() if name.endswith("inv_freq")}
    names = [name for name in plain if name not in buffers]
    if [getattr(value, "shape", None) for value in values] != [plain[name].shape for name in names]:
        raise InputError(f"checkpoint: its average of the weights (ema.shadow_params) holds {len(values)} tensors, "
                         f"which are not those of its {len(names)} parameters; save the state dict that you want alone")
    return dict(zip(names, values, strict=True)) | buffers


def _plain(weights: Weights, file: Path) -> Weights:
    """Names without the prefixes of wrappers."""
    plain: Weights = {}
    for name, tensor in weights.items():
        bare = name
        while (prefix := next((p for p in PREFIXES if bare.startswith(p)), None)) is not None:
            bare = bare.removeprefix(prefix)
        if bare in plain:
            raise InputError(f"{file}: tensor {bare} is there twice, as {name}, too; save one model's state dict alone")
        plain[bare] = tensor
    return plain
