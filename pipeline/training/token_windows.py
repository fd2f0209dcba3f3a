"""Batches of windows of a tokenised text, for whatever is trained on text."""

import torch
from torch import Tensor

from tsdfm.pipeline.training.trainer import generator_of
from tsdfm.schemas.base import InputError

EPOCH_STREAM = 0x5EED0000  # keeps the generators of epochs apart from those of updates


class TokenWindows:
    """Windows of L tokens of one stream: the batch of update s is a pure function of (seed, s).

    Every epoch shifts the windows by a random offset and shuffles them.
    """

    def __init__(self, stream: Tensor, length: int, batch_size: int, seed: int) -> None:
        if len(stream) < 2 * length:
            raise InputError(f"the corpus has {len(stream)} tokens, fewer than two windows of {length}; give more text")
        self.stream, self.length, self.batch_size, self.seed = stream, length, batch_size, seed
        self.windows = len(stream) // length - 1
        self._epoch, self._offset, self._order = -1, 0, torch.empty(0, dtype=torch.long)

    def batch(self, step: int) -> Tensor:
        """The windows of tokens of update `step`, [batch_size, L] int64."""
        rows = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return torch.stack([self._window(int(row)) for row in rows])

    def _window(self, row: int) -> Tensor:
        epoch, index = divmod(row, self.windows)
        if epoch != self._epoch:
            generator = generator_of(self.seed, EPOCH_STREAM + epoch)
            self._offset = int(torch.randint(self.length, (), generator=generator))
            self._order = torch.randperm(self.windows, generator=generator)
            self._epoch = epoch
        start = int(self._order[index]) * self.length + self._offset
        return self.stream[start : start + self.length].long()
