"""Causal language models of the transformers library, opened from a folder: safetensors or GGUF, no foreign code.

Energies and perplexities are computed from a model's hidden states and its output embedding, so a model is checked when it is
opened, the same for a compass and a judge: its hidden states must not look ahead, its logits must be nothing more than a head
of them, and its files must hold all its weights. Who opens it asks for the ids and the positions that are needed. What
config.json says is compared with the headers of the weights before anything is allocated.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsdfm.kernels.linear import linear
from tsdfm.pipeline.models.weights import stored_shapes, undrawn
from tsdfm.schemas.base import InputError, first_line, plain_json
from tsdfm.schemas.regular import check_regular, read_regular

PROBE = 16  # tokens, from all over the vocabulary, on which a model is compared with itself
PACKED = 8  # weights that a byte of a quantised file may hold, at the most
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
AGREEMENT = 1e-4  # of numbers that are computed alike
NEEDS = "needs transformers; pip install 'tsdfm-pipeline[eval]'"


@dataclass(frozen=True)
class CausalModel:
    """A causal LM: what scores need of it, and the library's own model."""

    what: str  # how messages name it, e.g. "judge gpt2"
    model: Any  # transformers' own
    hidden: Callable[[Tensor], Tensor]  # inputs [B, T] int64 -> [B, T, D]; position i has seen inputs up to i
    weight: Tensor  # [V, D] of the output embedding
    bias: Tensor | None  # [V]

    @property
    def positions(self) -> int | None:
        """The number of tokens that the model was built for; None: any number."""
        config = self.model.config.get_text_config()
        found = (getattr(config, name, None) for name in POSITIONS)
        return next((number for number in found if isinstance(number, int) and number > 0), None)

    @property
    def rows(self) -> int:
        """The number of ids that have a row in both embeddings."""
        return min(len(self.weight), len(self.model.get_input_embeddings().weight))

    def special_ids(self, name: str) -> list[int]:
        """The ids that config.json names, as 'bos_token_id' say, without those that have no row.

        A model of an own vocabulary often keeps the library's defaults, which are ids of another tokenizer.
        """
        named = getattr(self.model.config, name, None)
        ids = named if isinstance(named, list) else [named]
        return [number for number in ids if isinstance(number, int) and 0 <= number < self.rows]

    def check_ids(self, ids: Collection[int]) -> None:
        """Raises InputError unless every id has a row in both embeddings."""
        rows = self.rows
        lost = [number for number in ids if not 0 <= number < rows]
        if lost:
            raise InputError(f"{self.what}: has rows for {rows} ids, and its tokenizer gives {max(lost)}; give the model that "
                             "belongs to the tokenizer")

    @torch.no_grad()
    def check_positions(self, length: int) -> None:
        """Raises InputError unless the model computes `length` positions, by trying."""
        try:
            self.hidden(torch.zeros(1, length, dtype=torch.long, device=self.weight.device))
        except (IndexError, RuntimeError) as error:
            raise InputError(f"{self.what}: can't compute the {length} positions that are needed ({first_line(error, 100)}); "
                             "give a model of longer texts") from None


def is_transformers_folder(folder: Path) -> bool:
    """Whether a folder's config.json is one of transformers (has `model_type`) rather than ours (has `kind`)."""
    try:
        data = plain_json(read_regular(folder / "config.json"), str(folder))
    except (OSError, InputError):
        return False
    return isinstance(data, dict) and "model_type" in data and "kind" not in data


def check_no_code(what: str, folder: Path) -> None:
    """Raises InputError where a folder's config.json names code beside it that has to be run, which is never done.

    Where transformers has an architecture itself, its own classes are used, whatever else config.json names.
    """
    try:
        data = plain_json(read_regular(folder / "config.json"), str(folder))
    except (OSError, InputError):
        return  # whoever reads it says what is wrong
    named = data.get("auto_map") if isinstance(data, dict) else None
    if isinstance(named, dict) and named and data.get("model_type") not in _architectures():
        code = f"{next(iter(named.values()))!s:.80}"
        raise InputError(f"{what}: its config.json names code that has to be run (auto_map: {code}), and no code of a "
                         "repository is run here; give a model without it, of an architecture that transformers has itself")


def _architectures() -> Collection[str]:
    try:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    except ImportError:
        return ()
    names: Collection[str] = CONFIG_MAPPING_NAMES
    return names


def open_options(gguf: str | None) -> dict[str, Any]:
    """How anything of transformers is opened: from this disk alone, running nobody's code."""
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    return options | ({"gguf_file": gguf} if gguf else {})


def library(what: str) -> Any:
    """The transformers library, for a model that messages name `what`. Raises InputError where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise InputError(f"{what}: {NEEDS}") from None
    return transformers


def open_causal(what: str, folder: Path, device: torch.device, gguf: str | None = None) -> CausalModel:
    """Open and check a causal LM in float32, in eval mode, without gradients.

    Args:
        what: how messages name it, e.g. "judge gpt2".
        folder: holds config.json and *.safetensors.
        device: where to.
        gguf: name of a GGUF file in the folder to read instead.

    Raises InputError: transformers is missing or can't open it, its files are not regular or hold less than config.json says,
    or it is no causal LM with a plain head.
    """
    transformers = library(what)
    try:
        check_no_code(what, folder)
        with quiet():
            check_files(what, folder, transformers.AutoModelForCausalLM, gguf)
            model, told = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **open_options(gguf),
                **({} if gguf else {"use_safetensors": True}))
    except InputError:
        raise
    except ImportError as error:
        raise InputError(f"{what}: a package is missing ({first_line(error)}); pip install 'tsdfm-pipeline[eval]'") from None
    except Exception as error:
        raise InputError(f"{what}: transformers cannot open it ({first_line(error)}); give a causal LM in safetensors or "
                         "GGUF") from None
    check_whole(what, told, "copy it anew")
    model.eval().requires_grad_(False).to(device)
    head = model.get_output_embeddings()
    if head is None:
        raise InputError(f"{what}: {type(model).__name__} has no output embedding; give a causal LM")

    def hidden(inputs: Tensor) -> Tensor:
        found: Tensor = model.base_model(input_ids=inputs, use_cache=False).last_hidden_state
        return found

    opened = CausalModel(what, model, hidden, head.weight, getattr(head, "bias", None))
    _check(opened)
    return opened


def check_whole(what: str, told: dict[str, Any], cure: str) -> None:
    """Raises InputError where files lacked tensors, which the library would draw at random; `told`: its loading info."""
    lacking = sorted({*told["missing_keys"], *(str(each[0]) for each in told["mismatched_keys"])})
    if lacking:
        raise InputError(f"{what}: its files lack {len(lacking)} tensors that its config.json wants, {lacking[0]} among them; "
                         f"{cure}")


def check_files(what: str, folder: Path, kind: Any, gguf: str | None = None) -> None:
    """Raises InputError for files that are not regular, and for a config that wants more weights than there are.

    A model is built by its config, and what its files lack would be allocated and drawn at random. `kind`: the library's class
    that builds it, AutoModelForCausalLM say.
    """
    from transformers import AutoConfig

    for path in [folder / gguf] if gguf else sorted(folder.iterdir()):
        if not path.is_dir():
            try:
                check_regular(path)
            except OSError as error:
                raise InputError(f"{what}: {path} is {error.strerror}; copy it anew") from None
    config = AutoConfig.from_pretrained(folder, **open_options(gguf))
    files = sorted(folder.glob("*.safetensors"))
    if not gguf and not files:
        return  # which the library explains
    sizes = _sizes_in_gguf(folder / gguf) if gguf else [
        prod(shape) for path in files for shape in stored_shapes(path).values()]
    numbers = sum(sizes)
    packed = not gguf and getattr(config, "quantization_config", None)
    room = PACKED * sum(path.stat().st_size for path in files) if packed else numbers
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if layers <= len(sizes):  # building even empty layers takes time
        with torch.device("meta"), undrawn():
            built = kind.from_config(config, trust_remote_code=False)
        if sum(each.numel() for each in built.parameters()) <= room:
            return
    raise InputError(f"{what}: its config is of a larger model than its files hold ({len(sizes)} tensors, {numbers:,} "
                     "numbers); they don't belong together")


def _sizes_in_gguf(file: Path) -> list[int]:
    """How many numbers each tensor of a GGUF file holds, by its header."""
    from gguf import GGUFReader

    return [int(tensor.n_elements) for tensor in GGUFReader(file).tensors]


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
def _check(opened: CausalModel) -> None:
    """What the scores rest on: hidden states that don't look ahead, and finite logits that are a head of them."""
    what, positions = opened.what, min(PROBE, opened.positions or PROBE)
    rows = opened.rows
    opened.check_positions(positions)
    ids = torch.linspace(0, rows - 1, positions, device=opened.weight.device).long()[None]
    hidden, logits = opened.hidden(ids), opened.model(input_ids=ids, use_cache=False).logits
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % rows
    kind = type(opened.model).__name__
    if not bool(logits.isfinite().all()):
        raise InputError(f"{what}: the logits of {kind} are not finite; copy it anew, or give another model")
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
