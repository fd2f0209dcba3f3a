"""Causal language models of the transformers library, opened from a folder: safetensors or GGUF, no foreign code.

Energies and perplexities are computed from a model's hidden states and its output embedding, so a model is checked when it is
opened: its hidden states must not look ahead, and its logits must be nothing more than a head of them.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsdfm.kernels.linear import linear
from tsdfm.schemas.base import InputError, first_line, plain_json

PROBE = 8  # tokens on which a model is compared with itself
AGREEMENT = 1e-4  # of numbers that are computed alike
NEEDS = "needs transformers; pip install 'tsdfm-pipeline[eval]'"


@dataclass(frozen=True)
class CausalModel:
    """A causal LM: what scores need of it, and the library's own model."""

    model: Any  # transformers' own
    hidden: Callable[[Tensor], Tensor]  # inputs [B, T] int64 -> [B, T, D]; position i has seen inputs up to i
    weight: Tensor  # [V, D] of the output embedding
    bias: Tensor | None  # [V]

    @property
    def positions(self) -> int | None:
        """The number of tokens that the model was built for; None: any number."""
        found: int | None = getattr(self.model.config, "max_position_embeddings", None)
        return found


def is_transformers_folder(folder: Path) -> bool:
    """Whether a folder's config.json is one of transformers (has `model_type`) rather than ours (has `kind`)."""
    try:
        data = plain_json((folder / "config.json").read_bytes(), str(folder))
    except (OSError, InputError):
        return False
    return isinstance(data, dict) and "model_type" in data and "kind" not in data


def open_options(gguf: str | None) -> dict[str, Any]:
    """How anything of transformers is opened: from this disk alone, running nobody's code."""
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    return options | ({"gguf_file": gguf} if gguf else {})


def open_causal(what: str, folder: Path, device: torch.device, gguf: str | None = None) -> CausalModel:
    """Open and check a causal LM in float32, in eval mode, without gradients.

    Args:
        what: how messages name it, e.g. "judge gpt2".
        folder: holds config.json and *.safetensors.
        device: where to.
        gguf: name of a GGUF file in the folder to read instead.

    Raises InputError: transformers is missing or can't open it, or it is no causal LM with a plain head.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise InputError(f"{what}: {NEEDS}") from None
    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, **open_options(gguf), **({} if gguf else {"use_safetensors": True}))
    except ImportError as error:
        raise InputError(f"{what}: a package is missing ({first_line(error)}); pip install 'tsdfm-pipeline[eval]'") from None
    except Exception as error:
        raise InputError(f"{what}: transformers cannot open it ({first_line(error)}); give a causal LM in safetensors or "
                         "GGUF") from None
    model.eval().requires_grad_(False).to(device)
    head = model.get_output_embeddings()
    if head is None:
        raise InputError(f"{what}: {type(model).__name__} has no output embedding; give a causal LM")

    def hidden(inputs: Tensor) -> Tensor:
        found: Tensor = model.base_model(input_ids=inputs, use_cache=False).last_hidden_state
        return found

    opened = CausalModel(model, hidden, head.weight, head.bias)
    _check(what, opened)
    return opened


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the library's warnings and progress bars, which are as they were afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@torch.no_grad()
def _check(what: str, opened: CausalModel) -> None:
    """What the scores rest on: hidden states that don't look ahead, and logits that are a head of them."""
    ids = torch.arange(PROBE, device=opened.weight.device)[None] % len(opened.weight)
    hidden, logits = opened.hidden(ids), opened.model(input_ids=ids, use_cache=False).logits
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % len(opened.weight)
    kind = type(opened.model).__name__
    if not _close(opened.hidden(changed)[:, :-1], hidden[:, :-1]):
        raise InputError(f"{what}: {kind} sees the tokens that it has to predict; give a causal LM")
    if not _close(F.linear(hidden, opened.weight, opened.bias), logits):
        raise InputError(f"{what}: the logits of {kind} are more than a head of its hidden states, which is not supported; "
                         "give another model")


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=AGREEMENT, atol=AGREEMENT)


def accelerate(model: nn.Module) -> None:
    """Route every `nn.Linear` in `model` through `kernels.linear`: the same product, up to twice as fast on CPUs."""
    def forward(self: nn.Linear, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = MethodType(forward, module)  # type: ignore[method-assign]
