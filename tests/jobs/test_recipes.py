"""The recipes that ship: each is a sound config, its models have the size that it names, and every stage runs at its real shapes."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.commands import running
from tests.support import assert_refused
from tsdfm.jobs.cli import COMMANDS
from tsdfm.jobs.schema import CONFIGS
from tsdfm.jobs.shell.options import recipes
from tsdfm.pipeline.models.causal import CausalLM
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import load
from tsdfm.schemas.model import CausalConfig, DenoiserConfig

SHIPPED = recipes()
COMMAND = {"teacher-mask": "pretrain", "teacher-uniform": "pretrain", "compass": "fit-compass", "generate": "generate", "distill": "distill", "evaluate": "evaluate"}
GPT2 = 50_257


def of(name: str) -> dict:
    data: dict = yaml.safe_load(SHIPPED[f"170m/{name}"].read_text())
    return data


@pytest.mark.parametrize("name", COMMAND)
def test_a_recipe_is_given_by_name(cli, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    printed = cli(COMMAND[name], f"170m/{name}", "--print-config")
    assert (printed.code, printed.stderr) == (0, "")
    config = CONFIGS[COMMAND[name]].model_validate(of(name))
    assert CONFIGS[COMMAND[name]].model_validate(yaml.safe_load(printed.stdout)) == config
    assert f"tsdfm-pipeline {COMMAND[name]} 170m/{name}" in SHIPPED[f"170m/{name}"].read_text(), "its own head tells how to run it"


def test_every_recipe_is_tested_listed_and_printed(cli):
    assert {name.removeprefix("170m/") for name in SHIPPED if "/" in name} == COMMAND.keys()
    listed = cli("recipe").stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(SHIPPED)
    for name, path in SHIPPED.items():
        assert cli("recipe", name).stdout == path.read_text()
    assert_refused(cli("recipe", "170m/teacher"), "170m/teacher: no such recipe", "170m/teacher-mask")
    assert_refused(cli("generate", "170m/generation"), "170m/generation: no such config file", "tsdfm-pipeline recipe")


def test_a_file_of_the_same_name_goes_first(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "170m").mkdir()
    (tmp_path / "170m" / "generate").write_text("trajectories: 3\n")
    assert yaml.safe_load(cli("generate", "170m/generate", "--print-config").stdout)["trajectories"] == 3


@pytest.mark.parametrize(("name", "low", "high"), [("teacher-mask", 168, 171), ("teacher-uniform", 168, 171), ("compass", 44, 46)])
def test_models_are_as_large_as_is_said(name, low, high):
    recipe = of(name)
    with torch.device("meta"):
        if name == "compass":
            network: torch.nn.Module = CausalLM(CausalConfig(**recipe["shape"], vocab_size=GPT2, length=1024))
        else:
            mask = recipe["source"] == "mask"
            network = Denoiser(DenoiserConfig(**recipe["shape"], vocab_size=GPT2 + mask, length=recipe["length"], cond_dim=recipe["cond_dim"],
                                              source=recipe["source"], mask_id=GPT2 if mask else None))
    assert low < sum(parameter.numel() for parameter in network.parameters()) / 1e6 < high


@pytest.mark.parametrize("name", [name for name in SHIPPED if name.endswith(".sh")])
def test_scripts_are_sound_and_call_commands_with_recipes_that_exist(name):
    assert subprocess.run(["bash", "-n", SHIPPED[name]], check=False).returncode == 0
    commands = {command for group in COMMANDS.values() for command in group}
    for line in SHIPPED[name].read_text().splitlines():
        words = line.split("#")[0].split()
        if words and words[0] == "tsdfm-pipeline":
            assert words[1] in commands
            assert "$size/" not in words[2] or words[2].strip('"').replace("$size", "170m") in SHIPPED


def test_the_chain_runs_every_command_and_stops_at_a_fault(tmp_path):
    """With a stand-in for the commands that notes how it is called, and fails at the fourth."""
    (tmp_path / "bin").mkdir()
    stand_in = tmp_path / "bin" / "tsdfm-pipeline"
    stand_in.write_text('#!/bin/bash\necho "$PWD $*" >> "$NOTES"\n[ $(wc -l < "$NOTES") -lt "$FAILS" ]\n')
    stand_in.chmod(0o755)
    (tmp_path / "work").mkdir()
    for fails, code in ((4, 1), (99, 0)):
        notes = tmp_path / f"notes-{fails}"
        environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "NOTES": str(notes), "FAILS": str(fails), "ADDRESS": "head:6379", "WORKERS": "16"}
        done = subprocess.run(["bash", SHIPPED["chain.sh"], tmp_path / "work"], env=environment, check=False)
        assert done.returncode == code
        called = [line.split()[1] for line in notes.read_text().splitlines()]
        assert called == ["pretrain", "fit-compass", "generate", "verify", "distill", "evaluate"][: min(fails, 6)]
        assert all(line.startswith(f"{tmp_path / 'work'} ") for line in notes.read_text().splitlines())
    assert "--workers 16 --address head:6379" in notes.read_text()


@pytest.mark.parametrize("stopped", [False, True])
def test_slurm_starts_a_cluster_runs_the_chain_and_passes_its_signal_on(tmp_path, stopped):
    """With stand-ins for Slurm and Ray: srun notes its arguments, the head listens, and the chain notes what it is told."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stand_ins = {
        "scontrol": "echo localhost; echo second",
        "srun": f'echo "$*" >> "$NOTES"; [[ "$*" != *--head* ]] || exec {sys.executable} -c "\nimport socket, time\n'
                f'listening = socket.create_server((\'127.0.0.1\', {port}))\ntime.sleep(60)"',
    }
    (tmp_path / "bin").mkdir()
    for name, text in stand_ins.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "chain.sh").write_text(
        "trap 'echo stopped >> \"$NOTES\"; exit 7' TERM\n"
        'echo "chain $1 $ADDRESS $WORKERS ${#RAY_AUTH_TOKEN}" >> "$NOTES"\n' + ("sleep 30 & wait\n" if stopped else ""))
    script = tmp_path / "slurm.sh"
    script.write_text(SHIPPED["slurm.sh"].read_text().replace("port=6379", f"port={port}"))
    notes = tmp_path / "notes"
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "NOTES": str(notes), "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "x",
                   "SLURM_CPUS_PER_TASK": "32", "SLURM_GPUS_ON_NODE": "8"}
    job = subprocess.Popen(["bash", script], env=environment, start_new_session=True)
    try:
        if stopped:
            assert wait_for(lambda: notes.exists() and "chain " in notes.read_text())
            job.send_signal(signal.SIGTERM)
        assert job.wait(60) == (7 if stopped else 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    told = notes.read_text().splitlines()
    assert any("-w localhost ray start --head" in line and "--num-cpus 32 --num-gpus 8" in line for line in told)
    assert any(f"--exclude=localhost ray start --address=localhost:{port}" in line for line in told)
    assert f"chain {tmp_path} localhost:{port} 16 64" in told
    assert ("stopped" in told) is stopped


def wait_for(happened: Callable[[], bool], seconds: float = 30) -> bool:
    until = time.monotonic() + seconds
    while not happened() and time.monotonic() < until:
        time.sleep(0.05)
    return happened()


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.timeout(1500)
def test_every_stage_runs_at_its_real_shapes(tmp_path, head):
    """One update, one shard, one text, two blocks, which are all alike: all else (widths, length, vocabulary) as the recipes say."""
    words = {f"w{i}": i for i in range(GPT2 - 1)} | {"<|endoftext|>": GPT2 - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    (tmp_path / "gpt2").mkdir()
    tokenizer.save(str(tmp_path / "gpt2" / "tokenizer.json"))
    texts = [" ".join(f"w{(97 * i + 13 * j * j) % (GPT2 - 1)}" for j in range(400)) for i in range(400)]
    (tmp_path / "texts.txt").write_text("\n\n".join(texts))

    def run(command: str, name: str, *more: object) -> None:
        with running(command, f"170m/{name}", *more, cwd=tmp_path) as process:
            _, stderr = process.communicate(timeout=900)
        assert process.returncode == 0, stderr[-2000:]

    here = ["--dtype", "float32", "--no-compile"]  # bfloat16 takes hours on a CPU
    once = ["--n-blocks", 2, "--corpus", "texts.txt", "--updates", 1, "--batch-size", 1, "--half", "--set", "compile=false", "--set", "optim.warmup=0"]
    run("pretrain", "teacher-mask", "--out", "teacher-mask", *once)
    run("fit-compass", "compass", "--out", "compass", *once)
    run("generate", "generate", "--trajectories", 1, "--steps", 2, "--candidates", 2, "--workers", 1, "--address", head.address, *here)
    run("distill", "distill", "--out", "student", "--updates", 1, "--batch-size", 1, "--budgets", "1,2", "--set", "compile=false", "--set", "optim.warmup=0")
    run("evaluate", "evaluate", "--corpus", "texts.txt", "--model", "student", "--evaluator", "compass", "--steps", 1, "-n", 2, "--set", "temperatures=[1.0]", *here)
    student = load(tmp_path / "student").network.config
    assert isinstance(student, DenoiserConfig)
    assert (student.hidden_size, student.n_blocks, student.length, student.vocab_size) == (768, 2, 1024, GPT2 + 1)
