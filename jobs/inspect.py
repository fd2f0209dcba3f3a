"""`tsdfm-pipeline inspect`: a dataset as tables, as a text forming in the terminal, or as a page that plays.

Tables and text go to standard error, `--json` prints one object on standard output. Heavy imports happen
inside the functions, so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from tsdfm.jobs.console import emit, figures_table, people, ticker
from tsdfm.schemas.base import InputError

if TYPE_CHECKING:
    from tsdfm.pipeline.frames import Frame
    from tsdfm.pipeline.jumplog import JumpLog
    from tsdfm.pipeline.storage import Store
    from tsdfm.schemas.generate import Arm
    from tsdfm.schemas.manifest import DatasetManifest
    from tsdfm.schemas.summary import Choices, DatasetSummary, PairSummary, SelectionSummary, Spread

FRAMES_SHOWN = 12  # of one trajectory in the terminal; the page has all
# A dataset may come from anywhere: its text must not steer the terminal. Line breaks pass.
_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if code != 10}
_CONTROLS |= dict.fromkeys(range(0x7F, 0xA0), "\ufffd")


@click.command()
@click.argument("out")
@click.option("--trajectory", type=int, metavar="ID", help="Show how one trajectory forms, step by step.")
@click.option("--arm", type=click.Choice(["shaped", "blind"]), help="Only this arm.  [all]")
@click.option("--counterfactual", is_flag=True, help="What other K, rules and tau would have chosen, from the cached energies.")
@click.option("--html", metavar="FILE", help="Write a page that plays the first few trajectories, or one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def inspect_command(
    out: str, trajectory: int | None, arm: Arm | None, counterfactual: bool, html: str | None, as_json: bool
) -> None:
    """Show what is in the dataset in OUT: figures, one trajectory, what else could have been chosen, or a page that plays."""
    from tsdfm.jobs.counterfactual import ask, show
    from tsdfm.pipeline.storage import Store

    store = Store(out)
    if counterfactual and (trajectory, arm, html) != (None, None, None):
        raise InputError("--counterfactual: asks about all shaped rows of a dataset; leave out --trajectory, --arm and --html")
    if counterfactual:
        answer = ask(store)
        show(answer)
        report: dict[str, Any] = {"out": out, **answer.model_dump(mode="json")}
    elif html is not None:
        ids = write_page(store, html, trajectory, arm)
        people.print(f"{html}: plays trajectories {', '.join(map(str, ids))}", markup=False)
        report = {"out": out, "html": html, "trajectories": ids}
    elif trajectory is not None:
        report = {"out": out, "trajectories": show_trajectory(store, trajectory, arm)}
    else:
        summary = _summary(store, arm)
        show_summary(summary)
        report = {"out": out, **summary.model_dump(mode="json")}
    if as_json:
        emit(report)


def write_page(store: Store, path: str, trajectory: int | None, arm: Arm | None = None) -> list[int]:
    """Write a page that plays one trajectory or the first few (None), one arm or all (None); return the ids.

    Raises InputError: no dataset, no such trajectory or arm, or a file that can't be written.
    """
    from tsdfm.pipeline.dataset import read_manifest, read_vocabulary
    from tsdfm.pipeline.files import write_atomic
    from tsdfm.pipeline.player import MAX_TRAJECTORIES, player_page

    file = Path(path)
    if not file.absolute().parent.is_dir() or file.is_dir():
        raise InputError(f"{path}: not a file in a folder that exists; make the folder, "
                         "or give another --html")
    manifest = read_manifest(store)
    count = min(MAX_TRAJECTORIES, manifest.identity.trajectories)
    ids = list(range(count)) if trajectory is None else [trajectory]
    page = player_page(manifest, _logs(store, manifest, ids, arm), read_vocabulary(store, manifest))
    try:
        write_atomic(file, page.encode())
    except OSError as error:
        raise InputError(f"{path}: cannot write there ({error.strerror}); give another --html") from None
    return ids


def show_trajectory(store: Store, trajectory: int, arm: Arm | None = None) -> list[dict[str, Any]]:
    """Print how a trajectory forms, in one arm or all (None), and return the whole of it as plain data.

    Raises InputError: no dataset, or no such trajectory or arm.
    """
    from tsdfm.pipeline.dataset import grid_of, read_manifest, read_vocabulary
    from tsdfm.pipeline.frames import frames

    manifest = read_manifest(store)
    vocabulary, grid = read_vocabulary(store, manifest), grid_of(manifest.identity)
    report = []
    for log in _logs(store, manifest, [trajectory], arm):
        pictures = frames(log, vocabulary, grid)
        _show_frames(log, pictures, grid.steps)
        report.append({
            "trajectory_id": log.trajectory_id, "arm": log.arm, "final_energy": log.final_energy,
            "text": vocabulary.decode(log.tokens.tolist()), "frames": [vars(frame) for frame in pictures],
        })
    return report


def show_summary(summary: DatasetSummary) -> None:
    """Print a dataset's figures as tables."""
    people.print(f"{summary.trajectories} trajectories of {summary.length} tokens, {summary.steps} steps, "
                 f"{summary.source} source", markup=False)
    people.print(_arms_table(summary))
    if summary.pairs is not None:
        people.print(_pairs_line(summary.pairs), markup=False)
    people.print(_time_table(summary))
    if summary.selection is not None:
        people.print(_choices_line(summary.selection, summary.select), markup=False)
    people.print(_size_table(summary))


def _summary(store: Store, arm: Arm | None) -> DatasetSummary:
    from tsdfm.pipeline.dataset import read_manifest
    from tsdfm.pipeline.inspection import summarise

    manifest = read_manifest(store)
    _check_arm(store, manifest, arm)
    with ticker("shards", len(manifest.shards)) as show:
        summary = summarise(store, lambda done, total: show.update(done))
    if arm is None:
        return summary
    return summary.model_copy(update={
        "arms": [part for part in summary.arms if part.arm == arm], "pairs": None,
        "selection": summary.selection if arm == "shaped" else None,
    })


def _logs(store: Store, manifest: DatasetManifest, ids: Sequence[int], arm: Arm | None) -> list[JumpLog]:
    from tsdfm.pipeline.inspection import read_trajectories

    _check_arm(store, manifest, arm)
    return [log for log in read_trajectories(store, manifest, ids) if arm in (None, log.arm)]


def _check_arm(store: Store, manifest: DatasetManifest, arm: Arm | None) -> None:
    held = manifest.identity.arm
    if arm is not None and held not in (arm, "both"):
        raise InputError(f"--arm {arm}: {store.uri} holds only the {held} arm; leave out --arm, "
                         "or generate with --arm both")


def _show_frames(log: JumpLog, pictures: Sequence[Frame], steps: int) -> None:
    last = len(pictures) - 1
    shown = sorted({round(i * last / (FRAMES_SHOWN - 1)) for i in range(FRAMES_SHOWN)})
    people.print()
    people.rule(f"trajectory {log.trajectory_id}, {log.arm} arm: "
                f"{len(shown)} of {len(pictures)} steps with jumps")
    for index in shown:
        frame = pictures[index]
        masks = f", {sum(frame.masked)} masked" if any(frame.masked) else ""
        where = f"step {frame.step + 1}/{steps}  t = {frame.t:.3f}"
        people.print(Text(f"\n{where}  {len(frame.changed)} written{masks}", style="bold"))
        people.print(_text(frame))
        people.print(_energies(frame))
    if log.final_energy is not None:
        people.print(f"\nfinal energy {log.final_energy:.4f} nats/token", markup=False)


def _text(frame: Frame) -> Text:
    """The state: masks dim, what was just written highlighted."""
    text, changed = Text(), set(frame.changed)
    for position, piece in enumerate(frame.pieces):
        style = "black on yellow" if position in changed else "dim" if frame.masked[position] else ""
        text.append(piece.translate(_CONTROLS), style)
    return text


def _energies(frame: Frame) -> Text:
    """The candidates' energies, the kept one marked; or why there are none."""
    if frame.energies is None:
        return Text("not shaped" if frame.choice is None else "all candidates agreed", style="dim")
    text = Text("energies ", style="dim")
    for candidate, energy in enumerate(frame.energies):
        mark, style = ("✓", "bold green") if candidate == frame.choice else (" ", "not dim")
        text.append(f" {mark}{candidate}: {energy:.4f}", style)
    return text


def _pairs_line(pairs: PairSummary) -> str:
    error = "" if pairs.standard_error is None else f" ± {pairs.standard_error:.4f} (standard error)"
    return (f"paired, shaped minus blind: {pairs.mean_difference:+.4f}{error} nats/token "
            f"over {pairs.pairs} pairs; shaped is lower in {pairs.share_lower:.1%}, "
            f"equal in {pairs.share_equal:.1%}")


def _choices_line(selection: SelectionSummary, select: str) -> str:
    total, by_chance = selection.total, 1 / selection.candidates
    return (f"choices ({select} of {selection.candidates}): {total.scored} scored; candidates agreed in "
            f"{_share(total.agreed_share)} of shaped steps; candidate 0 kept in "
            f"{_share(total.kept_blind_share)} (by chance {by_chance:.1%}); "
            f"gain {_number(total.gain)} nats/token a choice")


def _arms_table(summary: DatasetSummary) -> Table:
    rows = {f"distinct_{n}": f"distinct-{n}" for n in (1, 2, 4)}
    table = figures_table("Arms", ["", *(part.arm for part in summary.arms)])
    table.add_row("trajectories", *(str(part.events.count) for part in summary.arms))
    table.add_row("final energy, nats/token", *(_spread(part.final_energy, 4) for part in summary.arms))
    table.add_row("events per trajectory", *(_spread(part.events, 1) for part in summary.arms))
    table.add_row("unigram entropy, bits", *(_spread(part.entropy, 3) for part in summary.arms))
    for field, name in rows.items():
        table.add_row(f"{name} ({summary.arms[0].distinct_rows} rows)",
                      *(_number(getattr(part, field)) for part in summary.arms))
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
    return [str(choices.scored), _share(choices.agreed_share), _share(choices.kept_blind_share),
            *map(_number, (choices.blind_energy, choices.chosen_energy, choices.gain))]


def _size_table(summary: DatasetSummary) -> Table:
    size = summary.size
    title = f"Size: {size.bytes:,} bytes, {size.bytes_per_token:.2f} per token"
    table = figures_table(title, ["column", "bytes/token", "share"])
    for name, each in sorted(size.column_bytes_per_token.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{each:.3f}", f"{each / size.bytes_per_token:.1%}")
    rest = size.bytes_per_token - sum(size.column_bytes_per_token.values())
    table.add_row("(headers and footers)", f"{rest:.3f}", f"{rest / size.bytes_per_token:.1%}")
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _spread(spread: Spread | None, decimals: int) -> str:
    if spread is None:
        return "-"
    deviation = "" if spread.deviation is None else f" ± {spread.deviation:.{decimals}f}"
    return f"{spread.mean:.{decimals}f}{deviation}"
