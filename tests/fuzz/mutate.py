"""Mutations of bytes, and of the structures that our formats have. Each is a function of a `random.Random` and what it changes."""

import copy
import io
import json
import random
import zipfile
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

BYTES = (b"\x00", b"\xff", b"\x80\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff\xff\xff\xff\xff", b"\n", b"\r\n\r\n", b'"', b"{", b"\xed\xa0\x80", b"\x1b[2J")
WORDS = ("", "x", "\ud800", "\x1b[2J\u202e", "A" * 5000, "nan", "../../etc/passwd", "/etc/passwd", "a\nb", "\0", "embedded", "none", "1", "é\u0301")
NUMBERS = (0, -1, 1, 2, 3, 127, 128, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 53, (1 << 63) - 1, 1 << 63, 1 << 64, 10**30, -(1 << 63) - 1, 10**9,
           0.5, -0.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"))
DEPTH = 3000


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def odd_value(rng: random.Random) -> Any:
    """Anything that a number, a word, a list or a mapping may be replaced by."""
    return rng.choice([None, True, False, [], {}, [None], {"a": {}}, _nested(60), rng.choice(WORDS), rng.choice(NUMBERS), rng.choice(NUMBERS)])


def _span(length: int, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(length + 1)
    return start, min(length, start + int(2 ** rng.uniform(0, 12)))


def _once(data: bytes, rng: random.Random) -> bytes:
    (a, b), (c, d) = sorted([_span(len(data), rng), _span(len(data), rng)])
    kinds: list[Callable[[], bytes]] = [
        lambda: data[:a] + bytes([data[a] ^ 1 << rng.randrange(8)]) + data[a + 1:] if a < len(data) else data[:-1],
        lambda: data[:a], lambda: data[b:], lambda: data[:a] + data[b:],
        lambda: data[:a] + data[a:b] + data[a:b] + data[b:],
        lambda: data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:] if b <= c else data[::-1],
        lambda: data[:a] + rng.randbytes(b - a) + data[b:],
        lambda: data[:a] + bytes(b - a) + data[b:],
        lambda: data[:a] + rng.choice(BYTES) + data[a:],
        lambda: data[:a] + rng.choice(BYTES) + data[b:],
        lambda: data + data, lambda: b"", lambda: data + b"\0" * 100,
    ]
    # Of the gentle kind, which what comes first does not notice, more than of the others.
    return rng.choices(kinds, weights=[12, 1, 1, 2, 2, 2, 3, 3, 2, 3, .3, .2, .3])[0]()


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut, swapped, doubled, inserted, or overwritten, once or a few times."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        data = _once(data, rng)
    return data


def _containers(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return ([value] if isinstance(value, dict | list) and value else []) + [each for part in inner for each in _containers(part)]


def changed_document(document: Any, rng: random.Random) -> Any:
    """A JSON or YAML document with values of other types and sizes, and keys missing, added, renamed or swapped."""
    found = copy.deepcopy(document)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = _containers(found)
        if not places:
            return odd_value(rng)
        _change_place(rng.choice(places), rng)
    return found


def _change_place(place: Any, rng: random.Random) -> None:
    """Change something in a list or mapping that is not empty."""
    keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
    key, other = rng.choice(keys), rng.choice(keys)
    match rng.choice(["odd", "odd", "odd", "gone", "new", "near", "swapped", "doubled", "moved"]):
        case "odd":
            place[key] = odd_value(rng)
        case "gone":
            del place[key]
        case "new" if isinstance(place, dict):
            place[rng.choice(["extra", "", *WORDS])] = odd_value(rng)
        case "near":
            place[key] = _near(place[key], rng)
        case "swapped":
            place[key], place[other] = place[other], place[key]
        case "doubled" if isinstance(place, list):
            place.insert(key, place[other])
        case "moved" if isinstance(place, dict):
            place[rng.choice(WORDS[1:])] = place.pop(key)
        case _:
            place[key] = {"value": place[key]}


def _near(value: Any, rng: random.Random) -> Any:
    """A value that is nearly right."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
        return rng.choice([value + 1, value - 1, -value, value * 2, str(value), float(value)])
    if isinstance(value, str):
        return rng.choice([value.upper(), value[:-1], value + rng.choice(WORDS), [value]])
    return [value]


def changed_json(data: bytes, rng: random.Random) -> bytes:
    """The bytes of a JSON document, changed as a document or as text."""
    if rng.random() < 0.2:
        return changed_bytes(data, rng)
    text = json.dumps(changed_document(json.loads(data), rng))
    kind = rng.random()
    if kind < 0.04:
        text = text.replace(": 1", rng.choice([": 1e999", ": 1" + "0" * 5000, ": -0", ": 0x10"]), 1)
    elif kind < 0.06:
        text = text[:-1] + ', "deep": ' + "[" * DEPTH + "]" * DEPTH + "}"
    elif kind < 0.08:
        text = text.replace("{", '{"identity": 1, "identity": 2, ', 1)
    return text.encode("utf-8", "surrogatepass")


YAML_LINES = (
    "? [1, 2]\n: 3\n", "? {a: 1}\n: 3\n", "<<: *nothing\n", "a: &a [*a]\n", "!!python/object:os.system {}\n", "x: !!binary ====\n", "seed: 2020-13-45\n",
    "seed: 2020-01-01 00:00:00\n", "\tseed: 1\n", "%YAML 9.9\n---\n", "---\na: 1\n---\nb: 2\n", "x: !!set {1, 2}\n", "1: 2\n1.0: 3\n", "null: 1\n", "true: 1\n",
    "x: !!int twelve\n", "x: !!float 1..2\n", "x: !!timestamp now\n", "x: 1:60:60\n", "x: 0o9\n", "<<: {seed: 1}\n", "<<: [1]\n", "- 1\n", "x: !u!y 1\n",
    f"x: {'[' * 2000}\n", f"x: {'[' * 400}{']' * 400}\n", "x: \"\\ud800\"\n", "x: \"\\U00110000\"\n", "x: >-9\n  y\n",
    f"x: {'9' * 6000}\n", *(f"{name}: &a [*a]\n" for name in ("seed", "optim", "rollout")), *(f"{name}: &a {{seed: *a}}\n" for name in ("optim", "rollout", "base")),
)
# Each list holds nine of the one before: a few lines that are billions of words where they are written out.
BOMB = "".join(f"{name}: &{name} [{', '.join([f'*{chr(ord(name) - 1)}'] * 9)}]\n" for name in "bcdefghijk")


def changed_yaml(document: Any, rng: random.Random) -> bytes:
    """A YAML file of a changed document, or with lines that no honest one has."""
    kind = rng.random()
    if kind < 0.25:
        lines = yaml.safe_dump(document, sort_keys=False).splitlines(keepends=True)
        if rng.random() < 0.1:
            field = rng.choice(["x", "seed", "steps", "optim", "rollout", "data", "model", "base", "factors"])
            return f"a: &a [x]\n{BOMB}{field}: *k\n{''.join(lines) if rng.random() < 0.5 else ''}".encode()
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(YAML_LINES))
        return "".join(lines).encode()
    if kind < 0.4:
        return changed_bytes(yaml.safe_dump(document).encode(), rng)
    text = yaml.safe_dump(changed_document(document, rng), allow_unicode=rng.random() < 0.5, default_flow_style=rng.choice([None, True, False]))
    return text.encode("utf-8", "surrogatepass")


def changed_safetensors(data: bytes, rng: random.Random) -> bytes:
    """The bytes of a safetensors file: its header changed as a document, its length as a number, its numbers as bytes."""
    size = int.from_bytes(data[:8], "little")
    header, body = data[8:8 + size], data[8 + size:]
    kind = rng.random()
    if kind < 0.45:
        header = changed_json(header, rng)
        size = len(header)
    elif kind < 0.55:
        size = rng.choice([0, 1, size - 1, size + 1, 1 << 27, 1 << 40, (1 << 64) - 1])
    elif kind < 0.7:
        return changed_bytes(data, rng)
    elif kind < 0.85 and len(body) > 8:
        at = rng.randrange(len(body) // 4) * 4
        body = body[:at] + rng.choice([b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\0\0\x80\xff"]) + body[at + 4:]
    else:
        body = changed_bytes(body, rng)
    return size.to_bytes(8, "little") + header + body


def _changed_cells(column: pa.ChunkedArray, rng: random.Random) -> pa.Array:
    """One cell of a column, or one number of a list in it, is replaced."""
    values, kind = column.to_pylist(), column.type
    if not values:
        return column
    row, old = rng.randrange(len(values)), None
    old = values[row]
    if isinstance(old, list) and old and rng.random() < 0.7:
        at = rng.randrange(len(old))
        match rng.choice(["odd", "odd", "gone", "twice", "near", "null"]):
            case "odd":
                old[at] = rng.choice(NUMBERS)
            case "gone":
                del old[at]
            case "twice":
                old.insert(at, old[at])
            case "near":
                old[at] = (old[at] or 0) + rng.choice([-1, 1])
            case "null":
                old[at] = None
    else:
        values[row] = rng.choice([None, [] if isinstance(old, list) else rng.choice(NUMBERS), rng.choice(values), rng.choice(WORDS)])
    return pa.array(values, kind)


def changed_table(table: pa.Table, rng: random.Random) -> pa.Table:
    """A table with cells, types, names, columns or rows changed."""
    index = rng.randrange(table.num_columns)
    name, column = table.column_names[index], table.column(index)
    rows = list(range(table.num_rows))
    try:
        match rng.choice(["cells"] * 8 + ["type", "name", "gone", "double", "order", "rows", "empty", "nulls"]):
            case "cells":
                return table.set_column(index, table.schema.field(index).with_nullable(True), _changed_cells(column, rng))
            case "type":
                kind = rng.choice([pa.string(), pa.int64(), pa.float64(), pa.large_string(), pa.list_(pa.int64()), pa.large_list(pa.int32()), pa.binary(),
                                   pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.float32()), pa.struct([("x", pa.int8())]), pa.null()])
                changed = pa.nulls(table.num_rows, kind) if rng.random() < 0.3 else column.cast(kind)
                return table.set_column(index, name, changed)
            case "name":
                return table.rename_columns([rng.choice(WORDS[1:]) if at == index else each for at, each in enumerate(table.column_names)])
            case "gone":
                return table.drop_columns([name])
            case "double":
                return table.append_column(name, column)
            case "order":
                return table.select(rng.sample(table.column_names, table.num_columns))
            case "rows":
                return table.take(rng.choices(rows, k=rng.choice([len(rows), len(rows) + 1, 1])))
            case "empty":
                return table.slice(0, 0)
            case _:
                return table.set_column(index, pa.field(name, column.type), pa.nulls(table.num_rows, column.type))
    except (pa.ArrowException, TypeError, ValueError, OverflowError, UnicodeError):  # what Arrow itself can't hold is no case
        return table.slice(1)


def parquet(table: pa.Table, rng: random.Random) -> bytes:
    """A table as a Parquet file of one kind or another."""
    sink = io.BytesIO()
    options: dict[str, Any] = {"compression": rng.choice(["zstd", "snappy", "none"]), "use_dictionary": rng.random() < 0.5}
    try:
        pq.write_table(table, sink, **options, row_group_size=rng.choice([None, 1, 3]))
    except (pa.ArrowException, UnicodeError):
        return b"PAR1"
    return sink.getvalue()


def changed_footer(data: bytes, rng: random.Random) -> bytes:
    """A Parquet file with a few bytes of its footer, or the footer's length, changed."""
    footer = int.from_bytes(data[-8:-4], "little")
    if not 0 < footer <= len(data) - 12:
        return changed_bytes(data, rng)
    if rng.random() < 0.1:
        return data[:-8] + rng.choice([0, 1, footer - 1, footer + 1, 1 << 31, (1 << 32) - 1]).to_bytes(4, "little") + data[-4:]
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        found[rng.randrange(len(data) - 8 - footer, len(data) - 8)] ^= 1 << rng.randrange(8)
    return bytes(found)


def changed_zip(data: bytes, rng: random.Random) -> bytes:
    """A zip archive with the content of one member changed and its checksum right, or with a member gone, or changed as bytes."""
    if rng.random() < 0.3:
        return changed_bytes(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    index = rng.randrange(len(members)) if rng.random() < 0.5 else next(at for at, (name, _) in enumerate(members) if name.endswith("data.pkl"))
    name, content = members[index]
    members[index:index + 1] = [] if rng.random() < 0.1 else [(name, changed_bytes(content, rng))]
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for each, content in members:
            archive.writestr(each, content)
    return sink.getvalue()
