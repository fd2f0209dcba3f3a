"""`training.json` of a model folder: how the model was made, one record per command that makes one."""

from typing import Any

from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer

from tsdfm.schemas.base import Frozen, Sha256, without_newer
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.given import BlockFacts, PromptFacts
from tsdfm.schemas.import_teacher import ImportConfig
from tsdfm.schemas.terms import Arm, Layout
from tsdfm.schemas.train import CompassConfig, PretrainConfig


class CorpusFacts(Frozen):
    """What text it was."""

    documents: int
    training_documents: int = Field(description="of the part that was trained on")
    training_tokens: int
    held_out_tokens: int
    sha256: Sha256 = Field(description="of all documents, split or not")
    python: str | None = Field(None, description="of the corpus 'python': the version of Python whose text it is")
    distributions: list[str] | None = Field(None, description="of the corpus 'python': the packages it was read from")
    commit: str | None = Field(None, description="of a Hub dataset: the commit that was read")
    left_out: dict[str, int] | None = Field(None, description="what, in words -> how many of it")

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


class PretrainRecord(Frozen):
    """A teacher of `pretrain`."""

    config: PretrainConfig
    corpus: CorpusFacts
    held_out_cross_entropy: float = Field(description="nats per noised token")
    held_out_negative_elbo: float = Field(description="nats per token")


class CausalRecord(Frozen):
    """A causal LM of `fit-compass`: a compass of kind `ar`, or a judge."""

    config: CompassConfig
    corpus: CorpusFacts
    tokenizer: Sha256 = Field(description="fingerprint of its tokenizer")
    held_out_perplexity: float = Field(description="per token")


class Separation(Frozen):
    """How well an encoder tells real from teacher states in one bin of t."""

    t_from: float
    t_to: float
    auc: float = Field(description="area under the ROC curve: 0.5 is chance")


class NceRecord(Frozen):
    """An encoder of `fit-compass`: a compass of kind `nce`."""

    config: CompassConfig
    corpus: CorpusFacts
    teacher: Sha256 = Field(description="fingerprint of the teacher whose states it was fitted against")
    rollouts: int
    held_out_auc: list[Separation]


class ContrastRecord(Frozen):
    """Two causal LMs of `fit-compass`: a compass of kind `contrast`."""

    config: CompassConfig
    corpus: CorpusFacts
    teacher: Sha256 = Field(description="fingerprint of the teacher whose texts the copy was fitted to")
    start: Sha256 = Field(description="fingerprint of the `ar` compass that it was copied from")
    rollouts: int
    teachers_nats_before: float = Field(description="per token of the teacher's texts not learnt from, by the `ar` compass")
    teachers_nats: float = Field(description="by its copy, when that is fitted")
    held_out_auc: float = Field(description="of held-out text against those texts by their energies: 0.5 is chance")


FittedRecord = CausalRecord | NceRecord | ContrastRecord


class DatasetFacts(Frozen):
    """One dataset that a student was distilled from."""

    path: str = Field(description="as configured")
    uri: str = Field(description="where it was found; of the Hub, at which commit")
    identity: Sha256 = Field(description="digest of all that its bytes depend on")
    rows: int = Field(description="rows of it that were read")
    share: int = Field(description="its share of every batch, relative to the others'")
    prompts: PromptFacts | None = Field(None, description="what its trajectories go on from; absent: they were written whole")

    blocks: BlockFacts | None = Field(None, description="of texts in blocks: how they lie; absent: each trajectory is a text")

    @model_serializer(mode="wrap")
    def _as_before_prompts(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_newer(handler(self), info, prompts=None, blocks=None)


class DataFacts(Frozen):
    """All that a student was distilled from."""

    datasets: list[DatasetFacts]
    arm: Arm
    seed: int


class HeldOutFacts(Frozen):
    """What a student is worth on trajectories that it did not learn from."""

    trajectories: int = Field(ge=1, description="windows that were measured, one of each")
    updates: int = Field(ge=0, description="those whose weights the student has: fewer than asked for where it stopped early")
    loss: float = Field(description="mean of the objective, nats")
    share: float | None = Field(description=(
        "of the compass's preference among the candidates that the student carries: 0 none, 1 all; null where it can't be "
        "told, as for data that other weights made than those it started from"))
    cooled: float | None = Field(None, description=(
        "the share of the weights that it started from, at the temperature that suits them best: what a cooler teacher "
        "prefers, too; absent where there is no share"))

    @model_serializer(mode="wrap")
    def _without_newer(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_newer(handler(self), info, cooled=None)


class StudentRecord(Frozen):
    """A student of `distill`."""

    config: DistillConfig = Field(description="with its budgets resolved")
    data: DataFacts
    init: Sha256 = Field(description="fingerprint of the weights it started from")
    corpus: CorpusFacts | None = Field(None, description="the real text that was mixed in; absent if there was none")
    versions: dict[str, str] = Field(default_factory=dict, description="library versions")
    held_out: HeldOutFacts | None = Field(None, description="on held-out trajectories; absent if there were none")

    @property
    def updates(self) -> int:
        """Those whose weights the student has."""
        return self.config.optim.steps if self.held_out is None else self.held_out.updates

    @model_serializer(mode="wrap")
    def _as_before_real_text(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_newer(handler(self), info, corpus=None, held_out=None)


class Origin(Frozen):
    """Where another project's weights came from."""

    layout: Layout
    weights: str = Field(description="which of the file's sets of weights; '' where it holds one")
    sha256: Sha256 = Field(description="of the file")
    others: list[str] = Field(description="the other sets that the file holds")
    config: ImportConfig
    commit: str | None = Field(None, description="of the Hub's repository; absent for a file or folder")

    @model_serializer(mode="wrap")
    def _as_before_the_hub(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_newer(handler(self), info, commit=None)


class ImportRecord(Frozen):
    """A model of `import-teacher`."""

    imported: Origin
