"""Configs of the two commands that train: `pretrain` (teacher) and `fit-compass` (compass or judge)."""

from typing import Any, Literal

from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer, model_validator

from tsdfm.schemas.base import without_newer
from tsdfm.schemas.corpus import CorpusConfig
from tsdfm.schemas.model import KappaExponent, TransformerShape
from tsdfm.schemas.optim import Divided
from tsdfm.schemas.paths import PathName
from tsdfm.schemas.terms import Clocks, Source, Texts


class PretrainConfig(Divided):
    """`tsdfm-pipeline pretrain`: train a denoiser from text."""

    corpus: CorpusConfig = CorpusConfig()
    tokenizer: PathName | None = Field(None, description=(
        "Folder or file of a tokenizer.json to use; null: one is trained on the corpus"))
    eos: str | None = Field(None, min_length=1, description="Token that ends a text, of a given tokenizer; null: as it says")
    vocab_size: int = Field(2048, ge=258, le=1 << 20, description="Size of a tokenizer that is trained here, [MASK] included")
    length: int = Field(64, ge=2, le=65536, description=(
        "Tokens L of every sequence, which is also the length of the texts it will write"))
    texts: Texts = Field("packed", description=(
        "How documents become texts: 'packed' cuts all of them, one after another with an end token between, into stretches of "
        "L; 'padded' makes each a text of its own, cut at L, and the model then writes texts that end"))
    source: Source = Field("mask", description=(
        "What a text starts from: all [MASK] ('mask') or random tokens ('uniform')"))
    kappa_exponent: KappaExponent = Field(1.0, description=(
        "Exponent n of the schedule kappa_t = t^n: the share of a text that is written at time t"))
    objective: Literal["cross_entropy", "generalized_kl"] = Field("cross_entropy", description=(
        "What is minimised: the cross entropy at noised positions, or the generalised KL of the jump rates, which bounds the "
        "likelihood"))
    spaced: float = Field(0.0, ge=0, le=1, description=(
        "Share of each batch whose texts are noised as spaced clocks do it, their noise spread evenly; of the mask source"))
    shape: TransformerShape = TransformerShape()
    cond_dim: int = Field(128, ge=8, le=65536, description="Width of the embedding of the time")

    @model_validator(mode="after")
    def _one_vocabulary(self) -> "PretrainConfig":
        if self.tokenizer is not None and self.vocab_size != type(self).model_fields["vocab_size"].default:
            raise ValueError("vocab_size: is of a tokenizer that is trained here, and one is given (tokenizer); leave one "
                             "of them out")
        if self.tokenizer is None and self.eos is not None:
            raise ValueError("eos: is of a tokenizer that is given (tokenizer); one that is trained here has its own")
        if self.spaced and self.source != "mask":
            raise ValueError("spaced: only of the mask source, for that of the uniform one depends on the steps; set it to 0")
        return self

    @model_serializer(mode="wrap")
    def _without_newer(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_newer(handler(self), info, eos=None, spaced=0.0, tracker="none", texts="packed")


class CompassConfig(Divided):
    """`tsdfm-pipeline fit-compass`: fit an energy (`nce`, `contrast`), or a causal LM (`ar`; a judge is one, too)."""

    kind: Literal["ar", "nce", "contrast"] = Field("ar", description=(
        "'ar' is a causal language model, whose energy is the negative log-likelihood of the text (a judge is one, too); 'nce' "
        "a network that tells real texts from the teacher's at every time; 'contrast' an 'ar' (`start`) and its copy that is "
        "fitted further to the teacher's texts, whose energy is the difference of both"))
    teacher: PathName = Field("embedded", description=(
        "The teacher it is for, which gives tokenizer, length and source: 'embedded', 'embedded:uniform', a folder, or "
        "hub:USER/NAME[@REVISION]"))
    corpus: CorpusConfig = CorpusConfig(part="first")
    shape: TransformerShape = TransformerShape(hidden_size=128, n_blocks=3, n_heads=4)
    rollouts: int = Field(512, ge=2, lt=2**31, description=(
        "Blind texts of the teacher: 'nce' learns to tell them from real ones, a copy in 'contrast' to expect them"))
    rollout_steps: int = Field(32, ge=1, le=65536, description="Steps of those rollouts")
    rollout_clocks: Clocks | None = Field(None, description=(
        "Which positions jump together in those rollouts; null: as the teacher was trained for. Give those of `generate`"))
    start: PathName | None = Field(None, description=(
        "Of 'contrast': the 'ar' compass that is set against its own copy: 'embedded', a folder, or hub:USER/NAME[@REVISION]; "
        "null: embedded"))
    init: Literal["teacher", "random"] | None = Field(None, description=(
        "What an 'nce' network starts from: 'teacher' is the teacher's weights, in its widths; 'random' is none, in the widths "
        "of `shape`; null: teacher for 'nce'; an 'ar' network has no other start than random"))
    hard_negatives: int = Field(0, ge=0, le=127, description=(
        "Of 'nce': draws of the teacher among which a text's own tokens are ranked at every jump, as a compass ranks "
        "candidates; each costs a pass more; 0: none, texts are told from rollouts only"))

    @model_validator(mode="after")
    def _of_nce(self) -> "CompassConfig":
        if self.kind != "nce" and (self.init == "teacher" or self.hard_negatives):
            name = "hard_negatives" if self.hard_negatives else "init 'teacher'"
            raise ValueError(f"{name}: belongs to kind 'nce'; set that, or leave it out")
        if self.kind != "contrast" and self.start is not None:
            raise ValueError("start: belongs to kind 'contrast'; set that, or leave it out")
        if self.kind == "ar" and self.rollout_clocks is not None:
            raise ValueError("rollout_clocks: belongs to kinds 'nce' and 'contrast', for which the teacher writes texts; set "
                             "one of them, or leave it out")
        return self

    @model_serializer(mode="wrap")
    def _without_newer(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_newer(handler(self), info, tracker="none", init=None, hard_negatives=0, rollout_clocks=None,
                             start=None)

    @model_validator(mode="after")
    def _halves(self) -> "CompassConfig":
        if self.corpus.part == "all":
            raise ValueError("corpus.part must be 'first' or 'second': a compass and its judge never share a half")
        return self


TextTraining = PretrainConfig | CompassConfig
