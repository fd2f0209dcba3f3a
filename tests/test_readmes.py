"""Every README's commands parse into their configs, its YAML blocks are configs, its Python blocks run, its make targets exist."""

import contextlib
import re
import shlex
import shutil
import socket
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from tests.support import copy_dataset
from tsdfm.jobs.cli import cli
from tsdfm.jobs.schema import CONFIGS
from tsdfm.jobs.shell.options import put
from tsdfm.schemas.ablate import Sweep, TrialConfig
from tsdfm.schemas.base import Frozen, InputError, parse
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.trajectory import WHOLE_SCHEMA

ROOT = Path(__file__).parents[1]
FOLDERS = [".", "schemas", "jobs", "pipeline", "kernels", "tests", "tests/benchmarks", "docker"]
READMES = {folder: (ROOT / folder / "README.md").read_text() for folder in FOLDERS if (ROOT / folder / "README.md").is_file()}
PROGRAM = "tsdfm-pipeline"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def named(block: str) -> str | None:
    """The file that a YAML block's first comment names: '# config.yaml: ...'."""
    found = re.search(r"\A(?:#.*\n)*?# ([\w.-]+\.yaml)\b", block)
    return found[1] if found else None


def commands(text: str) -> list[list[str]]:
    """The arguments of every line of an sh block that starts with the program; comments, pipes and redirections are cut off."""
    found = []
    for block in blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith(f"{PROGRAM} "):
                words = shlex.shlex(line, posix=True, punctuation_chars=True)
                words.whitespace_split = True
                _, *arguments = words
                operator = next((i for i, word in enumerate(arguments) if set(word) <= set("|&;<>()")), len(arguments))
                found.append(arguments[:operator])
    return found


def kinds(data: object) -> list[type[Frozen]]:
    """The configs that a mapping is one of."""
    found = []
    for model in CONFIGS.values():
        try:
            parse(model, data, "README")
        except InputError:
            continue
        found.append(model)
    return found


COMMANDS = [pytest.param(folder, arguments, id=f"{folder}: {' '.join(arguments)}") for folder, text in READMES.items() for arguments in commands(text)]
YAML = [pytest.param(block, id=f"{folder}: {named(block) or number}") for folder, text in READMES.items() for number, block in enumerate(blocks(text, "yaml"))]
WITH_PYTHON = [folder for folder, text in READMES.items() if blocks(text, "python")]


def test_there_is_something_to_test():
    assert len(COMMANDS) > 8
    assert len(YAML) > 2
    assert WITH_PYTHON


@pytest.mark.parametrize(("folder", "arguments"), COMMANDS)
def test_commands_parse_into_their_configs(folder, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = {named(block): block for block in blocks(READMES[folder], "yaml")}
    for word in arguments:  # the README's own block, or a file of this repository
        if word.endswith(".yaml"):
            file = tmp_path / word
            file.parent.mkdir(parents=True, exist_ok=True)
            if word in own:
                file.write_text(own[word])
            else:
                assert (ROOT / word).is_file(), f"{word} is neither a block of this README nor a file of the repository"
                shutil.copy(ROOT / word, file)
    name = arguments[0]
    if name in CONFIGS:
        outcome = CliRunner().invoke(cli, [*arguments, "--print-config"])
        assert outcome.exception is None, outcome.exception
        parse(CONFIGS[name], yaml.safe_load(outcome.stdout), "printed")
        return
    command = cli if name.startswith("-") else cli.get_command(click.Context(cli), name)
    assert command is not None, f"no command {name}"
    with contextlib.suppress(click.exceptions.Exit):  # --help, --version; wrong usage raises another
        command.make_context(name, arguments if command is cli else arguments[1:])


@pytest.mark.parametrize("block", YAML)
def test_yaml_blocks_are_configs(block):
    data = yaml.safe_load(block)
    found = kinds(data)
    assert found, f"no config: {block}"
    if Sweep in found:
        for field, levels in parse(Sweep, data, "README").factors.items():  # every level is one that distill takes
            for level in levels:
                trial: dict[str, object] = {}
                put(trial, field, level, "README")
                parse(TrialConfig, trial, "README")


def test_the_command_line_shows_the_three_configs():
    generate, distill, sweep = map(yaml.safe_load, blocks(READMES["jobs"], "yaml"))
    assert parse(GenerateConfig, generate, "README").arm == "both"
    assert parse(DistillConfig, distill, "README").data.weights == [3, 1]
    assert parse(Sweep, sweep, "README").factors


@pytest.mark.timeout(180)
@pytest.mark.parametrize("folder", WITH_PYTHON)
def test_python_blocks_run(folder, tmp_path, tiny_models, monkeypatch):
    """One after another, in one namespace, in a folder that holds nothing but a dataset OUT; no network."""
    copy_dataset(tmp_path / "OUT", tiny_models)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("MPLBACKEND", "agg")

    def refused(*arguments):
        raise AssertionError(f"{folder}/README.md: a block asks for the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    names: dict[str, Any] = {}
    for block in blocks(READMES[folder], "python"):
        exec(compile(block, f"{folder}/README.md", "exec"), names)
        if "state[position] = token" in block:
            assert names["state"] == names["row"]["tokens"]


@pytest.mark.parametrize("folder", READMES)
def test_make_targets_and_scripts_exist(folder):
    text, makefile = READMES[folder], (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    lines = [line.strip() for line in "\n".join(blocks(text, "sh")).splitlines()] + re.findall(r"`([^`\n]+)`", text)
    assert {found[1] for line in lines if (found := re.match(r"make ([a-z-]+)", line))} <= targets
    scripts = {found[1] for line in lines if (found := re.match(r"(?:\.venv/bin/)?(?:python|pytest) (?:-m pytest )?([\w/.-]+\.py)", line))}
    assert not [script for script in scripts if not (ROOT / script).is_file()]


def test_every_column_is_documented_with_its_type():
    lines = READMES["schemas"].splitlines()
    names = {"halffloat": "float16", "float": "float32"}
    for field in WHOLE_SCHEMA:
        kind = re.sub(r"halffloat|float", lambda found: names[found[0]], re.sub(r"\w+: ", "", str(field.type)))  # list<item: float> -> list<float32>
        assert any(line.startswith(f"| `{field.name}` | `{kind}`") for line in lines), (field.name, kind)
