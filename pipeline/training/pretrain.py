"""Train a teacher from text, and measure it on held-out text."""

from dataclasses import dataclass
from pathlib import Path

import torch

from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.text.corpus import EVAL_WINDOWS, prepare, windows_of
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.pipeline.training.losses import cross_entropy, generalized_kl
from tsdfm.pipeline.training.token_windows import TokenWindows
from tsdfm.pipeline.training.trainer import Report, Stop, Trainer, never, seeded, whole
from tsdfm.schemas.model import DenoiserConfig
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.train import PretrainConfig
from tsdfm.schemas.training_record import PretrainRecord


@dataclass(frozen=True)
class Teacher:
    """A trained denoiser, its vocabulary, and how it was made."""

    network: Denoiser
    vocabulary: Vocabulary
    record: PretrainRecord


@torch.no_grad()
def evaluate(model: Denoiser, windows: torch.Tensor) -> dict[str, float]:
    """Held-out cross entropy per noised token and negative ELBO per token, in nats; windows [n, L]."""
    model.eval()
    generator = torch.Generator().manual_seed(0)
    chunks = windows.split(64)
    sizes = torch.tensor([len(c) for c in chunks], dtype=torch.float64)
    ce = torch.tensor([float(cross_entropy(model, c, generator)) for c in chunks], dtype=torch.float64)
    elbo = torch.tensor([float(generalized_kl(model, c, generator)) for c in chunks], dtype=torch.float64)
    return {"held_out_cross_entropy": float((ce * sizes).sum() / sizes.sum()),
            "held_out_negative_elbo": float((elbo * sizes).sum() / sizes.sum())}


def pretrain(
    config: PretrainConfig, folder: Path, report: Report, stop: Stop = never, progress: Progress = unheard,
) -> Teacher | None:
    """Train a denoiser; training state and TensorBoard logs live in `folder`, from which a rerun resumes.

    `progress` is that of reading the corpus.

    Returns the model with its EMA weights; None if `report` or `stop` asked to stop, after a checkpoint. Raises InputError: no
    such corpus or tokenizer, too little text, or a `folder` that holds a run of another config; WorkError: the loss is not
    finite.
    """
    given = Vocabulary.adopt(Path(config.tokenizer), config.eos) if config.tokenizer else None
    corpus = prepare(config.corpus, given, config.vocab_size, progress)
    words, mask = corpus.vocabulary, config.source == "mask"
    model_config = DenoiserConfig(
        **config.shape.model_dump(), vocab_size=words.size if mask else words.size_without_mask, length=config.length,
        cond_dim=config.cond_dim, source=config.source, mask_id=words.mask_id if mask else None,
        kappa_exponent=config.kappa_exponent,
    )
    held = windows_of(corpus.held_out, config.length, EVAL_WINDOWS)  # refused now, not after the training
    with seeded(config.optim.seed):
        model = Denoiser(model_config)
    windows = TokenWindows(corpus.train, config.length, config.optim.batch_size, config.optim.seed)
    loss = cross_entropy if config.objective == "cross_entropy" else generalized_kl
    identity = {**config.model_dump(mode="json"), "corpus_sha256": corpus.facts.sha256}
    trainer = Trainer(model, config.optim, folder, identity)
    trainer.resume()
    if not trainer.run(whole(lambda step, generator: loss(model, windows.batch(step), generator)), report, stop=stop):
        return None
    scores = evaluate(model, held)
    return Teacher(model, words, PretrainRecord(config=config, corpus=corpus.facts, **scores))
