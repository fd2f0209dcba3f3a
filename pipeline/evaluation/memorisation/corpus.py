"""The training text of a corpus as n-grams: they may cross documents, as the texts of models do."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from tsdfm.pipeline.evaluation.measures.corpus_texts import corpus_identity
from tsdfm.pipeline.evaluation.memorisation.grams import GRAM, Hashes, gram_hashes
from tsdfm.pipeline.evaluation.sample_cache import Identity
from tsdfm.pipeline.text.token_file import Tokens
from tsdfm.schemas.corpus import CorpusConfig
from tsdfm.schemas.progress import Progress, unheard

AT_ONCE = 1 << 18  # tokens that are looked at together


@dataclass(frozen=True)
class TrainingText:
    """See `grams.Place`. `name`: the fingerprint of the vocabulary; `stream`: makes, or finds, its tokens."""

    name: str
    corpus: CorpusConfig
    stream: Callable[[Progress], Tokens]

    @cached_property
    def identity(self) -> Identity:
        """See `Place.identity`; the vocabulary is that of the texts."""
        return {"memorised": {**corpus_identity(self.corpus), "part": self.corpus.part, "gram": GRAM}}

    def hashes(self, progress: Progress = unheard) -> Iterator[Hashes]:
        """See `Place.hashes`; `progress` hears of the tokens."""
        stream = self.stream(progress)
        for start in range(0, len(stream), AT_ONCE):
            yield gram_hashes(stream[start : start + AT_ONCE + GRAM - 1].numpy())
            progress("looking for the texts in the corpus", min(start + AT_ONCE, len(stream)), len(stream), "tokens")
