"""The layouts of diffusion models that `import-teacher` knows, tensor by tensor, as our Denoiser.

All are the DiT of SEDD, as our trunk is: LayerNorms with a gain and no bias, rotary halves over the whole head, q, k and v
without biases, GELU in its tanh form, adaLN with (shift, scale, gate) for attention and then for the MLP. So every tensor is
taken over as it stands; FS-DFM's separate q, k and v are stacked.

fs-dfm  Discrete flow matching teachers and few-step students (arXiv 2509.20624): told t; a student, t and dt, which a linear
        layer fuses and every block mixes anew (`conditioning: fused`). Source uniform (V ids) or mask (V + 1, [MASK] last).
mdlm    Masked diffusion language models (arXiv 2406.07524), subs parameterisation: told sigma (`conditioning: sigma`), or, as
        published, always sigma = 0. That is a constant, which goes into the bias of the time embedding's first layer, whose
        weights become 0: exact, and a student distilled from it may still learn to look at t.
sdtt    Their students by self-distillation through time (arXiv 2410.21035), and that project's teachers: MDLM's network, and no
        step size is told.
duo     Uniform-state diffusion (The Diffusion Duality, arXiv 2506.10892), also distilled: MDLM's tensors, another meaning. A
        text starts from random tokens, and the network is always told sigma. There q(x_t | x_1) = alpha [x_t = x_1] +
        (1 - alpha)/V with sigma = -log alpha; on our path it is kappa_t [x_t = x_1] + (1 - kappa_t)/V: the same state has
        alpha = kappa_t, so sigma = -log kappa_t whatever schedule it was trained with, down to alpha = 1e-3, where its own
        ends. Its code adds [PAD] to a tokenizer that has none (GPT-2's), and draws noise from all V ids, [PAD] among them.

The last three name their tensors alike, so what tells them apart stands in config.json, or is asked for.
"""

import re
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tsdfm.pipeline.models.denoiser import Denoiser, Trunk
from tsdfm.pipeline.models.foreign.weights import Weights
from tsdfm.pipeline.models.layers import FREQUENCIES, sinusoids
from tsdfm.schemas.base import InputError
from tsdfm.schemas.model import DenoiserConfig, TransformerShape
from tsdfm.schemas.terms import Layout

ROTARY = "rotary_emb.inv_freq"  # a buffer that follows from the head's width
TIME, QKV = "trunk.time_embedding.mlp.0", re.compile(r"(trunk\.blocks\.\d+\.)qkv(\.weight)")
# From our names to theirs; the first that matches is applied.
_RENAMES = (
    (r"^trunk\.(blocks\.\d+)\.modulation\.fuser\.", r"\1.condition_fuser."),
    (r"^trunk\.(blocks\.\d+)\.modulation\.", r"\1.adaLN_modulation."),
    (r"^trunk\.modulation\.fuser\.", "output_layer.condition_fuser."),
    (r"^trunk\.modulation\.", "output_layer.adaLN_modulation."),
    (r"^trunk\.norm_final\.", "output_layer.norm_final."),
    (r"^trunk\.step_embedding\.", "dt_embedding."),
    (r"^trunk\.fuser\.", "time_condition_fuser."),
    (r"^head\.", "output_layer.linear."),
)


@dataclass(frozen=True)
class Names:
    """The names of tensors that layouts call differently."""

    embedding: str
    time: str
    qkv: tuple[str, ...]

    def of(self, ours: str) -> tuple[str, ...]:
        """The names of their tensors that, stacked by rows, make our tensor `ours`."""
        if ours == "trunk.vocab_embed.weight":
            return (self.embedding,)
        for pattern, theirs in ((r"^trunk\.time_embedding\.", f"{self.time}."), *_RENAMES):
            if re.match(pattern, ours):
                return (re.sub(pattern, theirs, ours),)
        bare = ours.removeprefix("trunk.")
        return tuple(bare.replace(".qkv.", f".{part}.") for part in self.qkv) if QKV.match(ours) else (bare,)


_SIGMA = Names("vocab_embed.embedding", "sigma_map", ("attn_qkv",))
LAYOUTS: dict[Layout, Names] = {
    "fs-dfm": Names("vocab_embed.weight", "time_embedding", ("qw", "kw", "vw")), "mdlm": _SIGMA, "sdtt": _SIGMA, "duo": _SIGMA,
}


def layouts_of(weights: Weights, where: str) -> list[Layout]:
    """The layouts whose embedding and time features the weights have. Raises InputError if there is none."""
    found = [layout for layout, names in LAYOUTS.items()
             if names.embedding in weights and f"{names.time}.mlp.0.weight" in weights]
    if not found:
        raise InputError(f"{where}: of no known layout (it has {', '.join(sorted(weights)[:6])}, ...); import-teacher opens "
                         f"{', '.join(LAYOUTS)}")
    return found


def shape_of(weights: Weights, layout: Layout, heads: int | None, where: str) -> tuple[TransformerShape, int, int]:
    """The sizes that tensors tell: the trunk's shape, rows of the embedding, width of the conditioning. Raises InputError."""
    names = LAYOUTS[layout]
    embedding, up = _matrix(weights, names.embedding, where), _matrix(weights, "blocks.0.mlp.0.weight", where)
    time = _matrix(weights, f"{names.time}.mlp.0.weight", where)
    if time.shape[1] != FREQUENCIES:
        raise InputError(f"{where}: {names.time}.mlp.0.weight is {tuple(time.shape)}, {FREQUENCIES} time features are wanted")
    width = embedding.shape[1]
    heads = heads or _heads(weights, width)
    if heads is None:
        raise InputError(f"{where}: has no {ROTARY} to tell the number of attention heads from; give --heads")
    blocks = len({match[1] for name in weights if (match := re.match(r"blocks\.(\d+)\.", name))})
    ratio = up.shape[0] // width
    if width % (2 * heads) or width < 8 or not 1 <= ratio <= 16 or not 1 <= blocks <= 256:
        raise InputError(f"{where}: width {width}, {heads} heads, {blocks} blocks and MLPs of {up.shape[0]} are no denoiser of "
                         "ours; width must be a multiple of twice the heads (--heads)")
    return TransformerShape(hidden_size=width, n_blocks=blocks, n_heads=heads, mlp_ratio=ratio), len(embedding), len(time)


def _matrix(weights: Weights, name: str, where: str) -> Tensor:
    if name not in weights or weights[name].ndim != 2:
        found = tuple(weights[name].shape) if name in weights else "absent"
        raise InputError(f"{where}: tensor {name} is {found}, a matrix is wanted; give a whole checkpoint")
    return weights[name]


def _heads(weights: Weights, width: int) -> int | None:
    """width / head width, which is twice the rotary frequencies; None where they aren't stored."""
    rotary = weights.get(ROTARY)
    return None if rotary is None or not rotary.numel() else max(1, width // (2 * rotary.numel()))


def to_denoiser(weights: Weights, layout: Layout, config: DenoiserConfig, where: str) -> Denoiser:
    """Our denoiser of `config` with their weights, float32. Raises InputError: tensors missing, extra or misshapen."""
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in Denoiser(config).state_dict().items()}
    parts = {ours: LAYOUTS[layout].of(ours) for ours in wanted}
    _check_names({name for group in parts.values() for name in group}, weights, where)
    state = {}
    for ours, names in parts.items():
        rows = wanted[ours][0] // len(names)
        for name in names:
            _check_tensor(name, weights[name], (rows, *wanted[ours][1:]), where)
        state[ours] = torch.cat([weights[name].float() for name in names])
    with torch.device("meta"):
        network = Denoiser(config)
    network.load_state_dict(state, assign=True)
    return network


def without_padding(weights: Weights, layout: Layout, rows: int) -> Weights:
    """The weights with only the first `rows` rows of what has one for each id: embedding, and the head's weight and bias."""
    padded = {name for ours in ("trunk.vocab_embed.weight", "head.weight", "head.bias") for name in LAYOUTS[layout].of(ours)}
    return {name: tensor[:rows] if name in padded else tensor for name, tensor in weights.items()}


def without_time(network: Denoiser) -> None:
    """Fix what the network is told of time at sigma = 0, in place (module docstring)."""
    first = cast(nn.Linear, cast(Trunk, network.trunk).time_embedding.mlp[0])
    constant = first.weight.double() @ sinusoids(torch.zeros(1))[0].double() + first.bias.double()
    with torch.no_grad():
        first.bias.copy_(constant)
        first.weight.zero_()


def _check_names(wanted: set[str], weights: Weights, where: str) -> None:
    missing, unexpected = sorted(wanted - weights.keys()), sorted(weights.keys() - wanted - {ROTARY})
    faults = [f"{len(names)} {what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
              for what, names in (("missing", missing), ("unexpected", unexpected)) if names]
    if faults:
        raise InputError(f"{where}: tensors {'; '.join(faults)}; the architecture is another one, or the checkpoint not whole")


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], where: str) -> None:
    if tuple(tensor.shape) != shape:
        raise InputError(f"{where}: tensor {name} is {tuple(tensor.shape)}, {shape} is wanted; the architecture is another one")
    if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
        raise InputError(f"{where}: tensor {name} holds numbers that are not finite floats; give sound weights")
