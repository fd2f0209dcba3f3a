"""Texts of an evaluation that come from its corpus and not from a model: real held-out ones, and those of naive samplers.

They have the length and the tokens of a model's texts, and stop as they do, so each is made once for every kind of model that
there is.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from tsdfm.pipeline.evaluation.measures.naive import Sampler, naive_samplers
from tsdfm.pipeline.evaluation.sample_cache import PROMPTS, Identity
from tsdfm.pipeline.evaluation.samples import Samples, begun, of_tokens
from tsdfm.pipeline.flow.texts.blocks import Extent
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import ModelFolder
from tsdfm.pipeline.text.corpus import corpus_sha256, held_out_stream, others_of, training_stream, windows_of
from tsdfm.pipeline.text.documents import Reading, read_documents
from tsdfm.pipeline.text.ends.documents import Documents
from tsdfm.pipeline.text.ends.written import lengths
from tsdfm.pipeline.text.token_file import Tokens
from tsdfm.schemas.base import InputError
from tsdfm.schemas.corpus import NAMED, CorpusConfig
from tsdfm.schemas.evaluate import EvaluateConfig
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.terms import Texts
from tsdfm.schemas.words import count

FEWEST = 4  # other real texts, to compare sets with
Kind = tuple[str, int, Texts]
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


def kinds_of(config: EvaluateConfig, models: Sequence[ModelFolder[Denoiser]]) -> list[ModelFolder[Denoiser]]:
    """A model of each kind of texts that there is."""
    return list({kind_of(config, each): each for each in models}.values())


def kind_of(config: EvaluateConfig, opened: ModelFolder[Denoiser]) -> Kind:
    """Which texts can stand beside a model's: their vocabulary, by fingerprint, their length, and how they lie."""
    model = opened.network.config
    return opened.vocabulary.fingerprint, config.length or model.length, model.texts


def extent_of(config: EvaluateConfig, opened: ModelFolder[Denoiser]) -> Extent:
    """How long a model's texts are, and real ones beside them. Raises InputError: as `Extent.of`."""
    return Extent.of(opened.network.config, opened.vocabulary, length=config.length, until=config.until, overlap=config.overlap)


def _spread(stream: Tokens, extent: Extent, opened: ModelFolder[Denoiser], limit: int) -> Samples:
    """Up to `limit` texts of a stream, evenly spaced, as a model's texts lie."""
    words = opened.vocabulary
    texts = (windows_of(stream, extent.length, limit) if opened.network.config.end_id is None
             else Documents(stream, words.eos_id, extent.length).spread(limit))
    return of_tokens(texts.numpy(), words, extent.end_id)


def real_texts(config: EvaluateConfig, opened: ModelFolder[Denoiser], progress: Progress) -> CorpusTexts:
    """Held-out texts as long as a model's, evenly spaced over the corpus; where the config says, after their first tokens."""
    corpus, extent = config.corpus, extent_of(config, opened)

    def make() -> Samples:
        texts = _spread(held_out_stream(corpus, opened.vocabulary, progress), extent, opened, config.samples)
        return _after_prompts(config, texts, opened)

    identity = _real_identity(config, opened, progress)
    return _named(corpus.path, f"corpus {corpus.path}", None, identity, opened, make)


def _after_prompts(config: EvaluateConfig, texts: Samples, opened: ModelFolder[Denoiser]) -> Samples:
    """Real texts, of which the first tokens are what models are given, if they are given any; those that go on after them.

    Of documents that is so whether or not texts are measured to their ends: a prompt holds none.

    Raises InputError: fewer than FEWEST do.
    """
    given, end_id = config.prompt_tokens, opened.network.config.end_id if texts.end_id is None else texts.end_id
    if given is None:
        return texts
    if end_id is not None:
        longer = np.flatnonzero(lengths(texts.tokens, end_id) > given)
        if len(longer) < FEWEST:
            raise InputError(f"prompt_tokens: {len(longer)} of {count(len(texts.tokens), 'held-out text')} have more than "
                             f"{count(given, 'token')}; give fewer, or more text with --corpus")
        texts = replace(texts, tokens=texts.tokens[longer], texts=[texts.texts[row] for row in longer])
    return begun(texts, np.full(len(texts.tokens), given), opened.vocabulary)


def _real_identity(config: EvaluateConfig, opened: ModelFolder[Denoiser], progress: Progress) -> Identity:
    prompted = {} if config.prompt_tokens is None else {PROMPTS: config.prompt_tokens}
    return {**_identity(config, config.corpus, opened, progress), **prompted}


def other_real_texts(config: EvaluateConfig, opened: ModelFolder[Denoiser], progress: Progress) -> CorpusTexts:
    """Held-out texts as long as a model's that `real_texts` does not have, as many or all that there are, evenly spaced."""
    corpus, extent, end_id = config.corpus, extent_of(config, opened), opened.network.config.end_id

    def make() -> Samples:
        stream, length = held_out_stream(corpus, opened.vocabulary, progress), extent.length
        documents = None if end_id is None else Documents(stream, end_id, length)
        others = others_of(stream, length, config.samples) if documents is None else documents.others(config.samples)
        if len(others) < FEWEST:
            whole = len(stream) // length if documents is None else len(documents)
            raise InputError(f"--distances: the held-out text has {count(whole, 'text')} of {length} tokens, and real text's "
                             f"own {config.samples} leave {len(others)} to compare with; give -n {max(2, whole // 2)} or less, "
                             "or more text with --corpus")
        return _after_prompts(config, of_tokens(others.numpy(), opened.vocabulary, extent.end_id), opened)

    identity = {**_real_identity(config, opened, progress), "others": True}
    return _named(corpus.path, f"corpus {corpus.path}, other texts", None, identity, opened, make)


def file_texts(config: EvaluateConfig, opened: ModelFolder[Denoiser], progress: Progress) -> CorpusTexts:
    """Texts of a file as a model's texts lie, windows or documents, evenly spaced over it; of less text than one, all of it.

    The file is read as a corpus is: documents, of which each is followed by the token that ends a text.
    """
    extent = extent_of(config, opened)
    corpus = CorpusConfig(path=config.text or "", text_field=config.corpus.text_field)

    def make() -> Samples:
        tokens = torch.from_numpy(opened.vocabulary.stream(read_documents(corpus, Reading(progress))))
        shorter = replace(extent, length=min(extent.length, len(tokens))) if extent.end_id is None else extent
        return _spread(tokens, shorter, opened, config.samples)

    identity = {**_identity(config, corpus, opened, progress), "whole": True}
    return _named(corpus.path, f"text {corpus.path}", None, identity, opened, make)


def naive_texts(config: EvaluateConfig, opened: ModelFolder[Denoiser], progress: Progress) -> Iterator[CorpusTexts]:
    """Texts of every naive sampler, as long as a model's; the corpus is not tokenised before one is made."""
    extent, same = extent_of(config, opened), _identity(config, config.corpus, opened, progress)

    @cache
    def samplers() -> dict[str, Sampler]:
        return dict(naive_samplers(training_stream(config.corpus, opened.vocabulary, progress), opened.vocabulary.size))

    for number, name in enumerate(NAIVE):
        def make(name: str = name, number: int = number) -> Samples:
            random = np.random.default_rng([config.seed, number])
            return of_tokens(samplers()[name](config.samples, extent.length, random), opened.vocabulary, extent.end_id)

        identity = {**same, "naive": name, "part": config.corpus.part, "seed": config.seed}
        yield _named(name, f"naive {name}", config.seed, identity, opened, make)


def corpus_identity(corpus: CorpusConfig, progress: Progress = unheard) -> Identity:
    """Which text a corpus is now, whatever part of it is asked for. It is read, if it was not before. Raises as `prepare`."""
    return {"corpus": corpus.path, "text_field": corpus.text_field, "sha256": corpus_sha256(corpus, progress),
            **({} if corpus.path in NAMED else {"clean": corpus.clean})}


def _identity(config: EvaluateConfig, corpus: CorpusConfig, opened: ModelFolder[Denoiser], progress: Progress) -> Identity:
    extent, texts = extent_of(config, opened), opened.network.config.texts
    return {**corpus_identity(corpus, progress), "vocabulary": opened.vocabulary.fingerprint,
            "length": extent.length, "samples": config.samples, **({} if extent.end_id is None else {"end_id": extent.end_id}),
            **({} if texts == "packed" else {"texts": texts})}


def _named(name: str, label: str, seed: int | None, identity: Identity, opened: ModelFolder[Denoiser],
           make: Callable[[], Samples]) -> CorpusTexts:
    return CorpusTexts(name, opened.vocabulary.fingerprint, opened.network.config.texts, identity,
                       {"model": label, "steps": None, "temperature": None, "seed": seed}, make)
