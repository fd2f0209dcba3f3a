"""The base of every config and record, and the two kinds of failure a user can meet."""

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

M = TypeVar("M", bound="Frozen")


class InputError(Exception):
    """The input is wrong: one line saying what, where, and how to mend it. Exit code 2."""


class WorkError(Exception):
    """The input was fine and the work failed (disk full, workers lost): one line. Exit code 1."""


class Frozen(BaseModel):
    """An immutable record that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def _problem(error: dict[str, Any]) -> str:
    field = ".".join(str(part) for part in error["loc"]) or "(whole)"
    if error["type"] == "extra_forbidden":
        return f"{field}: no such field; remove it or mend its spelling"
    if error["type"] == "missing":
        return f"{field}: this field is required; add it"
    message = error["msg"].removeprefix("Value error, ")
    return f"{field}: {message}" if error["type"] == "value_error" else f"{field}: {message}, not {error['input']!r:.60}"


def explain(error: ValidationError, where: str) -> InputError:
    """Fold a pydantic error into one line that names `where` and every faulty field."""
    return InputError(f"{where}: " + "; ".join(_problem(dict(e)) for e in error.errors()))


def differences(old: object, new: object, name: str = "") -> list[str]:
    """The dotted names of the fields in which two JSON documents differ, each with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: list[str] = []
        for key in sorted(old.keys() | new.keys()):
            found += differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
        return found
    return [] if old == new else [f"{name} (there {_short(old)}, here {_short(new)})"]


def _short(value: object) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 24 else json.dumps(value)


def parse(model: type[M], data: object, where: str) -> M:
    """Validate `data` (a mapping) as `model`. Raises InputError, naming `where` and the fields."""
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a mapping of fields, found {type(data).__name__}; write 'field: value' lines")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise explain(error, where) from None


def parse_json(model: type[M], text: str | bytes, where: str) -> M:
    """Validate a JSON document as `model`. Raises InputError, naming `where` and the fields."""
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise explain(error, where) from None
