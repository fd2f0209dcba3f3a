"""Open a judge by its name: `embedded`, a folder of ours or of transformers, a .gguf file, or `hub:USER/NAME[@REVISION]`.

Weights are safetensors or GGUF, never a pickle, and no code of a model's repository is run. A judge is a causal LM and shares
no weights with the compass that ships with the package.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from tsdfm.kernels.linear import linear
from tsdfm.pipeline.causal import CausalLM
from tsdfm.pipeline.checkpoint import CONFIG_FILE, embedded, load
from tsdfm.pipeline.files import sha256_file
from tsdfm.pipeline.judge import Judge
from tsdfm.pipeline.tokenizer import FILE as TOKENIZER_FILE
from tsdfm.pipeline.tokenizer import MASK, Vocabulary
from tsdfm.pipeline.transformers_lm import is_transformers_folder
from tsdfm.schemas.base import InputError

HUB = "hub:"
FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]  # what is read of a folder: weights, config, tokenizer
PROBE = 8  # tokens on which a transformers model is compared with itself
AGREEMENT = 1e-4  # of numbers that are computed alike

Encode = Callable[[list[str]], list[list[int]]]


def open_judge(name: str, device: torch.device) -> Judge:
    """The judge of a name, on a device. Raises InputError: no such judge, not a causal LM, or the compass."""
    if name.startswith(HUB):
        judge = _transformers(name, _download(name), None, device)
    elif name.endswith(".gguf"):
        if not Path(name).is_file():
            raise InputError(f"judge {name}: no such file; give the path of a .gguf file")
        judge = _transformers(name, Path(name).parent, Path(name).name, device)
    elif is_transformers_folder(Path(name) / CONFIG_FILE):
        judge = _transformers(name, Path(name), None, device)
    else:
        judge = _ours(name, embedded("judge") if name == "embedded" else Path(name), device)
    return judge


def accelerate(model: nn.Module) -> None:
    """Route every `nn.Linear` in `model` through `kernels.linear`: the same product, up to twice as fast on CPUs."""
    def forward(self: nn.Linear, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = MethodType(forward, module)  # type: ignore[method-assign]


def _ours(name: str, folder: Path, device: torch.device) -> Judge:
    """A model folder of this project that holds a causal LM."""
    opened = load(folder)
    network, vocabulary = opened.network, opened.vocabulary
    if not isinstance(network, CausalLM):
        raise InputError(f"judge {name}: holds a model of kind '{network.config.kind}'; a judge is a causal LM (kind 'causal')")
    own, compass = network.state_dict(), load(embedded("compass")).network.state_dict()
    if own.keys() == compass.keys() and all(torch.equal(own[key], compass[key]) for key in own):
        raise InputError(f"judge {name}: is the embedded compass; a judge never shares weights with the compass, give another")
    network.to(device)
    return Judge(name, opened.fingerprint, vocabulary.fingerprint, lambda inputs: network.hidden(inputs)[0],
                 network.head_weight, None, network.config.bos_id, _encoder(vocabulary), None)


def _download(name: str) -> Path:
    """The local snapshot of a Hub repository: its weights, config and tokenizer."""
    from huggingface_hub import snapshot_download

    repository, _, revision = name.removeprefix(HUB).partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=FILES))
    except Exception as error:
        raise InputError(f"judge {name}: cannot be downloaded ({_reason(error)}); check the name, the revision and the "
                         "network") from None


def _transformers(name: str, folder: Path, gguf: str | None, device: torch.device) -> Judge:
    """A causal LM that transformers opens, from a folder or from a GGUF file in it."""
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError:
        raise InputError(f"judge {name}: needs transformers; pip install 'tsdfm-pipeline[eval]'") from None
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    options |= {"gguf_file": gguf} if gguf else {"use_safetensors": True}
    vocabulary = None if gguf else _own_vocabulary(folder)
    try:
        tokenizer = None if vocabulary else AutoTokenizer.from_pretrained(folder, **{**options, "use_safetensors": None})
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    except ImportError as error:
        raise InputError(f"judge {name}: a package is missing ({_reason(error)}); pip install 'tsdfm-pipeline[eval]'") from None
    except Exception as error:
        raise InputError(f"judge {name}: transformers cannot open it ({_reason(error)}); give a causal LM in safetensors or "
                         "GGUF") from None
    model.eval().requires_grad_(False).to(device)
    head = model.get_output_embeddings()
    if head is None:
        raise InputError(f"judge {name}: {type(model).__name__} has no output embedding; a judge is a causal LM")
    judge = Judge(
        name, _fingerprint(folder, gguf), vocabulary.fingerprint if vocabulary else None,
        lambda inputs: model.base_model(input_ids=inputs, use_cache=False).last_hidden_state, head.weight, head.bias,
        _start(name, model, tokenizer) if vocabulary is None else vocabulary.eos_id,
        _reader(tokenizer) if vocabulary is None else _encoder(vocabulary),
        getattr(model.config, "max_position_embeddings", None))
    _check(judge, model)
    accelerate(model)
    return judge


@torch.no_grad()
def _check(judge: Judge, model: Any) -> None:
    """What the scores rest on: hidden states that don't look ahead, and logits that are a head of them."""
    ids = torch.arange(PROBE, device=judge.weight.device)[None] % len(judge.weight)
    hidden, logits = judge.hidden(ids), model(input_ids=ids, use_cache=False).logits
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % len(judge.weight)
    if not _close(judge.hidden(changed)[:, :-1], hidden[:, :-1]):
        raise InputError(f"judge {judge.name}: {type(model).__name__} sees the tokens that it has to predict; a judge is a "
                         "causal LM")
    if not _close(F.linear(hidden, judge.weight, judge.bias), logits):
        raise InputError(f"judge {judge.name}: the logits of {type(model).__name__} are more than a head of its hidden states, "
                         "which is not supported; give another judge")


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=AGREEMENT, atol=AGREEMENT)


def _start(name: str, model: Any, tokenizer: Any) -> int:
    """The token before a text: bos, else eos; where bos opens a chat turn (SmolLM2, Qwen), the document separator."""
    bos, separator = tokenizer.bos_token, "<|endoftext|>"
    if bos in (None, "<|im_start|>") and separator in tokenizer.get_vocab():
        return int(tokenizer.convert_tokens_to_ids(separator))
    eos = model.config.eos_token_id
    for start in (tokenizer.bos_token_id, model.config.bos_token_id, tokenizer.eos_token_id,
                  eos[0] if isinstance(eos, list) else eos):
        if start is not None:
            return int(start)
    raise InputError(f"judge {name}: its tokenizer has no bos and no eos token to start a text with; give another judge")


def _reader(tokenizer: Any) -> Encode:
    """Texts to tokens through a tokenizer of transformers."""
    def encode(texts: list[str]) -> list[list[int]]:
        encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids
        return encoded
    return encode


def _encoder(vocabulary: Vocabulary) -> Encode:
    """Texts to tokens through a tokenizer of ours."""
    def encode(texts: list[str]) -> list[list[int]]:
        return [list(each.ids) for each in vocabulary.tokenizer.encode_batch(texts, add_special_tokens=False)]
    return encode


def _own_vocabulary(folder: Path) -> Vocabulary | None:
    """The folder's tokenizer if it is one of ours, i.e. holds [MASK]; any other knows by itself how its texts begin."""
    try:
        if Tokenizer.from_file(str(folder / TOKENIZER_FILE)).token_to_id(MASK) is None:
            return None
        return Vocabulary.load(folder)
    except Exception:  # the tokenizers library raises nothing narrower; transformers will say what is wrong
        return None


def _fingerprint(folder: Path, gguf: str | None) -> str:
    """sha256 over the files that the judge is read from."""
    if gguf:
        return sha256_file(folder / gguf)
    found = sorted({path for pattern in FILES for path in folder.glob(pattern)})
    return hashlib.sha256("".join(f"{path.name}:{sha256_file(path)}\n" for path in found).encode()).hexdigest()


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
