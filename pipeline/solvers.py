"""Solvers: which hidden states stand for the posterior of one step.

The head is linear, so an average of logits is the head of an average of hidden states: RK-4 never holds a second set of logits.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from tsdfm.pipeline.paths import MixturePath
from tsdfm.pipeline.shaping import Moment, Shaper
from tsdfm.schemas.generate import Solver

Posterior = Callable[[Shaper, Moment], Tensor]  # -> hidden [A, L, D]


def euler(shaper: Shaper, moment: Moment) -> Tensor:
    """The posterior at x_t."""
    return _hidden(shaper, moment.state, moment.t)


def rk4(shaper: Shaper, moment: Moment) -> Tensor:
    """(k1 + 2 k2 + 2 k3 + k4) / 6 of logits at x_t, two midpoint states and one end state, each drawn from x_t.

    The midpoints jump by half a step with the posteriors k1 and k2, the end state by a full step with k3; each drawn state
    is chosen by the compass where the step is shaped. (Classical Runge-Kutta order of stages; FS-DFM, arXiv 2509.20624.)
    """
    middle = (moment.t + moment.t_next) / 2
    k1 = euler(shaper, moment)
    k2 = _stage(shaper, moment, k1, middle, 1)[0]
    k3 = _stage(shaper, moment, k2, middle, 2)[0]
    k4 = _stage(shaper, moment, k3, moment.t_next, 3)[0]
    return (k1 + 2 * k2 + 2 * k3 + k4) / 6


def rk4_chained(shaper: Shaper, moment: Moment) -> Tensor:
    """The predecessor's average: three half steps, each from the last state, so that k4 has seen 1.5 h of jumps."""
    half = (moment.t_next - moment.t) / 2
    k1 = euler(shaper, moment)
    middle = moment.t + half
    # The predecessor evaluates the second midpoint at the same time t + h/2 as the first.
    k2, first = _stage(shaper, moment, k1, middle, 1)
    k3, second = _stage(shaper, _moved(moment, first, middle), k2, middle + half, 2, evaluated_at=middle)
    k4, _ = _stage(shaper, _moved(moment, second, middle), k3, middle + half, 3)
    return (k1 + 2 * k2 + 2 * k3 + k4) / 6


SOLVERS: dict[Solver, Posterior] = {"euler": euler, "rk4": rk4, "rk4_chained": rk4_chained}


def _stage(
    shaper: Shaper, moment: Moment, hidden: Tensor, until: Tensor, stage: int, evaluated_at: Tensor | None = None
) -> tuple[Tensor, Moment]:
    """Jump from `moment` to time `until` with the posterior of `hidden`; the new state's hidden, and the new moment."""
    path = MixturePath.of(shaper.teacher.config)
    probability = path.ring_probability(moment.t, until)
    rings = shaper.noise.rings(moment.rows, moment.steps, moment.state.shape[1], stage) < probability[:, None]
    if path.mask_id is not None:
        rings &= moment.untouched
    state = shaper.jump(replace(moment, t_next=until), rings, hidden, stage).next_state
    reached = replace(moment, t=until, state=state, untouched=moment.untouched & ~rings)
    return _hidden(shaper, state, until if evaluated_at is None else evaluated_at), reached


def _hidden(shaper: Shaper, state: Tensor, t: Tensor) -> Tensor:
    """Hidden states at time t [A]; a student is told the step size of the grid, whatever the stage."""
    dt = torch.full_like(t, 1 / shaper.rollout.steps, dtype=torch.float32)
    return shaper.teacher.hidden(state, t.float(), dt)


def _moved(moment: Moment, reached: Moment, t: Tensor) -> Moment:
    """`moment` with the state that `reached` has, standing at time t."""
    return replace(moment, state=reached.state, untouched=reached.untouched, t=t)
