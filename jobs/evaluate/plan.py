"""`evaluate --plan`: what an evaluation will take, by one of few texts; nothing is kept."""

import itertools
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tsdfm.jobs.plan.plan import Forecast, Measurement, check_writable, plan_of, started_seconds
from tsdfm.jobs.plan.rates import as_json, this_machine
from tsdfm.jobs.plan.rollouts import visits
from tsdfm.jobs.shell.console import Stages, say_corpus
from tsdfm.pipeline.evaluation.judge import Likelihood, Prefixes
from tsdfm.pipeline.evaluation.measures.bounds import DRAWS
from tsdfm.pipeline.evaluation.measures.corpus_texts import NAIVE, extent_of, kinds_of
from tsdfm.pipeline.evaluation.measures.likelihoods import steps_bounded
from tsdfm.pipeline.evaluation.measures.prompted import Beginnings, beginnings, read_prompts
from tsdfm.pipeline.evaluation.memorisation.memory import look_in
from tsdfm.pipeline.evaluation.open_judge import open_judge
from tsdfm.pipeline.evaluation.run import evaluate
from tsdfm.pipeline.evaluation.sample_cache import check_results, has_texts, kept_texts
from tsdfm.pipeline.evaluation.samples import summarise
from tsdfm.pipeline.flow.mixture_path import MixturePath
from tsdfm.pipeline.flow.rings.clocks import clocks_of
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import ModelFolder, load_model
from tsdfm.schemas.evaluate import EvaluateConfig, Results, Row
from tsdfm.schemas.generate import RolloutConfig
from tsdfm.schemas.plan import Plan, PlanWish, Rates, Stage

SAMPLING = "sampling and judging texts"  # how `evaluate` calls the stage of its rows
FIGURED = 2**20  # tokens, about, whose figures are measured at the most: those of more are told by these
VISITS = 64.0  # a text that takes more forward passes is measured in steps that take about so many


def plan_evaluate(config: EvaluateConfig, wish: PlanWish) -> Plan:
    """The plan of an evaluation. Raises InputError where the run would; nothing is written."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.out is not None:
        check_writable(Path(config.out))
        check_results(Path(config.out))
    job = EvaluateJob.of(config)
    if config.reads_corpus:
        say_corpus(config.corpus, config.model)
    return plan_of(job, wish)


@dataclass(frozen=True)
class EvaluateJob:
    """An evaluation to be planned: see `jobs.plan.plan.Job`. `models`: opened, in the order of the config."""

    config: EvaluateConfig
    models: list[ModelFolder[Denoiser]]
    prompts: list[Beginnings | None]  # of each model
    judges: list[str]  # their fingerprints
    started: float
    command: str = "evaluate"
    address: str = "local"

    @classmethod
    def of(cls, config: EvaluateConfig) -> "EvaluateJob":
        """With all models and judges opened once. Raises InputError."""
        texts = read_prompts(config)
        models = [load_model(name) for name in config.model]
        prompts = [beginnings(config, texts, opened) for opened in models]
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        vocabularies = [opened.vocabulary for opened in models]
        began = time.monotonic()
        judges = [open_judge(name, device, vocabularies).fingerprint for name in config.evaluator]
        judging = time.monotonic() - began  # which the run does once
        look_in(config, dict(zip(config.model, models, strict=True)))
        return cls(config, models, prompts, judges, max(0.0, started_seconds() - judging))

    @property
    def out(self) -> str | None:
        """Where everything is kept."""
        return self.config.out

    def measured_for(self) -> Mapping[str, Any]:
        """Shapes of the models, the judges, and the settings that move the time."""
        return {"models": [as_json(opened.network.config) for opened in self.models], "judges": self.judges,
                "batch_size": self.config.batch_size, "threads": torch.get_num_threads(), "dtype": self.config.dtype,
                "compile": self.config.compile, "clocks": self.config.clocks, "reference": self.config.reference,
                "length": self.config.length, "overlap": self.config.overlap, "until": self.config.until,
                "corpus": self.config.corpus.path if self.config.reads_corpus else None,
                **({} if None in self.prompts else {"free": [round(each.free, 2) for each in self.prompts if each]})}

    def measure(self) -> Measurement:
        """Evaluate a batch of texts of every model, in the fewest and in the most steps.

        Numbers, in seconds: `start` of the command; `once` opening all and reading the corpus; of every row `row` once and
        `figures` for as many texts as are asked for; `judge` a text by all judges; of model i `i.text` a text and `i.visit`
        each of its forward passes.
        """
        config = self.config
        few = max(2, min(config.samples, config.batch_size))
        low, high = min(config.steps), self._high()
        with tempfile.TemporaryDirectory(prefix="tsdfm-plan-") as scratch, Stages() as shown:
            marks = _Marks(shown)
            short = config.model_copy(update={
                "out": scratch, "samples": few, "steps": tuple(dict.fromkeys((low, high))), "frontier": False,
                "distances": False, "likelihood": False, "text": None, "sampling": True})
            results = evaluate(short, marks)
            whole = time.monotonic() - marks.began
            small, full = self._figures(results, Path(scratch))
        batches, judges = ceil(few / config.batch_size), len(config.evaluator)
        sampling = [row.seconds or 0.0 for row in results.rows]
        judging = marks.judging(batches, judges)
        each = max(0.0, marks.between(batches, judges, sampling) - small)
        once = whole - sum(sampling) - len(results.rows) * (judging + small + each)
        numbers = {"start": self.started, "once": max(0.0, once), "row": each, "figures": full, "judge": judging / few}
        for index in range(len(self.models)):
            numbers |= self._fitted(index, [row for row in results.rows if row.model == config.model[index]])
        return Measurement(this_machine(), 1, numbers)

    def _high(self) -> int:
        """The most steps that are measured."""
        steps = max(self.config.steps)
        while steps > min(self.config.steps) and max(map(partial(self._visits, steps), range(len(self.models)))) > VISITS:
            steps = max(min(self.config.steps), steps // 2)
        return steps

    def _figures(self, results: Results, folder: Path) -> tuple[float, float]:
        """Seconds of the figures of a row: of as few texts as were sampled, and of as many as are asked for."""
        samples, found = kept_texts(results, results.rows[0], folder)
        given, taken = samples.given, list[float]()
        wanted = ceil(self.config.samples / len(samples.texts))
        most = max(1, min(wanted, FIGURED // samples.tokens.size))
        for times in (1, most):
            many = replace(samples, tokens=np.tile(samples.tokens, (times, 1)), texts=samples.texts * times,
                           nfe=None if samples.nfe is None else np.tile(samples.nfe, times),
                           given=None if given is None else Prefixes(np.tile(given.tokens, times), given.texts * times))
            scores = {name: Likelihood(np.tile(each.nats, times), np.tile(each.tokens, times), times * each.in_windows)
                      for name, each in found.items()}
            began = time.monotonic()
            summarise(many, scores)
            taken.append(time.monotonic() - began)
        return taken[0], taken[1] * wanted / most  # about as the number of texts

    def forecast(self, rates: Rates) -> Forecast:
        """The rows that are left, and how long sampling and judging them takes."""
        config, n = self.config, rates.numbers
        rows = list(itertools.product(range(len(self.models)), config.steps, config.swept)) if config.sampling else []
        left = [row for row in rows if not self._is_there(*row)]
        passes = {row: self._visits(row[1], row[0]) for row in left}
        sampling = sum(n["row"] + config.samples * (n[f"{row[0]}.text"] + n[f"{row[0]}.visit"] * passes[row]) for row in left)
        kinds = len(kinds_of(config, self.models))
        real = kinds * (config.real + config.distances + len(NAIVE) * config.naive)  # by no model
        bounding = [config.samples * DRAWS * len(steps_bounded(config, opened.network)) * config.bounds
                    for opened in self.models]  # forward passes of each
        bounds = sum(n[f"{index}.visit"] * number for index, number in enumerate(bounding))
        judged = config.samples * (len(left) + real)
        return Forecast(
            makes={"rows": len(rows), "texts": len(rows) * config.samples},
            there={"rows": len(rows) - len(left)} if len(left) < len(rows) else {},
            work={"texts": len(left) * config.samples, "forward passes": config.samples * sum(passes.values()) + sum(bounding),
                  "texts to judge": judged * len(config.evaluator)},
            stages=[Stage(what="start, models", seconds=n["start"]), Stage(what="judges, real text", seconds=n["once"]),
                    *(Stage(what="likelihood", seconds=seconds) for seconds in [bounds] if config.bounds),
                    Stage(what="sampling", seconds=sampling), Stage(what="judging", seconds=judged * n["judge"]),
                    Stage(what="figures", seconds=(len(rows) + real) * n["figures"])],
            devices=1)


    def _is_there(self, index: int, steps: int, temperature: float) -> bool:
        prompts = self.prompts[index]
        key = None if prompts is None else prompts.key
        return has_texts(self.config, self.models[index].fingerprint, steps, temperature, key)

    def _visits(self, steps: int, index: int) -> float:
        """The forward passes that a text of a model in so many steps takes, expected."""
        opened, prompts = self.models[index], self.prompts[index]
        model, rollout = opened.network.config, RolloutConfig(steps=steps, clocks=self.config.clocks)
        extent, path, clocks = extent_of(self.config, opened), MixturePath.of(model), clocks_of(rollout, model)
        given = 0 if prompts is None else extent.length - prompts.free
        first = visits(path, rollout.times, max(1, extent.size - given), clocks=clocks).steps
        more = len(extent.starts) - 1
        return first + more * visits(path, rollout.times, extent.size - extent.overlap, clocks=clocks).steps if more else first

    def _fitted(self, index: int, rows: list[Row]) -> dict[str, float]:
        """Seconds of a text, and of each forward pass of it, through the rows of one model in the fewest and the most steps."""
        points = sorted((self._visits(row.steps or 1, index), (row.seconds or 0.0) / row.samples) for row in rows)
        (few, quick), (many, slow) = points[0], points[-1]
        visit = (slow - quick) / (many - few) if many > few else slow / many
        visit = min(max(visit, 0.0), slow / many)
        return {f"{index}.visit": visit, f"{index}.text": max(0.0, slow - visit * many)}


@dataclass
class _Marks:
    """When an evaluation told of its rows: each sampled a batch at a time, then judged by every judge."""

    shown: Stages
    began: float = field(default_factory=time.monotonic)
    times: list[float] = field(default_factory=list)

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """See `schemas.progress.Progress`."""
        if stage == SAMPLING:
            self.times.append(time.monotonic())
        self.shown("measuring: " + stage, done, total, note)

    def judging(self, batches: int, judges: int) -> float:
        """Mean seconds in which all judges score a row."""
        size = batches + judges
        rows = [self.times[start : start + size] for start in range(0, len(self.times), size)]
        return sum(row[-1] - row[batches - 1] for row in rows) / len(rows)

    def between(self, batches: int, judges: int, sampling: list[float]) -> float:
        """Mean seconds from the end of a row to that of the next one's sampling, without the sampling."""
        size, gaps = batches + judges, []
        for number, start in enumerate(range(size, len(self.times), size), 1):
            with suppress(IndexError):
                gaps.append(self.times[start + batches - 1] - self.times[start - 1] - sampling[number])
        return max(0.0, sum(gaps) / len(gaps)) if gaps else 0.0
