"""Texts of an evaluation that come from its corpus and not from a model: real held-out ones, and those of naive samplers.

They have the length and the tokens of a model's texts, and stop as they do, so each is made once for every kind of model that
there is.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tsdfm.pipeline.evaluation.measures.naive import Sampler, naive_samplers
from tsdfm.pipeline.evaluation.sample_cache import Identity
from tsdfm.pipeline.evaluation.samples import Samples, of_tokens
from tsdfm.pipeline.flow.texts.blocks import Extent
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import ModelFolder
from tsdfm.pipeline.text.corpus import held_out_stream, training_stream, windows_of
from tsdfm.pipeline.text.ends.documents import Documents
from tsdfm.schemas.corpus import BUILT_IN, HUB, CorpusConfig
from tsdfm.schemas.evaluate import EvaluateConfig
from tsdfm.schemas.progress import Progress
from tsdfm.schemas.terms import Texts

NAIVE = ("unigram", "shuffled", "repeated", "copied")  # in the order of their rows


@dataclass(frozen=True)
class CorpusTexts:
    """Some texts, how a row calls them, all that they depend on, and how they are made; `labels`: columns of the kept file."""

    name: str
    vocabulary: str
    texts: Texts
    identity: Identity
    labels: dict[str, Any]
    make: Callable[[], Samples]

    @property
    def is_real(self) -> bool:
        """Whether people wrote these texts, as they stand."""
        return "naive" not in self.identity


def kinds_of(models: Sequence[ModelFolder[Denoiser]]) -> list[ModelFolder[Denoiser]]:
    """A model of each vocabulary, length and kind of texts that there is."""
    return list({(each.vocabulary.fingerprint, each.network.config.length, each.network.config.texts): each
                 for each in models}.values())


def extent_of(config: EvaluateConfig, opened: ModelFolder[Denoiser]) -> Extent:
    """How long a model's texts are, and real ones beside them. Raises InputError: as `Extent.of`."""
    return Extent.of(opened.network.config, opened.vocabulary, length=config.length, until=config.until, overlap=config.overlap)


def real_texts(config: EvaluateConfig, opened: ModelFolder[Denoiser], progress: Progress) -> CorpusTexts:
    """Held-out texts as long as a model's, evenly spaced over the corpus."""
    corpus, extent, packed = config.corpus, extent_of(config, opened), opened.network.config.texts == "packed"

    def make() -> Samples:
        stream, words = held_out_stream(corpus, opened.vocabulary, progress), opened.vocabulary
        texts = (windows_of(stream, extent.length, config.samples) if packed
                 else Documents(stream, words.eos_id, extent.length).spread(config.samples))
        return of_tokens(texts.numpy(), words, extent.end_id)

    return _named(corpus.path, f"corpus {corpus.path}", None, _identity(config, opened), opened, make)


def naive_texts(config: EvaluateConfig, opened: ModelFolder[Denoiser], progress: Progress) -> Iterator[CorpusTexts]:
    """Texts of every naive sampler, as long as a model's; the corpus is not read before one is made."""
    extent = extent_of(config, opened)

    @cache
    def samplers() -> dict[str, Sampler]:
        return dict(naive_samplers(training_stream(config.corpus, opened.vocabulary, progress), opened.vocabulary.size))

    for number, name in enumerate(NAIVE):
        def make(name: str = name, number: int = number) -> Samples:
            random = np.random.default_rng([config.seed, number])
            return of_tokens(samplers()[name](config.samples, extent.length, random), opened.vocabulary, extent.end_id)

        identity = {**_identity(config, opened), "naive": name, "part": config.corpus.part, "seed": config.seed}
        yield _named(name, f"naive {name}", config.seed, identity, opened, make)


def corpus_identity(corpus: CorpusConfig) -> Identity:
    """Which text a corpus is, whatever part of it is asked for."""
    return {"corpus": corpus.path, "text_field": corpus.text_field, "stamp": _stamp(corpus.path),
            **({} if corpus.path == BUILT_IN else {"clean": corpus.clean})}


def _identity(config: EvaluateConfig, opened: ModelFolder[Denoiser]) -> Identity:
    extent, texts = extent_of(config, opened), opened.network.config.texts
    return {**corpus_identity(config.corpus), "vocabulary": opened.vocabulary.fingerprint,
            "length": extent.length, "samples": config.samples, **({} if extent.end_id is None else {"end_id": extent.end_id}),
            **({} if texts == "packed" else {"texts": texts})}


def _named(name: str, label: str, seed: int | None, identity: Identity, opened: ModelFolder[Denoiser],
           make: Callable[[], Samples]) -> CorpusTexts:
    return CorpusTexts(name, opened.vocabulary.fingerprint, opened.network.config.texts, identity,
                       {"model": label, "steps": None, "temperature": None, "seed": seed}, make)


def _stamp(corpus: str) -> list[list[int]]:
    """Sizes and times of a corpus's files, so that a changed one is read anew; of 'python' and the Hub, nothing."""
    if corpus == BUILT_IN or corpus.startswith(HUB):
        return []
    path = Path(corpus)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [file.stat() for file in files if file.is_file()]
    return [[stat.st_size, stat.st_mtime_ns] for stat in stats]
