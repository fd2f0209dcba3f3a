"""Fit a compass: a causal LM (`ar`; also how a judge is made) or an NCE encoder (`nce`), and say how well it separates."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tsdfm.pipeline.flow.mixture_path import MixturePath
from tsdfm.pipeline.flow.rollout import roll_out
from tsdfm.pipeline.models.causal import CausalLM
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import ModelFolder
from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.pipeline.text.corpus import EVAL_WINDOWS, Corpus, prepare, windows_of
from tsdfm.pipeline.training.losses import causal_nll, nce
from tsdfm.pipeline.training.token_windows import TokenWindows
from tsdfm.pipeline.training.trainer import Report, Stop, Trainer, never, seeded, whole
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig
from tsdfm.schemas.model import CausalConfig, NceConfig
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.train import CompassConfig
from tsdfm.schemas.training_record import CausalRecord, NceRecord, Separation

TIME_BINS = 8
HELD_OUT_SHARE = 0.2  # of the rollouts, kept for the AUC
ROLLOUT_BATCH = 64
# Keeps the noise apart from the trajectories of `generate`, which the compass will judge and must not have seen.
NOISE_SEED = 0x6E6F6973


@dataclass(frozen=True)
class Fit:
    """A fitted network, how it was made, and what was measured on held-out data."""

    network: CausalLM | NceEncoder
    record: CausalRecord | NceRecord


def fit_ar(
    config: CompassConfig, opened: ModelFolder[Denoiser], folder: Path, report: Report, stop: Stop = never,
    progress: Progress = unheard,
) -> Fit | None:
    """Fit a causal LM on one half of the corpus; measured: held-out perplexity per token.

    Args:
        config: what to fit.
        opened: the teacher, for its vocabulary and length.
        folder: of training state and TensorBoard logs; a rerun resumes from there.
        report: called every `optim.log_every` updates with (update, scalars); returning True saves and stops.
        stop: asked after every update whether to save and stop.
        progress: of reading the corpus.

    Returns None if it was stopped.

    Raises InputError: no such corpus, too little text, or a `folder` of another run; WorkError: the loss is not finite.
    """
    teacher, vocabulary = opened.network, opened.vocabulary
    corpus = prepare(config.corpus, vocabulary, vocabulary.size, progress)
    shape = CausalConfig(
        **config.shape.model_dump(), vocab_size=vocabulary.size_without_mask, length=teacher.config.length,
        bos_id=vocabulary.eos_id)
    with seeded(config.optim.seed):
        model = CausalLM(shape)
    windows = _windows(config, corpus, teacher.config.length)
    held = windows_of(corpus.held_out, teacher.config.length, EVAL_WINDOWS)  # refused now, not after the training
    trainer = Trainer(model, config.optim, folder, _identity(config, corpus, vocabulary.fingerprint))
    trainer.resume()
    if not trainer.run(whole(lambda step, _: causal_nll(model, windows.batch(step))), report, stop=stop):
        return None
    with torch.no_grad():
        nll = torch.stack([causal_nll(model, part) * len(part) for part in held.split(64)]).sum() / len(held)
    return Fit(model, CausalRecord(
        config=config, corpus=corpus.facts, tokenizer=vocabulary.fingerprint, held_out_perplexity=float(nll.exp())))


def fit_nce(
    config: CompassConfig, opened: ModelFolder[Denoiser], folder: Path, report: Report, stop: Stop = never,
    progress: Progress = unheard,
) -> Fit | None:
    """Fit an encoder, started from the teacher's trunk, by noise-contrastive estimation; measured: held-out AUC per time bin.

    Real: noised text at time t. Noise: states of blind teacher rollouts at time t. `progress` is that of the rollouts,
    too; all else as `fit_ar`.
    """
    teacher, vocabulary = opened.network, opened.vocabulary
    corpus = prepare(config.corpus, vocabulary, vocabulary.size, progress)
    held = windows_of(corpus.held_out, teacher.config.length, EVAL_WINDOWS)  # refused now, not after the training
    states = noise_states(config, teacher, progress)
    cut = max(1, int(len(states) * (1 - HELD_OUT_SHARE)))
    with seeded(config.optim.seed):
        model = NceEncoder(NceConfig(trunk=teacher.config))
    model.trunk.load_state_dict(teacher.trunk.state_dict())
    model.requires_grad_(True)
    windows, path = _windows(config, corpus, teacher.config.length), MixturePath.of(teacher.config)

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        steps = torch.randint(states.shape[1], (config.optim.batch_size,), generator=generator)
        return nce(model, *_contrast(windows.batch(step), states[:cut], steps, path, generator))

    trainer = Trainer(model, config.optim, folder, _identity(config, corpus, opened.fingerprint))
    trainer.resume()
    if not trainer.run(whole(loss_at), report, stop=stop):
        return None
    separation = auc_per_bin(model, held, states[cut:], path)
    return Fit(model, NceRecord(
        config=config, corpus=corpus.facts, teacher=opened.fingerprint, rollouts=len(states), held_out_auc=separation))


def noise_states(config: CompassConfig, teacher: Denoiser, progress: Progress = unheard) -> Tensor:
    """Every state of every blind rollout: [R, N, L] int64, entry [r, s] at time (s + 1)/N."""
    rollout = RolloutConfig(steps=config.rollout_steps, seed=(config.optim.seed + NOISE_SEED) % 2**32)
    states = np.empty((config.rollouts, config.rollout_steps, teacher.config.length), dtype=np.int64)
    for start in range(0, config.rollouts, ROLLOUT_BATCH):
        ids = range(start, min(start + ROLLOUT_BATCH, config.rollouts))
        for log in roll_out(teacher, None, rollout, ShapingConfig(candidates=1), ids, "blind"):
            for step in range(config.rollout_steps):
                states[log.trajectory_id, step] = log.state_after(step, teacher.config.mask_id)
        progress("rolling out noise", ids.stop, config.rollouts)
    return torch.from_numpy(states)


def _contrast(
    text: Tensor, states: Tensor, steps: Tensor, path: MixturePath, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Pair text [B, L] with teacher states [R, N, L] at its steps [B]: (real [B, L], noise [B, L], t [B])."""
    row = torch.randint(len(states), (len(text),), generator=generator)
    t = (steps + 1).float() / states.shape[1]
    return path.sample(text, t, generator), states[row, steps], t


@torch.no_grad()
def auc_per_bin(model: NceEncoder, text: Tensor, states: Tensor, path: MixturePath) -> list[Separation]:
    """Area under the ROC curve of real text [n, L] against teacher states [R, N, L], in up to TIME_BINS bins of t."""
    generator = torch.Generator().manual_seed(0)
    model.eval()
    steps = states.shape[1]
    result = []
    for part in torch.arange(steps).tensor_split(min(TIME_BINS, steps)):
        picked = part[torch.randint(len(part), (len(text),), generator=generator)]
        real, noise, t = _contrast(text, states, picked, path, generator)
        result.append(Separation(t_from=float(part[0] + 1) / steps, t_to=float(part[-1] + 1) / steps,
                                 auc=auc(_logits(model, real, t), _logits(model, noise, t))))
    return result


def _logits(model: NceEncoder, states: Tensor, t: Tensor) -> npt.NDArray[np.floating]:
    chunks = zip(states.split(64), t.split(64), strict=True)
    return torch.cat([model(x, time) for x, time in chunks]).numpy()


def auc(positive: npt.NDArray[np.floating], negative: npt.NDArray[np.floating]) -> float:
    """P(positive > negative) + P(equal)/2 over all pairs (the Mann-Whitney statistic); 1-d arrays."""
    difference = np.sign(positive[:, None] - negative[None, :])
    return float((difference.mean() + 1) / 2)


def _windows(config: CompassConfig, corpus: Corpus, length: int) -> TokenWindows:
    return TokenWindows(corpus.train, length, config.optim.batch_size, config.optim.seed)


def _identity(config: CompassConfig, corpus: Corpus, made_for: str) -> dict[str, object]:
    """What a resumed run must share; `made_for`: fingerprint of the tokenizer (`ar`), or of the teacher (`nce`)."""
    settings = config.model_dump(mode="json", exclude={"teacher"})
    return {**settings, "corpus_sha256": corpus.facts.sha256, "made_for": made_for}
