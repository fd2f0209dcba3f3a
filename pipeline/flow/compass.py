"""The energy compass: scores of candidate states, lower meaning more coherent.

All energies are in nats per token (divided by L), and score the same positions of every candidate of a set, so that they
compare like with like. They are rounded to 1/1024 nat before any choice: what is stored is exactly what was chosen by.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from tsdfm.kernels.linear_logprob import linear_logprob, summed_nll
from tsdfm.pipeline.models.causal import CausalLM
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.schemas.base import WorkError

ENERGY_RESOLUTION = 2.0**-10  # nat; far below what tells candidates apart (about 0.1), and a third fewer bytes on disk
SUFFIX_TOKENS = 1024  # tokens of one suffix batch of the `ar` compass: small batches waste less on rows that differ later
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


def complete(states: Tensor, completion: Tensor | None) -> Tensor:
    """Fill unresolved positions: states [B, K, L] with completion [B, L] where that is not -1."""
    if completion is None:
        return states
    return torch.where(completion[:, None] >= 0, completion[:, None], states)


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
        # flat: [B K, L], the candidates of a trajectory in a row
        logits: Tensor = self.network(states.flatten(0, 1), t.float().repeat_interleave(candidates))
        return -logits.view(batch, candidates) / length


class CausalCompass:
    """E = mean negative log-likelihood of the completed candidate under a causal LM.

    Cheap by three exact savings: equal candidates are scored once; candidate 0 is scored whole and its keys and values are
    kept; every other candidate is run only from the first position where it differs, on top of that cache.
    """

    needs_completion = True
    proposal_weight = 1.0

    def __init__(self, network: CausalLM) -> None:
        self.network = network

    def energy(self, states: Tensor, t: Tensor, completion: Tensor | None) -> Tensor:
        """See `Compass.energy`."""
        texts = complete(states, completion)
        _, candidates, length = texts.shape
        hidden, cache = self.network.hidden(self.network.inputs(texts[:, 0]))
        nll = self._nll(hidden, texts[:, 0])
        # before: [B, L + 1], candidate 0's summed NLL of the first i tokens
        before = F.pad(nll.double().cumsum(-1), (1, 0))
        total = before[:, -1:].repeat(1, candidates)
        first = first_of_equals(texts)
        row, candidate = torch.nonzero(first == torch.arange(candidates, device=texts.device), as_tuple=True)
        row, candidate = row[candidate > 0], candidate[candidate > 0]
        differs = (texts[row, candidate] != texts[row, 0]).int().argmax(-1)
        order = differs.argsort(descending=True, stable=True)
        while len(order):
            start, order, chunk = self._chunk(order, differs, length)
            rows, which = row[chunk], candidate[chunk]
            tokens = texts[rows, which]
            inputs = self.network.inputs(tokens)[:, start:]
            past = cache.prefix(rows, start) if start else None
            suffix = self._nll(self.network.hidden(inputs, past)[0], tokens[:, start:])
            total[rows, which] = before[rows, start] + suffix.double().sum(-1)
        return (total.gather(1, first) / length).float()

    @staticmethod
    def _chunk(order: Tensor, differs: Tensor, length: int) -> tuple[int, Tensor, Tensor]:
        """Take rows of similar first difference off the front: (the least of them, the rest, the taken)."""
        starts = differs[order]
        tokens = (length - starts) * torch.arange(1, len(order) + 1, device=order.device)
        count = max(1, int((tokens <= SUFFIX_TOKENS).sum()))
        return int(starts[count - 1]), order[count:], order[:count]

    def _nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        flat = linear_logprob(hidden.flatten(0, 1), self.network.head_weight, None, targets.flatten())
        return -flat.view(targets.shape)


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
        texts = complete(states, completion).flatten(0, 1)
        total = torch.zeros(batch * candidates, dtype=torch.float64, device=texts.device)
        mask_id = self.network.config.mask_id
        for parity in (0, 1) if mask_id is not None else (None,):
            scored = torch.ones(length, dtype=torch.bool, device=texts.device)
            if parity is not None:
                scored = torch.arange(length, device=texts.device) % 2 == parity
            for start in range(0, len(texts), SUFFIX_TOKENS // length + 1):
                part = texts[start : start + SUFFIX_TOKENS // length + 1]
                seen = part if mask_id is None else part.masked_fill(scored, mask_id)
                hidden = self.network.hidden(seen, torch.full((len(part),), PSEUDO_TIME, device=part.device))
                weights = scored.float().expand(part.shape)
                total[start : start + len(part)] += summed_nll(
                    hidden, self.network.head.weight, self.network.head.bias, part, scored=weights).double()
        return (total / length).view(batch, candidates).float()
