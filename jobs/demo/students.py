"""The students of a demo: kept where a folder holds the very one, else made, all that lack at the same time."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tsdfm.jobs.crew.training.side_by_side import Training, train_all
from tsdfm.jobs.demo.plan import Plan
from tsdfm.jobs.distill.run import with_anchored_paths
from tsdfm.jobs.shell.console import say
from tsdfm.pipeline.models.folder import TRAINING_FILE, state_folder
from tsdfm.pipeline.training.distill import check, open_start, train_at
from tsdfm.pipeline.training.loop.checkpoint import HEADER_FILE
from tsdfm.schemas.base import InputError, parse_json, plain_json
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.optim import HELD_OUT_LOSS
from tsdfm.schemas.regular import read_regular
from tsdfm.schemas.terms import Arm
from tsdfm.schemas.training_record import StudentRecord

Curve = list[tuple[int, float]]  # (update, loss)


def distil(stages: Plan) -> dict[Arm, Literal["kept", "made"]]:
    """Train the students that are not there, on the Ray cluster that this process is connected to.

    Raises InputError, WorkError or Interrupted; the last checkpoints are kept.
    """
    lacking = {arm: config for arm, config in stages.students.items() if not _is_kept(config, stages.student(arm))}
    train_all([_prepared(arm, config, stages.student(arm).absolute()) for arm, config in lacking.items()], train_at)
    return {arm: "made" if arm in lacking else "kept" for arm in stages.students}


def _is_kept(config: DistillConfig, folder: Path) -> bool:
    """Whether a folder holds this very student."""
    wanted, record = _wanted(config), record_of(folder)
    if record is None:
        return False
    datasets = [each.identity for each in record.data.datasets]
    kept = _holds({**record.config.model_dump(mode="json"), "init": record.init, "datasets": datasets}, wanted)
    say(f"{folder}: {'kept, trained by this config on this dataset' if kept else 'trained otherwise, will be made again'}")
    return kept


def _prepared(arm: Arm, config: DistillConfig, folder: Path) -> Training:
    """The training of a student: what could not end well is refused, and state of other settings is gone."""
    state = state_folder(folder)
    if (state / HEADER_FILE).is_file() and not _is_state_of(state, _wanted(config)):
        shutil.rmtree(state)  # nothing to resume from
    config = with_anchored_paths(config)
    check(config, folder)
    return Training(f"student from {arm}", config, folder)


def curves_of(stages: Plan) -> Mapping[Arm, Curve]:
    """The losses that the students' trainings logged, on held-out trajectories, of those whose logs are there."""
    found: dict[Arm, Curve] = {}
    for arm, config in stages.students.items():
        state = state_folder(stages.student(arm))
        if _is_state_of(state, _wanted(config)):
            found[arm] = _losses(state / "tensorboard")
    return {arm: curve for arm, curve in found.items() if curve}


def record_of(folder: Path) -> StudentRecord | None:
    """How the student in a folder was made; None if there is none that can be read."""
    try:
        return parse_json(StudentRecord, read_regular(folder / TRAINING_FILE), str(folder))
    except (OSError, InputError):
        return None


def _wanted(config: DistillConfig) -> dict[str, Any]:
    """What the records of a config's student must hold: all but where things lie, what was left open being resolved."""
    wanted: dict[str, Any] = json.loads(json.dumps(open_start(config).identity))
    return wanted


def _is_state_of(state: Path, wanted: dict[str, Any]) -> bool:
    """Whether training state is a student's."""
    try:
        found = plain_json(read_regular(state / HEADER_FILE), str(state))["identity"]
    except (OSError, InputError, KeyError, TypeError):
        return False
    return _holds(found, wanted)


def _holds(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a JSON object has all that another has; of objects in it, alike."""
    return all(name in found and (_holds(found[name], value) if isinstance(value, dict) else found[name] == value)
               for name, value in wanted.items())


def _losses(logs: Path) -> Curve:
    """The losses that a run logged."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    events = EventAccumulator(str(logs))
    events.Reload()
    there = HELD_OUT_LOSS in events.Tags()["scalars"]
    return [(each.step, each.value) for each in events.Scalars(HELD_OUT_LOSS)] if there else []
