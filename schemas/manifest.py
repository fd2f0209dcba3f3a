"""`manifest.json`: the commit of a dataset. No manifest, no dataset; it names exactly one file per shard."""

from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import (
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from tsdfm.schemas.base import Frozen, Sha256, without_newer
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig
from tsdfm.schemas.given import BlockFacts, PromptFacts
from tsdfm.schemas.terms import Arm, Arms, CompassKind, DeviceKind, Source
from tsdfm.schemas.trajectory import Grid, format_version

FORMAT_VERSIONS = (1, 2)
FILES_A_FOLDER = 10_000


class ShardRecord(Frozen):
    """One Parquet file: where, how much, and what its bytes hash to."""

    path: str = Field(description="POSIX path relative to the dataset, inside it")
    rows: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: Sha256

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        parts = PurePosixPath(path).parts
        if not parts or parts[0] == "/" or ".." in parts or "\\" in path or ":" in path or "\0" in path:
            raise ValueError(f"path {path!r} leaves the dataset; only relative paths inside it are allowed")
        return path


class TeacherFacts(Frozen):
    """The teacher, as far as a reader of trajectories must know it."""

    fingerprint: Sha256
    source: Source
    vocab_size: int = Field(ge=2)
    mask_id: int | None
    kappa_exponent: float = Field(gt=0)
    end_id: int | None = Field(None, ge=0, description=(
        "id of the token that ends a text, behind which nothing counts; absent: texts are packed"))

    @model_serializer(mode="wrap")
    def _without_newer(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_newer(handler(self), info, end_id=None)


class CompassFacts(Frozen):
    """The compass: its kind, and what its weights hash to."""

    kind: CompassKind
    fingerprint: Sha256


class Identity(Frozen):
    """All that the bytes of the data files depend on. Two runs of one identity give the same files."""

    trajectories: int = Field(ge=1)
    arm: Arms
    shard_size: int = Field(ge=1)
    rollout: RolloutConfig
    shaping: ShapingConfig
    teacher: TeacherFacts
    compass: CompassFacts | None
    tokenizer: Sha256
    device: DeviceKind
    shards_per_file: int | None = Field(None, ge=1, description=(
        "units of work of `shard_size` trajectories in one file; absent where files are one unit, and one row group, each"))

    prompts: PromptFacts | None = Field(None, description=(
        "what was given of the texts; absent where they were written whole"))
    blocks: BlockFacts | None = Field(None, description=(
        "how texts lie in trajectories that are longer than those; absent where each trajectory is a text"))

    @model_validator(mode="after")
    def _holds_whole_texts(self) -> "Identity":
        blocks = self.blocks
        if blocks is not None and (self.trajectories % blocks.per_text or self.shard_size % blocks.per_text):
            raise ValueError("trajectories and shard_size must be multiples of blocks.per_text: a text's blocks stay together")
        if blocks is not None and blocks.overlap >= (self.rollout.length or 0):
            raise ValueError("blocks.overlap leaves nothing of a block to be written")
        return self

    @property
    def format_version(self) -> Literal[1, 2]:
        """The version of the format that a dataset of these settings is written in."""
        return format_version(self.grid)

    @property
    def per_text(self) -> int:
        """Trajectories of a text: 1, or of a longer one its blocks."""
        return 1 if self.blocks is None else self.blocks.per_text

    @property
    def trajectories_per_file(self) -> int:
        """Trajectory ids of every file but the last, which may hold fewer."""
        return self.shard_size * (self.shards_per_file or 1)

    @property
    def files(self) -> int:
        """How many files the rows are in."""
        return -(-self.trajectories // self.trajectories_per_file)

    @property
    def foldered(self) -> bool:
        """Whether the files lie in folders of FILES_A_FOLDER each, data/000 and on, for they are more."""
        return self.shards_per_file is not None and self.files > FILES_A_FOLDER

    @field_validator("rollout")
    @classmethod
    def _clocks_are_known(cls, rollout: RolloutConfig) -> RolloutConfig:
        """Of datasets that are older than the choice, clocks are independent."""
        return rollout if rollout.clocks else rollout.model_copy(update={"clocks": "independent"})

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Independent clocks, files of one unit each, no prompts and no blocks are not written: such manifests stay."""
        data: dict[str, Any] = handler(self)
        for name in ("shards_per_file", "prompts", "blocks"):
            if data[name] is None:
                del data[name]
        if self.rollout.clocks == "independent":
            data["rollout"].pop("clocks", None)
        return data

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms of each trajectory id, in the order of their rows."""
        return ("shaped", "blind") if self.arm == "both" else (self.arm,)

    @property
    def grid(self) -> Grid:
        """What every shard is checked against."""
        if self.rollout.length is None:
            raise ValueError("an identity has a resolved length")
        return Grid(
            length=self.rollout.length, steps=self.rollout.steps, vocab_size=self.teacher.vocab_size,
            mask_id=self.teacher.mask_id, candidates=self.shaping.candidates, top_k=self.rollout.top_k,
            shaped_steps=self.shaping.sequence_steps_of(self.rollout), select=self.shaping.select,
            compass=self.compass is not None, fixed=self.prompts is not None or self.blocks is not None,
            token_steps=self.shaping.token_steps_of(self.rollout), by_token=self.shaping.level != "sequence",
            logprobs=self.rollout.logprobs,
        )


class Totals(Frozen):
    """Sums over all shards."""

    rows: int = Field(ge=1)
    events: int = Field(ge=1)
    tokens: int = Field(ge=1, description="rows times length")
    bytes: int = Field(ge=1)


class FormerDataset(Frozen):
    """What a dataset was before it grew."""

    trajectories: int = Field(ge=1)
    rows: int = Field(ge=1)
    bytes: int = Field(ge=1)
    until: str = Field(description="when it had grown: UTC, ISO 8601")
    versions: dict[str, str] = Field(description="library versions that its rows were made with")


class DatasetManifest(Frozen):
    """The whole dataset."""

    format_version: Literal[1, 2] = 1
    identity: Identity
    time_grid: list[float] = Field(min_length=2, description="the N + 1 times of the rollout")
    shaped_steps: list[int] = Field(description="the steps at which a whole candidate was chosen, in order of step_choice")
    token_steps: list[int] = Field(default_factory=list, description=(
        "the steps at which each position chose by itself; absent where there are none"))
    shards: list[ShardRecord] = Field(min_length=1)
    totals: Totals
    teacher: str | None = Field(None, description="where the teacher was: 'embedded', or a folder; a hint for `distill`")
    versions: dict[str, str] = Field(description="library versions it was made with")
    history: list[FormerDataset] = Field(default_factory=list, description=(
        "what it was before it grew, oldest first; absent if it never did"))

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if name not in ("history", "token_steps") or value}

    @model_validator(mode="before")
    @classmethod
    def _is_of_a_known_version(cls, data: Any) -> Any:
        """Of a version that is not known, nothing else can be said."""
        found = data.get("format_version", 1) if isinstance(data, dict) else 1
        if isinstance(found, bool) or found not in FORMAT_VERSIONS:
            known = " and ".join(map(str, FORMAT_VERSIONS))
            raise ValueError(f"format_version {found!r:.40} is unknown, only {known} can be read; update tsdfm-pipeline")
        return data

    @model_validator(mode="after")
    def _is_of_its_settings(self) -> "DatasetManifest":
        wanted = self.identity.format_version
        if self.format_version != wanted:
            raise ValueError(f"format_version is {self.format_version}, and a dataset of its settings is of version {wanted}")
        return self

    @model_validator(mode="after")
    def _adds_up(self) -> "DatasetManifest":
        if len({shard.path for shard in self.shards}) != len(self.shards):
            raise ValueError("shards: a path occurs twice; each shard is one file")
        if len(self.shards) != self.identity.files:
            raise ValueError(f"shards: {len(self.shards)} are not those of {self.identity.trajectories} trajectories, "
                             f"{self.identity.trajectories_per_file} in each")
        if sum(shard.bytes for shard in self.shards) != self.totals.bytes:
            raise ValueError("totals.bytes is not the sum of the shards' bytes")
        if sum(shard.rows for shard in self.shards) != self.totals.rows:
            raise ValueError("totals.rows is not the sum of the shards' rows")
        if self.totals.tokens != self.totals.rows * (self.identity.rollout.length or 0):
            raise ValueError("totals.tokens is not rows times length")
        identity = self.identity
        if tuple(self.time_grid) != identity.rollout.times:
            raise ValueError("time_grid is not the grid of its config")
        grid = identity.grid
        for name in ("shaped_steps", "token_steps"):
            if tuple(getattr(self, name)) != getattr(grid, name):
                raise ValueError(f"{name} are not those of its config")
        return self
