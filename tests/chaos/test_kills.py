"""SIGKILL at any moment of making a dataset: the same call goes on, and ends in the same bytes as if nothing had happened.

A run is killed just before the n-th time that it touches a file in one of four stages, or after a random time. The operations are
seen by an audit hook of Python, not by anything that the program offers.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support import TinyModels, make_dataset, tiny_config, tree
from tests.warm import End, Job, Warm, warm
from tsdfm.pipeline.dataset.verify import verify
from tsdfm.pipeline.flow.generate import InThisProcess, generate_dataset
from tsdfm.schemas.generate import GenerateConfig

KILLS, PER_DATASET = 100, 5
CHANGES = {"trajectories": 6, "shard_size": 2, "rollout": {"steps": 6, "batch_size": 2}, "shaping": {"candidates": 2}}
STAGES = ("claim", "keep", "make", "commit", "any time")
WRITING = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}


def stage_of(event: str, path: str, writing: bool) -> str | None:
    """In which stage an operation on a path below OUT ('' for OUT itself) belongs; None: in none."""
    name = path.rpartition("/")[2].removeprefix(".").partition(".")[0]
    if path.startswith(("data", ".receipts")):
        if not writing:
            return "keep"
        return "commit" if path.startswith(".receipts") and event in ("os.remove", "os.rmdir") else "make"
    if name in ("README", "manifest", "tokenizer"):
        return "commit" if writing else "keep"
    return "commit" if name == "run" and event == "os.remove" else "claim"


def generate_until(out: str, models: TinyModels, stage: str, nth: int) -> None:
    """Make, or go on making, a dataset, and die before the `nth` operation of a stage."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event != "open" and event not in WRITING:
            return
        path = arguments[1] if event == "os.rename" else arguments[0]
        if not isinstance(path, str | Path) or not str(path).startswith(out):
            return
        writing = event != "open" or bool(isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if stage_of(event, str(path)[len(out):].strip("/"), writing) == stage:
            seen += 1
            if seen == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    config = GenerateConfig.model_validate(tiny_config(out, models) | CHANGES)
    generate_dataset(config, maker=InThisProcess(torch.device("cpu")))


@pytest.fixture(scope="module")
def mother() -> Iterator[Warm]:
    with warm("tests.chaos.test_kills", "datasets") as running:
        yield running


def killed(mother: Warm, out: Path, models: TinyModels, rng: random.Random) -> tuple[str, End]:
    """Go on with a dataset, and be killed somewhere, if it lasts so long. Returns (where, how it ended)."""
    stage = rng.choice(STAGES)
    nth = rng.choice([1, 2, 3, rng.randrange(1, 8), rng.randrange(1, 20)])
    after = rng.uniform(0.0, 0.4)
    signals = ((after, signal.SIGKILL),) if stage == "any time" else ()
    end = mother.run(Job(generate_until, (str(out), models, stage, nth), signals))
    return f"{stage}, {f'{after:.3f} s' if signals else nth}", end


@pytest.mark.parametrize("kills", [4, pytest.param(KILLS, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_to_the_same_bytes(kills, mother, tmp_path, tiny_models):
    make_dataset(tmp_path / "whole", tiny_models, **CHANGES)
    wanted = tree(tmp_path / "whole")
    rng, done, number, stages = random.Random(kills), 0, 0, set()
    started = time.monotonic()
    while done < kills:
        number += 1
        out, told, here = tmp_path / f"out{number}", list[str](), 0
        while here < PER_DATASET and done + here < kills and len(told) < 3 * PER_DATASET:
            there = (out / "manifest.json").exists()
            where, end = killed(mother, out, tiny_models, rng)
            told.append(f"{where}: {end.code}")
            assert end.code in (0, -signal.SIGKILL), (told, end.stderr)
            if end.code:
                here += 1
                stages.add(where.partition(",")[0])
            if there:  # what is finished stays finished, whatever happens to a run that looks at it again
                assert not verify(str(out))[1], told
        done += here
        end = mother.run(Job(generate_until, (str(out), tiny_models, "none", 0)))
        assert end.code == 0, (told, end.stderr)
        assert tree(out) == wanted, told
    assert kills < KILLS or stages == set(STAGES)
    print(f"{done} kills over {number} datasets, {time.monotonic() - started:.0f} s")
