"""`evaluate`, `ablate` and a training on real clusters: what comes out is that of one machine, and a lost head is one line."""

import contextlib
import os
import signal
import time
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.commands import named, running, wait_for
from tests.heads import Head
from tests.jobs.distill.test_run import step_of
from tests.jobs.generate.test_clusters import cluster, of_nodes
from tests.support import copy_dataset, present, write_corpus
from tsdfm.pipeline.training.distill import train_at
from tsdfm.pipeline.training.loop.data_parallel import Place
from tsdfm.schemas.base import parse_json
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.evaluate import Results

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def results(folder) -> list[dict[str, object]]:
    found = parse_json(Results, (folder / "results.json").read_bytes(), str(folder))
    return [row.model_dump(exclude={"seconds", "tokens_per_second"}) for row in [*found.rows, *found.reference]]


def test_rows_of_two_nodes_are_those_of_one_process(cli, tmp_path, tiny_models):
    write_corpus(tmp_path / "corpus.txt", 400)
    flags = ["evaluate", "--model", tiny_models.mask, "--steps", "1,4,8", "--evaluator", tiny_models.ar, "--number", "6", "--threads", "1",
             "--corpus", tmp_path / "corpus.txt"]
    assert cli(*flags, "--out", tmp_path / "here").code == 0
    with cluster(1) as nodes:
        nodes.add_node(num_cpus=1)
        with running(*flags, "--out", tmp_path / "there", "--address", nodes.address) as process:
            _, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert "3 sets of texts to make, 2 CPU workers" in stderr
    assert results(tmp_path / "there") == results(tmp_path / "here")


@pytest.mark.release
def test_a_sweep_on_two_nodes_ends_in_the_same_table(tmp_path, tiny_models, head):
    copy_dataset(tmp_path / "data", tiny_models)
    write_corpus(tmp_path / "corpus.txt", 400)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({
        "name": "tiny", "factors": {"data.arm": ["shaped", "blind"]},
        "base": {"budgets": {1: 1, 8: 1}, "optim": {"steps": 4, "batch_size": 4, "log_every": 1, "checkpoint_every": 2}},
        "evaluate": {"steps": [2, 4], "samples": 6, "evaluator": [str(tiny_models.ar)], "corpus": {"path": str(tmp_path / "corpus.txt")}}}))
    command = ["ablate", tmp_path / "sweep.yaml", "--data", tmp_path / "data"]
    with cluster(1) as nodes:
        nodes.add_node(num_cpus=1)
        with running(*command, "--out", tmp_path / "there", "--address", nodes.address) as process:
            _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    with running(*command, "--out", tmp_path / "here", "--workers", "1", "--address", head.address) as process:
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    for name in ("table.csv", "table.md", "effects.csv"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name


def test_a_training_whose_head_is_lost_ends_in_one_line(tmp_path, tiny_models):
    copy_dataset(tmp_path / "data", tiny_models)
    command = ["distill", "--data", tmp_path / "data", "--out", tmp_path / "student", "--updates", "100000", "--batch-size", "4"]
    with cluster(2) as nodes, running(*command, "--address", nodes.address) as process:
        wait_for(lambda: any((tmp_path / "student.training").rglob("events*")))
        for each in of_nodes(nodes, "gcs_server", "raylet"):
            each.send_signal(signal.SIGKILL)
        lost = time.monotonic()
        _, stderr = process.communicate(timeout=200)
        assert time.monotonic() - lost < 60
    assert process.returncode == 1, stderr
    assert stderr.strip().splitlines()[-1].startswith("Error: ")
    assert "same command resumes" in stderr
    assert "Traceback" not in stderr


# -- a node of a training is lost --------------------------------------------------------------------------

UPDATES = 200


def training(folder, data, workers: int) -> list[object]:
    """A training of some seconds; its checkpoints are frequent."""
    (folder / "student.yaml").write_text(yaml.safe_dump({
        "data": {"paths": [str(data)]}, "budgets": {1: 1.0, 8: 1.0}, "workers": workers,
        "optim": {"steps": UPDATES, "batch_size": 8, "lr": 1e-3, "warmup": 5, "log_every": 5, "checkpoint_every": 10}}))
    return ["distill", folder / "student.yaml"]


def undisturbed(folder, data, workers: int, head: Head | None = None) -> dict[str, torch.Tensor]:
    """The weights that come out where nothing is lost; without a cluster: of one process, this one."""
    command, out = training(folder, data, workers), folder / "undisturbed"
    if head is None:
        config = DistillConfig.model_validate(yaml.safe_load((folder / "student.yaml").read_text()))
        assert train_at(Place(0, 1, torch.device("cpu")), config, out, lambda *_: None)
    else:
        with running(*command, "--out", out, "--address", head.address) as process:
            _, stderr = process.communicate(timeout=200)
        assert process.returncode == 0, stderr
    return load_file(out / "model.safetensors")


def assert_same(out, reference: dict[str, torch.Tensor]) -> None:
    weights = load_file(out / "model.safetensors")
    assert weights.keys() == reference.keys()
    assert all(torch.equal(weights[name], value) for name, value in reference.items())


def node_of_a_training_process(nodes: list[Any]) -> Any:
    """The node, among these, on which a process trains."""
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes}
    for process in named("RayTrainWorker", os.getpid()):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.ppid() in raylets:
                return raylets[process.ppid()]
    raise AssertionError("no process trains on any of these nodes")


def test_a_training_that_loses_a_node_goes_on_where_there_is_room(tmp_path, tiny_models, head):
    """One of two processes, on a node each; a third node is there. (Of one process: see the next test.)"""
    copy_dataset(tmp_path / "data", tiny_models)
    workers = 2
    reference, out = undisturbed(tmp_path, tmp_path / "data", workers, head), tmp_path / "student"
    with cluster(0) as nodes:
        others = [nodes.add_node(num_cpus=1) for _ in range(workers + 1)]
        with running(*training(tmp_path, tmp_path / "data", workers), "--out", out, "--address", nodes.address) as process:
            wait_for(lambda: step_of(out) >= 10 or process.poll() is not None)
            lost = node_of_a_training_process(others)  # to look for it takes a while, in which the training goes on
            wait_for(lambda: step_of(out) >= 40 or process.poll() is not None)
            nodes.remove_node(lost, allow_graceful=False)
            assert step_of(out) < UPDATES
            _, stderr = process.communicate(timeout=250)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    assert_same(out, reference)


@pytest.mark.release
def test_a_training_that_loses_its_only_node_says_what_it_waits_for_and_goes_on_with_another(tmp_path, tiny_models):
    copy_dataset(tmp_path / "data", tiny_models)
    reference, out = undisturbed(tmp_path, tmp_path / "data", 1), tmp_path / "student"
    command = training(tmp_path, tmp_path / "data", 1)
    with cluster(0) as nodes:
        only = nodes.add_node(num_cpus=1)
        with running(*command, "--out", out, "--address", nodes.address) as process:
            wait_for(lambda: step_of(out) >= 40 or process.poll() is not None)
            nodes.remove_node(only, allow_graceful=False)
            said = ""
            while "waiting for 1 CPU: the cluster has 0" not in said:
                said = present(process.stderr).readline()
                assert said, process.poll()
            process.send_signal(signal.SIGTERM)
            told = time.monotonic()
            _, stderr = process.communicate(timeout=60)
            assert time.monotonic() - told < 15
        assert process.returncode == 130, stderr
        assert "resume with: tsdfm-pipeline distill" in stderr.strip().splitlines()[-1]
        with running(*command, "--out", out, "--address", nodes.address) as again:
            said = ""
            while "waiting for 1 CPU: the cluster has 0" not in said:
                said = present(again.stderr).readline()
                assert said, again.poll()
            nodes.add_node(num_cpus=1)
            _, stderr = again.communicate(timeout=250)
    assert again.returncode == 0, stderr
    assert "Traceback" not in stderr
    assert_same(out, reference)
