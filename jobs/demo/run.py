"""`tsdfm-pipeline demo`: the whole story on what ships with the package.

Paired shaped and blind trajectories of the embedded mask teacher in a few jumps on spaced clocks, a student from each arm with
equal budgets, their evaluation beside the teacher in few and in many steps and real text, and one page that tells the results.
A rerun of the same command keeps all that is finished.

    OUT/data                             the dataset; OUT/trajectories.html plays some of it
    OUT/student-blind, student-shaped    models; training state and logs stand beside them
    OUT/evaluation/*                     samples, scores and results, as `evaluate` keeps them
    OUT/report.html                      the page

Stages follow each other. What a stage makes of pieces that don't depend on each other (shards, students, rows of the
evaluation) is made by as many processes of one thread as there are cores.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.table import Table

from tsdfm.jobs.demo.findings import NAMES, Story, headline
from tsdfm.jobs.demo.page import PLAYER_FILE, report_page
from tsdfm.jobs.demo.plan import Plan, plan
from tsdfm.jobs.demo.story import story_of
from tsdfm.jobs.demo.students import distil
from tsdfm.jobs.evaluate.run import evaluated
from tsdfm.jobs.generate.run import generate
from tsdfm.jobs.inspect.command import write_page
from tsdfm.jobs.shell.cluster import cluster, cores_here
from tsdfm.jobs.shell.console import Stages, people, say
from tsdfm.pipeline.dataset.verify import verify
from tsdfm.pipeline.evaluation.figures import count, maybe, ppl_interval
from tsdfm.pipeline.storage.atomic import write_atomic
from tsdfm.pipeline.storage.store import LocalStore
from tsdfm.schemas.base import WorkError
from tsdfm.schemas.demo import DemoConfig
from tsdfm.schemas.reports import DemoReport, DemoRow

RUNNING = "auto"  # the address of the Ray cluster that this process is connected to


def demo(config: DemoConfig) -> DemoReport:
    """Generate, verify, distil, evaluate, report. Raises InputError or WorkError as the stages do; what is finished is kept."""
    stages = plan(config)
    seconds: dict[str, float] = {}
    with _stage("generate", seconds):  # refuses a dataset of other settings before any Ray is started
        generated = generate(stages.data)
    with _stage("verify", seconds):
        _verify(stages)
    results = {}
    with cluster("local", cores_here()):
        with _stage("distil", seconds):
            students = distil(stages)
        for name, asked in stages.evaluations.items():
            with _stage(f"evaluate: {name}", seconds):
                results[name] = evaluated(asked.model_copy(update={"address": RUNNING}))
    with _stage("report", seconds):
        story = story_of(stages, results)
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


def _verify(stages: Plan) -> None:
    """Check the dataset, and write the page that plays some of it. Raises WorkError: it is faulty."""
    store = LocalStore(stages.out / "data")
    with Stages() as progress:
        _, faults = verify(store, progress)
    if faults:
        raise WorkError(f"{store.uri}: {count(len(faults), 'fault')}, the first: {faults[0]}")
    write_page(store, str(stages.out / PLAYER_FILE), None)


def _show(story: Story, page: Path) -> None:
    """The headline, for people."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(("", "T", "perplexity", "entropy", "distinct-2")):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for role, row in story.own:
        name = story.name((role, row.steps)) if row.steps else NAMES[role]
        table.add_row(name, maybe(row.temperature, "g"), ppl_interval(story.perplexity(row)), f"{row.entropy_bits:.3f}",
                      f"{row.distinct_2:.3f}")
    people.print(table)
    for line in headline(story):
        say(line)
    say(f"{page}: the whole story on one page")
    say(f"{page.with_name(PLAYER_FILE)}: trajectories, step by step")
