"""Where the text of a record or a row is: the field or column that is asked for, and what to say where it isn't one."""

from collections.abc import Iterable, Iterator, Sequence

from tsdfm.schemas.base import InputError

CURE = "name the right one with --text-field (corpus.text_field), or --prompt-field for prompts"
ROWS_AT_ONCE = 256
NAMES_SHOWN = 12

Texts = Iterator[str | None]


def record_text(record: object, field: str, where: str) -> str | None:
    """The text of a record. Raises InputError, naming `where`, if it has none."""
    if not isinstance(record, dict):
        raise InputError(f"{where}: a {_kind(record)}, not a record with fields; write {{\"{field}\": \"...\"}}")
    if field not in record:
        raise no_field(where, field, record)
    text = record[field]
    if not (text is None or isinstance(text, str)):
        raise InputError(f"{where}: field '{field}' holds a {_kind(text)}, not text; {CURE}")
    return text


def no_field(where: str, field: str, names: Iterable[object]) -> InputError:
    """What to say where there is no such field or column, of those that there are."""
    there = [str(name) for name in names]
    more = ", ..." if len(there) > NAMES_SHOWN else ""
    return InputError(f"{where}: no text field '{field}'; it has {', '.join(there[:NAMES_SHOWN]) or 'none'}{more}; {CURE}")


def check_single(where: str, field: str, names: Sequence[str]) -> None:
    """Raises InputError unless exactly one column has the name."""
    if field not in names:
        raise no_field(where, field, names)
    if names.count(field) > 1:
        raise InputError(f"{where}: has {names.count(field)} columns named '{field}'; rename all but one")


def _kind(value: object) -> str:
    return {dict: "record", list: "list", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")
