"""What a command prints on standard output with `--json`, one model per command (`evaluate`: `evaluate.Results`)."""

from typing import ClassVar, Literal

from pydantic import Field

from tsdfm.schemas.ablate import Effect, TrialRow
from tsdfm.schemas.base import Frozen
from tsdfm.schemas.counterfactual import Counterfactual
from tsdfm.schemas.evaluate import Row
from tsdfm.schemas.model import DenoiserConfig
from tsdfm.schemas.publish import Receipt
from tsdfm.schemas.summary import DatasetSummary
from tsdfm.schemas.terms import Arm, Layout
from tsdfm.schemas.training_record import CausalRecord, ContrastRecord, NceRecord, PretrainRecord


class GenerateReport(Frozen):
    """`generate`: what the dataset holds, and what this run did."""

    out: str
    rows: int = Field(description="trajectories, counted in every arm")
    shards: int
    made: int = Field(description="shards that this run made")
    kept: int = Field(description="shards that were there and sound")
    unsound: list[str] = Field(default_factory=list, description="shards that were there and faulty: made anew")
    events: int
    tokens: int = Field(description="rows times length")
    bytes: int
    seconds: float
    grown_from: int | None = Field(None, description="trajectories of the finished dataset that grew; null: none did")


class FaultReport(Frozen):
    """One fault of a dataset."""

    path: str
    row: int | None = Field(description="index in the file; null: the whole file")
    what: str


class VerifyReport(Frozen):
    """`verify`."""

    out: str
    sound: bool
    rows: int
    shards: int
    faults: list[FaultReport]


class InspectReport(DatasetSummary):
    """`inspect OUT`."""

    out: str


class CounterfactualReport(Counterfactual):
    """`inspect OUT --counterfactual`."""

    out: str


class PageReport(Frozen):
    """`inspect OUT --html FILE`."""

    out: str
    html: str
    trajectories: list[int]


class TokenChoiceReport(Frozen):
    """What one position chose by itself; see `dataset.frames.TokenChoice`."""

    energies: list[float] | None = Field(description="of its candidates, nats; null where all agreed")
    choice: int


class FrameReport(Frozen):
    """The state of a trajectory after one step that has events; see `dataset.frames.Frame`."""

    _texts: ClassVar[frozenset[str]] = frozenset({"pieces", "candidates"})

    step: int
    t: float
    pieces: list[str]
    masked: list[bool]
    changed: list[int]
    candidates: list[list[str]]
    energies: list[float] | None
    choice: int | None
    choices: list[TokenChoiceReport] | None = Field(None, description="of `changed`, where positions chose by themselves")


class TrajectoryReport(Frozen):
    """One trajectory in one arm."""

    _texts: ClassVar[frozenset[str]] = frozenset({"text"})

    trajectory_id: int
    arm: Arm
    final_energy: float | None
    text: str
    fixed_positions: list[int] | None = Field(None, description=(
        "positions whose tokens were given; null without prompts or blocks"))
    frames: list[FrameReport]


class TrajectoriesReport(Frozen):
    """`inspect OUT --trajectory ID`."""

    out: str
    trajectories: list[TrajectoryReport]


class Prompted(Frozen):
    """What one text was written to."""

    _texts: ClassVar[frozenset[str]] = frozenset({"prompt", "written"})

    prompt: str = Field(description="as given: a beginning, or a text with gaps")
    written: list[str] = Field(description="what the model wrote, gap by gap")


class SampleReport(Frozen):
    """`sample`."""

    _texts: ClassVar[frozenset[str]] = frozenset({"texts"})

    model: str
    texts: list[str] = Field(description="whole, with what was given")
    prompted: list[Prompted] | None = Field(None, description="of each text; null: there were no prompts")
    tokens: list[int] = Field(description="tokens of each text, given ones and its end included")
    ended: list[bool] | None = Field(None, description="of each text; null: they don't stop at an end")


class TeacherReport(PretrainRecord):
    """`pretrain`."""

    out: str


class CausalReport(CausalRecord):
    """`fit-compass`, of kind `ar`."""

    out: str


class NceReport(NceRecord):
    """`fit-compass`, of kind `nce`."""

    out: str


class ContrastReport(ContrastRecord):
    """`fit-compass`, of kind `contrast`."""

    out: str


class ImportReport(Frozen):
    """`import-teacher`."""

    out: str
    layout: Layout
    weights: str
    others: list[str]
    commit: str | None = Field(description="of the Hub's repository; null for a file or folder")
    assumed: list[str] = Field(description="in words, what the checkpoint does not say")
    parameters: int
    fingerprint: str
    config: DenoiserConfig


class DistillReport(Frozen):
    """`distill`."""

    out: str
    fingerprint: str
    init: str = Field(description="fingerprint of the weights it started from")
    updates: int
    seconds: float
    scalars: dict[str, float] = Field(description="the last ones of the training: loss, gradient_norm, lr, loss/8, ...")


class PublishReport(Receipt):
    """`publish`."""

    out: str
    changed: bool = Field(description="whether this run had anything to send or delete")


class AblateReport(Frozen):
    """`ablate`."""

    out: str
    trials: int
    made: int
    kept: int
    seconds: float
    rows: list[TrialRow]
    effects: list[Effect]


DemoRole = Literal["real", "teacher", "spaced", "rollouts", "blind", "shaped"]


class DemoRow(Row):
    """A row of the demo's evaluations, and whose it is."""

    role: DemoRole = Field(description=(
        "'teacher' on independent clocks, 'spaced' the teacher on spaced ones; 'rollouts' the shaped trajectories' own texts; "
        "'blind' and 'shaped' the students of each arm"))


class DemoReport(Frozen):
    """`demo`."""

    out: str
    report: str = Field(description="the page")
    data: GenerateReport
    students: dict[Arm, Literal["kept", "made"]]
    headline: list[str]
    rows: list[DemoRow]
    seconds: dict[str, float]
