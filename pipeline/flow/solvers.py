"""Solvers: which hidden states stand for the posterior of one step.

The head is linear, so an average of logits is the head of an average of hidden states: RK-4 never holds a second set of logits.
"""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from tsdfm.pipeline.flow.shaping import StepState
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.schemas.terms import Solver

# (where the trajectories stand, until [A], hidden [A, L, D] of the posterior to jump by, stage) -> where they land
Advance = Callable[[StepState, Tensor, Tensor, int], StepState]
Posterior = Callable[[Denoiser, StepState, Advance], Tensor]  # -> hidden [A, L, D]


def euler(teacher: Denoiser, now: StepState, advance: Advance | None = None) -> Tensor:
    """The posterior at x_t; a student is told the step size of the grid, whatever the stage."""
    return teacher.hidden(now.state, *now.hidden_time)


def rk4(teacher: Denoiser, now: StepState, advance: Advance) -> Tensor:
    """(k1 + 2 k2 + 2 k3 + k4) / 6 of logits at x_t, two midpoint states and one end state, each drawn from x_t.

    The midpoints jump by half a step with the posteriors k1 and k2, the end state by a full step with k3; each drawn state
    is chosen by the compass where the step is shaped. (Classical Runge-Kutta order of stages; FS-DFM, arXiv 2509.20624.)
    """
    middle = (now.t + now.t_next) / 2
    k1 = euler(teacher, now)
    k2 = euler(teacher, advance(now, middle, k1, 1))
    k3 = euler(teacher, advance(now, middle, k2, 2))
    k4 = euler(teacher, advance(now, now.t_next, k3, 3))
    return _average(k1, k2, k3, k4)


def rk4_chained(teacher: Denoiser, now: StepState, advance: Advance) -> Tensor:
    """The predecessor's average: three half steps, each from the last state, so that k4 has seen 1.5 h of jumps."""
    half = (now.t_next - now.t) / 2
    middle = now.t + half
    k1 = euler(teacher, now)
    first = advance(now, middle, k1, 1)
    k2 = euler(teacher, first)
    # The predecessor evaluates the second midpoint at the same time t + h/2 as the first.
    second = replace(advance(first, middle + half, k2, 2), t=middle)
    k3 = euler(teacher, second)
    k4 = euler(teacher, advance(second, middle + half, k3, 3))
    return _average(k1, k2, k3, k4)


def _average(k1: Tensor, k2: Tensor, k3: Tensor, k4: Tensor) -> Tensor:
    """The weighted average of four hidden states, summed in float32 and given in their own dtype."""
    return ((k1.float() + 2 * k2.float() + 2 * k3.float() + k4.float()) / 6).to(k1.dtype)


SOLVERS: dict[Solver, Posterior] = {"euler": euler, "rk4": rk4, "rk4_chained": rk4_chained}
