"""The training loop: exact resume, refusals, EMA, windows of tokens; and `pretrain` on a small corpus."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from tensorboard.summary.writer import event_file_writer  # type: ignore[import-untyped]
from torch import nn

from tests.support import present, write_corpus
from tsdfm.pipeline.text.corpus import prepare, windows_of
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.pipeline.training.loop.checkpoint import HEADER_FILE, STATE_FILE
from tsdfm.pipeline.training.loop.trainer import Ending, Trainer, Watch, generator_of, learning_rate, whole
from tsdfm.pipeline.training.pretrain import evaluate, pretrain
from tsdfm.pipeline.training.text_trainer import TokenWindows
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.corpus import CorpusConfig
from tsdfm.schemas.former import FORMER, FormerModel
from tsdfm.schemas.optim import HELD_OUT_LOSS, OptimConfig
from tsdfm.schemas.train import PretrainConfig

OPTIM = OptimConfig(steps=17, batch_size=4, lr=0.05, warmup=3, log_every=4, checkpoint_every=5, seed=1)


def model_of(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.0), nn.Linear(5, 1))


def loss_of(model):
    """A regression whose data come from the update's generator."""
    def loss_at(step, generator):
        x = torch.randn(8, 3, generator=generator)
        return ((model(x) - x.sum(1, keepdim=True).sin()) ** 2).mean()
    return loss_at


class Killed(BaseException):
    """Stands for a kill signal."""


def killed_at(step, loss_at):
    def wrapped(now, generator):
        if now == step:
            raise Killed
        return loss_at(now, generator)
    return wrapped


def into(reports):
    return lambda step, scalars: reports.append((step, scalars))


def train(folder, *, config=OPTIM, die_at=(), identity=None, stay_dead=False):
    """Train, dying and coming back as a new process would; returns model, trainer, and the last session's reports."""
    for death in die_at if stay_dead else (*die_at, None):
        model = model_of()
        reports: list[tuple[int, Any]] = []
        trainer = Trainer(model, config, folder, identity or {"optim": config.model_dump(mode="json")})
        trainer.resume()
        loss_at = loss_of(model) if death is None else killed_at(death, loss_of(model))
        try:
            trainer.run(whole(loss_at), into(reports))
        except Killed:
            continue
    return model, trainer, reports


def assert_same(one, other):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("die_at", [(8,), (7,), (11,), (5, 8, 8, 9)])
def test_tensorboard_has_each_line_once_however_often_it_went_on(tmp_path, monkeypatch, die_at):
    """Also that of the very update from which a training goes on, and of one that is finished when it is run again."""
    # Files of one second are read in the order of this number, as text: that it has two digits throughout is as good as later seconds.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(10))
    config = OPTIM.model_copy(update={"steps": 12, "log_every": 2, "checkpoint_every": 4})
    _, _, whole_run = train(tmp_path / "whole", config=config)
    train(tmp_path / "cut", config=config, die_at=die_at)
    train(tmp_path / "cut", config=config)
    events = EventAccumulator(str(tmp_path / "cut" / "tensorboard"))
    events.Reload()
    found = events.Scalars("lr")
    assert [each.step for each in found] == [2, 4, 6, 8, 10, 12]
    assert [each.value for each in found] == pytest.approx([scalars["lr"] for _, scalars in whole_run])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("die_at", [(0,), (1,), (4,), (5,), (6,), (13,), (16,), (7, 12), (5, 5, 16)], ids=str)
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, uninterrupted, die_at):
    whole_model, whole, _ = uninterrupted
    model, trainer, _ = train(tmp_path, die_at=die_at)
    assert trainer.step == 17
    assert_same(model, whole_model)
    for mine, theirs in zip(trainer.average, whole.average, strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(trainer.optimizer.state.values(), whole.optimizer.state.values(), strict=True):
        assert all(torch.equal(mine[k], theirs[k]) for k in ("exp_avg", "exp_avg_sq"))
        assert float(mine["step"]) == float(theirs["step"]) == 17


def test_a_resumed_session_reports_what_the_whole_one_did(tmp_path, uninterrupted):
    """Killed at 12, resumed at 10: the lines of updates 16 and 17 are those of the uninterrupted run."""
    reports = train(tmp_path, die_at=(12,))[2]
    whole = dict(uninterrupted[2])
    assert list(whole) == [4, 8, 12, 16, 17]
    assert [step for step, _ in reports] == [12, 16, 17]
    for step, scalars in reports[1:]:
        assert scalars == whole[step]


def test_a_finished_run_resumes_to_the_same_model(tmp_path, uninterrupted):
    train(tmp_path)
    model, _, reports = train(tmp_path)
    assert reports == []
    assert_same(model, uninterrupted[0])
    assert not model.training


def test_killed_between_the_two_files_of_a_checkpoint(tmp_path, uninterrupted):
    """Tensors of update 10 under the header of update 5: the tensors' own step rules."""
    train(tmp_path / "five", die_at=(7,), stay_dead=True)
    train(tmp_path / "ten", die_at=(12,), stay_dead=True)
    assert [json.loads((tmp_path / n / HEADER_FILE).read_text())["step"] for n in ("five", "ten")] == [5, 10]
    (tmp_path / "ten" / HEADER_FILE).write_bytes((tmp_path / "five" / HEADER_FILE).read_bytes())
    model, _, reports = train(tmp_path / "ten")
    assert reports[0][0] == 12
    assert_same(model, uninterrupted[0])


def test_killed_before_the_first_header(tmp_path, uninterrupted):
    train(tmp_path, die_at=(7,), stay_dead=True)
    (tmp_path / HEADER_FILE).unlink()
    assert_same(train(tmp_path)[0], uninterrupted[0])


@pytest.mark.parametrize(("change", "named"), [
    ({"source": "uniform"}, "source"), ({"extra": 1}, "extra"), ({"optim": {"lr": 0.1, "steps": 17}}, "lr"),
])
def test_a_run_of_another_config_is_refused_and_the_field_named(tmp_path, change, named):
    identity = {"source": "mask", "optim": {"lr": 0.05, "steps": 17}}
    train(tmp_path, identity=identity)
    before = (tmp_path / STATE_FILE).read_bytes()
    trainer = Trainer(model_of(), OPTIM, tmp_path, {**identity, **change})
    with pytest.raises(InputError, match=named) as caught:
        trainer.resume()
    assert "\n" not in str(caught.value)
    assert "steps" not in str(caught.value)
    assert (tmp_path / STATE_FILE).read_bytes() == before


@pytest.mark.parametrize("damage", ["truncated", "empty", "junk"])
def test_an_unreadable_checkpoint_is_one_line(tmp_path, damage):
    train(tmp_path)
    data = (tmp_path / STATE_FILE).read_bytes()
    (tmp_path / STATE_FILE).write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "junk": b"\x80\x04K\x01."}[damage])
    with pytest.raises(InputError, match=STATE_FILE) as caught:
        train(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": 3}'])
def test_an_unreadable_header_is_one_line(tmp_path, text):
    train(tmp_path)
    (tmp_path / HEADER_FILE).write_text(text)
    with pytest.raises(InputError, match=HEADER_FILE) as caught:
        train(tmp_path)
    assert "\n" not in str(caught.value)


def test_one_changed_bit_of_a_checkpoint_is_refused(tmp_path):
    """Every tensor still loads; only the checksum tells."""
    train(tmp_path, die_at=(6,), stay_dead=True)
    data = bytearray((tmp_path / STATE_FILE).read_bytes())
    data[-1] ^= 1
    (tmp_path / STATE_FILE).write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        train(tmp_path)


@pytest.mark.parametrize("known", [True, False])
def test_a_run_on_an_embedded_model_of_a_former_version_says_so(tmp_path, known, monkeypatch):
    old, new = (dict[str, Any](optim={"steps": 17}, made_for=digit * 64) for digit in "ab")
    train(tmp_path, identity=old)
    if known:
        monkeypatch.setitem(FORMER, "a" * 64, FormerModel("teacher of the tests", "0.0.9", "there/teacher"))
    with pytest.raises(InputError) as caught:
        Trainer(model_of(), OPTIM, tmp_path, new).resume()
    assert "made_for (there aaa" in str(caught.value)
    assert str(caught.value).endswith("; what is there was made with the embedded teacher of the tests of tsdfm-pipeline 0.0.9 "
                                      "(there/teacher there), which this version has replaced") == known


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    train(tmp_path, die_at=(6,), stay_dead=True)
    trainer = Trainer(nn.Linear(3, 5), OPTIM, tmp_path, {"optim": OPTIM.model_dump(mode="json")})
    with pytest.raises(InputError, match="not a training checkpoint of this model"):
        trainer.resume()


def test_a_checkpoint_is_written_after_a_while_however_long_updates_take(tmp_path, monkeypatch):
    monkeypatch.setattr("tsdfm.pipeline.training.loop.trainer.CHECKPOINT_SECONDS", -1.0)
    train(tmp_path, die_at=(4,), stay_dead=True)  # before the first of every five
    assert json.loads((tmp_path / HEADER_FILE).read_text())["step"] == 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path, uninterrupted, value):
    model = model_of()
    trainer = Trainer(model, OPTIM, tmp_path, {"optim": OPTIM.model_dump(mode="json")})
    real = loss_of(model)
    with pytest.raises(WorkError, match="update 12") as caught:
        trainer.run(whole(lambda step, g: real(step, g) * (value if step == 12 else 1)), lambda *_: None)
    assert "\n" not in str(caught.value)
    assert json.loads((tmp_path / HEADER_FILE).read_text())["step"] == 10
    assert_same(train(tmp_path)[0], uninterrupted[0])  # which is sound


def test_a_gradient_that_is_not_finite_never_reaches_the_checkpoint(tmp_path):
    """The loss is finite and its gradient NaN (the root of a zero): weights must not be poisoned and then saved."""
    model = model_of()
    trainer = Trainer(model, OPTIM, tmp_path, {"optim": OPTIM.model_dump(mode="json")})
    real = loss_of(model)

    def loss_at(step, generator):
        loss = real(step, generator)
        return loss + (loss * 0).sqrt() * 0 if step == 9 else loss  # update 9 is the last before a checkpoint

    with pytest.raises(WorkError):
        trainer.run(whole(loss_at), lambda *_: None)
    resumed = Trainer(model_of(), OPTIM, tmp_path, {"optim": OPTIM.model_dump(mode="json")})
    resumed.resume()
    assert all(p.isfinite().all() for p in resumed.parameters)


def test_the_saved_model_is_the_ema(tmp_path, monkeypatch):
    """Recomputed from the weights of every update: decay min(ema, (1 + s) / (10 + s))."""
    config = OPTIM.model_copy(update={"ema": 0.7, "steps": 30})
    model, seen = model_of(), []
    average = [p.detach().double() for p in model_of().parameters()]
    trainer = Trainer(model, config, tmp_path, {})
    real = loss_of(model)

    def loss_at(step, generator):
        seen.append([p.detach().double().clone() for p in model.parameters()])
        return real(step, generator)

    raw = []
    save = trainer.save
    monkeypatch.setattr(trainer, "save", lambda: (raw.append([p.detach().double().clone() for p in model.parameters()]), save()))
    trainer.run(whole(loss_at), lambda *_: None)
    after = [*seen[1:], raw[-1]]
    for step, weights in enumerate(after):
        decay = min(0.7, (1 + step) / (10 + step))
        average = [decay * a + (1 - decay) * w for a, w in zip(average, weights, strict=True)]
    for mine, expected, last in zip(model.parameters(), average, raw[-1], strict=True):
        torch.testing.assert_close(mine.detach().double(), expected, rtol=0, atol=1e-5)
        assert not torch.allclose(mine.detach().double(), last, atol=1e-4)


@pytest.mark.parametrize("patience", [None, 1])
def test_between_the_start_and_the_trained_weights(tmp_path, patience):
    """Saved, and measured at each line, is what lies so far on the way; the training itself is another's bit for bit, cut or not."""
    def trained(name, interpolate, stops=()):
        lines = []
        for stop in (*stops, 10**6):
            model = model_of()
            trainer = Trainer(model, OPTIM, tmp_path / name, {}, ending=Ending(patience, interpolate))
            trainer.resume()

            def gauges(trainer=trainer, model=model):
                with trainer.averaged():
                    lines.append([p.detach().clone() for p in model.parameters()])
                return {HELD_OUT_LOSS: float(trainer.step)}  # the first line's is the lowest

            def report(step, scalars, stop=stop):
                return step >= stop

            if trainer.run(whole(loss_of(model)), report, gauges):
                return list(model.parameters()), lines
        raise AssertionError

    start, (full, lines), (half, half_lines) = list(model_of().parameters()), trained("full", 1.0), trained("half", 0.25)
    for begun, trained_there, between in zip(start, full, half, strict=True):
        torch.testing.assert_close(between, begun + 0.25 * (trained_there - begun), rtol=0, atol=1e-6)
        assert not torch.equal(between, trained_there)
    for at_line, at_half_line in zip(lines, half_lines, strict=True):
        for begun, there, between in zip(start, at_line, at_half_line, strict=True):
            torch.testing.assert_close(between, begun + 0.25 * (there - begun), rtol=0, atol=1e-6)
    cut, _ = trained("cut", 0.25, stops=(4,))
    assert all(torch.equal(one, other) for one, other in zip(cut, half, strict=True))


def test_updates_are_adamw_with_clipping_and_decay_of_matrices_only(tmp_path):
    """Against torch's plain AdamW on the same losses."""
    config = OPTIM.model_copy(update={"steps": 6, "clip": 0.05, "weight_decay": 0.5})
    model, other = model_of(), model_of()
    trainer = Trainer(model, config, tmp_path, {})
    matrices, vectors = ([p for p in other.parameters() if (p.ndim >= 2) == wanted] for wanted in (True, False))
    plain = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.5}, {"params": vectors, "weight_decay": 0.0}],
                              betas=(0.9, config.beta2), foreach=False)
    for step in range(6):
        value, norm = trainer.update(whole(loss_of(model)))
        for group in plain.param_groups:
            group["lr"] = learning_rate(config, step)
        loss = loss_of(other)(step, generator_of(config.seed, step))
        plain.zero_grad()
        loss.backward()
        total = float(torch.stack([p.grad.norm() for p in other.parameters()]).norm())
        assert value == pytest.approx(float(loss), rel=1e-5)
        assert norm == pytest.approx(total, rel=1e-5)
        for p in other.parameters():
            p.grad *= min(1, 0.05 / total)
        plain.step()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("warmup", [0, 1, 10, 100, 200])
def test_learning_rate(warmup):
    config = OptimConfig(steps=100, warmup=warmup, lr=0.5, final_lr_ratio=0.1)
    rates = [learning_rate(config, s) for s in range(100)]
    assert all(0 < r <= 0.5 for r in rates)
    rising = min(warmup, 100)
    assert rates[:rising] == sorted(rates[:rising])
    assert rates[rising:] == sorted(rates[rising:], reverse=True)
    if 0 < warmup < 100:
        assert rates[warmup - 1] == 0.5
        assert rates[0] == pytest.approx(0.5 / warmup)
    if warmup <= 10:
        assert rates[-1] == pytest.approx(0.05, rel=0.02)


# ------------------------------------------------------------------ randomness

def test_the_generator_of_an_update_is_a_function_of_seed_and_step():
    def draw(seed, step):
        return tuple(torch.rand(4, generator=generator_of(seed, step)).tolist())

    assert draw(3, 5) == draw(3, 5)
    steps = {draw(3, s) for s in range(50)}
    assert len(steps) == 50


def test_another_seed_is_another_run():
    """(seed, step) pairs must all differ. torch's CPU generator uses the low 32 bits of its seed only."""
    draws = {tuple(torch.rand(4, generator=generator_of(seed, step)).tolist())
             for seed in (0, 1, 2, 2**32 - 1) for step in range(10)}
    assert len(draws) == 40


def test_another_seed_is_another_order_of_windows():
    stream = torch.arange(1000)
    batches = [TokenWindows(stream, 10, 8, seed).batch(0) for seed in (0, 1, 2)]
    assert not torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[1], batches[2])


# ------------------------------------------------------------------ windows

@given(length=st.integers(1, 9), extra=st.integers(0, 30), batch=st.integers(1, 7), data=st.data())
def test_windows_are_pure_in_seed_and_step(length, extra, batch, data):
    """Asked in any order, by one object or by many: the same batch; every row is a stretch of the stream."""
    stream = torch.arange(2 * length + extra)
    steps = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=8))
    asked = TokenWindows(stream, length, batch, 5)
    for step in steps:
        out = asked.batch(step)
        assert torch.equal(out, TokenWindows(stream, length, batch, 5).batch(step))
        assert out.shape == (batch, length)
        assert out.dtype == torch.int64
        assert (out.diff(dim=1) == 1).all()
        assert ((out >= 0) & (out < len(stream))).all()


def test_an_epoch_takes_every_window_once_and_shifts_them():
    windows = TokenWindows(torch.arange(105), 10, 3, 2)
    assert windows.windows == 9
    offsets = []
    for epoch in range(12):
        starts = torch.cat([windows.batch(step)[:, 0] for step in range(3 * epoch, 3 * epoch + 3)])
        offset = int(starts.min())
        assert sorted(starts.tolist()) == [offset + 10 * i for i in range(9)]
        assert starts.tolist() != sorted(starts.tolist())
        offsets.append(offset)
    assert len(set(offsets)) > 4
    assert 0 <= min(offsets) < max(offsets) <= 9


def test_offsets_are_uniform():
    windows = TokenWindows(torch.arange(40), 4, 9, 2)
    offsets = np.array([int(windows.batch(epoch)[:, 0].min()) for epoch in range(2000)])
    assert chisquare(np.bincount(offsets, minlength=4)).pvalue > 1e-4


def test_a_stream_too_short_is_refused():
    TokenWindows(torch.arange(20), 10, 1, 0).batch(3)
    with pytest.raises(InputError, match="19 tokens"):
        TokenWindows(torch.arange(19), 10, 1, 0)


def test_windows_of_spread_over_the_stream():
    out = windows_of(torch.arange(1005), 10, 5)
    assert out[:, 0].tolist() == [0, 240, 490, 740, 990]
    assert windows_of(torch.arange(35), 10, 5)[:, 0].tolist() == [0, 10, 20]
    with pytest.raises(InputError, match="9 tokens"):
        windows_of(torch.arange(9), 10, 5)


# ------------------------------------------------------------------ pretrain

@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """2,000 short documents of a tiny language."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.txt", 2000)


def small(corpus, **optim):
    return PretrainConfig(
        corpus=CorpusConfig(path=str(corpus)), vocab_size=300, length=8,
        shape={"hidden_size": 16, "n_blocks": 1, "n_heads": 1}, cond_dim=8,
        optim=OptimConfig(**{"steps": 12, "batch_size": 4, "warmup": 2, "checkpoint_every": 4, "log_every": 5} | optim))


@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_pretrain_end_to_end(tmp_path, corpus, source):
    config = small(corpus).model_copy(update={"source": source})
    made = present(pretrain(config, tmp_path, lambda *_: None))
    model, vocabulary, record = made.network, made.vocabulary, made.record
    assert vocabulary.size == 300
    assert model.config.vocab_size == 300 - (source == "uniform")
    assert model.config.mask_id == (vocabulary.mask_id if source == "mask" else None)
    assert record.corpus.documents > record.corpus.training_documents > 1900
    assert 0 < record.held_out_cross_entropy < math.log(300)
    assert record.held_out_negative_elbo > 0
    assert not model.training


def test_too_little_held_out_text_is_refused_before_the_training(tmp_path, corpus):
    """Story: ten hours of training on one long document, and then no text to measure it on."""
    reports = []
    short = write_corpus(tmp_path / "short.txt", 60)
    config = small(short).model_copy(update={"length": 128, "optim": OptimConfig(steps=1, log_every=1)})
    with pytest.raises(InputError, match=r"held-out text has .* fewer than one window of 128"):
        pretrain(config, tmp_path / "state", lambda *report: reports.append(report))
    assert not reports


def test_pretrain_stops_and_goes_on(tmp_path, corpus):
    whole_run = present(pretrain(small(corpus), tmp_path / "a", lambda *_: None))
    asked = iter([False, False, True])
    assert pretrain(small(corpus), tmp_path / "b", lambda *_: None, Watch(stop=lambda: next(asked))) is None
    assert json.loads((tmp_path / "b" / HEADER_FILE).read_text())["step"] == 3
    resumed = present(pretrain(small(corpus), tmp_path / "b", lambda *_: None))
    assert_same(resumed.network, whole_run.network)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_pretrain_resumes_bit_for_bit(tmp_path, corpus, dropout):
    """Dropout, too, is a random number of its update."""
    config = small(corpus)
    config = config.model_copy(update={"shape": config.shape.model_copy(update={"dropout": dropout})})
    uncut = present(pretrain(config, tmp_path / "a", lambda *_: None))

    def die(step, scalars):
        raise Killed

    with pytest.raises(Killed):
        pretrain(config, tmp_path / "b", die)  # at update 5, after the checkpoint of 4
    torch.rand(17)  # a new process would stand elsewhere in torch's own stream, too
    resumed = present(pretrain(config, tmp_path / "b", lambda *_: None))
    assert_same(resumed.network, uncut.network)
    assert resumed.record == uncut.record


def test_pretrain_depends_on_its_seed(tmp_path, corpus):
    """Same initial weights or not, the batches and the noise differ: so do the results."""
    first, second = (present(pretrain(small(corpus, seed=seed), tmp_path / str(seed), lambda *_: None)).record for seed in (0, 1))
    assert first.held_out_cross_entropy != second.held_out_cross_entropy


def test_pretrain_refuses_another_corpus(tmp_path, corpus):
    pretrain(small(corpus), tmp_path, lambda *_: None)
    text = corpus.read_text()
    try:
        corpus.write_text(text + "\n\nOne more document, long enough to be kept, and unlike all of the others in here.")
        with pytest.raises(InputError, match="corpus_sha256"):
            pretrain(small(corpus), tmp_path, lambda *_: None)
    finally:
        corpus.write_text(text)


def test_halves_of_a_corpus_share_no_document(corpus):
    vocabulary = Vocabulary.train([corpus.read_text()], 300)
    streams = {part: prepare(CorpusConfig(path=str(corpus), part=part), vocabulary, 300) for part in ("all", "first", "second")}
    counts = {part: c.facts.training_documents for part, c in streams.items()}
    assert counts["first"] + counts["second"] == counts["all"]
    assert min(counts["first"], counts["second"]) > 800
    assert len({c.facts.sha256 for c in streams.values()}) == 1
    assert torch.equal(streams["first"].held_out[:], streams["second"].held_out[:])


def test_evaluate_is_deterministic_and_weights_every_window_alike(tmp_path, corpus):
    model = present(pretrain(small(corpus), tmp_path, lambda *_: None)).network
    windows = torch.randint(299, (130, 8), generator=torch.Generator().manual_seed(0))
    model.train()
    scores = evaluate(model, windows)
    assert not model.training
    assert scores == evaluate(model, windows)
    assert set(scores) == {"held_out_cross_entropy", "held_out_negative_elbo"}
