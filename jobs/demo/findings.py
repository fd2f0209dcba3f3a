"""What a demo measured, and what may be said of it in words: each sentence is one that the intervals allow.

Perplexity falls with the sampling temperature, and so does the entropy of the texts. So models are compared *at equal
entropy*: the texts of one against what another's would be at the temperature that gives them the same entropy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tsdfm.pipeline.evaluation.effects import Ratio
from tsdfm.pipeline.evaluation.figures import count, maybe, ppl, ppl_interval, share
from tsdfm.schemas.corpus import BIBLE, PYTHON
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.evaluate import Perplexity, Row
from tsdfm.schemas.frontier import Frontier
from tsdfm.schemas.reports import DemoRole
from tsdfm.schemas.summary import DatasetSummary
from tsdfm.schemas.terms import Arm
from tsdfm.schemas.training_record import HeldOutFacts

NAMES: Mapping[DemoRole, str] = {
    "real": "real held-out text", "teacher": "teacher", "spaced": "teacher, spaced clocks",
    "blind": "student from blind", "shaped": "student from shaped", "rollouts": "shaped trajectories"}
CORPORA = {BIBLE: "the Bible in Basic English", PYTHON: "the documentation of Python and of its packages"}
Curve = Sequence[tuple[int, float]]  # (update, loss)
Which = tuple[DemoRole, int]  # whose texts, in how many steps
WEIGHT = {"lower": 0, "higher": 1, "not told apart": 2, None: 3}  # the order in which comparisons are told


@dataclass(frozen=True)
class Texts:
    """What one model wrote; the i-th texts of all models came from the same noise, those of trajectories from their own."""

    role: DemoRole
    steps: int
    texts: Sequence[str]


@dataclass(frozen=True)
class Still:
    """A text in the making after a step: pieces of text, whether each is yet to be written, and whether this step wrote it."""

    step: int  # from 1 on; 0 is the start
    pieces: Sequence[tuple[str, bool, bool]]


@dataclass(frozen=True)
class Story:
    """All that a report tells."""

    measured: Sequence[tuple[DemoRole, Row]]
    steps: int  # that are allowed
    slow: int  # that the teacher may take in comparison
    temperatures: Mapping[DemoRole, float]  # at which texts count as a model's own
    judge: str  # by which models are compared, as named in the rows
    # Perplexity of a role's own texts over that of another's, at equal entropy; None: no temperature of the other reaches that.
    equal: Mapping[tuple[DemoRole, Which], Ratio | None]
    warm: Ratio | None  # of the student from shaped over the teacher in `slow` steps, both at temperature 1; None: not measured
    frontier: Frontier | None
    data: DatasetSummary
    distilled: DistillConfig  # of both students, up to the arm
    learnt: HeldOutFacts | None  # what the student from shaped is worth on held-out trajectories; None: not measured
    updates: Mapping[Arm, int]  # that each student has learnt from
    curves: Mapping[Arm, Curve]
    texts: Sequence[Texts]
    stills: Sequence[Still]  # of one shaped trajectory
    seed: int  # of the sampled texts
    parameters: int  # of the teacher
    commands: Sequence[str]

    @property
    def own(self) -> list[tuple[DemoRole, Row]]:
        """Real text, and every model in every number of steps at its own temperature."""
        return [(role, row) for role, row in self.measured if row.temperature in (None, self.temperatures.get(role))]

    def row(self, role: DemoRole, steps: int | None = None, temperature: float | None = None) -> Row | None:
        """A role's row in so many steps (None: any) and at a temperature (None: its own)."""
        wanted = self.temperatures.get(role) if temperature is None else temperature
        return next((row for found, row in self.measured
                     if found == role and steps in (None, row.steps) and row.temperature in (None, wanted)), None)

    def perplexity(self, row: Row) -> Perplexity:
        """The perplexity of a row's texts under the judge by which models are compared."""
        return row.judges[self.judge]

    @property
    def corpus(self) -> str:
        """What the real text is, in words."""
        real = self.row("real")
        return "" if real is None else CORPORA.get(real.model, real.model)

    def name(self, which: Which) -> str:
        """Whose texts, as a table calls them."""
        role, steps = which
        return f"{NAMES[role]}, {count(steps, 'step')}"


def question(story: Story) -> list[str]:
    """What a demo asks, for people who know nothing of it."""
    steps = count(story.steps, "jump")
    return [
        f"The model here writes a text of {count(story.data.length, 'token')} (words and parts of words) in random jumps, some "
        "positions at a time. Tokens that are written in the same jump don't see each other, which is why few large jumps can "
        f"write worse than many small ones. This page asks what {steps} can do against {story.slow:,}:",
        "(1) if the positions that are written together are spread evenly over the text (spaced clocks); (2) if a second "
        f"model, the compass, keeps the best of {maybe(_candidates(story), 'd', 'several')} candidates for every jump (shaped "
        "trajectories; without it they are blind); (3) if a student learns from such trajectories, and then writes without the "
        "compass.",
    ]


def _candidates(story: Story) -> int | None:
    return None if story.data.selection is None else story.data.selection.candidates


def headline(story: Story) -> list[str]:
    """What came out, in sentences. The first one is what a sceptic asks of the student, and paired intervals decide it."""
    return [line for line in (_verdict(story), _clocks(story), _shaping(story), _student(story), _learnt(story)) if line]


def sceptic(story: Story) -> list[str]:
    """Would less do as well: a lower temperature, or other clocks alone?"""
    return [line for line in (_at_one(story), _of_real(story), _of_copying(story)) if line]


def _verdict(story: Story) -> str:
    """Is the student worth more than its control, and than its teacher in the same steps on the same clocks?"""
    asked: list[Which] = [("spaced", story.steps), ("blind", story.steps)]
    said = ["that of its teacher in as many steps on the same clocks", "that of its control, the student from blind ones"]
    found = [story.equal.get(("shaped", each)) for each in asked]
    verdicts = [None if each is None else each.verdict for each in found]
    answer = ("No." if "higher" in verdicts else "That stays open." if None in verdicts
              else "Yes." if set(verdicts) == {"lower"} else "This run does not show it.")
    told = _told(list(zip(found, said, strict=True)))
    return (f"Does a student of shaped trajectories write better, texts' entropy being equal? {answer} In "
            f"{count(story.steps, 'step')} its perplexity is {told}.")


def _clocks(story: Story) -> str:
    return _finding(story, "spaced", "Clocks", f"the teacher in {count(story.steps, 'step')} on spaced clocks", [
        (("teacher", story.steps), "that of the same teacher on independent clocks, where chance says which positions are "
         "written together"), (("teacher", story.slow), f"that of the teacher in {count(story.slow, 'step')}")])


def _shaping(story: Story) -> str:
    return _finding(story, "rollouts", "Shaping", "the shaped trajectories themselves, with the compass at work", [
        (("spaced", story.steps), "that of the teacher alone in as many steps on the same clocks"),
        (("teacher", story.slow), f"that of the teacher in {count(story.slow, 'step')}")])


def _student(story: Story) -> str:
    return _finding(story, "shaped", "The student", f"the student from shaped in {count(story.steps, 'step')}", [
        (("teacher", story.slow), f"that of its teacher in {count(story.slow, 'step')}"),
        (("teacher", story.steps), f"that of its teacher in {count(story.steps, 'step')} on independent clocks")])


def _finding(story: Story, role: DemoRole, title: str, who: str, beside: Sequence[tuple[Which, str]]) -> str:
    """Comparisons at equal entropy in a sentence; '' where there are none."""
    mine = story.row(role, story.steps)
    there = [(story.equal[role, which], name) for which, name in beside if (role, which) in story.equal]
    if mine is None or not there:
        return ""
    return (f"{title}: the perplexity of {who} ({ppl(story.perplexity(mine).perplexity)} at {mine.entropy_bits:.2f} bits) is, "
            f"at equal entropy, {_told(there)}.")


def _told(comparisons: Sequence[tuple[Ratio | None, str]]) -> str:
    """Comparisons in words: what is lower, what is higher, what is not told apart, what can't be compared."""
    ordered = sorted(comparisons, key=lambda each: WEIGHT[None if each[0] is None else each[0].verdict])
    words = [_than(ratio, name) for ratio, name in ordered]
    return words[0] if len(words) == 1 else f"{'; '.join(words[:-1])}; and {words[-1]}"


def _than(ratio: Ratio | None, other: str) -> str:
    """'64 to 68 % lower than OTHER', 'not told apart from OTHER (12 % lower to 3 % higher)'."""
    if ratio is None:
        return f"not compared with {other}, whose temperatures here don't reach that entropy"
    if ratio.verdict == "not told apart":
        return f"not told apart from {other} ({_between(ratio)})"
    return f"{_between(ratio)} than {other}"


def _between(ratio: Ratio) -> str:
    """An interval in words: '64 to 68 % lower', '1 to 3 % higher', '12 % lower to 3 % higher'."""
    (low, below), (high, above) = ((abs(end - 1), "lower" if end < 1 else "higher") for end in (ratio.low, ratio.high))
    if below == above:
        least, most = sorted((low, high))
        return f"{_percent(least)} to {_percent(most)} % {below}"
    return f"{_percent(low)} % {below} to {_percent(high)} % {above}"


def _percent(part: float) -> str:
    return f"{100 * part:.0f}" if part > 0.0095 else f"{100 * part:.1f}"


def _learnt(story: Story) -> str:
    found = story.learnt
    if found is None or found.share is None:
        return ""
    said = (f"On trajectories that were held out, the student from shaped carries {share(found.share)} of what the compass "
            "prefers: 0 % is a student that heeds nothing of it, 100 % one that has taken over all, and less than nothing one "
            "that prefers what the compass does not.")
    if found.cooled is None:
        return said
    worth = "no more than that" if found.share <= found.cooled else "more than that"
    return (f"{said} But what a teacher finds likely a compass mostly does, too: the teacher alone, sampled cooler, carries "
            f"{share(found.cooled)}. The student carries {worth}.")


def _at_one(story: Story) -> str:
    """The comparison at one temperature, which entropies then qualify."""
    mine, slow = story.row("shaped", story.steps, 1.0), story.row("teacher", story.slow, 1.0)
    if mine is None or slow is None or story.warm is None:
        return ""
    told = _than(story.warm, f"that of its teacher in {count(story.slow, 'step')} ({ppl(story.perplexity(slow).perplexity)})")
    lower = mine.entropy_bits < slow.entropy_bits
    price = ("Less entropy is duller text, which any model writes at a lower temperature, and which a judge finds less "
             "surprising. So this says little by itself; what counts is the comparison at equal entropy."
             if lower else "It is not bought with entropy.")
    return (f"Both sampled at temperature 1, the perplexity of the student from shaped "
            f"({ppl(story.perplexity(mine).perplexity)}) is {told}, at {mine.entropy_bits:.2f} bits of entropy against "
            f"{slow.entropy_bits:.2f}. {price}")


def _of_real(story: Story) -> str:
    mine, real = story.row("shaped", story.steps), story.row("real")
    if mine is None or real is None:
        return ""
    return (f"Real text ({story.corpus}) has a perplexity of {ppl_interval(story.perplexity(real))} and "
            f"{real.entropy_bits:.2f} bits; the student from shaped has {share(mine.entropy_bits / real.entropy_bits)} of that "
            "entropy.")


def _of_copying(story: Story) -> str:
    mine, real = story.row("shaped", story.steps), story.row("real")
    if mine is None or real is None or mine.memorised is None or real.memorised is None:
        return ""
    learnt = "" if mine.in_trajectories is None else (
        f" In the trajectories {share(mine.in_trajectories)} stand, and {share(real.in_trajectories)} of real held-out text's.")
    return (f"Is it copied? Of its runs of 8 tokens {share(mine.memorised)} stand in the text that the models were trained on; "
            f"of real held-out text's {share(real.memorised)}.{learnt}")


def caveats(story: Story) -> list[str]:
    """What the figures don't show."""
    optim, counts = story.distilled.optim, [row.samples for _, row in story.own]
    learnt = count(story.data.trajectories, "trajectory")
    texts = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    kept = "; ".join(f"{arm}: {updates}" for arm, updates in story.updates.items())
    stopped = f" (kept are the weights of the lowest held-out loss, after so many updates: {kept})" if kept else ""
    return [
        f"One training seed ({optim.seed}) and one seed of sampling ({story.seed}): intervals are 95 % bootstrap intervals "
        f"over the {texts} texts of a row; they say nothing of how much another training would differ.",
        f"Small models, one judge: the teacher has {story.parameters / 1e6:.1f} million parameters, and the judge is not much "
        f"larger. The students had {learnt} each, less {share(story.distilled.data.held_out)} held out, and at most "
        f"{count(optim.steps, 'update')} of {optim.batch_size}{stopped}.",
        "Between two temperatures log perplexity is taken to be linear in entropy.",
        "The shaped trajectories are measured as they lie in the dataset, at one temperature; they had the compass, whose work "
        "is not counted. All other rows are of models alone.",
        "Perplexity is comparable under one judge only, and rewards dull text, also at equal unigram entropy: read it beside "
        "distinct-2, the share of different pairs of tokens.",
    ]
