"""Whether each block of a text goes on from the one before it, as the rows of a file hold them.

Of a model of padded texts that is so until the text ends; the block behind its end begins another text, as the first did.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tsdfm.pipeline.text.ends.written import ends_behind
from tsdfm.schemas.columns import ragged, values
from tsdfm.schemas.manifest import Identity

OTHER = "its fixed tokens are not the last ones of the block before it"
FIRST = "it is the first block of a text, and has fixed positions"
ANEW = "the text before it has ended, and its fixed tokens are not those that the first block began with"
Int32 = npt.NDArray[np.int32]
Given = tuple[Int32, Int32]  # positions [F], and the tokens that are fixed there


class BlockRows:
    """The rows of one file, in order of trajectory ids: a text's blocks are in one file."""

    def __init__(self, identity: Identity, per_text: int, overlap: int) -> None:
        self.per_text, self.overlap = per_text, overlap
        self.prompted, self.end_id = identity.prompts is not None, identity.teacher.end_id
        self._first: dict[str, Given] = {}  # what the first block of a text was given, in each arm
        self._last: dict[str, Given] = {}  # the end of the last row of each arm, as the next one is to be given it
        self._ended: dict[str, bool] = {}  # whether its text ended there

    @classmethod
    def of(cls, identity: Identity) -> "BlockRows | None":
        """Of a dataset, before any of its rows; None where its texts are not in blocks."""
        blocks = identity.blocks
        return None if blocks is None else cls(identity, blocks.per_text, blocks.overlap)

    def add(self, table: pa.Table) -> Iterator[tuple[int, str]]:
        """Add rows that hold the invariants. Yields those, by their place, that don't go on from the block before, and why."""
        fixed = ragged(table, "fixed_positions")
        tokens = values(table, "tokens").reshape(table.num_rows, -1)
        ids, arms = table.column("trajectory_id").to_pylist(), table.column("arm").to_pylist()
        for row, (number, arm) in enumerate(zip(ids, arms, strict=True)):
            positions = fixed.values[fixed.offsets[row] : fixed.offsets[row + 1]]
            given = positions.copy(), tokens[row, positions]  # a view would hold the whole table
            if number % self.per_text == 0:
                self._first[arm] = given
                if len(positions) and not self.prompted:
                    yield row, FIRST
            elif self._ended.get(arm):
                if not _same(given, self._first[arm]):
                    yield row, ANEW
            elif arm not in self._last or not _same(given, self._last[arm]):
                yield row, OTHER
            self._last[arm] = np.arange(self.overlap, dtype=np.int32), tokens[row, -self.overlap :].copy()
            self._ended[arm] = arm in self._first and ends_behind(tokens[row], positions, self.end_id)


def _same(given: Given, wanted: Given) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(given, wanted, strict=True))
