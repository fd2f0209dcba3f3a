"""What a training logs for TensorBoard, sent to a tracker of experiments as well: W&B, Trackio or MLflow, through its client.

A tracker is an onlooker: what the client itself is told by its environment variables (project, server, login, offline) counts,
and once the training goes on, a client that fails is told of in one line and left alone. The id of a run is kept beside the
training state, so a training that goes on does so in the same run, as far as the client can.
"""

import contextlib
import importlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from tsdfm.pipeline.storage.atomic import write_atomic
from tsdfm.schemas.base import InputError, first_line
from tsdfm.schemas.optim import HELD_OUT_LOSS, Divided, Tracker
from tsdfm.schemas.paths import redacted
from tsdfm.schemas.regular import read_regular

PROJECT = "tsdfm-pipeline"  # where the environment names none
RUNS_FILE = "trackers.json"  # in the folder of the training state: tracker -> id of the run
log = logging.getLogger(__name__)

Log = Callable[[int, Mapping[str, float]], None]  # (update, scalars)


def untracked(step: int, scalars: Mapping[str, float]) -> None:
    """Sends nothing anywhere."""


class _Run(Protocol):
    """A run of a tracker."""

    id: str  # by which it can be gone on with

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send the scalars of update `step`."""

    def finish(self, whole: bool) -> None:
        """Close the run, whose training went to its end, or not."""


class _Wandb:
    def __init__(self, client: Any, known: str | None, name: str, folder: Path, settings: dict[str, Any]) -> None:
        self.id = known or uuid.uuid4().hex[:12]
        self._run = client.init(project=os.environ.get("WANDB_PROJECT") or PROJECT, id=self.id, name=name, dir=str(folder),
                                config=settings, resume="allow")

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def finish(self, whole: bool) -> None:
        self._run.finish(exit_code=0 if whole else 1)


class _Trackio:
    def __init__(self, client: Any, known: str | None, name: str, folder: Path, settings: dict[str, Any]) -> None:
        self.id = known or f"{name}-{uuid.uuid4().hex[:8]}"  # a run is known by its name
        self._run = client.init(project=os.environ.get("TRACKIO_PROJECT") or PROJECT, name=self.id, config=settings,
                                resume="allow")

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def finish(self, whole: bool) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, client: Any, known: str | None, name: str, folder: Path, settings: dict[str, Any]) -> None:
        self._client = client
        if known is None and not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & os.environ.keys():
            client.set_experiment(PROJECT)
        self.id = str(client.start_run(run_id=known, run_name=None if known else name).info.run_id)
        if known is None:
            client.log_params(settings)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        # Where MLflow keeps files, 'loss' and 'loss/8' can't both be: one would be a file, and the folder of the other.
        self._client.log_metrics({name.replace("/", "."): value for name, value in scalars.items()}, step=step)

    def finish(self, whole: bool) -> None:
        self._client.end_run("FINISHED" if whole else "KILLED")


_KINDS: dict[Tracker, Any] = {"wandb": _Wandb, "trackio": _Trackio, "mlflow": _Mlflow}


def check_tracker(tracker: Tracker) -> None:
    """Raises InputError, before anything has begun, if a tracker's client is not installed."""
    if tracker != "none" and find_spec(tracker) is None:
        raise InputError(f"--tracker {tracker}: its client is not installed; pip install 'tsdfm-pipeline[{tracker}]', or leave "
                         "--tracker out (TensorBoard's logs are always written)")


@contextlib.contextmanager
def tracked(config: Divided, label: str, out: Path, state: Path) -> Iterator[Log]:
    """A run of the tracker that a config names, for the time of a training; gives what takes its scalars.

    Args:
        config: of the training; it is shown in the tracker, without the secrets of URIs.
        label: of the command.
        out: folder of the model, whose name the run gets.
        state: folder of the training state, where the run's id is kept.

    Raises InputError if the client is not installed or can't open a run.
    """
    if config.tracker == "none":
        yield untracked
        return
    run = _opened(config, f"{label} {out.name}", state)
    lost: list[bool] = []
    held_out: list[float] = []
    last = 0

    def send(step: int, scalars: Mapping[str, float]) -> None:
        nonlocal last
        last = step
        held_out.extend(value for name, value in scalars.items() if name == HELD_OUT_LOSS)
        if not lost:
            try:
                run.log(step, scalars)
            except Exception as error:
                lost.append(True)
                log.warning("%s failed (%s); the training goes on without it", config.tracker, first_line(error))

    try:
        yield send
    finally:
        try:
            run.finish(last == config.optim.steps or _spent(held_out, getattr(config, "patience", None)))
        except Exception as error:
            log.warning("%s failed (%s)", config.tracker, first_line(error))


def _spent(held_out: list[float], patience: int | None) -> bool:
    """Whether a training with patience ended because its held-out loss, which was told at these lines, fell no more."""
    return patience is not None and bool(held_out) and len(held_out) - 1 - held_out.index(min(held_out)) >= patience


def _opened(config: Divided, name: str, state: Path) -> _Run:
    check_tracker(config.tracker)
    known = _runs(state)
    settings = json.loads(redacted(json.dumps(_flat(config.model_dump(mode="json")))))
    try:
        state.mkdir(parents=True, exist_ok=True)
        client = importlib.import_module(config.tracker)
        run: _Run = _KINDS[config.tracker](client, known.get(config.tracker), name, state, settings)
        write_atomic(state / RUNS_FILE, json.dumps({**known, config.tracker: run.id}, indent=2).encode())
    except Exception as error:
        raise InputError(f"--tracker {config.tracker}: no run could be opened ({first_line(error)}); see to its login and "
                         "server, have it work offline, or leave --tracker out") from None
    return run


def _runs(state: Path) -> dict[str, str]:
    """The ids of the runs of a training, by tracker; none where the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(read_regular(state / RUNS_FILE))
        if isinstance(found, dict):
            return {str(name): str(run) for name, run in found.items()}
    return {}


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
