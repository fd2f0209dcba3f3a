"""The README's examples run, and its commands use options that exist."""

import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tests.support import make_dataset, present
from tsdfm.jobs.cli import cli
from tsdfm.jobs.shell.options import put
from tsdfm.schemas.ablate import Sweep, TrialConfig
from tsdfm.schemas.base import parse
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.generate import GenerateConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_examples_run(number, tmp_path, tiny_models, monkeypatch):
    make_dataset(tmp_path / "OUT", tiny_models)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    names: dict[str, Any] = {}
    exec(blocks("python")[number], names)
    if "state" in names:
        assert names["state"] == names["row"]["tokens"]


def test_the_yaml_examples_are_configs():
    generate, distill, sweep = blocks("yaml")
    assert parse(GenerateConfig, yaml.safe_load(generate), "README").arm == "both"
    assert parse(DistillConfig, yaml.safe_load(distill), "README").data.weights == [3, 1]
    parsed = parse(Sweep, yaml.safe_load(sweep), "README")
    for field, levels in parsed.factors.items():  # every level is one that distill takes
        for level in levels:
            data: dict[str, object] = {}
            put(data, field, level, "README")
            parse(TrialConfig, data, "README")


def test_commands_use_options_that_exist():
    lines = [line.split("#")[0] for block in blocks("sh") for line in block.splitlines() if line.startswith("tsdfm-pipeline")]
    assert len(lines) > 8
    for line in lines:
        _, command, *arguments = line.split()
        options = {option for parameter in present(cli.get_command(click.Context(cli), command)).params for option in parameter.opts}
        assert {a for a in arguments if a.startswith("-")} <= options, line


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z]+)", README)) <= targets


def test_every_column_is_documented():
    from tsdfm.schemas.trajectory import ARROW_SCHEMA

    for name in ARROW_SCHEMA.names:
        assert f"`{name}`" in README
