"""Open a judge by its name: `embedded`, a folder of ours or of transformers, a .gguf file, or `hub:USER/NAME[@REVISION]`.

Weights are safetensors or GGUF, never a pickle, and no code of a model's repository is run. A judge is a causal LM and shares
no weights with the compass that ships with the package.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from tsdfm.pipeline.evaluation.judge import Judge
from tsdfm.pipeline.models.causal import CausalLM
from tsdfm.pipeline.models.folder import EMBEDDED, embedded, load
from tsdfm.pipeline.models.transformers import (
    CausalModel,
    accelerate,
    is_transformers_folder,
    library,
    open_causal,
    open_options,
    quiet,
)
from tsdfm.pipeline.storage.atomic import sha256_file
from tsdfm.pipeline.storage.hub.models import HUB, MODEL_FILES, located
from tsdfm.pipeline.text.same_tokenizer import difference
from tsdfm.pipeline.text.tokenizer_file import open_tokenizer
from tsdfm.pipeline.text.vocabulary import FILE as TOKENIZER_FILE
from tsdfm.pipeline.text.vocabulary import MASK, Vocabulary
from tsdfm.schemas.base import InputError, first_line

TRIED = 1024  # positions up to which a judge must show that it has them: tables of positions are seldom longer
PROBES = ["The quick brown fox.", "123 abc", "é 日本語 Привет"]  # texts of which a tokenizer must know something

Encode = Callable[[list[str]], list[list[int]]]


def open_judge(name: str, device: torch.device, models: Sequence[Vocabulary] = ()) -> Judge:
    """The judge of a name, on a device.

    Args:
        name: 'embedded', a folder, a .gguf file, or hub:USER/NAME[@REVISION].
        device: where to.
        models: vocabularies of the models whose texts it will judge: it reads the tokens of those that do as its own.

    Raises InputError: no such judge, not a causal LM, one whose tokenizer is not its own or none, or the compass.
    """
    folder, gguf = _place(name)
    if gguf is not None or is_transformers_folder(folder):
        return _transformers(name, folder, gguf, device, models)
    return _ours(name, folder, device, models)


def fingerprint_of(name: str) -> str:
    """The fingerprint of the judge that `open_judge` opens, by its files. Raises as it does, or OSError."""
    folder, gguf = _place(name)
    return _fingerprint(folder, gguf) if gguf is not None or is_transformers_folder(folder) else load(folder).fingerprint


def _place(name: str) -> tuple[Path, str | None]:
    """The folder of a judge's files, and the GGUF file among them, if it is that. Raises InputError or WorkError."""
    if name.endswith(".gguf") and not name.startswith(HUB):
        if not Path(name).is_file():
            raise InputError(f"judge {name}: no such file; give the path of a .gguf file")
        return Path(name).parent, Path(name).name
    return embedded("judge") if name == EMBEDDED else located(name), None


def _ours(name: str, folder: Path, device: torch.device, models: Sequence[Vocabulary]) -> Judge:
    """A model folder of this project that holds a causal LM."""
    opened = load(folder)
    network, vocabulary = opened.network, opened.vocabulary
    if not isinstance(network, CausalLM):
        raise InputError(f"judge {name}: holds a model of kind '{network.config.kind}'; a judge is a causal LM (kind 'causal')")
    own, compass = network.state_dict(), load(embedded("compass")).network.state_dict()
    if own.keys() == compass.keys() and all(torch.equal(own[key], compass[key]) for key in own):
        raise InputError(f"judge {name}: is the embedded compass; a judge never shares weights with the compass, give another")
    network.to(device)
    return Judge(name, opened.fingerprint, vocabulary.fingerprint, _shared(vocabulary.tokenizer, models),
                 lambda inputs: network.hidden(inputs)[0], network.head_weight, None, network.config.bos_id,
                 vocabulary.encode, network.config.length)


def _shared(tokenizer: Tokenizer, models: Sequence[Vocabulary]) -> frozenset[str]:
    """Fingerprints of the vocabularies that do as a judge's tokenizer, [MASK] aside."""
    return frozenset(each.fingerprint for each in models if difference(each.tokenizer, tokenizer) is None)


def _transformers(name: str, folder: Path, gguf: str | None, device: torch.device, models: Sequence[Vocabulary]) -> Judge:
    """A causal LM that transformers opens, from a folder or from a GGUF file in it."""
    vocabulary = None if gguf else _own_vocabulary(name, folder)
    tokenizer = None if vocabulary else _tokenizer(name, folder, gguf)
    opened = open_causal(f"judge {name}", folder, device, gguf)
    encode: Encode
    backend: Tokenizer | None
    unknown: int | None
    if vocabulary is not None:
        start, encode, backend, unknown = vocabulary.eos_id, vocabulary.encode, vocabulary.tokenizer, None
    else:
        assert tokenizer is not None
        start, encode = _start(name, opened, tokenizer), _reader(tokenizer)
        backend, unknown = getattr(tokenizer, "backend_tokenizer", None), tokenizer.unk_token_id
    if backend is not None:
        _check_ids(opened, backend, start)
    accelerate(opened.model)
    if opened.positions is not None and opened.positions <= TRIED:
        opened.check_positions(opened.positions)
    shared: frozenset[str] = frozenset() if backend is None else _shared(backend, models)
    return Judge(name, _fingerprint(folder, gguf), vocabulary.fingerprint if vocabulary else None, shared, opened.hidden,
                 opened.weight, opened.bias, start, encode, opened.positions, unknown)


def _check_ids(opened: CausalModel, tokenizer: Tokenizer, start: int) -> None:
    """Raises InputError unless the start, and all that a text can become, has a row; special tokens are read as plain text."""
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    opened.check_ids([start, *(number for number in tokenizer.get_vocab().values() if number not in special)])


def _tokenizer(name: str, folder: Path, gguf: str | None) -> Any:
    AutoTokenizer = library(f"judge {name}").AutoTokenizer
    if not gguf and (folder / TOKENIZER_FILE).exists():
        _parsed(name, folder)  # before the library does, which asks for no bounds
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, **open_options(gguf))
            known = [number for ids in _reader(tokenizer)(PROBES) for number in ids if number != tokenizer.unk_token_id]
    except Exception as error:
        raise InputError(f"judge {name}: transformers cannot open its tokenizer ({first_line(error)}); give a folder or file "
                         "that has one") from None
    if not known:
        raise InputError(f"judge {name}: has no tokenizer, or one that knows no text; give a folder or file that has one")
    return tokenizer


def _parsed(name: str, folder: Path) -> Tokenizer:
    try:
        return open_tokenizer(folder / TOKENIZER_FILE)
    except OSError as error:
        raise InputError(f"judge {name}: {folder / TOKENIZER_FILE} can't be read ({error.strerror}); copy it anew") from None


def _start(name: str, opened: CausalModel, tokenizer: Any) -> int:
    """The token before a text: bos, else eos; where bos opens a chat turn (SmolLM2, Qwen), the document separator."""
    bos, separator = tokenizer.bos_token, "<|endoftext|>"
    if bos in (None, "<|im_start|>") and separator in tokenizer.get_vocab():
        return int(tokenizer.convert_tokens_to_ids(separator))
    for start in (tokenizer.bos_token_id, *opened.special_ids("bos_token_id"), tokenizer.eos_token_id,
                  *opened.special_ids("eos_token_id")):
        if start is not None:
            return int(start)
    raise InputError(f"judge {name}: its tokenizer has no bos and no eos token to start a text with; give another judge")


def _reader(tokenizer: Any) -> Encode:
    """Texts to tokens through a tokenizer of transformers."""
    def encode(texts: list[str]) -> list[list[int]]:
        encoded: list[list[int]] = tokenizer(
            texts, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
        return encoded
    return encode


def _own_vocabulary(name: str, folder: Path) -> Vocabulary | None:
    """The folder's tokenizer if it is one of ours, i.e. [MASK] is its last id; others know by themselves how texts begin."""
    if not (folder / TOKENIZER_FILE).exists() or _parsed(name, folder).token_to_id(MASK) is None:
        return None
    try:
        vocabulary = Vocabulary.load(folder)
    except InputError:  # which transformers may tell more of
        return None
    return vocabulary if vocabulary.mask_id == vocabulary.size - 1 else None


def _fingerprint(folder: Path, gguf: str | None) -> str:
    """sha256 over the files that the judge is read from."""
    if gguf:
        return sha256_file(folder / gguf)
    found = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)})
    return hashlib.sha256("".join(f"{path.name}:{sha256_file(path)}\n" for path in found).encode()).hexdigest()
