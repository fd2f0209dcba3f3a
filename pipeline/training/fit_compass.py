"""Fit a compass, and say how well it does: a causal LM (`ar`; also how a judge is made), an NCE encoder (`nce`), or two causal
LMs (`contrast`).
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tsdfm.pipeline.flow.rings.clocks import clocks_of
from tsdfm.pipeline.models.causal import CausalLM, ContrastLM
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import ModelFolder, Network, holds_whole, load, load_denoiser, save, teacher_folder
from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.pipeline.text.corpus import Corpus, corpus_sha256, prepare
from tsdfm.pipeline.training.contrast.loss import Candidates, NoiseContrast
from tsdfm.pipeline.training.contrast.of_texts import OfTexts, start_of
from tsdfm.pipeline.training.contrast.separation import LINE_TEXTS, auc_per_bin, scalars_of
from tsdfm.pipeline.training.contrast.states import kept_states
from tsdfm.pipeline.training.loop.data_parallel import Place, state_owned
from tsdfm.pipeline.training.loop.trainer import UNWATCHED, Report, Watch, finite, seeded
from tsdfm.pipeline.training.losses import CausalNLL
from tsdfm.pipeline.training.text_trainer import Texts, TextsInMemory, TextTrainer, held_out_texts, record_in, texts_of
from tsdfm.schemas.generate import RolloutConfig
from tsdfm.schemas.model import CausalConfig, ContrastConfig, DenoiserConfig, NceConfig
from tsdfm.schemas.optim import DIVISION
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.train import CompassConfig
from tsdfm.schemas.training_record import CausalRecord, ContrastRecord, FittedRecord, NceRecord

HELD_OUT_SHARE = 0.2  # of the rollouts, kept for what is measured
MOST_NATS = 709.0  # per token, of which exp is a float64


@dataclass(frozen=True)
class Fit:
    """A fitted network, how it was made, and what was measured on held-out data."""

    network: CausalLM | NceEncoder | ContrastLM
    record: FittedRecord


@dataclass(frozen=True)
class Setting:
    """Where and how a fit runs.

    Args:
        folder: of training state and TensorBoard logs, shared by all data-parallel processes; a rerun resumes from there.
        report: called in the first process every `optim.log_every` updates with (update, scalars); returning True saves and
            stops.
        watch: who watches; its `progress` is of reading the corpus, and of the teacher's rollouts
            that `nce` and `contrast` start with.
        place: this process. With others, torch.distributed must be initialised.
    """

    folder: Path
    report: Report
    watch: Watch = UNWATCHED
    place: Place = field(default_factory=Place.alone)


def fit_at(
    place: Place, config: CompassConfig, out: Path, report: Report, *, watch: Watch = UNWATCHED, half: bool = False
) -> bool:
    """One process's part of a fit; the first process writes the network to `out`, with float16 weights if `half`.

    Returns False if `report` or `watch` asked to stop. Raises InputError or WorkError, as `fit` does.
    """
    with state_owned(out, place) as folder:
        teacher = load_denoiser(teacher_folder(config.teacher))
        made = fit(config, teacher, Setting(folder, report, watch, place))
        if made is not None and place.rank == 0:
            save(out, made.network, teacher.vocabulary, made.record, half=half)
    return made is not None


def is_made(config: CompassConfig, out: Path, *, half: bool, progress: Progress = unheard) -> bool:
    """Whether `out` holds the network that a fit would end in, whole: nothing is left to be done.

    Raises as `fit` where the teacher can't be opened, or the text can't be read.
    """
    record = _record_in(config, out)
    if record is None or _identity(record.config, "", "") != _identity(config, "", "") or not holds_whole(out, half=half):
        return False
    teacher = load_denoiser(teacher_folder(config.teacher))
    if isinstance(record, ContrastRecord) and record.start != start_of(config, teacher).fingerprint:
        return False
    return _is_for(record, load(out), teacher) and corpus_sha256(config.corpus, progress) == record.corpus.sha256


def _record_in(config: CompassConfig, out: Path) -> FittedRecord | None:
    if config.kind == "ar":
        return record_in(out, CausalRecord)
    return record_in(out, NceRecord) if config.kind == "nce" else record_in(out, ContrastRecord)


def _is_for(record: FittedRecord, made: ModelFolder[Network], teacher: ModelFolder[Denoiser]) -> bool:
    """Whether a network was fitted for a teacher as it is now."""
    if not isinstance(record, CausalRecord):
        return record.teacher == teacher.fingerprint
    as_long = isinstance(made.network, CausalLM) and made.network.config.length == teacher.network.config.length
    return record.tokenizer == teacher.vocabulary.fingerprint and as_long


def fit(config: CompassConfig, opened: ModelFolder[Denoiser], setting: Setting) -> Fit | None:
    """Fit a compass, or a judge, for a teacher: by `fit_ar`, whose words on arguments and errors hold, or another."""
    return {"ar": fit_ar, "nce": fit_nce, "contrast": fit_contrast}[config.kind](config, opened, setting)


def fit_ar(config: CompassConfig, opened: ModelFolder[Denoiser], setting: Setting) -> Fit | None:
    """Fit a causal LM on one half of the corpus; measured: held-out perplexity per token.

    Args:
        config: what to fit; `workers` and `address` are not looked at.
        opened: the teacher, for its vocabulary and length.
        setting: where and how.

    Returns the network on the CPU, None if it was stopped.

    Raises InputError: no such corpus, too little text, or a folder of another run; WorkError: the loss is not finite.
    """
    teacher, vocabulary = opened.network, opened.vocabulary
    corpus = prepare(config.corpus, vocabulary, vocabulary.size, setting.watch.progress)
    shape = CausalConfig(
        **config.shape.model_dump(), vocab_size=vocabulary.size_without_mask, length=teacher.config.length,
        bos_id=vocabulary.eos_id)
    with seeded(config.optim.seed):
        model = CausalLM(shape)
    texts = _texts(config, corpus, teacher)
    held = held_out_texts(corpus, teacher.config.length, teacher.config.end_id)  # refused now, not after the training
    loss = CausalNLL(model, teacher.config.end_id)
    trainer = TextTrainer(model, loss, texts, config, setting.place)
    identity = _identity(config, corpus.facts.sha256, vocabulary.fingerprint)
    identity["teacher_texts"] = {"length": teacher.config.length, "end_id": teacher.config.end_id}
    if not trainer.run(setting.folder, identity, setting.report, setting.watch.stop):
        return None
    with torch.no_grad():
        rows = [loss.draw(part, torch.Generator()) for part in held.split(64)]
        device = next(model.parameters()).device
        nll = sum(float(loss(each.to(device)).double().sum()) for each in rows) / sum(map(loss.count, rows))
    model.cpu()
    perplexity = math.exp(nll) if nll < MOST_NATS else math.inf
    return Fit(model, CausalRecord(
        config=config, corpus=corpus.facts, tokenizer=vocabulary.fingerprint,
        held_out_perplexity=finite("held_out_perplexity", perplexity, config.optim.steps, setting.folder)))


def fit_nce(config: CompassConfig, opened: ModelFolder[Denoiser], setting: Setting) -> Fit | None:
    """Fit an encoder by noise-contrastive estimation (see `contrast.loss`); measured: held-out AUC per time bin.

    Real: noised text at time t. Noise: states of blind teacher rollouts at time t, which the processes divide among them. The
    AUC is of text and rollouts that are not learnt from; every line of progress has it, too, of fewer. All else as `fit_ar`.
    """
    teacher, vocabulary = opened.network, opened.vocabulary
    corpus = prepare(config.corpus, vocabulary, vocabulary.size, setting.watch.progress)
    held = held_out_texts(corpus, teacher.config.length, teacher.config.end_id)  # refused now, not after the training
    states = kept_states(config, opened, setting.folder, setting.watch.progress, setting.place)
    cut = max(1, int(len(states) * (1 - HELD_OUT_SHARE)))
    model = _encoder(config, teacher)
    candidates = None
    if config.hard_negatives:
        candidates = Candidates(teacher.to(setting.place.device), config.hard_negatives)
    loss = NoiseContrast(model, states[:cut], candidates)
    trainer = TextTrainer(model, loss, _texts(config, corpus, teacher), config, setting.place)
    few = held[:: -(-len(held) // LINE_TEXTS)]
    identity = _identity(config, corpus.facts.sha256, opened.fingerprint)
    done = trainer.run(setting.folder, identity, setting.report, setting.watch.stop,
                       lambda: scalars_of(auc_per_bin(model, few, states[cut:])))
    teacher.cpu()
    if not done:
        return None
    separation = auc_per_bin(model, held, states[cut:])
    return Fit(model.cpu(), NceRecord(
        config=config, corpus=corpus.facts, teacher=opened.fingerprint, rollouts=len(states), held_out_auc=separation))


def fit_contrast(config: CompassConfig, opened: ModelFolder[Denoiser], setting: Setting) -> Fit | None:
    """Fit a copy of an `ar` compass further, to finished texts of blind teacher rollouts, which the processes divide.

    Measured, with rollouts that are not learnt from: their nats per token before and after, and how well the difference of both
    models tells held-out text from them. All else as `fit_ar`; InputError, too, if `config.start` is no such compass.
    """
    start, vocabulary = start_of(config, opened), opened.vocabulary
    corpus = prepare(config.corpus, vocabulary, vocabulary.size, setting.watch.progress)
    held = held_out_texts(corpus, opened.network.config.length, opened.network.config.end_id)
    texts = kept_states(config, opened, setting.folder, setting.watch.progress, setting.place)[:, -1].long()
    cut = max(1, int(len(texts) * (1 - HELD_OUT_SHARE)))
    pair = ContrastLM(ContrastConfig(each=start.network.config))
    for part in (pair.text, pair.teachers):
        part.load_state_dict(start.network.state_dict())
    measure = OfTexts(pair, held, texts[cut:], opened.network.config.end_id, setting.place.device)
    before = measure.teachers_nats()
    copy = pair.teachers.train().requires_grad_(True)
    loss = CausalNLL(copy, opened.network.config.end_id)
    learnt = TextsInMemory(texts[:cut], config.optim.batch_size, config.optim.seed)
    trainer = TextTrainer(copy, loss, learnt, config, setting.place)
    identity = {**_identity(config, corpus.facts.sha256, opened.fingerprint), "start_fingerprint": start.fingerprint}
    if not trainer.run(setting.folder, identity, setting.report, setting.watch.stop, measure.scalars):
        return None
    record = ContrastRecord(
        config=config, corpus=corpus.facts, teacher=opened.fingerprint, start=start.fingerprint, rollouts=len(texts),
        teachers_nats_before=before, teachers_nats=measure.teachers_nats(), held_out_auc=measure.auc())
    return Fit(pair.cpu(), record)


def check(config: CompassConfig) -> None:
    """Raises InputError where the models that a fit needs are not there, or don't fit together; nothing is read but them."""
    teacher = load_denoiser(teacher_folder(config.teacher))
    clocks_of(RolloutConfig(clocks=config.rollout_clocks), teacher.network.config)
    if config.kind == "contrast":
        start_of(config, teacher)


def _encoder(config: CompassConfig, teacher: Denoiser) -> NceEncoder:
    """The network to begin with: on the teacher's trunk, or on one of `config.shape` with random weights."""
    trunk = teacher.config
    if config.init == "random":
        trunk = DenoiserConfig(
            **config.shape.model_dump(), vocab_size=trunk.vocab_size, length=trunk.length, cond_dim=trunk.cond_dim,
            source=trunk.source, mask_id=trunk.mask_id, kappa_exponent=trunk.kappa_exponent, end_id=trunk.end_id)
    with seeded(config.optim.seed):
        model = NceEncoder(NceConfig(trunk=trunk))
    if config.init != "random":
        model.trunk.load_state_dict(teacher.trunk.state_dict())
    return model.requires_grad_(True)


def _texts(config: CompassConfig, corpus: Corpus, teacher: Denoiser) -> Texts:
    optim = config.optim
    return texts_of(corpus.train, teacher.config.length, optim.batch_size, optim.seed, teacher.config.end_id)


def _identity(config: CompassConfig, corpus: str, made_for: str) -> dict[str, object]:
    """What a resumed run must share; `corpus`: the sha256 of its documents, `made_for`: fingerprint of the tokenizer (`ar`), or
    of the teacher (`nce`, `contrast`).
    """
    settings = config.model_dump(mode="json", exclude={"teacher": True, **DIVISION})
    return {**settings, "corpus_sha256": corpus, "made_for": made_for}
