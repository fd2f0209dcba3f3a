"""How networks are run where nothing is learnt: in which numbers, compiled or not, and how much at once on which device."""

import os
import shutil
from dataclasses import dataclass

import torch

from tsdfm.pipeline.models.causal import CausalLM, ContrastLM
from tsdfm.pipeline.models.denoiser import Denoiser, Trunk
from tsdfm.pipeline.models.layers import compile_blocks
from tsdfm.pipeline.models.masked import MaskedTrunk
from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.schemas.base import InputError
from tsdfm.schemas.terms import DeviceKind, Dtype

COMPILERS = ("c++", "g++", "clang++")


@dataclass(frozen=True)
class AtOnce:
    """How much is computed together on a device, where no config says it.

    It can move the last bits of an energy or a perplexity, like the device itself: a dataset's identity names the kind of
    device, and the numbers of a kind stay what they are, for else the same identity would give other bytes.
    """

    ring_numbers: int  # random numbers of clocks
    suffix_tokens: int  # of one batch of the `ar` compass, whose texts are run from where they differ; so, too, for `denoiser`
    suffix_texts: int  # of such a batch: each holds keys and values of its whole past
    compass_tokens: int  # of one batch of a compass of transformers, whose texts are run whole
    judge_tokens: int  # of one batch of a judge, padding included


AT_ONCE: dict[DeviceKind, AtOnce] = {
    # A core is busy with a thousand tokens. What doesn't fit its cache is slow (ring numbers: 3-15x at long grids), and small
    # batches waste less on texts that differ later. A suffix has a token, so the texts are bounded by the tokens.
    "cpu": AtOnce(ring_numbers=1 << 17, suffix_tokens=1024, suffix_texts=1024, compass_tokens=8192, judge_tokens=4096),
    # A GPU wants tens of thousands of tokens a launch, and idles between launches; memory is the bound. 128 texts of 1,024
    # tokens have keys and values of 10 GB in float32, in a compass of GPT-2's size. So it was counted: no GPU has measured it.
    "cuda": AtOnce(ring_numbers=1 << 24, suffix_tokens=1 << 15, suffix_texts=128, compass_tokens=1 << 16, judge_tokens=1 << 16),
}


def at_once(device: torch.device) -> AtOnce:
    """How much is computed together on a device."""
    return AT_ONCE["cuda" if device.type == "cuda" else "cpu"]


def compute_in(network: Denoiser | CausalLM | NceEncoder | ContrastLM, dtype: Dtype) -> None:
    """Have a network compute in `dtype` from now on, by holding its weights so. It was opened in float32.

    In bfloat16 stay, in float32: the features of times, the bias of a vocabulary head and the head of an `nce` encoder. Kernels
    take hidden states of either dtype to logits, log-probabilities and draws in float32.
    """
    if dtype == "float32":
        return
    narrow = getattr(torch, dtype)
    if isinstance(network, CausalLM | ContrastLM):
        network.to(narrow)
        return
    _narrow_trunk(network.trunk, narrow)
    if isinstance(network, Denoiser):
        network.head.weight.data = network.head.weight.data.to(narrow)


def _narrow_trunk(trunk: Trunk | MaskedTrunk, dtype: torch.dtype) -> None:
    if isinstance(trunk, MaskedTrunk):
        for parameter in trunk.model.parameters():  # and no buffer: positions are turned by angles in float32
            parameter.data = parameter.data.to(dtype)
        return
    for part in (trunk.vocab_embed, trunk.blocks, trunk.norm_final, trunk.modulation):
        part.to(dtype)


def compile_trunk(network: Denoiser) -> None:
    """Have the blocks of a network compiled at its first call, for batches of any size.

    Raises InputError where there is no C++ compiler.
    """
    named = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([named] if named else COMPILERS)):
        raise InputError(f"compile: torch.compile needs a C++ compiler, and here is none ({named or ', '.join(COMPILERS)}); "
                         "install one, or leave out --compile")
    compile_blocks(network, dynamic=True)


def prepare(network: Denoiser, dtype: Dtype, compiled: bool) -> None:
    """Have a denoiser computed as a config asks (see `compute_in`, `compile_trunk`). Raises InputError as `compile_trunk`."""
    compute_in(network, dtype)
    if compiled:
        compile_trunk(network)
