"""The command `tsdfm-pipeline inspect`: a dataset as tables, as a text forming in the terminal, or as a page that plays.

Tables and text go to standard output; with `--json` that has one object, and they go to standard error. Heavy imports happen
inside the functions, so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tsdfm.jobs.crew.reading import address_option, readers_at
from tsdfm.jobs.inspect.tables import show_frames, show_summary
from tsdfm.jobs.shell.console import Stages, emit, output_kept_for_json, say
from tsdfm.schemas.base import Frozen, InputError
from tsdfm.schemas.reports import (
    CounterfactualReport,
    FrameReport,
    InspectReport,
    PageReport,
    TrajectoriesReport,
    TrajectoryReport,
)

if TYPE_CHECKING:
    from tsdfm.pipeline.dataset.jump_log import JumpLog
    from tsdfm.pipeline.storage.in_order import Mapper
    from tsdfm.pipeline.storage.store import Store
    from tsdfm.schemas.manifest import DatasetManifest
    from tsdfm.schemas.summary import DatasetSummary
    from tsdfm.schemas.terms import Arm


@click.command("inspect")
@click.argument("out")
@click.option("--trajectory", type=int, metavar="ID", help="Show how one trajectory forms, step by step.")
@click.option("--arm", type=click.Choice(["shaped", "blind"]), help=(
    "Only one arm: the trajectories whose jumps a compass chose (shaped), or the teacher's alone (blind).  [default: all]"))
@click.option("--counterfactual", is_flag=True, help=(
    "What fewer candidates, other rules of choice and a later tau would have chosen, from the cached energies."))
@address_option
@click.option("--html", metavar="FILE", help="Write a page that plays the first few trajectories, or one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def inspect_command(  # noqa: PLR0913 (click gives every option as an argument)
    out: str, trajectory: int | None, arm: Arm | None, counterfactual: bool, address: str, html: str | None, as_json: bool
) -> None:
    """Show what is in the dataset in OUT, a folder, a URI, or hf://datasets/USER/NAME[@REVISION].

    Figures by default; or one trajectory, what else could have been chosen, or a page that plays.
    """
    from tsdfm.jobs.inspect.counterfactual import ask, show
    from tsdfm.pipeline.storage.open_store import open_store

    store = open_store(out)
    if counterfactual and (trajectory, arm, html) != (None, None, None):
        raise InputError("--counterfactual: asks about all shaped rows of a dataset; leave out --trajectory, --arm and --html")
    if address != "local" and (trajectory, html) != (None, None):
        raise InputError("--address: is for what reads a whole dataset; leave it out with --trajectory and --html")
    report: Frozen
    with output_kept_for_json() if as_json else nullcontext(), readers_at(address) as mapper:
        if counterfactual:
            answer = ask(store, mapper)
            show(answer)
            report = CounterfactualReport(out=out, **dict(answer))
        elif html is not None:
            ids = write_page(store, html, trajectory, arm)
            say(f"{html}: plays trajectories {', '.join(map(str, ids))}")
            report = PageReport(out=out, html=html, trajectories=ids)
        elif trajectory is not None:
            report = TrajectoriesReport(out=out, trajectories=show_trajectory(store, trajectory, arm))
        else:
            summary = _summary(store, arm, mapper)
            show_summary(summary)
            report = InspectReport(out=out, **dict(summary))
    if as_json:
        emit(report)


def write_page(store: Store, path: str, trajectory: int | None, arm: Arm | None = None) -> list[int]:
    """Write a page that plays one trajectory or the first few (None), one arm or all (None); return the ids.

    Raises InputError: no dataset, no such trajectory or arm, or a file that can't be written.
    """
    from tsdfm.pipeline.dataset.manifest import read_manifest, read_vocabulary
    from tsdfm.pipeline.dataset.player import MAX_TRAJECTORIES, player_page
    from tsdfm.pipeline.storage.atomic import write_atomic
    from tsdfm.pipeline.storage.targets import check_file

    file = Path(path)
    if not file.absolute().parent.is_dir() or file.is_dir():
        raise InputError(f"{path}: not a file in a folder that exists; make the folder, "
                         "or give another --html")
    check_file(file, "--html", lambda data: data.lstrip()[:9].lower() == b"<!doctype", "page")
    manifest = read_manifest(store)
    count = min(MAX_TRAJECTORIES, manifest.identity.trajectories)
    ids = list(range(count)) if trajectory is None else [trajectory]
    page = player_page(manifest, _logs(store, manifest, ids, arm), read_vocabulary(store, manifest))
    try:
        write_atomic(file, page.encode())
    except OSError as error:
        raise InputError(f"{path}: cannot write there ({error.strerror}); give another --html") from None
    return ids


def show_trajectory(store: Store, trajectory: int, arm: Arm | None = None) -> list[TrajectoryReport]:
    """Print how a trajectory forms, in one arm or all (None), and return the whole of it.

    Raises InputError: no dataset, or no such trajectory or arm.
    """
    from tsdfm.pipeline.dataset.frames import frames
    from tsdfm.pipeline.dataset.manifest import read_manifest, read_vocabulary
    from tsdfm.pipeline.text.ends.written import text_of

    manifest = read_manifest(store)
    vocabulary, grid = read_vocabulary(store, manifest), manifest.identity.grid
    report = []
    for log in _logs(store, manifest, [trajectory], arm):
        pictures = frames(log, vocabulary, grid)
        show_frames(log, pictures, grid.steps)
        report.append(TrajectoryReport(
            trajectory_id=log.trajectory_id, arm=log.arm, final_energy=log.final_energy,
            text=text_of(vocabulary, log.tokens, manifest.identity.teacher.end_id),
            fixed_positions=None if log.fixed_positions is None else log.fixed_positions.tolist(),
            frames=[FrameReport(**asdict(frame)) for frame in pictures]))
    return report


def _summary(store: Store, arm: Arm | None, mapper: Mapper) -> DatasetSummary:
    from tsdfm.pipeline.dataset.manifest import read_manifest
    from tsdfm.pipeline.dataset.summary import summarise

    _check_arm(store, read_manifest(store), arm)
    with Stages() as progress:
        summary = summarise(store, progress, mapper)
    if arm is None:
        return summary
    return summary.model_copy(update={
        "arms": [part for part in summary.arms if part.arm == arm], "pairs": None,
        "selection": summary.selection if arm == "shaped" else None,
    })


def _logs(store: Store, manifest: DatasetManifest, ids: Sequence[int], arm: Arm | None) -> list[JumpLog]:
    from tsdfm.pipeline.dataset.summary import read_trajectories

    _check_arm(store, manifest, arm)
    return [log for log in read_trajectories(store, manifest, ids) if arm in (None, log.arm)]


def _check_arm(store: Store, manifest: DatasetManifest, arm: Arm | None) -> None:
    held = manifest.identity.arm
    if arm is not None and held not in (arm, "both"):
        raise InputError(f"--arm {arm}: {store.uri} holds only the {held} arm; leave out --arm, "
                         "or generate with --arm both")
