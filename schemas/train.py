"""Configs of the two commands that train: `pretrain` (teacher) and `fit-compass` (compass or judge)."""

from typing import Literal

from pydantic import Field, model_validator

from tsdfm.schemas.base import Frozen
from tsdfm.schemas.model import Source, TransformerShape

CorpusPart = Literal["all", "first", "second"]


class OptimConfig(Frozen):
    """AdamW with linear warm-up, cosine decay, gradient clipping and an EMA of the weights."""

    steps: int = Field(2000, ge=1, description="number of updates")
    batch_size: int = Field(64, ge=1, description="sequences per update")
    lr: float = Field(2e-3, gt=0, description="peak learning rate")
    warmup: int = Field(100, ge=0, description="updates of linear warm-up")
    final_lr_ratio: float = Field(0.05, ge=0, le=1, description="learning rate at the end, as a share of the peak")
    weight_decay: float = Field(0.05, ge=0, description="decoupled weight decay of the matrices")
    beta2: float = Field(0.98, gt=0, lt=1, description="second AdamW moment's decay")
    clip: float = Field(1.0, gt=0, description="largest global gradient norm")
    ema: float = Field(0.998, ge=0, lt=1, description="decay of the averaged weights; these are what is saved")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of weights, batches and noise")
    threads: int = Field(1, ge=1, description="CPU threads")
    log_every: int = Field(20, ge=1, description="updates between log lines")
    checkpoint_every: int = Field(200, ge=1, description="updates between checkpoints")


class CorpusConfig(Frozen):
    """What text to train on."""

    path: str = Field("python", min_length=1, description=(
        "'python' (the English that comes with Python and the installed packages), a .txt/.md, .jsonl, .jsonl.zst "
        "or .parquet file, a folder of them, or hub:NAME[:SPLIT] for a Hub dataset"))
    text_field: str = Field("text", min_length=1, description="name of the text column of records")
    part: CorpusPart = Field("all", description="which half of the training documents (split by content hash)")


class PretrainConfig(Frozen):
    """`tsdfm-pipeline pretrain`: train a denoiser from text."""

    corpus: CorpusConfig = CorpusConfig()
    tokenizer: str | None = Field(None, description="folder or file of a tokenizer.json; null trains one on the corpus")
    vocab_size: int = Field(2048, ge=258, le=1 << 20, description="size of a tokenizer trained here, [MASK] included")
    length: int = Field(64, ge=2, description="sequence length L in tokens")
    source: Source = "mask"
    kappa_exponent: float = Field(1.0, gt=0, description="n of the schedule kappa_t = t^n")
    objective: Literal["cross_entropy", "generalized_kl"] = "cross_entropy"
    shape: TransformerShape = TransformerShape()
    cond_dim: int = Field(128, ge=8, description="width of the time conditioning")
    optim: OptimConfig = OptimConfig()


class CompassConfig(Frozen):
    """`tsdfm-pipeline fit-compass`: fit an energy (`nce`), or a causal LM (`ar`; a judge is one, too)."""

    kind: Literal["ar", "nce"] = "ar"
    teacher: str = Field("embedded", min_length=1, description="teacher folder; gives tokenizer, length and source")
    corpus: CorpusConfig = CorpusConfig(part="first")
    shape: TransformerShape = Field(TransformerShape(hidden_size=128, n_blocks=3, n_heads=4), description="sizes for `ar`")
    rollouts: int = Field(512, ge=2, description="blind teacher rollouts that serve as noise for `nce`")
    rollout_steps: int = Field(32, ge=1, description="steps of those rollouts")
    optim: OptimConfig = OptimConfig()

    @model_validator(mode="after")
    def _halves(self) -> "CompassConfig":
        if self.corpus.part == "all":
            raise ValueError("corpus.part must be 'first' or 'second': a compass and its judge never share a half")
        return self
