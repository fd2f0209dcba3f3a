"""What was chosen in the rows of a table, and among what: by whole candidates, and by token.

At a step of `Grid.shaped_steps` one of K whole candidates was chosen by its energy, in nats per token; at a step of
`Grid.token_steps` each position chose by itself, by energies in nats. An energy of e nats counts as e / L nats per token,
which is what it adds to the text's.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tsdfm.schemas.columns import Ragged, ragged

if TYPE_CHECKING:
    from tsdfm.schemas.trajectory import Grid

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Faulty = tuple[Bools, str]  # the rows of a table [R], and what is wrong with them


class Chosen(NamedTuple):
    """n choices in R rows, in order of (row, step, position): every one that was met, scored or not."""

    rows: int
    row: Ints  # [n]
    step: Ints  # [n]
    position: Ints  # [n]; -1: of a whole candidate
    energy: Floats  # [n, K], nats per token; NaN: not scored, for all candidates agreed
    choice: Ints  # [n]
    differ: Ints  # [n], the first candidate that is not candidate 0; K: all agree

    @property
    def scored(self) -> Bools:
        """Which of them were scored, [n]."""
        return np.asarray(np.isfinite(self.energy[:, 0]))


def choices_of(table: pa.Table, grid: "Grid") -> Chosen:
    """The choices of a checked table whose rows are all of the shaped arm."""
    steps, position = ragged(table, "event_step"), ragged(table, "event_position").values
    sets = ragged(table, "event_candidates").values.reshape(-1, grid.candidates)
    other = sets != sets[:, :1]
    differ = np.where(other.any(1), other.argmax(1), grid.candidates)
    parts = [_of_steps(table, grid, steps, differ)]
    if grid.by_token:
        at = np.isin(steps.values, grid.token_steps)
        energy = ragged(table, "event_energy").values.astype(np.float64).reshape(-1, grid.candidates)[at] / grid.length
        choice = ragged(table, "event_choice").values.astype(np.int64)[at]
        parts.append(Chosen(table.num_rows, steps.row[at], steps.values[at].astype(np.int64), position[at].astype(np.int64),
                             energy, choice, differ[at]))
    columns = [np.concatenate(column) for column in zip(*(part[1:] for part in parts), strict=True)]
    order = np.lexsort((columns[2], columns[1], columns[0]))
    return Chosen(table.num_rows, *(column[order] for column in columns))


def _of_steps(table: pa.Table, grid: "Grid", steps: Ragged, differ: Ints) -> Chosen:
    """Those among whole candidates."""
    shape = (table.num_rows, len(grid.shaped_steps))
    energy = ragged(table, "step_energy").values.astype(np.float64).reshape(*shape, grid.candidates)
    choice = ragged(table, "step_choice").values.astype(np.int64).reshape(shape)
    slot = grid.slot_of_step[steps.values]
    at = slot >= 0
    first = np.full(shape, grid.candidates + 1)  # no clock rang
    np.minimum.at(first, (steps.row[at], slot[at]), differ[at])
    row, slot = np.nonzero(first <= grid.candidates)
    step = np.asarray(grid.shaped_steps, np.int64)[slot]
    return Chosen(table.num_rows, row, step, np.full(len(row), -1), energy[row, slot], choice[row, slot], first[row, slot])


def candidates_of_rows(table: pa.Table, grid: "Grid") -> tuple[Bools, Ints]:
    """Which rows of a table had a choice, and how many candidates an event of each has; [R] both."""
    arms = np.asarray(table.column("arm").to_pylist())
    shaped = (arms == "shaped") & (grid.candidates > 1)
    return shaped, np.where(shaped, grid.candidates_of("shaped"), 1)


class _Events(NamedTuple):
    """The m events of the rows that had a choice."""

    rows: int  # of the table
    row: Ints  # [m]
    step: Ints  # [m]
    sets: Ints  # [m, K]
    token: Ints  # [m]
    number: Ints  # [m], among all events of the table
    places: Ints  # [m, K], of their candidates, and of what is known of these, in the columns that have K values an event

    @property
    def agree(self) -> Bools:
        """Whose candidates all agree, [m]."""
        return np.asarray((self.sets == self.sets[:, :1]).all(1))

    def rows_with(self, bad: Bools) -> Bools:
        """The rows that have one of these events, [R]."""
        return np.asarray(np.bincount(self.row[bad], minlength=self.rows) > 0)


def choice_faults(table: pa.Table, grid: "Grid") -> Iterator[Faulty]:
    """What is wrong with the choices of a table whose lists have the right lengths."""
    shaped, candidates = candidates_of_rows(table, grid)
    step, token, proposals = (ragged(table, f"event_{name}") for name in ("step", "token", "candidates"))
    free = ~shaped[step.row]
    starts = proposals.offsets[step.row] + (np.arange(len(step.row)) - step.offsets[step.row]) * candidates[step.row]
    unequal = free & (proposals.values[starts] != token.values)
    yield np.bincount(step.row[unequal], minlength=table.num_rows) > 0, "event_candidates of a blind row is not its event_token"
    if grid.logprobs:
        yield from _logprob_faults(table)
    if grid.by_token:
        yield from _blind_faults(table, free)
    if not shaped.any() or np.any((step.values < 0) | (step.values >= grid.steps)):
        return
    at = np.flatnonzero(~free)
    places = starts[at][:, None] + np.arange(grid.candidates)
    events = _Events(table.num_rows, step.row[at], step.values[at], proposals.values[places], token.values[at], at, places)
    choice = np.zeros((table.num_rows, len(grid.shaped_steps)), np.int64)
    choice[shaped] = ragged(table, "step_choice").values.reshape(int(shaped.sum()), len(grid.shaped_steps))
    outside = (choice < 0) | (choice >= grid.candidates)
    yield np.asarray(outside.any(1)), f"step_choice outside 0..{grid.candidates - 1}"
    if not outside.any():
        yield from _chosen_faults(table, grid, events, choice)
        yield from _step_faults(table, grid, events, choice, shaped)


def _chosen_faults(table: pa.Table, grid: "Grid", events: _Events, choice: Ints) -> Iterator[Faulty]:
    """Of tokens that are not those that were chosen. choice [R, S]: among whole candidates."""
    slot = grid.slot_of_step[events.step]
    chosen = np.zeros(len(events.sets), np.int64)
    chosen[slot >= 0] = choice[events.row[slot >= 0], slot[slot >= 0]]
    if grid.by_token:
        own = ragged(table, "event_choice").values[events.number].astype(np.int64)
        yield from _token_faults(table, grid, events, own, chosen)
        chosen = np.where(np.isin(events.step, grid.token_steps), own.clip(0, grid.candidates - 1), chosen)
    kept = events.sets[np.arange(len(events.sets)), chosen] == events.token
    yield events.rows_with(~kept), "event_token is not the chosen candidate"
    unshaped = (slot < 0) & ~np.isin(events.step, grid.token_steps)
    yield events.rows_with(unshaped & ~events.agree), "an unshaped step has differing candidates"


def _step_faults(table: pa.Table, grid: "Grid", events: _Events, choice: Ints, shaped: Bools) -> Iterator[Faulty]:
    """Of energies of whole candidates, and choices [R, S] by them."""
    energy = np.full((*choice.shape, grid.candidates), np.nan, np.float32)
    energy[shaped] = ragged(table, "step_energy").values.reshape(int(shaped.sum()), *energy.shape[1:])
    slot = grid.slot_of_step[events.step]
    disagreeing = np.zeros(choice.shape, bool)
    at = (slot >= 0) & ~events.agree
    disagreeing[events.row[at], slot[at]] = True
    scored = np.isfinite(energy).all(2)
    consistent = np.where(disagreeing, scored, np.isnan(energy).all(2) & (choice == 0))
    yield np.asarray(~consistent.all(1)), "step_energy must be finite exactly where candidates differ"
    if grid.select == "argmin":
        lowest = np.where(scored, np.nan_to_num(energy).argmin(2), 0)
        yield np.asarray((scored & (choice != lowest)).any(1)), "step_choice is not the lowest of step_energy"


def _token_faults(table: pa.Table, grid: "Grid", events: _Events, own: Ints, chosen: Ints) -> Iterator[Faulty]:
    """Of choices [m] of events, and energies by which they were made. chosen [m]: among whole candidates."""
    outside = (own < 0) | (own >= grid.candidates)
    yield events.rows_with(outside), f"event_choice outside 0..{grid.candidates - 1}"
    by_token = np.isin(events.step, grid.token_steps)
    yield events.rows_with(~by_token & (own != chosen)), "event_choice is not that of its step"
    energy = ragged(table, "event_energy").values[events.places]
    scored = np.isfinite(energy).all(1)
    consistent = np.where(by_token & ~events.agree, scored, np.isnan(energy).all(1))
    yield events.rows_with(~consistent), "event_energy must be finite exactly where candidates are chosen one by one and differ"
    yield events.rows_with(by_token & events.agree & (own != 0)), "event_choice is not 0 where all candidates agree"
    if grid.select == "argmin":
        lowest = np.where(scored, np.nan_to_num(energy).argmin(1), 0)
        yield events.rows_with(by_token & scored & (own != lowest)), "event_choice is not the lowest of event_energy"


def _blind_faults(table: pa.Table, free: Bools) -> Iterator[Faulty]:
    """Of events [E] that had no choice."""
    choice, energy = ragged(table, "event_choice"), ragged(table, "event_energy")
    wrong = np.bincount(choice.row[free & (choice.values != 0)], minlength=table.num_rows) > 0
    blind = np.ones(table.num_rows, bool)
    blind[choice.row[~free]] = False
    scored = np.bincount(energy.row[~np.isnan(energy.values)], minlength=table.num_rows) > 0
    yield wrong | (blind & scored), "event_choice or event_energy of a blind row says that there was a choice"


def _logprob_faults(table: pa.Table) -> Iterator[Faulty]:
    found = ragged(table, "event_logprob")
    logprobs = found.values.astype(np.float32)
    wrong = ~(np.isfinite(logprobs) & (logprobs <= 0))
    yield np.bincount(found.row[wrong], minlength=table.num_rows) > 0, "event_logprob is not a log-probability"
