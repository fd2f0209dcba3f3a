"""A model that is asked in texts: how likely is this after that, and what do you write after that?

Texts become tokens in the Unicode form of all training text (NFC), a continuation together with what stands before it, so
that a word is spelled as it is in a text. Blanks at the end of a context belong to the continuation, whose first token mostly
begins with one. Before a text that begins with nothing stands the end of another, as in training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from unicodedata import normalize

import torch

from tsdfm.pipeline.evaluation.harness.conditional import Conditional
from tsdfm.pipeline.flow.noise import Use
from tsdfm.pipeline.flow.prompts import FREE
from tsdfm.pipeline.flow.rollout import roll_out_blind
from tsdfm.pipeline.models.folder import load_model
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError
from tsdfm.schemas.generate import RolloutConfig
from tsdfm.schemas.lm_eval import HarnessConfig


@dataclass(frozen=True)
class Wanted:
    """A continuation that is wanted: after which text, up to the first of which strings, of how many tokens at the most."""

    context: str
    until: tuple[str, ...] = ()
    most: int | None = None  # None: as many as the model's texts have room for
    temperature: float | None = None  # None: the config's


class Prompted:
    """A model by name, asked in texts; on a GPU if there is one."""

    def __init__(self, config: HarnessConfig) -> None:
        """Raises InputError: no such model."""
        opened = load_model(config.model)
        self.config, self.vocabulary, self.network = config, opened.vocabulary, opened.network
        self.network.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    def log_likelihood(self, context: str, continuation: str) -> tuple[float, bool]:
        """The bound on log p(continuation | context) in nats, and whether the model would write it by being greedy.

        Raises InputError: a model that has no such bound, or nothing to score.
        """
        given, tokens = self._divided(context, continuation)
        conditional = self._conditional()
        return conditional.log_likelihood(given, tokens), conditional.is_greedy(given, tokens)

    def log_likelihood_of(self, text: str) -> float:
        """The bound on log p(text) in nats; 0 of an empty one. Raises InputError: a model that has no such bound."""
        return self._conditional().log_likelihood([self.vocabulary.eos_id], self._encode(text))

    def write(self, wanted: Sequence[Wanted]) -> list[str]:
        """A continuation of each: sampled as `tsdfm-pipeline sample --prompt` does it, and cut where it ends."""
        texts = [""] * len(wanted)
        for temperature in dict.fromkeys(each.temperature for each in wanted):
            mine = [number for number, each in enumerate(wanted) if each.temperature == temperature]
            for first in range(0, len(mine), self.config.batch_size):
                ids = mine[first : first + self.config.batch_size]
                for number, text in zip(ids, self._written(ids, [wanted[each] for each in ids]), strict=True):
                    texts[number] = text
        return texts

    def _written(self, ids: Sequence[int], wanted: Sequence[Wanted]) -> list[str]:
        length, patterns, begins = self.network.config.length, [], []
        for each in wanted:
            most = min(each.most or length // 2, length - 1)
            given = (self._encode(each.context) or [self.vocabulary.eos_id])[-(length - most):]
            patterns.append([*given, *[FREE] * (length - len(given))])
            begins.append((len(given), len(given) + (each.most or length)))
        rollout = RolloutConfig(steps=self.config.steps, seed=self.config.seed,
                                temperature=wanted[0].temperature or self.config.temperature)
        logs = roll_out_blind(self.network, rollout, ids, Use.MEASURE, torch.tensor(patterns))
        return [_cut(log.tokens[begin:end].tolist(), each.until, self.vocabulary)
                for log, (begin, end), each in zip(logs, begins, wanted, strict=True)]

    def _conditional(self) -> Conditional:
        config = self.config
        if self.network.config.mask_id is None:
            raise InputError(f"{config.model}: a model of the uniform source has no likelihood given a context; give one "
                             "of the mask source, or tasks that have it write")
        return Conditional(self.network, config.samples, config.batch_size, config.seed)

    def _divided(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of a context, never none, and of a continuation."""
        bare = context.rstrip()
        continuation = context[len(bare):] + continuation
        given, whole = self._encode(bare), self._encode(bare + continuation)
        # A token may reach over the seam; then each side is spelled by itself.
        tokens = whole[len(given):] if whole[: len(given)] == given else self._encode(continuation)
        if not tokens:
            raise InputError(f"{continuation!r:.40}: is no token of the model; give a task whose continuations are words")
        return given or [self.vocabulary.eos_id], tokens

    def _encode(self, text: str) -> list[int]:
        return self.vocabulary.encode([normalize("NFC", text)])[0] if text else []


def _cut(tokens: list[int], until: Sequence[str], vocabulary: Vocabulary) -> str:
    """A text up to its end, or to the first string that ends it."""
    if vocabulary.eos_id in tokens:
        tokens = tokens[: tokens.index(vocabulary.eos_id)]
    text = vocabulary.decode(tokens)
    return text[: min((text.index(each) for each in until if each and each in text), default=len(text))]
