"""The command `tsdfm-pipeline distill`."""

from pathlib import Path

import click

from tsdfm.jobs.plan.show import show_plan
from tsdfm.jobs.shell.console import say
from tsdfm.jobs.shell.flags import Planner, config_command, flags_of, required
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.plan import Plan, PlanWish
from tsdfm.schemas.reports import DistillReport
from tsdfm.schemas.words import count

FLAGS = {"data.paths": "--data", "data.weights": "--weight", "real.weight": "--real-weight", "real.corpus.path": "--corpus",
         "optim.steps": "--updates"}


def _plan(config: DistillConfig, wish: PlanWish, out: Path | None) -> Plan:
    from tsdfm.jobs.distill.plan import plan_distill

    return plan_distill(config, wish, required(out, "--out", "give the folder of the student"))


@config_command("distill", DistillConfig, planner=Planner(_plan, show_plan), common=(
    "--data --out --init --arm --objective --budgets --updates --batch-size --lr --seed --threads --workers --address --plan"),
    flags=flags_of(DistillConfig, FLAGS, skipped=("real.corpus.part",)))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the student.")
def distill_command(config: DistillConfig, out: Path | None) -> DistillReport:
    """Train a few-step student from frozen datasets; run it again to resume.

    A student writes a text in a few large jumps, where its teacher takes hundreds. It is the teacher's copy, told the size of
    its step, and learns from the shards alone: no teacher runs. CONFIG is a YAML file; flags override it.
    """
    from tsdfm.jobs.distill.run import distill

    report = distill(config, required(out, "--out", "give the folder of the student"))
    say(f"{report.out}: a student of {count(report.updates, 'update')}, {report.seconds} s; "
        f"tsdfm-pipeline sample --model {report.out} --steps 8")
    return report
