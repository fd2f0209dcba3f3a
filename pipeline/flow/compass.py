"""The energy compass: scores of candidate states, lower meaning more coherent.

All energies are in nats per token (divided by L), and score the same positions of every candidate of a set, so that they
compare like with like. They are rounded to 1/1024 nat before any choice: what is stored is exactly what was chosen by.

Of a model of padded texts `ar`, `contrast` and `denoiser` score those positions that were written in all candidates of a set:
up to the end of the shortest, that included. They are divided by their number. So each energy is a mean over written tokens, a
candidate that ends is weighed against what others have in the end's place, and none is preferred for being shorter or longer.
`nce` scores states whole, as it was fitted to, with padding behind an end.

For the choice by token a compass scores single tokens: the candidates of one position in the text as it stands. Such *token
energies* are in nats, not divided by L, and rounded to 1/128. A token that has e nats more than another adds e / L nats per
token to the text's energy, as far as the compass judges a text token by token.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from tsdfm.kernels.linear_logprob import linear_logprob, linear_logprobs, summed_nll
from tsdfm.pipeline.models.causal import CausalLM, ContrastLM
from tsdfm.pipeline.models.computing import AtOnce, at_once
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.pipeline.text.ends.written import lengths, padded_state
from tsdfm.schemas.base import WorkError

ENERGY_RESOLUTION = 2.0**-10  # nat; far below what tells candidates apart (about 0.1), and a third fewer bytes on disk
TOKEN_RESOLUTION = 2.0**-7  # nat, of token energies, of which a nat tells tokens apart
PSEUDO_TIME = 0.5  # t at which the denoiser's pseudo-likelihood is taken


@runtime_checkable
class Compass(Protocol):
    """Anything that scores candidates.

    `needs_completion`: whether `energy` wants the teacher's argmax at positions not yet resolved. `proposal_weight`: what
    multiplies the proposal's summed log-probability in the residual form: E + weight/L * sum log q (0 if the energy is
    already a ratio to the teacher). A compass that has limits may say so in two further attributes, whole numbers: `positions`,
    the longest text L that it can score, and `vocab_size`, above all ids that it takes. Then what it can't score is refused
    before anything is made.
    """

    needs_completion: bool
    proposal_weight: float

    def energy(self, states: Tensor, t: Tensor, completion: Tensor | None) -> Tensor:
        """Score K candidates of B trajectories.

        Args:
            states: [B, K, L] int64, the candidate states.
            t: [B], the time of those states.
            completion: [B, L] int64, the teacher's argmax where a position is unresolved in all candidates, -1 elsewhere.

        Returns:
            [B, K] float32, nats per token.
        """


@dataclass(frozen=True)
class TokenSets:
    """R positions of B texts, and K tokens that may stand at each: owner [R] (which text), positions [R], tokens [R, K]
    int64.
    """

    owner: Tensor
    positions: Tensor
    tokens: Tensor


@runtime_checkable
class TokenCompass(Compass, Protocol):
    """A compass that scores single tokens, too."""

    def token_energy(self, states: Tensor, t: Tensor, completion: Tensor | None, sets: TokenSets) -> Tensor:
        """Score K tokens at each of R positions, each by itself: everything else of its text stays as it is.

        Args:
            states: [B, L] int64, the states.
            t: [B], their time.
            completion: [B, L] int64, as of `energy`.
            sets: positions and tokens.

        Returns:
            [R, K] float32, nats; of a position only differences between its tokens mean anything.
        """


EnergyFunction = Callable[[Tensor, Tensor], Tensor]  # (states [B, K, L] int64, t [B]) -> energies [B, K], nats per token


class FunctionCompass:
    """A function of (states, t) as a compass: anybody's idea of which text is coherent."""

    needs_completion = False
    proposal_weight = 1.0

    def __init__(self, function: EnergyFunction) -> None:
        self.function = function

    def energy(self, states: Tensor, t: Tensor, completion: Tensor | None) -> Tensor:
        """See `Compass.energy`. Raises WorkError if the function gives something else than [B, K] finite numbers."""
        found = self.function(states, t).float()
        if found.shape != states.shape[:2] or not bool(found.isfinite().all()):
            raise WorkError(f"the compass {name_of(self.function)} gave energies of shape {tuple(found.shape)}, or some that "
                            f"are not finite; it must give one finite number for each of {tuple(states.shape[:2])} candidates")
        return found


def name_of(compass: object) -> str:
    """How messages and fingerprints name somebody's compass: the module and name of its function or class."""
    named = compass if hasattr(compass, "__qualname__") else type(compass)
    return f"{named.__module__}.{named.__qualname__}"


def quantise(energy: Tensor) -> Tensor:
    """Round to ENERGY_RESOLUTION."""
    return (energy / ENERGY_RESOLUTION).round() * ENERGY_RESOLUTION + 0.0  # + 0.0 turns -0.0 into 0.0


def quantise_tokens(energy: Tensor) -> Tensor:
    """Round to TOKEN_RESOLUTION."""
    return (energy / TOKEN_RESOLUTION).round() * TOKEN_RESOLUTION + 0.0


def complete(states: Tensor, completion: Tensor | None) -> Tensor:
    """Fill unresolved positions: states [B, K, L] with completion [B, L] where that is not -1."""
    if completion is None:
        return states
    return torch.where(completion[:, None] >= 0, completion[:, None], states)


def scored_length(texts: Tensor, end_id: int | None) -> Tensor:
    """How many positions of sets of candidates are scored: texts [B, K, L] -> [B] int64, L where texts have no end (None)."""
    if end_id is None:
        return torch.full(texts.shape[:1], texts.shape[-1], device=texts.device)
    return lengths(texts, end_id).amin(1)


def first_of_equals(states: Tensor) -> Tensor:
    """For each candidate the lowest index of a candidate equal to it: [B, K, L] -> [B, K]."""
    same = (states[:, :, None] == states[:, None]).all(-1)
    return same.int().argmax(-1)


class NceCompass:
    """E = -logit of the encoder: minus the log density ratio of real to teacher states at time t, per token."""

    needs_completion = False
    proposal_weight = 0.0

    def __init__(self, network: NceEncoder) -> None:
        self.network = network

    def energy(self, states: Tensor, t: Tensor, completion: Tensor | None) -> Tensor:
        """See `Compass.energy`."""
        batch, candidates, length = states.shape
        trunk = self.network.config.trunk
        states = padded_state(states, trunk.end_id, trunk.mask_id)
        # flat: [B K, L], the candidates of a trajectory in a row
        logits: Tensor = self.network(states.flatten(0, 1), t.float().repeat_interleave(candidates))
        return -logits.view(batch, candidates) / length


class CausalCompass:
    """E = mean negative log-likelihood of the completed candidate under a causal LM.

    Cheap by three exact savings: equal candidates are scored once; candidate 0 is scored whole and its keys and values are
    kept; every other candidate is run only from the first position where it differs, on top of that cache.

    A token energy is -log p(token | the completed text before it): one pass over a text gives those of all of its positions.
    What a token does to the text after it is not in there.
    """

    needs_completion = True
    proposal_weight = 1.0

    def __init__(self, network: CausalLM, end_id: int | None = None) -> None:
        self.network, self.end_id = network, end_id

    def energy(self, states: Tensor, t: Tensor, completion: Tensor | None) -> Tensor:
        """See `Compass.energy`."""
        texts = complete(states, completion)
        _, candidates, length = texts.shape
        size = scored_length(texts, self.end_id)
        counted = torch.arange(length, device=texts.device) < size[:, None]
        hidden, cache = self.network.hidden(self.network.inputs(texts[:, 0]))
        nll = self._nll(hidden, texts[:, 0]) * counted
        # before: [B, L + 1], candidate 0's summed NLL of the first i tokens
        before = F.pad(nll.double().cumsum(-1), (1, 0))
        total = before[:, -1:].repeat(1, candidates)
        first = first_of_equals(texts)
        numbers = torch.arange(candidates, device=texts.device)
        # differs: [B, K], where a candidate first differs from candidate 0; -1 for those that equal an earlier one
        differs = (texts != texts[:, :1]).int().argmax(-1).masked_fill((first != numbers) | (numbers == 0), -1)
        order = differs.flatten().argsort(descending=True, stable=True)
        starts = [start for start in differs.flatten()[order].tolist() if start >= 0]  # the one thing that is read here
        for part in self._batches(starts, length, at_once(texts.device)):
            rows, which, start = order[part] // candidates, order[part] % candidates, starts[part.stop - 1]
            tokens = texts[rows, which]
            inputs = self.network.inputs(tokens)[:, start:]
            past = cache.prefix(rows, start) if start else None
            suffix = self._nll(self.network.hidden(inputs, past)[0], tokens[:, start:]) * counted[rows, start:]
            total[rows, which] = before[rows, start] + suffix.double().sum(-1)
        return (total.gather(1, first) / size[:, None]).float()

    def token_energy(self, states: Tensor, t: Tensor, completion: Tensor | None, sets: TokenSets) -> Tensor:
        """See `TokenCompass.token_energy`."""
        hidden, _ = self.network.hidden(self.network.inputs(complete(states[:, None], completion)[:, 0]))
        return -linear_logprobs(hidden[sets.owner, sets.positions], self.network.head_weight, None, sets.tokens)

    @staticmethod
    def _batches(starts: list[int], length: int, limits: AtOnce) -> Iterator[slice]:
        """Texts of `length` tokens, by the falling places that they are run from, in batches that are run from their least."""
        begin = 0
        for end in range(1, len(starts) + 1):
            texts = end - begin + 1  # with the next
            if end == len(starts) or (length - starts[end]) * texts > limits.suffix_tokens or texts > limits.suffix_texts:
                yield slice(begin, end)
                begin = end

    def _nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        flat = linear_logprob(hidden.flatten(0, 1), self.network.head_weight, None, targets.flatten())
        return -flat.view(targets.shape)


class ContrastCompass:
    """E = the energy of an `ar` compass, less that of another which was fitted to the teacher's texts.

    An estimate of -(log p_data(x) - log p_teacher(x)), nats per token: what both models find likely, dull text above all,
    counts for nothing (an expert less an amateur, as in contrastive decoding: Li et al. 2023, arXiv 2210.15097). `nce`
    estimates the same ratio by a classifier. Token energies are differences, too.
    """

    needs_completion = True
    proposal_weight = 0.0

    def __init__(self, network: ContrastLM, end_id: int | None = None) -> None:
        self.network = network
        self.text, self.teachers = CausalCompass(network.text, end_id), CausalCompass(network.teachers, end_id)

    def energy(self, states: Tensor, t: Tensor, completion: Tensor | None) -> Tensor:
        """See `Compass.energy`."""
        return self.text.energy(states, t, completion) - self.teachers.energy(states, t, completion)

    def token_energy(self, states: Tensor, t: Tensor, completion: Tensor | None, sets: TokenSets) -> Tensor:
        """See `TokenCompass.token_energy`."""
        return self.text.token_energy(states, t, completion, sets) - self.teachers.token_energy(states, t, completion, sets)


class DenoiserCompass:
    """E = the teacher's block pseudo-likelihood of the completed candidate (Besag 1975), per token.

    Mask source: even positions are scored with even positions masked, odd ones with odd ones masked. Uniform source: all
    positions are scored given all (a noise token is one the teacher would not keep).
    """

    needs_completion = True
    proposal_weight = 1.0

    def __init__(self, network: Denoiser) -> None:
        self.network = network

    def energy(self, states: Tensor, t: Tensor, completion: Tensor | None) -> Tensor:
        """See `Compass.energy`."""
        batch, candidates, length = states.shape
        texts, end_id = complete(states, completion), self.network.config.end_id
        size = scored_length(texts, end_id)
        counted = (torch.arange(length, device=texts.device) < size[:, None]).float().repeat_interleave(candidates, 0)
        texts = texts.flatten(0, 1)
        total = torch.zeros(batch * candidates, dtype=torch.float64, device=texts.device)
        mask_id, step = self.network.config.mask_id, at_once(texts.device).suffix_tokens // length + 1
        parts = (slice(0, None, 2), slice(1, None, 2)) if mask_id is not None else (slice(None),)
        for positions in parts:
            scored = torch.zeros(length, dtype=torch.bool, device=texts.device)
            scored[positions] = True
            count = len(range(length)[positions])
            for start in range(0, len(texts), step):
                part = texts[start : start + step]
                seen = part if mask_id is None else part.masked_fill(scored, mask_id)
                hidden = self.network.hidden(seen, torch.full((len(part),), PSEUDO_TIME, device=part.device))
                weights, head = scored * counted[start : start + len(part)], self.network.head
                known = len(part) * count if end_id is None else None  # else a GPU is waited for
                total[start : start + len(part)] += summed_nll(
                    hidden, head.weight, head.bias, part, scored=weights, count=known).double()
        return (total.view(batch, candidates) / size[:, None]).float()


class MaskedDenoiserCompass(DenoiserCompass):
    """The pseudo-likelihood of a teacher of the mask source, of which single tokens have a share, too.

    A token energy is the token's own term of it: -log p(token | the positions of the other parity), two passes a text. (With
    the uniform source a term depends on the very token that it scores, so that each would need a pass of its own.)
    """

    def token_energy(self, states: Tensor, t: Tensor, completion: Tensor | None, sets: TokenSets) -> Tensor:
        """See `TokenCompass.token_energy`."""
        texts = complete(states[:, None], completion)[:, 0]
        head, mask_id = self.network.head, self.network.config.mask_id
        assert mask_id is not None
        time = torch.full((len(texts),), PSEUDO_TIME, device=texts.device)
        odd = torch.arange(texts.shape[1], device=texts.device) % 2 == 1
        # hidden: [2, B, L, D], with the even positions masked, and with the odd ones
        hidden = torch.stack([self.network.hidden(texts.masked_fill(scored, mask_id), time) for scored in (~odd, odd)])
        rows = hidden[sets.positions % 2, sets.owner, sets.positions]
        return -linear_logprobs(rows, head.weight, head.bias, sets.tokens)


FittedCompass = NceCompass | CausalCompass | ContrastCompass  # has a network of its own, of a folder of `fit-compass`
