"""The command `tsdfm-pipeline evaluate`: its flags, and its results as a table on standard output."""

from rich import box
from rich.table import Table

from tsdfm.jobs.plan.show import show_plan
from tsdfm.jobs.shell.console import print_whole, say
from tsdfm.jobs.shell.flags import Planner, config_command, flags_of
from tsdfm.pipeline.evaluation.figures import corrected, count, maybe, plus_minus, ppl_interval, ratio, share, short_names
from tsdfm.schemas.evaluate import EvaluateConfig, Results, Row
from tsdfm.schemas.plan import Plan, PlanWish

FLAGS = {"samples": "-n --number", "corpus.path": "--corpus"}


def show_results(results: Results) -> None:
    """Print the rows as a table, real text first, then naive samplers; and a table of likelihood bounds."""
    if results.settings.sampling:
        _show_texts(results)
    if results.compared:
        _show_compared(results)
    if results.likelihood:
        _show_bounds(results)


def _show_bounds(results: Results) -> None:
    models, of = short_names(list(results.settings.model)), results.likelihood[0]
    title = f"upper bounds of perplexity, {of.text}: {count(of.texts, 'text')} of {count(of.length, 'token')}, 95 % interval"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(["model", "n", "T", "nats/token", "perplexity", "bits/byte"]):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in results.likelihood:
        steps = "continuous" if row.steps is None else str(row.steps)
        table.add_row(models[row.model], steps, f"{row.temperature:g}", f"{row.nats_per_token:.4f}", ppl_interval(row),
                      maybe(row.bits_per_byte, ".4f"))
    print_whole(table, keys=3)


def _show_texts(results: Results) -> None:
    judges, models = short_names(list(results.judges)), short_names(list(results.settings.model))
    given = next((row.given for row in results.rows if row.given is not None), None)
    told = "" if given is None else f" of what stands after a prompt ({given:.1f} tokens on average)"
    title = f"{count(results.settings.samples, 'text')} a row; perplexity with 95 % interval, entropy with standard error{told}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    lengths, judged = ["length, ended"] if _stop(results) else [], [f"ppl, {judges[name]}" for name in results.judges]
    columns = ["model", "n", "T", "NFE", *lengths, *judged, "entropy, bits", "distinct-2", "distinct-4", "self-BLEU",
               "memorised", *(["in trajectories"] if results.in_trajectories else []), *_distance_columns(results, judges),
               "tokens/s"]
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in results.reference:
        table.add_row("real text", "", "", "", *_figures(row, results), "")
    for row in results.naive:
        table.add_row(f"naive: {row.model}", "", "", "", *_figures(row, results), "")
    for row in results.rows:
        table.add_row(models[row.model], str(row.steps), f"{row.temperature:g}", f"{row.nfe:.2f}", *_figures(row, results),
                      f"{row.tokens_per_second:,.0f}")
    print_whole(table, keys=3)


def _show_compared(results: Results) -> None:
    """Models at equal diversity: the answer to whether one is better, or only duller."""
    judges, models, first = short_names(list(results.judges)), short_names(list(results.settings.model)), results.compared[0]
    title = f"perplexity over that of {models[first.against]}, cooled or heated until as diverse; with 95 % interval"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    measured = [f"{what}, {judges[name]}" for name in results.judges for what in ("at equal entropy", "at equal distinct-2")]
    for index, column in enumerate(["model", "n", "T", f"n of {models[first.against]}", *measured]):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in results.compared:
        cells = [cell for found in row.judges.values() for cell in (ratio(found.entropy), maybe(found.distinct_2, ".2f"))]
        table.add_row(models[row.model], str(row.steps), f"{row.temperature:g}", str(row.against_steps), *cells)
    print_whole(table, keys=4)


def _in_windows(results: Results) -> list[str]:
    """What to know of judges whose positions were too few for some texts."""
    names, rows, lines = short_names(list(results.judges)), [*results.reference, *results.naive, *results.rows], []
    for judge, facts in results.judges.items():
        long = sum(row.judges[judge].in_windows for row in rows)
        if long:
            lines.append(f"judge {names[judge]}: {long:,} of {sum(row.samples for row in rows):,} texts have more tokens than "
                         f"its {facts.positions} positions and were scored in windows")
    return lines


def _figures(row: Row, results: Results) -> list[str]:
    return [*_length(row, results), *(ppl_interval(row.judges[name]) for name in results.judges),
            plus_minus(row.entropy_bits, row.entropy_standard_error, 3), f"{row.distinct_2:.3f}", f"{row.distinct_4:.3f}",
            f"{row.self_bleu:.3f}", share(row.memorised), *([share(row.in_trajectories)] if results.in_trajectories else []),
            *(corrected(each) for name in results.judges if results.settings.distances
              for each in (row.distances[name].mauve, row.distances[name].frechet))]


def _distance_columns(results: Results, judges: dict[str, str]) -> list[str]:
    return [f"{what}, {judges[name]}" for name in results.judges if results.settings.distances for what in ("MAUVE", "Fréchet")]


def _stop(results: Results) -> bool:
    """Whether the texts of some row stop at an end."""
    return any(row.mean_length is not None for row in [*results.reference, *results.naive, *results.rows])


def _length(row: Row, results: Results) -> list[str]:
    """How long the texts of a row are and how many ended, if any row's stop at an end."""
    if not _stop(results):
        return []
    return [f"{row.length}" if row.mean_length is None else f"{row.mean_length:.1f}, {share(row.ended)}"]


def _plan(config: EvaluateConfig, wish: PlanWish) -> Plan:
    from tsdfm.jobs.evaluate.plan import plan_evaluate

    return plan_evaluate(config, wish)


@config_command("evaluate", EvaluateConfig, planner=Planner(_plan, show_plan),
                flags=flags_of(EvaluateConfig, FLAGS, skipped=("corpus.part",)),
                shown=show_results, common=(
    "--model --steps --evaluator -n --number --temperature --frontier --against --reference --naive --trajectories-of "
    "--distances --likelihood --text --prompts --prompt-tokens --protocol --corpus --out --address --seed --plan"))
def evaluate_command(config: EvaluateConfig) -> Results:
    """Measure models at several step counts: perplexity under judges, entropy, diversity and cost, beside real text.

    Perplexity says how surprising a judge finds a text, entropy how many different words it has: dull, repetitive text has a
    low perplexity, too, so read them together. With --prompts or --prompt-tokens models go on from what is given, and all
    figures are of what they wrote after it. CONFIG is a YAML file; flags override it.
    """
    from tsdfm.jobs.evaluate.run import evaluated

    results = evaluated(config)
    for line in [*_in_windows(results), *results.remarks]:
        say(line)
    if config.out is not None:
        say(f"{config.out}: {'results.json, frontier.json and frontier.png' if config.frontier else 'results.json'}")
    return results
