"""Perplexity against entropy over the sampling temperature: OUT/frontier.json of `evaluate`; and models at equal diversity."""

from pydantic import Field

from tsdfm.schemas.base import Frozen


class FrontierPoint(Frozen):
    """One set of texts on the plane of perplexity and entropy."""

    temperature: float | None = Field(description="null for real text")
    entropy_bits: float
    perplexity: float
    low: float = Field(description="95 % bootstrap interval over texts")
    high: float


class FrontierCurve(Frozen):
    """One model at one step count, by rising temperature."""

    model: str
    steps: int | None
    points: list[FrontierPoint]
    at_reference_entropy: float | None = Field(description=(
        "perplexity at the entropy of real text of its vocabulary and length; null where the curve doesn't reach it"))


class JudgeFrontier(Frozen):
    """All curves under one judge, and real text."""

    curves: list[FrontierCurve]
    reference: list[FrontierPoint]


class Frontier(Frozen):
    """OUT/frontier.json: perplexity against entropy over the sampling temperature, by evaluator."""

    judges: dict[str, JudgeFrontier]


class PerplexityRatio(Frozen):
    """The perplexity of one model's texts over that of another's; below 1: the first is better."""

    value: float
    low: float = Field(description="95 % bootstrap interval over texts, drawn for both at once")
    high: float


class AtEqualDiversity(Frozen):
    """What one judge says of a model's texts over what it says of another's, cooled or heated until they are as diverse."""

    entropy: PerplexityRatio | None = Field(description="at equal entropy; null where the other's temperatures don't reach it")
    distinct_2: float | None = Field(description=(
        "at equal distinct-2; null as above. It has no interval: a text that is drawn twice for one has nothing distinct"))


class Compared(Frozen):
    """One row of an evaluation set against the curve of a model, which stands for itself at all its temperatures."""

    model: str
    steps: int
    temperature: float
    against: str = Field(description="the model that the curve is of")
    against_steps: int
    judges: dict[str, AtEqualDiversity] = Field(description="by evaluator")
