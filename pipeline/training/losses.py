"""Training losses on text, and held-out bounds: of the denoiser and the causal LM (of the NCE encoder: `contrast`).

Each is a module, so that data-parallel wrappers see its forward pass, and works on rows that are drawn for a whole batch before
they are divided: `draw` noises the batch, `count` says how many losses it has, and calling it gives them.

Of padded texts (a document each, then end tokens) nothing counts behind an end that the network sees: of a causal LM behind the
first, of a denoiser of the mask source behind one that stands in x_t. Behind one that is still masked, or that may be noise,
the token to be guessed is the end's: to write texts as long as these, a model must know how likely each has ended by then.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tsdfm.kernels.linear_logprob import linear_logprob, linear_logprobs
from tsdfm.pipeline.flow.mixture_path import MixturePath, stratified_times
from tsdfm.pipeline.flow.rings.clocks import noised_states
from tsdfm.pipeline.models.causal import CausalLM
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.text.ends.written import is_written

# t stays below 1 by this much: the generalised KL's weight kappa'/(1 - kappa) has a pole at t = 1, where nothing is noised.
TIME_MARGIN = 1e-3


@dataclass(frozen=True)
class TextRows:
    """Tokens of a batch, and states x_t at times t where the loss has some."""

    tokens: Tensor  # [B, L] int64
    x_t: Tensor | None = None  # [B, L] int64
    t: Tensor | None = None  # [B] float32

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, part: slice) -> "TextRows":
        """Those of `part`, views."""
        return self._each(lambda value: value[part])

    def to(self, device: torch.device) -> "TextRows":
        """The same on another device."""
        return self._each(lambda value: value.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "TextRows":
        return TextRows(change(self.tokens), *(None if value is None else change(value) for value in (self.x_t, self.t)))

    def noised(self) -> tuple[Tensor, Tensor]:
        """States and their times, which a loss that has some must have drawn."""
        assert self.x_t is not None
        assert self.t is not None
        return self.x_t, self.t


class TextLoss(nn.Module, ABC):
    """What a network is fitted to. Calling it with rows gives their losses in nats: one for each that is counted."""

    @abstractmethod
    def draw(self, x_1: Tensor, generator: torch.Generator) -> TextRows:
        """The rows of a batch of texts x_1 [B, L] int64, with all noise that they need."""

    @abstractmethod
    def count(self, rows: TextRows) -> int:
        """How many losses the rows have."""


class CrossEntropy(TextLoss):
    """-log p(x_1^i | x_t, t) of the positions that carry noise.

    Mask source: the masked positions. Uniform source: every position (which ones are noise is not visible).
    """

    def __init__(self, model: Denoiser, spaced: float = 0.0) -> None:
        super().__init__()
        self.model, self.path, self.spaced = model, MixturePath.of(model.config), spaced

    def draw(self, x_1: Tensor, generator: torch.Generator) -> TextRows:
        """States at times t, one drawn from each of B equal parts of [0, 1)."""
        t = stratified_times(len(x_1), generator)
        return TextRows(x_1, noised_states(self.path, x_1, t, generator, self.spaced), t)

    def count(self, rows: TextRows) -> int:
        """Positions that carry noise, but for those behind an end."""
        return int(self._noised(rows.noised()[0]).sum())

    def forward(self, rows: TextRows) -> Tensor:
        """Nats of the R positions that carry noise, [R] float32."""
        x_t, t = rows.noised()
        noised = self._noised(x_t)
        head = self.model.head
        return -linear_logprob(self.model.hidden_where(noised, x_t, t), head.weight, head.bias, rows.tokens[noised])

    def _noised(self, x_t: Tensor) -> Tensor:
        return torch.ones_like(x_t, dtype=torch.bool) if self.path.mask_id is None else _asked(self.model, x_t)


class GeneralizedKL(TextLoss):
    """The generalised KL of the path's jump rates, nats per token (Shaul et al. 2024, arXiv 2412.03487, eq. 37-40).

    kappa'/(1-kappa) * ( -(1 - [x_t = x_1]) log p(x_1) + [x_t = x_1] - p(x_t) ), averaged over t uniform in [0, 1) and
    positions. Its expectation bounds -log p(x_1) from above: the negative ELBO. For the mask source a resolved position
    keeps its token with probability one, so only masked positions cost anything. Of padded texts it is the nats per token
    that was written: those of all positions over these.
    """

    def __init__(self, model: Denoiser, spaced: float = 0.0) -> None:
        super().__init__()
        self.model, self.path, self.spaced = model, MixturePath.of(model.config), spaced

    def draw(self, x_1: Tensor, generator: torch.Generator) -> TextRows:
        """States at times t, one drawn from each of B equal parts of [0, 1 - TIME_MARGIN)."""
        t = stratified_times(len(x_1), generator) * (1 - TIME_MARGIN)
        return TextRows(x_1, noised_states(self.path, x_1, t, generator, self.spaced), t)

    def count(self, rows: TextRows) -> int:
        """All positions that were written."""
        return _written(rows.tokens, self.model.config.end_id)

    def forward(self, rows: TextRows) -> Tensor:
        """Nats of every position, [B, L] float32."""
        x_1, (x_t, t) = rows.tokens, rows.noised()
        weight = self.path.kappa_derivative(t.clamp_min(TIME_MARGIN)) / (1 - self.path.kappa(t))
        hidden, head = self.model.hidden(x_t, t).flatten(0, 1), self.model.head
        if self.path.mask_id is not None:
            at_target = linear_logprob(hidden, head.weight, head.bias, x_1.flatten()).view(x_1.shape)
            return weight[:, None] * torch.where(_asked(self.model, x_t), -at_target, 0.0)
        # ids: [B, L, 2], the token of the text and that of the state
        ids = torch.stack([x_1, x_t], -1)
        logprob = linear_logprobs(hidden, head.weight, head.bias, ids.flatten(0, 1))
        at_target, at_state = logprob.view(ids.shape).unbind(-1)
        same = x_t == x_1
        return weight[:, None] * (torch.where(same, 0.0, -at_target) + same - at_state.exp())


class CausalNLL(TextLoss):
    """Next-token negative log-likelihood; of padded texts, whose `end_id` is given, up to the end."""

    def __init__(self, model: CausalLM, end_id: int | None = None) -> None:
        super().__init__()
        self.model, self.end_id = model, end_id

    def draw(self, x_1: Tensor, generator: torch.Generator) -> TextRows:
        """The texts alone."""
        return TextRows(x_1)

    def count(self, rows: TextRows) -> int:
        """All tokens that were written."""
        return _written(rows.tokens, self.end_id)

    def forward(self, rows: TextRows) -> Tensor:
        """Nats of every token that was written, [R] float32; of packed texts [B L]."""
        hidden, _ = self.model.hidden(self.model.inputs(rows.tokens))
        if self.end_id is None:
            return -linear_logprob(hidden.flatten(0, 1), self.model.head_weight, None, rows.tokens.flatten())
        written = is_written(rows.tokens, self.end_id)
        return -linear_logprob(hidden[written], self.model.head_weight, None, rows.tokens[written])


def _asked(model: Denoiser, x_t: Tensor) -> Tensor:
    """The masked positions of states [B, L] that a model is asked for: of padded texts none behind an end that stands there."""
    mask_id, end_id = model.config.mask_id, model.config.end_id
    assert mask_id is not None
    masked = x_t.eq(mask_id)
    return masked if end_id is None else masked & is_written(x_t, end_id)


def _written(tokens: Tensor, end_id: int | None) -> int:
    return tokens.numel() if end_id is None else int(is_written(tokens, end_id).sum())


def mean_loss(loss: TextLoss, x_1: Tensor, generator: torch.Generator) -> Tensor:
    """The mean loss of a batch of texts x_1 [B, L] int64, on the CPU. Scalar, nats, on the network's device; 0 where nothing
    counts."""
    rows = loss.draw(x_1, generator)
    device = next((parameter.device for parameter in loss.parameters()), x_1.device)
    total: Tensor = loss(rows.to(device)).sum()
    return total / max(1, loss.count(rows))
