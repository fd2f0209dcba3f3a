"""What of a text was written, by arrays of both kinds, and documents as texts of their own."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support import vocabulary
from tsdfm.pipeline.text.ends.documents import Documents
from tsdfm.pipeline.text.ends.written import (
    behind_given,
    has_ended,
    is_written,
    lengths,
    padded,
    padded_state,
    text_of,
    written_of,
)
from tsdfm.schemas.base import InputError

END, MASK = 1, 3
ROWS = st.integers(1, 7).flatmap(lambda n: st.lists(st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=1, max_size=4))


def end_of(row, first=1):
    """How many tokens there are up to the first end from position `first` on."""
    return next((i + 1 for i, token in enumerate(row) if i >= first and token == END), len(row))


@given(rows=ROWS)
def test_up_to_the_first_end_that_is_not_the_first_token(rows):
    tokens = np.array(rows)
    sizes = [end_of(row) for row in rows]
    assert lengths(tokens, END).tolist() == lengths(torch.tensor(rows), END).tolist() == sizes
    assert is_written(tokens, END).tolist() == [[i < n for i in range(len(row))] for n, row in zip(sizes, rows, strict=True)]
    filled = [row[:n] + [END] * (len(row) - n) for n, row in zip(sizes, rows, strict=True)]
    assert padded(tokens, END).tolist() == padded(torch.tensor(rows), END).tolist() == filled
    assert [each.tolist() for each in written_of(tokens, END)] == [row[:n] for n, row in zip(sizes, rows, strict=True)]
    assert has_ended(tokens, END).tolist() == [END in row[1:] for row in rows]
    assert tokens.tolist() == rows  # nothing is changed in place


@given(rows=ROWS, data=st.data())
def test_what_is_given_is_never_cut(rows, data):
    free = data.draw(st.lists(st.booleans(), min_size=len(rows[0]), max_size=len(rows[0])))
    last = max((i + 1 for i, each in enumerate(free) if not each), default=0)
    found = is_written(np.array(rows), END, behind_given(np.array(free))).sum(-1)
    assert found.tolist() == [end_of(row, max(1, last)) for row in rows]
    assert behind_given(torch.tensor(free)).tolist() == behind_given(np.array(free)).tolist()


def test_states_are_padded_behind_ends_that_stand():
    states = torch.tensor([[0, 2, MASK, END, MASK, 2], [END, 2, MASK, 0, 2, 2]])
    assert padded_state(states, END, MASK).tolist() == [[0, 2, MASK, END, MASK, END], states[1].tolist()]
    assert padded_state(states, None, MASK) is padded_state(states, END, None) is states


def test_text_is_shown_before_its_end():
    words = vocabulary()
    ids = words.encode(["the quick fox"])[0]
    text = [*ids, words.eos_id, *ids]
    assert text_of(words, text, words.eos_id) == "the quick fox"
    assert text_of(words, np.array(text), None) == "the quick fox\nthe quick fox"
    assert text_of(words, [words.eos_id, *ids], words.eos_id) == "\nthe quick fox"
    assert text_of(words, ids, words.eos_id) == "the quick fox"


@pytest.mark.parametrize("at_once", [1, 2, 5, 1000])
def test_documents_are_texts_of_their_own(monkeypatch, at_once):
    monkeypatch.setattr("tsdfm.pipeline.text.ends.documents.AT_ONCE", at_once)
    stream = torch.tensor([5, 6, END, END, 7, END, 5, 6, 7, 8, 9, END, 4, 4, 4, END, 9, 9])  # an empty one, and no end at the end
    documents = Documents(stream, END, 4)
    assert [documents.text(n).tolist() for n in range(len(documents))] == [
        [5, 6, END, END], [7, END, END, END], [5, 6, 7, 8], [4, 4, 4, END]]
    assert documents.cut == 1
    assert documents.spread(2).tolist() == [[5, 6, END, END], [4, 4, 4, END]]
    assert documents.spread(9).shape == (4, 4)


def test_no_document():
    with pytest.raises(InputError, match="no document"):
        Documents(torch.tensor([END, END, 5]), END, 4).spread(3)
    assert len(Documents(torch.empty(0, dtype=torch.long), END, 4)) == 0
