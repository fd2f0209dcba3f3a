"""Training on windows of a tokenised text: teachers, causal models, encoders, each by its loss."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from tsdfm.pipeline.models.folder import TRAINING_FILE, teacher_folder
from tsdfm.pipeline.models.layers import compile_blocks, recompute_blocks
from tsdfm.pipeline.text.corpus import EVAL_WINDOWS, Corpus, prepare, windows_of
from tsdfm.pipeline.text.ends.documents import Documents
from tsdfm.pipeline.text.token_file import Spread, Tokens, one_by_one
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.pipeline.training.loop.data_parallel import DataParallel, Place
from tsdfm.pipeline.training.loop.trainer import Gauges, Part, Report, Stop, Trainer, generator_of, never
from tsdfm.pipeline.training.losses import TextLoss
from tsdfm.schemas.base import InputError, parse_json
from tsdfm.schemas.optim import OptimConfig
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.regular import read_regular
from tsdfm.schemas.train import PretrainConfig, TextTraining
from tsdfm.schemas.training_record import CausalRecord, ContrastRecord, NceRecord, PretrainRecord
from tsdfm.schemas.words import count

R = TypeVar("R", PretrainRecord, CausalRecord, NceRecord, ContrastRecord)
LEAST_DOCUMENTS = 2
EPOCH_STREAM = 0x5EED0000  # keeps the generators of epochs apart from those of updates


def corpus_of(config: TextTraining, progress: Progress = unheard, spread: Spread = one_by_one) -> Corpus:
    """The corpus of a training, with its tokenizer: the one that is given, the teacher's, or one that is trained on it.

    Raises as `prepare`; InputError, too, if there is no such tokenizer or teacher.
    """
    if isinstance(config, PretrainConfig):
        return prepare(config.corpus, given_vocabulary(config), config.vocab_size, progress, spread)
    words = Vocabulary.load(teacher_folder(config.teacher))
    return prepare(config.corpus, words, words.size, progress, spread)


def given_vocabulary(config: PretrainConfig) -> Vocabulary | None:
    """The tokenizer that a config names, as it lies there now; None: one is trained. Raises InputError."""
    return Vocabulary.adopt(Path(config.tokenizer), config.eos) if config.tokenizer else None


def record_in(out: Path, kind: type[R]) -> R | None:
    """How the model in a folder was trained; None: there is none, or it was made in another way."""
    with suppress(InputError, OSError):
        return parse_json(kind, read_regular(out / TRAINING_FILE), str(out / TRAINING_FILE))
    return None


class Texts(Protocol):
    """What a training reads: the batch of update s is a pure function of (seed, s)."""

    def batch(self, step: int) -> Tensor:
        """The texts of update `step`, [batch_size, L] int64."""


def texts_of(stream: Tokens, length: int, batch_size: int, seed: int, end_id: int | None) -> Texts:
    """Texts of a stream of documents: packed into windows of L, or, where an `end_id` is given, one document each.

    Raises InputError if there are too few.
    """
    if end_id is None:
        return TokenWindows(stream, length, batch_size, seed)
    return DocumentTexts(Documents(stream, end_id, length), batch_size, seed)


def held_out_texts(corpus: Corpus, length: int, end_id: int | None, limit: int = EVAL_WINDOWS) -> Tensor:
    """Up to `limit` held-out texts [n, L] int64, as `texts_of` makes them. Raises InputError if there is none."""
    if end_id is None:
        return windows_of(corpus.held_out, length, limit)
    return Documents(corpus.held_out, end_id, length).spread(limit)


class DocumentTexts:
    """Documents, one a text: the batch of update s is a pure function of (seed, s). Every epoch shuffles them."""

    def __init__(self, documents: Documents, batch_size: int, seed: int) -> None:
        if len(documents) < LEAST_DOCUMENTS:
            raise InputError(f"the corpus has {count(len(documents), 'document')}, and a padded text is one: at least "
                             f"{LEAST_DOCUMENTS} are needed; give more (in a .txt, blank lines separate documents), or --texts "
                             "packed")
        self.documents, self.batch_size, self.seed = documents, batch_size, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def batch(self, step: int) -> Tensor:
        """See `Texts`."""
        rows = range(step * self.batch_size, (step + 1) * self.batch_size)
        return torch.stack([self._text(row) for row in rows])

    def _text(self, row: int) -> Tensor:
        epoch, index = divmod(row, len(self.documents))
        if epoch != self._epoch:
            self._order = torch.randperm(len(self.documents), generator=generator_of(self.seed, EPOCH_STREAM + epoch))
            self._epoch = epoch
        return self.documents.text(int(self._order[index]))


class TokenWindows:
    """Windows of L tokens of one stream: the batch of update s is a pure function of (seed, s).

    Every epoch shifts the windows by a random offset and shuffles them.
    """

    def __init__(self, stream: Tokens, length: int, batch_size: int, seed: int) -> None:
        if len(stream) < 2 * length:
            raise InputError(f"the corpus has {len(stream)} tokens, fewer than two windows of {length}; give more text")
        self.stream, self.length, self.batch_size, self.seed = stream, length, batch_size, seed
        self.windows = len(stream) // length - 1
        # Half the memory where it will do; the order is the same.
        self._counts = torch.int32 if self.windows < 1 << 31 else torch.int64
        self._epoch, self._offset, self._order = -1, 0, torch.empty(0, dtype=self._counts)

    def batch(self, step: int) -> Tensor:
        """The windows of tokens of update `step`, [batch_size, L] int64."""
        rows = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return torch.stack([self._window(int(row)) for row in rows])

    def _window(self, row: int) -> Tensor:
        epoch, index = divmod(row, self.windows)
        if epoch != self._epoch:
            generator = generator_of(self.seed, EPOCH_STREAM + epoch)
            self._offset = int(torch.randint(self.length, (), generator=generator))
            self._order = torch.randperm(self.windows, generator=generator, dtype=self._counts)
            self._epoch = epoch
        start = int(self._order[index]) * self.length + self._offset
        return self.stream[start : start + self.length].long()


class TextsInMemory:
    """Texts [R, L] that are at hand: the batch of update s is a pure function of (seed, s). Every epoch shuffles them."""

    def __init__(self, texts: Tensor, batch_size: int, seed: int) -> None:
        self.texts, self.batch_size, self.seed = texts, batch_size, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def batch(self, step: int) -> Tensor:
        """See `Texts`."""
        rows = range(step * self.batch_size, (step + 1) * self.batch_size)
        return self.texts[torch.stack([self._place(row) for row in rows])]

    def _place(self, row: int) -> Tensor:
        epoch, index = divmod(row, len(self.texts))
        if epoch != self._epoch:
            self._order = torch.randperm(len(self.texts), generator=generator_of(self.seed, EPOCH_STREAM + epoch))
            self._epoch = epoch
        return self._order[index]


class TextTrainer:
    """Fits a network to windows of text, one of W data-parallel processes.

    Args:
        network: in place of which the weights are trained; it ends on `place`'s device.
        loss: what is minimised, of that network.
        windows: the text; the same in all processes.
        config: what the command was given: optimiser, parts of a batch, ways to save time and memory.
        place: this process.
    """

    def __init__(self, network: nn.Module, loss: TextLoss, windows: Texts, config: TextTraining, place: Place) -> None:
        self.network, self.loss, self.windows, self.config, self.place = network.to(place.device), loss, windows, config, place

    def run(
        self, folder: Path, identity: dict[str, object], report: Report, stop: Stop = never, gauges: Gauges | None = None
    ) -> bool:
        """Train to the end, from the checkpoint in `folder` if there is one. Returns False if it was stopped before.

        Args:
            folder: of training state and TensorBoard logs, shared by all processes; the first writes.
            identity: what must not change between a run and its resumption.
            report: called in the first process every `optim.log_every` updates with (update, scalars); returning True saves
                and stops all processes.
            stop: asked after every update, in the first process, whether to save and stop.
            gauges: further scalars of a line, measured while the network has the weights that would be saved now.

        Raises InputError: `folder` holds another run; WorkError: the loss is not finite.
        """
        optim: OptimConfig = self.config.optim
        trainer = Trainer(self.network, optim, folder, identity, writes=self.place.rank == 0)
        trainer.resume()
        if self.config.recompute:
            recompute_blocks(self.network)
        if self.config.compile:
            compile_blocks(self.network)
        parallel = DataParallel(self.loss, self.place, self.config.micro_batches)

        def parts(step: int, generator: torch.Generator) -> Iterator[Part]:
            batch = self.loss.draw(self.windows.batch(step), generator)  # the same in all processes
            yield from parallel.parts(self.place.share(batch).to(self.place.device), self.loss.count(batch))

        def measured() -> dict[str, float]:
            if gauges is None:
                return {}
            with trainer.averaged():
                return gauges()

        return trainer.run(parts, parallel.on_first(report), measured, self.place.mean, self.place.heeding(stop))
