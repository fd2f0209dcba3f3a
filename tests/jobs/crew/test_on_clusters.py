"""`evaluate`, `ablate` and a training on real clusters: what comes out is that of one machine, and a lost head is one line."""

import signal
import time

import psutil
import pytest
import yaml

from tests.jobs.generate.test_clusters import cluster
from tests.jobs.generate.test_run import running, wait_for
from tests.support import make_dataset, write_corpus
from tsdfm.schemas.base import parse_json
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


def test_a_sweep_on_two_nodes_ends_in_the_same_table(tmp_path, tiny_models):
    make_dataset(tmp_path / "data", tiny_models)
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
    with running(*command, "--out", tmp_path / "here", "--workers", "1") as process:
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    for name in ("table.csv", "table.md", "effects.csv"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name


def test_a_training_whose_head_is_lost_ends_in_one_line(tmp_path, tiny_models):
    make_dataset(tmp_path / "data", tiny_models)
    command = ["distill", "--data", tmp_path / "data", "--out", tmp_path / "student", "--updates", "100000", "--batch-size", "4"]
    with cluster(2) as nodes, running(*command, "--address", nodes.address) as process:
        wait_for(lambda: any((tmp_path / "student.training").rglob("events*")))
        for each in psutil.Process().children(recursive=True):
            if each.name() in ("gcs_server", "raylet"):
                each.send_signal(signal.SIGKILL)
        lost = time.monotonic()
        _, stderr = process.communicate(timeout=200)
        assert time.monotonic() - lost < 60
    assert process.returncode == 1, stderr
    assert stderr.strip().splitlines()[-1].startswith("Error: ")
    assert "same command resumes" in stderr
    assert "Traceback" not in stderr
