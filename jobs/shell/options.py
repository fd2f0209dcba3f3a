"""From a YAML file, `--set` and flags to a validated config, and every fault in one line.

Flags override `--set`, which overrides the file, which overrides the defaults.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml

from tsdfm.jobs.shell.console import showable
from tsdfm.schemas.base import EVERY_FIELD, Frozen, InputError, first_line, parse
from tsdfm.schemas.paths import is_text
from tsdfm.schemas.regular import read_regular

C = TypeVar("C", bound=Frozen)


_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key that stands twice, of which YAML would keep the last without a word.

    Numbers are those of YAML 1.2: 010 is ten and not eight, and 1:30 is a text and not ninety.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping as it is written, its keys all different: what a merge key (<<) brings, they may replace."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            name = key.value if key.tag == _MERGE else self.construct_object(key, deep=True)
            line = key.start_mark.line + 1
            if not isinstance(name, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a list or mapping is no name of a field", key.start_mark)
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{name}' stands twice, in line {seen[name]}, too", key.start_mark)
            seen[name] = line
        return node


def _number(loader: _Loader, node: yaml.ScalarNode) -> Any:
    text = str(loader.construct_scalar(node))
    if ":" in text:
        return text
    if node.tag.endswith("float"):
        return loader.construct_yaml_float(node)
    digits = text.replace("_", "")
    return int(digits) if digits.lstrip("+-").isdecimal() else loader.construct_yaml_int(node)


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _number)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises InputError naming file and line."""
    try:
        text = read_regular(path).decode("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file, and no recipe of that name; give the path of a YAML file, or a name "
                         "that `tsdfm-pipeline recipe` lists") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a YAML text file") from None
    try:
        data = yaml.load(text, _Loader)
    except Exception as error:  # besides its own kinds, whatever a value's text leads to: a date of month 13, lists in lists
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        why = getattr(error, "problem", None) or first_line(error, 100)
        raise InputError(f"{where}: not YAML ({why}); mend the line") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected 'field: value' lines, found {type(data).__name__}; see the README's example")
    return data


def recipes() -> dict[str, Path]:
    """The files that ship to start from, by name: configs without their '.yaml' ('170m/generate'), and scripts."""
    folder = Path(str(files("tsdfm.jobs"))) / "recipes"
    found = sorted(path for path in folder.rglob("*") if path.suffix in (".yaml", ".sh"))
    return {str(path.relative_to(folder)).removesuffix(".yaml"): path for path in found}


def build(model: type[C], file: Path | None, flags: Mapping[str, Any], settings: Sequence[str] = ()) -> C:
    """The config of a file with settings and flags laid over it. Raises InputError.

    Args:
        model: of the config.
        file: YAML, or the name of a recipe that ships with the package, or None.
        flags: dotted field path ('rollout.steps') -> value; None: not given.
        settings: 'a.b=value' each, the value written as in YAML; a group of fields changes those that it names.
    """
    if file and not file.exists():
        file = recipes().get(str(file), file)
    data = read_yaml(file) if file else {}
    where = str(file) if file else "command line"
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals or not path.strip():
            raise InputError(f"--set {setting}: not a field and its value; write --set rollout.steps=64")
        for field, each in _fields(model, path.strip(), _value(setting, value)):
            put(data, field, each, f"--set {setting}")
    for path, value in flags.items():
        if value is not None:
            put(data, path, value, where)
    _check_text(data, where)
    return parse(model, data, where)


def _fields(model: type[Frozen], path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What is set by a value: its field, or of a group of fields those that it names."""
    group: type[Frozen] | None = model
    for name in path.split("."):
        field = group.model_fields.get(name) if group else None
        kinds = (field.annotation, *get_args(field.annotation)) if field else ()
        group = next((each for each in kinds if isinstance(each, type) and issubclass(each, Frozen)), None)
    if group is None or not isinstance(value, dict):
        yield path, value
        return
    for name, each in value.items():
        yield from _fields(model, f"{path}.{name}", each)


def _check_text(data: Any, where: str) -> None:
    """Raises InputError for a text that no record could hold: one with bytes that are not UTF-8, or the half of a character."""
    waiting, seen = [data], set[int]()  # a list of YAML may hold itself
    while waiting:
        each = waiting.pop()
        if isinstance(each, str) and not is_text(each):
            raise InputError(f"{where}: {each!r} is not UTF-8; give another name or text")
        if isinstance(each, dict | list) and id(each) not in seen:
            seen.add(id(each))
            waiting += [*each, *each.values()] if isinstance(each, dict) else each


def _value(setting: str, text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except Exception:  # see read_yaml
        raise InputError(f"--set {setting}: the value is not YAML; write a number, a word, or [a, b]") from None


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


def yaml_of(config: Frozen) -> str:
    """A config as a YAML file that gives the same config, every default written out, for standard output."""
    data = config.model_dump(mode="json", context=EVERY_FIELD)
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)
    return text if showable(text) else yaml.safe_dump(data, sort_keys=False, width=120)
