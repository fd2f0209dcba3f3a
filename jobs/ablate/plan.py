"""From a sweep to its trials: every combination of levels and seeds as a config of `distill`, checked before any runs."""

import copy
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tsdfm.jobs.distill.run import with_anchored_paths
from tsdfm.jobs.shell.options import build, put
from tsdfm.pipeline.evaluation.sample_cache import key_of
from tsdfm.pipeline.training.distill import open_start
from tsdfm.schemas.ablate import Level, Sweep, TrialConfig
from tsdfm.schemas.base import InputError, parse
from tsdfm.schemas.distill import DistillConfig

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)")
DIGEST = 16  # hex digits that name a trial's folder
PATHS = "data.paths"


@dataclass(frozen=True)
class Trial:
    """One trial. `key` names its folder: a digest of all that its student depends on."""

    key: str
    config: TrialConfig
    levels: dict[str, str]  # factor -> level, as text
    seed: int
    start: Path  # folder of the weights to start from
    start_fingerprint: str
    identity: dict[str, Any]  # what its student depends on, JSON

    @property
    def distill(self) -> DistillConfig:
        """The config of `distill` for the trial's first round."""
        return DistillConfig.model_validate(self.config.model_dump(exclude={"rounds"}))


def read_sweep(name: str, settings: Sequence[str] = ()) -> Sweep:
    """The sweep of a YAML file, or a study that ships with the package, with 'field=value' settings. Raises InputError."""
    file, shipped = Path(name), studies()
    if not file.exists():
        if name not in shipped:
            raise InputError(f"{name}: no such file, and no study that ships with the package ({', '.join(shipped)}); "
                             "give a YAML file")
        file = shipped[name]
    return build(Sweep, file, {}, settings)


def studies() -> dict[str, Path]:
    """The studies that ship with the package, by name."""
    folder = Path(str(files("tsdfm.jobs.ablate"))) / "studies"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def plan(sweep: Sweep, data: Sequence[str]) -> list[Trial]:
    """The trials of a sweep on the datasets of --data, each 'OUT' or 'NAME=OUT', in the order of levels and seeds.

    Raises InputError, naming the trial, if one can't run or two are the same.
    """
    places = {found[1]: found[2] for each in data if (found := _NAMED.fullmatch(each))}
    given = [found[1] if (found := _NAMED.fullmatch(each)) else each for each in data]
    trials: dict[str, Trial] = {}
    for values in _combinations(sweep):
        for seed in sweep.seeds:
            trial = _trial(sweep, values, seed, places, given)
            if trial.key in trials:
                raise InputError(f"{sweep.name}: two trials are the same: {_told(trial.levels)} and "
                                 f"{_told(trials[trial.key].levels)}, seed {seed}; leave one out")
            trials[trial.key] = trial
    return list(trials.values())


def _combinations(sweep: Sweep) -> Iterator[dict[str, Level]]:
    if sweep.trials:
        yield from sweep.trials
        return
    for levels in itertools.product(*sweep.factors.values()):
        yield dict(zip(sweep.factors, levels, strict=True))


def _trial(sweep: Sweep, values: Mapping[str, Level], seed: int, places: Mapping[str, str], given: Sequence[str]) -> Trial:
    where = f"{sweep.name}: trial {_told({name: _level(value) for name, value in values.items()})}"
    fields = copy.deepcopy(sweep.base)
    for path, value in {**values, "optim.seed": seed}.items():
        put(fields, path, copy.deepcopy(value), where)  # in which the seed is set, if it is a level of `optim`
    data = fields.get("data")
    named = _names(data.get("paths") if isinstance(data, dict) else None, given)
    put(fields, PATHS, [_place(name, sweep, places) for name in named], where)
    config = parse(TrialConfig, fields, where)
    if config.workers != 1 or config.address != "local" or config.tracker != "none":
        raise InputError(f"{where}: workers, address and tracker are not a trial's, which runs in one process of this machine; "
                         "leave them out")
    config = TrialConfig.model_validate(with_anchored_paths(config).model_dump())
    start = open_start(config)
    identity, weights = json.loads(json.dumps(start.identity)), start.weights
    shown = {**config.model_dump(mode="json"), "data": {**config.data.model_dump(mode="json"), "paths": named}}
    levels = {name: _level(values[name] if name in values and name != PATHS else _at(shown, name)) for name in sweep.varied}
    return Trial(key_of(identity)[:DIGEST], config, levels, seed, weights.path, weights.fingerprint, identity)


def _names(paths: Any, given: Sequence[str]) -> list[Any]:
    """The datasets of a trial, as named by the sweep, or else on the command line."""
    if paths is None:
        return list(given)
    return paths if isinstance(paths, list) else [paths]


def _place(name: Any, sweep: Sweep, places: Mapping[str, str]) -> Any:
    """Where a dataset lies: by its name, or the name is its path."""
    if not isinstance(name, str):
        return name  # refused with the whole config
    if name in sweep.datasets and name not in places:
        raise InputError(f"--data: the sweep needs the dataset '{name}'; make it with `{sweep.datasets[name]}` and give "
                         f"--data {name}=OUT")
    return places.get(name, name)


def _at(fields: Mapping[str, Any], path: str) -> Any:
    """The value of a dotted field."""
    value: Any = fields
    for name in path.split("."):
        value = value[name]
    return value


def _level(value: Level) -> str:
    """A level as text."""
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return "+".join(value)
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _told(levels: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {level}" for name, level in levels.items())
