"""Train a teacher from text, and measure it on held-out text."""

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from tsdfm.pipeline.corpus import held_out, load_documents, python_distributions, select
from tsdfm.pipeline.denoiser import Denoiser
from tsdfm.pipeline.losses import cross_entropy, generalized_kl
from tsdfm.pipeline.tokenizer import Vocabulary
from tsdfm.pipeline.training import Report, TokenWindows, Trainer
from tsdfm.schemas.base import InputError
from tsdfm.schemas.model import DenoiserConfig
from tsdfm.schemas.train import CorpusConfig, PretrainConfig

EVAL_WINDOWS = 512


@dataclass(frozen=True)
class Corpus:
    """A tokenised corpus: the training stream of the chosen part, held-out windows, and what it was."""

    vocabulary: Vocabulary
    train: torch.Tensor
    held_out: torch.Tensor
    facts: dict[str, object]


def prepare(config: CorpusConfig, vocabulary: Vocabulary | None, vocab_size: int) -> Corpus:
    """Load, split and encode a corpus; a missing vocabulary is trained on all its training documents."""
    documents = load_documents(config)
    vocabulary = vocabulary or Vocabulary.train(select(documents, "all"), vocab_size)
    chosen = select(documents, config.part)
    train = torch.from_numpy(vocabulary.stream(chosen))
    test = torch.from_numpy(vocabulary.stream(held_out(documents)))
    digest = hashlib.sha256("\0".join(documents).encode()).hexdigest()
    facts = {"documents": len(documents), "training_documents": len(chosen), "training_tokens": len(train),
             "held_out_tokens": len(test), "sha256": digest}
    if config.path == "python":
        facts |= {"python": platform.python_version(),
                  "distributions": [f"{d.name}=={d.version}" for d in python_distributions()]}
    return Corpus(vocabulary, train, test, facts)


def windows_of(stream: torch.Tensor, length: int, limit: int) -> torch.Tensor:
    """Up to `limit` windows [n, L] int64 evenly spaced over a stream. Raises InputError if there is none."""
    count = len(stream) // length
    if not count:
        raise InputError(f"the held-out text has {len(stream)} tokens, fewer than one window of {length}; give more text")
    picks = torch.linspace(0, count - 1, min(limit, count)).long()
    return stream[: count * length].view(count, length)[picks].long()


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


def pretrain(config: PretrainConfig, folder: Path, report: Report) -> tuple[Denoiser, Vocabulary, dict[str, object]]:
    """Train a denoiser; training state and TensorBoard logs live in `folder`, from which a rerun resumes.

    Returns the model with its EMA weights, its vocabulary, and facts for `training.json`.
    """
    torch.set_num_threads(config.optim.threads)
    given = Vocabulary.load(Path(config.tokenizer)) if config.tokenizer else None
    corpus = prepare(config.corpus, given, config.vocab_size)
    mask = config.source == "mask"
    model_config = DenoiserConfig(
        **config.shape.model_dump(), vocab_size=corpus.vocabulary.size - (not mask), length=config.length,
        cond_dim=config.cond_dim, source=config.source, mask_id=corpus.vocabulary.mask_id if mask else None,
        kappa_exponent=config.kappa_exponent,
    )
    torch.manual_seed(config.optim.seed)
    model = Denoiser(model_config)
    windows = TokenWindows(corpus.train, config.length, config.optim.batch_size, config.optim.seed)
    loss = cross_entropy if config.objective == "cross_entropy" else generalized_kl
    identity = {**config.model_dump(mode="json"), "corpus_sha256": corpus.facts["sha256"]}
    trainer = Trainer(model, config.optim, folder, identity)
    trainer.resume()
    trainer.run(lambda step, generator: loss(model, windows.batch(step), generator), report)
    scores = evaluate(model, windows_of(corpus.held_out, config.length, EVAL_WINDOWS))
    return model, corpus.vocabulary, {"corpus": corpus.facts, **scores}
