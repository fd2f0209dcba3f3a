"""Likelihood bounds of an evaluation: of each model in continuous time, if it is a teacher, and in every number of steps.

What is bounded is real held-out text of the corpus, or a file's; both in windows of as many tokens as the models' texts have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from tsdfm.pipeline.evaluation.cells import Subject
from tsdfm.pipeline.evaluation.judge import Likelihood
from tsdfm.pipeline.evaluation.measures.bounds import DRAWS, Asked, bound
from tsdfm.pipeline.evaluation.measures.corpus_texts import CorpusTexts, Kind, file_texts, kind_of, kinds_of, real_texts
from tsdfm.pipeline.evaluation.sample_cache import SampleCache, key_of
from tsdfm.pipeline.evaluation.samples import Samples
from tsdfm.pipeline.flow.rings.clocks import clocks_of
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.schemas.base import InputError
from tsdfm.schemas.evaluate import EvaluateConfig
from tsdfm.schemas.generate import RolloutConfig
from tsdfm.schemas.measures import Bound
from tsdfm.schemas.progress import Progress

VERSION = 1  # of the estimate; scores of another are never taken for these


def check_bounded(config: EvaluateConfig, subjects: Sequence[Subject]) -> None:
    """Raises InputError unless a bound is known for each model's sampler."""
    for subject in subjects:
        longest = subject.opened.network.config.length
        if config.length is not None and config.length > longest:
            raise InputError(f"--likelihood: model {subject.name} writes {config.length} tokens in blocks, of which no "
                             f"bound is known here; give a --length up to its {longest}, or leave --likelihood out")
        clocks = clocks_of(RolloutConfig(clocks=config.clocks), subject.opened.network.config)
        if clocks != "independent":
            raise InputError(f"--likelihood: model {subject.name} writes with {clocks} clocks, of which no bound is known "
                             "here; give --clocks independent, or leave --likelihood out")


def steps_bounded(config: EvaluateConfig, model: Denoiser) -> list[int | None]:
    """Continuous time (None), but not for a student, whose posterior is of a step; then the numbers of steps."""
    return [*([] if model.config.step_size else [None]), *config.steps]


@dataclass(frozen=True)
class Bounds:
    """All bounds of one evaluation, with the texts that they are of, by vocabulary and length."""

    config: EvaluateConfig
    cache: SampleCache
    texts: Mapping[Kind, tuple[CorpusTexts, Samples]]

    @classmethod
    def of(cls, config: EvaluateConfig, cache: SampleCache, subjects: Sequence[Subject], progress: Progress) -> "Bounds":
        """With the texts read. Raises InputError, as `check_bounded`, or if there is no such text."""
        check_bounded(config, subjects)
        found = {}
        for opened in kinds_of(config, [each.opened for each in subjects]):
            # Texts as the model was trained on, and all of them: a bound is of no continuation.
            whole = config.model_copy(update={"until": None, "prompt_tokens": None})
            texts = (file_texts if config.text is not None else real_texts)(whole, opened, progress)
            found[kind_of(config, opened)] = texts, cache.samples(texts.identity, texts.labels, texts.make)
        return cls(config, cache, found)

    def rows(self, subjects: Sequence[Subject], names: Mapping[str, str], progress: Progress) -> list[Bound]:
        """The bounds of all models, in their order; progress is told for all of them together."""
        plan = [(subject, steps) for subject in subjects for steps in steps_bounded(self.config, subject.opened.network)]
        rows = []
        for number, (subject, steps) in enumerate(plan):
            note = f"{names[subject.name]}, {'continuous time' if steps is None else f'n = {steps}'}"
            rows.append(self._row(subject, steps, _within(progress, number, len(plan), note)))
        return rows

    def _row(self, subject: Subject, steps: int | None, progress: Progress) -> Bound:
        config, opened = self.config, subject.opened
        texts, samples = self.texts[kind_of(config, opened)]
        asked = Asked(steps, config.temperature, config.seed, config.batch_size)

        def make() -> Likelihood:
            nats = bound(opened.network, samples.tokens, asked, progress)
            return Likelihood(nats, np.array([float(len(text)) for text in samples.written]))

        identity = {"bound": VERSION, "draws": DRAWS, "model": opened.fingerprint, "texts": key_of(texts.identity),
                    "steps": steps, "temperature": config.temperature, "seed": config.seed, "dtype": config.dtype,
                    "compile": config.compile}
        found = self.cache.likelihood(identity, make)
        low, high = found.interval()
        written = sum(len(text.encode("utf-8", "replace")) for text in samples.texts)
        return Bound(
            model=subject.name, fingerprint=opened.fingerprint, vocabulary=samples.vocabulary, steps=steps,
            temperature=config.temperature, text=texts.name, texts=len(samples.texts), length=samples.tokens.shape[1],
            tokens=sum(map(len, samples.written)), bytes=written,
            nats_per_token=log(found.perplexity), perplexity=found.perplexity,
            low=low, high=high, bits_per_byte=float(found.nats.sum()) / log(2) / written if written else None)


def why_one(bounds: Sequence[Bound]) -> str | None:
    """What to know of bounds whose text is a single one, of which intervals over texts are a point; None if there are none."""
    single = next((each for each in bounds if each.texts == 1), None)
    return None if single is None else (f"{single.text} is a single text of {single.tokens:,} tokens, of which an interval "
                                        "over texts says nothing; give more text")


def _within(progress: Progress, number: int, of: int, what: str) -> Progress:
    """Progress of one of several rows, told as progress of all of them."""
    def tell(stage: str, done: int, total: int, note: str = "") -> None:
        progress(stage, number * total + done, of * total, what)

    return tell
