"""Command-line flags from the fields of a config: names, types, choices, defaults and help are written once, in the schema.

A field's description is a sentence for a newcomer. What follows its last '; null: ' says what leaving the field out means, and
is shown as the flag's default.
"""

import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from tsdfm.jobs.shell.console import emit, output_kept_for_json
from tsdfm.jobs.shell.options import build, yaml_of
from tsdfm.schemas.base import Frozen, InputError, parse
from tsdfm.schemas.plan import PlanWish

T = TypeVar("T")
NULL = "; null: "
_LISTED = {"steps": "N,...", "temperatures": "T,...", "budgets": "N[:WEIGHT],..."}  # given as one text: 1,2,4


@dataclass(frozen=True)
class Flag:
    """A field of a config as a flag."""

    path: str  # dotted, e.g. rollout.steps
    names: tuple[str, ...]  # as typed, e.g. --steps
    field: FieldInfo
    default: Any  # of the config, where it is built with nothing given

    @property
    def parameter(self) -> str:
        """The name of click's parameter."""
        return self.path.replace(".", "__")

    def option(self) -> click.Option:
        """The click option; a flag that is not given is None."""
        kind = _bare(self.field.annotation)
        text, null = _told(self.field)
        if kind is bool:
            name = self.names[0].removeprefix("--")
            declared, extra = [f"--{name}/--no-{name}"], dict[str, Any]()
        else:
            declared, extra = list(self.names), _click_type(kind, self.path.rpartition(".")[2])
        limits = _limits(self.field)
        notes = [*([limits] if limits else []), *([f"default: {shown}"] if (shown := _shown(self.default, null)) else [])]
        more = f"  [{'; '.join(notes)}]" if notes else ""
        return click.Option([*declared, self.parameter], default=None, help=f"{text}.{more}", **extra)


def flags_of(model: type[Frozen], renamed: Mapping[str, str] | None = None, skipped: Sequence[str] = ()) -> list[Flag]:
    """Every field of a config, nested ones too, as flags in the order of the schema.

    Args:
        model: the config's.
        renamed: dotted path -> the flag's names, e.g. {'optim.steps': '--updates'}; without one, it is that of the field.
        skipped: dotted paths that are no flags (the YAML file and `--set` still take them).
    """
    renamed = renamed or {}
    found = []
    for path, field, default in _leaves(model):
        if path not in skipped:
            names = tuple(renamed.get(path, f"--{path.rpartition('.')[2].replace('_', '-')}").split())
            found.append(Flag(path, names, field, default))
    return found


def _leaves(model: type[Frozen], prefix: str = "", instance: Any = None) -> Iterator[tuple[str, FieldInfo, Any]]:
    for name, field in model.model_fields.items():
        default = getattr(instance, name) if instance is not None else field.get_default(call_default_factory=True)
        inner = _bare(field.annotation)
        if isinstance(inner, type) and issubclass(inner, Frozen):
            yield from _leaves(inner, f"{prefix}{name}.", None if field.is_required() and instance is None else default)
        else:
            yield f"{prefix}{name}", field, None if field.is_required() and instance is None else default


def _bare(annotation: Any) -> Any:
    """An annotation without Annotated and without None."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        return _bare(parts[0]) if len(parts) == 1 else annotation
    return annotation


def _click_type(kind: Any, leaf: str) -> dict[str, Any]:
    if get_origin(kind) is Literal:
        return {"type": click.Choice([str(each) for each in get_args(kind)])}
    if leaf in _LISTED and get_origin(kind) in (tuple, dict):
        return {"type": str, "metavar": _LISTED[leaf]}
    if get_origin(kind) in (list, tuple):
        inner = _bare(get_args(kind)[0])
        return {"type": inner if inner in (int, float) else str, "multiple": True}
    return {"type": kind if kind in (int, float) else str, "metavar": {int: "INTEGER", float: "NUMBER"}.get(kind, "TEXT")}


def _told(field: FieldInfo) -> tuple[str, str]:
    """A field's sentence, and what null means."""
    text, _, null = (field.description or "").rpartition(NULL)
    return (text, null) if text else (null, "")


def _shown(default: Any, null: str) -> str:
    if default is None or default in ((), [], {}):
        return null
    if isinstance(default, bool):
        return "yes" if default else "no"
    return ",".join(f"{each:g}" if isinstance(each, float) else str(each) for each in default) if isinstance(
        default, tuple | list) else str(default)


def _limits(field: FieldInfo) -> str:
    """The range of a number: '1..127', 'above 0'."""
    low = next((each.ge for each in field.metadata if isinstance(each, Ge)), None)
    high = next((each.le for each in field.metadata if isinstance(each, Le)), None)
    above = next((each.gt for each in field.metadata if isinstance(each, Gt)), None)
    below = next((each.lt for each in field.metadata if isinstance(each, Lt)), None)
    parts = []
    if low is not None and high is not None:
        parts.append(f"{low}..{high}")
    elif low not in (None, 0) or (low == 0 and high is None and below is None):
        parts.append(f"at least {low}")
    if above is not None:
        parts.append(f"above {above}")
    if high is not None and low is None:
        parts.append(f"at most {high}")
    if below is not None and below != 2**31 and below != 2**32:
        parts.append(f"below {below}")
    return ", ".join(parts)


class GroupedCommand(click.Command):
    """A command whose help has two groups: the common options, and all the others."""

    def __init__(self, *arguments: Any, common: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.common = set(common)

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options into the help in their two groups."""
        groups: dict[str, list[tuple[str, str]]] = {"Common options": [], "All other options": []}
        for parameter in self.get_params(context):
            record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
            if record is not None:
                ours = self.common & {*parameter.opts, *parameter.secondary_opts}
                groups["Common options" if ours or not self.common else "All other options"].append(record)
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


@dataclass(frozen=True)
class Planner:
    """What `--plan` does in place of a command: `make` takes (config, PlanWish, and by name what the command declares)."""

    make: Callable[..., Frozen]
    show: Callable[[Any], None]  # prints the plan where `--json` does not

    def __call__(self, given: Mapping[str, Any], *arguments: Any, **own: Any) -> None:
        """Make a plan of what click gave, and print it."""
        with output_kept_for_json():
            plan = self.make(*arguments, wish_of(given), **own)
        (emit if given["as_json"] else self.show)(plan)


def wish_of(given: Mapping[str, Any]) -> PlanWish:
    """How a plan is asked for, of what click gave for PLAN_OPTIONS. Raises InputError."""
    return parse(PlanWish, {name: given[name] for name in PlanWish.model_fields}, "command line")


def planned(given: Mapping[str, Any]) -> bool:
    """Whether a plan is asked for, of what click gave for PLAN_OPTIONS. Raises InputError for what only a plan has."""
    for name in PlanWish.model_fields:
        if given[name] is not None and not given["plan"]:
            raise InputError(f"--{name.replace('_', '-')}: is of a plan; give --plan, too, or leave it out")
    return bool(given["plan"])


def config_command(
    name: str, model: type[Frozen], *, common: str, flags: Sequence[Flag] | None = None,
    shown: Callable[[Any], None] | None = None, planner: Planner | None = None,
) -> Callable[[Callable[..., Frozen | None]], click.Command]:
    """Make a command of a function that takes a config and returns what `--json` prints; its docstring is the help.

    The config is built from a YAML file (the first argument, unless the function declares an argument of its own with click's
    decorators), `--set`, and flags. What else the function declares is passed by name, or, if it is a field of the config, goes
    into the config.

    Args:
        name: the command's.
        model: the config's.
        common: the flags of the help's first group, as typed, separated by blanks.
        flags: the config's; None: every field.
        shown: prints the report on standard output where `--json` does not.
        planner: what `--plan` does; None: the command has no such flag.
    """
    def decorate(function: Callable[..., Frozen | None]) -> click.Command:
        chosen = flags_of(model) if flags is None else flags
        own: list[click.Parameter] = list(reversed(getattr(function, "__click_params__", [])))

        def callback(**given: Any) -> None:
            fields = {flag.path: given[flag.parameter] for flag in chosen}
            fields |= {each.name: given[each.name] for each in own if each.name in model.model_fields}
            fields = {path: list(value) or None if isinstance(value, tuple) else value for path, value in fields.items()}
            config = build(model, given.get("config"), fields, given["settings"])
            if given["print_config"]:
                click.echo(yaml_of(config), nl=False)
                return
            named = {str(each.name): given[str(each.name)] for each in own if each.name not in model.model_fields}
            if planner is not None and planned(given):
                planner(given, config, **named)
                return
            with output_kept_for_json():
                report = function(config, **named)
            if given["as_json"] and report is not None:
                emit(report)
            elif shown is not None:
                shown(report)

        file = [] if any(isinstance(each, click.Argument) for each in own) else [_FILE]
        plans = PLAN_OPTIONS if planner is not None else []
        parameters = [*file, *own, *(flag.option() for flag in chosen), SET, PRINT_CONFIG, *plans, _JSON]
        return GroupedCommand(name, params=parameters, callback=callback, help=inspect.getdoc(function),
                              common=f"{common} --json --help".split())

    return decorate


_FILE = click.Argument(["config"], required=False, type=click.Path(path_type=Path))
SET = click.Option(["--set", "settings"], multiple=True, metavar="FIELD=VALUE", help=(
    "Set any field of the config by its dotted name, e.g. --set rollout.steps=16. May be repeated; flags go first."))
PRINT_CONFIG = click.Option(["--print-config"], is_flag=True, help=(
    "Print the whole config as YAML, every default written out, and stop."))
PLAN_OPTIONS: list[click.Parameter] = [
    click.Option(["--plan"], is_flag=True, help=(
        "Say what will be made, how long it will take and what it will cost, by a short measurement; nothing is made.")),
    click.Option(["--rates"], metavar="FILE", help="With --plan: measure nothing, and take the rates of a file."),
    click.Option(["--save-rates"], metavar="FILE", help="With --plan: write the rates that were measured, for --rates."),
    click.Option(["--price"], type=float, metavar="NUMBER", help=(
        "With --plan: what an hour of one GPU costs, or of one worker on CPUs.")),
]
_JSON = click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object on standard output.")


def required(value: T | None, name: str, what: str) -> T:
    """A parameter that has to be given, unless only the config is asked for. Raises InputError."""
    if value is None:
        raise InputError(f"{name}: not given; {what}")
    return value.expanduser() if isinstance(value, Path) else value
