"""From a YAML file and flags to a validated config: flags override the file, and every fault is one line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tsdfm.schemas.base import Frozen, InputError, parse

C = TypeVar("C", bound=Frozen)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises InputError naming file and line."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file; give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a YAML text file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: not YAML ({getattr(error, 'problem', None) or 'unreadable'}); mend the line") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected 'field: value' lines, found {type(data).__name__}; see the README's example")
    return data


def build(model: type[C], file: Path | None, flags: Mapping[str, Any]) -> C:
    """The config of a file with flags laid over it.

    Keys of `flags` are dotted field paths ('rollout.steps'); values that are None were not given.
    """
    data = read_yaml(file) if file else {}
    for path, value in flags.items():
        if value is None:
            continue
        put(data, path, value, str(file))
    return parse(model, data, str(file) if file else "command line")


def put(data: dict[str, Any], path: str, value: Any, where: str) -> None:
    """Set the field of a dotted path in nested mappings. Raises InputError if something else stands on the way."""
    *parents, leaf = path.split(".")
    level = data
    for name in parents:
        inner = level.setdefault(name, {})
        if not isinstance(inner, dict):
            raise InputError(f"{where}: {name}: expected a mapping of fields; write its fields indented below it")
        level = inner
    level[leaf] = value
