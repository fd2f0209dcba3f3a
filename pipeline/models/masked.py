"""The trunk of a masked language model of the transformers library (BERT's family, ModernBERT), as a denoiser's.

Such a model guesses what a text's [MASK]s hide, and is not told how many there are: a denoiser of the mask source that is not
told the time. Its vocabulary head stands apart, as ours does: hidden states are what the library's model gives its output
embedding. A model saw its texts between special tokens in training, [CLS] and [SEP] say, so they are put around every text here
and belong to none. A student is told its step size by an embedding that is added to those of all tokens; it is zero at first.

The model is built from a plain config, of the library's own classes: nobody's code is run.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tsdfm.pipeline.models.layers import StepEmbedding
from tsdfm.pipeline.models.transformers import library, quiet
from tsdfm.schemas.base import InputError, first_line
from tsdfm.schemas.model import DenoiserConfig, MaskedConfig

WHAT = "masked language model"


class MaskedTrunk(nn.Module):
    """Tokens to hidden states, through a model of transformers whose head was taken out."""

    def __init__(self, model: Any, before: Sequence[int], after: Sequence[int], step_size: bool) -> None:
        """`before`, `after`: ids that are put around every text. `step_size`: whether it is told dt."""
        super().__init__()
        self.before, self.after, self.model = list(before), list(after), model
        width = model.get_input_embeddings().embedding_dim
        self.step_embedding = StepEmbedding(width) if step_size else None

    def forward(self, x_t: Tensor, t: Tensor, dt: Tensor | None = None, at: Tensor | None = None) -> Tensor:
        """x_t [B, L] int64, dt [B] in (0, 1] or None -> hidden [B, L, D]; the times t are not looked at.

        With `at` [R] int64, places in [0, B L): hidden [R, D] of these places (all are computed).
        """
        around = [x_t.new_tensor(ids).expand(len(x_t), -1) for ids in (self.before, self.after)]
        x = self.model.get_input_embeddings()(torch.cat([around[0], x_t, around[1]], 1))
        if self.step_embedding is not None and dt is not None:
            x = x + self.step_embedding(dt)[:, None].to(x.dtype)
        out: Tensor = self.model(inputs_embeds=x).logits
        hidden = out[:, len(self.before): len(self.before) + x_t.shape[1]]
        return hidden if at is None else hidden.flatten(0, 1).index_select(0, at)


def masked_trunk(config: DenoiserConfig, masked: MaskedConfig) -> MaskedTrunk:
    """The trunk of a config, its weights not yet drawn. Raises InputError: transformers has no such model."""
    model = built(masked.config)
    without_head(model)
    return MaskedTrunk(model, masked.before, masked.after, config.step_size)


def built(config: dict[str, Any]) -> Any:
    """The library's masked language model of a config.json, its weights not yet drawn. Raises InputError: there is none."""
    transformers = library(WHAT)
    try:
        with quiet(), _no_init_weights():
            return transformers.AutoModelForMaskedLM.from_config(
                transformers.AutoConfig.for_model(**config), trust_remote_code=False)
    except Exception as error:  # the library raises whatever a config makes it stumble over
        raise InputError(f"{WHAT}: transformers can't build the model that the config names ({first_line(error, 100)}); give a "
                         "whole config, or another version of transformers") from None


def _no_init_weights() -> contextlib.AbstractContextManager[None]:
    """No weight is drawn: all are those of a file, or of a teacher."""
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # before version 5
        from transformers.modeling_utils import no_init_weights
    context: contextlib.AbstractContextManager[None] = no_init_weights()
    return context


def without_head(model: Any) -> nn.Linear:
    """Take the output embedding out of a model, in place, so that its logits are what that would have been given.

    Returns the output embedding. Raises InputError: it has none.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise InputError(f"{WHAT}: {type(model).__name__} has no output embedding; give another model")
    take_out(model, head)
    return head


def take_out(model: Any, head: nn.Module) -> None:
    """Have a model pass on what it gave its part `head`, in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if child is head:
                setattr(module, name, nn.Identity())
                if getattr(module, "bias", None) is not None:  # BERT's family keeps the head's bias here, too
                    module.bias = None
