"""Train a teacher from text, and measure it on held-out text."""

from dataclasses import dataclass
from pathlib import Path

import torch

from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import holds_whole, load, save
from tsdfm.pipeline.text.corpus import corpus_sha256
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.pipeline.training.loop.data_parallel import Place, state_owned
from tsdfm.pipeline.training.loop.trainer import UNWATCHED, Report, Watch, finite, seeded
from tsdfm.pipeline.training.losses import CrossEntropy, GeneralizedKL, mean_loss
from tsdfm.pipeline.training.text_trainer import TextTrainer, corpus_of, given_vocabulary, held_out_texts, record_in, texts_of
from tsdfm.schemas.base import InputError
from tsdfm.schemas.model import DenoiserConfig
from tsdfm.schemas.optim import DIVISION
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
    """Held-out cross entropy per noised token and negative ELBO per token, in nats; windows [n, L], on the CPU."""
    model.eval()
    generator = torch.Generator().manual_seed(0)
    chunks = windows.split(64)
    sizes = torch.tensor([len(c) for c in chunks], dtype=torch.float64)
    ce, elbo = (torch.tensor([float(mean_loss(loss, c, generator)) for c in chunks], dtype=torch.float64)
                for loss in (CrossEntropy(model), GeneralizedKL(model)))
    return {"held_out_cross_entropy": float((ce * sizes).sum() / sizes.sum()),
            "held_out_negative_elbo": float((elbo * sizes).sum() / sizes.sum())}


def pretrain_at(
    place: Place, config: PretrainConfig, out: Path, report: Report, *, watch: Watch = UNWATCHED, half: bool = False
) -> bool:
    """One process's part of a training; the first process writes the teacher to `out`, with float16 weights if `half`.

    Returns False if `report` or `watch` asked to stop. Raises InputError or WorkError, as `pretrain` does.
    """
    with state_owned(out, place) as folder:
        made = pretrain(config, folder, report, watch, place)
        if made is not None and place.rank == 0:
            save(out, made.network, made.vocabulary, made.record, half=half)
    return made is not None


def is_made(config: PretrainConfig, out: Path, *, half: bool, progress: Progress = unheard) -> bool:
    """Whether `out` holds the teacher that a training would end in, whole: nothing is left to be done.

    Raises as `pretrain` where the text can't be read; InputError, too, if it is of another tokenizer than lies there now.
    """
    record = record_in(out, PretrainRecord)
    if record is None or _identity(record.config, "", "") != _identity(config, "", "") or not holds_whole(out, half=half):
        return False
    given = given_vocabulary(config)
    if given is not None and given.fingerprint != load(out).vocabulary.fingerprint:
        raise InputError(f"{out}: was trained with another tokenizer than {config.tokenizer} is now; restore that, "
                         "give another --out, or remove the folder and its training state")
    return corpus_sha256(config.corpus, progress) == record.corpus.sha256


def _identity(config: PretrainConfig, corpus: str, tokenizer: str) -> dict[str, object]:
    """What a resumed run must share; `corpus`: the sha256 of its documents, `tokenizer`: fingerprint of what cuts them."""
    return {**config.model_dump(mode="json", exclude=DIVISION), "corpus_sha256": corpus, "tokenizer_fingerprint": tokenizer}


def pretrain(
    config: PretrainConfig, folder: Path, report: Report, watch: Watch = UNWATCHED, place: Place | None = None
) -> Teacher | None:
    """Train a denoiser; training state and TensorBoard logs live in `folder`, from which a rerun resumes.

    Args:
        config: what to train on and how; `workers` and `address` are not looked at.
        folder: shared by all data-parallel processes; the first writes.
        report: called in the first process every `optim.log_every` updates with (update, scalars); returning True saves and
            stops.
        watch: who watches; its `progress` is of reading the corpus.
        place: this process; None: the only one. With others, torch.distributed must be initialised.

    Returns the model with its EMA weights, on the CPU; None if `report` or `watch` asked to stop, after a checkpoint. Raises
    InputError: no such corpus or tokenizer, too little text, or a `folder` that holds a run of another config; WorkError: the
    loss is not finite.
    """
    corpus = corpus_of(config, watch.progress)
    words, mask = corpus.vocabulary, config.source == "mask"
    model_config = DenoiserConfig(
        **config.shape.model_dump(), vocab_size=words.size if mask else words.size_without_mask, length=config.length,
        cond_dim=config.cond_dim, source=config.source, mask_id=words.mask_id if mask else None,
        kappa_exponent=config.kappa_exponent, end_id=words.eos_id if config.texts == "padded" else None,
    )
    held = held_out_texts(corpus, config.length, model_config.end_id)  # refused now, not after the training
    with seeded(config.optim.seed):
        model = Denoiser(model_config)
    texts = texts_of(corpus.train, config.length, config.optim.batch_size, config.optim.seed, model_config.end_id)
    loss = (CrossEntropy if config.objective == "cross_entropy" else GeneralizedKL)(model, config.spaced)
    trainer = TextTrainer(model, loss, texts, config, place or Place.alone())
    if not trainer.run(folder, _identity(config, corpus.facts.sha256, words.fingerprint), report, watch.stop):
        return None
    steps = config.optim.steps
    scores = {name: finite(name, value, steps, folder) for name, value in evaluate(model, held).items()}
    return Teacher(model.cpu(), words, PretrainRecord(config=config, corpus=corpus.facts, **scores))
