"""Models at equal diversity: perplexity over that of another model at the temperature that makes its texts as diverse."""

from collections.abc import Mapping, Sequence

from tsdfm.pipeline.evaluation.effects import JudgedTexts, ratio_at_equal_entropy
from tsdfm.pipeline.evaluation.measures.frontier import perplexity_at_entropy
from tsdfm.schemas.evaluate import Row
from tsdfm.schemas.frontier import AtEqualDiversity, Compared, PerplexityRatio

Where = tuple[str, int, float]  # model, step count, temperature
Judged = Mapping[Where, Mapping[str, JudgedTexts]]  # by judge


def where(row: Row) -> Where:
    """Of a row of a model."""
    assert row.steps is not None
    assert row.temperature is not None
    return row.model, row.steps, row.temperature


def compared(rows: Sequence[Row], judged: Judged, against: str) -> list[Compared]:
    """Every row set against the curve of one model in as many steps, and against that in the most, its own curve left out.

    Args:
        rows: of models, at one or more temperatures each; equally many texts, the i-th of all from the same noise.
        judged: what stands behind each row.
        against: the model whose curves the others are set against.

    Returns:
        In the order of the rows. Log perplexity is linear in entropy, or in distinct-2, between neighbouring temperatures; a
        ratio is None where the curve does not reach that entropy or distinct-2, for curves are not extrapolated. Rows of
        another tokenizer or length are left out: diversity is of a model's own tokens.
    """
    most, found = max((row.steps or 0 for row in rows), default=0), []
    for row in rows:
        model, steps, temperature = where(row)
        for against_steps in dict.fromkeys((steps, most)):
            curve = [each for each in rows if (each.model, each.steps, *_of(each)) == (against, against_steps, *_of(row))]
            if (model, steps) != (against, against_steps) and curve:
                found.append(Compared(
                    model=model, steps=steps, temperature=temperature, against=against, against_steps=against_steps,
                    judges={judge: _at_equal_diversity(row, curve, judged, judge) for judge in row.judges}))
    return found


def _of(row: Row) -> tuple[str, int]:
    """What makes diversities comparable."""
    return row.vocabulary, row.length


def _at_equal_diversity(row: Row, curve: Sequence[Row], judged: Judged, judge: str) -> AtEqualDiversity:
    ratio = ratio_at_equal_entropy(judged[where(row)][judge], [judged[where(each)][judge] for each in curve])
    there = perplexity_at_entropy([(each.distinct_2, each.judges[judge].perplexity) for each in curve], row.distinct_2)
    return AtEqualDiversity(
        entropy=None if ratio is None else PerplexityRatio(value=ratio.value, low=ratio.low, high=ratio.high),
        distinct_2=None if there is None else row.judges[judge].perplexity / there)
