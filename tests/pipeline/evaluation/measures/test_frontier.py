"""The frontier as data, and a picture that opens."""

import math

import pytest

from tests.support import present
from tsdfm.pipeline.evaluation.figures import short_names
from tsdfm.pipeline.evaluation.measures.frontier import COLOURS, MARKERS, draw_frontier, frontier_of
from tsdfm.schemas.evaluate import EvaluateConfig, JudgeFacts, Perplexity, Results, Row


def row(model, steps, temperature, entropy, perplexity, judges, vocabulary="words"):  # noqa: PLR0913
    found = {judge: Perplexity(perplexity=perplexity * (i + 1), low=perplexity * (i + 1) * 0.9, high=perplexity * (i + 1) * 1.1,
                               tokens=100) for i, judge in enumerate(judges)}
    real = steps is None
    return Row(model=model, fingerprint="f", vocabulary=vocabulary, steps=steps, temperature=temperature, samples=2, length=8,
               nfe=None if real else steps, seconds=None if real else 1.0, tokens_per_second=None if real else 16.0,
               entropy_bits=entropy, entropy_standard_error=0.1, distinct_2=1, distinct_4=1, self_bleu=0.1, judges=found)


def results(models=("a", "b"), steps=(1, 8), judges=("j",), reference=True, temperatures=(1.0, 0.5, 0.75)):
    rows = [row(m, n, t, 4 + t, 100 * t * t / n, judges) for m in models for n in steps for t in temperatures]
    real = [row("python", None, None, 4.75, 20, judges)] if reference else []
    settings = EvaluateConfig(out="x", model=models, steps=steps, frontier=True, temperatures=temperatures)
    return Results(command="c", settings=settings, versions={}, device="cpu", threads=1, rows=rows, reference=real,
                   judges={judge: JudgeFacts(fingerprint="f", vocabulary=None) for judge in judges})


def test_a_curve_per_model_and_step_count_by_rising_temperature():
    found = frontier_of(results()).judges["j"]
    assert [(c.model, c.steps) for c in found.curves] == [("a", 1), ("a", 8), ("b", 1), ("b", 8)]
    for curve in found.curves:
        assert [p.temperature for p in curve.points] == [0.5, 0.75, 1.0]
        assert [p.perplexity for p in curve.points] == [100 * t * t / present(curve.steps) for t in (0.5, 0.75, 1.0)]
    assert [p.perplexity for p in found.reference] == [20]


def test_curves_are_read_at_the_entropy_of_their_own_real_text():
    found = frontier_of(results()).judges["j"].curves
    assert found[0].at_reference_entropy == pytest.approx(100 * 0.75**2)
    other = results().model_copy(update={"reference": [row("python", None, None, 4.75, 20, ("j",), vocabulary="others")]})
    assert frontier_of(other).judges["j"].curves[0].at_reference_entropy is None
    assert frontier_of(results(reference=False)).judges["j"].curves[0].at_reference_entropy is None


@pytest.mark.parametrize(("models", "steps", "judges", "temperatures"), [
    (("a",), (8,), ("j",), (1.0,)), (("a", "b"), (1, 2, 4, 8, 16), ("j", "k", "l"), (0.5, 0.75, 1.0))])
def test_the_picture_is_a_png(models, steps, judges, temperatures):
    png = draw_frontier(frontier_of(results(models, steps, judges, temperatures=temperatures)))
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert png.endswith(b"IEND\xaeB`\x82")
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    assert width > 800
    assert height > 700


def test_no_two_of_many_curves_look_alike():
    assert math.lcm(len(COLOURS), len(MARKERS)) == len(COLOURS) * len(MARKERS)
    assert len(set(COLOURS)) == len(COLOURS)


def test_names_are_cut_only_where_they_stay_apart():
    assert short_names(["embedded", "out/student-8", "x/judge", "y/judge"]) == {
        "embedded": "embedded", "out/student-8": "student-8", "x/judge": "x/judge", "y/judge": "y/judge"}
