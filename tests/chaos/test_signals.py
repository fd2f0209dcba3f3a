"""SIGTERM, SIGINT or SIGHUP in every command at any time: within ten seconds it says how to go on, and it ends with 130, without a traceback."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.loopback_hub import TOKEN, LoopbackHub, environment
from tests.support import TinyModels, copy_dataset, make_dataset, write_corpus
from tests.warm import CRASHED, End, Job, Warm, command, warm

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SECONDS = 20.0  # in which a command says how to go on, whatever it imports just then on a busy machine; most have ended by then
IN_HAND_SECONDS = 90.0  # of one that at once says how to go on, and then finishes what it has in hand: a checkpoint, a shard
IN_HAND = "interrupt again to stop at once; resume with: tsdfm-pipeline"
HOW_TO_GO_ON = ("resume with: tsdfm-pipeline", "the same command goes on")
TINY = ["--length", "8", "--set", "shape={hidden_size: 16, n_blocks: 1, n_heads: 1}", "--set", "cond_dim=8"]
ENDLESS = ["--updates", "1000000", "--set", "optim.batch_size=2", "--set", "optim.threads=1"]
# Command -> (how many signals, the latest moment of one): of those that start Ray fewer.
PLAN = {"verify": (5, 0.3), "inspect": (4, 0.3), "sample": (5, 0.5), "evaluate": (6, 1.5), "pretrain": (5, 2.5), "fit-compass": (4, 2.5),
        "import-teacher": (3, 0.2), "publish": (5, 1.0), "generate": (3, 12.0), "distill": (4, 2.5), "distill on Ray": (3, 14.0), "ablate": (2, 14.0), "demo": (2, 12.0)}
QUICK = ("import-teacher",)  # done in some hundredths of a second, before most signals come
MODULES = ("tsdfm.jobs.cli", "tsdfm.jobs.start", "tsdfm.jobs.distill.run", "tsdfm.jobs.ablate.run", "tsdfm.jobs.demo.run", "tsdfm.jobs.evaluate.command", "tsdfm.pipeline.training.fit_compass",
           "tsdfm.pipeline.training.pretrain", "tsdfm.pipeline.publishing.dataset", "tsdfm.pipeline.models.foreign.importer", "tests.warm")


@dataclass(frozen=True)
class Stand:
    """Inputs of every command, and the process that runs them."""

    root: Path
    models: TinyModels
    mother: Warm

    def arguments(self, name: str, out: Path) -> list[str]:
        """A command line that works for some seconds, or until it is stopped."""
        data, corpus, mask = self.root / "data", self.root / "corpus.txt", self.models.mask
        lines: dict[str, list[object]] = {
            "verify": ["verify", data], "inspect": ["inspect", data], "sample": ["sample", "--model", mask, "-n", 200],
            "evaluate": ["evaluate", "--model", mask, "--evaluator", self.models.ar, "--corpus", corpus, "-n", 200, "--out", out],
            "pretrain": ["pretrain", "--corpus", corpus, "--tokenizer", mask, *TINY, *ENDLESS, "--out", out],
            "fit-compass": ["fit-compass", "--corpus", corpus, "--teacher", mask, *ENDLESS, "--out", out],
            "import-teacher": ["import-teacher", self.root / "hub" / "model.safetensors", "--heads", 2, "--layout", "mdlm", "--out", out],
            "publish": ["publish", self.root / "small", "--repo", f"team/{out.name}"],
            "generate": ["generate", "--teacher", mask, "--compass", self.models.ar, "--trajectories", 4000, "--shard-size", 4, "--steps", 64,
                         "--batch-size", 4, "--workers", 1, "--out", out],
            "distill": ["distill", "--data", data, "--init", mask, "--budgets", "1,4", *ENDLESS, "--out", out],
            "distill on Ray": ["distill", "--data", data, "--init", mask, "--budgets", "1,4", *ENDLESS, "--workers", 2, "--out", out],
            "ablate": ["ablate", self.root / "sweep.yaml", "--data", data, "--workers", 1, "--out", out],
            "demo": ["demo", "--trajectories", 64, "--updates", 50, "-n", 16, "--out", out],
        }
        return [str(word) for word in lines[name]]


@pytest.fixture(scope="module")
def stand(tmp_path_factory, tiny_models) -> Iterator[Stand]:
    root = tmp_path_factory.mktemp("signals")
    make_dataset(root / "data", tiny_models, trajectories=400, rollout={"steps": 8, "batch_size": 32})
    copy_dataset(root / "small", tiny_models)
    write_corpus(root / "corpus.txt", 1000)
    write_checkpoint(root / "hub", tiny_models)
    (root / "sweep.yaml").write_text(yaml.safe_dump({
        "name": "long", "base": {"init": str(tiny_models.mask), "budgets": {1: 1}, "optim": {"steps": 100_000, "batch_size": 2}},
        "factors": {"data.arm": ["shaped", "blind"]},
        "evaluate": {"steps": [2], "samples": 4, "evaluator": [str(tiny_models.ar)], "corpus": {"path": str(root / "corpus.txt")}}}))
    with LoopbackHub() as hub, pytest.MonkeyPatch.context() as patch:
        hub.tokens = {TOKEN: "team"}
        for name, value in environment(hub, root / "home").items():
            patch.setenv(name, value)
        with warm(*MODULES) as mother:
            yield Stand(root, tiny_models, mother)


def write_checkpoint(folder: Path, models: TinyModels) -> None:
    from safetensors.torch import save_file

    from tests.foreign import random_weights

    folder.mkdir()
    save_file(random_weights("mdlm", 300), folder / "model.safetensors")
    (folder / "tokenizer.json").write_bytes((models.mask / "tokenizer.json").read_bytes())


def wrong(end: End) -> list[str]:
    """What is wrong with how a command that was told to stop has ended."""
    if end.code == 0:
        return []  # it was done before
    last = (end.stderr.strip().splitlines() or [""])[-1]
    checks = {
        f"exit code {end.code}": end.code == 130, "a traceback": "Traceback" not in end.stderr and "Exception ignored" not in end.stderr,
        "it does not say how to go on": last.startswith("Error: ") and any(words in last for words in HOW_TO_GO_ON),
        f"{end.seconds:.1f} s": end.seconds < (IN_HAND_SECONDS if IN_HAND in end.stderr else SECONDS), f"left behind: {end.left}": not end.left, "crashed": end.code != CRASHED,
    }
    return [what for what, held in checks.items() if not held]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PLAN)
def test_a_command_that_is_told_to_stop_ends_soon_and_says_how_to_go_on(name, stand, tmp_path):
    count, latest = PLAN[name]
    rng = random.Random(name)
    numbers = rng.sample(SIGNALS, 3) * 2
    faults, codes = [], []
    for index in range(count):
        # Moments spread over the whole of a run: one in each of as many parts.
        after, number = latest * (index + rng.random()) / count, numbers[index]
        end = stand.mother.run(Job(command, tuple(stand.arguments(name, tmp_path / f"out{index % 2}")), ((after, number),), patience=60))
        codes.append(end.code)
        print(f"{name}: {signal.Signals(number).name} after {after:.2f} s: {end.code} in {end.seconds:.1f} s: {end.stderr[-200:]!r}")
        faults += [f"{signal.Signals(number).name} after {after:.2f} s: {each}: {end.stderr[-1500:]}" for each in wrong(end)]
    assert not faults, "\n".join(faults)
    assert 130 in codes or name in QUICK, f"none of {count} signals came before the command had ended"


@pytest.mark.slow
def test_a_command_that_is_still_starting_does(stand, tmp_path):
    """A process of its own, whose imports take the first seconds."""
    rng, faults = random.Random(3), []
    for index, name in enumerate(["pretrain", "evaluate", "distill on Ray", "generate", "sample", "publish", "fit-compass", "verify"]):
        after, number = rng.uniform(0.6, 3.0), SIGNALS[index % 3]
        process = subprocess.Popen([sys.executable, "-m", "tsdfm.jobs", *stand.arguments(name, tmp_path / name)], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, start_new_session=True)
        time.sleep(after)
        process.send_signal(number)
        started = time.monotonic()
        stdout, stderr = process.communicate(timeout=100)
        found = wrong(End(process.returncode, stdout, stderr, time.monotonic() - started, []))
        faults += [f"{name}, {signal.Signals(number).name} after {after:.2f} s: {each}: {stderr[-1500:]}" for each in found]
    assert not faults, "\n".join(faults)
