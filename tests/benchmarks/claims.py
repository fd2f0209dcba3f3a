"""The paper's claim on real text: `make claims`, or `python tests/benchmarks/claims.py [--quick] [--work DIR] [--readme]`.

Teachers at 8, 64 and 1,024 steps; students distilled with equal budgets from blind and from shaped trajectories of the same
teacher, for both sources and several training seeds; three judges of increasing size that had no part in making anything
(a small causal LM, the embedded one, SmolLM2-135M); real held-out text beside them. Targets, all at a unigram entropy of at
least 97 % of real text's:

(i)   the 8-step student at least 32 % below its teacher at 1,024 steps under every judge and for both sources, and shaped
      below blind with non-overlapping intervals;
(ii)  over sampling temperatures, the 8-step student's perplexity-entropy curve below the teacher's own 8-step curve, and (the
      moonshot) below its 1,024-step curve;
(iii) 8 steps at least 100 times faster than 1,024, by wall clock.

Every stage is a `tsdfm-pipeline` command whose output stays in DIR, so a run that was killed goes on where it was. Seeds of
sampling, data and judges are fixed: spread over training seeds is given as least and greatest, sampling error as bootstrap
intervals. `--readme` writes the table, settings and commands into the README, and the figure beside this file.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import claims_table
from measure import machine, report, say
from smollm2 import fetch
from speed import speed_of_steps

COMMAND = Path(sys.executable).with_name("tsdfm-pipeline")
SOURCES = ("mask", "uniform")
ARMS = ("shaped", "blind")


@dataclass(frozen=True)
class Settings:
    """All that the figures depend on."""

    trajectories: int = 4096
    candidates: int = 8
    rollout_steps: int = 64
    objective: str = "event"
    updates: int = 600
    batch_size: int = 32
    lr: float = 5e-4
    seeds: tuple[int, ...] = (0, 1, 2)
    samples: int = 256
    teacher_steps: tuple[int, ...] = (8, 64, 1024)
    student_steps: tuple[int, ...] = (1, 2, 4, 8, 16)
    temperatures: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
    temperatures_long: tuple[float, ...] = (0.6, 0.7, 0.8, 1.0)  # of the teacher at 1,024 steps, which costs most
    judge_updates: int = 800
    smollm2: bool = True


QUICK = Settings(trajectories=192, updates=60, seeds=(0,), samples=48, temperatures=(0.8, 0.9, 1.0), temperatures_long=(0.8, 1.0),
                 judge_updates=60, smollm2=False)


class Runner:
    """Runs commands of the package, as many at once as there are cores, one thread each; their outputs are their memory."""

    def __init__(self, work: Path) -> None:
        self.work, self.commands = work, list[str]()

    def run(self, *arguments: object) -> dict[str, Any]:
        """One command with --json; its result. Raises RuntimeError with its last line if it fails."""
        words = [str(argument) for argument in arguments]
        shown = shlex.join(["tsdfm-pipeline", *words])
        self.commands.append(shown)
        say(shown)
        done = subprocess.run([COMMAND, *words, "--json"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{shown}: exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    def together(self, commands: Sequence[Sequence[object]]) -> list[dict[str, Any]]:
        """Several commands that don't depend on each other, in the order given."""
        with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
            return list(pool.map(lambda command: self.run(*command), commands))


def make_data(runner: Runner, settings: Settings) -> None:
    """Paired trajectories, shaped and blind, of both embedded teachers; `generate` itself uses all cores."""
    for source in SOURCES:
        runner.run("generate", "--out", runner.work / f"data-{source}", "--source", source, "--arm", "both", "--trajectories",
                   settings.trajectories, "--steps", settings.rollout_steps, "--candidates", settings.candidates)


def small_judge(settings: Settings) -> dict[str, object]:
    """The config of the smallest judge, fitted on the corpus half that the compass never saw."""
    return {"kind": "ar", "corpus": {"part": "second"}, "shape": {"hidden_size": 64, "n_blocks": 2, "n_heads": 2},
            "optim": {"steps": settings.judge_updates, "lr": 3e-3, "seed": 3}}


def make_models(runner: Runner, settings: Settings) -> None:
    """The small judge and all students; a command whose work is done only checks that its config is the same."""
    commands: list[list[object]] = []
    judge = runner.work / "judge-small"
    recipe = runner.work / "judge-small.yaml"
    recipe.write_text(json.dumps(small_judge(settings), indent=2) + "\n")  # JSON is YAML
    commands.append(["fit-compass", recipe, "--out", judge])
    for seed in settings.seeds:
        for source in SOURCES:
            for arm in ARMS:
                student = runner.work / f"student-{source}-{arm}-{seed}"
                commands.append([
                    "distill", "--data", runner.work / f"data-{source}", "--arm", arm, "--out", student, "--objective",
                    settings.objective, "--updates", settings.updates, "--batch-size", settings.batch_size, "--lr",
                    settings.lr, "--seed", seed])
    runner.together(commands)


def evaluations(runner: Runner, settings: Settings) -> dict[str, list[object]]:
    """The evaluate commands of both sources, by the name of their output folder."""
    work = runner.work
    judges: list[object] = ["--evaluator", work / "judge-small", "--evaluator", "embedded"]
    if settings.smollm2:
        judges += ["--evaluator", fetch(work / "smollm2")]
    common = [*judges, "--number", settings.samples, "--seed", 7, "--threads", 1]
    sweep, sweep_long = (["--frontier", "--temperatures", ",".join(map(str, temperatures))]
                         for temperatures in (settings.temperatures, settings.temperatures_long))
    commands: dict[str, list[object]] = {}

    def add(name: str, models: Sequence[object], steps: Sequence[int], *extra: object) -> None:
        named = [word for model in models for word in ("--model", model)]
        commands[name] = ["evaluate", *named, "--steps", ",".join(map(str, steps)), *extra, *common, "--out", work / f"eval-{name}"]

    for source in SOURCES:
        first = [work / f"student-{source}-{arm}-{settings.seeds[0]}" for arm in ARMS]
        others = [work / f"student-{source}-{arm}-{seed}" for arm in ARMS for seed in settings.seeds[1:]]
        teacher = f"embedded:{source}"
        add(f"{source}-teacher", [teacher], [n for n in settings.teacher_steps if n < 1024], *sweep, "--reference")
        add(f"{source}-teacher-long", [teacher], [n for n in settings.teacher_steps if n >= 1024], *sweep_long, "--no-reference")
        add(f"{source}-students", first, [8], *sweep, "--no-reference")
        add(f"{source}-steps", first, [n for n in settings.student_steps if n != 8], "--no-reference")
        if others:
            add(f"{source}-seeds", others, [8], "--no-reference")
    return commands


def main() -> None:
    """Make, distil, evaluate, conclude."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small numbers, two judges, one seed; never into the README")
    parser.add_argument("--work", type=Path, help="where everything is kept  [out/claims, or out/claims-quick]")
    parser.add_argument("--readme", action="store_true", help="write the table into README.md and the figure beside this file")
    parser.add_argument("--json", type=Path, help="write the result here, too")
    arguments = parser.parse_args()
    settings = QUICK if arguments.quick else Settings()
    work = arguments.work or Path("out/claims-quick" if arguments.quick else "out/claims")
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    runner = Runner(work)
    make_data(runner, settings)
    make_models(runner, settings)
    commands = evaluations(runner, settings)
    results = dict(zip(commands, runner.together(list(commands.values())), strict=True))
    speeds = {source: speed_of_steps(source, work / f"student-{source}-shaped-{settings.seeds[0]}") for source in SOURCES}

    figures = claims_table.collect(results, settings.seeds, SOURCES)
    conclusion = claims_table.conclude(figures, speeds)
    result = {"settings": asdict(settings), "machine": machine(1), "commands": runner.commands, "rows": figures, "speeds": speeds,
              "conclusion": conclusion, "seconds": round(time.monotonic() - started)}
    text = claims_table.markdown(result)
    say(text)
    claims_table.draw(figures, work / "claims.png")
    if arguments.readme and not arguments.quick:
        claims_table.publish(text, work / "claims.png", result)
    report(result, arguments.json or work / "claims.json")


if __name__ == "__main__":
    main()
