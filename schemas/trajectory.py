"""One row of a dataset, its Arrow schema, and the vectorised check of a whole shard.

Invariants of a row of L tokens, E events, S shaped steps, K candidates (1 on the blind arm) and top-k posteriors:
events are sorted by (step, position), each pair once; replaying them on the source gives `tokens`; with the mask source every
position has exactly one event; the kept token of a shaped step is the chosen candidate, that of an unshaped step is repeated K
times; with `argmin` the choice is the first lowest energy; energies are NaN, and the choice 0, where all candidates agree. S
are the steps at which a whole candidate was chosen; where positions choose by themselves, choices and energies are those of
events; top-k log-probabilities fall, and their probabilities sum to at most 1. A fixed position has no event; its token stands
in the source, which then is stored with the mask source, too, as [MASK] everywhere else.

Columns that only some settings need are listed once, in NEWER_COLUMNS; a dataset that has one is of format version 2.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer, model_validator

from tsdfm.schemas.base import Frozen, without_newer
from tsdfm.schemas.choices import candidates_of_rows, choice_faults
from tsdfm.schemas.columns import Ragged, ragged
from tsdfm.schemas.terms import Arm, Select

Word = Annotated[int, Field(ge=-(2**31), lt=2**31)]
TOPK_SLACK = 2e-2  # float16 log-probabilities of a top-k that holds everything may sum to a little over 1


class TrajectoryRow(Frozen):
    """One trajectory, as one row of a Parquet shard; flat lists are row-major."""

    trajectory_id: int = Field(ge=0, lt=2**63, description="id; the key of the trajectory's noise")
    arm: Arm = Field(description="whether a compass chose its jumps")
    text: str = Field(description="the decoded tokens, for people")
    tokens: list[Word] = Field(min_length=1, description="the state at t = 1 (L)")
    source_tokens: list[Word] | None = Field(description="the state at t = 0 (L); null: all [MASK]")
    event_step: list[Word] = Field(description="0-based step of each event (E)")
    event_position: list[Word] = Field(description="position of each event (E)")
    event_token: list[Word] = Field(description="token written by each event (E)")
    event_candidates: list[Word] = Field(description="candidate tokens of each event (E*K); candidate 0 is the blind draw")
    event_topk_ids: list[Word] = Field(description="the teacher's likeliest tokens at the event (E*k)")
    event_topk_logprobs: list[float] = Field(description="their log-probabilities, nats (E*k)")
    step_energy: list[Annotated[float, Field(allow_inf_nan=True)]] = Field(
        description="energies of the candidates of each shaped step (S*K), nats per token")
    step_choice: list[Annotated[int, Field(ge=0, le=127)]] = Field(description="chosen candidate of each shaped step (S)")
    final_energy: float | None = Field(description="energy of `tokens`; null without a compass")
    fixed_positions: list[Word] | None = Field(None, description=(
        "positions of given tokens, rising (F); only in a dataset made with prompts, or of texts in blocks"))
    event_choice: list[Annotated[int, Field(ge=0, le=127)]] | None = Field(None, description=(
        "chosen candidate of each event (E); only where tokens were chosen one by one, at some step at least"))
    event_energy: list[Annotated[float, Field(allow_inf_nan=True)]] | None = Field(None, description=(
        "energies of the candidates of each event (E*K), nats, NaN where none was scored; only with `event_choice`"))
    event_logprob: list[float] | None = Field(None, description=(
        "log-probabilities of the candidates of each event (E*K) under the teacher, nats; only with `--logprobs`"))

    @model_validator(mode="after")
    def _lengths_agree(self) -> "TrajectoryRow":
        events = len(self.event_step)
        if not len(self.event_position) == len(self.event_token) == events:
            raise ValueError("event_step, event_position and event_token must be equally long")
        if self.source_tokens is not None and len(self.source_tokens) != len(self.tokens):
            raise ValueError("source_tokens must be as long as tokens")
        if events and (len(self.event_candidates) % events or len(self.event_topk_ids) % events):
            raise ValueError("event_candidates and event_topk_ids must hold a whole number of entries per event")
        if len(self.event_topk_ids) != len(self.event_topk_logprobs):
            raise ValueError("event_topk_ids and event_topk_logprobs must be equally long")
        if self.step_choice and len(self.step_energy) % len(self.step_choice):
            raise ValueError("step_energy must hold a whole number of entries per step_choice")
        return self

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_newer(handler(self), info, **{newer.column.name: None for newer in NEWER_COLUMNS})


ARROW_SCHEMA = pa.schema([  # of format version 1; those of version 2 begin with it
    pa.field("trajectory_id", pa.int64(), nullable=False),
    pa.field("arm", pa.string(), nullable=False),
    pa.field("text", pa.string(), nullable=False),
    pa.field("tokens", pa.list_(pa.int32()), nullable=False),
    pa.field("source_tokens", pa.list_(pa.int32())),
    pa.field("event_step", pa.list_(pa.int32()), nullable=False),
    pa.field("event_position", pa.list_(pa.int32()), nullable=False),
    pa.field("event_token", pa.list_(pa.int32()), nullable=False),
    pa.field("event_candidates", pa.list_(pa.int32()), nullable=False),
    pa.field("event_topk_ids", pa.list_(pa.int32()), nullable=False),
    pa.field("event_topk_logprobs", pa.list_(pa.float16()), nullable=False),
    pa.field("step_energy", pa.list_(pa.float32()), nullable=False),
    pa.field("step_choice", pa.list_(pa.int8()), nullable=False),
    pa.field("final_energy", pa.float32()),
])


class Grid(Frozen):
    """What a shard's rows must agree with: sizes, the steps at which a whole candidate is chosen, and the rule of choice."""

    length: int
    steps: int
    vocab_size: int
    mask_id: int | None
    candidates: int
    top_k: int
    shaped_steps: tuple[int, ...]
    select: Select
    compass: bool
    fixed: bool = False  # whether rows say which of their positions are fixed
    token_steps: tuple[int, ...] = ()  # those at which each position chooses by itself; none of `shaped_steps`
    by_token: bool = False  # whether events have choices and energies
    logprobs: bool = False  # whether candidates have log-probabilities

    def candidates_of(self, arm: Arm) -> int:
        """Candidate tokens stored per event of an arm: K where its jumps were chosen, else 1."""
        return self.candidates if arm == "shaped" else 1

    def slots_of(self, arm: Arm) -> int:
        """Shaped steps S that a row of an arm has energies and choices of: 0 where nothing was chosen."""
        return len(self.shaped_steps) if self.candidates_of(arm) > 1 else 0

    @cached_property
    def slot_of_step(self) -> npt.NDArray[np.int64]:
        """The index of each of the N steps among the S shaped ones, [N]; -1: not shaped."""
        slots = np.full(self.steps, -1)
        slots[list(self.shaped_steps)] = np.arange(len(self.shaped_steps))
        return slots


class Newer(NamedTuple):
    """A column that version 1 doesn't have, and whether a dataset of these settings has it."""

    column: pa.Field
    wanted: Callable[[Grid], bool]


NEWER_COLUMNS = (  # in the order in which they follow those of version 1
    Newer(pa.field("fixed_positions", pa.list_(pa.int32()), nullable=False), lambda grid: grid.fixed),
    Newer(pa.field("event_choice", pa.list_(pa.int8()), nullable=False), lambda grid: grid.by_token),
    Newer(pa.field("event_energy", pa.list_(pa.float32()), nullable=False), lambda grid: grid.by_token),
    Newer(pa.field("event_logprob", pa.list_(pa.float16()), nullable=False), lambda grid: grid.logprobs),
)
WHOLE_SCHEMA = pa.schema([*ARROW_SCHEMA, *(newer.column for newer in NEWER_COLUMNS)])


def arrow_schema(grid: Grid) -> pa.Schema:
    """The columns of a dataset's files, as its settings choose them."""
    return pa.schema([*ARROW_SCHEMA, *(newer.column for newer in NEWER_COLUMNS if newer.wanted(grid))])


def format_version(grid: Grid) -> Literal[1, 2]:
    """2 where the settings need a column that version 1 doesn't have, else 1."""
    return 2 if any(newer.wanted(grid) for newer in NEWER_COLUMNS) else 1


class Fault(Frozen):
    """One broken invariant. `row` is the index within the shard, None for the whole file."""

    row: int | None
    what: str


def _faults(bad: npt.NDArray[np.bool_], what: str) -> Iterator[Fault]:
    for row in np.flatnonzero(bad):
        yield Fault(row=int(row), what=what)


def _rows_with(bad_values: npt.NDArray[np.bool_], column: Ragged) -> npt.NDArray[np.bool_]:
    return np.bincount(column.row[bad_values], minlength=len(column.null)).astype(bool)


def check_shard(table: pa.Table, grid: Grid) -> list[Fault]:
    """Every broken invariant of every row of a shard; [] if it is sound.

    Sizes are checked first: rows whose lists have the wrong lengths are reported and nothing further is asked of the shard.
    """
    wanted = arrow_schema(grid)
    if not table.schema.equals(wanted):
        names = [f.name for f in wanted if table.schema.names.count(f.name) != 1 or table.schema.field(f.name) != f]
        extra = sorted(set(table.schema.names) - set(wanted.names))
        return [Fault(row=None, what=f"columns differ from the schema: {', '.join(names + extra) or 'their order'}")]
    nulls = [f.name for f in wanted if not f.nullable and table.column(f.name).null_count]
    if nulls:
        return [Fault(row=None, what=f"nulls in {', '.join(nulls)}")]
    if not table.num_rows:
        return []
    faults = [*_check_sizes(table, grid), *_check_fixed(table, grid)]
    return faults or [*_check_events(table, grid), *_check_choices(table, grid), *_check_topk(table, grid)]


def _check_sizes(table: pa.Table, grid: Grid) -> Iterator[Fault]:
    arms = np.asarray(table.column("arm").to_pylist())
    yield from _faults(~np.isin(arms, ["shaped", "blind"]), "arm is neither 'shaped' nor 'blind'")
    shaped, candidates = candidates_of_rows(table, grid)
    events = ragged(table, "event_step").sizes
    steps = np.where(shaped, len(grid.shaped_steps), 0)
    wanted = {
        "tokens": np.full(len(events), grid.length), "event_position": events, "event_token": events,
        "event_candidates": events * candidates, "event_topk_ids": events * grid.top_k,
        "event_topk_logprobs": events * grid.top_k, "step_choice": steps, "step_energy": steps * candidates,
        "event_choice": events, "event_energy": events * candidates, "event_logprob": events * candidates,
    }
    for name, sizes in ((name, sizes) for name, sizes in wanted.items() if name in table.schema.names):
        yield from _faults(ragged(table, name).sizes != sizes, f"{name} has the wrong length")
    source = ragged(table, "source_tokens")
    if grid.mask_id is None or grid.fixed:
        yield from _faults(source.null | (source.sizes != grid.length), "source_tokens is missing or has the wrong length")
    else:
        yield from _faults(~source.null, "source_tokens must be null for the mask source")
    energy_null = np.asarray(table.column("final_energy").combine_chunks().is_null())
    what = "final_energy is null where there is a compass, or given where there is none"
    yield from _faults(energy_null == grid.compass, what)
    energies = table.column("final_energy").to_numpy()  # nulls as NaN
    yield from _faults(~energy_null & ~np.isfinite(energies.astype(np.float64)), "final_energy is not finite")


def fixed_in(table: pa.Table, grid: Grid) -> npt.NDArray[np.bool_]:
    """Which positions of a checked table's rows are fixed, [n, L]."""
    fixed = np.zeros((table.num_rows, grid.length), bool)
    if grid.fixed:
        positions = ragged(table, "fixed_positions")
        fixed[positions.row, positions.values] = True
    return fixed


def _check_fixed(table: pa.Table, grid: Grid) -> Iterator[Fault]:
    """Of fixed positions, what the checks that follow rely on: that they are positions, rising, and leave one free."""
    if not grid.fixed:
        return
    fixed = ragged(table, "fixed_positions")
    outside = (fixed.values < 0) | (fixed.values >= grid.length)
    yield from _faults(_rows_with(outside, fixed), f"fixed_positions outside 0..{grid.length - 1}")
    unsorted = np.zeros(len(fixed.values), bool)
    unsorted[1:] = (np.diff(fixed.values.astype(np.int64)) <= 0) & (np.diff(fixed.row) == 0)
    yield from _faults(_rows_with(unsorted, fixed), "fixed_positions are not rising, or one occurs twice")
    yield from _faults(fixed.sizes >= grid.length, "fixed_positions leave no position free")


def _check_given(table: pa.Table, grid: Grid) -> Iterator[Fault]:
    """Fixed positions have no events, and their tokens are in the source; free ones of the mask source are masked there."""
    fixed = fixed_in(table, grid)
    source, tokens = (ragged(table, name).values.reshape(fixed.shape) for name in ("source_tokens", "tokens"))
    position = ragged(table, "event_position")
    yield from _faults(_rows_with(fixed[position.row, position.values], position), "a fixed position has an event")
    yield from _faults((fixed & (source != tokens)).any(1), "the token of a fixed position is another in source_tokens")
    if grid.mask_id is not None:
        yield from _faults((fixed == (source == grid.mask_id)).any(1),
                           "source_tokens is not [MASK] exactly where no position is fixed")


def _check_events(table: pa.Table, grid: Grid) -> Iterator[Fault]:
    step, position, token = (ragged(table, f"event_{name}") for name in ("step", "position", "token"))
    outside = (step.values < 0) | (step.values >= grid.steps)
    yield from _faults(_rows_with(outside, step), f"event_step outside 0..{grid.steps - 1}")
    misplaced = (position.values < 0) | (position.values >= grid.length)
    yield from _faults(_rows_with(misplaced, position), f"event_position outside 0..{grid.length - 1}")
    for name in ("tokens", "source_tokens", "event_token", "event_candidates", "event_topk_ids"):
        column = ragged(table, name)
        unknown = (column.values < 0) | (column.values >= grid.vocab_size)
        if grid.mask_id is not None and name != "source_tokens":
            unknown |= column.values == grid.mask_id
        yield from _faults(_rows_with(unknown, column), f"{name} holds an id outside the vocabulary")
    if outside.any() or misplaced.any():
        return
    order = step.values.astype(np.int64) * grid.length + position.values
    unsorted = np.zeros(len(order), bool)
    unsorted[1:] = (np.diff(order) <= 0) & (np.diff(step.row) == 0)
    yield from _faults(_rows_with(unsorted, step), "events are not sorted by (step, position), or one occurs twice")
    replayed = np.full((table.num_rows, grid.length), -1 if grid.mask_id is None else grid.mask_id, dtype=np.int64)
    if grid.mask_id is None or grid.fixed:
        replayed[:] = ragged(table, "source_tokens").values.reshape(-1, grid.length)
    replayed[step.row, position.values] = token.values  # numpy keeps the last of repeated assignments
    wrong = (replayed != ragged(table, "tokens").values.reshape(-1, grid.length)).any(1)
    yield from _faults(wrong, "replaying the events on the source does not give tokens")
    if grid.mask_id is not None:
        free = grid.length - fixed_in(table, grid).sum(1)
        yield from _faults(step.sizes != free, "the mask source needs exactly one event per position that is not fixed"
                           if grid.fixed else "the mask source needs exactly one event per position")
    if grid.fixed:
        yield from _check_given(table, grid)


def _check_choices(table: pa.Table, grid: Grid) -> Iterator[Fault]:
    for bad, what in choice_faults(table, grid):
        yield from _faults(bad, what)


def _check_topk(table: pa.Table, grid: Grid) -> Iterator[Fault]:
    if not grid.top_k:
        return
    column = ragged(table, "event_topk_logprobs")
    logprobs = column.values.astype(np.float64).reshape(-1, grid.top_k)
    row = column.row[:: grid.top_k]
    falls = (np.diff(logprobs, axis=1) <= 0).all(1) & (np.exp(logprobs).sum(1) <= 1 + TOPK_SLACK)
    yield from _faults(np.bincount(row[~falls], minlength=table.num_rows) > 0,
                       "event_topk_logprobs must fall and sum to at most probability 1")
