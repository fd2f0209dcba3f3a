"""The flags of `tsdfm-pipeline ablate`."""

import sys
from contextlib import redirect_stdout
from pathlib import Path

import click

from tsdfm.jobs.console import emit, people


@click.command()
@click.argument("sweep")
@click.option("--data", multiple=True, metavar="[NAME=]OUT", help=(
    "A dataset that generate wrote, or, with a name that the sweep gives, one of several; may be repeated."))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of trials and table; run again to resume.")
@click.option("--workers", type=click.IntRange(1), help="Trials at a time.  [one per core]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def ablate_command(sweep: str, data: tuple[str, ...], out: Path, workers: int | None, as_json: bool) -> None:
    """Distil and evaluate every trial of SWEEP, a YAML file or a study that ships, into one table; run again to resume."""
    from tsdfm.jobs.ablate import ablate
    from tsdfm.jobs.ablate_plan import read_sweep
    from tsdfm.pipeline.ablation_page import told_effects
    from tsdfm.schemas.ablate import Effect

    settings = read_sweep(sweep)
    if workers is not None:
        settings = settings.model_copy(update={"workers": workers})
    with redirect_stdout(sys.stderr):  # Ray prints some warnings to standard output, which is for JSON alone
        report = ablate(settings, data, out)
    for line in told_effects(settings, [Effect.model_validate(each) for each in report["effects"]]):
        people.print(line, markup=False)
    people.print(f"{out}: {report['trials']} trials ({report['made']} made, {report['kept']} kept), {report['seconds']} s; "
                 f"table.md, table.csv, table.parquet, report.html", markup=False)
    if as_json:
        emit(report)
