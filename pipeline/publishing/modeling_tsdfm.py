"""A denoiser of discrete flow matching as a model of the transformers library: its logits, and `generate`.

Published beside a student's weights as one file that needs torch and transformers alone: there, all that the model and its
sampler are made of stands above this, as it stands in tsdfm-pipeline (Apache-2.0), which made the file.

    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model = AutoModelForMaskedLM.from_pretrained(NAME, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(NAME, trust_remote_code=True)
    print(tokenizer.batch_decode(model.generate(steps=8, number=4)))
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from tsdfm.kernels.philox import uniform_torch
from tsdfm.pipeline.flow.mixture_path import MixturePath
from tsdfm.pipeline.flow.noise import Noise, Use
from tsdfm.pipeline.flow.rings.clocks import draw_rings
from tsdfm.pipeline.flow.rollout import draw_source
from tsdfm.pipeline.models.denoiser import Trunk
from tsdfm.pipeline.models.layers import Linear
from tsdfm.pipeline.models.masked import MaskedTrunk, take_out
from tsdfm.pipeline.text.ends.written import behind_given, is_written

# What a config.json need not say.
USUAL: dict[str, Any] = {
    "vocab_size": 2, "length": 1, "hidden_size": 192, "n_blocks": 5, "n_heads": 6, "mlp_ratio": 4, "dropout": 0.0,
    "cond_dim": 128, "source": "mask", "mask_id": None, "kappa_exponent": 1.0, "step_size": False, "conditioning": "t",
    "clocks": "independent", "end_id": None, "masked_lm": None,
}
BATCH = 32  # texts written together
DRAWN_AT_ONCE = 1 << 22  # probabilities held at once, in float64

uniform = uniform_torch  # in place of the one that knows kernels, which gives the same bits


class TsdfmConfig(PretrainedConfig):  # type: ignore[misc]
    """Sizes of the network, and the path that it was trained on: the fields of USUAL."""

    model_type = "tsdfm"

    def __init__(self, **fields: Any) -> None:
        for name, usual in USUAL.items():
            setattr(self, name, fields.pop(name, usual))
        super().__init__(**fields)


class TsdfmForMaskedLM(PreTrainedModel):  # type: ignore[misc]
    """A denoiser: p(x_1 | x_t, t) per position; of a student, p(x | x_t, t, dt)."""

    config_class = TsdfmConfig
    base_model_prefix = ""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.trunk = _trunk(config)
        self.head = Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Weights are as the modules made them, or those of the file."""

    def get_input_embeddings(self) -> Any:
        """The table of token embeddings."""
        trunk = self.trunk
        return trunk.vocab_embed if isinstance(trunk, Trunk) else trunk.model.get_input_embeddings()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, t: Tensor | None = None, dt: Tensor | None = None,
        return_dict: bool | None = None, **_: Any,
    ) -> Any:
        """Logits [B, L, V] of texts input_ids [B, L] int64.

        Args:
            input_ids: texts of one length, with no padding.
            attention_mask: all ones, or None.
            t: times [B] in [0, 1]; None: those at which as large a share of a text is written as is here, by its [MASK].
            dt: sizes [B] in (0, 1] of the jump that is about to be made; None: none is named.
            return_dict: None or True; False: a tuple.

        Raises:
            ValueError: padding; or no t, of a model that knows no [MASK].
        """
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError("attention_mask: the model knows no padding; give texts of one length")
        if t is None:
            if self.config.mask_id is None:
                raise ValueError("t: the model knows no [MASK] by which to tell how far a text is; give t")
            written = (input_ids != self.config.mask_id).double().mean(1)
            t = MixturePath.of(self.config).kappa_inverse(written).float()
        logits = self.head(self.trunk(input_ids, t, dt))
        return (logits,) if return_dict is False else MaskedLMOutput(logits=logits)

    @torch.no_grad()
    def generate(
        self, prompt: Sequence[int] | Tensor = (), steps: int = 8, number: int = 1, seed: int = 0, temperature: float = 1.0,
    ) -> Tensor:
        """Texts as token ids, [number, length of the config] int64: those of `tsdfm-pipeline sample` with the same settings.

        A text of a model whose config has an `end_id` stops at that token, and is filled with it.

        Args:
            prompt: ids [P] that every text begins with; none: all of a text is written.
            steps: of the time grid 0, 1/steps, ..., 1: a text is written in at most so many forward passes.
            number: how many texts.
            seed: in [0, 2^32): the same seed gives the same texts.
            temperature: above 0; divides the logits.

        Raises:
            ValueError: settings out of their range, or a prompt that is too long or has ids that the model has not.
        """
        if steps < 1 or number < 1 or temperature <= 0 or not 0 <= seed < 2**32:
            raise ValueError("steps and number are 1 at least, temperature is above 0, and seed in [0, 2^32)")
        fixed = torch.as_tensor(prompt, dtype=torch.long, device=self.device)
        if fixed.ndim != 1 or len(fixed) > self.config.length:
            raise ValueError(f"prompt: give up to {self.config.length} ids of one text, not a batch")
        if len(fixed) and not 0 <= int(fixed.min()) <= int(fixed.max()) < self.config.vocab_size:
            raise ValueError(f"prompt: ids are 0 to {self.config.vocab_size - 1}")
        parts = torch.arange(number, device=self.device).split(BATCH)
        return torch.cat([self._written(Noise(seed, ids, Use.MEASURE), fixed, steps, temperature) for ids in parts])

    def _written(self, noise: Noise, prompt: Tensor, steps: int, temperature: float) -> Tensor:
        """One text for each id of the noise."""
        path, times = MixturePath.of(self.config), [step / steps for step in range(steps + 1)]
        state = draw_source(path, noise, self.config.length)
        free = torch.arange(state.shape[1], device=self.device) >= len(prompt)
        rings = draw_rings(path, noise, times, self.config.length, self.config.clocks, free.expand_as(state))
        state[:, : len(prompt)] = prompt
        end_id, may_end = self.config.end_id, behind_given(free)
        for step in range(steps):
            rows = rings[:, step].any(1).nonzero()[:, 0]
            if not len(rows):
                continue
            t, dt = (torch.full((len(rows),), value, device=self.device) for value in (times[step], 1 / steps))
            owner, positions = rings[rows, step].nonzero(as_tuple=True)
            hidden = self.trunk(state[rows], t, dt)[owner, positions]
            at = torch.full_like(owner, step)
            uniforms = noise.tokens(rows[owner], at, positions, 1)
            tokens = self._drawn(hidden, uniforms, temperature)
            if end_id is not None and path.mask_id is not None:
                tokens[~is_written(state[rows], end_id, may_end)[owner, positions]] = end_id
            state[rows[owner], positions] = tokens
        return state if end_id is None else torch.where(is_written(state, end_id, may_end), state, end_id)

    def _drawn(self, hidden: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
        """Tokens [R] at uniforms [R, 1], by inversion of the cumulative distribution at hidden [R, D]."""
        tokens = []
        size = max(1, DRAWN_AT_ONCE // self.config.vocab_size)
        for some, u in zip(hidden.split(size), uniforms.split(size), strict=True):
            logits = self.head(some).float() / temperature
            if self.config.mask_id is not None:
                logits[:, self.config.mask_id] = -torch.inf
            cumulative = logits.double().softmax(-1).cumsum(-1)
            total = cumulative[:, -1:]
            last = (cumulative < total).sum(-1, keepdim=True)  # rounding can put the target at the very end
            tokens.append(torch.minimum(torch.searchsorted(cumulative, u * total, right=True), last)[:, 0])
        return torch.cat(tokens)


def _trunk(config: Any) -> Trunk | MaskedTrunk:
    """The network below the head: the project's own, or a masked language model of the library's, by its own class."""
    masked = config.masked_lm
    if masked is None:
        return Trunk(config)
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(**masked["config"]), trust_remote_code=False)
    take_out(model, model.get_output_embeddings())
    return MaskedTrunk(model, masked["before"], masked["after"], config.step_size)
