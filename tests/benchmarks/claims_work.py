"""The work behind the claims: its settings, and the commands that make the data, the students and their evaluations.

Every stage is a `tsdfm-pipeline` command (one is a script beside this file) whose output stays in the work folder, so that a
run which was killed goes on where it was: a command whose work is done only checks that its settings are the same.
"""

import itertools
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from measure import say
from smollm2 import fetch

COMMAND = Path(sys.executable).with_name("tsdfm-pipeline")
ONLINE = Path(__file__).with_name("claims_online.py")
SPREAD = {"mask": "spaced", "uniform": "even"}  # clocks by source, beside independent ones
Compass = Literal["ar", "nce"]
Who = Literal["teacher", "shaped", "contrast", "blind", "more", "large", "online", "rounds"]
BY: dict[Compass, Who] = {"ar": "shaped", "nce": "contrast"}  # whose students are called what


@dataclass(frozen=True)
class Settings:
    """All that the figures depend on."""

    sources: tuple[str, ...] = ("mask", "uniform")
    both_clocks: bool = True  # students of independent clocks, too
    trajectories: int = 4096  # an arm
    candidates: int = 8
    compasses: tuple[Compass, ...] = ("ar", "nce")  # each has students of its own; `nce` those of spread clocks alone
    tau: float = 0.25  # from which the `ar` compass chooses; `nce` does throughout
    steps: int = 8  # of rollouts and students
    temperature: float = 0.9  # of rollouts
    objective: str = "event"
    nce_updates: int = 400  # of that compass, by 2,048 rollouts
    nce_event_weight: float = 0.2  # its students learn by `tilt`, and this much of `event`
    updates: int = 600
    batch_size: int = 32
    lr: float = 2e-4
    held_out: float = 0.0625
    seeds: tuple[int, ...] = (0, 1, 2)
    extras: tuple[Who, ...] = ("more", "large", "online", "rounds")
    more: int = 6  # times the trajectories and updates, blind
    large_shape: dict[str, int] = field(default_factory=lambda: {"hidden_size": 512, "n_blocks": 5, "n_heads": 8})
    large_updates: int = 1000  # of the large student's teacher
    rounds: tuple[int, ...] = (64, 32, 16)  # steps that each round halves
    samples: int = 256
    teacher_steps: tuple[int, ...] = (8, 64, 1024)
    long_spread: bool = True  # the teacher's most steps with spread clocks, too
    student_steps: tuple[int, ...] = (1, 2, 4, 8, 16)
    temperatures: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0)
    temperatures_long: tuple[float, ...] = (0.6, 0.7, 0.8, 1.0)  # of 1,024 steps, which cost most
    temperatures_student: tuple[float, ...] = (0.8, 0.9, 1.0, 1.15)  # they have learnt from cooled texts
    judge_updates: int = 800
    smollm2: bool = True


QUICK = Settings(both_clocks=False, long_spread=False, compasses=("ar",), trajectories=512, updates=120, seeds=(0,), extras=(), samples=64, teacher_steps=(8, 1024),
                 student_steps=(8,), temperatures=(0.7, 0.8, 1.0), temperatures_long=(0.7, 0.8, 1.0),
                 temperatures_student=(0.9, 1.0, 1.15), judge_updates=100, smollm2=False)


@dataclass(frozen=True)
class Subject:
    """What is sampled: a teacher or a student, and the clocks that it is sampled with."""

    who: Who
    source: str
    clocks: str
    model: str  # as `evaluate` is told it
    seed: int | None = None  # of the training; None: a teacher


@dataclass(frozen=True)
class Evaluation:
    """One `evaluate` command: subjects of one source and clocks, at some steps, over some temperatures."""

    name: str
    subjects: tuple[Subject, ...]
    steps: tuple[int, ...]
    temperatures: tuple[float, ...]


class Runner:
    """Runs commands, as many at once as there are cores, one thread each.

    `seconds.json` keeps how long each took by the wall clock, over all its attempts; `done.json` the results of those that
    ended, which are not run again while their output is there.
    """

    def __init__(self, work: Path) -> None:
        self.work, self.commands = work, list[str]()
        self._times, self._done = work / "seconds.json", work / "done.json"
        self.seconds: dict[str, float] = json.loads(self._times.read_text()) if self._times.exists() else {}
        self.done: dict[str, dict[str, Any]] = json.loads(self._done.read_text()) if self._done.exists() else {}
        self._lock = Lock()

    def run(self, *arguments: object) -> dict[str, Any]:
        """One command of the package with --json; its result. Raises RuntimeError with its last line if it fails."""
        words = [str(argument) for argument in arguments]
        return self._result(shlex.join(["tsdfm-pipeline", *words]), [str(COMMAND), *words, "--json"])

    def script(self, file: Path, *arguments: object) -> dict[str, Any]:
        """One script beside this file."""
        words = [str(argument) for argument in arguments]
        return self._result(shlex.join(["python", f"tests/benchmarks/{file.name}", *words]), [sys.executable, str(file), *words])

    def _result(self, shown: str, words: Sequence[str]) -> dict[str, Any]:
        self.commands.append(shown)
        if shown in self.done and Path(words[words.index("--out") + 1]).exists():
            return self.done[shown]
        say(shown)
        began = time.monotonic()
        done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
        with self._lock:
            self.seconds[shown] = round(self.seconds.get(shown, 0.0) + time.monotonic() - began, 1)
            self._times.write_text(json.dumps(self.seconds, indent=1) + "\n")
        if done.returncode:
            raise RuntimeError(f"{shown}: exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        with self._lock:
            self.done[shown] = result
            self._done.write_text(json.dumps(self.done) + "\n")
        return result

    def together(self, tasks: Sequence[Callable[[], Any]]) -> list[Any]:
        """Several tasks that don't depend on each other; their results in the order given."""
        with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
            return [each.result() for each in [pool.submit(task) for task in tasks]]


class Work:
    """All stages of one run of the claims in a folder."""

    def __init__(self, runner: Runner, settings: Settings) -> None:
        self.runner, self.settings, self.folder = runner, settings, runner.work

    def clocks(self, source: str) -> tuple[str, ...]:
        """The clocks that students of a source are made for: the spread ones first."""
        return (SPREAD[source], "independent") if self.settings.both_clocks else (SPREAD[source],)

    def make_data(self) -> None:
        """Trajectories of both embedded teachers, paired with blind ones where `ar` shapes them; `generate` itself uses all cores."""
        if "nce" in self.settings.compasses:
            self.runner.together([partial(self._contrast, source) for source in self.settings.sources])
        for source in self.settings.sources:
            arm = "both" if "ar" in self.settings.compasses else "blind"
            for clocks in self.clocks(source):
                self._generate(f"data-{source}-{clocks}", "--source", source, "--clocks", clocks, "--arm", arm, "--candidates",
                               self.settings.candidates, "--tau", self.settings.tau, "--trajectories", self.settings.trajectories)
            if "more" in self.settings.extras:
                self._generate(f"data-{source}-more", "--source", source, "--clocks", SPREAD[source], "--arm", "blind",
                               "--trajectories", self.settings.more * self.settings.trajectories)
            if "nce" in self.settings.compasses:
                self._generate(f"data-{source}-contrast", "--source", source, "--clocks", SPREAD[source], "--compass",
                               self.folder / f"compass-{source}", "--logprobs", "--candidates", self.settings.candidates,
                               "--trajectories", self.settings.trajectories)

    def _contrast(self, source: str) -> None:
        """The `nce` compass of a source."""
        self.runner.run("fit-compass", "--kind", "nce", "--teacher", f"embedded:{source}", "--out", self.folder / f"compass-{source}",
                        "--rollouts", 2048, "--rollout-steps", self.settings.steps, "--hard-negatives", 3, "--batch-size", 32, "--updates",
                        self.settings.nce_updates, "--lr", 0.0005, "--warmup", self.settings.nce_updates // 10, "--ema", 0.99)

    def _generate(self, name: str, *flags: object) -> None:
        self.runner.run("generate", "--out", self.folder / name, "--steps", self.settings.steps, "--temperature",
                        self.settings.temperature, *flags)

    def make_models(self) -> None:
        """The small judge, all students, and what else they are compared with."""
        settings = self.settings
        recipe = self.folder / "judge-small.yaml"
        recipe.write_text(json.dumps(small_judge(settings), indent=2) + "\n")  # JSON is YAML
        tasks: list[Callable[[], Any]] = [partial(self.runner.run, "fit-compass", recipe, "--out", self.folder / "judge-small")]
        for source in settings.sources:
            for name, make in (("large", self._large), ("rounds", self._rounds)):  # the longest first
                if name in settings.extras:
                    tasks.append(partial(make, source))
        for source, seed in itertools.product(settings.sources, settings.seeds):
            for clocks, who in itertools.product(self.clocks(source), self.students(SPREAD[source])):
                if who in self.students(clocks):
                    tasks.append(partial(self._student, source, clocks, who, seed))
        for source in settings.sources:
            if "more" in settings.extras:
                longer = self.learning(settings.steps, updates=settings.more * settings.updates)
                tasks.append(partial(self._distill, f"data-{source}-more", f"student-{source}-more", longer))
        self.runner.together(tasks)
        self.runner.together([partial(self._online, source) for source in settings.sources if "online" in settings.extras])

    def students(self, clocks: str) -> tuple[Who, ...]:
        """The students with training seeds that are made for these clocks: by each compass, then blind."""
        chosen: list[Who] = [BY[each] for each in self.settings.compasses if each == "ar" or clocks != "independent"]
        return (*chosen, "blind")

    def _student(self, source: str, clocks: str, who: Who, seed: int) -> None:
        name, learning = f"student-{source}-{clocks}-{who}-{seed}", self.learning(self.settings.steps)
        if who == "contrast":
            learning = self.learning(self.settings.steps, "tilt")
            self._distill(f"data-{source}-contrast", name, [*learning, "--event-weight", self.settings.nce_event_weight], "shaped", seed)
        else:
            self._distill(f"data-{source}-{clocks}", name, learning, who, seed)

    def learning(self, budget: int, objective: str | None = None, updates: int | None = None) -> list[object]:
        """The flags of how a student learns to write in `budget` steps."""
        settings = self.settings
        return ["--objective", objective or settings.objective, "--updates", updates or settings.updates, "--batch-size",
                settings.batch_size, "--lr", settings.lr, "--budgets", budget, "--held-out", settings.held_out, "--alike"]

    def _distill(self, data: str, name: str, learning: list[object], arm: str = "blind", seed: int = 0) -> None:
        self.runner.run("distill", "--data", self.folder / data, "--arm", arm, "--out", self.folder / name, "--seed", seed, *learning)

    def _large(self, source: str) -> None:
        """A blind student of about five times the parameters: its teacher, its trajectories, and itself."""
        settings, name = self.settings, f"large-{source}"
        recipe = self.folder / f"{name}.yaml"
        recipe.write_text(json.dumps(large_teacher(settings, source), indent=2) + "\n")
        self.runner.run("pretrain", recipe, "--out", self.folder / f"teacher-{name}")
        self._generate(f"data-{name}", "--teacher", self.folder / f"teacher-{name}", "--clocks", SPREAD[source], "--arm", "blind",
                       "--trajectories", settings.trajectories, "--workers", 1)
        self._distill(f"data-{name}", f"student-{source}-large", self.learning(settings.steps))

    def _rounds(self, source: str) -> None:
        """Rounds that halve the steps, as in SDTT: each student learns its teacher's posterior two jumps ahead, and is the next teacher."""
        teacher = f"embedded:{source}"
        for number, steps in enumerate(self.settings.rounds, 1):
            last = number == len(self.settings.rounds)
            data, name = f"data-{source}-round-{number}", f"student-{source}-rounds" if last else f"student-{source}-round-{number}"
            self.runner.run("generate", "--out", self.folder / data, "--teacher", teacher, "--clocks", SPREAD[source], "--arm",
                            "blind", "--steps", steps, "--trajectories", self.settings.trajectories, "--workers", 1, "--top-k", 16)
            self._distill(data, name, self.learning(steps // 2, "forward_kl"))
            teacher = str(self.folder / name)

    def _online(self, source: str) -> None:
        """The predecessor's scheme, for as many core-seconds as the shaped route took: its data on all cores, and its training."""
        shaped = [f"data-{source}-{SPREAD[source]}", f"student-{source}-{SPREAD[source]}-shaped-{self.settings.seeds[0]}"]
        times = [sum(seconds for command, seconds in self.runner.seconds.items() if f"--out {self.folder / name} " in command)
                 for name in shaped]
        file = self.folder / f"online-{source}.json"  # what a first run measured is kept
        if not file.exists():
            file.write_text(json.dumps({"seconds": round(times[0] * len(os.sched_getaffinity(0)) + times[1])}) + "\n")
        self.runner.script(ONLINE, "--source", source, "--seconds", json.loads(file.read_text())["seconds"], "--batch-size",
                           self.settings.batch_size, "--lr", self.settings.lr, "--out", self.folder / f"student-{source}-online")

    def evaluations(self) -> list[Evaluation]:
        """All that is measured."""
        settings, found = self.settings, list[Evaluation]()
        long = max(settings.teacher_steps)
        for source in settings.sources:
            for clocks in (SPREAD[source], "independent"):
                teacher = (Subject("teacher", source, clocks, f"embedded:{source}"),)
                few = tuple(n for n in settings.teacher_steps if n < long)
                found.append(Evaluation(f"{source}-{clocks}-teacher", teacher, few, settings.temperatures))
                if clocks == "independent" or settings.long_spread:
                    found.append(Evaluation(f"{source}-{clocks}-teacher-long", teacher, (long,), settings.temperatures_long))
            for clocks in self.clocks(source):
                students = tuple(Subject(arm, source, clocks, str(self.folder / f"student-{source}-{clocks}-{arm}-{seed}"), seed)
                                 for arm in self.students(clocks) for seed in settings.seeds)
                found.append(Evaluation(f"{source}-{clocks}-students", students, (settings.steps,), settings.temperatures_student))
                others = tuple(n for n in settings.student_steps if n != settings.steps)
                firsts = tuple(each for each in students if each.seed == settings.seeds[0])
                if others:
                    found.append(Evaluation(f"{source}-{clocks}-steps", firsts, others, (1.0,)))
            extras = tuple(Subject(who, source, SPREAD[source], str(self.folder / f"student-{source}-{who}"), 0)
                           for who in settings.extras)
            if extras:
                found.append(Evaluation(f"{source}-extras", extras, (settings.steps,), settings.temperatures_student))
        return found

    def learnt(self) -> list[dict[str, Any]]:
        """What the students of each source and compass carry of its preference on held-out trajectories, by training seed;
        without those whose record does not tell it.
        """
        found = []
        for source, compass in itertools.product(self.settings.sources, self.settings.compasses):
            by_seed = []
            for seed in self.settings.seeds:
                file = self.folder / f"student-{source}-{SPREAD[source]}-{BY[compass]}-{seed}" / "training.json"
                by_seed.append(json.loads(file.read_text()).get("held_out") or {})
            told = [{name: each[name] for name in ("share", "cooled")} for each in by_seed if each.get("cooled") is not None]
            if told:
                found.append({"source": source, "compass": compass, "by_seed": told})
        return found

    def evaluate(self) -> dict[str, dict[str, Any]]:
        """The results of all evaluations by name, the costly ones begun first."""
        ordered = sorted(self.evaluations(), key=lambda each: -max(each.steps))
        results = self.runner.together([partial(self.runner.run, *self.command(each)) for each in ordered])
        return dict(zip([each.name for each in ordered], results, strict=True))

    def command(self, each: Evaluation) -> list[object]:
        """The `evaluate` command of one evaluation."""
        judges: list[object] = [self.folder / "judge-small", "embedded"]
        if self.settings.smollm2:
            judges.append(fetch(self.folder / "smollm2"))
        words: list[object] = ["evaluate", "--out", self.folder / f"eval-{each.name}"]
        for flag, values in (("--model", [subject.model for subject in each.subjects]), ("--evaluator", judges)):
            words += [word for value in values for word in (flag, value)]
        if len(each.temperatures) > 1:
            words += ["--frontier", "--temperatures", ",".join(map(str, each.temperatures))]
        return [*words, "--steps", ",".join(map(str, each.steps)), "--clocks", each.subjects[0].clocks, "--distances", "--number",
                self.settings.samples, "--seed", 7, "--threads", 1]


def small_judge(settings: Settings) -> dict[str, object]:
    """The config of the smallest judge, fitted on the corpus half that the compass never saw."""
    return {"kind": "ar", "corpus": {"part": "second"}, "shape": {"hidden_size": 64, "n_blocks": 2, "n_heads": 2},
            "optim": {"steps": settings.judge_updates, "lr": 3e-3, "seed": 3}}


def large_teacher(settings: Settings, source: str) -> dict[str, object]:
    """The config of the large student's teacher: the embedded one's recipe, wider, and as long as it can be afforded."""
    return {"vocab_size": 2048, "length": 64, "source": source, "shape": settings.large_shape, "cond_dim": 128,
            "optim": {"steps": settings.large_updates, "batch_size": 64, "lr": 1.5e-3, "warmup": 100, "ema": 0.995, "seed": 0,
                      "threads": 1, "checkpoint_every": 50}}
