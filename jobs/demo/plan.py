"""What a demo runs: the configs of all its stages, and the commands that do the same one by one."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsdfm.pipeline.storage.targets import check_folder
from tsdfm.schemas.base import InputError
from tsdfm.schemas.demo import DemoConfig
from tsdfm.schemas.distill import DataConfig, DistillConfig, DistillOptim
from tsdfm.schemas.evaluate import EvaluateConfig
from tsdfm.schemas.generate import GenerateConfig, RolloutConfig, ShapingConfig
from tsdfm.schemas.terms import Arm

TEACHER = "embedded:mask"
ARMS: tuple[Arm, ...] = ("blind", "shaped")
STEPS, SLOW_STEPS = 8, 1024  # that are allowed; that the teacher may take in comparison
TEMPERATURE, CANDIDATES, TAU = 0.9, 8, 0.25  # of the trajectories
TEMPERATURES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1)  # of the evaluation
SLOW_TEMPERATURES = (0.7, 0.8, TEMPERATURE, 1.0)  # ... of the teacher in many steps, which costs most
LEARNING_RATE, HELD_OUT, PATIENCE = 2e-4, 0.05, 5  # of the students; of trajectories; in log lines
SEED = 1  # of the evaluated texts: seed 0 is the trajectories', whose noise the students saw in training
SHARD = 64  # trajectories in one, unless there are too few for four shards
SLOW, INDEPENDENT, SPACED = "teacher-slow", "teacher", "spaced"  # the evaluations


@dataclass(frozen=True)
class Plan:
    """The configs of all stages, by name, and the folder they work in."""

    out: Path
    data: GenerateConfig
    students: Mapping[Arm, DistillConfig]
    evaluations: Mapping[str, EvaluateConfig]

    def student(self, arm: Arm) -> Path:
        """The folder of a student."""
        return self.out / f"student-{arm}"

    @property
    def rollouts(self) -> Path:
        """The folder that keeps what the judge says of the trajectories' own texts."""
        return self.out / "evaluation" / "trajectories"


def plan(config: DemoConfig) -> Plan:
    """What a demo runs. Raises InputError: OUT is not a local folder, or holds something else."""
    if "://" in config.out:
        raise InputError(f"--out {config.out}: models and pages need a local folder; give one")
    folder, trajectories = Path(config.out), config.trajectories
    check_folder(folder, {"data"}, "demo")
    data = GenerateConfig(
        out=str(folder / "data"), trajectories=trajectories, arm="both", shard_size=min(SHARD, -(-trajectories // 4)),
        rollout=RolloutConfig(steps=STEPS, temperature=TEMPERATURE, clocks="spaced"),
        shaping=ShapingConfig(candidates=CANDIDATES, tau=TAU))
    students = {arm: DistillConfig(
        data=DataConfig(paths=[str(folder / "data")], arm=arm, held_out=HELD_OUT), budgets={STEPS: 1}, alike=True,
        patience=PATIENCE, optim=DistillOptim(steps=config.updates, lr=LEARNING_RATE)) for arm in ARMS}
    models = tuple(str(folder / f"student-{arm}") for arm in ARMS)

    def part(name: str, temperatures: tuple[float, ...], **settings: Any) -> EvaluateConfig:
        return EvaluateConfig(
            out=str(folder / "evaluation" / name), samples=config.samples, seed=SEED, threads=1, frontier=True,
            temperatures=temperatures, **settings)

    return Plan(folder, data, students, {
        SLOW: part(SLOW, SLOW_TEMPERATURES, model=(TEACHER,), steps=(SLOW_STEPS,), clocks="independent", reference=False),
        INDEPENDENT: part(
            INDEPENDENT, TEMPERATURES[:-1], model=(TEACHER,), steps=(STEPS,), clocks="independent", reference=False),
        SPACED: part(
            SPACED, TEMPERATURES, model=(TEACHER, *models), steps=(STEPS,), clocks="spaced", trajectories_of=(data.out,)),
    })


def commands(plan: Plan) -> list[str]:
    """The commands that do the stages one by one."""
    rollout, shaping = plan.data.rollout, plan.data.shaping
    lines: list[list[object]] = [
        ["generate", "--clocks", rollout.clocks, "--steps", rollout.steps, "--temperature", rollout.temperature, "--candidates",
         shaping.candidates, "--tau", shaping.tau, "--arm", plan.data.arm, "--trajectories", plan.data.trajectories,
         "--shard-size", plan.data.shard_size, "--out", plan.data.out],
        ["verify", plan.data.out],
        ["inspect", plan.data.out, "--html", plan.out / "trajectories.html"]]
    for arm, config in plan.students.items():
        budgets = ",".join(f"{steps}" for steps in config.budgets or {})
        lines.append(["distill", "--data", plan.data.out, "--arm", arm, "--budgets", budgets, "--lr", config.optim.lr,
                      "--updates", config.optim.steps, "--alike", "--held-out", config.data.held_out, "--patience",
                      config.patience, "--out", plan.student(arm)])
    for each in plan.evaluations.values():
        models = [word for model in each.model for word in ("--model", model)]
        real = [] if each.reference else ["--no-reference"]
        learnt = [word for name in each.trajectories_of or () for word in ("--trajectories-of", name)]
        lines.append(["evaluate", *models, "--clocks", each.clocks, "--steps", _listed(each.steps), "--frontier",
                      "--temperatures", _listed(each.temperatures), *real, *learnt, "--number", each.samples, "--seed",
                      each.seed, "--threads", each.threads, "--out", each.out])
    return [shlex.join(["tsdfm-pipeline", *map(str, line)]) for line in lines]


def _listed(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{each:g}" for each in numbers)
