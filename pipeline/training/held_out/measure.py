"""What a student has learnt, on trajectories that it does not learn from: its loss, and its share of the compass's selection.

**The share.** At a jump K candidates c_k were drawn from the proposal p_0, the teacher at the temperature of the rollout, and
the compass would weigh them by w = softmax(-beta E). A student that has taken over all of the selection prefers them likewise,
beyond how likely they were drawn: softmax_k(log q(c_k) - log p_0(c_k)) = w. A whole candidate c_k is all tokens that were
chosen together, and its log-probability the sum of theirs. With the divergence KL = sum_k w_k log(w_k / softmax_k(...)),

    share = 1 - sum KL / sum (log K - H(w)),

over all jumps at which the candidates were scored, H the entropy. It is 0 for whoever draws as the proposal does, 1 for the
full tilt, and below 0 for whoever prefers what the compass does not. It needs no sampling, and no more than the candidates and
energies that every shaped dataset holds. Windows are those of the finest step budget that is trained.

**Beside it, a cooler teacher's.** What is likely under the teacher is mostly likely under the compass, too, so the teacher by
itself, at a temperature below that of the rollout, carries a share without having learnt anything. The largest such share, of
the temperatures of `COOLING`, is what a student has to exceed before its share is of the compass and not of dullness.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tsdfm.pipeline.loader.batches import Reader, ReaderSettings
from tsdfm.pipeline.loader.windows import Batch
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.training.loop.trainer import finite
from tsdfm.pipeline.training.objectives import StudentLoss, candidate_logprobs, listwise, of_choices, possible
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.optim import HELD_OUT_LOSS
from tsdfm.schemas.training_record import HeldOutFacts

SHARE, COOLED = "held_out/share", "held_out/share_cooled"  # among the scalars of a training
COOLING = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)  # temperatures of the start, in multiples of the proposal's
MOST = 256  # windows
AT_ONCE = 32  # windows


class HeldOut:
    """Measures a student on windows of held-out trajectories, the same each time.

    Args:
        config: of the distillation; its data hold some trajectories out.
        budgets: the step budgets that are trained, and how often each.
        begun: the student as it was before its first update.
        temperature: at which `begun` is the proposal of the data, so that the share can be told; None: at none.

    Raises InputError if a shard is missing, changed or unsound.
    """

    def __init__(self, config: DistillConfig, budgets: dict[int, float], begun: Denoiser, temperature: float | None) -> None:
        settings = ReaderSettings(objective=config.objective, beta=config.beta, budgets=budgets, seed=config.optim.seed)
        self.objective, self.event_weight, self.alike = config.objective, config.event_weight, config.alike
        self.windows = _windows(config, settings)
        self.choices, self.proposal, self.cooled = None, list[Tensor](), 0.0
        if temperature is not None:
            self.choices = _windows(config, replace(settings, objective="candidates", budgets={max(budgets): 1.0}))
            with torch.no_grad():
                by_temperature = [self._logprobs(begun, self.choices, temperature * factor) for factor in COOLING]
            self.proposal = by_temperature[0]
            self.cooled = max(self._share(each, self.choices) for each in by_temperature)

    @torch.no_grad()
    def __call__(self, student: Denoiser) -> dict[str, float]:
        """The mean loss in nats, taken as the training's own; and the share, where it can be told."""
        found = {HELD_OUT_LOSS: self._loss(student)}
        if self.choices is not None:
            found |= {SHARE: self._share(self._logprobs(student, self.choices), self.choices), COOLED: self.cooled}
        return found

    def facts(self, student: Denoiser, updates: int, folder: Path) -> HeldOutFacts:
        """The same for a student's record; `updates`: those that it has learnt from, `folder`: of the training state.

        Raises WorkError if a figure is not finite.
        """
        found = {name: finite(name, value, updates, folder) for name, value in self(student).items()}
        return HeldOutFacts(trajectories=len(self.windows), updates=updates, loss=found[HELD_OUT_LOSS], share=found.get(SHARE),
                            cooled=found.get(COOLED))

    def _loss(self, student: Denoiser) -> float:
        loss, nats, targets = StudentLoss(student, self.objective, self.event_weight), 0.0, 0.0
        for part in _parts(self.windows, student):
            each, counts = loss(part).double().sum(1), (part.target >= 0).sum(1)
            if self.alike:
                each, counts = each / counts.clamp_min(1), (counts > 0).long()
            nats, targets = nats + float(each.sum()), targets + float(counts.sum())
        return nats / max(targets, 1.0)

    @staticmethod
    def _logprobs(student: Denoiser, choices: Batch, temperature: float = 1.0) -> list[Tensor]:
        """Of the scored candidates of each part, at a temperature."""
        return [candidate_logprobs(student, part, _scored(part), temperature) for part in _parts(choices, student)]

    def _share(self, logprobs: list[Tensor], choices: Batch) -> float:
        missed, all_there_is = 0.0, 0.0
        for start, found, proposal in zip(range(0, len(choices), AT_ONCE), logprobs, self.proposal, strict=True):
            part = choices.rows(slice(start, start + AT_ONCE)).to(found.device)
            ratios, weights, _ = of_choices(part, _scored(part), found - proposal)
            missed += float(listwise(ratios, weights).double().sum())
            all_there_is += float(possible(weights).double().sum())
        return 1 - missed / all_there_is if all_there_is else 0.0


def _windows(config: DistillConfig, settings: ReaderSettings) -> Batch:
    """One window of each held-out trajectory, of MOST of them at the most."""
    data = config.data.model_copy(update={"loader_workers": 0, "weights": None})  # by which some would be drawn more than once
    rows = Reader.open_held_out(data, settings).rows_per_epoch
    return Reader.open_held_out(data, replace(settings, batch_size=min(rows, MOST))).batch(0)


def _parts(windows: Batch, student: Denoiser) -> Iterator[Batch]:
    device = student.head.weight.device
    return (windows.rows(slice(start, start + AT_ONCE)).to(device) for start in range(0, len(windows), AT_ONCE))


def _scored(part: Batch) -> Tensor:
    """Where the candidates of a jump differ, as they do where they were scored, [B, L] bool."""
    assert part.candidates is not None
    return (part.target >= 0) & (part.candidates != part.candidates[..., :1]).any(-1)
