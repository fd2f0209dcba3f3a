"""The page of results: well-formed, self-contained, nothing hard-coded, and honest in each direction."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tests.inspection_data import dataset
from tsdfm.jobs.demo.findings import Story, Texts, caveats, headline
from tsdfm.jobs.demo.page import report_page
from tsdfm.pipeline.dataset.summary import summarise
from tsdfm.pipeline.evaluation.frontier import frontier_of
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.evaluate import EvaluateConfig, JudgeFacts, Perplexity, Results, Row

EVIL = "</p><script>document.title='owned'</script><img src=x onerror=alert(1)> & __SECTIONS__ \x1b[31m"
VOID = {"meta", "img", "br", "link", "hr", "input"}
PNG = "data:image/png;base64,iVBOR"
# (role, steps, temperature, perplexity, half of its interval, entropy)
MEASURED = [
    ("real", None, None, 40.5, 2, 5.5), ("teacher", 64, 1.0, 216.25, 9, 5.71), ("teacher", 8, 0.7, 114.5, 5, 5.4),
    ("teacher", 8, 1.0, 315.75, 12, 5.7), ("blind", 8, 0.7, 131.5, 5, 5.3), ("blind", 8, 1.0, 357.5, 14, 5.68),
    ("shaped", 8, 0.7, 75.5, 3, 5.1), ("shaped", 8, 1.0, 122.5, 5, 5.42), ("shaped", 16, 1.0, 103.5, 4, 5.44),
]


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


def row(model, steps, temperature, perplexity, half, entropy):
    real = steps is None
    return Row(
        model=model, fingerprint=model, vocabulary="v", steps=steps, temperature=temperature, samples=37, length=16,
        nfe=None if real else steps - 0.25, seconds=None if real else 2.0, tokens_per_second=None if real else 1234.0,
        entropy_bits=entropy, entropy_standard_error=0.0125, distinct_2=0.4321, distinct_4=0.9, self_bleu=0.1234,
        judges={"embedded": Perplexity(perplexity=perplexity, low=perplexity - half, high=perplexity + half, tokens=999)})


def measured(**perplexities):
    return [(role, row(role, steps, temperature, perplexities.get(role, value), half, entropy))
            for role, steps, temperature, value, half, entropy in MEASURED]


def frontier(rows):
    swept = [row for role, row in rows if role != "real" and row.steps == 8]
    settings = EvaluateConfig(out="x", model=("teacher", "blind", "shaped"), steps=(8,), frontier=True, temperatures=(0.7, 1.0))
    return frontier_of(Results(
        command="", settings=settings, versions={}, device="cpu", threads=1, rows=swept,
        judges={"embedded": JudgeFacts(fingerprint="f", vocabulary=None)}, reference=[row for role, row in rows if role == "real"]))


@pytest.fixture(scope="module")
def summary(tmp_path_factory, tiny_models):
    store, _ = dataset("mask", tmp_path_factory.mktemp("report") / "out", tiny_models)
    return summarise(store)


@pytest.fixture
def story(summary):
    rows = measured()
    return Story(
        measured=rows, steps=8, temperature=1.0, judge="embedded", frontier=frontier(rows), data=summary,
        distilled=DistillConfig.model_validate({"optim": {"steps": 77, "seed": 5}}),
        curves={"blind": [(20, 5.125), (40, 4.875)], "shaped": [(20, 4.625), (40, 3.375)]},
        texts=[Texts("teacher", 8, ["a teacher's\ntext", "two"]), Texts("shaped", 8, [EVIL, "another text"])],
        seed=11, parameters=3_450_000, commands=["tsdfm-pipeline generate --out 'A & B'", "tsdfm-pipeline verify '<x>'"])


def test_the_page_is_whole_and_loads_nothing(story):
    text = report_page(story)
    page = Page(text)
    assert [name for name, _ in page.elements][:2] == ["html", "head"]
    assert page.all("script") == page.all("link") == page.all("iframe") == page.all("a") == []
    images = page.all("img")
    assert len(images) == 3  # frontier, energies, losses
    assert all(image["src"].startswith(PNG) and image["alt"] for image in images)
    assert not re.search(r"https?:|url\(|@import|__[A-Z]+__(?! \u241b)", text)
    [policy] = [each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert "prefers-color-scheme: dark" in text


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
    assert len(page.all("caption")) == len(page.all("thead")) == 2
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
    assert page.all("img") == page.all("details") == page.all("article") == []
    assert "temperature" not in page.words.replace("Temperature 1", "").replace("lower temperature", "")
    assert "122.5" in page.words


def test_the_headline_follows_the_figures(story):
    told = headline(story)
    assert told[0] == ("In 8 steps the student from shaped trajectories has a perplexity of 122.5, 66 % lower than the student "
                       "from blind ones (357.5).")
    assert "they do not overlap" in told[1]
    assert "61 % lower than its teacher in 8 steps (315.8), and 43 % lower than its teacher in 64 steps" in told[2]
    assert "98.5 % of real text's 5.50" in told[3]
    assert told[4].endswith("stands at 122.5 (interpolated, without an interval): the student is level with that.")


def test_a_result_that_goes_the_other_way_is_told_as_such(story):
    worse = headline(replace(story, measured=measured(shaped=370.0)))
    assert "3 % higher than the student from blind" in worse[0]
    assert "they overlap, so this run does not tell the two apart" in worse[1]
    assert "17 % higher than its teacher in 8 steps" in worse[2]
    assert "202 % higher than that" in worse[4]
    assert "68 % lower than that" in headline(replace(story, measured=measured(teacher=380.0)))[4]


def test_a_frontier_that_does_not_reach_says_so(story):
    far = [(role, row.model_copy(update={"entropy_bits": 4.0}) if (role, row.steps) == ("shaped", 8) else row)
           for role, row in story.measured]
    assert "stays open" in headline(replace(story, measured=far))[-1]


def test_students_that_were_not_measured_are_not_compared(story):
    assert "nothing to compare" in headline(replace(story, measured=[e for e in story.measured if e[0] != "blind"]))[0]
    assert "nothing to compare" in Page(report_page(replace(story, steps=4, frontier=None))).words


def test_caveats_name_seeds_counts_and_sizes(story):
    told = " ".join(caveats(story))
    for fact in ("training seed (5)", "sampling (11)", "37 texts", "3.5 million", f"{story.data.trajectories} trajectories", "77 updates of 32", "about 352 times"):
        assert fact in told, fact
