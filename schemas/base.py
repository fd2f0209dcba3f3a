"""The base of every config and record, and the two kinds of failure a user can meet."""

import json
import re
import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, SerializationInfo, ValidationError, model_validator

from tsdfm.schemas.paths import check_name, redacted

M = TypeVar("M", bound="Frozen")
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


LONGEST = 1500  # characters of a message: where it quotes more, its middle is left out
_LINE_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


def one_line(message: str) -> str:
    """A message without line breaks, and of at most LONGEST characters, whatever it quotes."""
    line = _LINE_BREAKS.sub(" ", message)
    return line if len(line) <= LONGEST else f"{line[:LONGEST - 500]} ... {line[-500:]}"


class OneLine(Exception):
    """An error whose message is one line, whatever it quotes."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class InputError(OneLine):
    """The input is wrong: one line saying what, where, and how to mend it. Exit code 2."""


class WorkError(OneLine):
    """The input was fine and the work failed (disk full, workers lost): one line. Exit code 1."""


def first_line(error: BaseException, limit: int = 200) -> str:
    """What an exception says: its first line, at most `limit` characters of it, or the name of its kind if it says nothing."""
    words = str(error).strip()
    return (" ".join(words.splitlines()[0].split()) if words else type(error).__name__)[:limit]


def recordable(name: str) -> str:
    """The name of a file or folder as it is. Raises InputError if no record could say it."""
    try:
        return check_name(name)
    except ValueError as error:
        raise InputError(str(error)) from None


class _Truth:
    """A yes or no that stands where a number should, and is none; of Python it would be 1 or 0."""

    def __init__(self, value: bool) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)


def _marked(value: Any) -> Any:
    """A number, or numbers in a list or mapping, with every yes and no marked as none."""
    if isinstance(value, list | tuple):
        return [_marked(each) if isinstance(each, bool) else each for each in value]
    if isinstance(value, dict):
        return dict(zip(_marked([*value]), _marked([*value.values()]), strict=True))
    return _Truth(value)


def _holds_truth(value: Any) -> bool:
    parts = (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
    return any(isinstance(each, bool) for each in parts)


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that an annotation is made of."""
    if get_origin(annotation) is Literal:
        return {type(each) for each in get_args(annotation)}
    parts = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    return set[Any]().union(*map(_kinds, parts)) if parts else {annotation}


class Frozen(BaseModel):
    """An immutable record that refuses unknown fields.

    Where a field's default is itself a record, a mapping given for it changes only what it names: the other fields stay as they
    are in the default, not as they are in the default's class.
    """

    # Infinity and NaN are refused everywhere: JSON has neither, so they would be lost when the record is written.
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    _texts: ClassVar[frozenset[str]] = frozenset()  # fields that hold texts as a model or a user wrote them; see `texts_in`
    _nested: ClassVar[dict[str, dict[str, Any]]] = {}  # field -> what its default record says, where it says anything
    _numbers: ClassVar[frozenset[str]] = frozenset()  # fields that hold numbers, and no yes or no

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Note what the default records of the new class say, and which of its fields are of numbers."""
        super().__pydantic_init_subclass__(**kwargs)
        said = {name: field.default.model_dump(exclude_unset=True) for name, field in cls.model_fields.items()
                if isinstance(field.default, BaseModel)}
        cls._nested = {name: fields for name, fields in said.items() if fields}
        kinds = {name: _kinds(field.annotation) for name, field in cls.model_fields.items()}
        cls._numbers = frozenset(name for name, found in kinds.items()
                                 if found & {int, float} and not found & {bool, Any, object})

    @model_validator(mode="before")
    @classmethod
    def _keep_what_defaults_say(cls, data: Any) -> Any:
        if not cls._nested or not isinstance(data, Mapping):
            return data
        given = {name: data[name] for name in cls._nested if isinstance(data.get(name), Mapping)}
        return {**data, **{name: laid_over(cls._nested[name], value) for name, value in given.items()}}


    @model_validator(mode="before")
    @classmethod
    def _no_truth_is_a_number(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        marked = {name: _marked(data[name]) for name in cls._numbers & data.keys() if _holds_truth(data[name])}
        return {**data, **marked} if marked else data


def texts_in(record: object) -> frozenset[str]:
    """The fields of a record that hold texts as a model or a user wrote them, in which an address is nobody's secret."""
    return record._texts if isinstance(record, Frozen) else frozenset()


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings with others laid over them: what `above` names counts."""
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        merged[name] = laid_over(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


EVERY_FIELD = {"every_field": True}  # the context in which a record is written with all of its fields


def without_newer(data: dict[str, Any], info: SerializationInfo, **newer: Any) -> dict[str, Any]:
    """What a record's serializer gives, without fields that have their default and are newer than some records on disk.

    So those records, and the digests of them, stay what they are. `newer`: field -> default. The context EVERY_FIELD keeps all.
    """
    if info.context == EVERY_FIELD:
        return data
    return {name: value for name, value in data.items() if name not in newer or value != newer[name]}


_SHORT = reprlib.Repr()  # of a value that may be of any size, or hold itself
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 60, 60


_TOO_SHORT = ("too_short", "string_too_short")  # kinds of pydantic's errors, here and below
_EXPECTED = {"model_type": "expected a mapping of fields", "dict_type": "expected a mapping", "list_type": "expected a list",
             "string_type": "expected a text", "tuple_type": "expected a list"}


def _problem(error: dict[str, Any]) -> str:
    field = ".".join(f"{part!s:.80}" for part in error["loc"])
    if not field:
        return str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"{field}: no such field; remove it or mend its spelling"
    if error["type"] == "missing":
        return f"{field}: this field is required; add it"
    if error["type"] != "value_error" and (error["input"] is None or (error["type"] in _TOO_SHORT and not error["input"])):
        return f"{field}: is empty; write something, or leave it out"
    message = _EXPECTED.get(error["type"], error["msg"].removeprefix("Value error, "))
    shown = "" if error["type"] == "value_error" else f", not {_SHORT.repr(error['input']):.60}"
    return f"{field}: {message}{shown}"


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


def to_json(record: BaseModel) -> str:
    """A record as it stands in a file: indented, keys sorted, a line break at the end; without the secrets of URIs."""
    return redacted(json.dumps(record.model_dump(mode="json"), indent=2, sort_keys=True)) + "\n"


def plain_json(text: str | bytes, where: str) -> Any:
    """A JSON document of any form. Raises InputError, naming `where`, whatever is wrong with the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not readable JSON ({first_line(error, 100)}); restore it") from None


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
