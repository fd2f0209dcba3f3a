"""`tsdfm-pipeline inspect --counterfactual`: what else could have been chosen, as tables."""

from __future__ import annotations

from math import log2
from typing import TYPE_CHECKING

from rich.table import Table

from tsdfm.jobs.shell.console import Stages, figures_table, print_whole, tell
from tsdfm.pipeline.evaluation.figures import NONE, plus_minus, share

if TYPE_CHECKING:
    from tsdfm.pipeline.storage.in_order import Mapper
    from tsdfm.pipeline.storage.store import Store
    from tsdfm.schemas.counterfactual import Counterfactual, Estimate

LATER_STEPS = (
    "What this can answer: at the first scored step of a trajectory the state is the same whatever the rule, so those columns "
    "are what another run of the same seed would record. What it cannot: at later steps the candidates were drawn along the "
    "kept trajectory, so 'all steps' are one-step answers, given the recorded states; another rule would meet other states, "
    "and its final energy is not in the log. 'Exact' is the share of steps before which no choice changed. More than K "
    "candidates, a lower tau or another temperature need a new run."
)
NEVER_EXACT = (
    "Here even first steps are one-step answers: the inner stages of an RK-4 solver choose among the K candidates, too, a "
    "second sweep over the tokens sees what the first chose, and neither is in the log."
)


def ask(store: Store, mapper: Mapper) -> Counterfactual:
    """The answers of a dataset, whose files are read by `mapper`, with progress shown. Raises InputError."""
    from tsdfm.pipeline.evaluation.counterfactual import counterfactual

    with Stages() as progress:
        return counterfactual(store, progress, mapper)


def show(found: Counterfactual) -> None:
    """Print the answers, and what they are worth."""
    rule = "argmin" if found.beta is None else f"resample, beta {found.beta:g},"
    tell(f"{found.trajectories} shaped trajectories; {rule} of {found.candidates}; {found.scored} scored choices; "
                 f"{found.form} energies, nats/token")
    tell(f"entropy of the kept choices {_number(found.kept_entropy, 3)} of {log2(found.candidates):.3f} bits; "
                 "± is 1.96 standard errors over trajectories (ratio estimator)")
    for table in (_fewer_table(found), _rules_table(found), _taus_table(found), _gains_table(found)):
        print_whole(table)
    gain, times = max(((each.gain, each.times) for each in found.bins if each.gain is not None), key=lambda pair: pair[0].mean)
    tell(f"a shaped step earns most at t = {times.t_start:.3f}-{times.t_end:.3f}: {_number(gain)} nats/token")
    tell(LATER_STEPS)
    if not found.exact_first_step:
        tell(NEVER_EXACT)


def _fewer_table(found: Counterfactual) -> Table:
    table = figures_table("Fewer candidates: the first K', and any K' of the K (expected minimum)", [
        "K'", "scored", "E first step", "any K'", "E all steps", "any K'", "changed", "entropy, bits", "exact"])
    for row in found.fewer:
        energies = (row.first_step, row.first_step_any, row.all_steps, row.all_steps_any)
        table.add_row(str(row.candidates), str(row.scored), *map(_number, energies), _share(row.changed),
                      _number(row.entropy, 3), _share(row.exact))
    return table


def _rules_table(found: Counterfactual) -> Table:
    table = figures_table(f"Other rules among all {found.candidates} (expectations; changed: from the kept choice)", [
        "rule", "E first step", "E all steps", "changed", "entropy, bits"])
    for row in found.rules:
        table.add_row("argmin" if row.beta is None else f"beta {row.beta:g}", _number(row.first_step), _number(row.all_steps),
                      _share(row.changed), _number(row.entropy, 3))
    return table


def _taus_table(found: Counterfactual) -> Table:
    table = figures_table("A later tau: candidate 0 before it", [
        "tau", "scored steps left", "gain left", "E all steps", "changed"])
    for row in found.taus:
        table.add_row(f"{row.tau:g}", _share(row.scored_share), _share(row.gain_share), _number(row.all_steps),
                      _share(row.changed))
    return table


def _gains_table(found: Counterfactual) -> Table:
    table = figures_table("Gain along t: E of candidate 0 minus E kept, per shaped step with a jump", [
        "t", "steps", "gain", "of all"])
    for row in found.bins:
        table.add_row(f"{row.times.t_start:.3f}-{row.times.t_end:.3f}", str(row.shaped), _number(row.gain),
                      share(row.share))
    return table


def _number(estimate: Estimate | None, decimals: int = 4) -> str:
    return NONE if estimate is None else plus_minus(estimate.mean, _half(estimate), decimals)


def _share(estimate: Estimate | None) -> str:
    """A share in percent, with its error."""
    if estimate is None:
        return NONE
    half = _half(estimate)
    return plus_minus(100 * estimate.mean, None if half is None else 100 * half, 1) + " %"


def _half(estimate: Estimate) -> float | None:
    """Half of the 95 % interval."""
    return None if estimate.high is None else estimate.high - estimate.mean
