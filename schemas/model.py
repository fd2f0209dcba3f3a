"""The `config.json` of a model folder: one pydantic model per kind of network.

A model folder holds `config.json` (one of these), `model.safetensors` and `tokenizer.json`. That of a published student also
has fields by which the transformers library finds its class; they are not part of the model, nor of its fingerprint.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, TypeAdapter, ValidationError, model_serializer, model_validator
from pydantic_core import to_json

from tsdfm.schemas.base import Frozen, explain
from tsdfm.schemas.terms import Clocks, Source, Texts

# n of the schedule kappa_t = t^n, of a model that is yet to be made. Beyond this kappa is 0 or 1 in float32 at almost all t.
KappaExponent = Annotated[float, Field(ge=1e-3, le=1e3)]


class TransformerShape(Frozen):
    """Sizes shared by all our transformers."""

    hidden_size: int = Field(192, ge=8, le=16384, description="Width D of the network")
    n_blocks: int = Field(5, ge=1, le=256, description="Transformer blocks")
    n_heads: int = Field(6, ge=1, le=256, description="Attention heads; twice their number divides the width")
    mlp_ratio: int = Field(4, ge=1, le=16, description="Width of the MLPs, as a multiple of the network's")
    dropout: float = Field(0.0, ge=0, lt=1, description="Probability of dropout on each residual branch")

    @model_validator(mode="after")
    def _heads_divide(self) -> "TransformerShape":
        if self.hidden_size % (2 * self.n_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of 2 * n_heads ({2 * self.n_heads}), "
                "for rotary attention turns pairs of channels"
            )
        return self


class MaskedConfig(Frozen):
    """Of a denoiser that is a masked language model of the transformers library."""

    config: dict[str, Any] = Field(description="its config.json, as the library has it; model_type says which class it is")
    before: list[int] = Field(description="ids that are put before every text, as [CLS]")
    after: list[int] = Field(description="ids that are put behind every text, as [SEP]")


class DenoiserConfig(TransformerShape):
    """A DiT-style denoiser: p(x_1 | x_t, t) per position; of a student, p(x | x_t, t, dt)."""

    kind: Literal["denoiser"] = "denoiser"
    vocab_size: int = Field(ge=2, description="ids 0..vocab_size-1, [MASK] included where there is one")
    length: int = Field(ge=1, le=65536, description="longest sequence the model was trained on, in tokens")
    cond_dim: int = Field(128, ge=8, le=65536, description="width of the time conditioning")
    source: Source = Field("mask", description="distribution of x_0: all [MASK], or independent uniform tokens")
    mask_id: int | None = Field(None, ge=0, description="id of [MASK]; null for the uniform source")
    kappa_exponent: float = Field(1.0, gt=0, description="n of the schedule kappa_t = t^n")
    step_size: bool = Field(False, description="a student: conditioned on the step size dt, too")
    conditioning: Literal["t", "sigma", "fused", "none"] = Field("t", description=(
        "what the network is told of time: t itself; sigma = -log kappa_t (MDLM, Duo); t and the plain dt, fused anew in every "
        "block (students of FS-DFM); nothing (masked language models)"))
    masked_lm: MaskedConfig | None = Field(None, description="absent: the network is our own")
    clocks: Clocks = Field("independent", description="the clocks that it was trained for, with which it writes")
    end_id: int | None = Field(None, ge=0, description=(
        "id of the token that ends a text, of a model of padded texts: each is one document, its end token behind it, and what "
        "follows that counts for nothing; null: texts are packed, what follows an end is another document"))

    @property
    def texts(self) -> Texts:
        """How the texts lie that it was trained on."""
        return "packed" if self.end_id is None else "padded"

    @model_validator(mode="after")
    def _mask_matches_source(self) -> "DenoiserConfig":
        if self.source == "mask" and self.mask_id is None:
            raise ValueError("source 'mask' needs mask_id; give the id of [MASK] in the tokenizer")
        if self.source == "uniform" and self.mask_id is not None:
            raise ValueError("source 'uniform' has no [MASK]; set mask_id to null")
        if self.mask_id is not None and self.mask_id >= self.vocab_size:
            raise ValueError(f"mask_id {self.mask_id} is outside the vocabulary of {self.vocab_size}; give an id below it")
        if self.end_id is not None and (self.end_id >= self.vocab_size or self.end_id == self.mask_id):
            raise ValueError(f"end_id {self.end_id} is [MASK], or outside the vocabulary of {self.vocab_size}; give the id of "
                             "the token that ends a text")
        if self.conditioning == "fused" and not self.step_size:
            raise ValueError("conditioning 'fused' fuses t with the step size; set step_size to true")
        return self

    @model_validator(mode="after")
    def _masked_lm_fits(self) -> "DenoiserConfig":
        if (self.masked_lm is not None) != (self.conditioning == "none"):
            raise ValueError("conditioning 'none' is that of a masked language model, and of no other; leave out one of both")
        if self.masked_lm is None:
            return self
        if self.source != "mask":
            raise ValueError("a masked language model has the mask source; set source to 'mask'")
        wanted = self.length + len(self.masked_lm.before) + len(self.masked_lm.after)
        positions = self.masked_lm.config.get("max_position_embeddings")
        if isinstance(positions, int) and wanted > positions:
            raise ValueError(f"length {self.length}, with the special tokens around a text, is more than the model's "
                             f"{positions} positions; give a shorter one")
        if self.masked_lm.config.get("num_hidden_layers", self.n_blocks) != self.n_blocks:
            raise ValueError(f"n_blocks {self.n_blocks} is not the num_hidden_layers of masked_lm; give the model's own config")
        return self

    @model_serializer(mode="wrap")
    def _as_before_imports(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Newer fields are written only where they say something: files and fingerprints of older models stay what they are."""
        usual = {"conditioning": "t", "masked_lm": None, "clocks": "independent", "end_id": None}
        return {name: value for name, value in handler(self).items() if name not in usual or value != usual[name]}


class CausalConfig(TransformerShape):
    """A small causal language model over the same vocabulary: the `ar` compass, or a judge."""

    kind: Literal["causal"] = "causal"
    vocab_size: int = Field(ge=2, description="ids 0..vocab_size-1 ([MASK] is never scored)")
    length: int = Field(ge=1, le=65536, description="longest sequence the model was trained on, in tokens")
    bos_id: int = Field(0, ge=0, description="id fed before the first token")

    @model_validator(mode="after")
    def _bos_is_a_token(self) -> "CausalConfig":
        if self.bos_id >= self.vocab_size:
            raise ValueError(f"bos_id {self.bos_id} is outside the vocabulary of {self.vocab_size}; give an id below it")
        return self


class NceConfig(Frozen):
    """A time-conditioned encoder with a scalar head: the `nce` compass."""

    kind: Literal["nce"] = "nce"
    trunk: DenoiserConfig


class ContrastConfig(Frozen):
    """Two causal language models of the same sizes, one of text and one of a teacher's texts: the `contrast` compass."""

    kind: Literal["contrast"] = "contrast"
    each: CausalConfig


AnyConfig = DenoiserConfig | CausalConfig | NceConfig | ContrastConfig
ModelConfig = Annotated[AnyConfig, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[AnyConfig] = TypeAdapter(ModelConfig)


MODELING = "modeling_tsdfm"  # the module beside a published student, and its classes
FOR_TRANSFORMERS: dict[str, Any] = {
    "model_type": "tsdfm", "architectures": ["TsdfmForMaskedLM"], "dtype": "float32",
    "auto_map": {"AutoConfig": f"{MODELING}.TsdfmConfig", "AutoModelForMaskedLM": f"{MODELING}.TsdfmForMaskedLM"},
}


def for_transformers(config: bytes) -> bytes | None:
    """Our config.json with the fields of FOR_TRANSFORMERS; None if `own_config` could not give the same bytes back."""
    found = _written(json.loads(config) | FOR_TRANSFORMERS)
    return found if own_config(found) == config else None


def own_config(config: bytes) -> bytes:
    """A config.json without the fields of FOR_TRANSFORMERS, as it was before it had them; any other as it is."""
    try:
        fields = json.loads(config)
    except (ValueError, RecursionError):  # whoever parses it says what is wrong
        return config
    if not isinstance(fields, dict) or fields.get("model_type") != FOR_TRANSFORMERS["model_type"]:
        return config
    try:
        return _written({name: value for name, value in fields.items() if name not in FOR_TRANSFORMERS})
    except ValueError:  # text that is no Unicode
        return config


def _written(fields: dict[str, Any]) -> bytes:
    """The bytes of a config.json, its numbers spelled as pydantic spells those of a model folder."""
    return to_json(fields, indent=2) + b"\n"


def parse_model_config(text: str | bytes, where: str) -> AnyConfig:
    """Validate the JSON of a model folder's config. Raises InputError, naming `where` and the fields."""
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        raise explain(error, where) from None
