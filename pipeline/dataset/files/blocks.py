"""Whether each block of a text goes on from the one before it, as the rows of a file hold them."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tsdfm.schemas.columns import ragged, values
from tsdfm.schemas.manifest import Identity

OTHER = "its fixed tokens are not the last ones of the block before it"
FIRST = "it is the first block of a text, and has fixed positions"


class BlockRows:
    """The rows of one file, in order of trajectory ids: a text's blocks are in one file."""

    def __init__(self, per_text: int, overlap: int, *, prompted: bool) -> None:
        self.per_text, self.overlap, self.prompted = per_text, overlap, prompted
        self._last: dict[str, npt.NDArray[np.int32]] = {}  # the end of the last row of each arm

    @classmethod
    def of(cls, identity: Identity) -> "BlockRows | None":
        """Of a dataset, before any of its rows; None where its texts are not in blocks."""
        blocks = identity.blocks
        return None if blocks is None else cls(blocks.per_text, blocks.overlap, prompted=identity.prompts is not None)

    def add(self, table: pa.Table) -> Iterator[tuple[int, str]]:
        """Add rows that hold the invariants. Yields those, by their place, that don't go on from the block before, and why."""
        fixed = ragged(table, "fixed_positions")
        tokens = values(table, "tokens").reshape(table.num_rows, -1)
        ids, arms = table.column("trajectory_id").to_pylist(), table.column("arm").to_pylist()
        for row, (number, arm) in enumerate(zip(ids, arms, strict=True)):
            positions = fixed.values[fixed.offsets[row] : fixed.offsets[row + 1]]
            if number % self.per_text == 0:
                if len(positions) and not self.prompted:
                    yield row, FIRST
            elif not self._goes_on(arm, positions, tokens[row]):
                yield row, OTHER
            self._last[arm] = tokens[row, -self.overlap :].copy()  # a view would hold the whole table

    def _goes_on(self, arm: str, positions: npt.NDArray[np.int32], tokens: npt.NDArray[np.int32]) -> bool:
        last = self._last.get(arm)
        return (last is not None and np.array_equal(positions, np.arange(self.overlap))
                and np.array_equal(tokens[: self.overlap], last))
