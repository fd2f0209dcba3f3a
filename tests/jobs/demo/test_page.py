"""The page of results: well-formed, self-contained, nothing hard-coded, and honest in each direction."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tests.inspection_data import dataset
from tests.pages import EVIL, HIGHER, LEVEL, LOWER, MEASURED, RATIOS, story_of
from tests.support import present
from tsdfm.jobs.demo.findings import caveats, headline
from tsdfm.jobs.demo.page import report_page
from tsdfm.pipeline.dataset.summary import summarise
from tsdfm.pipeline.evaluation.effects import Ratio

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """The elements of a page, each closed where it must be, and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def summary(tmp_path_factory, tiny_models):
    store, _ = dataset("mask", tmp_path_factory.mktemp("report") / "out", tiny_models)
    return summarise(store)


@pytest.fixture
def story(summary):
    return story_of(summary)


def test_the_page_is_whole_and_loads_nothing(story):
    text = report_page(story)
    page = Page(text)
    assert [name for name, _ in page.elements][:2] == ["html", "head"]
    assert page.all("script") == page.all("link") == page.all("iframe") == page.all("a") == page.all("img") == []
    plots = [each for each in page.all("div") if each.get("role") == "img"]
    assert len(plots) == 3  # frontier, energies, losses
    assert all(plot["aria-label"] for plot in plots)
    assert len(page.all("svg")) == 2 * len(plots)  # for a desk and for a phone
    assert not re.search(r"https?:|url\((?!#)|@import|__[A-Z]+__(?! \u241b)", text)
    [policy] = [each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert "prefers-color-scheme: dark" in text


def test_plots_take_the_colours_of_the_page(story):
    """What a plot draws is ink, a series, or the page's soft grey: nothing that a dark page would swallow. Names are unique."""
    text = report_page(story)
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]*)", drawn)) == {
        "none", "currentColor", "var(--soft)", "var(--series-0)", "var(--series-1)", "var(--series-2)"}
    names = re.findall(r"\bid=\"([^\"]*)\"", text)
    assert len(names) == len(set(names)) > 0
    assert set(re.findall(r"(?:href=\"|url\()#([\w.-]+)", drawn)) == set(names)
    assert report_page(story) == text


def test_texts_and_commands_are_shown_as_they_are(story):
    page = Page(report_page(story))
    assert EVIL.replace("\x1b", "\u241b") in "".join(page.text)
    assert all(command in "".join(page.text) for command in story.commands)
    assert all("onerror" not in attributes for _, attributes in page.elements)


def test_the_table_shows_what_was_passed_in(story):
    page = Page(report_page(story))
    for role, steps, temperature, perplexity, half, entropy in MEASURED:
        if temperature in (None, 1.0):
            assert f"{perplexity:.1f} ({perplexity - half:.1f}-{perplexity + half:.1f})" in page.words, (role, steps)
            assert f"{entropy:.3f} ± 0.013" in page.words or f"{entropy:.3f} ± 0.012" in page.words
    for shown in ("0.432", "0.123", "7.8", "63.8", "1,234", "37 texts of 16 tokens", "77 updates of 32", "5.125", "3.375"):
        assert shown in page.words, shown
    scopes = [each["scope"] for each in page.all("th")]
    assert set(scopes) == {"col", "row"}
    assert len(page.all("table")) == len(page.all("thead")) == 2
    assert scopes.count("row") == 6 + 6  # the models' own rows, and the sweep's


def test_energies_are_the_datasets(story):
    words = Page(report_page(story)).words
    pairs, arms = story.data.pairs, {arm.arm: arm.final_energy for arm in story.data.arms}
    assert f"{pairs.mean_difference:+.3f} ± {pairs.standard_error:.3f}" in words
    assert f"shaped: {arms['shaped'].mean:.3f}" in words


def test_it_does_without_a_frontier_curves_texts_and_choices(story):
    data = story.data.model_copy(update={"selection": None})
    own = [(role, row) for role, row in story.measured if row.temperature in (None, 1.0)]
    page = Page(report_page(replace(story, measured=own, frontier=None, curves={}, texts=[], data=data)))
    assert page.all("svg") == page.all("details") == page.all("article") == []
    assert "temperature" not in page.words.replace("Temperature 1", "").replace("lower temperature", "")
    assert "122.5" in page.words


def with_blind(story, ratio):
    return headline(replace(story, ratios={**RATIOS, ("blind", 8): ratio}))


def test_the_verdict_is_what_the_paired_interval_allows(story):
    assert with_blind(story, LOWER)[0] == (
        "In 8 steps the student from shaped trajectories has a lower perplexity than the student from blind ones: 122.5 against "
        "357.5, which is 64 to 68 % lower.")
    assert with_blind(story, HIGHER)[0] == (
        "In 8 steps the student from shaped trajectories has a higher perplexity than the student from blind ones: 122.5 against "
        "357.5, which is 2 to 8 % higher.")
    assert with_blind(story, LEVEL)[0] == (
        "This run does not tell the two students apart: in 8 steps their perplexities are 122.5 (from shaped trajectories) and "
        "357.5 (from blind ones), and the difference may be anything from 12 % lower to 3 % higher.")


@pytest.mark.parametrize("ratio", [Ratio(0.89, 0.75, 1.0), Ratio(0.89, 0.75, 1.06), Ratio(1.11, 1.0, 1.3), Ratio(1.11, 0.99, 1.3)])
def test_a_difference_is_no_verdict_where_its_interval_holds_none(story, ratio):
    """Whatever the estimate is, and whatever the two intervals by themselves are."""
    told = with_blind(story, ratio)
    assert "does not tell the two students apart" in told[0]
    assert "11 %" not in " ".join(told)


def test_small_differences_keep_a_digit(story):
    assert "which is 0.2 to 0.6 % lower" in with_blind(story, Ratio(0.996, 0.994, 0.998))[0]


def test_the_verdict_is_the_first_line_of_the_page(story):
    text = report_page(replace(story, ratios={**RATIOS, ("blind", 8): LEVEL}))
    first = present(re.search(r"<section class=\"card headline\".*?<p>(.*?)</p>", text, re.DOTALL))[1]
    assert first.startswith("This run does not tell the two students apart")


def test_the_teacher_is_told_with_intervals(story):
    told = headline(story)
    assert "beside its teacher in 8 steps, which has 315.8: 64 to 68 % lower" in told[2]
    assert "beside its teacher in 64 steps, which has 216.2: not told apart (12 % lower to 3 % higher)" in told[2]
    assert "98.5 % of real text's 5.50" in told[3]


@pytest.mark.parametrize(("ratio", "answer"), [
    (LOWER, "No: the teacher in 8 steps, cooled to that same entropy, has a perplexity of about 360.3, and the student's is 64 to 68 % lower."),
    (HIGHER, "Yes, better: the teacher in 8 steps, cooled to that same entropy, has a perplexity of about 116.7, and the student's is 2 to 8 % higher."),
    (LEVEL, "This run can't tell: the teacher in 8 steps, cooled to that same entropy, has a perplexity of about 125.0; the student's may be 12 % lower to 3 % higher."),
    (None, "That stays open: the temperatures sampled don't reach that entropy."),
])
def test_what_cooling_would_do_is_told_as_its_interval_allows(story, ratio, answer):
    assert headline(replace(story, cooled=ratio))[4] == f"Would a lower temperature do as well? {answer}"


def test_a_training_of_few_updates_is_told_not_drawn(story):
    for points, told in ((2, "5.125 to 5.000"), (1, "student from blind 5.125,")):
        short = replace(story, curves={role: curve[:points] for role, curve in story.curves.items()})
        page = Page(report_page(short))
        assert len(page.all("svg")) == 2 * 2
        assert "Too few losses were logged to draw them" in page.words
        assert told in page.words


def test_students_that_were_not_measured_are_not_compared(story):
    assert "nothing to compare" in headline(replace(story, measured=[e for e in story.measured if e[0] != "blind"]))[0]
    assert "nothing to compare" in Page(report_page(replace(story, steps=4, frontier=None))).words


def test_caveats_name_seeds_counts_and_sizes(story):
    told = " ".join(caveats(story))
    for fact in ("training seed (5)", "sampling (11)", "37 texts", "3.5 million", f"{story.data.trajectories} trajectories", "77 updates of 32", "about 352 times"):
        assert fact in told, fact
