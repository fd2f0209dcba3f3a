"""`tsdfm-pipeline evaluate`: sample models, judge their texts and real ones, and keep everything in a folder.

A rerun makes only what the folder lacks: sets of texts and scores are found by fingerprints, step count, temperature and seed.
"""

import json
import platform
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tsdfm.jobs.console import Ticker, people, ticker
from tsdfm.pipeline.checkpoint import Checkpoint, load_denoiser
from tsdfm.pipeline.corpus import TEXT_SUFFIXES, held_out, load_documents
from tsdfm.pipeline.denoiser import Denoiser
from tsdfm.pipeline.evaluation import Samples, likelihood, of_tokens, sample_texts, summarise
from tsdfm.pipeline.judge import Judge, Likelihood
from tsdfm.pipeline.judges import open_judge
from tsdfm.pipeline.kept import Identity, Kept, key_of
from tsdfm.pipeline.models import teacher_folder
from tsdfm.pipeline.plots import draw_frontier, frontier_of, short_names
from tsdfm.pipeline.pretrain import windows_of
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.evaluate import EvaluateConfig, JudgeFacts, Measures, Results, Row
from tsdfm.schemas.generate import RolloutConfig

LIBRARIES = ("tsdfm-pipeline", "torch", "numpy", "tokenizers", "transformers")


@dataclass(frozen=True)
class Subject:
    """A model under evaluation."""

    name: str
    network: Denoiser
    checkpoint: Checkpoint


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate models as a config says. Returns what OUT/results.json holds (see `schemas.evaluate.Results`).

    Raises InputError (a model, judge or corpus that is not fit for it; found before anything is sampled) or WorkError.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with _folder(config.out) as folder:
        subjects = [_open(name, device) for name in config.model]
        judges = [open_judge(name, device) for name in config.evaluator]
        run = _Run(config, Kept(folder), judges, short_names([*config.model, *config.evaluator]))
        reference = run.references(subjects) if config.reference else []
        rows = run.rows(subjects)
        results = Results(
            command=shlex.join(sys.argv), settings=config, versions=_versions(), device=_device_name(device),
            threads=torch.get_num_threads(), rows=rows, reference=reference,
            judges={judge.name: JudgeFacts(fingerprint=judge.fingerprint, vocabulary=judge.vocabulary) for judge in judges})
        run.kept.write("results.json", (results.model_dump_json(indent=2) + "\n").encode())
        if config.frontier:
            run.write_frontier(results)
    return results.model_dump(mode="json")


@dataclass(frozen=True)
class _Run:
    """One evaluation: its folder, its judges, and short names for people."""

    config: EvaluateConfig
    kept: Kept
    judges: list[Judge]
    names: dict[str, str]

    def rows(self, subjects: list[Subject]) -> list[Row]:
        """Sample and judge every model at every step count and temperature."""
        config, rows = self.config, []
        plan = [(subject, steps, temperature)
                for subject in subjects for steps in config.steps for temperature in config.swept]
        per_row = config.samples * (1 + len(self.judges))
        with ticker("texts sampled and judged", per_row * len(plan)) as show:
            for index, (subject, steps, temperature) in enumerate(plan):
                progress = _Progress(show, index * per_row, f"{self.names[subject.name]}, n = {steps}, T = {temperature:g}")
                rows.append(self._row(subject, steps, temperature, progress))
        return rows

    def _row(self, subject: Subject, steps: int, temperature: float, progress: "_Progress") -> Row:
        config, opened = self.config, subject.checkpoint
        labels = {"model": subject.name, "steps": steps, "temperature": temperature, "seed": config.seed}
        identity = _identity(config, opened.fingerprint, steps, temperature)
        rollout = RolloutConfig(steps=steps, temperature=temperature, seed=config.seed, batch_size=config.batch_size)
        samples = self.kept.samples(identity, labels, lambda: sample_texts(
            subject.network, opened.vocabulary, rollout, config.samples, progress.update))
        return Row(model=subject.name, fingerprint=opened.fingerprint, vocabulary=samples.vocabulary, steps=steps,
                   temperature=temperature, **dict(self._measure(identity, samples, progress)))

    def references(self, subjects: list[Subject]) -> list[Row]:
        """Judge real held-out text, once for each vocabulary and length that the models have."""
        kinds = {(subject.checkpoint.vocabulary.fingerprint, subject.network.config.length): subject for subject in subjects}
        corpus, rows = self.config.corpus, []
        documents = cache(lambda: held_out(_documents(self.config)))
        for (vocabulary, length), subject in kinds.items():
            def make(words: Any = subject.checkpoint.vocabulary, length: int = length) -> Samples:
                stream = torch.from_numpy(words.stream(documents()))
                return of_tokens(windows_of(stream, length, self.config.samples).numpy(), words)

            identity = {"corpus": corpus.path, "text_field": corpus.text_field, "stamp": _stamp(corpus.path),
                        "vocabulary": vocabulary, "length": length, "samples": self.config.samples}
            labels = {"model": f"corpus {corpus.path}", "steps": None, "temperature": None, "seed": None}
            samples = self.kept.samples(identity, labels, make)
            with ticker("real texts judged", len(samples.texts) * len(self.judges)) as show:
                measures = self._measure(identity, samples, _Progress(show, -len(samples.texts), "held-out text"))
            rows.append(Row(model=corpus.path, fingerprint=key_of(identity), vocabulary=vocabulary, steps=None,
                            temperature=None, **dict(measures)))
        return rows

    def _measure(self, identity: Identity, samples: Samples, progress: "_Progress") -> Measures:
        """Figures of texts under all judges, whose scores are kept."""
        found = {}
        for number, judge in enumerate(self.judges, 2):
            found[judge.name] = self.kept.likelihood(_scores(identity, judge.fingerprint), partial(likelihood, samples, judge))
            progress.update(number * len(samples.texts), f"; judge {self.names[judge.name]}")
        return summarise(samples, found)

    def write_frontier(self, results: Results) -> None:
        """Write frontier.json and frontier.png."""
        frontier = frontier_of(results)
        self.kept.write("frontier.json", (json.dumps(frontier, indent=2) + "\n").encode())
        self.kept.write("frontier.png", draw_frontier(frontier))


def kept_texts(results: Results, row: Row, folder: Path) -> tuple[Samples, dict[str, Likelihood]]:
    """The texts of one row, and what each judge said of them, as the folder of the evaluation keeps them.

    Raises WorkError if they are not there any more.
    """
    def lost() -> Any:
        raise WorkError(f"{folder}: lost the texts of {row.model} in {row.steps} steps; run again")

    identity = _identity(results.settings, row.fingerprint, row.steps, row.temperature)
    kept = Kept(folder)
    return kept.samples(identity, {}, lost), {
        name: kept.likelihood(_scores(identity, judge.fingerprint), lost) for name, judge in results.judges.items()}


def _identity(config: EvaluateConfig, model: str, steps: int | None, temperature: float | None) -> Identity:
    """All that the texts of a model depend on."""
    return {"model": model, "steps": steps, "temperature": temperature, "seed": config.seed, "samples": config.samples}


def _scores(identity: Identity, judge: str) -> Identity:
    """All that a judge's scores of some texts depend on."""
    return {"samples": key_of(identity), "judge": judge}


@dataclass(frozen=True)
class _Progress:
    """Progress of one row within that of all."""

    show: Ticker
    before: int
    note: str

    def update(self, done: int, more: str = "") -> None:
        self.show.update(self.before + done, self.note + more)


@contextmanager
def _folder(out: str | None) -> Iterator[Path]:
    """The folder that keeps everything, or one for this run only."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="tsdfm-evaluate-") as temporary:
            yield Path(temporary)
        return
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot write there ({error.strerror}); give a folder you can write to") from None
    yield folder


def _open(name: str, device: torch.device) -> Subject:
    """A model by name: 'embedded', 'embedded:SOURCE', or a folder. Raises InputError."""
    embedded, _, source = name.partition(":")
    if embedded == "embedded" and source not in ("", "mask", "uniform"):
        raise InputError(f"model {name}: no such embedded model; give 'embedded:mask', 'embedded:uniform' or a folder")
    folder = teacher_folder(embedded, source or None) if embedded == "embedded" else Path(name)  # type: ignore[arg-type]
    network, opened = load_denoiser(folder)
    return Subject(name, network.to(device), opened)


def _documents(config: EvaluateConfig) -> list[str]:
    people.print(f"reading the corpus '{config.corpus.path}' for held-out text", markup=False)
    return load_documents(config.corpus)


def _stamp(corpus: str) -> list[list[int]]:
    """Sizes and times of a corpus's files, so that a changed one is read anew; of 'python' and the Hub, nothing."""
    if corpus == "python" or corpus.startswith("hub:"):
        return []
    path = Path(corpus)
    files = sorted(p for p in path.rglob("*") if p.name.endswith(TEXT_SUFFIXES)) if path.is_dir() else [path]
    stats = [file.stat() for file in files if file.is_file()]
    return [[stat.st_size, stat.st_mtime_ns] for stat in stats]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # transformers is optional
    return found


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
