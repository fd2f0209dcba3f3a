"""What a demo measured, and what may be said of it in words: each sentence is one that the intervals allow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tsdfm.pipeline.evaluation.effects import Ratio
from tsdfm.pipeline.evaluation.figures import count, ppl, ppl_interval, share
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.evaluate import Frontier, Perplexity, Row
from tsdfm.schemas.summary import DatasetSummary

Role = Literal["real", "teacher", "blind", "shaped"]
NAMES: Mapping[Role, str] = {
    "real": "real held-out text", "teacher": "teacher", "blind": "student from blind", "shaped": "student from shaped"}
Curve = Sequence[tuple[int, float]]  # (update, loss)


@dataclass(frozen=True)
class Texts:
    """What one model wrote; the i-th texts of all models came from the same noise."""

    role: Role
    steps: int
    texts: Sequence[str]


@dataclass(frozen=True)
class Story:
    """All that a report tells."""

    measured: Sequence[tuple[Role, Row]]
    steps: int  # at which the models are compared
    temperature: float  # at which texts count as the model's own
    judge: str  # by which they are compared, as named in the rows
    ratios: Mapping[tuple[Role, int], Ratio]  # perplexity of the student from shaped over that of (role, steps)
    cooled: Ratio | None  # ... over that of the teacher, cooled to the same entropy; None: that can't be told
    frontier: Frontier | None
    data: DatasetSummary
    distilled: DistillConfig  # of both students, up to the arm
    curves: Mapping[Role, Curve]
    texts: Sequence[Texts]
    seed: int  # of the sampled texts
    parameters: int  # of the teacher
    commands: Sequence[str]

    @property
    def own(self) -> list[tuple[Role, Row]]:
        """Real text, and every model at every step count at its own temperature."""
        return [(role, row) for role, row in self.measured if row.temperature in (None, self.temperature)]

    def row(self, role: Role, steps: int | None = None) -> Row | None:
        """A role's own row at a step count; without one, at its largest."""
        rows = [row for found, row in self.own if found == role and steps in (None, row.steps)]
        return max(rows, key=lambda row: row.steps or 0, default=None)

    def perplexity(self, row: Row) -> Perplexity:
        """The perplexity of a row's texts under the judge by which models are compared."""
        return row.judges[self.judge]


def headline(story: Story) -> list[str]:
    """The comparison in sentences; the first one is the verdict, which the paired interval of both students decides."""
    shaped, blind = story.row("shaped", story.steps), story.row("blind", story.steps)
    ratio = story.ratios.get(("blind", story.steps))
    if shaped is None or blind is None or ratio is None:
        return ["The two students were not measured at the same number of steps: there is nothing to compare."]
    mine, other = story.perplexity(shaped), story.perplexity(blind)
    steps, verdict = count(story.steps, "step"), ratio.verdict
    if verdict == "not told apart":
        first = (f"This run does not tell the two students apart: in {steps} their perplexities are {ppl(mine.perplexity)} "
                 f"(from shaped trajectories) and {ppl(other.perplexity)} (from blind ones), and the difference may be "
                 f"anything from {_between(ratio)}.")
    else:
        first = (f"In {steps} the student from shaped trajectories has a {verdict} perplexity than the student from blind "
                 f"ones: {ppl(mine.perplexity)} against {ppl(other.perplexity)}, which is {_between(ratio)}.")
    second = (f"That is the 95 % interval of the ratio, over texts in pairs from the same noise. Each student by itself: "
              f"{ppl_interval(mine)} and {ppl_interval(other)}.")
    return [first, second, *_of_teacher(story), *_of_entropy(story, shaped)]


def _between(ratio: Ratio) -> str:
    """An interval in words: '64 to 68 % lower', '1 to 3 % higher', '12 % lower to 3 % higher'."""
    (low, below), (high, above) = ((abs(end - 1), "lower" if end < 1 else "higher") for end in (ratio.low, ratio.high))
    if below == above:
        least, most = sorted((low, high))
        return f"{_percent(least)} to {_percent(most)} % {below}"
    return f"{_percent(low)} % {below} to {_percent(high)} % {above}"


def _percent(part: float) -> str:
    return f"{100 * part:.0f}" if part > 0.0095 else f"{100 * part:.1f}"


def _beside(ratio: Ratio) -> str:
    """What a ratio's interval allows: '64 to 68 % lower', or 'not told apart (12 % lower to 3 % higher)'."""
    return f"not told apart ({_between(ratio)})" if ratio.verdict == "not told apart" else _between(ratio)


def _of_teacher(story: Story) -> list[str]:
    facts = []
    for (role, steps), ratio in sorted(story.ratios.items(), key=lambda each: each[0][1]):
        row = story.row(role, steps)
        if role == "teacher" and row is not None:
            found = story.perplexity(row).perplexity
            facts.append(f"its teacher in {count(steps, 'step')}, which has {ppl(found)}: {_beside(ratio)}")
    return [f"The perplexity of the student from shaped beside {'; beside '.join(facts)}."] if facts else []


def _of_entropy(story: Story, shaped: Row) -> list[str]:
    """What the sceptic asks: lower temperature buys perplexity, too."""
    entropy, told = shaped.entropy_bits, []
    real = story.row("real")
    if real is not None:
        told.append(f"Its texts have a unigram entropy of {entropy:.2f} bits, {share(entropy / real.entropy_bits)} of real "
                    f"text's {real.entropy_bits:.2f}; real text stands at a perplexity of "
                    f"{ppl_interval(story.perplexity(real))}.")
    if story.frontier is None:
        return told
    if story.cooled is None:
        return [*told, "Would a lower temperature do as well? That stays open: the temperatures sampled don't reach that "
                       "entropy."]
    mine = story.perplexity(shaped).perplexity
    teacher = f"the teacher in {count(story.steps, 'step')}, cooled to that same entropy"
    stands = f"has a perplexity of about {ppl(mine / story.cooled.value)}"
    answer = {
        "lower": f"No: {teacher}, {stands}, and the student's is {_between(story.cooled)}.",
        "higher": f"Yes, better: {teacher}, {stands}, and the student's is {_between(story.cooled)}.",
        "not told apart": f"This run can't tell: {teacher}, {stands}; the student's may be {_between(story.cooled)}.",
    }
    return [*told, f"Would a lower temperature do as well? {answer[story.cooled.verdict]}"]


def caveats(story: Story) -> list[str]:
    """What the figures don't show."""
    optim, counts = story.distilled.optim, [row.samples for _, row in story.own]
    seen = optim.steps * optim.batch_size / story.data.trajectories
    texts = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    return [
        f"One training seed ({optim.seed}) and one seed of sampling ({story.seed}): intervals are 95 % bootstrap intervals "
        f"over the {texts} texts of a row; they say nothing of how much another training would differ.",
        f"Small models: the teacher has {story.parameters / 1e6:.1f} million parameters. The students were trained on "
        f"{count(story.data.trajectories, 'trajectory')} each, {count(optim.steps, 'update')} of {optim.batch_size}: each was "
        f"seen about {count(round(seen), 'time')}, and how much was learnt by heart is not measured.",
        "Perplexity is comparable under one judge only, and rewards dull text: read it beside entropy, distinct-2 and "
        "self-BLEU.",
        "Tokens per second were timed on the machine that ran this, with whatever else ran on it.",
    ]
