"""What `inspect` finds in a dataset; `inspect --json` prints it. Energies are in nats per token."""

from pydantic import Field

from tsdfm.schemas.base import Frozen
from tsdfm.schemas.terms import Arm, Select, Source


class Spread(Frozen):
    """Mean and spread of one number per trajectory."""

    count: int = Field(ge=1)
    mean: float
    deviation: float | None = Field(description="sample standard deviation (count - 1); null for one value")


class TimeBin(Frozen):
    """A run of neighbouring steps of the rollout: the times t_start <= t < t_end."""

    t_start: float = Field(ge=0, lt=1)
    t_end: float = Field(gt=0, le=1)
    steps: int = Field(ge=1, description="steps of the grid within it")


class ArmSummary(Frozen):
    """All rows of one arm."""

    arm: Arm
    final_energy: Spread | None = Field(description="energy at t = 1; null without a compass")
    events: Spread = Field(description="events per trajectory")
    fixed: Spread | None = Field(None, description="tokens per trajectory that were given; null without prompts or blocks")
    jumps_per_step: list[float] = Field(description="per time bin: events per trajectory and step")
    entropy: Spread = Field(description="unigram entropy of each row's tokens, bits")
    distinct_1: float
    distinct_2: float | None = Field(description="null if rows are shorter than n, as for distinct_4")
    distinct_4: float | None
    distinct_rows: int = Field(ge=1, description="rows distinct_n is taken over: the arm's first ones")


class PairSummary(Frozen):
    """Final energies of trajectories rolled out in both arms with the same noise: shaped minus blind."""

    pairs: int = Field(ge=1)
    mean_difference: float
    standard_error: float | None = Field(description="of mean_difference; null for one pair")
    share_lower: float = Field(ge=0, le=1, description="share of pairs whose shaped energy is the lower")
    share_equal: float = Field(ge=0, le=1, description="share of pairs whose energies are equal")


class Choices(Frozen):
    """The choices made at some shaped steps. Shares and means are null where there was nothing to count.

    A choice is that of a whole candidate at a shaped step or, where tokens are chosen one by one, that of one position. Then
    its energy is the token's share of the text's: its nats, divided by the text's length.
    """

    shaped: int = Field(ge=0, description="choices: shaped steps at which some clock rang, or positions that rang")
    scored: int = Field(ge=0, description="those of them whose candidates differed, and were scored")
    agreed_share: float | None = Field(description="share of choices skipped, for all candidates agreed")
    kept_blind_share: float | None = Field(description="share of scored choices that kept candidate 0")
    blind_energy: float | None = Field(description=(
        "mean energy of candidate 0 where scored; null in all, too, where there are choices of both kinds"))
    chosen_energy: float | None = Field(description="mean energy of the chosen candidate where scored; null as blind_energy")
    gain: float | None = Field(description="blind_energy minus chosen_energy: what one choice gained")


class SelectionSummary(Frozen):
    """What the compass chose, in all and along t."""

    candidates: int = Field(ge=2, description="K; a compass that knew nothing would keep 1/K of candidates 0")
    total: Choices
    bins: list[Choices] = Field(description="per time bin")


class SizeSummary(Frozen):
    """Bytes on disk, compressed."""

    bytes: int = Field(ge=1, description="all shards")
    tokens: int = Field(ge=1, description="rows times length")
    bytes_per_token: float
    column_bytes_per_token: dict[str, float] = Field(description="per column; footers are in no column")


class DatasetSummary(Frozen):
    """A whole dataset."""

    trajectories: int = Field(ge=1)
    length: int = Field(ge=1, description="tokens per trajectory")
    steps: int = Field(ge=1, description="steps N of the rollout")
    source: Source
    select: Select
    bins: list[TimeBin] = Field(min_length=1)
    arms: list[ArmSummary] = Field(min_length=1)
    pairs: PairSummary | None = Field(description="null unless both arms were rolled out with a compass")
    selection: SelectionSummary | None = Field(description="null where nothing was shaped")
    size: SizeSummary
