"""How well a compass tells real states from a teacher's: the area under the ROC curve."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.pipeline.training.contrast.loss import NoiseContrast
from tsdfm.schemas.optim import HELD_OUT_AUC
from tsdfm.schemas.training_record import Separation

TIME_BINS = 8
LATE = 0.5  # the time from which a line of progress sums up the bins: before it there is little to see
LINE_TEXTS = 32  # pairs of each bin, for a line of progress
AT_ONCE = 64  # states


@torch.no_grad()
def auc_per_bin(model: NceEncoder, text: Tensor, states: Tensor) -> list[Separation]:
    """Area under the ROC curve of real text [n, L] against teacher states [R, N, L], in up to TIME_BINS bins of t.

    Real texts are noised as the training noises them (see `loss`), always alike; `model` is in eval mode.
    """
    generator = torch.Generator().manual_seed(0)
    steps, contrast = states.shape[1], NoiseContrast(model, states)
    result = []
    for part in torch.arange(steps).tensor_split(min(TIME_BINS, steps)):
        picked = part[torch.randint(len(part), (len(text),), generator=generator)]
        rows = contrast.pair(text, picked, generator)
        real, t = rows.noised()
        result.append(Separation(t_from=float(part[0] + 1) / steps, t_to=float(part[-1] + 1) / steps,
                                 auc=auc(_logits(model, real, t), _logits(model, rows.tokens, t))))
    return result


def scalars_of(bins: list[Separation]) -> dict[str, float]:
    """The AUC of each bin under its name, and under HELD_OUT_AUC their mean over those that begin at LATE or after.

    Where the grid is so coarse that none does: of the last.
    """
    late = [each.auc for each in bins if each.t_from >= LATE] or [bins[-1].auc]
    each_bin = {f"{HELD_OUT_AUC}_{each.t_from:.2f}-{each.t_to:.2f}": each.auc for each in bins}
    return {HELD_OUT_AUC: sum(late) / len(late), **each_bin}


def auc(positive: npt.NDArray[np.floating], negative: npt.NDArray[np.floating]) -> float:
    """P(positive > negative) + P(equal)/2 over all pairs (the Mann-Whitney statistic); 1-d arrays, by sorting."""
    order = np.sort(negative)
    below, up_to = (np.searchsorted(order, positive, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(negative)))


def _logits(model: NceEncoder, states: Tensor, t: Tensor) -> npt.NDArray[np.floating]:
    device = next((parameter.device for parameter in model.parameters()), states.device)
    return torch.cat([model(x.to(device), time.to(device)).cpu() for x, time in _parts(states, t)]).numpy()


def _parts(states: Tensor, t: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(states.split(AT_ONCE), t.split(AT_ONCE), strict=True)
