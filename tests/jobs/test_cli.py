"""The command line itself: help, version, JSON on standard output, people on standard error."""

import json
import subprocess
import sys
from importlib.metadata import version

import click
import pytest

from tests.support import assert_refused, copy_dataset, present
from tsdfm.jobs.cli import PLACES
from tsdfm.jobs.cli import cli as group
from tsdfm.jobs.shell.options import build
from tsdfm.schemas.base import InputError
from tsdfm.schemas.generate import GenerateConfig, RolloutConfig, ShapingConfig


def test_help_and_version(cli):
    for arguments in ([], ["--help"], *([name, "--help"] for name in PLACES)):
        outcome = cli(*arguments)
        assert outcome.code == 0
        assert "Usage: tsdfm-pipeline" in outcome.stdout
    assert version("tsdfm-pipeline") in cli("--version").stdout


def test_every_field_of_the_generate_config_is_a_flag():
    flags = {option for parameter in present(group.get_command(click.Context(group), "generate")).params for option in parameter.opts}
    fields = {*GenerateConfig.model_fields, *RolloutConfig.model_fields, *ShapingConfig.model_fields} - {"rollout", "shaping"}
    assert {f"--{field.replace('_', '-')}" for field in fields} <= flags


def test_flags_override_the_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("out: A\nrollout: {steps: 4, seed: 9}\n")
    config = build(GenerateConfig, file, {"out": None, "rollout.steps": 8, "shaping.tau": 0.5})
    assert (config.out, config.rollout.steps, config.rollout.seed, config.shaping.tau) == ("A", 8, 9, 0.5)
    file.write_text("rollout: 3\n")
    with pytest.raises(InputError, match="rollout: expected a mapping"):
        build(GenerateConfig, file, {"rollout.steps": 8})


def test_json_goes_to_standard_output_alone(cli, tmp_path, tiny_models):
    copy_dataset(tmp_path / "out", tiny_models)
    for arguments in (["verify", tmp_path / "out"], ["inspect", tmp_path / "out"]):
        outcome = cli(*arguments, "--json")
        assert outcome.code == 0, outcome.stderr
        assert isinstance(json.loads(outcome.stdout), dict)
        assert outcome.stderr
        assert cli(*arguments).stdout.strip()
        assert "{" not in cli(*arguments).stdout


def test_a_defect_is_one_line_too(cli, monkeypatch, tmp_path, tiny_models):
    import tsdfm.pipeline.dataset.verify as verify

    copy_dataset(tmp_path / "out", tiny_models)

    def broken(store):
        raise ZeroDivisionError("boom\nboom")

    monkeypatch.setattr(verify, "read_manifest", broken)
    outcome = cli("verify", tmp_path / "out")
    assert outcome.code == 1
    assert outcome.stderr.splitlines()[-1].startswith("Error: unexpected ZeroDivisionError: boom;")
    monkeypatch.setenv("TSDFM_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        cli("verify", tmp_path / "out")


def test_one_opener_of_models_for_every_command(cli, tmp_path, tiny_models):
    copy_dataset(tmp_path / "out", tiny_models)
    assert cli("sample", "--model", "embedded:uniform", "--steps", 2, "-n", 1).code == 0
    for arguments in (["sample", "--model"], ["evaluate", "--model"], ["generate", "--out", tmp_path / "o", "--teacher"],
                      ["fit-compass", "--out", tmp_path / "c", "--teacher"], ["distill", "--data", tmp_path / "out", "--out", tmp_path / "s", "--init"]):
        assert_refused(cli(*arguments, "embedded:gaussian"), "embedded:gaussian", "no such embedded model")
        assert_refused(cli(*arguments, "/nowhere/model"), "/nowhere/model", "no such model folder")
    assert_refused(cli("generate", "--teacher", "embedded:uniform", "--source", "mask", "--out", tmp_path / "o"), "uniform", "mask")


def test_one_opener_of_datasets_for_every_command(cli, hub):
    """hf:// names are pinned and read for all of them; here nobody has published anything."""
    for arguments in (["verify"], ["inspect"], ["publish", "--repo", "team/copy"], ["distill", "--out", "s", "--data"]):
        assert_refused(cli(*arguments, "hf://datasets/team/nothing"), "hf://datasets/team/nothing", "no such repository")


@pytest.mark.parametrize(("line", "words"), [
    ("verfy OUT", ("verfy", "'verify'")), ("zzz", ("zzz", "`tsdfm-pipeline --help`")), ("verify", ("OUT", "`tsdfm-pipeline verify --help`")),
    ("verify --data OUT", ("--data", "`tsdfm-pipeline verify --help`")), ("generate --cloks spaced", ("--cloks", "'--clocks'")),
    ("generate --steps x", ("--steps", "'x'", "integer"))])
def test_a_wrong_command_line_is_told_with_where_to_read_on(cli, line, words):
    outcome = cli(*line.split())
    assert outcome.code == 2
    assert len(outcome.stderr.strip().splitlines()) == 1
    for word in words:
        assert word in outcome.stderr


def test_python_m_runs_it():
    done = subprocess.run([sys.executable, "-m", "tsdfm.jobs", "--version"], capture_output=True, text=True, check=True)
    assert version("tsdfm-pipeline") in done.stdout


def test_samples_are_a_function_of_the_seed(cli, tiny_models):
    one, same, other = (cli("sample", "--model", tiny_models.mask, "--steps", 4, "-n", 3, "--seed", s, "--json").stdout for s in (1, 1, 2))
    assert one == same != other
    assert len(json.loads(one)["texts"]) == 3


def test_samples_in_bfloat16_are_others_and_slow_on_a_cpu(cli, tiny_models):
    arguments = ["sample", "--model", tiny_models.uniform, "--steps", 4, "-n", 8, "--json"]
    wide, narrow = cli(*arguments), cli(*arguments, "--dtype", "bfloat16")
    assert wide.code == narrow.code == 0
    assert wide.stdout != narrow.stdout
    assert narrow.stderr.strip() == "dtype: bfloat16 is for GPUs; on a CPU it works, and can be hundreds of times slower than float32"
    assert wide.stderr == ""


def test_nothing_is_begun_where_nothing_can_be_compiled(cli, tiny_models, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/compiler")
    assert_refused(cli("sample", "--model", tiny_models.mask, "--compile"), "/nowhere/compiler", "leave out --compile")
    assert_refused(cli("evaluate", "--model", tiny_models.mask, "--compile"), "/nowhere/compiler", "leave out --compile")
    assert_refused(cli("generate", "--teacher", tiny_models.mask, "--compass", "none", "--arm", "blind", "--out", tmp_path / "out",
                       "--compile"), "/nowhere/compiler", "leave out --compile")
    assert not (tmp_path / "out").exists()
