"""What a `contrast` compass begins with, and what is measured of it by finished texts.

Its energy is that of the `ar` compass less that of a copy which was fitted further to the teacher's texts.
"""

import torch
from torch import Tensor

from tsdfm.pipeline.flow.compass import ContrastCompass
from tsdfm.pipeline.models.causal import CausalLM, ContrastLM
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import EMBEDDED, ModelFolder, embedded, load
from tsdfm.pipeline.storage.hub.models import located
from tsdfm.pipeline.text.same_tokenizer import difference
from tsdfm.pipeline.training.contrast.separation import auc
from tsdfm.pipeline.training.losses import CausalNLL
from tsdfm.schemas.base import InputError
from tsdfm.schemas.optim import HELD_OUT_AUC
from tsdfm.schemas.train import CompassConfig

AT_ONCE = 64  # texts


def start_of(config: CompassConfig, teacher: ModelFolder[Denoiser]) -> ModelFolder[CausalLM]:
    """The `ar` compass of a config. Raises InputError: it is none, or not one for the teacher's texts."""
    name = config.start or EMBEDDED
    opened = load(embedded("compass") if name == EMBEDDED else located(name))
    if not isinstance(opened.network, CausalLM):
        raise InputError(f"start {name}: holds a model of kind '{opened.network.config.kind}'; give a folder of `fit-compass` "
                         "of kind 'ar'")
    other = difference(teacher.vocabulary.tokenizer, opened.vocabulary.tokenizer)
    if other is not None:
        raise InputError(f"start {name}: its tokenizer is not the teacher's ({teacher.path}): {other}; give an `ar` compass of "
                         f"this teacher, as `fit-compass --teacher {config.teacher} --out AR` makes one")
    length, longest = teacher.network.config.length, opened.network.config.length
    if longest < length:
        raise InputError(f"start {name}: was fitted to texts of {longest} tokens, the teacher's have {length}; give an `ar` "
                         "compass of this teacher")
    return ModelFolder(opened.network, opened.vocabulary, opened.fingerprint, opened.path)


class OfTexts:
    """What is measured of a pair of models by held-out text and texts of the teacher that are not learnt from, [n, L] each."""

    def __init__(self, pair: ContrastLM, text: Tensor, teachers: Tensor, end_id: int | None, device: torch.device) -> None:
        self.pair, self.text, self.teachers, self.end_id = pair.to(device), text, teachers, end_id
        self.device = device

    @torch.no_grad()
    def teachers_nats(self) -> float:
        """Of the teacher's texts by the model of them, per token that was written."""
        loss, rows = CausalNLL(self.pair.teachers.eval(), self.end_id), self.teachers.split(AT_ONCE)
        drawn = [loss.draw(part, torch.Generator()) for part in rows]
        return sum(float(loss(each.to(self.device)).double().sum()) for each in drawn) / sum(map(loss.count, drawn))

    @torch.no_grad()
    def auc(self) -> float:
        """Area under the ROC curve of text against the teacher's texts, by their energies."""
        compass = ContrastCompass(self.pair.eval(), self.end_id)
        likelier = [-torch.cat([compass.energy(part[:, None].to(self.device), torch.ones(len(part)), None)[:, 0].cpu()
                                for part in texts.split(AT_ONCE)]) for texts in (self.text, self.teachers)]
        return auc(likelier[0].numpy(), likelier[1].numpy())

    def scalars(self) -> dict[str, float]:
        """Of a line of progress."""
        return {HELD_OUT_AUC: self.auc()}
