"""The beginnings that a model's texts go on from in an evaluation: prompts of a file, or of held-out text its first tokens.

Text r goes on from prompt r mod P, of P prompts. What is measured is what was written after it, so prompts are beginnings only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tsdfm.pipeline.evaluation.measures.corpus_texts import corpus_identity, extent_of, real_texts
from tsdfm.pipeline.evaluation.sample_cache import key_of
from tsdfm.pipeline.flow.prompts import FREE, Given, Prompt, prompts_in
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import ModelFolder
from tsdfm.pipeline.text.metrics import BLEU_ORDER
from tsdfm.schemas.base import InputError
from tsdfm.schemas.evaluate import EvaluateConfig
from tsdfm.schemas.progress import Progress, unheard


@dataclass(frozen=True, eq=False)
class Beginnings:
    """The prompts of one model. `key`: a fingerprint of them; `free`: positions of a text that it writes, on average."""

    key: str
    free: float
    make: Callable[[], Tensor]

    @cached_property
    def patterns(self) -> Tensor:
        """Their tokens [P, L], FREE (-1) where the model writes; int64."""
        return self.make()


def read_prompts(config: EvaluateConfig) -> list[Prompt]:
    """The prompts of the config's file; none if it names none. Raises InputError, as `prompts_in` does."""
    return [] if config.prompts is None else prompts_in(config.prompts, config.prompt_field, gaps=False)


def beginnings(
    config: EvaluateConfig, prompts: Sequence[Prompt], opened: ModelFolder[Denoiser], progress: Progress = unheard
) -> Beginnings | None:
    """The prompts of a model, those of a file or as many tokens of held-out text as the config says; None: it wants none.

    Raises InputError: one that the model can't be given, or that leaves it too little to write.
    """
    length = extent_of(config, opened).length
    most = length - BLEU_ORDER
    if config.prompt_tokens is not None:
        wanted = config.prompt_tokens
        if wanted > most:
            raise InputError(f"prompt_tokens: {wanted} leave {max(0, length - wanted)} to write of a text of {length}, and at "
                             f"least {BLEU_ORDER} are measured; give up to {most}")
        key = key_of({"prompt_tokens": wanted, "samples": config.samples, **corpus_identity(config.corpus, progress)})
        return Beginnings(key, length - wanted, lambda: _held_out(config, opened, wanted, progress))
    if not prompts:
        return None
    used = prompts[: config.samples]
    given = Given.of(used, opened.vocabulary, length, 1)
    sizes = np.diff(given.offsets)
    if sizes.max() > most:
        raise InputError(f"{used[int(sizes.argmax())].where}: has {sizes.max()} tokens, of a text of {length}, and at least "
                         f"{BLEU_ORDER} after it are measured; shorten it")
    return Beginnings(given.facts(len(used)).sha256, given.free, lambda: given.fixed(range(len(used))))


def _held_out(config: EvaluateConfig, opened: ModelFolder[Denoiser], wanted: int, progress: Progress) -> Tensor:
    """The first tokens of the texts that `real_texts` measures, in their order."""
    patterns = torch.from_numpy(real_texts(config, opened, progress).make().tokens)
    return torch.where(torch.arange(patterns.shape[1]) < wanted, patterns, FREE)
