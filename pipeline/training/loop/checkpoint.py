"""The training checkpoint in a folder: tensors in one safetensors file, and a JSON header that says what they are of."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from tsdfm.pipeline.storage.atomic import write_atomic
from tsdfm.pipeline.storage.store import explained
from tsdfm.schemas.base import InputError, differences, first_line, plain_json
from tsdfm.schemas.former import told_if_replaced
from tsdfm.schemas.regular import read_regular

STATE_FILE, HEADER_FILE = "training_state.safetensors", "training_state.json"
NEWER = ("tokenizer_fingerprint", "teacher_texts")  # of identities: what older checkpoints don't note isn't asked of them


def is_there(folder: Path) -> bool:
    """Whether a folder holds a training checkpoint."""
    return (folder / STATE_FILE).is_file() and (folder / HEADER_FILE).is_file()


def identity_in(folder: Path) -> dict[str, Any] | None:
    """What the training checkpoint in a folder depends on; None if there is none. Raises InputError if it can't be read."""
    if not is_there(folder):
        return None
    header_file = folder / HEADER_FILE
    try:
        return dict(plain_json(read_regular(header_file), str(header_file))["identity"])
    except (InputError, KeyError, TypeError, ValueError):
        raise InputError(f"{header_file}: unreadable training checkpoint; remove the folder") from None


def refuse_other(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises InputError if a folder holds a training checkpoint of other settings, as far as these are known beforehand."""
    old = identity_in(folder)
    if old is not None:
        refuse_differing(folder, {name: value for name, value in old.items() if name in settings}, settings)


def refuse_differing(folder: Path, old: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raises InputError, which names what differs, unless the training checkpoint in a folder, of `old`, is of `identity`."""
    now = {name: value for name, value in json.loads(json.dumps(identity)).items() if name in old or name not in NEWER}
    differing = differences(old, now)
    if differing:
        raise InputError(f"{folder}: holds a run of another config; give another --out, remove the folder, or make these "
                         "equal: " + "; ".join(differing) + told_if_replaced(old, now))


def write(folder: Path, tensors: dict[str, Tensor], step: int, identity: Mapping[str, Any]) -> None:
    """Replace the checkpoint in a folder; the header, written last, names the update. Raises WorkError if the disk is full."""
    header = {"step": step, "identity": identity}
    data = save(tensors, metadata={"step": str(step), "sha256": digest_of(tensors)})
    with explained("write there", str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / STATE_FILE, data)
        write_atomic(folder / HEADER_FILE, json.dumps(header, indent=2, sort_keys=True).encode())


def read(folder: Path, wanted: Mapping[str, torch.Size], latest: int) -> tuple[dict[str, Tensor], int]:
    """The tensors of the checkpoint in a folder, by name, and their update, `latest` at most.

    The tensors' own step rules: a crash between the two files leaves newer tensors under an older header. Raises InputError
    if they are damaged, or other than `wanted` (names and shapes).
    """
    state_file = folder / STATE_FILE
    try:
        tensors = load_file(state_file)
        noted = _noted(state_file)
        step, digest = int(noted["step"]), noted.get("sha256")  # which the first versions did not note
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{state_file}: unreadable training checkpoint ({first_line(error)}); remove the folder") from None
    if {name: tensor.shape for name, tensor in tensors.items()} != wanted or not 0 <= step <= latest:
        raise InputError(f"{state_file}: not a training checkpoint of this model and config; remove the folder")
    if digest is not None and digest != digest_of(tensors):
        raise InputError(f"{state_file}: damaged, its tensors are not those that were written; remove the folder")
    return tensors, step


def updates_in(folder: Path) -> int:
    """The updates that the checkpoint in a folder has made; 0 if there is none. Raises InputError if it can't be read."""
    if identity_in(folder) is None:
        return 0
    state_file = folder / STATE_FILE
    try:
        return int(_noted(state_file)["step"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{state_file}: unreadable training checkpoint ({first_line(error)}); remove the folder") from None


def _noted(state_file: Path) -> dict[str, str]:
    with safe_open(os.fspath(state_file), framework="pt") as file:
        return file.metadata() or {}



def digest_of(tensors: dict[str, Tensor]) -> str:
    """sha256 of the bytes of all tensors, in order of their names."""
    found = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
