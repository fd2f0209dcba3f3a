"""Texts of an evaluation that come from its corpus and not from a model: real held-out ones, and those of naive samplers.

They have the length and the tokens of a model's texts, so each is made once for every vocabulary and length of the models.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tsdfm.pipeline.evaluation.measures.naive import Sampler, naive_samplers
from tsdfm.pipeline.evaluation.sample_cache import PROMPTS, Identity
from tsdfm.pipeline.evaluation.samples import Samples, begun, of_tokens
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import ModelFolder
from tsdfm.pipeline.text.corpus import held_out_stream, training_stream, windows_of
from tsdfm.schemas.corpus import BUILT_IN, HUB, CorpusConfig
from tsdfm.schemas.evaluate import EvaluateConfig
from tsdfm.schemas.progress import Progress

NAIVE = ("unigram", "shuffled", "repeated", "copied")  # in the order of their rows


@dataclass(frozen=True)
class CorpusTexts:
    """Some texts, how a row calls them, all that they depend on, and how they are made; `labels`: columns of the kept file."""

    name: str
    vocabulary: str
    identity: Identity
    labels: dict[str, Any]
    make: Callable[[], Samples]

    @property
    def is_real(self) -> bool:
        """Whether people wrote these texts, as they stand."""
        return "naive" not in self.identity


def kinds_of(models: Sequence[ModelFolder[Denoiser]]) -> list[ModelFolder[Denoiser]]:
    """A model of each vocabulary and length that there is."""
    return list({(each.vocabulary.fingerprint, each.network.config.length): each for each in models}.values())


def real_texts(config: EvaluateConfig, opened: ModelFolder[Denoiser], progress: Progress) -> CorpusTexts:
    """Held-out texts as long as a model's, evenly spaced over the corpus; where the config says, after their first tokens."""
    corpus, length = config.corpus, opened.network.config.length

    def make() -> Samples:
        stream = held_out_stream(corpus, opened.vocabulary, progress)
        made, given = of_tokens(windows_of(stream, length, config.samples).numpy(), opened.vocabulary), config.prompt_tokens
        return made if given is None else begun(made, np.full(len(made.tokens), given), opened.vocabulary)

    identity = {**_identity(config, opened), **({} if config.prompt_tokens is None else {PROMPTS: config.prompt_tokens})}
    return _named(corpus.path, f"corpus {corpus.path}", None, identity, opened, make)


def naive_texts(config: EvaluateConfig, opened: ModelFolder[Denoiser], progress: Progress) -> Iterator[CorpusTexts]:
    """Texts of every naive sampler, as long as a model's; the corpus is not read before one is made."""
    length = opened.network.config.length

    @cache
    def samplers() -> dict[str, Sampler]:
        return dict(naive_samplers(training_stream(config.corpus, opened.vocabulary, progress), opened.vocabulary.size))

    for number, name in enumerate(NAIVE):
        def make(name: str = name, number: int = number) -> Samples:
            random = np.random.default_rng([config.seed, number])
            return of_tokens(samplers()[name](config.samples, length, random), opened.vocabulary)

        identity = {**_identity(config, opened), "naive": name, "part": config.corpus.part, "seed": config.seed}
        yield _named(name, f"naive {name}", config.seed, identity, opened, make)


def corpus_identity(corpus: CorpusConfig) -> Identity:
    """Which text a corpus is, whatever part of it is asked for."""
    return {"corpus": corpus.path, "text_field": corpus.text_field, "stamp": _stamp(corpus.path),
            **({} if corpus.path == BUILT_IN else {"clean": corpus.clean})}


def _identity(config: EvaluateConfig, opened: ModelFolder[Denoiser]) -> Identity:
    return {**corpus_identity(config.corpus), "vocabulary": opened.vocabulary.fingerprint,
            "length": opened.network.config.length, "samples": config.samples}


def _named(name: str, label: str, seed: int | None, identity: Identity, opened: ModelFolder[Denoiser],
           make: Callable[[], Samples]) -> CorpusTexts:
    return CorpusTexts(name, opened.vocabulary.fingerprint, identity,
                       {"model": label, "steps": None, "temperature": None, "seed": seed}, make)


def _stamp(corpus: str) -> list[list[int]]:
    """Sizes and times of a corpus's files, so that a changed one is read anew; of 'python' and the Hub, nothing."""
    if corpus == BUILT_IN or corpus.startswith(HUB):
        return []
    path = Path(corpus)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [file.stat() for file in files if file.is_file()]
    return [[stat.st_size, stat.st_mtime_ns] for stat in stats]
