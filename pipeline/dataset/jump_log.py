"""The jump log: a trajectory as its source and its events, lossless at every one of its N steps.

An event (step s, position, token) changes the state between times s/N and (s + 1)/N. Events are sorted by (step, position).
With every event go the K candidate tokens of its position (candidate 0 is the blind draw). Where a whole candidate was chosen,
the step has the K energies and the choice; where each position chose by itself, the event has. So the selection can be
replayed for any rule.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tsdfm.schemas.terms import Arm

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class JumpLog:
    """One trajectory of E events, and S steps at which a whole candidate was chosen."""

    trajectory_id: int
    arm: Arm
    source_tokens: Int32 | None  # [L]; None: all [MASK], and no position fixed
    tokens: Int32  # [L], the state at t = 1
    event_step: Int32  # [E], 0-based
    event_position: Int32  # [E]
    event_token: Int32  # [E]
    event_candidates: Int32  # [E, K]
    event_topk_ids: Int32  # [E, k]
    event_topk_logprobs: npt.NDArray[np.float16]  # [E, k]
    step_energy: npt.NDArray[np.float32]  # [S, K]; NaN where all candidates agreed and none was scored
    step_choice: npt.NDArray[np.int8]  # [S]
    final_energy: float | None
    fixed_positions: Int32 | None = None  # [F], rising; None: of a dataset without prompts, where none is fixed
    event_choice: npt.NDArray[np.int8] | None = None  # [E]; None: the level is 'sequence'
    event_energy: npt.NDArray[np.float32] | None = None  # [E, K], nats; NaN where none was scored; None as `event_choice`
    event_logprob: npt.NDArray[np.float16] | None = None  # [E, K], of the candidates under the teacher; None: not kept

    def source(self, mask_id: int | None) -> Int32:
        """x_0 [L]: the stored source, or all `mask_id`."""
        if self.source_tokens is not None:
            return self.source_tokens
        return np.full(len(self.tokens), mask_id, dtype=np.int32)

    def state_after(self, step: int, mask_id: int | None) -> Int32:
        """The state at time (step + 1)/N, [L]; step -1 is the source."""
        state = self.source(mask_id).copy()
        count = int(np.searchsorted(self.event_step, step, side="right"))
        # Events are in order of their steps, and numpy keeps the last of repeated assignments.
        state[self.event_position[:count]] = self.event_token[:count]
        return state
