"""Would a joint law repair few steps? `python tests/benchmarks/joint.py [--texts N] [--work DIR] [--quick] [--json FILE]`.

In N steps a student draws L / N tokens at once, each by itself given the text so far. Two students of one dataset, with the same updates,
batches, learning rate and seed, say what that costs (`joint_layer.py`): the package's, *factorised*, and one with a causal block more
that is told the tokens drawn before in the same jump, *joint*. A third, *added*, is the teacher as it stands with such a block: what it
changes is the block's doing, and nothing that a student forgot; *added-4* is one for windows of 4 steps alone. Asked of each: nats per token of texts that were held out, beside those of the *law* that drew them, token by token nearly, so
that the factorised student is above it by what the tokens of a jump tell of each other, and by what it has not learnt; perplexity
over that of the factorised student, and of the teacher in as many and in 64 steps, at equal entropy; and CPU time. One seed.

Trajectories are blind rollouts of the embedded mask teacher in 16 steps on spaced clocks: each step jumps at 4 positions that lie 16
apart, and so is nearly exact, for a quarter of the cost of 64. Everything is kept in DIR, so that what was cut goes on.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joint_layer import Added, Factorised, Joint, write
from measure import Ratio as CostRatio
from measure import machine, report, say, table

from tsdfm.pipeline.evaluation.effects import JudgedTexts, Ratio, ratio_at_equal_entropy
from tsdfm.pipeline.evaluation.judge import Judge, Likelihood
from tsdfm.pipeline.evaluation.open_judge import open_judge
from tsdfm.pipeline.evaluation.samples import Samples, likelihood, of_tokens
from tsdfm.pipeline.flow.generate import generate_dataset
from tsdfm.pipeline.loader.batches import Reader, ReaderSettings
from tsdfm.pipeline.loader.streams import OpenDataset
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import ModelFolder, load_model
from tsdfm.pipeline.models.student import student_of
from tsdfm.pipeline.storage.atomic import write_atomic
from tsdfm.pipeline.text.metrics import distinct_n
from tsdfm.pipeline.training.loop.trainer import Trainer, seeded, whole
from tsdfm.schemas.distill import DataConfig, DistillOptim
from tsdfm.schemas.generate import GenerateConfig, RolloutConfig

CPU = torch.device("cpu")
SIDES: dict[str, type[Factorised]] = {"factorised": Factorised, "joint": Joint, "added": Added, "added-4": Added}
ONLY = {"added-4": 4}  # models of one budget alone
RATES = {"factorised": 5e-4, "joint": 5e-4, "added": 1e-3, "added-4": 1e-3}  # of learning; a block alone takes a higher one
BUDGETS = {4: 2.0, 2: 1.0, 1: 1.0}  # steps, and how often a window of that budget is trained
TEMPERATURES, LONG_TEMPERATURES = (0.7, 0.8, 0.9, 1.0, 1.1), (0.7, 0.8, 0.9, 1.0)
LONG = 64  # steps of the teacher that is the measure of all; it writes half as many texts
DRAWN_IN, DRAWN_AT = 16, 0.9  # steps and temperature of the trajectories
HELD_OUT = 1 / 16  # of the trajectories
LAW, COOLED = "law", f"teacher, T = {DRAWN_AT:g}"  # by which the trajectories were drawn; and the same in fewer steps
BATCH = 32
COST_TEXTS, COST_ROUNDS = 64, 5


@dataclass(frozen=True)
class Scale:
    """How much of everything: trajectories, updates of a student, texts of every row."""

    trajectories: int = 2048
    updates: int = 400
    texts: int = 128


@dataclass(frozen=True)
class Row:
    """A model's texts in so many steps at a temperature."""

    model: str
    steps: int
    temperature: float
    samples: Samples


def kept(file: Path, make: Callable[[], object]) -> Any:
    """What a JSON file holds, made and written now if it isn't there."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps(make()).encode())
    return json.loads(file.read_bytes())


def models_in(steps: int) -> list[str]:
    """Those that write in so many steps."""
    return [name for name in (*SIDES, "teacher") if ONLY.get(name, steps) == steps]


class Bench:
    """Makes data, students and texts, each once."""

    def __init__(self, scale: Scale, work: Path) -> None:
        self.teacher: ModelFolder[Denoiser] = load_model("embedded")
        self.scale, self.data = scale, work / f"trajectories-{scale.trajectories}"
        self.work = work / f"{self.teacher.fingerprint[:12]}-{scale.trajectories}-{scale.updates}"

    def generate(self) -> None:
        """Make the trajectories, or go on."""
        say(f"generate {self.data}")
        generate_dataset(GenerateConfig.model_validate({
            "out": str(self.data), "trajectories": self.scale.trajectories, "compass": "none", "arm": "blind",
            "rollout": {"steps": DRAWN_IN, "clocks": "spaced", "temperature": DRAWN_AT}}))

    @cached_property
    def models(self) -> dict[str, Factorised]:
        """The students, trained, and the teacher."""
        return {**{name: self._trained(name) for name in SIDES}, "teacher": Factorised(self.teacher.network)}

    def _trained(self, name: str) -> Factorised:
        optim = DistillOptim(steps=self.scale.updates, warmup=min(50, self.scale.updates), log_every=25, checkpoint_every=25, lr=RATES[name])
        with seeded(optim.seed):
            side = SIDES[name](student_of(self.teacher.network, "spaced"))
        data, budgets = DataConfig(paths=[str(self.data)], arm="blind", held_out=HELD_OUT), {ONLY[name]: 1.0} if name in ONLY else BUDGETS
        reader = Reader.open(data, ReaderSettings(budgets=budgets, batch_size=optim.batch_size, seed=optim.seed))
        folder = self.work / name
        folder.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(side.fitted, optim, folder, {"side": name, "optim": optim.model_dump(mode="json"), "budgets": str(budgets)})
        trainer.resume()
        batches = reader.batches(trainer.step, optim.steps)
        trainer.run(whole(lambda step, generator: side.nats(next(batches)).mean()),
                    lambda step, scalars: say(f"{name}, update {step}: {scalars['loss']:.4f} nats"))
        return side

    def held_out(self, name: str, budget: int) -> list[float]:
        """Nats per token of every text that was not learnt from, [texts]: all its tokens, in the windows of a budget."""
        return list(kept(self.work / "held-out" / f"{name}-{budget}.json", lambda: self._held_out(name, budget)))

    def _held_out(self, name: str, budget: int) -> list[float]:
        say(f"held-out nats of {name}, {budget} steps ...")
        model = self.law if name == LAW else self.models[name]
        source = OpenDataset.open_held_out(str(self.data), DataConfig(arm="blind", held_out=HELD_OUT))
        found = list[float]()
        for shard in range(len(source.shards)):
            trajectories = source.load(shard)
            rows, width = np.arange(len(trajectories.tokens)), trajectories.steps // budget
            starts = [np.full(len(rows), start) for start in range(0, trajectories.steps, width)]
            windows = [trajectories.window(rows, start, start + width, "event", 0.0) for start in starts]
            with torch.no_grad():  # spaced clocks: every window has L / n targets
                nats = torch.cat([model.nats(each).view(len(rows), -1) for each in windows], 1)
            found += nats.double().mean(1).tolist()
        return found

    @cached_property
    def law(self) -> Factorised:
        """By what the trajectories were drawn: the teacher at their temperature."""
        cooled = deepcopy(self.teacher.network)
        with torch.no_grad():
            cooled.head.weight.div_(DRAWN_AT)
            cooled.head.bias.div_(DRAWN_AT)
        return Factorised(cooled)

    def row(self, model: str, steps: int, temperature: float) -> Row:
        """Texts 0..n-1 of one row."""
        texts = self.scale.texts // 2 if steps == LONG else self.scale.texts
        rollout = RolloutConfig(steps=steps, temperature=temperature, clocks="spaced")

        def part(ids: range) -> list[list[int]]:
            say(f"{model}: {steps} steps, temperature {temperature:g}, texts from {ids.start} on ...")
            return list(write(self.models[model], rollout, ids).tolist())

        tokens = list[list[int]]()
        for start in range(0, texts, BATCH):
            ids = range(start, min(texts, start + BATCH))
            tokens += kept(self.work / "texts" / f"{model}-{steps}-{temperature:g}-{ids.start}-{ids.stop}.json", partial(part, ids))
        return Row(model, steps, temperature, of_tokens(np.array(tokens, dtype=np.int64), self.teacher.vocabulary))

    def judged(self, row: Row, judge: Judge) -> JudgedTexts:
        """What a judge says of a row."""
        def make() -> dict[str, list[float]]:
            found = likelihood(row.samples, judge)
            return {"nats": found.nats.tolist(), "tokens": found.tokens.tolist()}

        file = f"{row.model}-{row.steps}-{row.temperature:g}-{len(row.samples.tokens)}.json"
        found = kept(self.work / f"judged-{Path(judge.name).stem}" / file, make)
        return JudgedTexts(Likelihood(np.array(found["nats"]), np.array(found["tokens"])), row.samples.entropies)


def losses(bench: Bench) -> dict[str, object]:
    """Held-out nats per token by budget, and how far each is below the factorised student, with its standard error over texts.

    `law`: of the process that drew the trajectories, told every state it went through: what no student can be far below.
    """
    law = np.array(bench.held_out(LAW, DRAWN_IN))
    found, rows = dict[str, object](), list[list[object]]()
    for budget in BUDGETS:
        nats = {**{name: np.array(bench.held_out(name, budget)) for name in models_in(budget)},
                COOLED: np.array(bench.held_out(LAW, budget)), LAW: law}
        below = {name: nats["factorised"] - each for name, each in nats.items()}
        error = {name: float(each.std(ddof=1) / len(each) ** 0.5) for name, each in below.items()}
        found[str(budget)] = {"texts": len(law), "nats": {name: float(each.mean()) for name, each in nats.items()},
                              "below_factorised": {name: {"nats": float(below[name].mean()), "standard_error": error[name]} for name in below}}
        rows += [[f"{budget} steps, {name}", f"{each.mean():.4f}", f"{below[name].mean():+.4f} +- {error[name]:.4f}"]
                 for name, each in nats.items()]
    table("held-out nats per token", ("", "nats", "below factorised"), rows)
    return found


def costs(bench: Bench) -> dict[str, object]:
    """CPU time of a text in multiples of the factorised student's, in turn."""
    found, rows = dict[str, object](), list[list[object]]()
    for steps in BUDGETS:
        seconds = kept(bench.work / "cost" / f"{steps}.json", partial(_seconds, bench, RolloutConfig(steps=steps, clocks="spaced")))
        ratios = {name: CostRatio.of(each, seconds["factorised"]) for name, each in seconds.items()}
        milliseconds = {name: 1000 * sorted(each)[len(each) // 2] / COST_TEXTS for name, each in seconds.items()}
        found[str(steps)] = {name: {"cpu_ms_a_text": milliseconds[name], "over_factorised": asdict(ratios[name])} for name in seconds}
        rows += [[f"{steps} steps, {name}", milliseconds[name], ratios[name]] for name in seconds]
    table(f"CPU time, {COST_TEXTS} texts at once", ("", "ms a text", "over factorised"), rows)
    return found


def _seconds(bench: Bench, rollout: RolloutConfig) -> dict[str, list[float]]:
    """CPU seconds of COST_TEXTS texts, COST_ROUNDS times each student."""
    seconds: dict[str, list[float]] = {name: [] for name in ("factorised", "joint")}
    for name in seconds:
        write(bench.models[name], rollout, range(2))  # pages the weights in
    for _ in range(COST_ROUNDS):
        for name, each in seconds.items():
            began = time.process_time()
            write(bench.models[name], rollout, range(COST_TEXTS))
            each.append(time.process_time() - began)
    return seconds


def compare(bench: Bench, steps: int, judge: Judge, temperatures: tuple[float, ...]) -> list[dict[str, object]]:
    """Every model in so many steps: its figures, and its perplexity over that of others at equal entropy."""
    rows = {name: [bench.row(name, steps, each) for each in temperatures] for name in models_in(steps)}
    curves = {name: [bench.judged(row, judge) for row in each] for name, each in rows.items()}
    long_rows = [bench.row("teacher", LONG, each) for each in LONG_TEMPERATURES]
    long = [bench.judged(row, judge) for row in long_rows]
    found = list[dict[str, object]]()
    for name, each in rows.items():
        for row, judged in zip(each, curves[name], strict=True):
            ratios = {other: ratio_at_equal_entropy(judged, curves[other]) for other in ("factorised", "teacher") if other != name}
            ratios[f"teacher, {LONG} steps"] = ratio_at_equal_entropy(_first(judged, len(long[0].entropy)), long)
            found.append(_figures(row, judged, ratios))
    if steps == max(BUDGETS):
        found += [_figures(row, judged, {}) for row, judged in zip(long_rows, long, strict=True)]
    _tell(f"{steps} steps, {bench.scale.texts} texts a row, judge embedded", found)
    return found


def _tell(title: str, found: list[dict[str, object]]) -> None:
    over = ("factorised", "teacher", f"teacher, {LONG} steps")
    table(title, ("", "T", "ppl (95 %)", "entropy", "distinct-2", *(f"over {name}" for name in over)),
          [(f"{each['model']}, {each['steps']}", each["temperature"], each["shown"], f"{each['entropy_bits']:.3f}",
            f"{each['distinct_2']:.3f}", *(_shown(each["over"], name) for name in over)) for each in found])


def _first(texts: JudgedTexts, count: int) -> JudgedTexts:
    return JudgedTexts(Likelihood(texts.judged.nats[:count], texts.judged.tokens[:count]), texts.entropy[:count])


def _figures(row: Row, judged: JudgedTexts, ratios: Mapping[str, Ratio | None]) -> dict[str, object]:
    low, high = judged.judged.interval()
    perplexity = judged.judged.perplexity
    return {"model": row.model, "steps": row.steps, "temperature": row.temperature, "perplexity": perplexity, "low": low,
            "high": high, "shown": f"{perplexity:.1f} ({low:.1f}-{high:.1f})", "entropy_bits": float(judged.entropy.mean()),
            "distinct_2": distinct_n(list(row.samples.written), 2),
            "over": {name: None if each is None else asdict(each) for name, each in ratios.items()}}


def _shown(over: Any, name: str) -> str:
    ratio = over.get(name)
    return "-" if ratio is None else f"{ratio['value']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"


def main() -> None:
    """Generate, train, sample, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trajectories", type=int, default=Scale.trajectories, help="that the students learn from")
    parser.add_argument("--updates", type=int, default=Scale.updates, help="of every student, 32 windows each")
    parser.add_argument("--texts", type=int, default=Scale.texts, help="of every row")
    parser.add_argument("--quick", action="store_true", help="128 trajectories, 8 updates, 16 texts, two temperatures: not to be quoted")
    parser.add_argument("--work", type=Path, default=Path("out/joint"), help="where everything is kept")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the JSON object to FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    scale = Scale(128, 8, 16) if options.quick else Scale(options.trajectories, options.updates, options.texts)
    bench = Bench(scale, options.work)
    bench.generate()
    temperatures = (0.7, 1.0) if options.quick else TEMPERATURES
    found: dict[str, object] = {"machine": machine(1), "scale": asdict(scale), "teacher": bench.teacher.fingerprint,
                                "held_out": losses(bench), "cost": costs(bench)}
    judge = open_judge("embedded", CPU, [bench.teacher.vocabulary])
    found["embedded"] = {str(steps): compare(bench, steps, judge, temperatures) for steps in BUDGETS}
    report(found, options.json)


if __name__ == "__main__":
    main()
