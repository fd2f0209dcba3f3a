"""Documents as texts: each a text of its own, its end token behind it, padded with that to L tokens.

What is longer is cut at L, and has no end then. So a text never begins within a document, nor holds two.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tsdfm.pipeline.text.corpus import spaced
from tsdfm.pipeline.text.token_file import Tokens
from tsdfm.schemas.base import InputError

AT_ONCE = 1 << 22  # tokens of the stream that are looked at together


class Documents:
    """The documents of a stream in which each is followed by its end token; those that have no token are left out.

    Only the places where they begin and end are held, 16 bytes for each.
    """

    def __init__(self, stream: Tokens, end_id: int, length: int) -> None:
        parts = [np.empty(0, np.int64)]
        for start in range(0, len(stream), AT_ONCE):
            parts.append(np.flatnonzero(stream[start : start + AT_ONCE].numpy() == end_id) + start)
        stops = np.concatenate(parts) + 1
        starts = np.concatenate([[0], stops[:-1]])[: len(stops)]
        some = stops - starts > 1
        self.stream, self.end_id, self.length = stream, end_id, length
        self._starts: npt.NDArray[np.int64] = starts[some]
        self.sizes: npt.NDArray[np.int64] = (stops - starts)[some]  # tokens of each, its end included

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def cut(self) -> int:
        """How many are longer than a text."""
        return int((self.sizes > self.length).sum())

    def text(self, number: int) -> Tensor:
        """A document as a text: [L] int64."""
        start, size = int(self._starts[number]), min(int(self.sizes[number]), self.length)
        tokens = torch.full((self.length,), self.end_id)
        tokens[:size] = self.stream[start : start + size].long()
        return tokens

    def spread(self, limit: int) -> Tensor:
        """Up to `limit` texts [n, L] int64, evenly spaced. Raises InputError if there is none."""
        if not len(self):
            raise InputError("the held-out text has no document; give more text, in more documents: 2 % of them are held out "
                             "(in a .txt, blank lines separate documents)")
        return self._at(spaced(len(self), limit))

    def others(self, limit: int) -> Tensor:
        """Up to `limit` texts [n, L] int64, evenly spaced, none of which is of `spread` at this limit; n may be 0."""
        free = torch.ones(len(self), dtype=torch.bool)
        free[spaced(len(self), limit)] = False
        left = free.nonzero()[:, 0]
        return self._at(left[spaced(len(left), limit)])

    def _at(self, picks: Tensor) -> Tensor:
        return torch.stack([self.text(pick) for pick in picks.tolist()]) if len(picks) else torch.empty(0, self.length).long()
