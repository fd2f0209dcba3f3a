"""The command `tsdfm-pipeline evaluate`: its flags, and its results as a table on standard error.

Heavy imports happen inside the functions, so that `--help` answers at once.
"""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table

from tsdfm.jobs.console import emit, people, print_whole
from tsdfm.schemas.evaluate import Results, Row


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--model", multiple=True, metavar="M", help=(
    "'embedded', 'embedded:uniform', or the folder of a teacher or student; may be repeated.  [embedded]"))
@click.option("--steps", metavar="N,...", help="Step counts, each sampled.  [1,2,4,8,16]")
@click.option("--evaluator", multiple=True, metavar="E", help=(
    "A judge: 'embedded', a folder (of this project or of transformers), a .gguf file, or hub:USER/NAME[@REVISION]; may be "
    "repeated.  [embedded]"))
@click.option("--samples", type=int, help="Texts per row.  [256]")
@click.option("--temperature", type=float, help="Divides the logits.  [1.0]")
@click.option("--frontier/--no-frontier", default=None, help="Sweep temperatures; write frontier.png and frontier.json to OUT.")
@click.option("--temperatures", metavar="T,...", help="Of the frontier.  [0.6,0.7,0.8,0.9,1.0,1.1]")
@click.option("--reference/--no-reference", default=None, help="Measure real held-out text, too.  [yes]")
@click.option("--corpus", help="Where that comes from: 'python', a file, a folder, or hub:NAME[:SPLIT].  [python]")
@click.option("--seed", type=int, help="Seed of all noise.  [0]")
@click.option("--batch-size", type=int, help="Texts sampled together.  [32]")
@click.option("--threads", type=int, help="CPU threads.  [torch's choice]")
@click.option("--out", help="Folder that keeps samples, scores and results; run again to resume.")
@click.option("--json", "as_json", is_flag=True, help="Print the results on standard output.")
def evaluate_command(
    config: Path | None, model: tuple[str, ...], evaluator: tuple[str, ...], as_json: bool, **flags: Any
) -> None:
    """Measure models at several step counts: perplexity under judges, entropy, diversity and cost, beside real text."""
    from tsdfm.jobs.evaluate import evaluate
    from tsdfm.jobs.options import build
    from tsdfm.schemas.evaluate import EvaluateConfig

    flags |= {"model": list(model) or None, "evaluator": list(evaluator) or None, "corpus.path": flags.pop("corpus")}
    settings = build(EvaluateConfig, config, flags)
    with redirect_stdout(sys.stderr):  # transformers prints, too; standard output is for JSON alone
        report = evaluate(settings)
    show_results(Results.model_validate(report))
    if as_json:
        emit(report)


def show_results(results: Results) -> None:
    """Print the rows as a table, real text first."""
    from tsdfm.pipeline.plots import short_names

    judges, models = short_names(list(results.judges)), short_names(list(results.settings.model))
    title = f"{results.settings.samples} texts a row; perplexity with 95 % interval, entropy with standard error"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    columns = ["model", "n", "T", "NFE", *(f"ppl, {judges[name]}" for name in results.judges), "entropy, bits", "distinct-2",
               "distinct-4", "self-BLEU", "tokens/s"]
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in results.reference:
        table.add_row("real text", "", "", "", *_figures(row, results), "")
    for row in results.rows:
        table.add_row(models[row.model], str(row.steps), f"{row.temperature:g}", f"{row.nfe:.2f}", *_figures(row, results),
                      f"{row.tokens_per_second:,.0f}")
    print_whole(table)
    if results.settings.out is not None:
        written = "results.json, frontier.json and frontier.png" if results.settings.frontier else "results.json"
        people.print(f"{results.settings.out}: {written}", markup=False)


def _figures(row: Row, results: Results) -> list[str]:
    found = [row.judges[name] for name in results.judges]
    return [*(f"{each.perplexity:.1f} ({each.low:.1f}-{each.high:.1f})" for each in found),
            f"{row.entropy_bits:.3f} ± {row.entropy_standard_error:.3f}", f"{row.distinct_2:.3f}", f"{row.distinct_4:.3f}",
            f"{row.self_bleu:.3f}"]
