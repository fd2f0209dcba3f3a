"""A dataset's figures as tables, and a trajectory as the text forming in the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from tsdfm.jobs.shell.console import CONTROLS, figures_table, print_whole, results, tell
from tsdfm.pipeline.evaluation.figures import NONE, count, maybe, plus_minus, share
from tsdfm.schemas.summary import Choices, DatasetSummary, PairSummary, SelectionSummary, Spread

if TYPE_CHECKING:
    from tsdfm.pipeline.dataset.frames import Frame, TokenChoice
    from tsdfm.pipeline.dataset.jump_log import JumpLog

TOKENS_SHOWN = 6  # positions of a step that chose one by one
FRAMES_SHOWN = 12  # of one trajectory in the terminal; the page has all


def show_summary(summary: DatasetSummary) -> None:
    """Print a dataset's figures as tables."""
    tell(f"{count(summary.trajectories, 'trajectory')} of {count(summary.length, 'token')}, {count(summary.steps, 'step')}, "
        f"{summary.source} source")
    print_whole(_arms_table(summary))
    if summary.pairs is not None:
        tell(_pairs_line(summary.pairs))
    print_whole(_time_table(summary))
    if summary.selection is not None:
        tell(_choices_line(summary.selection, summary.select))
    print_whole(_size_table(summary))


def show_frames(log: "JumpLog", pictures: "Sequence[Frame]", steps: int) -> None:
    """Print how a trajectory forms: up to FRAMES_SHOWN of its steps."""
    last = len(pictures) - 1
    shown = sorted({round(i * last / (FRAMES_SHOWN - 1)) for i in range(FRAMES_SHOWN)})
    results.print()
    results.rule(f"trajectory {log.trajectory_id}, {log.arm} arm: "
                f"{len(shown)} of {count(len(pictures), 'step')} with jumps")
    given = [] if log.fixed_positions is None else log.fixed_positions.tolist()
    if given:
        results.print(Text(f"{count(len(given), 'token')} given, underlined", style="dim"))
    for index in shown:
        frame = pictures[index]
        masks = f", {sum(frame.masked)} masked" if any(frame.masked) else ""
        where = f"step {frame.step + 1}/{steps}  t = {frame.t:.3f}"
        results.print(Text(f"\n{where}  {len(frame.changed)} written{masks}", style="bold"))
        results.print(_text(frame, given))
        results.print(_energies(frame))
    if log.final_energy is not None:
        tell(f"\nfinal energy {log.final_energy:.4f} nats/token")


def _text(frame: "Frame", given: Sequence[int]) -> Text:
    """The state: masks dim, what was just written highlighted, what was given underlined."""
    text = Text()
    styles = dict.fromkeys(given, "underline") | dict.fromkeys(frame.changed, "black on yellow")
    for position, piece in enumerate(frame.pieces):
        style = styles.get(position, "dim" if frame.masked[position] else "")
        text.append(piece.translate(CONTROLS), style)
    return text


def _energies(frame: "Frame") -> Text:
    """The candidates' energies, the kept one marked; or why there are none."""
    if frame.choices is not None:
        return _token_energies(frame, frame.choices)
    if frame.energies is None:
        return Text("not shaped" if frame.choice is None else "all candidates agreed", style="dim")
    return _marked(Text("energies ", style="dim"), frame.energies, frame.choice)


def _token_energies(frame: "Frame", choices: "Sequence[TokenChoice]") -> Text:
    """Of each position that chose by itself: its candidates and their energies, the kept one marked."""
    lines = []
    for position, words, each in zip(frame.changed, frame.candidates, choices, strict=True):
        line = Text(f"{position:4}  ", style="dim")
        if each.energies is None:
            line.append(f"all agreed: {words[0].translate(CONTROLS)!r}")
        else:
            shown = [f"{words[k].translate(CONTROLS)!r} {energy:.2f}" for k, energy in enumerate(each.energies)]
            line = _marked(line, shown, each.choice)
        lines.append(line)
    more = len(lines) - TOKENS_SHOWN
    shown_lines = [*lines[:TOKENS_SHOWN], *([Text(f"      and {count(more, 'position')}", style="dim")] if more > 0 else [])]
    return Text("\n").join(shown_lines)


def _marked(text: Text, values: "Sequence[float | str]", kept: int | None) -> Text:
    for candidate, value in enumerate(values):
        mark, style = ("✓", "bold green") if candidate == kept else (" ", "not dim")
        text.append(f" {mark}{candidate}: {value if isinstance(value, str) else f'{value:.4f}'}", style)
    return text


def _pairs_line(pairs: PairSummary) -> str:
    error = "" if pairs.standard_error is None else f" ± {pairs.standard_error:.4f} (standard error)"
    return (f"paired, shaped minus blind: {pairs.mean_difference:+.4f}{error} nats/token "
            f"over {count(pairs.pairs, 'pair')}; shaped is lower in {share(pairs.share_lower)}, "
            f"equal in {share(pairs.share_equal)}")


def _choices_line(selection: SelectionSummary, select: str) -> str:
    total, by_chance = selection.total, 1 / selection.candidates
    return (f"choices ({select} of {selection.candidates}): {total.scored} scored; candidates agreed in "
            f"{share(total.agreed_share)}; candidate 0 kept in "
            f"{share(total.kept_blind_share)} (by chance {share(by_chance)}); "
            f"gain {maybe(total.gain, '.4f')} nats/token a choice")


def _arms_table(summary: DatasetSummary) -> Table:
    rows = {f"distinct_{n}": f"distinct-{n}" for n in (1, 2, 4)}
    table = figures_table("Arms", ["", *(part.arm for part in summary.arms)])
    table.add_row("trajectories", *(str(part.events.count) for part in summary.arms))
    table.add_row("final energy, nats/token", *(_spread(part.final_energy, 4) for part in summary.arms))
    table.add_row("events per trajectory", *(_spread(part.events, 1) for part in summary.arms))
    if any(part.fixed for part in summary.arms):
        table.add_row("given tokens per trajectory", *(_spread(part.fixed, 1) for part in summary.arms))
    table.add_row("unigram entropy, bits", *(_spread(part.entropy, 3) for part in summary.arms))
    for field, name in rows.items():
        table.add_row(f"{name} ({count(summary.arms[0].distinct_rows, 'row')})",
                      *(maybe(getattr(part, field), ".4f") for part in summary.arms))
    return table


def _time_table(summary: DatasetSummary) -> Table:
    """Jumps per trajectory and step, and choices, per bin of t. Arms that ring alike share a column."""
    selection = summary.selection
    jumps = {tuple(part.jumps_per_step): part.arm for part in reversed(summary.arms)}
    names = [f"jumps ({arm})" for arm in jumps.values()] if len(jumps) > 1 else ["jumps"]
    choices = ["scored", "agreed", "kept 0", "E of 0", "E kept", "gain"] if selection else []
    table = figures_table("Along t", ["t", *names, *choices])
    for index, times in enumerate(summary.bins):
        table.add_row(f"{times.t_start:.3f}-{times.t_end:.3f}", *(f"{each[index]:.2f}" for each in jumps),
                      *(_choice_cells(selection.bins[index]) if selection else []))
    if selection:
        table.add_section()
        table.add_row("all", *("" for _ in jumps), *_choice_cells(selection.total))
    return table


def _choice_cells(choices: Choices) -> list[str]:
    return [str(choices.scored), share(choices.agreed_share), share(choices.kept_blind_share),
            *(maybe(each, ".4f") for each in (choices.blind_energy, choices.chosen_energy, choices.gain))]


def _size_table(summary: DatasetSummary) -> Table:
    size = summary.size
    title = f"Size: {size.bytes:,} bytes, {size.bytes_per_token:.2f} per token"
    table = figures_table(title, ["column", "bytes/token", "share"])
    for name, each in sorted(size.column_bytes_per_token.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{each:.3f}", share(each / size.bytes_per_token))
    rest = size.bytes_per_token - sum(size.column_bytes_per_token.values())
    table.add_row("(headers and footers)", f"{rest:.3f}", share(rest / size.bytes_per_token))
    return table


def _spread(spread: Spread | None, decimals: int) -> str:
    return NONE if spread is None else plus_minus(spread.mean, spread.deviation, decimals)
