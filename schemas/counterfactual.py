"""What the cached energies of a dataset answer about other rules; `inspect --counterfactual --json` prints it.

Energies are in nats per token, in the form in which the dataset holds them (plain or residual).
"""

from pydantic import Field

from tsdfm.schemas.base import Frozen
from tsdfm.schemas.summary import TimeBin
from tsdfm.schemas.terms import Form, Select


class Estimate(Frozen):
    """A mean over steps, with its error over trajectories."""

    mean: float
    standard_error: float | None = Field(description="over trajectories (ratio estimator); null for a single trajectory")
    low: float | None = Field(description="mean - 1.96 standard_error")
    high: float | None = Field(description="mean + 1.96 standard_error")
    count: float = Field(gt=0, description="what the mean is divided by: steps, or gains for a share of them")


class FewerCandidates(Frozen):
    """The run's own rule, given only some of the K candidates. Means are over the steps scored at K."""

    candidates: int = Field(ge=1, description="K'")
    scored: int = Field(ge=0, description="steps at which the first K' candidates differ: those that a compass must score")
    first_step: Estimate = Field(description="energy of the choice among the first K', at first scored steps: exact")
    first_step_any: Estimate | None = Field(description=(
        "expected minimum of K' random ones of the K, at first scored steps; null for 'resample'"))
    all_steps: Estimate = Field(description="energy of the choice among the first K', at all scored steps: one-step answers")
    all_steps_any: Estimate | None = Field(description="as first_step_any, at all scored steps")
    changed: Estimate = Field(description="share of scored steps whose choice is not the kept one")
    entropy: Estimate = Field(description="entropy of the choices' frequencies, bits; at most log2 K'")
    exact: Estimate = Field(description="share of scored steps before which no choice changed: there the answer is exact")


class OtherRule(Frozen):
    """Another rule of choice among all K, at the steps scored. Expectations, not draws."""

    rule: Select
    beta: float | None = Field(description="inverse temperature of 'resample'; null for argmin")
    first_step: Estimate = Field(description="expected energy of the choice at first scored steps: exact")
    all_steps: Estimate = Field(description="the same at all scored steps: one-step answers")
    changed: Estimate = Field(description="probability that the choice is not the kept one")
    entropy: Estimate = Field(description="mean entropy of the rule's distribution over the K candidates, bits")


class OtherTau(Frozen):
    """Steps that start before tau not shaped: candidate 0 there, the kept one after."""

    tau: float = Field(ge=0, le=1)
    all_steps: Estimate = Field(description="energy of the choice at the steps scored: one-step answers")
    changed: Estimate = Field(description="share of scored steps whose choice is not the kept one")
    scored_share: Estimate = Field(description="share of scored steps that would still be scored: the compass's cost")
    gain_share: Estimate | None = Field(description=(
        "share of the summed one-step gains that is left; null unless they sum to more than 0"))


class GainBin(Frozen):
    """What shaping earned in one bin of t: energy of candidate 0 minus energy of the kept one."""

    times: TimeBin
    shaped: int = Field(ge=0, description="shaped steps at which some clock rang; those whose candidates agreed gain 0")
    gain: Estimate | None = Field(description="per shaped step; null where there was none")
    share: float | None = Field(description="of the summed gains of all bins; null unless they sum to more than 0")


class Counterfactual(Frozen):
    """What else a frozen dataset's candidates would have given."""

    trajectories: int = Field(ge=1, description="shaped rows")
    select: Select
    beta: float | None = Field(description="of 'resample'; null for argmin")
    form: Form
    candidates: int = Field(ge=2, description="K")
    scored: int = Field(ge=1, description="shaped steps whose candidates differed")
    exact_first_step: bool = Field(description=(
        "whether first steps are exact: not under rk4, whose inner stages choose among K, too, nor where tokens are chosen in "
        "several sweeps"))
    kept_entropy: Estimate = Field(description="entropy of the kept choices' frequencies, bits; at most log2 K")
    fewer: list[FewerCandidates]
    rules: list[OtherRule]
    taus: list[OtherTau]
    bins: list[GainBin]
