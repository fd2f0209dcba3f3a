"""An evaluation: sample models, judge their texts and real ones, and keep everything in a folder.

    FOLDER/results.json      all figures; FOLDER/frontier.json and frontier.png where temperatures were swept
    FOLDER/samples, scores, counts   see `sample_cache`

A rerun makes only what the folder lacks: sets of texts and scores are found by fingerprints, step count, temperature and seed.
"""

import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tsdfm.pipeline.evaluation.cells import Maker, Subject, device_name, open_subject, rollout_of
from tsdfm.pipeline.evaluation.effects import JudgedTexts
from tsdfm.pipeline.evaluation.figures import short_names
from tsdfm.pipeline.evaluation.judge import Judge, Likelihood
from tsdfm.pipeline.evaluation.measures.compared import Where, compared
from tsdfm.pipeline.evaluation.measures.corpus_texts import (
    CorpusTexts,
    Kind,
    extent_of,
    kind_of,
    kinds_of,
    naive_texts,
    other_real_texts,
    real_texts,
)
from tsdfm.pipeline.evaluation.measures.distances import RealTexts, why_few
from tsdfm.pipeline.evaluation.measures.frontier import draw_frontier, frontier_of
from tsdfm.pipeline.evaluation.measures.likelihoods import Bounds, why_one
from tsdfm.pipeline.evaluation.measures.prompted import beginnings, read_prompts
from tsdfm.pipeline.evaluation.memorisation.memory import Memory
from tsdfm.pipeline.evaluation.open_judge import open_judge
from tsdfm.pipeline.evaluation.sample_cache import (
    METHOD,
    RESULTS_FILE,
    Identity,
    SampleCache,
    check_results,
    identity_of_scores,
    identity_of_texts,
    key_of,
    of_method,
    replaced_since,
)
from tsdfm.pipeline.evaluation.samples import Cell, Made, Samples, Wanted, likelihood, sample_texts, summarise, why_unfit
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import ModelFolder
from tsdfm.pipeline.storage.hub.models import pinned
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError
from tsdfm.schemas.evaluate import EvaluateConfig, JudgeFacts, Measures, Results, Row
from tsdfm.schemas.measures import Bound, Distances, Memorised
from tsdfm.schemas.progress import Progress, unheard

LIBRARIES = ("tsdfm-pipeline", "torch", "numpy", "tokenizers", "transformers")
FRONTIER_FILE, PLOT_FILE = "frontier.json", "frontier.png"


def evaluate(config: EvaluateConfig, progress: Progress = unheard, command: str = "", maker: Maker | None = None) -> Results:
    """Evaluate models as a config says. Returns what FOLDER/results.json holds, too, if the config names a folder.

    Args:
        config: models, step counts, judges, and how many texts. Its `threads` is the caller's business: torch's number of
            threads is taken as it stands.
        progress: called as texts are sampled and judged.
        command: kept in the results: how they were asked for.
        maker: who samples and judges the models' texts; None: this process. Real text is always judged here.

    Raises InputError (a model, judge or corpus that is not fit for it; found before anything is sampled) or WorkError.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = config.model_copy(update={  # so that the results name the commits
        "model": tuple(map(pinned, config.model)), "evaluator": tuple(map(pinned, config.evaluator)),
        "against": config.against and pinned(config.against)})
    prompts = read_prompts(config)
    with _folder(config.out) as folder:
        subjects = [open_subject(name, config, device) for name in config.model]
        subjects = [replace(each, prompts=beginnings(config, prompts, each.opened, progress)) for each in subjects]
        vocabularies = [subject.opened.vocabulary for subject in subjects]
        judges = [open_judge(name, device, vocabularies) for name in config.evaluator if config.sampling]
        since = replaced_since(folder / RESULTS_FILE, [judge.fingerprint for judge in judges])
        cache = SampleCache(folder)
        bounds = Bounds.of(config, cache, subjects, progress) if config.bounds else None
        run = _Run(config, cache, judges, short_names([*config.model, *config.evaluator]), progress,
                   Memory.of(config, cache, {subject.name: subject.opened for subject in subjects}))
        reference = run.references(subjects) if config.real else []
        naive = run.naive(subjects) if config.naive else []
        likelihood = [] if bounds is None else bounds.rows(subjects, run.names, progress)
        devices = set() if maker is None or not config.sampling else run.have_made(subjects, maker)
        rows = run.rows(subjects) if config.sampling else []
        reference, naive, rows = run.memorised(reference, naive, rows)
        results = Results(
            command=command, settings=config, versions=_versions(), method=METHOD,
            device=", ".join(sorted(devices)) or device_name(device),
            threads=torch.get_num_threads(), rows=rows, reference=reference, naive=naive, likelihood=likelihood,
            remarks=[*run.told([*reference, *naive, *rows], likelihood), *run.memory.remarks, *since],
            compared=compared(rows, run.judged, config.against or config.model[0]) if config.frontier else [],
            judges={judge.name: _facts(judge, vocabularies) for judge in judges})
        run.cache.write(RESULTS_FILE, (results.model_dump_json(indent=2) + "\n").encode())
        if config.frontier:
            frontier = frontier_of(results)
            run.cache.write(FRONTIER_FILE, (frontier.model_dump_json(indent=2) + "\n").encode())
            run.cache.write(PLOT_FILE, draw_frontier(frontier))
    return results


def check(config: EvaluateConfig, progress: Progress = unheard) -> None:
    """What `evaluate` asks of models, judges and the corpus before it samples anything, for who has long work to do before.

    Raises InputError, or WorkError where the Hub can't be reached; nothing is written but the corpus's cache.
    """
    device = torch.device("cpu")
    models = [open_subject(name, config, device).opened for name in config.model]
    for name in config.evaluator:
        open_judge(name, device, [each.vocabulary for each in models])
    for opened in kinds_of(config, models) if config.real else []:
        real_texts(config, opened, progress).make()


@dataclass(frozen=True)
class _Run:
    """One evaluation: its folder, its judges, short names for people, and who is told how far it is."""

    config: EvaluateConfig
    cache: SampleCache
    judges: list[Judge]
    names: dict[str, str]
    progress: Progress
    memory: Memory
    remarks: dict[tuple[str, str], str] = field(default_factory=dict)  # by judge and vocabulary
    real: dict[Kind, RealTexts] = field(default_factory=dict)
    judged: dict[Where, dict[str, JudgedTexts]] = field(default_factory=dict)  # of the models' rows, by judge

    def rows(self, subjects: list[Subject]) -> list[Row]:
        """Sample and judge every model at every step count and temperature."""
        plan = self._plan(subjects)
        return [self._row(index, len(plan), *each) for index, each in enumerate(plan)]

    def _plan(self, subjects: list[Subject]) -> list[tuple[Subject, int, float]]:
        return [(subject, steps, temperature) for subject in subjects for steps in self.config.steps
                for temperature in self.config.swept]

    def have_made(self, subjects: list[Subject], maker: Maker) -> set[str]:
        """Have the maker make what the folder lacks of all rows, and keep it. Returns the devices it was made on."""
        cells, devices = [cell for each in self._plan(subjects) if (cell := self._lacking(*each))], set()
        keys = {subject.name: subject.key for subject in subjects}

        def take(index: int, made: Made) -> None:
            cell = cells[index]
            identity = self._identity(cell.fingerprint, cell.steps, cell.temperature, keys[cell.model])
            self.cache.samples(identity, self._labels(cell.model, cell.steps, cell.temperature), lambda: made.samples)
            for name, found in made.likelihoods.items():
                scores = identity_of_scores(identity, cell.judges[name], METHOD)
                self.cache.likelihood(scores, partial(_same, found), self.config.distances)
            devices.add(made.device)

        if cells:
            maker.make(cells, take)
        return devices

    def _lacking(self, subject: Subject, steps: int, temperature: float) -> Cell | None:
        """What the folder lacks of a row; None where it is all there."""
        identity = self._identity(subject.opened.fingerprint, steps, temperature, subject.key)
        samples = self.cache.find_samples(identity)
        judges = {judge.name: judge.fingerprint for judge in self.judges
                  if self.cache.find_likelihood(
                      identity_of_scores(identity, judge.fingerprint, METHOD), self.config.distances) is None}
        if samples is not None and not judges:
            return None
        return Cell(self.config, subject.name, subject.opened.fingerprint, steps, temperature, samples, subject.patterns,
                    judges)

    def _identity(self, fingerprint: str, steps: int, temperature: float, prompts: str | None) -> Identity:
        return {**identity_of_texts(self.config, fingerprint, steps, temperature, prompts), **of_method(METHOD)}

    def _labels(self, model: str, steps: int, temperature: float) -> dict[str, Any]:
        return {"model": model, "steps": steps, "temperature": temperature, "seed": self.config.seed}

    def _row(self, index: int, rows: int, subject: Subject, steps: int, temperature: float) -> Row:
        config, opened, per_row = self.config, subject.opened, self.config.samples * (1 + len(self.judges))
        note = f"{self.names[subject.name]}, n = {steps}, T = {temperature:g}"

        def tell(done: int, more: str = "") -> None:
            self.progress("sampling and judging texts", index * per_row + done, rows * per_row, note + more)

        identity = self._identity(opened.fingerprint, steps, temperature, subject.key)
        rollout = rollout_of(config, steps, temperature)
        samples = self.cache.samples(identity, self._labels(subject.name, steps, temperature), lambda: sample_texts(
            opened.network, opened.vocabulary, rollout, config.samples, lambda stage, done, total, note="": tell(done),
            Wanted(extent_of(config, opened), subject.patterns)))
        found = {}
        for number, judge in enumerate(self.judges, 2):
            found[judge.name] = self._likelihood(identity, samples, judge)
            if not config.real:  # else real text has told
                self._note(judge, samples, found[judge.name])
            tell(number * len(samples.texts), f"; judge {self.names[judge.name]}")
        self.memory.add(identity, samples, subject.name)
        self.judged[subject.name, steps, temperature] = {
            name: JudgedTexts(replace(each, features=None), samples.entropies) for name, each in found.items()}
        return _row_of(summarise(samples, found), model=subject.name, fingerprint=opened.fingerprint,
                       vocabulary=samples.vocabulary, texts=opened.network.config.texts, steps=steps, temperature=temperature,
                       prompts=subject.key,
                       distances=self._distances(opened, found))

    def references(self, subjects: list[Subject]) -> list[Row]:
        """Judge real held-out text, once for each vocabulary and length that the models have."""
        rows = []
        for opened in kinds_of(self.config, [each.opened for each in subjects]):
            texts = real_texts(self.config, opened, self.progress)
            if self.config.distances:
                others = other_real_texts(self.config, opened, self.progress)
                theirs = self._judged(others, "real texts")[1]  # first, for there may be too few
                self.real[kind_of(self.config, opened)] = RealTexts(self._judged(texts, "real texts")[1], theirs)
            rows.append(self._corpus_row(opened, texts, "real texts"))
        return rows

    def naive(self, subjects: list[Subject]) -> list[Row]:
        """Judge the texts of naive samplers, as often."""
        return [self._corpus_row(opened, texts, f"naive texts ({texts.name})")
                for opened in kinds_of(self.config, [each.opened for each in subjects])
                for texts in naive_texts(self.config, opened, self.progress)]

    def memorised(self, *tables: list[Row]) -> list[list[Row]]:
        """Tables of rows with the shares of their texts that stand in what models were trained on."""
        found = self.memory.count(self.progress)

        def key(row: Row) -> str:
            if row.steps is None or row.temperature is None:
                return row.fingerprint
            return key_of(self._identity(row.fingerprint, row.steps, row.temperature, row.prompts))

        return [[row.model_copy(update=dict(found.get(key(row), Memorised()))) for row in rows] for rows in tables]

    def _corpus_row(self, opened: ModelFolder[Denoiser], texts: CorpusTexts, what: str) -> Row:
        samples, found = self._judged(texts, what)
        if texts.is_real:
            for judge in self.judges:
                self._note(judge, samples, found[judge.name])
        self.memory.add(texts.identity, samples)
        return _row_of(summarise(samples, found), model=texts.name, fingerprint=key_of(texts.identity),
                       vocabulary=texts.vocabulary, texts=texts.texts, steps=None, temperature=None,
                       distances=self._distances(opened, found))

    def _judged(self, texts: CorpusTexts, what: str) -> tuple[Samples, dict[str, Likelihood]]:
        """Texts of the corpus, and what each judge says of them."""
        samples, found = self.cache.samples(texts.identity, texts.labels, texts.make), {}
        for number, judge in enumerate(self.judges, 1):
            found[judge.name] = self._likelihood(texts.identity, samples, judge)
            self.progress(f"judging {what}", number * len(samples.texts), len(self.judges) * len(samples.texts),
                          f"judge {self.names[judge.name]}")
        return samples, found

    def _distances(self, opened: ModelFolder[Denoiser], found: dict[str, Likelihood]) -> dict[str, Distances]:
        """How far texts of a model's vocabulary and length are from real ones; nothing where that isn't asked."""
        real = self.real.get(kind_of(self.config, opened))
        return {} if real is None else real.distances(found)

    def _likelihood(self, identity: Identity, samples: Samples, judge: Judge) -> Likelihood:
        """What a judge says of some texts, which is kept."""
        return self.cache.likelihood(identity_of_scores(identity, judge.fingerprint, METHOD),
                                     partial(likelihood, samples, judge), self.config.distances)

    def told(self, rows: list[Row], bounds: list[Bound]) -> list[str]:
        """What to know before reading a figure of these rows and bounds."""
        few = why_few([each for row in rows for each in row.distances.values()]), why_one(bounds)
        return [*self.remarks.values(), *filter(None, few)]

    def _note(self, judge: Judge, samples: Samples, found: Likelihood) -> None:
        """Remember what makes a judge's figures of some texts worth little, once for each vocabulary."""
        remark = why_unfit(judge, samples, found)
        if remark is not None:
            self.remarks.setdefault((judge.name, samples.vocabulary), f"judge {self.names[judge.name]} {remark}")


def _same(found: Likelihood) -> Likelihood:
    return found


def _facts(judge: Judge, models: Sequence[Vocabulary]) -> JudgeFacts:
    return JudgeFacts(fingerprint=judge.fingerprint, vocabulary=judge.vocabulary, positions=judge.longest,
                      reads_tokens=all(judge.reads_tokens(each.fingerprint) for each in models))


def _row_of(measures: Measures, **named: Any) -> Row:
    return Row(**dict(measures), **named)


@contextmanager
def _folder(out: str | None) -> Iterator[Path]:
    """The folder that keeps everything, or one for this run only."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="tsdfm-evaluate-") as temporary:
            yield Path(temporary)
        return
    folder = Path(out)
    check_results(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot write there ({error.strerror}); give a folder you can write to") from None
    yield folder


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # transformers is optional
    return found
