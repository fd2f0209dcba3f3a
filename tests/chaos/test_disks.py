"""A full disk, a quota, and a disk that can't be written to: one line, nothing that was finished is lost, and with room it goes on."""

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.chaos.test_signals import TINY, write_checkpoint
from tests.support import TinyModels, assert_refused, copy_dataset, make_dataset, tiny_config, tree, write_corpus
from tests.warm import End, Job, Warm, command, warm
from tsdfm.pipeline.dataset.verify import verify

MODULES = ("tsdfm.jobs.cli", "tsdfm.jobs.start", "tsdfm.jobs.distill.run", "tsdfm.jobs.ablate.run", "tsdfm.jobs.demo.run", "tsdfm.jobs.evaluate.command", "tsdfm.pipeline.training.fit_compass",
           "tsdfm.pipeline.training.pretrain", "tsdfm.pipeline.models.foreign.importer", "tests.chaos.test_disks")
CHANGES = {"trajectories": 12, "shard_size": 2, "rollout": {"steps": 8, "batch_size": 2}}
WORK = ("update", "sampling", "making shards", "rolling out")  # words of progress that cost something


@pytest.fixture(scope="module")
def mother() -> Iterator[Warm]:
    with warm(*MODULES) as running:
        yield running


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tiny_models) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    copy_dataset(root / "data", tiny_models)
    write_corpus(root / "corpus.txt", 400)
    write_checkpoint(root / "hub", tiny_models)
    (root / "sweep.yaml").write_text(yaml.safe_dump({
        "name": "small", "base": {"init": str(tiny_models.mask), "optim": {"steps": 2}}, "factors": {"data.arm": ["shaped", "blind"]},
        "evaluate": {"steps": [2], "samples": 4, "evaluator": [str(tiny_models.ar)], "corpus": {"path": str(root / "corpus.txt")}}}))
    return root


def mount(folder: Path, options: str) -> None:
    """A disk of our own, or a new setting of it; skips where that is not allowed."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small tmpfs needs root")


@pytest.fixture
def small(tmp_path) -> Iterator[Path]:
    """A disk of 16 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount(folder, "size=16k")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def generate(out: str, models: TinyModels, limit: int | None) -> None:
    """The command, with its maker in this process; no file may be larger than `limit` bytes."""
    import torch

    import tsdfm.jobs.generate.run as run
    from tsdfm.pipeline.flow.generate import InThisProcess

    run._OnRay = lambda *_: InThisProcess(torch.device("cpu"))  # type: ignore[assignment,misc]
    config = Path(out).parent / "config.yaml" if limit else Path(out).parents[1] / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_config(out, models) | CHANGES))
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    command("generate", str(config))


def assert_one_line(end: End, *words: str, codes: tuple[int, ...] = (1,)) -> None:
    # A thread of a library may die of it, too, the writer of a log, and is told when it does.
    lines = [line for line in end.stderr.strip().splitlines() if not line.startswith("Warning: in the background: ")]
    assert end.code in codes, end
    assert "Traceback" not in end.stderr
    assert sum(line.startswith("Error: ") for line in lines) == 1, end.stderr
    assert lines[-1].startswith("Error: "), end.stderr
    assert "defect" not in lines[-1], lines[-1]
    for word in words:
        assert word in lines[-1], lines[-1]


@pytest.mark.slow
def test_a_dataset_on_a_disk_that_is_full_again_and_again(small, mother, tmp_path, tiny_models):
    make_dataset(tmp_path / "whole", tiny_models, **CHANGES)
    out, full, kept = small / "out", 0, 0
    for size in range(16, 400, 16):
        mount(small, f"remount,size={size}k")
        end = mother.run(Job(generate, (str(out), tiny_models, None)))
        if end.code == 0:
            break
        full += 1
        assert_one_line(end, "disk is full", "same command to resume")
        assert not list(out.rglob(".*.tmp"))
        there = len(list(out.glob("data/*")))
        assert there >= kept  # more room, more of it
        kept = there
    assert full >= 4
    assert tree(out) == tree(tmp_path / "whole")
    assert not verify(str(out))[1]


@pytest.mark.slow
def test_a_dataset_under_a_quota(mother, tmp_path, tiny_models):
    """No file may be larger than so many bytes: what a quota does where nobody may mount a disk."""
    make_dataset(tmp_path / "whole", tiny_models, **CHANGES)
    largest = max(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file())
    for limit in (700, 2000, largest // 2, largest - 1):
        end = mother.run(Job(generate, (str(tmp_path / "out"), tiny_models, limit)))
        assert_one_line(end, "resume")
    assert mother.run(Job(generate, (str(tmp_path / "out"), tiny_models, 1 << 30))).code == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def writers(root: Path, models: TinyModels, out: Path) -> dict[str, list[object]]:
    """Every command that writes, on inputs that are right."""
    data, corpus, mask = root / "data", root / "corpus.txt", models.mask
    few = [*TINY, "--updates", 4, "--set", "optim.batch_size=2", "--set", "optim.threads=1"]
    return {
        "generate": ["generate", "--teacher", mask, "--compass", models.ar, "--trajectories", 2, "--out", out],
        "pretrain": ["pretrain", "--corpus", corpus, "--tokenizer", mask, *few, "--out", out],
        "fit-compass": ["fit-compass", "--corpus", corpus, "--teacher", mask, *few[len(TINY):], "--out", out],
        "evaluate": ["evaluate", "--model", mask, "--evaluator", models.ar, "--corpus", corpus, "-n", 4, "--steps", 2, "--out", out],
        "import-teacher": ["import-teacher", root / "hub" / "model.safetensors", "--heads", 2, "--layout", "mdlm", "--out", out],
        "inspect": ["inspect", data, "--html", f"{out}.html"],
        "distill": ["distill", "--data", data, "--init", mask, "--budgets", "1,4", "--updates", 2, "--out", out],
        "ablate": ["ablate", root / "sweep.yaml", "--data", data, "--out", out],
        "demo": ["demo", "--trajectories", 4, "--updates", 1, "-n", 4, "--out", out],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain", "fit-compass", "distill", "evaluate", "import-teacher", "inspect"])
def test_a_command_on_a_full_disk(name, small, mother, inputs, tiny_models):
    """The disk takes 4 kB more, then nothing; with room the same command is done."""
    words = tuple(map(str, writers(inputs, tiny_models, small / "out")[name]))
    (small / "filled").write_bytes(bytes(12 << 10))
    end = mother.run(Job(command, words))
    assert_one_line(end, codes=(1, 2))
    assert not list(small.rglob("*.tmp")), list(small.rglob("*"))
    mount(small, "remount,size=64m")
    end = mother.run(Job(command, words))
    assert end.code == 0, end.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["generate", "pretrain", "fit-compass", "evaluate", "import-teacher", "inspect", "distill", "ablate", "demo"])
def test_an_out_that_cannot_be_written_is_refused_before_anything_expensive(name, small, mother, inputs, tiny_models):
    words = tuple(map(str, writers(inputs, tiny_models, small / "out")[name]))
    mount(small, "remount,ro")
    assert os.statvfs(small).f_flag & os.ST_RDONLY
    end = mother.run(Job(command, words))
    assert_one_line(end, str(small), codes=(1, 2))
    assert not any(word in end.stderr for word in WORK), end.stderr
    assert end.seconds < 20


def test_no_space_is_told_by_every_command(cli, monkeypatch, tmp_path, tiny_models):
    """Whatever raises it, and wherever: here the writing of a model, and the reading of its weights."""
    import tsdfm.pipeline.models.folder as folder
    import tsdfm.pipeline.models.foreign.importer as importer

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "out"))

    def gone(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "weights")

    write_checkpoint(tmp_path / "hub", tiny_models)
    words = ("import-teacher", tmp_path / "hub" / "model.safetensors", "--heads", 2, "--layout", "mdlm", "--out", tmp_path / "out")
    monkeypatch.setattr(folder, "save_safetensors", full)
    assert_refused(cli(*words), str(tmp_path / "out"), "disk is full", code=1)
    monkeypatch.setattr(importer, "read_weights", gone)
    assert_refused(cli(*words), "weights: Input/output error", "the same command goes on", code=1)
