"""The two ways a student begins: as its teacher's copy with a step embedding, or as a smaller one with some blocks left out.

Every block adds to the residual stream, so the others still see what they were trained on, in part: the usual start of a
shallower student (DistilBERT, Sanh et al. 2019, arXiv 1910.01108, keeps every other layer of its teacher).
"""

import re

import numpy as np

from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.schemas.terms import Clocks

_BLOCK = re.compile(r"trunk\.blocks\.(\d+)\.(.+)")


def student_of(teacher: Denoiser, clocks: Clocks = "independent") -> Denoiser:
    """A copy of `teacher` with a step embedding whose output is zero: at first, exactly the teacher.

    A model that already has one (a student of an earlier round) is copied as it is, but for its clocks: those it will be
    trained for, with which it then writes.
    """
    student = Denoiser(teacher.config.model_copy(update={"step_size": True, "clocks": clocks}))
    own = student.state_dict()
    student.load_state_dict(own | teacher.state_dict())
    return student.to(teacher.head.weight.device)


def evenly_spaced(count: int, blocks: int) -> list[int]:
    """`blocks` of the numbers 0..count-1, evenly spaced, first and last among them (of one: the first)."""
    return [int(index) for index in np.linspace(0, count - 1, blocks).round()]


def with_blocks(model: Denoiser, blocks: int) -> Denoiser:
    """A copy of `model` with `blocks` of its blocks, evenly spaced, the first and the last kept.

    Args:
        model: a denoiser of at least `blocks` blocks.
        blocks: how many to keep, at least 1.

    Raises:
        ValueError: the model has fewer blocks.
    """
    count = model.config.n_blocks
    if not 1 <= blocks <= count:
        raise ValueError(f"{blocks} of a model's {count} blocks can't be kept")
    place = {kept: index for index, kept in enumerate(evenly_spaced(count, blocks))}
    weights = {}
    for name, tensor in model.state_dict().items():
        found = _BLOCK.fullmatch(name)
        if found is None:
            weights[name] = tensor
        elif int(found[1]) in place:
            weights[f"trunk.blocks.{place[int(found[1])]}.{found[2]}"] = tensor
    smaller = Denoiser(model.config.model_copy(update={"n_blocks": blocks}))
    smaller.load_state_dict(weights)
    return smaller.to(model.head.weight.device)
