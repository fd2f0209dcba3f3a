"""A list column of an Arrow table as flat numpy arrays: the one reader of all that look into a shard."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa


class Ragged(NamedTuple):
    """R lists, one after another. A row that is null counts as empty."""

    values: npt.NDArray[Any]  # all values, row after row
    offsets: npt.NDArray[np.int64]  # [R + 1]; row r is values[offsets[r]:offsets[r + 1]]
    null: npt.NDArray[np.bool_]  # [R]

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """How long each list is, [R]."""
        return np.diff(self.offsets)

    @property
    def row(self) -> npt.NDArray[np.int64]:
        """Of every value, the row that it is of."""
        return np.repeat(np.arange(len(self.null)), self.sizes)


def values(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """The values of a list column, or of a plain one without nulls, row after row, in the column's own dtype."""
    array = _whole(table, name)
    flat = array.flatten() if pa.types.is_list(array.type) else array
    found: npt.NDArray[Any] = flat.to_numpy(zero_copy_only=False)
    return found


def ragged(table: pa.Table, name: str) -> Ragged:
    """A list column as flat values, and where each row's begin."""
    array = _whole(table, name)
    sizes = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return Ragged(array.flatten().to_numpy(zero_copy_only=False), np.concatenate([[0], sizes.cumsum()]),
                  np.asarray(array.is_null()))


def _whole(table: pa.Table, name: str) -> pa.Array:
    array = table.column(name).combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # a table of no rows
        return pa.array([], table.schema.field(name).type)
    return array
