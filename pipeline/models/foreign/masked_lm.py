"""Masked language models of the transformers library as teachers: BERT's family, ModernBERT, and others with a plain head.

Which they are, their config.json says (`model_type`). They are opened by the library's own classes; a repository that needs
code of its own is refused.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from tokenizers import Tokenizer
from torch import Tensor, nn

from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import CONFIG_FILE
from tsdfm.pipeline.models.foreign.imported import Imported, end_of
from tsdfm.pipeline.models.foreign.places import Place
from tsdfm.pipeline.models.masked import without_head
from tsdfm.pipeline.models.transformers import check_files, check_no_code, check_whole, library, open_options, quiet
from tsdfm.pipeline.models.weights import undrawn
from tsdfm.pipeline.storage.atomic import sha256_file
from tsdfm.pipeline.text.tokenizer_file import open_tokenizer
from tsdfm.pipeline.text.vocabulary import FILE as TOKENIZER_FILE
from tsdfm.pipeline.text.vocabulary import MASK, Vocabulary
from tsdfm.schemas.base import InputError, explain, first_line, plain_json
from tsdfm.schemas.import_teacher import FAMILIES, ImportConfig
from tsdfm.schemas.model import DenoiserConfig
from tsdfm.schemas.regular import read_regular
from tsdfm.schemas.training_record import ImportRecord, Origin

LENGTH = 1024  # of texts, where the model has more positions and nothing is asked for
MOST_PADDING = 1024  # rows beyond the ids; more are another tokenizer's
OPENED = ("model.safetensors", "pytorch_model.bin")  # the names of weights that the library opens
MASKS = (MASK, "<mask>")  # names of the token that hides another
PROBE = "a"  # a text that shows what the tokenizer puts around one
AGREEMENT = 1e-4
# What from a config.json is about files, classes of the task, or the library; none of it shapes the network.
LEFT_OUT = (
    "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id")


@dataclass(frozen=True)
class _Words:
    """A vocabulary, and the ids that a model saw around every text."""

    vocabulary: Vocabulary
    before: list[int]
    after: list[int]
    mask: str  # as the model's tokenizer calls it


def is_masked_lm(config: ImportConfig, place: Place) -> bool:
    """Whether a checkpoint is to be opened by transformers: it is asked for, or config.json names a class of the library's.

    Raises InputError where config.json names a class that writes from left to right.
    """
    if config.layout != "auto":
        return config.layout == "masked-lm"
    try:
        data = plain_json(read_regular(place.folder / CONFIG_FILE), CONFIG_FILE)
    except (OSError, InputError):
        return False
    kind = data.get("model_type") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind.lower() in FAMILIES:
        return False
    if kind in _kinds("MASKED_LM"):
        return True
    whose = f"{place.folder / CONFIG_FILE}: says '{kind}'"
    if kind in _kinds("SEQ_TO_SEQ_CAUSAL_LM"):
        raise InputError(f"{whose}, an encoder-decoder, which writes from left to right; give a masked language model, or a "
                         "checkpoint of FS-DFM, MDLM, Duo or SDTT")
    if kind in _kinds("CAUSAL_LM"):
        raise InputError(f"{whose}, a causal language model, which writes from left to right: it can be a compass (--compass) "
                         "or a judge (--evaluator); as a teacher give a masked language model, or a checkpoint of FS-DFM, "
                         "MDLM, Duo or SDTT")
    return False


def _kinds(task: str) -> list[str]:
    """The model types that transformers has a class of a task for, MASKED_LM say; none where it isn't installed."""
    try:
        from transformers.models.auto import modeling_auto
    except ImportError:
        return []
    return list(getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES"))


def import_masked_lm(config: ImportConfig, place: Place) -> Imported:
    """Open, check and convert a masked language model. Raises InputError naming what is wrong with it."""
    what = f"masked language model {config.checkpoint}"
    if config.weights is not None or config.heads is not None:
        raise InputError(f"{what}: its config.json says all of its shape; leave out --weights and --heads")
    if place.file.name not in OPENED:
        raise InputError(f"{what}: transformers opens {' or '.join(OPENED)}, and not {place.file.name}; put it under that name "
                         "into a folder of its own, with config.json and the tokenizer")
    model = _opened(what, place)
    words = _words(what, config, place)
    rows = len(model.get_input_embeddings().weight)
    vocabulary, assumed = words.vocabulary, list[str]()
    if not 0 <= rows - vocabulary.size < MOST_PADDING:
        raise InputError(f"{what}: has rows for {rows} ids, its tokenizer gives {vocabulary.size}; give the tokenizer that it "
                         "was trained with (--tokenizer)")
    if rows > vocabulary.size:
        assumed.append(f"the last {rows - vocabulary.size} of {rows} rows have no token, and are left out")
    named = vocabulary.tokenizer.id_to_token
    shown = " ".join([*(str(named(each)) for each in words.before), "TEXT", *(str(named(each)) for each in words.after)])
    assumed.append(f"the model sees a text as {shown!r}, and {words.mask} as what is not yet written")
    if config.length is None:
        assumed.append(f"texts of {_length(model, config, words)} tokens (else --length)")
    if "kappa_exponent" not in config.model_fields_set:
        assumed.append("the schedule kappa_t = t; the model is not told the time (else --kappa-exponent)")
    network = _network(what, model, config, words, end_of(config, vocabulary, assumed))
    record = ImportRecord(imported=Origin(
        layout="masked-lm", weights="", sha256=sha256_file(place.file), others=[], config=config, commit=place.commit))
    return Imported(network.eval().requires_grad_(False), vocabulary, record, assumed)


def _opened(what: str, place: Place) -> Any:
    """The library's model, whole, bidirectional, float32. Raises InputError."""
    transformers = library(what)
    options = open_options(None)
    check_no_code(what, place.folder)
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(place.folder, **options)
            if getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False):
                raise InputError(f"{what}: is a decoder by its config.json, which doesn't see what follows; give an encoder")
            if getattr(config, "quantization_config", None) is not None:
                raise InputError(f"{what}: its weights are quantised, which no student could be made from; give them whole")
            check_files(what, place.folder, transformers.AutoModelForMaskedLM)
            model, told = transformers.AutoModelForMaskedLM.from_pretrained(
                place.folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True,
                use_safetensors=place.file.suffix == ".safetensors", **options)
    except InputError:
        raise
    except Exception as error:  # the library raises whatever a file makes it stumble over
        raise InputError(f"{what}: transformers cannot open it ({first_line(error, 160)}); give a masked language model of the "
                         "library, with its config.json; no code of a repository is run") from None
    check_whole(what, told, "give a checkpoint with the head of masked language modelling")
    return model.eval().requires_grad_(False)


def _words(what: str, config: ImportConfig, place: Place) -> _Words:
    """The vocabulary, in which the token that hides another is called [MASK], and what stands around a text."""
    tokenizer, where = _tokenizer(what, config, place)
    known = [name for name in ([config.mask] if config.mask else MASKS) if tokenizer.token_to_id(name) is not None]
    if not known:
        raise InputError(f"{where}: has no token {config.mask or ' or '.join(MASKS)}; name the one that hides another with "
                         "--mask")
    tokenizer = _renamed(tokenizer, known[0], where)
    encoded = tokenizer.encode(PROBE)
    own = [index for index, special in enumerate(encoded.special_tokens_mask) if not special]
    before, after = (encoded.ids[: own[0]], encoded.ids[own[-1] + 1:]) if own else ([], [])
    return _Words(Vocabulary.of(tokenizer, where, config.eos), before, after, known[0])


def _tokenizer(what: str, config: ImportConfig, place: Place) -> tuple[Tokenizer, str]:
    """The tokenizer and how messages name it: the one that is given, else the one beside the model, in whatever form."""
    given = Path(config.tokenizer) if config.tokenizer else place.folder
    file = given / TOKENIZER_FILE if given.is_dir() else given
    try:
        return open_tokenizer(file), str(file)
    except OSError:
        if config.tokenizer:
            raise InputError(f"{file}: no such tokenizer; give a tokenizer.json or a folder with one") from None
    try:
        with quiet():
            found = library(what).AutoTokenizer.from_pretrained(place.folder, **open_options(None))
        if set(found.get_vocab().values()) <= set(found.all_special_ids):
            raise ValueError("it has special tokens alone")  # what the library makes of a config without a tokenizer
        return Tokenizer.from_str(found.backend_tokenizer.to_str()), str(place.folder)
    except Exception as error:
        raise InputError(f"{what}: no {TOKENIZER_FILE} beside the weights, nor another that transformers reads "
                         f"({first_line(error, 100)}); give --tokenizer") from None


def _renamed(tokenizer: Tokenizer, name: str, where: str) -> Tokenizer:
    """The tokenizer with its token `name` called [MASK], the id kept. Raises InputError where [MASK] is another's name."""
    if name == MASK:
        return tokenizer
    if tokenizer.token_to_id(MASK) is not None:
        raise InputError(f"{where}: has a token {MASK} beside {name}; leave out --mask, or rename one of them")
    data = json.loads(tokenizer.to_str())
    words = data["model"].get("vocab")
    if isinstance(words, dict) and name in words:
        words[MASK] = words.pop(name)
    elif isinstance(words, list):
        data["model"]["vocab"] = [[MASK, each[1]] if each[0] == name else each for each in words]
    for token in data["added_tokens"]:
        if token["content"] == name:
            token["content"] = MASK
    return Tokenizer.from_str(json.dumps(data))


def _length(model: Any, config: ImportConfig, words: _Words) -> int:
    """Tokens of a text: what is asked for, else what the positions allow."""
    if config.length is not None:
        return config.length
    return max(1, min(LENGTH, (_positions(model) or LENGTH) - len(words.before) - len(words.after)))


def _positions(model: Any) -> int | None:
    """Tokens that the model has positions for; RoBERTa's table begins behind the row of its padding. None: any number."""
    found = getattr(model.config, "max_position_embeddings", None)
    table = next((module for name, module in model.named_modules() if name.endswith("position_embeddings")), None)
    if isinstance(found, int) and isinstance(table, nn.Embedding) and table.padding_idx is not None:
        found = table.num_embeddings - table.padding_idx - 1
    return found if isinstance(found, int) and found > 0 else None


@torch.no_grad()
def _network(what: str, model: Any, config: ImportConfig, words: _Words, end_id: int | None) -> Denoiser:
    """The denoiser with the model's weights, whose logits have been compared. Raises InputError."""
    length, positions, size = _length(model, config, words), _positions(model), words.vocabulary.size
    if positions is not None and length + len(words.before) + len(words.after) > positions:
        raise InputError(f"--length {length}: {what} has {positions} positions, {len(words.before) + len(words.after)} of them "
                         "for the special tokens around a text; give a shorter one")
    probe = torch.linspace(0, size - 1, min(16, length)).long()[None]
    whole = torch.cat([torch.tensor([words.before]).long(), probe, torch.tensor([words.after]).long()], 1)
    expected = model(input_ids=whole).logits[:, len(words.before): len(words.before) + probe.shape[1], :size]
    head = without_head(model)
    try:
        made = DenoiserConfig(
            hidden_size=head.in_features, n_blocks=getattr(model.config, "num_hidden_layers", 1), n_heads=_heads(model, head),
            vocab_size=size, length=length, mask_id=words.vocabulary.mask_id, kappa_exponent=config.kappa_exponent,
            conditioning="none", end_id=end_id,
            masked_lm={"config": _plain(model, size), "before": words.before, "after": words.after})
    except ValidationError as error:
        raise explain(error, what) from None
    with undrawn():
        network = Denoiser(made)
    embedding = next(name for name, each in model.named_parameters() if each is model.get_input_embeddings().weight)
    state = {f"trunk.model.{name}": tensor[:size] if name == embedding else tensor
             for name, tensor in model.state_dict().items()}
    state |= {"head.weight": head.weight[:size], "head.bias": _bias(head)[:size]}
    network.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    network.eval()
    _compare(what, network(probe, torch.zeros(1)), expected)
    try:
        network.hidden(torch.zeros(1, length, dtype=torch.long), torch.zeros(1))
    except (IndexError, RuntimeError) as error:
        raise InputError(f"--length {length}: {what} can't compute so many tokens ({first_line(error, 100)}); give a shorter "
                         "one") from None
    return network


def _compare(what: str, found: Tensor, expected: Tensor) -> None:
    if not bool(expected.isfinite().all()) or not torch.allclose(found, expected, rtol=AGREEMENT, atol=AGREEMENT):
        raise InputError(f"{what}: its logits are not finite, or more than a head of its hidden states, which is not "
                         "supported; give another model")


def _bias(head: nn.Linear) -> Tensor:
    return torch.zeros(head.out_features) if head.bias is None else head.bias


def _heads(model: Any, head: nn.Linear) -> int:
    """The number of attention heads; 1 where hidden states are narrower than what is attended to (ALBERT's)."""
    heads = getattr(model.config, "num_attention_heads", 1)
    return heads if head.in_features % (2 * heads) == 0 else 1


def _plain(model: Any, size: int) -> dict[str, Any]:
    """The model's config as plain JSON, with `size` ids and no dropout."""
    data = json.loads(json.dumps({name: value for name, value in model.config.to_dict().items() if name not in LEFT_OUT}))
    quiet_ones = {name: 0.0 for name, value in data.items() if "dropout" in name and isinstance(value, float)}
    plain: dict[str, Any] = data | quiet_ones | {"vocab_size": size}
    return plain
