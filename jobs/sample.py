"""The command `tsdfm-pipeline sample`."""

import click

from tsdfm.jobs.shell.console import CONTROLS, say_if_slow
from tsdfm.jobs.shell.flags import config_command, flags_of
from tsdfm.schemas.reports import SampleReport
from tsdfm.schemas.sample import SampleConfig


def show_texts(report: SampleReport) -> None:
    """Print the texts on standard output, their lines indented but for the first."""
    for text in report.texts:
        click.echo(text.translate(CONTROLS).replace("\n", "\n  ") + "\n")


@config_command(
    "sample", SampleConfig, common="--model --steps -n --number --temperature --seed", shown=show_texts,
    flags=flags_of(SampleConfig, {"number": "-n --number"}, skipped=("rollout.solver", "rollout.top_k")))
def sample_command(config: SampleConfig) -> SampleReport:
    """Write texts with a model, one jump after another, without a compass: what inference does, and costs.

    CONFIG is a YAML file; flags override it.
    """
    import torch

    from tsdfm.pipeline.evaluation.samples import sample

    say_if_slow(config.rollout.dtype, torch.cuda.is_available())
    torch.set_num_threads(config.rollout.threads)
    return SampleReport(model=config.model, texts=sample(config))
