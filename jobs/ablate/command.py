"""The command `tsdfm-pipeline ablate`."""

from pathlib import Path
from typing import Any

import click

from tsdfm.jobs.plan.show import show_plan
from tsdfm.jobs.shell.console import emit, output_kept_for_json, say
from tsdfm.jobs.shell.flags import PLAN_OPTIONS, PRINT_CONFIG, SET, GroupedCommand, Planner, planned, required
from tsdfm.jobs.shell.options import yaml_of
from tsdfm.schemas.words import count


@click.command("ablate", cls=GroupedCommand)
@click.argument("sweep")
@click.option("--data", multiple=True, metavar="[NAME=]OUT", help=(
    "A dataset that generate wrote, or, with a name that the sweep gives, one of several; may be repeated."))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of trials and table, from which a rerun goes on.")
@click.option("--workers", type=click.IntRange(1), help=(
    "Trials at a time, a core each.  [default: one per core; on a cluster as many as there is room for]"))
@click.option("--address", help=(
    "Where trials run: 'local' is this machine, 'auto' finds a running Ray cluster, 'HOST:PORT' or 'ray://HOST:PORT' names "
    "one; its nodes share --out, the datasets and the models.  [default: local]"))
@click.option(*SET.opts, SET.name, multiple=True, metavar=SET.metavar, help=SET.help)
@click.option(*PRINT_CONFIG.opts, is_flag=True, help=PRINT_CONFIG.help)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def ablate_command(  # noqa: PLR0913 (click gives every option as an argument)
    sweep: str, data: tuple[str, ...], out: Path | None, workers: int | None, address: str | None, settings: tuple[str, ...],
    print_config: bool, as_json: bool, **plans: Any,
) -> None:
    """Distil and evaluate every trial of SWEEP, a YAML file or a study that ships, into one table; run it again to resume.

    A sweep varies factors of distill's config, e.g. data.arm or objective, over the frozen datasets of --data.
    """
    from tsdfm.jobs.ablate.page import told_effects
    from tsdfm.jobs.ablate.plan import read_sweep
    from tsdfm.jobs.ablate.run import ablate

    flags = {"workers": workers, "address": address}
    asked = read_sweep(sweep, [*settings, *(f"{name}={value}" for name, value in flags.items() if value is not None)])
    if print_config:
        click.echo(yaml_of(asked), nl=False)
        return
    if planned(plans):
        from tsdfm.jobs.ablate.cost import plan_ablate

        folder = required(out, "--out", "give the folder of trials and table")
        Planner(plan_ablate, show_plan)({**plans, "as_json": as_json}, asked, data=data, out=folder)
        return
    with output_kept_for_json():
        report = ablate(asked, data, required(out, "--out", "give the folder of trials and table"))
    for line in told_effects(asked, report.effects):
        say(line)
    say(f"{report.out}: {count(report.trials, 'trial')} ({report.made} made, {report.kept} kept), {report.seconds} s; "
        "table.md, table.csv, table.parquet, report.html")
    if as_json:
        emit(report)


ablate_command.params += PLAN_OPTIONS
