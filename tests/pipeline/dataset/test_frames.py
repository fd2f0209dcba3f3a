"""Frames against the states of the jump log, and pieces against decoding everything at once."""

import numpy as np
import pytest

from tests.inspection_data import KINDS, dataset, logs_of
from tests.support import present, vocabulary
from tsdfm.pipeline.dataset.frames import Pieces, frames
from tsdfm.pipeline.dataset.manifest import read_vocabulary


@pytest.fixture(scope="module", params=KINDS)
def opened(request, tmp_path_factory, tiny_models):
    store, manifest = dataset(request.param, tmp_path_factory.mktemp(request.param), tiny_models)
    arms = ("shaped", "blind") if manifest.identity.arm == "both" else (manifest.identity.arm,)
    logs = [log for arm in arms for log in logs_of(store, manifest, arm)]
    return logs, read_vocabulary(store, manifest), manifest.identity.grid


def test_there_is_one_frame_per_step_with_events(opened):
    logs, vocab, grid = opened
    for log in logs:
        pictures = frames(log, vocab, grid)
        assert [frame.step for frame in pictures] == sorted(set(log.event_step.tolist()))
        assert [frame.t for frame in pictures] == [(frame.step + 1) / grid.steps for frame in pictures]


def test_a_frame_shows_the_state_after_its_step(opened):
    logs, vocab, grid = opened
    for log in logs:
        for frame in frames(log, vocab, grid):
            state = log.state_after(frame.step, grid.mask_id).tolist()
            assert len(frame.pieces) == len(state)
            assert "".join(frame.pieces) == vocab.decode(state)
            assert frame.masked == [token == grid.mask_id for token in state]
            masks = {piece for piece, hidden in zip(frame.pieces, frame.masked, strict=True) if hidden}
            assert masks <= {"_"}
        assert "".join(frames(log, vocab, grid)[-1].pieces) == vocab.decode(log.tokens.tolist())


def test_changes_and_candidates_are_the_events_of_the_step(opened):
    logs, vocab, grid = opened
    for log in logs:
        for frame in frames(log, vocab, grid):
            here = log.event_step == frame.step
            assert frame.changed == log.event_position[here].tolist()
            assert frame.candidates == [
                [vocab.decode([token]) for token in each] for each in log.event_candidates[here].tolist()]


def test_energies_and_choice_belong_to_the_step(opened):
    logs, vocab, grid = opened
    for log in logs:
        shaped = {} if log.arm == "blind" else {step: slot for slot, step in enumerate(grid.shaped_steps)}
        for frame in frames(log, vocab, grid):
            if frame.step not in shaped:
                assert (frame.energies, frame.choice) == (None, None)
                continue
            energies = log.step_energy[shaped[frame.step]].tolist()
            assert frame.choice == log.step_choice[shaped[frame.step]]
            assert frame.energies == (None if np.isnan(energies).any() else energies)
            written = log.event_token[log.event_step == frame.step].tolist()
            kept = [each[present(frame.choice)] for each in frame.candidates]
            assert kept == [vocab.decode([token]) for token in written]


def test_pieces_joined_are_the_text_whatever_the_bytes():
    """Random ids of a byte-level vocabulary: broken characters, whole ones in parts, breaks, masks."""
    vocab = vocabulary()
    pieces, rng = Pieces(vocab), np.random.default_rng(0)
    for _ in range(300):
        tokens = rng.integers(vocab.size, size=rng.integers(1, 30)).tolist()
        found = pieces.of(tokens)
        assert len(found) == len(tokens)
        assert "".join(found) == vocab.decode(tokens)


@pytest.mark.parametrize("text", ["naïve café", "日本語 text", "🦊 jumps", "ends in é"])
def test_a_character_of_several_tokens_is_shown_whole(text):
    vocab = vocabulary()
    tokens = vocab.tokenizer.encode(text, add_special_tokens=False).ids
    found = Pieces(vocab).of(tokens)
    assert "".join(found) == text
    assert "\ufffd" not in "".join(found)
    assert len(found) == len(tokens) > len(text.split())
