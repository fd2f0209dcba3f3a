"""Texts that may be longer than a model's: written in blocks of L tokens, each of which goes on from the last tokens of the one
before. (Semi-autoregressive.)

Block b holds the positions from b (L - o) on, o being the overlap: its first o tokens are those that block b - 1 ended with,
and stand fixed from t = 0 on, as a prompt does (`rollout.py`). So each block is a sample of the model *given* the overlap, as
exactly as a text to a prompt is, and what stands before the overlap is forgotten. If in the model's law a token depends on no
more than o before it, a chain of blocks has that law at any length. All blocks are of L tokens; what the last has too many is
cut off.

Given tokens beyond the first block, of a long prompt or of a text with gaps, stand fixed in every block that holds them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tsdfm.pipeline.dataset.jump_log import JumpLog
from tsdfm.pipeline.flow.noise import Use
from tsdfm.pipeline.flow.prompts import FREE
from tsdfm.pipeline.flow.rollout import Begun, roll_out_begun
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.text.ends.written import behind_given, ends_behind, is_written
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig
from tsdfm.schemas.given import BlockFacts
from tsdfm.schemas.model import DenoiserConfig
from tsdfm.schemas.terms import Until

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Extent:
    """How long texts are: `length` tokens at most, in blocks of `size` that begin with the last `overlap` of the one before.

    end_id: the token at which a text stops; None: all texts have `length` tokens.
    """

    length: int
    size: int
    overlap: int = 0
    end_id: int | None = None

    @classmethod
    def of(
        cls, model: DenoiserConfig, vocabulary: Vocabulary, *, length: int | None, until: Until | None, overlap: int | None
    ) -> "Extent":
        """What a config asks of a model (see `SampleConfig`).

        Raises InputError: an overlap that leaves nothing of a block to be written, or one of texts of one block.
        """
        size = model.length
        length = length or size
        if overlap is not None and length <= size:
            raise InputError(f"overlap: is of texts that are longer than the model's {size} tokens; leave it out, or give a "
                             "longer --length")
        if overlap is not None and overlap >= size:
            raise InputError(f"overlap: {overlap} tokens leave nothing to write in a block of the model's {size}; give fewer")
        if length > size == 1:
            raise InputError(f"length: {length} is longer than the model's {size}, whose blocks can't overlap; give 1")
        end_id = {"end": vocabulary.eos_id, "length": None, None: model.end_id}[until]
        return cls(length, min(size, length), (overlap or size // 2) if length > size else 0, end_id)

    @property
    def first(self) -> "Extent":
        """The first block alone."""
        return replace(self, length=self.size)

    @property
    def starts(self) -> range:
        """The position at which each block begins."""
        stride = self.size - self.overlap
        return range(0, 1 + stride * -(-(self.length - self.size) // stride), stride)


@dataclass(frozen=True)
class Rolled:
    """B texts of M tokens: tokens [B, M], behind an end the end token; sizes [B], how many were written, the end included.

    ended [B]: whether they stopped at an end; passes [B]: forward passes that they took.
    """

    tokens: Int64
    sizes: Int64
    ended: npt.NDArray[np.bool_]
    passes: Int64


def roll_out_blocks(
    model: Denoiser, rollout: RolloutConfig, ids: Sequence[int], use: Use, extent: Extent, fixed: Tensor | None = None
) -> Rolled:
    """Write the texts `ids` of a model alone. Of one block they are those of `roll_out_blind`.

    Args:
        model: a denoiser in eval mode.
        rollout: steps, temperature, seed, ...; its `length` is not looked at.
        ids: B trajectory ids.
        use: what for.
        extent: how long they are.
        fixed: [B, M] int64, given tokens, and FREE elsewhere, as at least one of each is.
    """
    size, end_id = extent.size, extent.end_id
    total = extent.starts[-1] + size
    given = torch.full((len(ids), total), FREE)
    if fixed is not None:
        given[:, : extent.length] = fixed
    may_end, tokens, passes = behind_given(given < 0), given.clone(), np.zeros(len(ids), np.int64)
    open_rows = np.arange(len(ids))  # those that have not ended
    for number, start in enumerate(extent.starts):
        held = tokens[:, start : start + size]
        rows = open_rows[(held[open_rows] < 0).any(1).numpy()]
        if len(rows):
            # Nothing fixed is told as that, so that texts are those of `roll_out_blind` bit for bit.
            begun = Begun([ids[row] for row in rows], None if bool((held < 0).all()) else held[rows], use, number,
                          None if fixed is None else may_end[rows, start : start + size])
            logs = roll_out_begun(
                model, None, rollout.model_copy(update={"length": size}), ShapingConfig(candidates=1), begun, "blind")
            held[rows] = torch.from_numpy(np.stack([log.tokens for log in logs]).astype(np.int64))
            passes[rows] += [len(np.unique(log.event_step)) for log in logs]
        if end_id is not None:
            done = start + size
            written = is_written(tokens[:, :done], end_id, may_end[:, :done])
            tokens[:, :done] = torch.where(written, tokens[:, :done], end_id)
            open_rows = open_rows[written[open_rows, -1].numpy()]
            tokens[np.setdiff1d(np.arange(len(ids)), open_rows), done:] = end_id
    found, counts = tokens[:, : extent.length].numpy(), may_end[:, : extent.length].numpy()
    if end_id is None:
        return Rolled(found, np.full(len(ids), extent.length), np.zeros(len(ids), bool), passes)
    ended = ((found == end_id) & counts)[:, 1:].any(-1)
    return Rolled(found, is_written(found, end_id, counts).sum(-1), ended, passes)


def block_trajectories(
    roll_out: Callable[[Begun], list[JumpLog]], texts: Sequence[int], blocks: BlockFacts, first: Tensor,
    end_id: int | None = None,
) -> list[JumpLog]:
    """The blocks of some texts as trajectories, each with the noise of its own number: one after another, text by text.

    Args:
        roll_out: rolls out trajectories of L tokens together, in one arm.
        texts: T numbers; text i is trajectories i * per_text and those after it.
        blocks: how many there are, and how they overlap.
        first: [T, L] int64, the tokens that first blocks are given, FREE elsewhere.
        end_id: the token that ends texts. Where one has ended, nothing of it is left to be written: the next block begins
            another, as the first did. None: texts don't end.
    """
    fixed, found = first, list[list[JumpLog]]()
    for number in range(blocks.per_text):
        found.append(roll_out(Begun([text * blocks.per_text + number for text in texts], fixed)))
        fixed = torch.stack([_going_on(log, start, blocks.overlap, end_id)
                             for log, start in zip(found[-1], first, strict=True)])
    return [log for text in zip(*found, strict=True) for log in text]


def _going_on(log: JumpLog, start: Tensor, overlap: int, end_id: int | None) -> Tensor:
    """What the block after a trajectory is given, [L] int64: its last tokens, or, where its text ended, what `start` gives."""
    given = np.empty(0, np.int32) if log.fixed_positions is None else log.fixed_positions
    if ends_behind(log.tokens, given, end_id):
        return start
    fixed = torch.full_like(start, FREE)
    fixed[:overlap] = torch.from_numpy(log.tokens[-overlap:].astype(np.int64))
    return fixed
