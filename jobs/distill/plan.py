"""`distill --plan`: what a student will cost; nothing is made."""

from pathlib import Path

from tsdfm.jobs.distill.run import pinned, with_anchored_paths
from tsdfm.jobs.plan.plan import check_writable, plan_of, started_seconds
from tsdfm.jobs.plan.training import TrainingJob, updates_done
from tsdfm.jobs.shell.trackers import check_tracker
from tsdfm.pipeline.training.distill import opened, train_at
from tsdfm.pipeline.training.student_trainer import Start
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.plan import Plan, PlanWish


def plan_distill(config: DistillConfig, wish: PlanWish, out: Path) -> Plan:
    """The plan of a student. Raises InputError where the run would; nothing is written."""
    check_tracker(config.tracker)
    check_writable(out)
    config = with_anchored_paths(config)
    start = opened(config, out)
    return plan_of(job_of(pinned(config, start.reader), start, out.absolute(), updates_done(out, start.identity)), wish)


def job_of(config: DistillConfig, start: Start, out: Path, done: int) -> TrainingJob:
    """The job of a student whose data and weights are opened."""
    model, rollout = start.weights.network.config, start.reader.manifests[0].identity.rollout
    shape = {"weights": model.model_dump(mode="json"), "blocks": config.init_blocks, "objective": config.objective,
             "real": bool(config.real.weight), "loader_workers": config.data.loader_workers}
    return TrainingJob("distill", train_at, config, out, done, rollout.length or model.length, shape, started_seconds())
