"""Flags come from the schemas: every field of every config is one, with a sentence; `--set`, `--print-config` and `schema` agree."""

import json
import re

import click
import pytest
import yaml

from tests.support import assert_refused, copy_dataset
from tsdfm.jobs.ablate.plan import read_sweep, studies
from tsdfm.jobs.cli import COMMANDS
from tsdfm.jobs.cli import cli as group
from tsdfm.jobs.schema import CONFIGS
from tsdfm.jobs.shell.flags import GroupedCommand, flags_of
from tsdfm.jobs.shell.options import read_yaml
from tsdfm.schemas.base import Frozen, InputError
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.train import CompassConfig

FLAGGED = sorted(set(CONFIGS) - {"ablate"})  # a sweep is a file: its fields are lists of levels
# What these commands are told otherwise: as an argument, or not at all.
NOT_FLAGS = {"publish": {"out"}, "import-teacher": {"checkpoint"}, "distill": {"real.corpus.part"}, "evaluate": {"corpus.part"},
             "sample": {"rollout.solver", "rollout.top_k", "rollout.logprobs"}}


def command(name: str) -> click.Command:
    found = group.get_command(click.Context(group), name)
    assert found is not None
    return found


def leaves(model: type[Frozen], prefix: str = "") -> set[str]:
    """Dotted names of all fields that are no configs themselves, told from the JSON Schema."""
    schema = model.model_json_schema()

    def walk(node: dict, prefix: str) -> set[str]:
        found = set()
        for name, field in node["properties"].items():
            reference = field.get("$ref")
            inner = schema["$defs"][reference.rpartition("/")[2]] if reference else None
            found |= walk(inner, f"{prefix}{name}.") if inner and "properties" in inner else {f"{prefix}{name}"}
        return found

    return walk(schema, prefix)


@pytest.mark.parametrize("name", FLAGGED)
def test_every_field_is_a_flag_with_a_sentence(name):
    options = {parameter.name: parameter for parameter in command(name).params if isinstance(parameter, click.Option)}
    fields = leaves(CONFIGS[name]) - NOT_FLAGS.get(name, set())
    assert {field.replace(".", "__") for field in fields} <= options.keys()
    for field in fields:
        text = options[field.replace(".", "__")].help
        assert text is not None
        assert re.match(r"^['A-Z.].{8,}\.(  \[.*\])?$", text), f"{field}: {text!r}"
        assert "null" not in text, f"{field}: {text!r}"


@pytest.mark.parametrize("name", sorted(command for commands in COMMANDS.values() for command in commands))
def test_help_has_a_sentence_for_every_option(name):
    for parameter in command(name).params:
        if isinstance(parameter, click.Option):
            assert parameter.help
            assert re.search(r"[.\]]$", parameter.help), parameter.help
    assert command(name).help


def test_common_flags_exist():
    for name in FLAGGED:
        known = {option for parameter in command(name).params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
        found = command(name)
        assert isinstance(found, GroupedCommand)
        assert found.common <= known, name


def test_ranges_and_defaults_are_told():
    told = {flag.path: flag.option().help or "" for flag in flags_of(GenerateConfig)}
    assert told["shaping.candidates"].endswith("[1..127; default: 8]")
    assert told["rollout.temperature"].endswith("[above 0, at most 10; default: 1.0]")
    assert told["rollout.length"].endswith("[1..65536; default: as many as that]")
    told = {flag.path: flag.option().help or "" for flag in flags_of(DistillConfig)}
    assert told["optim.steps"].endswith("[at least 1; default: 2000]")  # a student's, not any optimiser's
    assert told["optim.lr"].endswith("[above 0; default: 0.0005]")
    told = {flag.path: flag.option().help or "" for flag in flags_of(CompassConfig)}
    assert told["corpus.part"].endswith("[default: first]")
    assert told["shape.hidden_size"].endswith("[8..16384; default: 128]")


def test_help_has_two_groups_and_the_commands_have_five(cli):
    text = cli("generate", "--help").stdout
    common, _, others = text.partition("All other options:")
    assert "--candidates" in common
    assert "--shard-size" in others
    assert "--candidates" not in others
    for title, commands in COMMANDS.items():
        section = cli("--help").stdout.partition(f"{title}:")[2].partition("\n\n")[0]
        assert [line.split()[0] for line in section.strip().splitlines()] == list(commands)
    assert "..." not in cli("--help").stdout.partition("Make trajectories")[2]


@pytest.mark.parametrize("arguments", [
    ("generate", "--steps", 8, "--out", "o"), ("generate", "--set", "shaping.tau=0.5", "--set", "rollout={steps: 4, seed: 2}"),
    ("pretrain", "--updates", 7, "--corpus", "c.txt"), ("fit-compass", "--kind", "nce"), ("evaluate", "--steps", "1,2", "-n", 4),
    ("distill", "--data", "a", "--data", "b", "--weight", 1, "--weight", 2, "--budgets", "1,8:2"), ("sample", "-n", 2), ("demo", "--updates", 3),
    ("import-teacher", "x.pth", "--heads", 2), ("publish", "o", "--repo", "a/b", "--no-arm-splits")])
def test_a_printed_config_is_the_same_config(cli, tmp_path, arguments):
    """Whatever made it: a file of it gives it again."""
    printed = cli(*arguments, "--print-config")
    assert (printed.code, printed.stderr) == (0, "")
    config = CONFIGS[arguments[0]].model_validate(yaml.safe_load(printed.stdout))
    assert leaves(type(config)) >= set(_flat(yaml.safe_load(printed.stdout))) - {"budgets.1", "budgets.8"}
    if arguments[0] not in ("import-teacher", "publish"):
        file = tmp_path / "c.yaml"
        file.write_text(printed.stdout)
        assert cli(arguments[0], file, "--print-config").stdout == printed.stdout


def _flat(data: dict, prefix: str = "") -> list[str]:
    return [name for key, value in data.items()
            for name in (_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"])]


def test_flags_go_before_settings_and_settings_before_the_file(cli, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("rollout: {steps: 4, seed: 1, top_k: 2}\n")
    printed = yaml.safe_load(cli("generate", file, "--set", "rollout.steps=8", "--set", "rollout.seed=5", "--steps", 16, "--print-config").stdout)
    assert (printed["rollout"]["steps"], printed["rollout"]["seed"], printed["rollout"]["top_k"]) == (16, 5, 2)
    assert_refused(cli("generate", "--set", "rollout.stepz=8"), "rollout.stepz", "no such field")
    assert_refused(cli("generate", "--set", "rollout.steps"), "--set rollout.steps", "not a field and its value")
    assert_refused(cli("generate", "--set", "rollout.steps=[1"), "--set rollout.steps=[1", "not YAML")
    assert_refused(cli("generate", "--set", "rollout.steps.x=1"), "rollout.steps")


def test_a_group_of_fields_changes_those_that_it_names(cli, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("rollout: {steps: 4, seed: 7}\n")
    printed = yaml.safe_load(cli("generate", file, "--set", "rollout={steps: 8}", "--print-config").stdout)
    assert (printed["rollout"]["steps"], printed["rollout"]["seed"]) == (8, 7)
    file.write_text("budgets: {1: 1, 4: 1}\n")  # one field, whose value is a mapping
    printed = yaml.safe_load(cli("distill", file, "--set", "budgets={8: 1}", "--set", "data={paths: [a]}", "--print-config").stdout)
    assert printed["budgets"] == {"8": 1}


@pytest.mark.parametrize(("text", "number"), [("010", 10), ("-010", None), ("0x10", 16), ("1_000", 1000), ("1:30", None), ("08", 8)])
def test_numbers_are_read_as_people_read_them(cli, tmp_path, text, number):
    """YAML 1.1 takes 010 for eight, and 1:30 for ninety."""
    (tmp_path / "c.yaml").write_text(f"trajectories: {text}\n")
    outcome = cli("generate", tmp_path / "c.yaml", "--print-config")
    if number is None:
        assert_refused(outcome, "trajectories", text.replace("010", "10"))
    else:
        assert yaml.safe_load(outcome.stdout)["trajectories"] == number


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_json_schema_of_every_config(cli, name):
    schema = json.loads(cli("schema", name).stdout)
    assert schema["properties"].keys() == CONFIGS[name].model_fields.keys()
    assert schema["additionalProperties"] is False


def test_a_default_record_keeps_its_fields(cli, tmp_path):
    """The README's own command; and a shape of which one size is named keeps the others."""
    printed = yaml.safe_load(cli("fit-compass", "--corpus", "x.txt", "--print-config").stdout)
    assert printed["corpus"] == {"path": "x.txt", "text_field": "text", "clean": "none", "part": "first"}
    file = tmp_path / "c.yaml"
    file.write_text("shape: {n_blocks: 4}\n")
    printed = yaml.safe_load(cli("fit-compass", file, "--print-config").stdout)
    assert printed["shape"] == {"hidden_size": 128, "n_blocks": 4, "n_heads": 4, "mlp_ratio": 4, "dropout": 0.0}


def _models() -> list[type[Frozen]]:
    found, waiting = [], [Frozen]
    while waiting:
        each = waiting.pop()
        found.append(each)
        waiting += each.__subclasses__()
    return [each for each in found if each.__module__.startswith("tsdfm.schemas")]


def test_no_default_record_loses_a_field_when_another_is_given():
    """Of every config there is: for each nested default, name any one field, and the others stay."""
    checked = 0
    for model in _models():
        for name, field in model.model_fields.items():
            if not isinstance(field.default, Frozen):
                continue
            whole = field.default.model_dump()
            for inner in whole:
                kept = model._keep_what_defaults_say({name: {inner: whole[inner]}})[name]  # type: ignore[operator]  # pydantic wraps it
                filled = type(field.default).model_validate(kept)
                assert filled == field.default, f"{model.__name__}.{name}.{inner}"
                checked += 1
    assert checked > 20


def test_a_sweep_takes_settings_and_prints_itself(cli, tmp_path):
    study = next(iter(studies()))
    printed = yaml.safe_load(cli("ablate", study, "--set", "evaluate.samples=9", "--print-config").stdout)
    assert printed["evaluate"]["samples"] == 9
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(printed))
    assert read_sweep(str(file)) == read_sweep(study, ["evaluate.samples=9"])


def test_what_has_to_be_given_is_said(cli, tmp_path, tiny_models):
    copy_dataset(tmp_path / "data", tiny_models)
    for arguments in (["generate"], ["distill", "--data", tmp_path / "data"], ["pretrain"], ["fit-compass"], ["ablate", "tau"]):
        assert_refused(cli(*arguments), "--out")


def test_a_key_that_stands_twice_is_refused(cli, tmp_path):
    """YAML would keep the last without a word."""
    (tmp_path / "config.yaml").write_text("out: OUT\nrollout:\n  steps: 8\n  seed: 1\n  steps: 16\n")
    assert_refused(cli("generate", tmp_path / "config.yaml", "--print-config"), "config.yaml:5", "'steps' stands twice")


def test_a_merge_key_brings_what_the_mapping_does_not_say_itself(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "a: {<<: &b {<<: &c {steps: 1, seed: 1}, steps: 2}, dtype: x}\nb: *b\nc: *c\nd: {<<: [*c, {top_k: 3}], seed: 9}\n")
    assert read_yaml(tmp_path / "config.yaml") == {
        "a": {"steps": 2, "seed": 1, "dtype": "x"}, "b": {"steps": 2, "seed": 1}, "c": {"steps": 1, "seed": 1},
        "d": {"steps": 1, "top_k": 3, "seed": 9}}


@pytest.mark.parametrize(("text", "why"), [
    ("a: &a {x: 1}\nb: {<<: *a, y: 1, y: 2}\n", "'y' stands twice"), ("a: &a {x: 1}\nb: {<<: *a, <<: *a}\n", "'<<' stands twice"),
    ("a: {<<: 3}\n", "expected a mapping"), ("a: {? [1] : 2}\n", "no name of a field")])
def test_a_merge_that_can_not_be_is_refused(tmp_path, text, why):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=f"not YAML .*{why}"):
        read_yaml(tmp_path / "config.yaml")


def test_a_home_folder_is_one_in_flags_and_files_alike(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config.yaml").write_text("out: ~/data\nteacher: ~/teacher\n")
    printed = yaml.safe_load(cli("generate", tmp_path / "config.yaml", "--compass", "~/compass", "--print-config").stdout)
    assert [printed[name] for name in ("out", "teacher", "compass")] == [
        str(tmp_path / name) for name in ("data", "teacher", "compass")]
    (tmp_path / "config.yaml").write_text("tokenizer: ~/words\n")
    printed = yaml.safe_load(cli("pretrain", tmp_path / "config.yaml", "--out", "x", "--print-config").stdout)
    assert printed["tokenizer"] == str(tmp_path / "words")


def test_a_vocabulary_is_given_or_trained_but_not_both(cli, tmp_path):
    assert_refused(cli("pretrain", "--out", tmp_path / "x", "--tokenizer", "words", "--set", "vocab_size=500"), "vocab_size")


@pytest.mark.parametrize("value", [".inf", ".nan", "1e10"])
def test_numbers_that_json_does_not_have_are_refused(cli, value):
    """Infinity would be written as null in the manifest, and the dataset's own identity would not open it again."""
    assert_refused(cli("generate", "--out", "OUT", "--set", f"shaping.beta={value}"), "shaping.beta")
