"""Frames against the states of the jump log, and pieces against decoding everything at once."""

import time
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.inspection_data import KINDS, dataset, logs_of
from tests.support import present, vocabulary
from tsdfm.pipeline.dataset.frames import Pieces, frames
from tsdfm.pipeline.dataset.manifest import read_vocabulary
from tsdfm.pipeline.text.vocabulary import Vocabulary


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


def trained(kind):
    """A vocabulary of each kind of decoder, trained on a little text."""
    words = ["the quick brown fox jumps over the lazy dog", "they don't keep the most coherent jumps", "masks fall in turn, e.g. 7 times"]
    texts = [f"{words[i % 3]} {i}" for i in range(300)]
    special = ["[EOS]", "[UNK]"]
    trainer: Any
    if kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    elif kind == "Metaspace":
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    elif kind == "byte fallback":
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", byte_fallback=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                               decoders.Strip(" ", 1, 0)])
        trainer = trainers.BpeTrainer(vocab_size=390, special_tokens=[*special, *(f"<0x{i:02X}>" for i in range(256))],
                                      show_progress=False)
    elif kind == "ends of words":
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder()
        trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=special, end_of_word_suffix="</w>", show_progress=False)
    elif kind == "whole words":
        tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))  # no decoder at all: tokens are joined by spaces
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    else:
        return vocabulary()
    tokenizer.train_from_iterator(texts, trainer)
    return Vocabulary(tokenizer, kind)


KINDS_OF_DECODERS = ["WordPiece", "Metaspace", "byte fallback", "ends of words", "whole words", "bytes"]


@pytest.mark.parametrize("kind", KINDS_OF_DECODERS)
def test_pieces_joined_are_the_text_for_every_decoder(kind):
    """Texts, random tokens, and masks in between, as a rollout has them."""
    vocab = trained(kind)
    pieces, rng = Pieces(vocab), np.random.default_rng(0)
    texts = ["the quick brown fox jumps over the lazy dog", "they don't keep 7 masks, e.g. in turn", "日本 é fox 🦊"]
    states = [vocab.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    states += [rng.integers(vocab.size, size=rng.integers(1, 40)).tolist() for _ in range(100)]
    for tokens in states:
        for share in (0.0, 0.3, 0.8):
            state = [vocab.mask_id if rng.random() < share else token for token in tokens]
            found = pieces.of(state)
            assert len(found) == len(state)
            assert "".join(found) == vocab.decode(state)
            assert all(piece == "_" for piece, token in zip(found, state, strict=True) if token == vocab.mask_id)


def test_words_of_word_pieces_stand_apart():
    vocab = trained("WordPiece")
    tokens = vocab.tokenizer.encode("the quick brown fox", add_special_tokens=False).ids
    found = Pieces(vocab).of(tokens)
    assert "".join(found) == "the quick brown fox"
    assert all(piece.strip() for piece in found)  # each token holds its own letters
    masked = [tokens[0], vocab.mask_id, *tokens[2:]]
    assert "".join(Pieces(vocab).of(masked)) == vocab.decode(masked)


def test_long_texts_take_no_time():
    vocab = trained("WordPiece")
    tokens = vocab.tokenizer.encode("they don't keep the quick brown fox " * 150, add_special_tokens=False).ids[:1024]
    pieces, started = Pieces(vocab), time.monotonic()
    for _ in range(20):
        assert "".join(pieces.of(tokens)) == vocab.decode(tokens)
    assert time.monotonic() - started < 20
