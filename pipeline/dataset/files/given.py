"""What the rows of a dataset made with prompts were given, put together again from its files: one pattern for each prompt."""

import hashlib
from array import array
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tsdfm.schemas.columns import ragged
from tsdfm.schemas.manifest import Identity

OTHER = "its fixed positions or tokens are not those of the trajectories of its prompt before it"
WORD = 4  # bytes of a position or a token


def digest_of(offsets: npt.NDArray[np.integer], positions: npt.NDArray[np.integer], tokens: npt.NDArray[np.integer]) -> str:
    """What a manifest says of P prompts, sha256, hex: offsets [P + 1] into the positions and tokens [T] that are fixed."""
    digest = hashlib.sha256()
    for values in (offsets.astype("<i8"), positions.astype("<i4"), tokens.astype("<i4")):
        digest.update(values.tobytes())
    return digest.hexdigest()


class GivenRows:
    """The fixed tokens of prompts in a row, as rows hold them, in order of trajectory ids; i is of prompt i // per_prompt.

    Of a text in blocks the first alone is given the prompt. `of` an identity: None where there are no prompts.
    """

    def __init__(self, per_prompt: int, per_text: int = 1) -> None:
        self.per_prompt, self.per_text = per_prompt, per_text
        self.first = self.last = -1  # prompts, by number
        self._sizes, self._positions, self._tokens = array("q"), bytearray(), bytearray()

    @classmethod
    def of(cls, identity: Identity) -> "GivenRows | None":
        """Of a dataset, before any of its rows."""
        return None if identity.prompts is None else cls(identity.prompts.per_prompt, identity.per_text)

    def add(self, table: pa.Table) -> Iterator[tuple[int, str]]:
        """Add rows that hold the invariants. Yields those, by their place, that are not given what their prompt gives."""
        fixed, source = ragged(table, "fixed_positions"), ragged(table, "source_tokens")
        positions = fixed.values.astype("<i4").tobytes()
        tokens = source.values[source.offsets[fixed.row] + fixed.values].astype("<i4").tobytes()
        ids = np.asarray(table.column("trajectory_id").to_numpy())
        prompts = ids // self.per_prompt
        for row in np.flatnonzero(ids % self.per_text == 0).tolist():
            prompt = int(prompts[row])
            part = slice(WORD * int(fixed.offsets[row]), WORD * int(fixed.offsets[row + 1]))
            if prompt != self.last:
                self._append(prompt, positions[part], tokens[part])
            elif (positions[part], tokens[part]) != self._ending():
                yield row, OTHER

    def merge(self, following: "GivenRows") -> bool:
        """Add what the next file holds. False: its first rows are of the last prompt here, and were given something else."""
        if not following._sizes:
            return True
        again = following.first == self.last
        size = WORD * following._sizes[0] * again
        if again and (bytes(following._positions[:size]), bytes(following._tokens[:size])) != self._ending():
            return False
        self._sizes += following._sizes[again:]
        self._positions += following._positions[size:]
        self._tokens += following._tokens[size:]
        self.first, self.last = self.first if self.first >= 0 else following.first, following.last
        return True

    def digest(self) -> str:
        """`digest_of` all that was added."""
        offsets = np.cumsum([0, *self._sizes])
        return digest_of(offsets, np.frombuffer(self._positions, "<i4"), np.frombuffer(self._tokens, "<i4"))

    def _append(self, prompt: int, positions: bytes, tokens: bytes) -> None:
        self.first, self.last = self.first if self.first >= 0 else prompt, prompt
        self._sizes.append(len(positions) // WORD)
        self._positions += positions
        self._tokens += tokens

    def _ending(self) -> tuple[bytes, bytes]:
        """The positions and tokens of the last prompt."""
        begin = len(self._positions) - WORD * self._sizes[-1]
        return bytes(self._positions[begin:]), bytes(self._tokens[begin:])
