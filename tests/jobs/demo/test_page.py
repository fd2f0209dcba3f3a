"""The page of results: well-formed, self-contained, nothing hard-coded, and honest in each direction."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tests.inspection_data import dataset
from tests.pages import EQUAL, EVIL, HIGHER, LEVEL, LOWER, MEASURED, TEMPERATURES, story_of
from tests.support import present
from tsdfm.jobs.demo.findings import caveats, headline, question, sceptic
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
    assert page.all("script") == page.all("link") == page.all("iframe") == page.all("img") == []
    assert [each["href"] for each in page.all("a")] == ["trajectories.html"]  # the player, beside it
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
    found = set(re.findall(r"(?:fill|stroke): ([^;\"]*)", drawn))
    assert found - {f"var(--series-{index})" for index in range(7)} == {"none", "currentColor", "var(--soft)"}
    assert {"var(--series-1)", "var(--series-2)"} <= found
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
        if temperature in (None, TEMPERATURES.get(role)):
            assert f"{perplexity:.1f} ({perplexity - half:.1f}-{perplexity + half:.1f})" in page.words, (role, steps)
            assert f"{entropy:.3f} ± 0.013" in page.words or f"{entropy:.3f} ± 0.012" in page.words
    for shown in ("0.432", "1.7 %", "In the trajectories 2.8 % stand", "7.8", "1023.8", "37 texts of 16 tokens", "77 updates of 32", "5.125", "3.375", "8 steps against 1,024"):
        assert shown in page.words, shown
    scopes = [each["scope"] for each in page.all("th")]
    assert set(scopes) == {"col", "row"}
    assert len(page.all("table")) == len(page.all("thead")) == 2
    assert scopes.count("row") == 7 + len(MEASURED) - 1  # the models' own rows with real text, and the sweep's


def test_perplexities_at_equal_entropy_are_read_off_the_curves(story):
    """At 5.42 bits: the spaced teacher between 97.5 at 5.41 and 231.25 at 5.69; a single point has no curve; nobody is extrapolated."""
    words = Page(report_page(story)).words
    assert "perplexity where entropy is 5.42" in words
    assert "97.5 (92.5-102.5) 5.410 ± 0.013 0.432 100.6 " in words.replace("± 0.012", "± 0.013")
    assert "62.8 (59.8-65.8) 5.430 ± 0.013 0.432 - - " in words.replace("± 0.012", "± 0.013")
    assert "118.2 (109.2-127.2) 5.550 ± 0.013 0.432 - " in words.replace("± 0.012", "± 0.013")


def test_a_text_forming_marks_what_a_jump_wrote(story):
    page = Page(report_page(story))
    assert len(page.all("mark")) == 1
    assert len(page.all("i")) == 3
    assert [name for name, _ in page.elements].count("ol") == 1


def test_energies_are_the_datasets(story):
    words = Page(report_page(story)).words
    pairs, arms = story.data.pairs, {arm.arm: arm.final_energy for arm in story.data.arms}
    assert f"{pairs.mean_difference:+.3f} ± {pairs.standard_error:.3f}" in words
    assert f"shaped: {arms['shaped'].mean:.3f}" in words


def test_it_does_without_a_frontier_curves_texts_and_choices(story):
    data = story.data.model_copy(update={"selection": None})
    page = Page(report_page(replace(story, measured=story.own, frontier=None, curves={}, texts=[], stills=[], data=data, warm=None, learnt=None)))
    assert page.all("svg") == page.all("details") == page.all("article") == page.all("ol") == []
    assert "temperature 1" not in page.words
    assert "held out, the student from shaped carries" not in page.words
    assert "122.5" in page.words


def told(story, **equal):
    """The headline with other comparisons; by role, of the student from shaped."""
    return headline(replace(story, equal={**EQUAL, **{("shaped", (role, 8)): ratio for role, ratio in equal.items()}}))


@pytest.mark.parametrize(("spaced", "blind", "answer"), [
    (LOWER, LOWER, "Yes."), (HIGHER, LOWER, "No."), (LOWER, HIGHER, "No."), (LOWER, LEVEL, "This run does not show it."),
    (LEVEL, LEVEL, "This run does not show it."), (None, LOWER, "That stays open."), (None, HIGHER, "No."), (LOWER, None, "That stays open."),
])
def test_the_verdict_is_what_the_paired_intervals_allow(story, spaced, blind, answer):
    first = told(story, spaced=spaced, blind=blind)[0]
    assert first.startswith(f"Does a student of shaped trajectories write better, texts' entropy being equal? {answer} In 8 steps")


def test_comparisons_are_told_in_both_directions(story):
    assert told(story, spaced=LOWER, blind=HIGHER)[0].endswith(
        "In 8 steps its perplexity is 64 to 68 % lower than that of its teacher in as many steps on the same clocks; and 2 to 8 % higher than "
        "that of its control, the student from blind ones.")
    assert told(story, spaced=LEVEL, blind=None)[0].endswith(
        "not told apart from that of its teacher in as many steps on the same clocks (12 % lower to 3 % higher); and not compared with that of "
        "its control, the student from blind ones, whose temperatures here don't reach that entropy.")


@pytest.mark.parametrize("ratio", [Ratio(0.89, 0.75, 1.0), Ratio(0.89, 0.75, 1.06), Ratio(1.11, 1.0, 1.3), Ratio(1.11, 0.99, 1.3)])
def test_a_difference_is_no_verdict_where_its_interval_holds_none(story, ratio):
    """Whatever the estimate is, and whatever the two intervals by themselves are."""
    lines = told(story, spaced=ratio, blind=ratio)
    assert "This run does not show it." in lines[0]
    assert lines[0].count("not told apart") == 2
    assert "11 %" not in " ".join(lines)


def test_small_differences_keep_a_digit(story):
    assert "0.2 to 0.6 % lower than that of its teacher" in told(story, spaced=Ratio(0.996, 0.994, 0.998))[0]


def test_the_question_and_then_the_verdict_begin_the_page(story):
    text = report_page(story)
    assert text.index(question(story)[0][:40]) < text.index('<section class="card headline"')
    first = present(re.search(r"<section class=\"card headline\".*?<p>(.*?)</p>", text, re.DOTALL))[1]
    assert first.startswith("Does a student of shaped trajectories write better")
    order = ["Would a lower temperature do?", "All figures", "Texts side by side", "A text forming", "What the compass chose", "Training",
             "What this does not show", "Commands"]
    assert re.findall(r"<h2>(.*?)</h2>", text) == order


def test_clocks_and_shaping_are_told_with_intervals(story):
    lines = headline(story)
    assert lines[1].startswith("Clocks: the perplexity of the teacher in 8 steps on spaced clocks (97.5 at 5.41 bits) is, at equal entropy, "
                               "64 to 68 % lower than that of the same teacher on independent clocks")
    assert lines[1].endswith("and not told apart from that of the teacher in 1,024 steps (12 % lower to 3 % higher).")
    assert lines[2].startswith("Shaping: the perplexity of the shaped trajectories themselves")
    assert "not compared with that of the teacher in 1,024 steps, whose temperatures here don't reach that entropy" in lines[2]
    assert lines[4].startswith("On trajectories that were held out, the student from shaped carries 3.4 %")


@pytest.mark.parametrize(("ratio", "said"), [
    (LOWER, "64 to 68 % lower than that of its teacher in 1,024 steps (216.2)"), (HIGHER, "2 to 8 % higher than that"), (LEVEL, "not told apart from that")])
def test_a_comparison_at_one_temperature_is_qualified_by_entropy(story, ratio, said):
    line = sceptic(replace(story, warm=ratio))[0]
    assert said in line
    assert "at 5.42 bits of entropy against 5.71. Less entropy is duller text" in line


def test_what_is_not_bought_with_entropy_is_not_qualified(story):
    more = [(role, row.model_copy(update={"entropy_bits": 5.9}) if role == "shaped" else row) for role, row in story.measured]
    assert sceptic(replace(story, measured=more))[0].endswith("It is not bought with entropy.")


def test_real_text_has_its_name(story):
    assert "Real text (real) has" in sceptic(story)[1]
    bible = [(role, row.model_copy(update={"model": "bible"}) if role == "real" else row) for role, row in story.measured]
    assert "Real text (the Bible in Basic English) has a perplexity of 40.5 (38.5-42.5)" in sceptic(replace(story, measured=bible))[1]
    assert "98.5 % of that entropy" in sceptic(story)[1]
    assert "1.7 % stand in the text that the models were trained on" in sceptic(story)[2]


def test_a_training_of_few_updates_is_told_not_drawn(story):
    for points, told in ((2, "5.125 to 5.000"), (1, "student from blind 5.125,")):
        short = replace(story, curves={role: curve[:points] for role, curve in story.curves.items()})
        page = Page(report_page(short))
        assert len(page.all("svg")) == 2 * 2
        assert "Too few losses were logged to draw them" in page.words
        assert told in page.words


def test_students_that_were_not_measured_are_not_compared(story):
    lines = headline(replace(story, measured=[each for each in story.measured if each[0] != "shaped"], equal={}))
    assert "That stays open." in lines[0]
    assert not any("The student:" in line for line in lines)


def test_caveats_name_seeds_counts_and_sizes(story):
    lines = " ".join(caveats(story))
    for fact in ("training seed (5)", "sampling (11)", "37 texts", "3.5 million", f"{story.data.trajectories} trajectories", "77 updates of 32",
                 "5.0 % held out", "blind: 60; shaped: 77"):
        assert fact in lines, fact
