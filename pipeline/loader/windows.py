"""Training windows (t, t + dt], rebuilt from jump logs: the state at t, and the token each position should jump to.

A log of N steps holds the state at every s/N. For a window of steps start..stop-1 the state is that after all events of
earlier steps, and the target of a position is its last event inside the window; with the objective `endpoint` it is its last
event of all from `start` on, i.e. its final token. Any window of any row costs a gather: nothing is stored per (t, dt).

Of a model of padded texts a row is its text up to the end. What the teacher wrote behind that, at any step, is taken as the
padding that it is: end tokens, in states, targets and candidates alike. So nothing that follows an end is learnt from. With the
mask source no position is asked for once an end before it stands in the state: the sampler writes padding there, whatever the
model says (`flow/shaping.py`). Until then it is asked for, and its target is the end token: where the text ends is known to
nobody at t, and a model that was asked only where the text turns out to go on would take for granted that it does.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from tsdfm.pipeline.text.ends.written import is_written
from tsdfm.schemas.columns import ragged, values
from tsdfm.schemas.distill import CANDIDATE_OBJECTIVES, KL_OBJECTIVES
from tsdfm.schemas.terms import Arm, Objective
from tsdfm.schemas.trajectory import Grid

Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Number = TypeVar("Number", np.int32, np.float16, np.float32)


@dataclass(frozen=True, eq=False)  # arrays have no truth value: equal means the same object
class Batch:
    """B windows (t, t + dt] of L positions. Nothing but `target` need be asked where there is no target: the rest is 0 there.

    K candidates come with the objectives `candidates` and `tilt`, of `tilt` with their log-probabilities, a top-k with the KL
    objectives, each None otherwise. With datasets of several K the fewer are padded by candidates of weight 0.
    """

    x_t: Tensor  # [B, L] int64, the state at t
    t: Tensor  # [B] float32
    dt: Tensor  # [B] float32
    target: Tensor  # [B, L] int64; -1: no target at this position
    candidates: Tensor | None  # [B, L, K] int64, the candidate tokens of the event that gives the target
    weights: Tensor | None  # [B, L, K] float32, softmax(-beta E) over them; 1/K where the step was not scored
    topk_ids: Tensor | None  # [B, L, k] int64, the teacher's likeliest tokens at that event
    topk_logprobs: Tensor | None  # [B, L, k] float32, nats
    row_weights: Tensor | None = None  # [B] float32, how much each row's loss counts; 1 on average over its dataset
    logprobs: Tensor | None = None  # [B, L, K] float32, of the candidates under the teacher at that event, nats
    # [B, L] int64, with candidates: which choice they were part of. Positions of a row that share a number made it together, as
    # one whole candidate; a position that chose by itself has a number of its own.
    choice: Tensor | None = None

    def __len__(self) -> int:
        return len(self.t)

    def rows(self, part: slice) -> "Batch":
        """The windows of `part`, views."""
        return self._each(lambda value: value[part])

    def to(self, device: torch.device | str) -> "Batch":
        """The batch with every tensor on `device`."""
        return self._each(lambda value: value.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        values: dict[str, Any] = {name: None if value is None else change(value) for name, value in vars(self).items()}
        return Batch(**values)


def join(parts: Sequence[Batch], places: Int) -> Batch:
    """One batch of several parts of one objective: row i of the parts, one after another, becomes row places[i]."""
    order = torch.from_numpy(np.argsort(places))
    columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Batch)}
    joined: dict[str, Any] = {
        name: None if values[0] is None else _joined(values, math.inf if name == "logprobs" else 0)[order]
        for name, values in columns.items()}
    return Batch(**joined)


def _joined(column: list[Tensor], padding: float) -> Tensor:
    if column[0].ndim == 3:  # [B, L, K]: the fewer candidates are padded
        widest = max(value.shape[2] for value in column)
        column = [torch.nn.functional.pad(value, (0, widest - value.shape[2]), value=padding) for value in column]
    return torch.cat(column)


@dataclass(frozen=True, eq=False)  # arrays have no truth value: equal means the same object
class Trajectories:
    """n rows of one arm, as flat arrays: E events in the order of (row, step, position)."""

    length: int
    steps: int  # N
    source: Int32  # [n, L]; of the mask source the mask id, but for fixed positions, whose token is there from the start
    tokens: Int32  # [n, L], the states at t = 1
    offsets: Int  # [n + 1], where each row's events begin
    moment: Int  # [E], row * N + step: it rises, so that any step of any row is found by bisection
    position: Int32  # [E]
    token: Int32  # [E]
    candidates: Int32  # [E, K]
    energies: npt.NDArray[np.float32]  # [n, S, K]; NaN: not scored. S = 0 where nothing was shaped
    slot_of_step: Int  # [N], index of a step among the S shaped ones; -1: not shaped
    topk_ids: Int32  # [E, k]
    topk_logprobs: npt.NDArray[np.float16]  # [E, k]
    row_weights: npt.NDArray[np.float32] | None = None  # [n], see `Batch`
    event_energy: npt.NDArray[np.float32] | None = None  # [E, K], nats, where positions chose by themselves; NaN: not scored
    event_logprob: npt.NDArray[np.float16] | None = None  # [E, K]; None: the dataset has none
    end_id: int | None = None  # of a model of padded texts
    mask_id: int | None = None  # of the mask source

    @classmethod
    def of(cls, table: pa.Table, grid: Grid, arm: Arm, end_id: int | None = None) -> "Trajectories":
        """The rows of a table that passed `check_shard` with this grid, all of `arm`; `end_id`: the teacher's."""
        candidates, slots = grid.candidates_of(arm), grid.slots_of(arm)
        rows: int = table.num_rows
        step = ragged(table, "event_step")
        events = len(step.values)
        tokens = _flat(table, "tokens", np.int32).reshape(rows, grid.length)
        masked = grid.mask_id is not None and not grid.fixed

        def of_candidates(name: str, dtype: type[Number]) -> npt.NDArray[Number]:
            return _flat(table, name, dtype).reshape(events, candidates)

        source = np.full_like(tokens, grid.mask_id) if masked else _flat(table, "source_tokens", np.int32)
        found = cls(
            length=grid.length, steps=grid.steps, source=source.reshape(rows, grid.length), tokens=tokens,
            offsets=step.offsets, moment=step.row * grid.steps + step.values,
            position=_flat(table, "event_position", np.int32), token=_flat(table, "event_token", np.int32),
            candidates=of_candidates("event_candidates", np.int32),
            energies=_flat(table, "step_energy", np.float32).reshape(rows, slots, candidates),
            slot_of_step=grid.slot_of_step if slots else np.full(grid.steps, -1),
            topk_ids=_flat(table, "event_topk_ids", np.int32).reshape(events, grid.top_k),
            topk_logprobs=_flat(table, "event_topk_logprobs", np.float16).reshape(events, grid.top_k),
            event_energy=of_candidates("event_energy", np.float32) if grid.by_token else None,
            event_logprob=of_candidates("event_logprob", np.float16) if grid.logprobs else None,
            end_id=end_id, mask_id=grid.mask_id,
        )
        return found if end_id is None else found._to_the_end(end_id)

    def _to_the_end(self, end_id: int) -> "Trajectories":
        """The same rows with padding behind the end of each, of which all candidates are alike."""
        behind = ~is_written(self.tokens, end_id)  # [n, L]
        of_event = behind[self.moment // self.steps, self.position]
        return replace(
            self, tokens=np.where(behind, np.int32(end_id), self.tokens),
            token=np.where(of_event, np.int32(end_id), self.token),
            candidates=np.where(of_event[:, None], np.int32(end_id), self.candidates),
            event_logprob=None if self.event_logprob is None else np.where(
                of_event[:, None], np.float16(0), self.event_logprob))

    @classmethod
    def concatenate(cls, parts: Sequence["Trajectories"]) -> "Trajectories":
        """The rows of all parts, in order; the parts are of one dataset."""
        rows = np.cumsum([0, *(len(part) for part in parts)])
        events = np.cumsum([0, *(len(part.token) for part in parts)])
        stacked: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("source", "tokens", "position", "token", "candidates", "energies", "topk_ids", "topk_logprobs")
        }
        optional: dict[str, Any] = {
            name: None if getattr(parts[0], name) is None else np.concatenate([getattr(part, name) for part in parts])
            for name in ("row_weights", "event_energy", "event_logprob")
        }
        return cls(
            length=parts[0].length, steps=parts[0].steps, slot_of_step=parts[0].slot_of_step, **stacked, **optional,
            end_id=parts[0].end_id, mask_id=parts[0].mask_id,
            offsets=np.concatenate([[0], *(part.offsets[1:] + first for part, first in zip(parts, events, strict=False))]),
            moment=np.concatenate([part.moment + first * part.steps for part, first in zip(parts, rows, strict=False)]),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def window(self, rows: Int, start: Int, stop: Int, objective: Objective, beta: float) -> Batch:
        """The windows of steps start..stop-1 of `rows`: all [B] int64, 0 <= start < stop <= N; a row may occur repeatedly.

        The KL objectives need a log with a top-k, i.e. k > 0, and `tilt` one with the candidates' log-probabilities.
        """
        moments = rows * self.steps
        now = np.searchsorted(self.moment, moments + start)
        end = self.offsets[rows + 1] if objective == "endpoint" else np.searchsorted(self.moment, moments + stop)
        state = self.source[rows].astype(np.int64)
        past, cell = self._events(self.offsets[rows], now)
        state.reshape(-1)[cell] = self.token[past]  # numpy keeps the last of repeated assignments
        future, cell = self._events(now, end)
        event_of_cell = np.full(state.size, -1)
        event_of_cell[cell] = future
        if self.end_id is not None and self.mask_id is not None:
            event_of_cell[~is_written(state, self.end_id).ravel()] = -1
        cells = np.flatnonzero(event_of_cell >= 0)
        events = event_of_cell[cells]

        def spread(values: npt.NDArray[np.generic], dtype: type[np.generic], empty: int = 0) -> Tensor:
            """One value (or row of values) per target -> [B, L] or [B, L, K]."""
            out = np.full((state.size, *values.shape[1:]), empty, dtype)
            out[cells] = values
            return torch.from_numpy(out.reshape(*state.shape, *values.shape[1:]))

        candidates = weights = topk_ids = topk_logprobs = logprobs = choice = None
        if objective in CANDIDATE_OBJECTIVES:
            candidates = spread(self.candidates[events], np.int64)
            weights = spread(self._weights(events, beta), np.float32)
            choice = spread(self._choice_of(events), np.int64)
        if objective == "tilt":
            assert self.event_logprob is not None
            logprobs = spread(self.event_logprob[events], np.float32)
        if objective in KL_OBJECTIVES:
            topk_ids = spread(self.topk_ids[events], np.int64)
            topk_logprobs = spread(self.topk_logprobs[events], np.float32)
        return Batch(
            x_t=torch.from_numpy(state), t=_over(start, self.steps), dt=_over(stop - start, self.steps),
            target=spread(self.token[events], np.int64, -1), candidates=candidates, weights=weights,
            topk_ids=topk_ids, topk_logprobs=topk_logprobs,
            row_weights=None if self.row_weights is None else torch.from_numpy(self.row_weights[rows]), logprobs=logprobs,
            choice=choice,
        )

    def _events(self, first: Int, stop: Int) -> tuple[Int, Int]:
        """Events first[i]..stop[i]-1 of all i in order: their indices [M], and the cells i * L + position [M] they write."""
        sizes = stop - first
        owner = np.repeat(np.arange(len(sizes)), sizes)
        index = np.arange(len(owner)) + np.repeat(first - (sizes.cumsum() - sizes), sizes)
        return index, owner * self.length + self.position[index]

    def _weights(self, events: Int, beta: float) -> npt.NDArray[np.floating]:
        """softmax(-beta E) of the candidates of events [M], E in nats per token; 1/K where nothing was scored: [M, K]."""
        energy = self._energies_of(events)
        scored = np.isfinite(energy).all(1, keepdims=True)
        energy = np.where(scored, energy, 0)
        mass = np.exp(-beta * (energy - energy.min(1, keepdims=True)))
        return np.asarray(mass / mass.sum(1, keepdims=True))

    def _choice_of(self, events: Int) -> Int:
        """Which choice of its row each event [M] was part of: the step, or N + its position where it chose by itself."""
        step = self.moment[events] % self.steps
        alone = (self.slot_of_step[step] < 0) & (self.event_energy is not None)
        return np.where(alone, self.steps + self.position[events], step)

    def _energies_of(self, events: Int) -> npt.NDArray[np.float64]:
        """The energies that the candidates of events [M] were chosen by, nats per token, NaN where they were not: [M, K]."""
        row, step = np.divmod(self.moment[events], self.steps)
        slot = self.slot_of_step[step]
        energy = np.full((len(events), self.candidates.shape[1]), np.nan)
        energy[slot >= 0] = self.energies[row[slot >= 0], slot[slot >= 0]]
        if self.event_energy is not None:
            energy[slot < 0] = self.event_energy[events[slot < 0]].astype(np.float64) / self.length
        return energy


def _flat(table: pa.Table, name: str, dtype: type[Number]) -> npt.NDArray[Number]:
    """All values of a list column, row after row, as `dtype`."""
    return np.asarray(values(table, name), dtype)


def _over(steps: Int, count: int) -> Tensor:
    return torch.from_numpy((steps / count).astype(np.float32))
