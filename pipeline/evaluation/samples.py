"""Measure a generator by its texts: sample it blind, judge the samples, and count what perplexity does not see.

Perplexity alone rewards dull, repetitive text, so every row has unigram entropy, distinct-n and self-BLEU beside it, and the
fair comparison of two generators is at equal entropy, along the frontier that a sweep of the sampling temperature draws.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tsdfm.pipeline.evaluation.judge import Judge, Likelihood, Prefixes
from tsdfm.pipeline.evaluation.open_judge import open_judge
from tsdfm.pipeline.flow.noise import Use
from tsdfm.pipeline.flow.prompts import prompts_of, written
from tsdfm.pipeline.flow.rings.clocks import clocks_of
from tsdfm.pipeline.flow.texts.blocks import Extent, roll_out_blocks
from tsdfm.pipeline.models.computing import prepare
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import load_model
from tsdfm.pipeline.text.ends.written import has_ended, padded, text_of, written_of
from tsdfm.pipeline.text.metrics import BLEU_ORDER, character_bits, distinct_n, entropies, self_bleu, unigram_entropy
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError
from tsdfm.schemas.evaluate import EvaluateConfig, Measures, Perplexity, TextScore
from tsdfm.schemas.generate import RolloutConfig
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.reports import Prompted
from tsdfm.schemas.sample import SampleConfig

Int64 = npt.NDArray[np.int64]
UNKNOWN_SHARE, TOKENS_A_CHARACTER = 0.01, 1.5  # above these a judge can't read a text


@dataclass(frozen=True)
class Samples:
    """R texts of L tokens, and what they cost. Of real text `nfe` and `seconds` are None.

    end_id: the token at which they stop: nothing behind it counts, and it fills what is left. None: all L tokens count.
    """

    tokens: Int64  # [R, L]
    texts: list[str]
    nfe: Int64 | None  # [R], forward passes
    seconds: float | None
    vocabulary: str  # fingerprint of the tokenizer
    end_id: int | None = None
    given: Prefixes | None = None  # what they begin with, and is no figure's business; None: nothing

    @property
    def whole(self) -> Int64 | list[Int64]:
        """The tokens up to the end: [R, L], or of texts that stop what stands of each, its end included."""
        return self.tokens if self.end_id is None else written_of(self.tokens, self.end_id)

    @property
    def written(self) -> Int64 | list[Int64]:
        """All that counts: `whole`, or of texts that go on from something what stands after that."""
        if self.given is None:
            return self.whole
        return [row[start:] for row, start in zip(self.whole, self.given.tokens.tolist(), strict=True)]

    @property
    def written_texts(self) -> list[str]:
        """The texts after what was given."""
        if self.given is None:
            return self.texts
        return [text.removeprefix(begun) for text, begun in zip(self.texts, self.given.texts, strict=True)]

    @property
    def entropies(self) -> npt.NDArray[np.float64]:
        """The unigram entropy of each text, [R] bits."""
        return entropies(self.written)


@dataclass(frozen=True)
class Cell:
    """One row of the table that is to be made: a model at a step count and temperature, and what of it is there already."""

    config: EvaluateConfig
    model: str  # as named in the config
    fingerprint: str
    steps: int
    temperature: float
    samples: Samples | None
    patterns: Tensor | None  # [P, L] int64, the tokens of its prompts, -1 where it writes; they come with it
    judges: dict[str, str]  # those whose scores are lacking: name -> fingerprint


@dataclass(frozen=True)
class Wanted:
    """How long texts are, and P beginnings, [P, L] int64: tokens, then -1. Text r begins as r mod P says; None: as it likes."""

    extent: Extent
    patterns: Tensor | None = None


@dataclass(frozen=True)
class Made:
    """A cell that was made: its texts, the scores that were lacking, by judge, and on which device."""

    samples: Samples
    likelihoods: dict[str, Likelihood]
    device: str


def sample_texts(
    model: Denoiser, vocabulary: Vocabulary, rollout: RolloutConfig, number: int,
    progress: Progress = unheard, wanted: Wanted | None = None,
) -> Samples:
    """Sample trajectories 0..number-1 of a model without a compass, in batches of `rollout.batch_size`.

    A text's forward passes are the steps at which one of its clocks rings: the sampler visits no other, so they are at most
    min(N, L) for the mask source and N for the uniform one. The clock runs while batches are computed, decoding left out; a
    batch of one step goes before it, so that the first row of a process doesn't pay for warming up.

    Args:
        model: a denoiser in eval mode: a teacher, or a student, which is told the step size.
        vocabulary: the model's.
        rollout: steps, temperature, seed; the solver is `euler`, whose steps take one forward pass. `dtype` and `compile` are
            the caller's business: the model computes as it was prepared to.
        number: R >= 1.
        progress: called after each batch.
        wanted: how long texts are and what they begin with; None: of the model's length, or `rollout`'s, with no end, and all
            of them is written.
    """
    if rollout.solver != "euler":
        raise ValueError(f"forward passes are counted for solver 'euler' only, not '{rollout.solver}'")
    warm_up = range(min(rollout.batch_size, number))
    length = rollout.length or model.config.length
    extent, patterns = (wanted.extent, wanted.patterns) if wanted is not None else (Extent(length, length), None)
    roll_out_blocks(model, rollout.model_copy(update={"steps": 1}), warm_up, Use.MEASURE, extent.first)
    tokens, nfe, seconds = list[Int64](), list[Int64](), 0.0
    for start in range(0, number, rollout.batch_size):
        ids = range(start, min(start + rollout.batch_size, number))
        began = time.perf_counter()
        rolled = roll_out_blocks(model, rollout, ids, Use.MEASURE, extent, None if patterns is None else patterns[
            torch.tensor(ids) % len(patterns)])
        seconds += time.perf_counter() - began
        tokens.append(rolled.tokens)
        nfe.append(rolled.passes)
        progress("sampling texts", ids.stop, number)
    made = replace(of_tokens(np.concatenate(tokens), vocabulary, extent.end_id), nfe=np.concatenate(nfe), seconds=seconds)
    if patterns is None:
        return made
    return begun(made, (patterns >= 0).sum(1)[torch.arange(number) % len(patterns)].numpy(), vocabulary)


@dataclass(frozen=True)
class Written:
    """A text up to its end, and what of it was written to which prompt; None: all, to none.

    tokens: how many, given ones and its end included; ended: whether it did; None: texts don't stop at an end.
    """

    text: str
    prompted: Prompted | None
    tokens: int
    ended: bool | None


def sample(config: SampleConfig) -> list[str]:
    """Texts of a model by name, decoded: `number` of them, to each prompt if there are any. Else as `write`."""
    return [each.text for each in write(config)]


def write(config: SampleConfig, progress: Progress = unheard) -> list[Written]:
    """As `sample`, with what was given and what was written; on a GPU if there is one.

    `progress`: called before the first and after each batch, if there are several.

    Raises InputError: no such model, none so long, or prompts that it can't go on from.
    """
    prompts = prompts_of(config)
    opened = load_model(config.model)
    rollout, words = config.rollout, opened.vocabulary
    extent = Extent.of(
        opened.network.config, words, length=rollout.length, until=config.until, overlap=config.overlap)
    clocks_of(rollout, opened.network.config)
    total, patterns = config.number * max(1, len(prompts)), [each.fixed(words, extent.length) for each in prompts]
    if total >= 2**31:
        raise InputError(f"number: {config.number:,} texts to each of {len(prompts):,} prompts are too many; give fewer")
    prepare(opened.network, rollout.dtype, rollout.compile)
    opened.network.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    found = list[Written]()
    for start in range(0, total, rollout.batch_size):
        if total > rollout.batch_size:
            progress("sampling texts", start, total)
        ids = range(start, min(start + rollout.batch_size, total))
        fixed = torch.tensor([patterns[number // config.number] for number in ids]) if prompts else None
        rolled = roll_out_blocks(opened.network, rollout, ids, Use.MEASURE, extent, fixed)
        for number, text, size, ended in zip(ids, rolled.tokens, rolled.sizes.tolist(), rolled.ended.tolist(), strict=True):
            which, prompted = number // config.number, None
            shown: list[int] = text[: size - ended].tolist()
            if prompts:
                prompted = Prompted(prompt=prompts[which].text, written=written(shown, patterns[which], words))
            found.append(Written(words.decode(shown), prompted, size, None if extent.end_id is None else ended))
    if total > rollout.batch_size:
        progress("sampling texts", total, total)
    return found


def of_tokens(tokens: Int64, vocabulary: Vocabulary, end_id: int | None = None) -> Samples:
    """Samples of token rows [R, L], decoded; `end_id`: the token at which each stops."""
    tokens = tokens if end_id is None else padded(tokens, end_id)
    texts = [text_of(vocabulary, row, end_id) for row in tokens]
    return Samples(tokens, texts, None, None, vocabulary.fingerprint, end_id)


def begun(samples: Samples, given: Int64, vocabulary: Vocabulary) -> Samples:
    """The same samples, of which the first `given` [R] tokens were given."""
    texts = [vocabulary.decode(row[:count]) for row, count in zip(samples.tokens.tolist(), given.tolist(), strict=True)]
    return replace(samples, given=Prefixes(given, texts))


def measure(samples: Samples, judges: Sequence[Judge]) -> Measures:
    """All figures of some texts. Raises InputError: too few or too short, or unfit for a judge."""
    return summarise(samples, {judge.name: likelihood(samples, judge) for judge in judges})


def score(texts: Sequence[str], judges: Sequence[str] = ("embedded",)) -> dict[str, TextScore]:
    """What judges say of any texts: perplexity, never without the entropy and diversity of the tokens that it was taken over.

    Args:
        texts: at least one; of any lengths.
        judges: 'embedded', folders (of this project or of transformers), .gguf files, or hub:USER/NAME[@REVISION].

    Returns:
        By judge. All figures are over the judge's own tokens, so they compare with its others alone.

    Raises:
        InputError: no such judge, or texts that it can't score.
    """
    if isinstance(texts, str):
        raise InputError("texts: this is one text, whose letters would each be scored; give a list of texts")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {name: _scored(list(texts), open_judge(name, device)) for name in judges}


def _scored(texts: list[str], judge: Judge) -> TextScore:
    tokens = [np.asarray(each, dtype=np.int64) for each in judge.encode(texts)]
    found = _perplexity(judge.score_tokens(tokens))
    entropies = [float(unigram_entropy(each)) for each in tokens if len(each)]
    distinct = {f"distinct_{n}": distinct_n(tokens, n) if max(map(len, tokens)) >= n else None for n in (2, 4)}
    return TextScore(**dict(found), texts=len(texts), entropy_bits=float(np.mean(entropies)), **distinct)


def likelihood(samples: Samples, judge: Judge) -> Likelihood:
    """What one judge says of some texts. Raises InputError: unfit for the judge."""
    return judge.score(samples.whole, samples.texts, samples.vocabulary, samples.given)


def why_unfit(judge: Judge, samples: Samples, found: Likelihood) -> str | None:
    """Why a judge can't read some texts, which it scored as `found`; None: it seems to read them.

    A judge that reads decoded text can't if more than UNKNOWN_SHARE of its tokens are the one for what it doesn't know, or if
    it has more than TOKENS_A_CHARACTER tokens a character: it then spells characters in bytes that it has hardly seen. And one
    that reads at all predicts real text better than somebody who knows nothing but how often each character occurs in it, so a
    judge that doesn't, by its bits per character, is no judge of that language. (Samples may deserve such a score; of them only
    the first two are asked.)
    """
    texts, reasons = samples.written_texts, []
    characters = sum(map(len, texts))
    if characters and not judge.reads_tokens(samples.vocabulary):
        tokens = [token for ids in judge.encode(texts) for token in ids]
        unknown = tokens.count(judge.unknown) / max(1, len(tokens)) if judge.unknown is not None else 0.0
        if unknown > UNKNOWN_SHARE:
            reasons.append(f"{100 * unknown:.0f} % of its tokens are its unknown token")
        if len(tokens) > TOKENS_A_CHARACTER * characters:
            reasons.append(f"it has {len(tokens) / characters:.1f} tokens a character")
    if characters and samples.nfe is None:
        bits, by_frequency = found.nats.sum() / math.log(2) / characters, character_bits(texts)
        if bits >= by_frequency:
            reasons.append(f"{bits:.1f} bits a character, where the characters' frequencies alone give {by_frequency:.1f}")
    if not reasons:
        return None
    what = "these texts" if samples.nfe is not None else "real held-out text"
    return f"does not read {what} ({'; '.join(reasons)}): its perplexities mean little, give another --evaluator"


def summarise(samples: Samples, likelihoods: Mapping[str, Likelihood]) -> Measures:
    """All figures of texts that were judged, by the judges' names: of what stands after what was given, if anything was.

    Raises InputError: too few texts, or too short ones.
    """
    (rows, length), sequences = samples.tokens.shape, list(samples.written)
    sizes = [len(each) for each in sequences]
    if rows < 2 or max(sizes) < BLEU_ORDER:
        raise InputError(f"{rows} texts of {max(sizes)} tokens: self-BLEU needs at least 2 of {BLEU_ORDER}; give more texts, "
                         "or longer ones")
    entropy, stops, given = samples.entropies, samples.end_id is not None, samples.given
    return Measures(
        samples=rows, length=length, mean_length=sum(sizes) / rows if stops else None,
        ended=float(has_ended(samples.tokens, samples.end_id).mean()) if samples.end_id is not None else None,
        nfe=None if samples.nfe is None else float(samples.nfe.mean()), seconds=samples.seconds,
        given=None if given is None else float(given.tokens.mean()),
        tokens_per_second=sum(sizes) / samples.seconds if samples.seconds else None,
        entropy_bits=float(entropy.mean()), entropy_standard_error=float(entropy.std(ddof=1) / math.sqrt(rows)),
        distinct_2=distinct_n(sequences, 2), distinct_4=distinct_n(sequences, 4),
        self_bleu=self_bleu(samples.written), judges={name: _perplexity(each) for name, each in likelihoods.items()},
    )


def _perplexity(found: Likelihood) -> Perplexity:
    low, high = found.interval()
    return Perplexity(perplexity=found.perplexity, low=low, high=high, tokens=int(found.tokens.sum()),
                      in_windows=found.in_windows)
