"""The command `tsdfm-pipeline sample`."""

import click

from tsdfm.jobs.shell.console import CONTROLS, Stages, say, say_if_slow
from tsdfm.jobs.shell.flags import config_command, flags_of
from tsdfm.schemas.reports import SampleReport
from tsdfm.schemas.sample import SampleConfig
from tsdfm.schemas.words import count


def show_texts(report: SampleReport) -> None:
    """Print the texts on standard output, their lines indented but for the first; before those to a prompt, '> ' and it."""
    prompts = [each.prompt for each in report.prompted or []] or [""] * len(report.texts)  # none is empty where there are any
    for text, prompt, last in zip(report.texts, prompts, ["", *prompts[:-1]], strict=True):
        if prompt != last:
            click.echo(f"> {_indented(prompt)}\n")
        click.echo(_indented(text) + "\n")


def _indented(text: str) -> str:
    return text.translate(CONTROLS).replace("\n", "\n  ")


@config_command(
    "sample", SampleConfig, shown=show_texts,
    common="--model --prompt --prompts --infill --length --steps -n --number --temperature --seed",
    flags=flags_of(SampleConfig, {"number": "-n --number"}, skipped=("rollout.solver", "rollout.top_k", "rollout.logprobs")))
def sample_command(config: SampleConfig) -> SampleReport:
    """Write texts with a model, one jump after another, without a compass: what inference does, and costs.

    With --prompt, --prompts or --infill it goes on from what is given. A --length above the model's is written in blocks, each
    of which goes on from the one before.

    CONFIG is a YAML file; flags override it.
    """
    import torch

    from tsdfm.pipeline.evaluation.samples import write

    say_if_slow(config.rollout.dtype, torch.cuda.is_available())
    torch.set_num_threads(config.rollout.threads)
    with Stages() as progress:
        found = write(config, progress)
    prompted = [each.prompted for each in found if each.prompted is not None]
    ended = [each.ended for each in found if each.ended is not None]
    report = SampleReport(model=config.model, texts=[each.text for each in found], prompted=prompted or None,
                          tokens=[each.tokens for each in found], ended=ended or None)
    if report.ended:
        mean = sum(report.tokens) / len(found)
        say(f"{mean:.1f} tokens a text on average; {sum(report.ended):,} of {count(len(found), 'text')} ended")
    return report
