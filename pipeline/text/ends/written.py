"""What of a text was written: all up to its end token, that included. What stands behind is padding.

An end token counts where it is not the text's first token, for the texts of some models begin with one, nor stands in or before
what was given of the text: what is given is never cut. All functions take arrays of NumPy and of torch alike, and copy nothing
between devices.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from tsdfm.pipeline.text.vocabulary import Vocabulary

Id = TypeVar("Id", bound=np.integer)
if TYPE_CHECKING:
    from torch import Tensor

    A = TypeVar("A", npt.NDArray[Any], Tensor)
else:
    A = TypeVar("A")


def is_written(tokens: A, end_id: int, may_end: A | None = None) -> A:
    """Which positions of texts are up to the first end that counts, or hold it: tokens [..., L] -> [..., L] bool.

    may_end: [..., L] bool, where an end counts; None: everywhere but at the first position.
    """
    ended = tokens == end_id
    if may_end is not None:
        ended = ended & may_end
    ended[..., :1] = False
    seen = ended.cumsum(-1)
    found: A = (seen == 0) | (ended & (seen == 1))
    return found


def behind_given(free: A) -> A:
    """Where an end counts in texts of which something is given: behind the last of it. free [..., L] bool -> [..., L] bool."""
    given = ~free
    found: A = free & (given.cumsum(-1) == given.sum(-1)[..., None])
    return found


def padded(tokens: A, end_id: int) -> A:
    """Texts with nothing but end tokens behind their ends: tokens [..., L] -> a copy."""
    written = is_written(tokens, end_id)
    found: A = tokens * written + end_id * ~written
    return found


def padded_state(states: A, end_id: int | None, mask_id: int | None) -> A:
    """States [..., L] of a model of padded texts with nothing but end tokens behind ends that stand, but for what is masked.

    As they are where texts are packed (`end_id` None), or an end may be noise (`mask_id` None: the uniform source).
    """
    if end_id is None or mask_id is None:
        return states
    behind = ~is_written(states, end_id) & (states != mask_id)
    found: A = states * ~behind + end_id * behind
    return found


def lengths(tokens: A, end_id: int) -> A:
    """How many tokens of each text were written: tokens [..., L] -> [...] int64, from 1 to L."""
    found: A = is_written(tokens, end_id).sum(-1)
    return found


def text_of(vocabulary: Vocabulary, tokens: Sequence[int] | npt.NDArray[np.integer], end_id: int | None) -> str:
    """A text, decoded: all that was written before its end. `end_id` None: it has no end, and all its tokens are shown."""
    if end_id is None:
        return vocabulary.decode(np.asarray(tokens).tolist())
    array = np.asarray(tokens)
    count = int(lengths(array, end_id))
    return vocabulary.decode(array[: count - has_ended(array, end_id)].tolist())


def written_of(tokens: npt.NDArray[Id], end_id: int) -> list[npt.NDArray[Id]]:
    """What was written of each text, ends included: tokens [R, L] -> R arrays, views."""
    return [row[:size] for row, size in zip(tokens, lengths(tokens, end_id).tolist(), strict=True)]


def has_ended(tokens: npt.NDArray[np.integer], end_id: int) -> npt.NDArray[np.bool_]:
    """Whether texts hold an end that counts: tokens [..., L] -> [...] bool."""
    return np.asarray((tokens[..., 1:] == end_id).any(-1))


def ends_behind(tokens: npt.NDArray[np.integer], given: npt.NDArray[np.integer], end_id: int | None) -> bool:
    """Whether a text [L] of which these positions [F], rising, were given ends behind them; `end_id` None: texts don't end."""
    start = max(1, int(given[-1]) + 1) if len(given) else 1
    return end_id is not None and bool((tokens[start:] == end_id).any())
