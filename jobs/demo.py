"""`tsdfm-pipeline demo`: the whole story on what ships with the package.

Paired shaped and blind trajectories of the embedded mask teacher, a student from each arm with equal budgets, their evaluation
beside the teacher and real text, and one page that tells the results. A rerun of the same command keeps all that is finished.

    OUT/data                             the dataset; OUT/trajectories.html plays some of it
    OUT/student-blind, student-shaped    models; training state and logs stand beside them
    OUT/evaluation/*                     samples, scores and results, as `evaluate` keeps them
    OUT/report.html                      the page
"""

import json
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich import box
from rich.table import Table

from tsdfm.jobs.console import people, ticker
from tsdfm.jobs.distill import distill
from tsdfm.jobs.evaluate import evaluate
from tsdfm.jobs.generate import generate
from tsdfm.jobs.inspect import write_page
from tsdfm.jobs.train import state_folder
from tsdfm.pipeline.checkpoint import TRAINING_FILE, embedded, load_denoiser
from tsdfm.pipeline.distill import identity_of, open_init, open_reader
from tsdfm.pipeline.files import write_atomic
from tsdfm.pipeline.inspection import summarise
from tsdfm.pipeline.kept import METADATA
from tsdfm.pipeline.plots import frontier_of
from tsdfm.pipeline.report import report_page
from tsdfm.pipeline.storage import Store
from tsdfm.pipeline.story import NAMES, Curve, Role, Story, Texts, headline, interval
from tsdfm.pipeline.training import HEADER_FILE
from tsdfm.pipeline.verify import verify
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.distill import DataConfig, DistillConfig, DistillOptim
from tsdfm.schemas.evaluate import EvaluateConfig, Results, Row
from tsdfm.schemas.generate import Arm, GenerateConfig

TEACHER = "embedded:mask"
ARMS: tuple[Arm, ...] = ("blind", "shaped")
STEPS, OTHER_STEPS, TEACHER_STEPS = 8, (4, 16), 64  # the comparison; of both students, too; of the teacher, too
TEMPERATURES = (0.6, 0.7, 0.8, 0.9, 1.0)
SEED = 1  # of the evaluated texts: seed 0 is the trajectories', whose noise the students saw in training
SHOWN = 4  # texts side by side
SHARD = 64  # trajectories in one, unless there are too few for four shards
MAX_THREADS = 2  # more gain nothing with models this small


@dataclass(frozen=True)
class Plan:
    """The configs of all stages, by name, and the folder they work in."""

    out: Path
    data: GenerateConfig
    students: dict[Arm, DistillConfig]
    evaluations: dict[str, EvaluateConfig]


def plan(out: str, trajectories: int, updates: int, samples: int) -> Plan:
    """What a demo runs. Raises InputError: OUT is not a local folder."""
    if "://" in out:
        raise InputError(f"--out {out}: models and pages need a local folder; give one")
    folder = Path(out)
    threads = min(MAX_THREADS, len(os.sched_getaffinity(0)))
    data = GenerateConfig(
        out=str(folder / "data"), trajectories=trajectories, arm="both", shard_size=min(SHARD, -(-trajectories // 4)))
    students = {arm: DistillConfig(data=DataConfig(paths=[str(folder / "data")], arm=arm),
                                   optim=DistillOptim(steps=updates, threads=threads)) for arm in ARMS}
    models = tuple(str(folder / f"student-{arm}") for arm in ARMS)

    def part(name: str, **settings: Any) -> EvaluateConfig:
        return EvaluateConfig(out=str(folder / "evaluation" / name), samples=samples, seed=SEED, threads=threads, **settings)

    return Plan(folder, data, students, {
        "frontier": part("frontier", model=(TEACHER, *models), steps=(STEPS,), frontier=True, temperatures=TEMPERATURES),
        "students": part("students", model=models, steps=OTHER_STEPS, reference=False),
        "teacher": part("teacher", model=(TEACHER,), steps=(TEACHER_STEPS,), reference=False),
    })


def commands(plan: Plan) -> list[str]:
    """The commands that do the stages one by one."""
    data = ["--out", plan.data.out, "--trajectories", plan.data.trajectories, "--arm", plan.data.arm, "--shard-size",
            plan.data.shard_size]
    lines: list[list[object]] = [["generate", *data], ["verify", plan.data.out],
                                 ["inspect", plan.data.out, "--html", plan.out / "trajectories.html"]]
    for arm, config in plan.students.items():
        lines.append(["distill", "--data", plan.data.out, "--arm", arm, "--out", plan.out / f"student-{arm}", "--updates",
                      config.optim.steps, "--threads", config.optim.threads])
    for each in plan.evaluations.values():
        models = [word for model in each.model for word in ("--model", model)]
        more = ["--frontier", "--temperatures", _listed(each.temperatures)] if each.frontier else []
        more += [] if each.reference else ["--no-reference"]
        lines.append(["evaluate", *models, "--steps", _listed(each.steps), *more, "--samples", each.samples, "--seed",
                      each.seed, "--threads", each.threads, "--out", each.out])
    return [shlex.join(["tsdfm-pipeline", *map(str, line)]) for line in lines]


def _listed(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{each:g}" for each in numbers)


def demo(out: str, trajectories: int, updates: int, samples: int) -> dict[str, Any]:
    """Generate, verify, distil, evaluate, report. Returns what `--json` prints.

    Raises InputError or WorkError as the stages do; what is finished is kept.
    """
    stages = plan(out, trajectories, updates, samples)
    seconds: dict[str, float] = {}
    with _stage("generate", seconds):
        generated = generate(stages.data)
    store = Store(str(stages.data.out))
    with _stage("verify", seconds), ticker("shards", int(str(generated["shards"]))) as show:
        _, faults = verify(store, lambda done, total: show.update(done))
        if faults:
            raise WorkError(f"{store.uri}: {len(faults)} faults, the first: {faults[0]}")
        write_page(store, str(stages.out / "trajectories.html"), None)
    students, results = dict[str, str](), dict[str, Results]()
    for arm, config in stages.students.items():
        with _stage(f"distil from {arm}", seconds):
            students[arm] = _distil(config, stages.out / f"student-{arm}")
    for name, each in stages.evaluations.items():
        with _stage(f"evaluate: {name}", seconds):
            results[name] = Results.model_validate(evaluate(each))
    with _stage("report", seconds):
        story = _story(stages, results, store)
        page = stages.out / "report.html"
        write_atomic(page, report_page(story).encode())
        _show(story, page)
    return {"out": str(stages.out), "report": str(page), "data": generated, "students": students, "headline": headline(story),
            "rows": [{"role": role, **row.model_dump(mode="json")} for role, row in story.measured], "seconds": seconds}


@contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    people.rule(name)
    started = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - started, 2)


def _distil(config: DistillConfig, folder: Path) -> str:
    """Train a student, unless the folder holds this very one. Returns 'kept' or 'made'."""
    wanted, facts = _wanted(config), _json(folder / TRAINING_FILE)
    if facts is not None:
        datasets = [each["identity"] for each in facts["data"]["datasets"]]
        if _holds({**facts["config"], "init": facts["init"], "datasets": datasets}, wanted):
            people.print(f"{folder}: kept, trained by this config on this dataset", markup=False)
            return "kept"
        people.print(f"{folder}: trained otherwise, will be made again", markup=False)
    state = state_folder(folder)
    if (state / HEADER_FILE).is_file() and not _is_state_of(state, wanted):
        shutil.rmtree(state)  # of other settings: nothing to resume from
    distill(config, folder)
    return "made"


def _wanted(config: DistillConfig) -> dict[str, Any]:
    """What the records of a config's student must hold: all but where things lie, what was left open being resolved."""
    reader = open_reader(config)
    wanted: dict[str, Any] = json.loads(json.dumps(identity_of(config, reader, open_init(config, reader.manifests[0]))))
    return wanted


def _is_state_of(state: Path, wanted: dict[str, Any]) -> bool:
    """Whether training state is a student's."""
    header = _json(state / HEADER_FILE)
    return header is not None and _holds(header["identity"], wanted)


def _holds(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a JSON object has all that another has; of objects in it, alike."""
    return all(name in found and (_holds(found[name], value) if isinstance(value, dict) else found[name] == value)
               for name, value in wanted.items())


def _json(file: Path) -> dict[str, Any] | None:
    """A JSON object, or None if there is none."""
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _story(stages: Plan, results: dict[str, Results], store: Store) -> Story:
    """Bring all results together."""
    roles: dict[str, Role] = {TEACHER: "teacher"}
    roles |= {str(stages.out / f"student-{arm}"): arm for arm in ARMS}
    swept = results["frontier"]
    measured: list[tuple[Role, Row]] = [("real", row) for row in swept.reference]
    measured += [(roles[row.model], row) for each in results.values() for row in each.rows]
    wanted: list[tuple[str, Role, int]] = [("frontier", "teacher", STEPS), *(("frontier", arm, STEPS) for arm in ARMS),
                                           ("teacher", "teacher", TEACHER_STEPS)]
    texts = [Texts(role, steps, _texts(stages.evaluations[name], role, steps, measured)) for name, role, steps in wanted]
    curves: dict[Role, Curve] = {}
    for arm, config in stages.students.items():
        state = state_folder(stages.out / f"student-{arm}")
        if _is_state_of(state, _wanted(config)):
            curves[arm] = _losses(state / "tensorboard")
    teacher, _ = load_denoiser(embedded("teacher-mask"))
    return Story(
        measured=measured, steps=STEPS, temperature=swept.settings.temperature, judge=swept.settings.evaluator[0],
        frontier=frontier_of(swept), data=summarise(store, lambda done, total: None), distilled=stages.students["shaped"],
        curves={role: curve for role, curve in curves.items() if curve}, texts=texts, seed=SEED,
        parameters=sum(each.numel() for each in teacher.parameters()), commands=commands(stages))


def _texts(config: EvaluateConfig, role: Role, steps: int, measured: list[tuple[Role, Row]]) -> list[str]:
    """The first texts of a model, from the samples that `evaluate` kept."""
    row = next(row for found, row in measured if (found, row.steps, row.temperature) == (role, steps, config.temperature))
    wanted = {"model": row.fingerprint, "steps": steps, "temperature": row.temperature, "seed": config.seed,
              "samples": config.samples}
    for file in (Path(str(config.out)) / "samples").glob("*.parquet"):
        table = pq.read_table(file)
        if _holds(json.loads(table.schema.metadata[METADATA])["identity"], wanted):
            texts: list[str] = table["text"][:SHOWN].to_pylist()
            return texts
    raise WorkError(f"{config.out}: lost the samples of {row.model} in {steps} steps; run again")


def _losses(logs: Path) -> Curve:
    """The training loss that a run logged."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    events = EventAccumulator(str(logs))
    events.Reload()
    return [(each.step, each.value) for each in events.Scalars("loss")] if "loss" in events.Tags()["scalars"] else []


def _show(story: Story, page: Path) -> None:
    """The headline, for people."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(("", "steps", "perplexity", "entropy, bits")):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for role, row in story.own:
        if row.steps in (None, STEPS, TEACHER_STEPS):
            table.add_row(NAMES[role], str(row.steps or ""), interval(story.perplexity(row)), f"{row.entropy_bits:.3f}")
    people.print(table)
    for line in headline(story):
        people.print(line, markup=False)
    people.print(f"\n{page}: the whole story on one page\n{page.with_name('trajectories.html')}: trajectories, step by step",
                 markup=False)
