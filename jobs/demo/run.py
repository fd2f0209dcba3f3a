"""`tsdfm-pipeline demo`: the whole story on what ships with the package.

Paired shaped and blind trajectories of the embedded mask teacher, a student from each arm with equal budgets, their evaluation
beside the teacher and real text, and one page that tells the results. A rerun of the same command keeps all that is finished.

    OUT/data                             the dataset; OUT/trajectories.html plays some of it
    OUT/student-blind, student-shaped    models; training state and logs stand beside them
    OUT/evaluation/*                     samples, scores and results, as `evaluate` keeps them
    OUT/report.html                      the page
"""

import json
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.table import Table

from tsdfm.jobs.demo.findings import NAMES, Curve, Role, Story, Texts, headline
from tsdfm.jobs.demo.page import report_page
from tsdfm.jobs.distill.run import distill
from tsdfm.jobs.evaluate.run import evaluated
from tsdfm.jobs.generate.run import generate
from tsdfm.jobs.inspect.command import write_page
from tsdfm.jobs.shell.cluster import cores_here
from tsdfm.jobs.shell.console import Stages, people, say
from tsdfm.pipeline.dataset.summary import summarise
from tsdfm.pipeline.dataset.verify import verify
from tsdfm.pipeline.evaluation.effects import JudgedTexts, Ratio, perplexity_ratio, ratio_at_equal_entropy
from tsdfm.pipeline.evaluation.figures import count, ppl_interval
from tsdfm.pipeline.evaluation.measures.frontier import frontier_of
from tsdfm.pipeline.evaluation.run import kept_texts
from tsdfm.pipeline.models.folder import TRAINING_FILE, embedded, load_denoiser, state_folder
from tsdfm.pipeline.storage.atomic import write_atomic
from tsdfm.pipeline.storage.store import LocalStore
from tsdfm.pipeline.training.distill import open_start
from tsdfm.pipeline.training.trainer import HEADER_FILE
from tsdfm.schemas.base import InputError, WorkError, parse_json, plain_json
from tsdfm.schemas.demo import DemoConfig
from tsdfm.schemas.distill import DataConfig, DistillConfig, DistillOptim
from tsdfm.schemas.evaluate import EvaluateConfig, Results, Row
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.regular import read_regular
from tsdfm.schemas.reports import DemoReport, DemoRow
from tsdfm.schemas.terms import Arm
from tsdfm.schemas.training_record import StudentRecord

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


def plan(config: DemoConfig) -> Plan:
    """What a demo runs. Raises InputError: OUT is not a local folder."""
    if "://" in config.out:
        raise InputError(f"--out {config.out}: models and pages need a local folder; give one")
    folder, trajectories = Path(config.out), config.trajectories
    threads = min(MAX_THREADS, cores_here())
    data = GenerateConfig(
        out=str(folder / "data"), trajectories=trajectories, arm="both", shard_size=min(SHARD, -(-trajectories // 4)))
    students = {arm: DistillConfig(data=DataConfig(paths=[str(folder / "data")], arm=arm),
                                   optim=DistillOptim(steps=config.updates, threads=threads)) for arm in ARMS}
    models = tuple(str(folder / f"student-{arm}") for arm in ARMS)

    def part(name: str, **settings: Any) -> EvaluateConfig:
        return EvaluateConfig(
            out=str(folder / "evaluation" / name), samples=config.samples, seed=SEED, threads=threads, **settings)

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
        lines.append(["evaluate", *models, "--steps", _listed(each.steps), *more, "--number", each.samples, "--seed",
                      each.seed, "--threads", each.threads, "--out", each.out])
    return [shlex.join(["tsdfm-pipeline", *map(str, line)]) for line in lines]


def _listed(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{each:g}" for each in numbers)


def demo(config: DemoConfig) -> DemoReport:
    """Generate, verify, distil, evaluate, report. Raises InputError or WorkError as the stages do; what is finished is kept."""
    stages = plan(config)
    seconds: dict[str, float] = {}
    with _stage("generate", seconds):
        generated = generate(stages.data)
    store = LocalStore(stages.out / "data")
    with _stage("verify", seconds), Stages() as progress:
        _, faults = verify(store, progress)
        if faults:
            raise WorkError(f"{store.uri}: {count(len(faults), 'fault')}, the first: {faults[0]}")
        write_page(store, str(stages.out / "trajectories.html"), None)
    students, results = dict[Arm, Literal["kept", "made"]](), dict[str, Results]()
    for arm, each in stages.students.items():
        with _stage(f"distil from {arm}", seconds):
            students[arm] = _distil(each, stages.out / f"student-{arm}")
    for name, asked in stages.evaluations.items():
        with _stage(f"evaluate: {name}", seconds):
            results[name] = evaluated(asked)
    with _stage("report", seconds):
        story = _story(stages, results, store)
        page = stages.out / "report.html"
        write_atomic(page, report_page(story).encode())
        _show(story, page)
    return DemoReport(out=str(stages.out), report=str(page), data=generated, students=students, headline=headline(story),
                      rows=[DemoRow(role=role, **dict(row)) for role, row in story.measured], seconds=seconds)


@contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    people.rule(name)
    started = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - started, 2)


def _distil(config: DistillConfig, folder: Path) -> Literal["kept", "made"]:
    """Train a student, unless the folder holds this very one."""
    wanted, record = _wanted(config), _record(folder)
    if record is not None:
        datasets = [each.identity for each in record.data.datasets]
        if _holds({**record.config.model_dump(mode="json"), "init": record.init, "datasets": datasets}, wanted):
            say(f"{folder}: kept, trained by this config on this dataset")
            return "kept"
        say(f"{folder}: trained otherwise, will be made again")
    state = state_folder(folder)
    if (state / HEADER_FILE).is_file() and not _is_state_of(state, wanted):
        shutil.rmtree(state)  # of other settings: nothing to resume from
    distill(config, folder)
    return "made"


def _wanted(config: DistillConfig) -> dict[str, Any]:
    """What the records of a config's student must hold: all but where things lie, what was left open being resolved."""
    wanted: dict[str, Any] = json.loads(json.dumps(open_start(config).identity))
    return wanted


def _is_state_of(state: Path, wanted: dict[str, Any]) -> bool:
    """Whether training state is a student's."""
    try:
        found = plain_json(read_regular(state / HEADER_FILE), str(state))["identity"]
    except (OSError, InputError, KeyError, TypeError):
        return False
    return _holds(found, wanted)


def _record(folder: Path) -> StudentRecord | None:
    """How the student in a folder was made; None if there is none that can be read."""
    try:
        return parse_json(StudentRecord, read_regular(folder / TRAINING_FILE), str(folder))
    except (OSError, InputError):
        return None


def _holds(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a JSON object has all that another has; of objects in it, alike."""
    return all(name in found and (_holds(found[name], value) if isinstance(value, dict) else found[name] == value)
               for name, value in wanted.items())


def _story(stages: Plan, results: dict[str, Results], store: LocalStore) -> Story:
    """Bring all results together."""
    roles: dict[str, Role] = {TEACHER: "teacher"}
    roles |= {str(stages.out / f"student-{arm}"): arm for arm in ARMS}
    swept = results["frontier"]
    measured: list[tuple[Role, Row]] = [("real", row) for row in swept.reference]
    measured += [(roles[row.model], row) for each in results.values() for row in each.rows]
    wanted: list[tuple[str, Role, int]] = [("frontier", "teacher", STEPS), *(("frontier", arm, STEPS) for arm in ARMS),
                                           ("teacher", "teacher", TEACHER_STEPS)]
    texts = [Texts(role, steps, _texts(results[name], role, steps, measured)) for name, role, steps in wanted]
    ratios, cooled = _ratios(swept, results["teacher"], roles)
    curves: dict[Role, Curve] = {}
    for arm, config in stages.students.items():
        state = state_folder(stages.out / f"student-{arm}")
        if _is_state_of(state, _wanted(config)):
            curves[arm] = _losses(state / "tensorboard")
    teacher = load_denoiser(embedded("teacher-mask")).network
    return Story(
        measured=measured, steps=STEPS, temperature=swept.settings.temperature, judge=swept.settings.evaluator[0],
        ratios=ratios, cooled=cooled, frontier=frontier_of(swept), data=summarise(store), distilled=stages.students["shaped"],
        curves={role: curve for role, curve in curves.items() if curve}, texts=texts, seed=SEED,
        parameters=sum(each.numel() for each in teacher.parameters()), commands=commands(stages))


def _texts(results: Results, role: Role, steps: int, measured: list[tuple[Role, Row]]) -> list[str]:
    """The first texts of a model, from the samples that `evaluate` kept."""
    settings = results.settings
    row = next(row for found, row in measured if (found, row.steps, row.temperature) == (role, steps, settings.temperature))
    return kept_texts(results, row, Path(str(settings.out)))[0].texts[:SHOWN]


def _ratios(swept: Results, slow: Results, roles: dict[str, Role]) -> tuple[dict[tuple[Role, int], Ratio], Ratio | None]:
    """The student from shaped beside the other student, its teacher in few and in many steps, and the teacher cooled."""
    judged = {(roles[row.model], row.steps or 0, row.temperature): _judged(results, row)
              for results in (swept, slow) for row in results.rows}
    warm = swept.settings.temperature
    mine = judged["shaped", STEPS, warm]
    ratios: dict[tuple[Role, int], Ratio] = {}
    for (role, steps, temperature), other in judged.items():
        if role != "shaped" and temperature == warm:
            ratios[role, steps] = perplexity_ratio(mine, other)
    curve = [each for (role, steps, _), each in judged.items() if (role, steps) == ("teacher", STEPS)]
    return ratios, ratio_at_equal_entropy(mine, curve)


def _judged(results: Results, row: Row) -> JudgedTexts:
    """The texts of one row as the judge that compares models found them."""
    samples, judges = kept_texts(results, row, Path(str(results.settings.out)))
    return JudgedTexts(judges[results.settings.evaluator[0]], samples.entropies)


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
            table.add_row(NAMES[role], str(row.steps or ""), ppl_interval(story.perplexity(row)), f"{row.entropy_bits:.3f}")
    people.print(table)
    for line in headline(story):
        say(line)
    say(f"\n{page}: the whole story on one page\n{page.with_name('trajectories.html')}: trajectories, step by step")
