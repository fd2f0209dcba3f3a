"""What a demo measured, and what may be said of it in words: each sentence follows from the figures, whatever they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tsdfm.pipeline.evaluation.figures import count, ppl, ppl_interval, share
from tsdfm.pipeline.evaluation.frontier import perplexity_at_entropy
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.evaluate import Frontier, Perplexity, Row
from tsdfm.schemas.summary import DatasetSummary

Role = Literal["real", "teacher", "blind", "shaped"]
NAMES: Mapping[Role, str] = {
    "real": "real held-out text", "teacher": "teacher", "blind": "student from blind", "shaped": "student from shaped"}
LEVEL = 0.005  # a relative difference that rounds to 0 %
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

    def cooled(self, role: Role, entropy: float) -> float | None:
        """The perplexity of a model at the compared steps, its temperature such that its texts have an entropy.

        None where the temperatures that were sampled don't reach it.
        """
        rows = [row for found, row in self.measured if found == role and row.steps == self.steps]
        return perplexity_at_entropy([(row.entropy_bits, self.perplexity(row).perplexity) for row in rows], entropy)


def against(value: float, other: float) -> str:
    """'12 % lower than' another value, 'higher than', or 'level with'."""
    change = value / other - 1
    if abs(change) < LEVEL:
        return "level with"
    return f"{abs(change):.0%} {'lower' if change < 0 else 'higher'} than".replace("%", " %")


def headline(story: Story) -> list[str]:
    """The comparison in sentences, the first one the shortest."""
    shaped, blind = story.row("shaped", story.steps), story.row("blind", story.steps)
    if shaped is None or blind is None:
        return ["The two students were not measured at the same number of steps: there is nothing to compare."]
    mine, other = story.perplexity(shaped), story.perplexity(blind)
    apart = mine.high < other.low or other.high < mine.low
    told = [
        f"In {story.steps} steps the student from shaped trajectories has a perplexity of {ppl(mine.perplexity)}, "
        f"{against(mine.perplexity, other.perplexity)} the student from blind ones ({ppl(other.perplexity)}).",
        f"Their 95 % intervals are {ppl(mine.low)}-{ppl(mine.high)} and {ppl(other.low)}-{ppl(other.high)}: "
        + ("they do not overlap." if apart else "they overlap, so this run does not tell the two apart."),
    ]
    return told + _of_teacher(story, mine) + _of_entropy(story, shaped)


def _of_teacher(story: Story, mine: Perplexity) -> list[str]:
    rows = {row.steps: row for row in (story.row("teacher", story.steps), story.row("teacher")) if row is not None}
    facts = []
    for steps, row in rows.items():
        found = story.perplexity(row).perplexity
        facts.append(f"{against(mine.perplexity, found)} its teacher in {count(steps or 0, 'step')} ({ppl(found)})")
    return [f"The student from shaped stands {', and '.join(facts)}."] if facts else []


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
    mine, cooled = story.perplexity(shaped).perplexity, story.cooled("teacher", entropy)
    if cooled is None:
        told.append("Whether cooling the teacher would do as well stays open: the temperatures sampled don't reach that "
                    "entropy.")
    else:
        told.append(f"Would a lower temperature do as well? The teacher in {story.steps} steps, cooled to that same entropy, "
                    f"stands at {ppl(cooled)} (interpolated, without an interval): the student is "
                    f"{against(mine, cooled)} that.")
    return told


def caveats(story: Story) -> list[str]:
    """What the figures don't show."""
    optim, counts = story.distilled.optim, [row.samples for _, row in story.own]
    seen = optim.steps * optim.batch_size / story.data.trajectories
    texts = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    return [
        f"One training seed ({optim.seed}) and one seed of sampling ({story.seed}): intervals are 95 % bootstrap intervals "
        f"over the {texts} texts of a row; they say nothing of how much another training would differ.",
        f"Small models: the teacher has {story.parameters / 1e6:.1f} million parameters. The students were trained on "
        f"{story.data.trajectories} trajectories each, {optim.steps} updates of {optim.batch_size}: each trajectory was seen "
        f"about {seen:.0f} times, and how much was learnt by heart is not measured.",
        "Perplexity is comparable under one judge only, and rewards dull text: read it beside entropy, distinct-2 and "
        "self-BLEU.",
        "Tokens per second were timed on the machine that ran this, with whatever else ran on it.",
    ]
